"""What calibrators do at home and elsewhere, from saved logits: `results/calibrators`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from calib_components.metrics import dice, structure_masks
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import Region
from calib_components.posthoc import Calibrator, ClassBias, TemperatureScaling, VectorScaling
from calib_components.quality import ScanEstimates

HOME, FITTED_ON = "home", "validation"
FITS: dict[str, tuple[type[Calibrator], str, str]] = {  # calibrator, region, and suffix of the set that it is fitted on
    "T": (TemperatureScaling, "all", ""),
    "T predicted": (TemperatureScaling, "predicted", ""),
    "bias": (ClassBias, "all", ""),
    "vector": (VectorScaling, "all", ""),
    "vector predicted": (VectorScaling, "predicted", ""),
    "T perturbed": (TemperatureScaling, "all", "_strength1"),
    "T perturbed twice": (TemperatureScaling, "all", "_strength2"),
    "T predicted perturbed": (TemperatureScaling, "predicted", "_strength1"),
    "vector perturbed": (VectorScaling, "all", "_strength1"),
}


def ghosting(image: torch.Tensor, weaker: float = 0.8) -> torch.Tensor:
    """Ghosts half a field of view away: every other line of k-space along axis 2 is weaker, but for the central 4 %."""
    size = image.shape[2]
    line = torch.arange(size)
    factors = torch.where((line % 2 == 0) & ((line - size // 2).abs() > max(1, int(0.02 * size))), 1 - weaker, 1.0)
    k_space = torch.fft.fftshift(torch.fft.fftn(image, dim=(1, 2, 3)), dim=(1, 2, 3)) * factors[:, None]
    changed = torch.fft.ifftn(torch.fft.ifftshift(k_space, dim=(1, 2, 3)), dim=(1, 2, 3)).real
    return (changed - changed.mean()) / changed.std() * image.std() + image.mean()


def read_logits(folder: Path) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """Yield case, patient, logits `(1, N, *S)` and labels `(1, 1, *S)` of the .npz files of a folder."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as saved:
            yield file.stem, str(saved["patient"]), torch.from_numpy(saved["l"])[None], torch.from_numpy(saved["y"])[None, None]


def fit(kind: type[Calibrator], region: str, folder: Path) -> tuple[Calibrator, Any]:
    """Return a calibrator fitted on the logits of a folder, and its estimate."""
    calibrator = kind(region)
    for _ in calibrator.passes():
        for _, patient, logits, y in read_logits(folder):
            calibrator.update(logits, y, patient)
    return calibrator, calibrator.compute()


def measure(p: torch.Tensor, y: torch.Tensor, structures: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the errors of the probabilities of a case."""
    row: dict[str, float] = {}
    found = measure_regions(p, y, [Region("all"), Region("predicted")], ["top_label", "nll"])
    for region, own in zip(("all", "predicted"), found, strict=True):
        bins = own.bins["top_label"]
        row |= {f"nll_{region}": own.scores["nll"].item(), f"ece_{region}": bins.expected_error().item()}
        sums = {name: getattr(bins, name).sum().item() for name in ("count", "confidence_sum", "num_correct")}
        row |= {f"{name}_{region}": value for name, value in sums.items()}
    scan = ScanEstimates(structures)
    scan.update(p[0])
    masks = [structure_masks(labels, [*structures.values()])[None] for labels in (p[0].argmax(0, keepdim=True), y[0])]
    volumes = masks[1][0].flatten(1).sum(1).tolist()
    for (name, own), dsc, true in zip(scan.compute().items(), dice(*masks)[0].tolist(), volumes, strict=True):
        row |= {f"dsc_{name}": dsc, f"expected_dsc_{name}": own.expected_dsc, f"true_volume_{name}": true}
        row |= {f"expected_volume_{name}": own.expected_voxels, f"segmented_volume_{name}": own.predicted_voxels}
    return row


def compare_calibrators(logits: Path, out: Path, structures: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Fit all calibrators on the validation cases of each network, and measure them on all other sets.

    Args:
        logits: Folders NETWORK/SET of .npz files with `l` `(N, *S)`, `y` `(*S)` and `patient`. `validation`, and
            `validation_strength1` and `validation_strength2`, of `configs/perturb.yaml`, are fitted on.
        out: Folder for `cases.csv.gz` and `fits.csv`.
        structures: Class indices by name, of each network.
    """
    rows, fits = [], []
    for network in sorted(path for path in logits.iterdir() if path.is_dir()):
        calibrators: dict[str, Calibrator] = {"none": TemperatureScaling()}
        for name, (kind, region, suffix) in FITS.items():
            calibrators[name], estimate = fit(kind, region, network / f"{FITTED_ON}{suffix}")
            fits.append({"network": network.name, "calibrator": name, "summary": estimate.summary()})
            fits[-1] |= {"nll_before": estimate.nll_before, "nll_after": estimate.nll_after, "effect": estimate.effect()}
            fits[-1] |= {"nll_left_out": getattr(estimate, "nll_left_out", None), "patients": estimate.patients}
            print(network.name, name, estimate.summary(), *estimate.warnings(), flush=True)
        sites = [path for path in sorted(network.iterdir()) if not path.name.startswith(f"{FITTED_ON}_")]
        for site in sites:
            for case, patient, values, y in read_logits(site):
                for name, calibrator in calibrators.items():
                    keys = {"network": network.name, "site": site.name, "calibrator": name, "case": case, "patient": patient}
                    rows.append(keys | measure(calibrator(values).softmax(1), y, structures[network.name]))
            print(network.name, site.name, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(out / "cases.csv.gz", index=False, float_format="%.6g")
        pd.DataFrame(fits).to_csv(out / "fits.csv", index=False, float_format="%.6g")
