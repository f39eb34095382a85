"""The fit of calibrators to labelled cases, of a network or saved, and which of them helps patients
that are left out of it.
"""

from __future__ import annotations

import copy
import csv
import functools
import io
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch

from calib_components.errors import InputError
from calib_components.metrics import CalibrationBins
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS, Calibrator, Estimate, LeftOut, TemperatureScaling
from calib_components.posthoc.comparison import CANDIDATES, NONE, TEXTS, ScanErrors
from calib_components.posthoc.temperature import TemperatureEstimate
from calib_components.posthoc.vector import FEW_PATIENTS
from calib_components.quality import Reference, find_shift
from calib_components.quality.shift import SIGNIFICANT
from calib_workflows.cases import Cases, LabelledCase, check_classes, check_labelled, count_classes
from calib_workflows.data.facts import IGNORED
from calib_workflows.inference.crops import cut

CHOICES = (NONE, *KINDS)  # of a calibrator; without a choice, the advised one
COMPARISON = "calibrators.csv"
LOW_DSC = 0.5
NEEDS_TRAINING = (
    "This network needs training, not calibration: its DSC is {:.2f} on these patients. If you"
    " expected more, check that labels and predictions belong together."
)
FORCED = "{name} is applied all the same, as the option calibrator says."


class Fit(NamedTuple):
    """What `fit_calibrator` gives.

    Attributes:
        calibrator: The advised or chosen calibrator, without what it keeps of patients; of none,
            the baseline.
        estimate: Its estimate; None of none.
        compared: All calibrators on patients that are left out of the fit.
        bins: Of the top label over all cases, by calibrator and region; each patient is left out.
        reference: Each scan under the calibrator of the other patients.
    """

    calibrator: Calibrator
    estimate: Estimate | None
    compared: LeftOut
    bins: Mapping[tuple[str, str], CalibrationBins]
    reference: Reference

    @property
    def name(self) -> str:
        """Name of the calibrator."""
        return NONE if self.estimate is None else self.estimate.name


def fit_to_cases(
    cases: Cases,
    fits: Sequence[Calibrator],
    needed: str | None = None,
    structures: Mapping[str, Sequence[int]] | None = None,
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Fit calibrators to cases; return their estimates by name, and why others have none.

    A patient counts once, whoever labelled it.

    Args:
        cases: The cases.
        fits: New calibrators.
        needed: Name of the one whose error is raised; None for a temperature.
        structures: Class indices of each structure, which labels should have; None not to check
            that.
    """
    empty = copy.deepcopy([*fits])
    counts = {}
    for parts, classes, name in cases.map(functools.partial(_add_case, fits=empty)):
        counts[name] = classes
        if idist.get_rank() == 0:  # each process has the results of all; `compute` gathers them
            for fit, part in zip(fits, parts, strict=True):
                fit.add(part)
    if not fits[0].sigmoid:
        check_classes(counts)
        check_labelled(counts, structures or {})
    estimates, failed = {}, {}
    for fit in fits:
        try:
            estimates[fit.name] = fit.compute()
        except InputError as error:  # such as a structure that no label has
            if fit.name in (needed, TemperatureScaling.name):
                raise
            failed[fit.name] = str(error)
    _check_temperature(estimates.get(TemperatureScaling.name))
    return estimates, failed


def _check_temperature(estimate: Estimate | None) -> None:
    """Raise `InputError` for a temperature at the edge of its range, which no network needs."""
    if not isinstance(estimate, TemperatureEstimate) or not estimate.at_edge:
        return
    cause = (
        "not to belong to these predictions: they may be flipped, of other cases or other classes"
    )
    if estimate.temperature < 1:
        cause = "to be the network's own output"
    raise InputError(
        f"The temperature is {estimate.temperature:g}, the edge of its range: the labels seem"
        f" {cause}. Look at some beside the predictions."
    )


def fit_calibrator(
    cases: Cases,
    structures: Mapping[str, Sequence[int]],
    choice: str | None = None,
    region: Any = "all",
    baseline: Calibrator | None = None,
    trained_like: Reference | None = None,
) -> Fit:
    """Fit calibrators to cases with a softmax, compare them on patients that are left out, and
    choose the advised one.

    Args:
        cases: The cases, which are used twice.
        structures: Class indices of the structures, by name.
        choice: Name of the calibrator, one of `CHOICES`; None for the advised.
        region: The voxels to fit.
        baseline: The calibrator that the network has, which none keeps; None for none.
        trained_like: Labelled scans like those of the training, with the baseline; None without.
    """
    kinds = dict.fromkeys([*CANDIDATES, KINDS[choice]] if choice in KINDS else CANDIDATES)
    fits = [kind(region, IGNORED) for kind in kinds]
    estimates, failed = fit_to_cases(cases, fits, choice, structures)
    fitted = [fit for fit in fits if fit.name in estimates]
    compared = LeftOut(fitted, structures, IGNORED, baseline)
    compared.skipped.update(failed)
    if choice in compared.skipped and choice not in compared.fits:
        raise InputError(compared.skipped[choice])
    temperature = estimates.get(TemperatureScaling.name)
    if isinstance(temperature, TemperatureEstimate) and (why := temperature.conflict()):
        compared.refused[temperature.name] = why
    rows = _compare(cases, compared)
    compared.is_unlike = is_unlike(_reference_of(rows, NONE, structures), trained_like)
    name = choice or compared.advice().name
    reference = _reference_of(rows, name, structures)
    calibrator = compared.fits.get(name, baseline) or unscaled()
    return Fit(calibrator, estimates.get(name), compared, _pooled_bins(compared), reference)


def _compare(cases: Cases, compared: LeftOut) -> list[ScanErrors]:
    """Measure cases by calibrators of the other patients; return the rows by their first labels."""
    by_case = cases.map(functools.partial(_measure_case, compared=compared))
    compared.rows += [row for by_label in by_case for rows in by_label for row in rows]
    return [row for rows, *_ in by_case for row in rows]


def _reference_of(
    rows: Sequence[ScanErrors], name: str, structures: Mapping[str, Sequence[int]]
) -> Reference:
    """Return the reference of scans by a calibrator."""
    kept = sorted(
        (row for row in rows if row.calibrator == name), key=operator.attrgetter("patient")
    )
    patients, values = [row.patient for row in kept], [row.values for row in kept]
    return Reference.from_scans([*structures], patients, values)


def is_unlike(scans: Reference, known: Reference | None) -> bool:
    """Return whether the network is less sure of labelled scans than of the known ones, see
    `find_shift`; fewer than five patients do not tell.
    """
    if known is None or scans.patients < FEW_PATIENTS:
        return False
    expected = dict(zip(scans.structures, scans.values[..., 1].T, strict=True))
    p_values = find_shift(known, scans.patient_numbers, expected, known.estimate(scans))
    return min(p_values.values(), default=1) < SIGNIFICANT


def _pooled_bins(compared: LeftOut) -> dict[tuple[str, str], CalibrationBins]:
    """Return the bins of all scans by calibrator and region."""
    bins: dict[tuple[str, str], CalibrationBins] = {}
    for row in compared.rows:
        for where, part in row.bins.items():
            key = row.calibrator, where
            bins[key] = bins[key] + part if key in bins else part
    return bins


def unscaled() -> Calibrator:
    """Return a temperature of 1."""
    return TemperatureScaling().with_state({"temperature": 1.0})


def describe_fit(fit: Fit, region: Region, is_chosen: bool = False) -> list[str]:
    """Return what calibrators give on patients left out of a fit to a region, and what the one that
    is advised or chosen changes, a sentence each.
    """
    advised, sentences = fit.compared.advice().name, [fit.compared.describe()]
    dsc = fit.compared.table()[NONE]["dsc"]
    if dsc < LOW_DSC:
        sentences.insert(0, NEEDS_TRAINING.format(dsc))
    if is_chosen and advised != fit.name:
        sentences.append(FORCED.format(name=TEXTS.get(fit.name, fit.name)))
    if fit.estimate is None:
        return sentences
    return sentences + describe_estimate(fit.estimate, region)


def describe_estimate(estimate: Estimate, region: Region) -> list[str]:
    """Return what was fitted to a region, and what it changes, a sentence each."""
    symbol = TEXTS.get(estimate.name, estimate.name)
    where = "all voxels" if region.kind == "all" else f"the voxels of region {region.name}"
    change = f"NLL {estimate.nll_before:.4f} -> {estimate.nll_after:.4f}"
    return [
        f"{symbol} = {estimate.summary()}" if symbol == "T" else f"{symbol}: {estimate.summary()}",
        f"{change} over {where}, which it is fitted on",
        estimate.effect(region.by_prediction),
        *estimate.warnings(),
    ]


def comparison_table(compared: LeftOut) -> str:
    """Return the comparison on patients that are left out as CSV, a row for each calibrator."""
    rows = [{"calibrator": name, **row} for name, row in compared.table().items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _add_case(
    case: LabelledCase, fits: Sequence[Calibrator]
) -> tuple[list[Calibrator], dict[tuple[int, int], int], str]:
    """Return calibrators with a case, its numbers of voxels by true and predicted class, and its
    name.
    """
    parts = copy.deepcopy([*fits])
    # Outside of the crop, no calibrator changes anything
    logits = cut(case.crop, case.logits)
    labels = [cut(case.crop, label) for label in case.labels]
    for fit in parts:
        for label in labels:
            fit.update(logits[None], label[None], case.patient)
        fit.scale(1 / len(labels))
    return parts, count_classes(labels[0][0], logits), case.name


def _measure_case(case: LabelledCase, compared: LeftOut) -> list[list[ScanErrors]]:
    """Return the rows of the comparison for each label."""
    logits = cut(case.crop, case.logits)[None]
    rows = []
    for label in case.labels:
        seen = cut(case.crop, label)
        codes = [torch.tensor(each, device=label.device) for each in compared.structures.values()]
        outside = [
            int(torch.isin(label, each).sum() - torch.isin(seen, each).sum()) for each in codes
        ]
        rows.append(compared.rows_of(logits, seen, case.patient, outside))
    return rows
