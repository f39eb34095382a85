"""What calibrators give on patients that they were not fitted to, and which of them is advised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics import CalibrationBins
from calib_components.metrics.region_measures import measure_regions
from calib_components.metrics.regions import Region
from calib_components.posthoc.base import Array, Calibrator
from calib_components.posthoc.temperature import TemperatureScaling
from calib_components.posthoc.vector import FEW_PATIENTS, ClassBias, VectorScaling
from calib_components.quality import ScanEstimates

Structures = Mapping[str, Sequence[int]]
NONE = "none"
CANDIDATES: tuple[type[Calibrator], ...] = (TemperatureScaling, ClassBias, VectorScaling)
REGIONS = ("all", "predicted")  # what is predicted follows from the calibrated probabilities
MEASURES = {Region(name): ["top_label"] for name in REGIONS}
SLAB = 16  # slices that are measured at a time
TEXTS = {NONE: "none", "temperature": "T", "bias": "T and bias", "vector": "vector"}
MOST_STRUCTURES = 6  # of which each has a column of the table


class ScanErrors(NamedTuple):
    """Errors of a scan by one calibrator.

    Attributes:
        calibrator: Its name.
        patient: Whose scan it is.
        nll: Mean negative log-likelihood of the voxels, in nats; NaN of a scan ignored as a whole.
        bins: Of the top label, by region.
        values: Expected and true DSC, expected and true volume in voxels, `(structures, 4)`.
    """

    calibrator: str
    patient: str
    nll: float
    bins: Mapping[str, CalibrationBins]
    values: Array


class _ScanSums:
    """What the errors of a scan follow from, a slab of slices at a time."""

    def __init__(self, structures: Structures, ignore_index: int | None) -> None:
        self.structures, self.ignore_index = structures, ignore_index
        self.scan = ScanEstimates(structures)
        self.nll = self.voxels = 0.0
        self.bins: dict[str, CalibrationBins] = {}
        self.counts = np.zeros((len(structures), 3))  # right, predicted and true voxels

    def add(self, logits: torch.Tensor, y: torch.Tensor) -> None:
        """Add calibrated logits `(1, N, *S)` and class indices `(1, *S)`."""
        counted = torch.ones_like(y, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = y != self.ignore_index
        losses = F.cross_entropy(logits, y.long() * counted, reduction="none")
        self.nll += float(losses[counted].sum(dtype=torch.float64))
        self.voxels += float(counted.sum())
        p = logits.softmax(1)
        found = measure_regions(p, y[None], MEASURES, ignore_index=self.ignore_index)
        for region, measured in found.items():
            part, name = measured.bins["top_label"], region.name
            self.bins[name] = self.bins[name] + part if name in self.bins else part
        background = torch.zeros_like(p[0])
        background[0] = 1
        p = torch.where(counted, p[0], background)
        self.scan.update(p)
        predicted = p.max(0).indices  # what argmax gives, in a fraction of its time
        for number, classes in enumerate(self.structures.values()):
            is_found, is_true = (
                torch.isin(each, torch.tensor(classes, device=y.device, dtype=each.dtype)) & counted
                for each in (predicted, y)
            )
            for kind, mask in enumerate((is_found & is_true, is_found, is_true)):
                self.counts[number, kind] += int(mask.sum())

    def errors(self, calibrator: str, patient: str, outside: ArrayLike) -> ScanErrors:
        """Return the errors, see `LeftOut.rows_of`."""
        both, found, true = self.counts.T
        true = true + np.asarray(outside)
        with np.errstate(invalid="ignore"):  # NaN of a structure in neither
            dsc = 2 * both / (found + true)
        estimates = self.scan.compute().values()
        expected = [each.expected_dsc for each in estimates]
        volumes = [each.expected_voxels for each in estimates]
        values = np.column_stack([expected, dsc, volumes, true])
        nll = self.nll / self.voxels if self.voxels else math.nan
        return ScanErrors(calibrator, patient, nll, self.bins, values)


class Advice(NamedTuple):
    """Which calibrator is advised, by its name, and why."""

    name: str
    reason: str


def advise(
    left_out: Mapping[str, Mapping[str, Array]],
    refused: Mapping[str, str] | None = None,
    is_unlike: bool = False,
) -> Advice:
    """Choose between no calibrator, a temperature, and a temperature and a bias.

    Where scans are unlike the training's, T and bias is advised unless its DSC is below that of
    none by more than one standard error over patients. Elsewhere it is advised if its DSC is above
    that of none by more than one standard error, and its mean NLL is not above that of none. Else T
    is advised, unless the NLL of none is at most one standard error above that of T, or T takes
    confidence - accuracy further from 0 where a structure is predicted. T and bias needs five
    patients, and may lose no structure of a patient. `VectorScaling` is never advised.

    Args:
        left_out: Values of each patient, left out of the fit, by calibrator: the `nll` and the
            `gap`, `(patients,)`, and the `dsc`, `(patients, structures)`; see `LeftOut.table`.
        refused: Why calibrators are not advised whatever these values are, by their names.
        is_unlike: Whether the scans are unlike those of the training, see
            `calib_components.quality.find_shift`.
    """
    none = left_out[NONE]
    if len(none["nll"]) < 2:
        return Advice(NONE, "there is one patient, and none to leave out")
    reasons: list[str] = []  # why others are not advised
    for name in ("bias", "temperature"):
        if name not in left_out:
            continue
        if name == "bias":
            is_better, reason = _judge_bias(none, left_out[name], is_unlike)
        else:
            is_better, reason = _judge_temperature(none, left_out[name])
        if is_better and refused and name in refused:
            is_better, reason = False, refused[name]
        if is_better:
            return Advice(name, ". ".join([reason, *reasons]))
        reasons += [reason] if reason else []
    nothing = "neither the DSC nor the NLL is better by more than a standard error"
    return Advice(NONE, ". ".join(reasons) or nothing)


def _judge_bias(
    none: Mapping[str, Array], bias: Mapping[str, Array], is_unlike: bool
) -> tuple[bool, str]:
    """Return whether T and bias is better than none, and why it is, or is not in spite of its
    DSC.
    """
    gain, error = _mean_and_error(_mean(bias["dsc"], -1) - _mean(none["dsc"], -1))
    change, _ = _mean_and_error(bias["nll"] - none["nll"])
    is_near = is_unlike and gain >= -error
    if not (is_near or gain > error):
        return False, ""
    lost = ((none["dsc"] > 0) & (bias["dsc"] == 0)).any(1)
    if len(lost) < FEW_PATIENTS:
        return False, f"T and bias needs {FEW_PATIENTS} patients, these are {len(lost)}"
    if lost.any():
        return False, f"T and bias loses a structure in {lost.sum()} of {len(lost)} patients"
    if is_near:
        change_of_dsc = f"the change of its DSC is {gain:+.4f} (standard error {error:.4f})"
        return True, f"these scans look unlike the training's, and {change_of_dsc}"
    if change > 0:
        return (
            False,
            f"T and bias has a higher DSC, by {gain:.3f}, but a higher NLL, by {change:.4f}",
        )
    return True, f"its DSC is higher by {gain:.4f} (standard error {error:.4f})"


def _judge_temperature(none: Mapping[str, Array], scaled: Mapping[str, Array]) -> tuple[bool, str]:
    """Return whether T is better than none, and why it is, or is not in spite of its NLL."""
    lower, error = _mean_and_error(none["nll"] - scaled["nll"])
    if not lower > error:
        return False, ""
    before, after = (float(_mean(each["gap"], 0)) for each in (none, scaled))
    if abs(after) > abs(before):
        return False, (
            "T takes confidence - accuracy further from 0 where a structure is predicted, from"
            f" {before:+.3f} to {after:+.3f}"
        )
    return True, f"its NLL is lower by {lower:.4f} (standard error {error:.4f})"


def _mean_and_error(differences: Array) -> tuple[float, float]:
    """Return the mean over patients, and its standard error; patients with NaN do not count."""
    counted = differences[np.isfinite(differences)]
    if len(counted) < 2:
        return 0.0, math.inf
    return float(counted.mean()), float(counted.std(ddof=1) / math.sqrt(len(counted)))


class LeftOut:
    """Compares calibrators on patients that are left out of their fits.

    Args:
        fits: Calibrators after `compute`, such as one of each of `CANDIDATES`.
        structures: Class indices of the structures, by name.
        ignore_index: Ground-truth value of voxels to leave out.
        baseline: The calibrator that the network has, which `none` keeps; None for none.

    Attributes:
        rows: What `rows_of` returned of each scan.
        skipped: Why a calibrator is not compared, by its name.
        refused: Why a calibrator is not advised, by its name.
        is_unlike: Whether the scans are unlike those of the training, see `advise`.
    """

    def __init__(
        self,
        fits: Sequence[Calibrator],
        structures: Structures,
        ignore_index: int | None = None,
        baseline: Calibrator | None = None,
    ) -> None:
        self.structures, self.ignore_index, self.baseline = structures, ignore_index, baseline
        self.fits: dict[str, Calibrator] = {}
        self.others: dict[str, dict[str, Calibrator]] = {}
        self.rows: list[ScanErrors] = []
        self.skipped: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.is_unlike = False
        for fit in fits:
            fit.check_fitted()
            try:
                self.others[fit.name] = fit.left_out()
            except InputError as error:  # such as a structure that one patient alone has
                self.skipped[fit.name] = str(error)
                continue
            self.fits[fit.name] = fit.with_state(fit.state())
            if not self.others[fit.name]:
                self.skipped[fit.name] = "There is one patient, and none to leave out."

    def rows_of(
        self, logits: torch.Tensor, y: torch.Tensor, patient: str, outside: ArrayLike = 0
    ) -> list[ScanErrors]:
        """Return the errors of a scan: as it is, and by each calibrator of the other patients; of
        all, if this one was not fitted.

        Args:
            logits: `(1, N, *S)`.
            y: Class index `(1, *S)`.
            patient: Whose scan it is.
            outside: Voxels of each structure that the network did not see, `(structures,)`.
        """
        fits = {NONE: self.baseline}
        fits |= {name: self.others[name].get(patient, fit) for name, fit in self.fits.items()}
        measured = {name: _ScanSums(self.structures, self.ignore_index) for name in fits}
        # A slab of slices at a time: copies of a large scan would take several times its memory
        slabs = zip(logits.split(SLAB, -1), y.split(SLAB, -1), strict=True)
        for values, label in slabs:
            for name, fit in fits.items():
                measured[name].add(values if fit is None else fit.to(values.device)(values), label)
        return [sums.errors(name, patient, outside) for name, sums in measured.items()]

    def table(self) -> dict[str, dict[str, float]]:
        """Return means over patients of each calibrator: `nll`, the NLL over all voxels; `dsc`, the
        mean over the structures, and `dsc S` of each; `bias`, the expected less the true DSC; and
        `gap`, confidence less accuracy where a structure is predicted.
        """
        names = [f"dsc {name}" for name in self.structures]
        table = {}
        for name, found in self._by_patient().items():
            table[name] = {
                "nll": float(_mean(found["nll"], 0)),
                "dsc": float(_mean(_mean(found["dsc"], -1), 0)),
                **dict(zip(names, _mean(found["dsc"], 0).tolist(), strict=True)),
                "bias": float(_mean(_mean(found["bias"], -1), 0)),
                "gap": float(_mean(found["gap"], 0)),
            }
        return table

    def advice(self) -> Advice:
        """Return the advice by the patients left out, see `advise`."""
        found = self._by_patient()
        counted = np.isfinite(found[NONE]["nll"])  # not patients whose voxels are all ignored
        kept = {
            name: {measure: values[counted] for measure, values in each.items()}
            for name, each in found.items()
        }
        return advise(kept, self.refused, self.is_unlike)

    def describe(self) -> str:
        """Return the table as text, and the advice."""
        table = self.table()
        titles = {
            "nll": "NLL",
            "dsc": "DSC",
            "bias": "expected - true DSC",
            "gap": "confidence - accuracy",
        }
        shown = [
            key for key in table[NONE] if key in titles or len(self.structures) <= MOST_STRUCTURES
        ]
        heads = [f"{titles.get(key, key.replace('dsc ', 'DSC ')):>7}" for key in shown]
        lines = ["  ".join([f"{'':11}", *heads])]
        for name, row in table.items():
            cells = [f"{row[key]:{len(head)}.4f}" for key, head in zip(shown, heads, strict=True)]
            lines.append("  ".join([f"{TEXTS.get(name, name):11}", *cells]))
        notes = [
            f"{TEXTS.get(name, name)}: not compared. {why}" for name, why in self.skipped.items()
        ]
        advised = self.advice()
        return "\n".join(
            [
                "On patients that are left out of the fit:",
                *lines,
                *notes,
                f"Advised: {TEXTS[advised.name]}, as {advised.reason}.",
            ]
        )

    def _by_patient(self) -> dict[str, dict[str, Array]]:
        """Return by calibrator the `nll` and the `gap` of each patient, `(patients,)`, the `dsc`,
        and the `bias` of the expected DSC, `(patients, structures)`; but for the gap, means over
        scans.
        """
        names = [NONE, *self.fits]
        rows = [self.rows[number :: len(names)] for number in range(len(names))]
        patients = np.array([row.patient for row in rows[0]])
        scans = [np.flatnonzero(patients == patient) for patient in dict.fromkeys(patients)]
        dsc = np.array([[row.values[:, 1] for row in of_one] for of_one in rows])
        # Nothing found where nothing is: right, if another calibrator finds something there
        dsc = np.where(np.isnan(dsc) & ~np.isnan(dsc).all(0), 1.0, dsc)
        return {
            name: _errors_of_patients(rows[number], dsc[number], scans)
            for number, name in enumerate(names)
            if name not in self.skipped
        }


def _errors_of_patients(
    rows: Sequence[ScanErrors], dsc: Array, scans: Sequence[NDArray[np.intp]]
) -> dict[str, Array]:
    """Return what `LeftOut._by_patient` returns of a calibrator.

    Args:
        rows: Errors of its scans.
        dsc: Their DSC, `(scans, structures)`.
        scans: Which of them are a patient's.
    """
    nll = np.array([row.nll for row in rows])
    bias = np.array([row.values[:, 0] - row.values[:, 1] for row in rows])
    return {
        "nll": np.array([np.mean(nll[own]) for own in scans]),
        "dsc": np.array([_mean(dsc[own], 0) for own in scans]),
        "bias": np.array([_mean(bias[own], 0) for own in scans]),
        "gap": np.array([_gap([rows[i].bins["predicted"] for i in own]) for own in scans]),
    }


def _mean(values: Array, axis: int) -> Array:
    """Return the mean of what is not NaN; NaN without."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)


def _gap(bins: Sequence[CalibrationBins]) -> float:
    """Return confidence less accuracy over the voxels of several bins; NaN without a voxel."""
    count, confidence, correct = (
        sum(float(getattr(each, name).sum()) for each in bins)
        for name in ("count", "confidence_sum", "num_correct")
    )
    return (confidence - correct) / count if count else math.nan
