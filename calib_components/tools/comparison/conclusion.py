"""What a report begins with: one to three sentences drawn from its numbers, without a claim that they do not support.

A network is called over- or underconfident, and a method better calibrated than another, only where a 95 % interval
and a test over patients say so. Where a better one is worse in another region, the same sentence says it.

The test of one network (`sign_flip_p_value`) compares confidence with accuracy, not the ECE with 0: the ECE of a
calibrated network is above 0 by chance, and by how much, nobody can tell who does not know how voxels depend on each
other. Confidence minus accuracy is 0 on average however they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from calib_components.tools.comparison.measured import Comparison, Method
from calib_components.tools.comparison.statistics import (
    FEWEST_PATIENTS,
    Array,
    Estimate,
    holm,
    mean_of_defined,
    mean_with_interval,
    sign_flip_p_value,
    spearman_with_interval,
)
from calib_components.tools.comparison.tables import DIFFERENCE, SIGNIFICANT, higher_is_better, interval, number, p_text

__all__ = ["conclude", "worst_cases"]

REGIONS = {  # those that the prediction alone chooses
    "ece_all": "over all voxels",
    "ece_predicted": "in the predicted foreground",
    "ece_plausible": "in the plausible foreground",
    "ece_predicted_band": "near borders between predicted classes",
}
FOREGROUND = "over the ground-truth foreground"
BRACKETS = "in brackets: 95 % intervals over patients"
PERHAPS = "perhaps "  # said where the interval speaks for a difference, but not the test
STRONG = 0.5  # rank correlation above which low confidence does more than find bad cases somewhat


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
    sentences = [_calibration(compared) if compared.has_regions else _foreground(method, patients)]
    if compared.first.with_columns("expected_dsc") and (finds := _finds_bad_cases(method, patients)):
        sentences.append(finds)
    if len(set(patients)) < FEWEST_PATIENTS:
        sentences.append(f"{_counted_are(compared)} too few to tell how it is for others.")
    else:
        sentences.append(f"These {compared.counted} cannot tell how it is for patients of another origin ({BRACKETS}).")
    return sentences


def _calibration(compared: Comparison) -> str:
    """Return the sentence that answers whether the one method is calibrated, by its predicted foreground."""
    (method,), patients = compared.methods, compared.patients
    over_all = f"{_estimated(mean_with_interval(method.values('ece_all'), patients), 'ece')} over all voxels"
    pooled = method.bins("predicted")
    if pooled.count.sum() == 0:  # a network may predict no foreground at all
        return f"No foreground is predicted; the ECE of a case is {over_all}."
    error = _estimated(mean_with_interval(method.values("ece_predicted"), patients), "ece")
    errors = f"the ECE of a case is {error} there and {over_all}, of which chance is a part"
    of_cases = method.confidence_and_accuracy("predicted")
    if of_cases is None:
        return f"Files of this earlier version do not tell whether the model is calibrated: {errors}."
    gaps = of_cases[0] - of_cases[1]
    p_value = sign_flip_p_value(gaps, patients)
    gap = mean_with_interval(gaps.sum(1), patients)
    confidence, accuracy = (number(float(mean_of_defined(part.sum(1))), "ece") for part in of_cases)
    kind = f"the mean confidence is {confidence} and the accuracy {accuracy}"
    tested = f" ({p_text(p_value)[0]})" if p_text(p_value) else ""
    if math.isnan(p_value):
        answer = "Too few patients to tell whether the model is calibrated"
    elif p_value >= SIGNIFICANT:
        answer = f"No miscalibration shown{tested}"
    else:
        answer = f"Not well calibrated{tested}"
        means = f"mean confidence {confidence}, accuracy {accuracy}"
        if gap.low > 0 or gap.high < 0:
            kind = f"the model is {'over' if gap.low > 0 else 'under'}confident ({means})"
        else:
            kind = f"it cannot be told whether the model is over- or underconfident ({means})"
    return f"{answer}: in the predicted foreground, {kind}; {errors}."


def _finds_bad_cases(method: Method, patients: Sequence[str]) -> str:
    """Return the sentence about expected and true DSC; empty without an interval."""
    expected, true = method.expected_and_true()
    correlation = spearman_with_interval(expected, true, patients)
    if math.isnan(correlation.low):
        return ""
    found, count, cases = worst_cases(expected, true)
    shown = f"Spearman's correlation of expected and true DSC is {_estimated(correlation, 'rho')}, and "
    if count == 1:
        shown += f"the worst case is {'' if found else 'not '}that of lowest expected DSC (by chance: 1 in {cases})"
    else:
        shown += (
            f"of the {count} worst cases, {found} {'is' if found == 1 else 'are'} among the {count} of lowest expected "
            f"DSC (by chance: {count**2 / cases:.1f})"
        )
    by_chance = found <= count**2 / cases
    if correlation.high < 0:
        answer = "Low confidence does not find the bad cases"
    elif correlation.low <= 0:
        answer = "Whether low confidence finds the bad cases cannot be told"
    elif by_chance:
        answer = "Low confidence goes with a lower DSC, but does not find the worst cases"
    else:
        answer = f"Low confidence finds the bad cases{'' if correlation.low > STRONG else ' somewhat'}"
    return f"{answer}: {shown}."


def worst_cases(expected: Array, true: Array) -> tuple[int, int, int]:
    """Return how many of the worst cases are among as many cases of lowest expected DSC.

    Args:
        expected: Expected DSC, `(cases,)`. A case where either value is undefined (NaN) is left out.
        true: True DSC, `(cases,)`.

    Returns:
        How many are found, of how many worst cases, which are a fifth of the cases and at least one, and the cases.
    """
    defined = ~np.isnan(expected) & ~np.isnan(true)
    cases = int(defined.sum())
    count = max(1, cases // 5)
    worst, lowest = (np.argsort(values[defined], kind="stable")[:count].tolist() for values in (true, expected))
    return len({*worst} & {*lowest}), count, cases


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
        sentences = _compared(compared, reference, {"dsc": "on the common cases"})
        return [*sentences, "There are no probabilities in common, so nothing can be said about calibration."]
    sentences = _compared(compared, reference, measures)
    if "ece" in measures:
        sentences.append(
            "The ground truth chooses these voxels, so a lower ECE there does not mean better calibration."
        )
    return sentences


def _compared(compared: Comparison, reference: Method, measures: Mapping[str, str]) -> list[str]:
    """Return where each method is better and worse than the reference, and where it cannot be told.

    Args:
        compared: The methods.
        reference: The one that the others are compared with.
        measures: Where each measure is taken.
    """
    differences = {measure: compared.differences(measure, reference) for measure in measures}
    tests = [(measure, method) for measure, of_methods in differences.items() for method in of_methods]
    p_values = [differences[measure][method][0].p_value for measure, method in tests]
    adjusted = dict(zip(tests, holm(p_values).tolist(), strict=True))
    others = [method for method in compared.methods if method is not reference]
    verbs = _verbs(next(iter(measures)))
    clauses, unknown = [], []
    for method in others:
        better: list[str] = []
        worse: list[str] = []
        same: list[str] = []
        for measure, where in measures.items():
            difference, p_value = differences[measure][method][0], adjusted[measure, method]
            notes = [number(difference.mean, measure, DIFFERENCE), *interval(difference, measure, DIFFERENCE)]
            name = "DSC" if measure == "dsc" else "ECE"
            shown = ", ".join([" ".join(notes), *p_text(p_value)])
            if difference.low > 0 or difference.high < 0:
                group = better if (difference.mean > 0) == higher_is_better(measure) else worse
                place = f"{where} (ECE {shown})" if measure in REGIONS else f"({shown})"
                group.append(place if p_value < SIGNIFICANT else f"{PERHAPS}{place}")
            else:
                same.append(f"{where} ({name} {shown})")
        told = [_told(verb, group) for verb, group in zip(verbs, (better, worse), strict=True) if group]
        if told:
            clauses.append(f"{method.label} {', but '.join(told)}")
        if len(others) == 1 and same:
            unknown.append(f"{method.label} from {reference.label} {_listed(same)}")
        elif not told:
            unknown.append(method.label)
    sentences = []
    if clauses:
        text = "; ".join(clauses)
        why = f"; {PERHAPS}means an interval without 0 but p > 0.05"
        lead = " ".join([f"Compared with {reference.label}", *(() if {*measures} <= {*REGIONS} else measures.values())])
        sentences.append(f"{lead}, {text}{why if PERHAPS in text else ''}")
    if unknown:
        which = unknown[0] if len(others) == 1 else f"{_listed(unknown)} from {reference.label}"
        sentences.append(f"these {compared.counted} cannot tell {which}")
    *first, last = sentences
    corrected = f", p-values Holm-corrected for {len(tests)} comparisons" if len(tests) > 1 else ""
    return [*(f"{sentence}." for sentence in first), f"{last}; {BRACKETS}{corrected}."]


def _verbs(measure: str) -> tuple[str, str]:
    """Return what a better and a worse method does."""
    if measure == "dsc":
        return "has a higher DSC", "has a lower DSC"
    if measure in REGIONS:
        return "is better calibrated", "is worse calibrated"
    return "has a lower ECE", "has a higher ECE"


def _told(verb: str, places: Sequence[str]) -> str:
    """Return that a method does so at some places, perhaps at all of them."""
    if all(place.startswith(PERHAPS) for place in places):
        is_or_has, what = verb.split(" ", 1)
        return f"{is_or_has} {PERHAPS}{what} {_listed([place.removeprefix(PERHAPS) for place in places])}"
    return f"{verb} {_listed(sorted(places, key=lambda place: place.startswith(PERHAPS)))}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _estimated(estimate: Estimate, measure: str) -> str:
    return " ".join([number(estimate.mean, measure), *interval(estimate, measure)])


def _counted_are(compared: Comparison) -> str:
    return f"{compared.counted} {'is' if len(set(compared.patients)) == 1 else 'are'}"
