"""What calibrators give on patients that they were not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import ttest_1samp
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics import dice, structure_masks
from calib_components.posthoc.base import Calibrator
from calib_components.posthoc.temperature import TemperatureScaling
from calib_components.quality import ScanEstimates

if TYPE_CHECKING:
    import pandas as pd

Structures = Mapping[str, Sequence[int]]
NONE = "none"
ALPHA = 0.05


def simpler_fits(calibrator: Calibrator) -> list[Calibrator]:
    """Return new calibrators to compare a calibrator with, which see each case once: a temperature,
    unless it is one.
    """
    if isinstance(calibrator, TemperatureScaling):
        return []
    return [TemperatureScaling(calibrator.region, calibrator.ignore_index)]


class LeftOut:
    """Compares calibrators on patients that are left out of their fits.

    Args:
        fits: Calibrators after `compute`, the simplest first.
        structures: Class indices of the structures, by name.
        ignore_index: Ground-truth value of voxels to leave out.
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
        """Return logits of a patient as they are, and by each calibrator of the other patients; of
        all, if this one was not fitted.
        """
        calibrated = {NONE: logits}
        for name, fit in self.fits.items():
            calibrated[name] = self.others[name].get(patient, fit).to(logits.device)(logits)
        return calibrated

    def update(self, logits: Mapping[str, torch.Tensor], y: torch.Tensor, patient: str) -> None:
        """Add a scan.

        Args:
            logits: `(N, *S)`, by the name of their calibrator.
            y: Class index `(1, *S)`.
            patient: Whose scan it is.
        """
        for name, values in logits.items():
            errors = self._errors(values, y.long())
            self.rows.append({"calibrator": name, "patient": patient, **errors})

    def table(self) -> pd.DataFrame:
        """Return means over patients of each calibrator: `nll`, `gap S`, the confidence less the
        accuracy of the voxels predicted as a structure, and `bias`, the expected less the true DSC,
        the mean over the structures.
        """
        patients = self._patients()
        means = patients.groupby("calibrator", sort=False).mean()
        bias = means[[f"bias {name}" for name in self.structures]].mean(axis=1)
        gaps = [f"gap {name}" for name in self.structures]
        return means[["nll", *gaps]].assign(bias=bias)

    def describe(self) -> str:
        """Return the table as text, and the choice."""
        table = self.table().rename(columns={"nll": "NLL", "bias": "expected - true DSC"})
        return (
            "On patients that are left out of the fit (gap: confidence - accuracy):\n"
            f"{table.rename_axis(None).to_string(float_format='{:.4f}'.format)}\n"
            f"Advised, as the simplest whose NLL is not significantly above the lowest:"
            f" {self.choice()}"
        )

    def choice(self) -> str:
        """Return the first of the calibrators, of which the simplest come first, whose NLL is not
        significantly higher than the lowest.
        """
        nll = self._patients()["nll"].unstack("calibrator")[[NONE, *self.fits]]
        best = nll.mean().idxmin()
        for name, values in nll.items():
            if name == best:
                break
            higher = ttest_1samp(values - nll[best], 0, alternative="greater").pvalue
            if not higher < ALPHA:  # also NaN, of equal values
                return str(name)
        return str(best)

    def _patients(self) -> pd.DataFrame:
        """Return the errors of each calibrator and patient."""
        import pandas as pd  # calibrators need none

        groups = pd.DataFrame(self.rows).groupby(["calibrator", "patient"], sort=False)
        means, sums = groups.mean(), groups.sum()
        for name in self.structures:
            wrong = sums[f"confidence {name}"] - sums[f"correct {name}"]
            means[f"gap {name}"] = wrong / sums[f"predicted {name}"]
        return means

    def _errors(self, logits: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        """Return the NLL of the voxels of a scan, and the sums of each structure."""
        ignored = -100 if self.ignore_index is None else self.ignore_index
        is_kept = y[0] != ignored
        nll = F.cross_entropy(logits[None], y, reduction="sum", ignore_index=ignored)
        row = {"nll": float(nll / is_kept.sum())}  # NaN of a scan that is left out as a whole
        p, y = logits.softmax(0), y * is_kept
        p = torch.cat([torch.where(is_kept, p[:1], 1), p[1:] * is_kept])
        scan, classes = ScanEstimates(self.structures), [*self.structures.values()]
        scan.update(p)
        predicted, true = (structure_masks(each, classes) for each in (p.argmax(0)[None], y))
        hits = (predicted & true).flatten(1).sum(1).tolist()
        dsc = dice(predicted[None], true[None])[0].tolist()
        for (name, estimate), hit, true_dsc in zip(scan.compute().items(), hits, dsc, strict=True):
            row |= {
                f"confidence {name}": float(estimate.sums["overlap"]),
                f"correct {name}": hit,
                f"predicted {name}": estimate.predicted_voxels,
                f"bias {name}": estimate.expected_dsc - true_dsc,
            }
        return row
