"""The fit of a calibrator to labelled cases, of a network or saved, and what it gives on patients
that are left out of it.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch

from calib_components.metrics import CalibrationBins, dice, structure_masks
from calib_components.metrics.region_measures import measure_regions
from calib_components.metrics.regions import Region
from calib_components.posthoc import Calibrator, Estimate, LeftOut
from calib_components.posthoc.comparison import simpler_fits
from calib_components.quality import Reference, ScanEstimates
from calib_workflows.cases import Cases, LabelledCase, check_background, count_agreement
from calib_workflows.inference.crops import cut

REGIONS = ("all", "predicted")  # what is predicted follows from the calibrated probabilities
BEFORE, AFTER = "before", "after"
# A scan has, of each structure, its estimated and true DSC, expected and true volume in voxels
ScanRow = list[tuple[float, ...]]


GOALS = (
    "The advice is by the NLL. Whether confidence comes closer to accuracy, as the page of an"
    " evaluation asks, is another goal: compare the gaps."
)
NOT_ADVISED = (
    "The {name} is applied all the same, as the option calibrator says. By the NLL, it is not"
    " needed: {advised} is advised."
)


class Fit(NamedTuple):
    """What `fit_calibrator` gives.

    Attributes:
        calibrator: The fitted calibrator, without what it keeps of patients.
        estimate: Its estimate.
        compared: It and simpler ones on patients that are left out of the fit.
        bins: Of the top label over all cases, by "before" or "after" and region.
        reference: Each scan under the calibrator of the other patients.
    """

    calibrator: Calibrator
    estimate: Estimate
    compared: LeftOut
    bins: Mapping[tuple[str, str], CalibrationBins]
    reference: Reference


def compute_fit(cases: Cases, calibrator: Calibrator) -> tuple[Estimate, list[Calibrator]]:
    """Fit a calibrator to cases; return its estimate, and fitted simpler ones to compare it with.

    A patient counts once, whoever labelled it.
    """
    fits = [*simpler_fits(calibrator), calibrator]
    empty = copy.deepcopy(fits)
    counts = {}
    for parts, agreement, name in cases.map(functools.partial(_add_case, fits=empty)):
        counts[name] = agreement
        if idist.get_rank() == 0:  # each process has the results of all; `compute` gathers them
            for fit, part in zip(fits, parts, strict=True):
                fit.add(part)
    if not calibrator.sigmoid:
        check_background(counts)
    estimates = [fit.compute() for fit in fits]
    return estimates[-1], fits[:-1]


def fit_calibrator(
    cases: Cases, calibrator: Calibrator, structures: Mapping[str, Sequence[int]]
) -> Fit:
    """Fit a calibrator to cases with a softmax, and measure what it changes.

    Args:
        cases: The cases, which are used twice.
        calibrator: A new calibrator.
        structures: Class indices of the structures, by name.
    """
    estimate, simpler = compute_fit(cases, calibrator)
    compared = LeftOut([*simpler, calibrator], structures, calibrator.ignore_index)
    fitted = calibrator.with_state(calibrator.state())
    measure = functools.partial(_measure_case, calibrator=fitted, compared=compared)
    scans: list[tuple[str, ScanRow]] = []
    bins: dict[tuple[str, str], CalibrationBins] = {}
    for patient, rows, row, of_case in cases.map(measure):
        compared.rows += rows
        scans.append((patient, row))
        for key, part in of_case.items():
            bins[key] = bins[key] + part if key in bins else part
    patients, values = zip(*sorted(scans, key=operator.itemgetter(0)), strict=True)
    reference = Reference.from_scans([*structures], patients, values)
    return Fit(fitted, estimate, compared, bins, reference)


def describe_fit(estimate: Estimate, region: Region, compared: LeftOut | None = None) -> list[str]:
    """Return what was fitted to a region, and what it changes, a sentence each."""
    symbol = "T" if estimate.name == "temperature" else estimate.name
    where = "all voxels" if region.kind == "all" else f"the voxels of region {region.name}"
    change = f"NLL {estimate.nll_before:.4f} -> {estimate.nll_after:.4f}"
    sentences = [
        f"{symbol} = {estimate.summary()}",
        f"{change} over {where}, which it is fitted on",
        estimate.effect(region.by_prediction),
    ]
    if compared is not None and estimate.patients > 1:
        sentences += [compared.describe(), GOALS]
        if (advised := compared.choice()) != estimate.name:
            sentences.append(NOT_ADVISED.format(advised=advised, name=estimate.name))
    return sentences


def _add_case(
    case: LabelledCase, fits: Sequence[Calibrator]
) -> tuple[list[Calibrator], list[list[int]], str]:
    """Return calibrators with a case, and what `check_background` looks at."""
    parts = copy.deepcopy([*fits])
    # Outside of the crop, no calibrator changes anything
    logits = cut(case.crop, case.logits)
    labels = [cut(case.crop, label) for label in case.labels]
    for fit in parts:
        for label in labels:
            fit.update(logits[None], label[None], case.patient)
        fit.scale(1 / len(labels))
    return parts, count_agreement(labels[0][0], logits), case.name


def _measure_case(
    case: LabelledCase, calibrator: Calibrator, compared: LeftOut
) -> tuple[str, list[Any], ScanRow, dict[tuple[str, str], CalibrationBins]]:
    """Return the patient, its rows of the comparison and of the reference, and bins."""
    logits = cut(case.crop, case.logits)[None]
    labels = [cut(case.crop, label) for label in case.labels]
    ignored = calibrator.ignore_index
    bins: dict[tuple[str, str], CalibrationBins] = {}
    measures = {Region(name): ["top_label"] for name in REGIONS}
    for when, candidate in ((BEFORE, None), (AFTER, calibrator.to(logits.device))):
        p = (logits if candidate is None else candidate(logits)).softmax(1)
        for label in labels:
            measured = measure_regions(p, label[None], measures, ignore_index=ignored)
            for region, each in measured.items():
                key, part = (when, region.name), each.bins["top_label"]
                bins[key] = bins[key] + part if key in bins else part
    left_out = compared.calibrated(logits, case.patient)
    rows = [row for label in labels for row in compared.rows_of(left_out, label, case.patient)]
    p = left_out[calibrator.name][0].softmax(0)
    return case.patient, rows, _scan_row(p, case, compared), bins


def _scan_row(p: torch.Tensor, case: LabelledCase, compared: LeftOut) -> ScanRow:
    """Return estimated and true DSC, expected and true volume in voxels of each structure.

    Args:
        p: Probabilities of what the network saw, `(N, *S)`; elsewhere, all is background.
        case: The case, of which the first label counts.
        compared: Has the structures, and the label of ignored voxels.
    """
    label = case.labels[0]
    counted = torch.ones_like(label, dtype=torch.bool)
    if compared.ignore_index is not None:
        counted = label != compared.ignore_index
    scan, predicted = ScanEstimates(compared.structures), torch.zeros_like(label)
    scan.update(p)
    cut(case.crop, predicted)[:] = p.argmax(0)
    classes = [*compared.structures.values()]
    masks = structure_masks(label * counted, classes)
    found = structure_masks(predicted * counted, classes)
    dsc = dice(found[None], masks[None])[0].tolist()
    volumes = masks.flatten(1).sum(1).tolist()
    return [
        (estimate.expected_dsc, true_dsc, estimate.expected_voxels, volume)
        for estimate, true_dsc, volume in zip(scan.compute().values(), dsc, volumes, strict=True)
    ]
