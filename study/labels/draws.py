"""What a few labels of another scanner give: the draws of the protocol's eighth round.

    python -m study.labels.draws LOGITS OUT

LOGITS has a file `NETWORK_SET.pt` of `study.labels.logits` for each network and set. OUT gets
`NETWORK_SET.csv`, with a row for each draw and calibrator; what is there is not made again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import trange

from calib_components.errors import InputError
from calib_components.posthoc import KINDS, Calibrator
from calib_components.posthoc.comparison import CANDIDATES, NONE, advise
from calib_components.posthoc.temperature import TemperatureEstimate
from calib_components.posthoc.vector import Sample
from calib_components.quality import Reference
from calib_components.quality.reference import ALL_DSC, volume_of
from calib_workflows.fit import is_unlike

Array = NDArray[np.float64]
PATIENTS = (3, 5, 8, 12)
AT_HOME = (5, 8)  # of the sets `home` and `hippocampus`
DRAWS = 50
# Types in the files of logits, besides tensors
STORED: list[Any] = [Sample, np.ndarray, np.dtype, np.ndarray(0).__reduce__()[0]]
STORED += [type(np.dtype(kind)) for kind in ("f4", "f8", "i8", "?")]


def main(logits: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(logits.glob("*_*.pt")):
        target = out / f"{file.stem}.csv"
        if not target.exists():
            draws = Draws.read(file)
            is_home = file.stem.endswith(("home", "hippocampus"))
            rows = [
                row
                for number in (AT_HOME if is_home else PATIENTS)
                for draw in trange(DRAWS, desc=f"{file.stem}, {number} patients")
                for row in draws.rows(number, draw)
            ]
            pd.DataFrame(rows).to_csv(target, index=False, float_format="%.6g")


class Draws:
    """The labelled scans of a set, some of whose patients are drawn for a fit."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.scans, self.structures = stored["cases"], stored["structures"]
        state, name = stored["before"]
        self.before = KINDS[name]()
        self.before.set_state(state)
        reference = stored.get("reference", torch.empty(0))
        self.trained_like = Reference.from_tensor(reference, [*self.structures])
        self.patients = sorted({scan["patient"] for scan in self.scans})

    @classmethod
    def read(cls, file: Path) -> Draws:
        """Read the file of a set; no code in it is run."""
        with torch.serialization.safe_globals(STORED):
            return cls(torch.load(file, weights_only=True))

    def drawn(self, number: int, draw: int) -> tuple[list[Any], list[Any]]:
        """Return the scans of the patients of a draw, and those of the others."""
        drawn = np.random.default_rng(draw).choice(self.patients, number, replace=False)
        inside = [scan for scan in self.scans if scan["patient"] in drawn]
        return inside, [scan for scan in self.scans if scan["patient"] not in drawn]

    def rows(self, number: int, draw: int) -> list[dict[str, Any]]:
        """Return the measures of each calibrator that is fitted to some patients, on the others."""
        inside, others = self.drawn(number, draw)
        fitted, refused = self._fitted(inside)
        fits = {NONE: self.before, **fitted}
        left_out = self._measure_left_out(inside, fits)
        found = self._reference(left_out[NONE])
        by_patient = {name: self._by_patient(rows) for name, rows in left_out.items()}
        advised = advise(by_patient, refused, is_unlike(found, self.trained_like)).name
        rows = []
        for name, fit in fits.items():
            tested = [self.measure(scan, fit) for scan in others]
            row: dict[str, Any] = {"patients": number, "draw": draw, "calibrator": name}
            row |= {"advised": advised, **means_of(tested)}
            if name in left_out:
                row |= self._limits(left_out[name], tested)
            rows.append(row)
        return rows

    def _fitted(self, scans: list[Any]) -> tuple[dict[str, Calibrator], dict[str, str]]:
        """Return the calibrators of some scans, and why one is not advised, by name."""
        fits, refused = {}, {}
        for kind in CANDIDATES:
            fit = kind()
            for scan in scans:
                part = scan["t"] if kind.name == "temperature" else scan["sample"]
                fit._add({scan["patient"]: part})
            try:
                estimate = fit.compute()
            except InputError:
                continue
            fits[kind.name] = fit
            if isinstance(estimate, TemperatureEstimate) and (why := estimate.conflict()):
                refused[kind.name] = why
        return fits, refused

    def _measure_left_out(
        self, scans: list[Any], fits: Mapping[str, Calibrator]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the measures of the drawn patients by calibrators of the other drawn ones, of
        those that may be advised.
        """
        measured = {NONE: [self.measure(scan, self.before) for scan in scans]}
        for name in fits.keys() & {"temperature", "bias"}:
            try:
                others = fits[name].left_out()
            except InputError:
                continue
            measured[name] = [self.measure(scan, others[scan["patient"]]) for scan in scans]
        return measured

    def measure(
        self, scan: Mapping[str, Any], fit: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, Any]:
        """Return the measures of a scan."""
        weight, label, near = scan["weight"].double(), scan["label"].long(), scan["near"]
        z = fit(scan["logits"][None])[0]
        log_p = z.log_softmax(0)
        nll = -log_p.gather(0, label[None])[0].double() * weight
        predicted, p = z.argmax(0), log_p.exp().double()
        row: dict[str, Any] = {
            "patient": scan["patient"],
            "nll": float(nll.sum() / weight.sum()),
            "nll_near": float(nll[near].sum() / weight[near].sum()),
        }
        # Confidence less accuracy where a structure is predicted, and the number of voxels
        is_predicted = predicted > 0
        gap = p.max(0).values - (predicted == label).double()
        row["excess"] = float((gap * weight)[is_predicted].sum())
        row["predicted"] = float(weight[is_predicted].sum())
        estimates = []
        for number, (name, classes) in enumerate(self.structures.items()):
            found, true = (torch.isin(each, torch.tensor(classes)) for each in (predicted, label))
            p_of = p[classes].sum(0)
            volume = float(weight[true].sum()) + scan["outside"][number]
            sizes = float(weight[found].sum())
            expected = float((p_of * weight).sum())
            dsc = 2 * float(weight[found & true].sum()) / (sizes + volume)
            expected_dsc = 2 * float((p_of * weight)[found].sum()) / (sizes + expected)
            row |= {f"dsc_{name}": dsc, f"volume_{name}": expected / volume}
            estimates.append((expected_dsc, dsc, expected, volume))
        means = np.mean(estimates, 0)
        return row | {"dsc": means[1], "bias": means[0] - means[1], "estimates": estimates}

    def _reference(self, scans: list[dict[str, Any]]) -> Reference:
        patients, values = ([scan[key] for scan in scans] for key in ("patient", "estimates"))
        return Reference.from_scans([*self.structures], patients, values)

    def _by_patient(self, scans: list[dict[str, Any]]) -> dict[str, Array]:
        """Return what `advise` takes of each patient."""
        patients = pd.DataFrame(scans).groupby("patient")
        sums = patients[["excess", "predicted"]].sum()
        return {
            "nll": patients["nll"].mean().to_numpy(),
            "dsc": patients[[f"dsc_{name}" for name in self.structures]].mean().to_numpy(),
            "gap": (sums["excess"] / sums["predicted"]).to_numpy(),
        }

    def _limits(
        self, drawn: list[dict[str, Any]], tested: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Return for how many tested patients the limits of the drawn ones hold, and their width;
        nothing with fewer than nine.
        """
        structures = [*self.structures]
        known, others = self._reference(drawn), self._reference(tested)
        found = known.coverage(others)
        if not found:
            return {}
        expected = others.values[..., 1].T
        bounds = np.stack([*map(known.lower_bound, structures, expected)])
        row: dict[str, float] = {"held": found[ALL_DSC].held, "tested": found[ALL_DSC].patients}
        row["width"] = float(np.nanmedian(expected - bounds))
        for name in structures:
            low, high = known.volume_range(name, 1.0)
            row |= {f"held_{name}": found[volume_of(name)].held, f"width_{name}": high - low}
        return row


def means_of(tested: list[dict[str, Any]]) -> dict[str, float]:
    """Return means over patients of the measures of scans, of each of whom the mean counts."""
    return pd.DataFrame(tested).groupby("patient").mean(numeric_only=True).mean().to_dict()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
