"""Class-conditional calibrators of fiducio on the draws of the protocol's eighth round.

    python -m study.labels.class_conditional LOGITS OUT NETWORK_SET [NETWORK_SET ...]

OUT gets `NETWORK_SET.csv`, with a row for each draw and calibrator. fiducio weights no voxels, so
each patient gives 20,000 that are drawn by their weights. Nothing else needs fiducio, and no extra
of the package installs it: `pip install fiducio==0.2.0`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import trange

from study.labels.draws import DRAWS, Draws, means_of

KINDS = ("CDC", "CMSop")  # classes of fiducio
PATIENTS = (5, 8)
VOXELS = 20_000  # of a patient


def fitted(kind: str, scans: Sequence[Any], draw: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a calibrator of logits `(1, N, voxels)` that is fitted to scans."""
    import fiducio

    generator, logits, labels = np.random.default_rng(draw), [], []
    for scan in scans:
        sample = scan["sample"]
        share = sample.weight / sample.weight.sum()
        chosen = generator.choice(len(share), VOXELS, p=share)
        logits.append(torch.from_numpy(sample.logits[:, chosen].T))
        labels.append(torch.from_numpy(sample.label[chosen]).long())
    fit = getattr(fiducio, kind)(optimizer="lbfgs", device="cpu")
    fit.fit(torch.cat(logits), torch.cat(labels))
    return lambda values: fit.transform(values).clamp_min(1e-30).log()


def main(logits: Path, out: Path, names: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        draws, rows = Draws.read(logits / f"{name}.pt"), []
        for number in PATIENTS:
            for draw in trange(DRAWS, desc=f"{name}, {number} patients"):
                inside, others = draws.drawn(number, draw)
                for kind in KINDS:
                    fit = fitted(kind, inside, draw)
                    tested = [draws.measure(scan, fit) for scan in others]
                    row = {"patients": number, "draw": draw, "calibrator": kind}
                    rows.append(row | means_of(tested))
        pd.DataFrame(rows).to_csv(out / f"{name}.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
