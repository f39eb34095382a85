"""What a report begins with: one to three sentences drawn from its numbers, without a claim that they do not support.

Whether a network is calibrated is a test over patients of confidence against accuracy (`sign_flip_p_value`), not of the
ECE against 0: the ECE of a calibrated network is above 0 by chance, and by how much, nobody can tell who does not know
how voxels depend on each other. Confidence minus accuracy is 0 on average however they do. For the same reason a lower
ECE of one of two methods is reported as that: the ECE of a less confident one has a larger part of chance. The NLL,
which scores probabilities as a whole, stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calib_components.tools.report.measured import Comparison, Method
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    Array,
    Estimate,
    holm,
    mean_of_defined,
    mean_with_interval,
    sign_flip_p_value,
    spearman_with_interval,
)
from calib_components.tools.report.tables import (
    DIFFERENCE,
    SIGNIFICANT,
    higher_is_better,
    interval,
    is_told,
    number,
    p_text,
)

__all__ = ["conclude", "worst_cases"]

PLACES = {"predicted": "in the predicted foreground", "all": "over all voxels"}
FOREGROUND = "over the ground-truth foreground"
NAMES = {  # of measures, and where they are taken
    "nll_all": ("NLL", "over all voxels"),
    "ece_all": ("ECE", "over all voxels"),
    "ece_predicted": ("ECE", "in the predicted foreground"),
    "ece": ("ECE", FOREGROUND),
    "dsc": ("DSC", "on the common cases"),
}
BRACKETS = "in brackets: 95 % intervals over {}"
SLIGHT = 0.01  # difference of confidence and accuracy


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
        dsc = _estimated(mean_with_interval(method.by_run("dsc"), patients), "dsc")
        return [
            f"The mean DSC of {compared.patient_count} is {dsc}.",
            "There are no probabilities, so nothing can be said about calibration.",
        ]
    sentences = [_calibration(compared) if compared.has_regions else _foreground(method, patients)]
    if compared.first.with_columns("expected_dsc") and (finds := _finds_bad_cases(method, patients)):
        sentences.append(finds)
    if len(set(patients)) < FEWEST_PATIENTS:
        sentences.append(f"{_counted_are(compared)} too few to tell how it is for others.")
    else:
        sentences.append(
            f"These {compared.patient_count} cannot tell how it is for patients of another origin, nor of failures too "
            f"rare to be among them ({BRACKETS.format(compared.resampled)})."
        )
    return sentences


class _Calibration(NamedTuple):
    """Confidence and accuracy in a region."""

    confidence: float
    accuracy: float
    gap: Estimate
    size: float  # sum over bins of mean differences of confidence and accuracy, whatever their signs
    p_value: float  # that all bins are right
    p_value_of_gap: float  # that confidence is right as a mean
    cases: int


def _calibration(compared: Comparison) -> str:
    """Return the sentence that answers whether the one method is calibrated, by both regions that are measured."""
    (method,), patients = compared.methods, compared.patients
    found = {region: _in_region(method, region, patients) for region in PLACES}
    adjusted = holm([each.p_value for each in found.values()])
    parts, verdicts = [], []
    for (region, each), p_value in zip(found.items(), adjusted.tolist(), strict=True):
        error = mean_with_interval(method.by_run(f"ece_{region}"), patients)
        shown = f"ECE of a case {_estimated(error, 'ece')}"
        place = PLACES[region]
        if each.cases == 0:  # a network may predict no foreground at all
            parts.append(f"{place}, there is no voxel")
            continue
        if each.cases < len(patients):
            place += f" of the {each.cases} of {len(patients)} cases that have one"
        means = f"confidence {number(each.confidence, 'ece')}, accuracy {number(each.accuracy, 'ece')}"
        verdict, kind = _verdict(each, p_value)
        verdicts.append(verdict)
        parts.append(f"{place}, {kind} ({', '.join([means, *p_text(p_value), shown])})")
    answer = max(verdicts, key=list(ANSWERS).index, default="unknown")
    return f"{ANSWERS[answer]}: {'; '.join(parts)}. Chance alone gives a case an ECE above 0."


ANSWERS = {  # from the mildest to what outweighs the others
    "none": "No miscalibration shown",
    "slight": "Slightly miscalibrated",
    "unknown": "Too few patients to tell whether the model is calibrated",
    "shown": "Not well calibrated",
}


def _verdict(found: _Calibration, p_value: float) -> tuple[str, str]:
    """Return what a region says of the model, as a key of `ANSWERS` and in words."""
    if math.isnan(p_value):
        return "unknown", "that cannot be told"
    if p_value >= SIGNIFICANT:
        return "none", "no miscalibration is shown"
    verdict, slightly = ("slight", "slightly ") if found.size < SLIGHT else ("shown", "")
    untold = found.p_value_of_gap >= SIGNIFICANT or found.gap.low <= 0 <= found.gap.high
    if untold or abs(found.gap.mean) < found.size / 2:
        return verdict, f"the model is {slightly}too confident in some bins and not confident enough in others"
    return verdict, f"the model is {slightly}{'over' if found.gap.mean > 0 else 'under'}confident"


def _in_region(method: Method, region: str, patients: Sequence[str]) -> _Calibration:
    """Return confidence and accuracy in a region."""
    parts = method.confidence_and_accuracy(region)
    gaps = parts[0] - parts[1]
    total = gaps.sum(1)
    confidence, accuracy = (float(mean_of_defined(part.sum(1))) for part in parts)
    return _Calibration(
        confidence,
        accuracy,
        mean_with_interval(total, patients),
        float(np.abs(mean_of_defined(gaps)).sum()),
        sign_flip_p_value(gaps, patients),
        sign_flip_p_value(total[:, None], patients),
        int((~np.isnan(total)).sum()),
    )


def _finds_bad_cases(method: Method, patients: Sequence[str]) -> str:
    """Return the sentence about expected and true DSC; empty without an interval."""
    expected, true = method.expected_and_true()
    correlation = spearman_with_interval(expected, true, patients)
    if math.isnan(correlation.low):
        return ""
    found, count, cases = worst_cases(expected, true)
    shown = f"Spearman's correlation of expected and true DSC is {_estimated(correlation, 'rho')}"
    if count == 1:
        shown += (
            f", and the worst case is {'' if found else 'not '}that of lowest expected DSC (by chance: 1 in {cases})"
        )
    elif count > 1:
        shown += (
            f", and of the {count} worst cases, {found} {'is' if found == 1 else 'are'} among the {count} of lowest "
            f"expected DSC (by chance: {count**2 / cases:.1f})"
        )
    if correlation.high < 0:
        answer = "Low confidence does not find the bad cases"
    elif correlation.low <= 0:
        answer = "Whether low confidence finds the bad cases cannot be told"
    elif count and found <= count**2 / cases:
        answer = "Low confidence goes with a lower DSC, but does not find the worst cases"
    else:
        answer = "Low confidence points to bad cases"
    return f"{answer}: {shown}."


def worst_cases(expected: Array, true: Array) -> tuple[int, int, int]:
    """Return how many of the worst cases are among as many cases of lowest expected DSC.

    Args:
        expected: Expected DSC, `(cases,)`. A case where either value is undefined (NaN) is left out.
        true: True DSC, `(cases,)`.

    Returns:
        How many are found, of how many worst cases, which are a fifth of the cases and at least one, and the cases.
        0 of 0 where equal values leave open which cases these are.
    """
    defined = ~np.isnan(expected) & ~np.isnan(true)
    cases = int(defined.sum())
    count = max(1, cases // 5)
    chosen = []
    for values in (true[defined], expected[defined]):
        order = np.argsort(values, kind="stable")
        if count < cases and values[order[count - 1]] == values[order[count]]:
            return 0, 0, cases
        chosen.append({*order[:count].tolist()})
    return len(chosen[0] & chosen[1]), count, cases


def _foreground(method: Method, patients: Sequence[str]) -> str:
    """Return the sentence about evaluations by metrics that have the ground-truth foreground alone."""
    error = _estimated(mean_with_interval(method.by_run("ece"), patients), "ece")
    return (
        f"The ECE of a case is {error} {FOREGROUND}, which does not measure calibration: the ground truth chooses its "
        "voxels."
    )


def _of_several(compared: Comparison, reference: Method) -> list[str]:
    """Return where methods are better and worse than the reference."""
    patients = compared.patients
    measures = compared.concluded or [
        name for name in ("ece", "dsc") if name == "dsc" or name in compared.first.columns
    ]
    if not compared.concluded:
        measures = measures[:1]
    if len(set(patients)) < FEWEST_PATIENTS:
        what = "has better probabilities" if compared.concluded else "is better"
        return [f"{_counted_are(compared)} too few to tell which method {what}."]
    sentences = _compared(compared, reference, measures)
    if "ece" in measures:
        sentences.append(
            "The ground truth chooses these voxels, so a lower ECE there does not mean better calibration."
        )
    elif "dsc" in measures:
        sentences.append("There are no probabilities in common, so nothing can be said about calibration.")
    else:
        sentences.append(
            "The NLL scores probabilities as a whole; part of an ECE is chance, a larger one in a less confident model."
        )
    return sentences


def _compared(compared: Comparison, reference: Method, measures: Sequence[str]) -> list[str]:
    """Return where each method is better and worse than the reference, and where it cannot be told.

    Args:
        compared: The methods.
        reference: The one that the others are compared with.
        measures: What they are compared by.
    """
    differences = {measure: compared.differences(measure, reference) for measure in measures}
    others = [method for method in compared.methods if method is not reference]
    clauses, unknown = [], []
    for method in others:
        groups: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
        for measure in measures:
            difference, p_value = differences[measure][method]
            size = " ".join([number(difference.mean, measure, DIFFERENCE), *interval(difference, measure, DIFFERENCE)])
            of_cases = [] if difference.cases == len(compared.patients) else [f"{difference.cases} cases"]
            name, place = NAMES[measure]
            shown = f"{place} ({', '.join([size, *p_text(p_value), *of_cases])})"
            group = "better" if (difference.mean > 0) == higher_is_better(measure) else "worse"
            group = group if is_told(difference, p_value) else "same"
            direction = "" if group == "same" else "a higher " if difference.mean > 0 else "a lower "
            groups[group].append(f"{direction}{name} {shown}")
        told = [_listed(groups[group]) for group in ("better", "worse") if groups[group]]
        if told:
            clauses.append(f"{method.label} has {', but '.join(told)}")
        if len(others) == 1 and groups["same"]:
            unknown.append(f"{method.label} from {reference.label} by {_listed(groups['same'])}")
        elif not told:
            unknown.append(method.label)
    sentences = []
    if clauses:
        sentences.append(f"Compared with {reference.label}, {'; '.join(clauses)}")
    if unknown:
        which = unknown[0] if len(others) == 1 else f"{_listed(unknown)} from {reference.label}"
        sentences.append(f"these {compared.patient_count} cannot tell {which}")
    *first, last = sentences
    tests = len(measures) * len(others)
    corrected = f", p-values Holm-corrected for {tests} comparisons" if tests > 1 else ""
    return [*(f"{sentence}." for sentence in first), f"{last}; {BRACKETS.format(compared.resampled)}{corrected}."]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _estimated(estimate: Estimate, measure: str) -> str:
    return " ".join([number(estimate.mean, measure), *interval(estimate, measure)])


def _counted_are(compared: Comparison) -> str:
    return f"{compared.patient_count} {'is' if len(set(compared.patients)) == 1 else 'are'}"
