"""What a report begins with: one to three sentences drawn from its numbers, without a claim that they do not support.

A network is called over- or underconfident, and a method better calibrated than another, only where a 95 % interval or
a test over patients says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from calib_components.metrics import CalibrationBins, resampled_errors
from calib_components.tools.comparison.measured import Comparison, Method
from calib_components.tools.comparison.statistics import (
    FEWEST_PATIENTS,
    Array,
    Difference,
    Estimate,
    mean_with_interval,
    spearman_with_interval,
)
from calib_components.tools.comparison.tables import DIFFERENCE, SIGNIFICANT, interval, number, p_text

__all__ = ["conclude", "error_by_chance", "gap_with_interval"]

REGIONS = {"ece_all": "over all voxels", "ece_predicted": "in the predicted foreground"}
FOREGROUND = "over the ground-truth foreground"
BRACKETS = "(in brackets: 95 % intervals over patients)"
NORMAL = 1.96  # standard errors to either side hold 95 %


def conclude(compared: Comparison, reference: Method | None = None) -> str:
    """Return the conclusion of a report.

    Args:
        compared: What was evaluated: one method is described, several are compared.
        reference: The method that the others are compared with; without it, several methods have no conclusion.
    """
    if len(compared.methods) == 1:
        sentences = _of_one(compared)
    elif reference is not None:
        sentences = _of_several(compared, reference)
    else:
        sentences = []
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


def _of_one(compared: Comparison) -> list[str]:
    (method,), patients = compared.methods, compared.patients
    columns = compared.first.columns
    if "ece" not in columns:
        dsc = _estimated(mean_with_interval(method.values("dsc"), patients), "dsc")
        return [
            f"The mean DSC of {compared.counted} is {dsc}.",
            "There are no probabilities, so nothing can be said about calibration.",
        ]
    few = len(set(patients)) < FEWEST_PATIENTS
    unknown: list[str] = []
    sentences = [_calibration(compared, unknown)] if compared.has_regions else [_foreground(method, patients)]
    if compared.first.with_columns("expected_dsc"):
        correlation = spearman_with_interval(*method.expected_and_true(), patients)
        shown = f"Spearman {_estimated(correlation, 'rho')}"
        if correlation.low > 0:
            sentences.append(f"Low confidence finds the bad cases: expected and true DSC rise together ({shown}).")
        elif correlation.high < 0:
            sentences.append(f"Low confidence does not find the bad cases: their expected DSC is higher ({shown}).")
        elif not few and not math.isnan(correlation.low):
            unknown.append(f"whether low confidence finds the bad cases ({shown})")
    if few:
        sentences.append(f"{_counted_are(compared)} too few to tell how it is for others.")
    else:
        beyond = "how it is for patients of another origin"
        cannot = f"{', '.join(unknown)} and {beyond}" if unknown else beyond
        sentences.append(f"These {compared.counted} cannot tell {cannot} {BRACKETS}.")
    return sentences


def _calibration(compared: Comparison, unknown: list[str]) -> str:
    """Return the sentence about calibration; what it cannot tell is added to a list."""
    (method,), patients = compared.methods, compared.patients
    cases = sum(len(evaluation.cases) for evaluation in method.evaluations)
    bins = method.bins("predicted")
    errors, chances = [], []
    for measure, where in REGIONS.items():
        of_region = method.bins(measure.removeprefix("ece_"))
        if of_region.count.sum() > 0:  # a network may predict no foreground at all
            error = mean_with_interval(method.values(measure), patients)
            chance = error_by_chance(of_region, cases)
            errors.append(f"{_estimated(error, measure)} {where}")
            chances.append(number(chance, measure))
    errors_shown = (
        f"the ECE of a case is {' and '.join(errors)}, where true probabilities would give about "
        f"{' and '.join(chances)} by chance"
    )
    if bins.count.sum() == 0:
        return f"No foreground is predicted; {errors_shown}."
    confidence, accuracy = (
        (field.sum() / bins.count.sum()).item() for field in (bins.confidence_sum, bins.num_correct)
    )
    means = f"the mean confidence is {number(confidence, 'ece')} and the accuracy {number(accuracy, 'ece')}"
    gap = gap_with_interval(bins, method.values("ece_predicted"), patients)
    # Error and chance are those of the last region, the predicted foreground.
    if error.low > chance and (gap.low > 0 or gap.high < 0):
        kind = "overconfident" if gap.low > 0 else "underconfident"
        return f"The model is {kind}: in the predicted foreground, {means}; {errors_shown}."
    if not math.isnan(gap.low):
        unknown.append("whether the model is over- or underconfident")
    return f"In the predicted foreground, {means}; {errors_shown}."


def gap_with_interval(bins: CalibrationBins, errors: Array, patients: Sequence[str]) -> Estimate:
    """Return mean confidence minus accuracy of all voxels, and an interval over patients that is rather too wide.

    The difference of a patient is not in the files, but its size is at most the patient's ECE. So the mean square of
    the ECE bounds the variance of the differences.

    Args:
        bins: Bins of a region, pooled over cases.
        errors: ECE of each case in the region, `(cases,)`.
        patients: The patient of each case.

    Returns:
        The interval is NaN with fewer than `FEWEST_PATIENTS` patients.
    """
    gap = ((bins.confidence_sum - bins.num_correct).sum() / bins.count.sum()).item()
    by_patient = [errors[np.asarray(patients) == patient] for patient in dict.fromkeys(patients)]
    means = np.array([values[~np.isnan(values)].mean() for values in by_patient if not np.isnan(values).all()])
    if len(means) < FEWEST_PATIENTS:
        return Estimate(gap, np.nan, np.nan)
    half = NORMAL * math.sqrt((means**2).mean() / len(means))
    return Estimate(gap, gap - half, gap + half)


def error_by_chance(bins: CalibrationBins, cases: int) -> float:
    """Return the ECE that true probabilities would have in a case of average size, if voxels were independent.

    Args:
        bins: Bins of a region, pooled over cases.
        cases: Number of cases.
    """
    count = (bins.count / cases).round().long()
    of_case = CalibrationBins(count, bins.confidence.nan_to_num() * count, bins.accuracy.nan_to_num() * count)
    return resampled_errors(of_case, draws=200).mean().item()


def _foreground(method: Method, patients: Sequence[str]) -> str:
    """Return the sentence about evaluations of earlier versions, which have one region."""
    error = _estimated(mean_with_interval(method.values("ece"), patients), "ece")
    return (
        f"The ECE of a case is {error} {FOREGROUND}, which does not measure calibration: the ground truth chooses its "
        "voxels."
    )


def _of_several(compared: Comparison, reference: Method) -> list[str]:
    """Return which methods are better calibrated than the reference."""
    patients = compared.patients
    columns = compared.first.columns
    measures = {measure: where for measure, where in REGIONS.items() if measure in columns}
    if not measures and "ece" in columns:
        measures = {"ece": FOREGROUND}
    if len(set(patients)) < FEWEST_PATIENTS:
        what = "is better calibrated" if measures else "segments better"
        return [f"{_counted_are(compared)} too few to tell which method {what}."]
    if not measures:
        sentence, half = _compared(
            compared.differences("dsc", reference), "dsc", "on the common cases", reference.label
        )
        return [sentence, "There are no probabilities in common, so nothing can be said about calibration."]
    sentences, halves = [], []
    for measure, where in measures.items():
        sentence, half = _compared(compared.differences(measure, reference), measure, where, reference.label)
        sentences.append(sentence)
        halves.append(half)
    if "ece" in measures:
        sentences.append(
            "The ground truth chooses these voxels, so a lower ECE there does not mean better calibration."
        )
    sentences.append(
        f"These {compared.counted} cannot tell ECEs apart that differ by less than about {number(max(halves), 'ece')} "
        f"{BRACKETS}."
    )
    return sentences


def _compared(
    differences: Mapping[Method, tuple[Difference, float]], measure: str, where: str, reference: str
) -> tuple[str, float]:
    """Return the sentence about one measure, and half the width of the widest interval."""
    name = "DSC" if measure == "dsc" else "ECE"
    lower: list[str] = []
    higher: list[str] = []
    same: dict[str, str] = {}
    for method, (difference, p_value) in differences.items():
        if p_value < SIGNIFICANT and (difference.low > 0 or difference.high < 0):
            ends = sorted(map(abs, (difference.low, difference.high)))
            size, low, high = (number(abs(x), measure, DIFFERENCE).lstrip("+") for x in (difference.mean, *ends))
            group, word = (lower, "lower") if difference.mean < 0 else (higher, "higher")
            group.append(f"{method.label} ({name} {word} by {size} [{low}, {high}], {p_text(p_value)[0]})")
        else:
            notes = [number(difference.mean, measure, DIFFERENCE), *interval(difference, measure, DIFFERENCE)]
            same[method.label] = f" ({name} {', '.join([' '.join(notes), *p_text(p_value)])})"
    clauses = []
    for named, word, quality in ((lower, "lower", "better"), (higher, "higher", "worse")):
        if named:
            several = len(named) > 1
            is_better = f"{'are' if several else 'is'} {quality} calibrated"
            verb = is_better if measure in REGIONS else f"{'have' if several else 'has'} a {word} {name}"
            clauses.append(f"{_listed(named)} {verb} than {reference}")
    if same:
        notes_of_one = next(iter(same.values())) if len(same) == 1 else ""
        clauses.append(f"{_listed([*same])} cannot be told apart from {reference}{notes_of_one}")
    half = max(((difference.high - difference.low) / 2 for difference, _ in differences.values()), default=math.nan)
    return f"{where}, {'; '.join(clauses)}.", half


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _estimated(estimate: Estimate, measure: str) -> str:
    return " ".join([number(estimate.mean, measure), *interval(estimate, measure)])


def _counted_are(compared: Comparison) -> str:
    return f"{compared.counted} {'is' if len(set(compared.patients)) == 1 else 'are'}"
