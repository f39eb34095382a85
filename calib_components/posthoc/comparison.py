"""What calibrators give on patients that they were not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import ttest_1samp
from torch.nn import functional as F

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


class ScanErrors(NamedTuple):
    """Errors of a scan by one calibrator.

    Attributes:
        calibrator: Its name.
        patient: Whose scan it is.
        nll: Mean negative log-likelihood of the voxels, in nats; NaN of a scan ignored as a whole.
        confidence: Of each structure, the sum of its probability where it is predicted,
            `(structures,)`.
        correct: How many of these voxels are right.
        predicted: Their number.
        bias: The expected less the true DSC.
    """

    calibrator: str
    patient: str
    nll: float
    confidence: Array
    correct: Array
    predicted: Array
    bias: Array


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
            fit.check_fitted()
        self.structures, self.ignore_index = structures, ignore_index
        self.fits = {fit.name: fit.with_state(fit.state()) for fit in fits}
        self.others = {fit.name: fit.left_out() for fit in fits}
        self.rows: list[ScanErrors] = []

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
    ) -> list[ScanErrors]:
        """Return the errors of a scan.

        Args:
            logits: `(1, N, *S)`, by the name of their calibrator.
            y: Class index `(1, *S)`.
            patient: Whose scan it is.
        """
        ignored = -100 if self.ignore_index is None else self.ignore_index
        rows = []
        for name, values in logits.items():
            nll = F.cross_entropy(values, y.long(), reduction="sum", ignore_index=ignored)
            found = measure_structures(
                values.softmax(1), y[None], self.structures, self.ignore_index
            )
            of_structures = (
                found.sums["overlap"],
                found.sums["correct"],
                found.sums["predicted"],
                found.expected_dsc - found.dsc,
            )
            arrays = (each[0].cpu().numpy() for each in of_structures)
            rows.append(ScanErrors(name, patient, float(nll / (y != ignored).sum()), *arrays))
        return rows

    def table(self) -> dict[str, dict[str, float]]:
        """Return means over patients of each calibrator: `nll`, `gap S`, the confidence less the
        accuracy of the voxels predicted as a structure, and `bias`, the expected less the true DSC,
        the mean over the structures.
        """
        table = {}
        for name in (NONE, *self.fits):
            nll, gaps, biases = self._by_patient(name)
            row = {"nll": float(np.nanmean(nll))}
            for structure, gap in zip(self.structures, np.nanmean(gaps, 0), strict=True):
                row[f"gap {structure}"] = float(gap)
            table[name] = row | {"bias": float(np.nanmean(np.nanmean(biases, 0)))}
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
        significantly higher than the lowest, over all voxels, whatever the region of the fits.
        """
        nll = {name: self._by_patient(name)[0] for name in (NONE, *self.fits)}
        counted = np.isfinite(nll[NONE])  # not patients whose voxels are all ignored
        nll = {name: values[counted] for name, values in nll.items()}
        best = min(nll, key=lambda name: nll[name].mean())
        for name, values in nll.items():
            higher = ttest_1samp(values - nll[best], 0, alternative="greater").pvalue
            if name == best or not higher < ALPHA:  # also NaN, of equal values
                return name
        return best

    def _by_patient(self, calibrator: str) -> tuple[Array, Array, Array]:
        """Return the NLL of each patient, `(patients,)`, confidence less accuracy, and bias,
        `(patients, structures)`; NLL and bias are means over the scans.
        """
        scans: dict[str, list[ScanErrors]] = {}
        for row in self.rows:
            if row.calibrator == calibrator:
                scans.setdefault(row.patient, []).append(row)
        nll, gaps, biases = [], [], []
        for rows in scans.values():
            nll.append(np.mean([row.nll for row in rows]))
            wrong = sum(row.confidence - row.correct for row in rows)
            with np.errstate(invalid="ignore", divide="ignore"):
                gaps.append(wrong / sum(row.predicted for row in rows))
            biases.append(np.mean([row.bias for row in rows], 0))
        return np.array(nll), np.array(gaps), np.array(biases)
