"""What calibrators give on patients that they were not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_1samp
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics import measure_structures
from calib_components.posthoc.base import Array, Calibrator
from calib_components.posthoc.temperature import TemperatureScaling

Structures = Mapping[str, Sequence[int]]
NONE = "none"
ALPHA = 0.05


def simpler_fits(calibrator: Calibrator) -> list[Calibrator]:
    """Return new calibrators to compare a calibrator with: a temperature, unless it is one."""
    if isinstance(calibrator, TemperatureScaling):
        return []
    return [TemperatureScaling(calibrator.region, calibrator.ignore_index)]


class LeftOut:
    """Compares calibrators on patients that are left out of their fits.

    Args:
        fits: Calibrators after `compute`, the simplest first.
        structures: Class indices of the structures, by name.
        ignore_index: Ground-truth value of voxels to leave out.

    Attributes:
        rows: What `rows_of` returned of each scan.
    """

    def __init__(
        self, fits: Sequence[Calibrator], structures: Structures, ignore_index: int | None = None
    ) -> None:
        for fit in fits:
            if fit.has_unfitted_patients():
                raise InputError(f"{type(fit).__name__} is not fitted. Call compute first.")
        self.structures, self.ignore_index = structures, ignore_index
        self.fits = {fit.name: fit.with_state(fit.state()) for fit in fits}
        self.others = {fit.name: fit.left_out() for fit in fits}
        self.rows: list[dict[str, Any]] = []

    def calibrated(self, logits: torch.Tensor, patient: str) -> dict[str, torch.Tensor]:
        """Return logits `(B, N, *S)` of a patient as they are, and by each calibrator of the other
        patients; of all, if this one was not fitted.
        """
        calibrated = {NONE: logits}
        for name, fit in self.fits.items():
            calibrated[name] = self.others[name].get(patient, fit).to(logits.device)(logits)
        return calibrated

    def rows_of(
        self, logits: Mapping[str, torch.Tensor], y: torch.Tensor, patient: str
    ) -> list[dict[str, Any]]:
        """Return the errors of a scan.

        Args:
            logits: `(1, N, *S)`, by the name of their calibrator.
            y: Class index `(1, *S)`.
            patient: Whose scan it is.
        """
        return [
            {"calibrator": name, "patient": patient, **self._errors(values, y[None])}
            for name, values in logits.items()
        ]

    def table(self) -> dict[str, dict[str, float]]:
        """Return means over patients of each calibrator: `nll`, `gap S`, the confidence less the
        accuracy of the voxels predicted as a structure, and `bias`, the expected less the true DSC,
        the mean over the structures.
        """
        table = {}
        for name in (NONE, *self.fits):
            means = self._by_patient(name)
            gaps = [f"gap {structure}" for structure in self.structures]
            row = {key: float(np.nanmean(means[key])) for key in ("nll", *gaps)}
            biases = [np.nanmean(means[f"bias {structure}"]) for structure in self.structures]
            table[name] = row | {"bias": float(np.nanmean(biases))}
        return table

    def describe(self) -> str:
        """Return the table as text, and the choice."""
        table = self.table()
        titles = {"nll": "NLL", "bias": "expected - true DSC"}
        heads = [f"{titles.get(key, key):>6}" for key in table[NONE]]  # as wide as numbers
        lines = ["  ".join([f"{'':11}", *heads])]
        for name, row in table.items():
            cells = zip(heads, row.values(), strict=True)
            lines.append(
                "  ".join([f"{name:11}", *(f"{value:{len(head)}.4f}" for head, value in cells)])
            )
        return (
            "On patients that are left out of the fit (gap: confidence - accuracy):\n"
            + "\n".join(lines)
            + "\nAdvised, as the simplest whose NLL is not significantly above the lowest:"
            f" {self.choice()}"
        )

    def choice(self) -> str:
        """Return the first of the calibrators, of which the simplest come first, whose NLL is not
        significantly higher than the lowest.
        """
        nll = {name: self._by_patient(name)["nll"] for name in (NONE, *self.fits)}
        best = min(nll, key=lambda name: nll[name].mean())
        for name, values in nll.items():
            higher = ttest_1samp(values - nll[best], 0, alternative="greater").pvalue
            if name == best or not higher < ALPHA:  # also NaN, of equal values
                return name
        return best

    def _by_patient(self, calibrator: str) -> dict[str, Array]:
        """Return the errors of a calibrator on each patient, the mean over the scans."""
        rows = [row for row in self.rows if row["calibrator"] == calibrator]
        names, index, scans = np.unique(
            [row["patient"] for row in rows], return_inverse=True, return_counts=True
        )
        keys = rows[0].keys() - {"calibrator", "patient"}
        sums = {key: np.bincount(index, [row[key] for row in rows], len(names)) for key in keys}
        means = {key: total / scans for key, total in sums.items()}
        for structure in self.structures:
            wrong = sums[f"confidence {structure}"] - sums[f"correct {structure}"]
            with np.errstate(invalid="ignore", divide="ignore"):
                means[f"gap {structure}"] = wrong / sums[f"predicted {structure}"]
        return means

    def _errors(self, logits: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        """Return the NLL of the voxels of a scan, and the sums of each structure."""
        ignored = -100 if self.ignore_index is None else self.ignore_index
        nll = F.cross_entropy(logits, y[:, 0].long(), reduction="sum", ignore_index=ignored)
        row = {"nll": float(nll / (y != ignored).sum())}  # NaN of a scan left out as a whole
        found = measure_structures(logits.softmax(1), y, self.structures, self.ignore_index)
        bias = found.expected_dsc - found.dsc
        for number, name in enumerate(self.structures):
            sums = {key: float(found.sums[key][0, number]) for key in found.sums}
            row |= {
                f"confidence {name}": sums["overlap"],
                f"correct {name}": sums["correct"],
                f"predicted {name}": sums["predicted"],
                f"bias {name}": float(bias[0, number]),
            }
        return row
