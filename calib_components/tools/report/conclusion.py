"""What a report begins with: one to three sentences drawn from its numbers, without a claim that they do not support.

Whether a network is calibrated is a test over patients of confidence against accuracy (`sign_flip_p_value`), not of the
ECE against 0: the ECE of a calibrated network is above 0 by chance, by an amount that nobody knows:
voxels depend on each other. Confidence minus accuracy is 0 on average however they do. For the same reason a lower ECE
of one of two methods is reported as that; the NLL, which scores probabilities as a whole, stands beside it.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from calib_components.tools.report.data import Results, Row
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
from calib_components.tools.report.text import (
    CONCLUDED,
    SIGNIFICANT,
    heading,
    higher_is_better,
    interval,
    is_significant,
    listed,
    number,
    p_text,
)

PLACES = {"predicted": "in the predicted foreground", "all": "over all voxels"}
SLIGHT = 0.01  # difference of confidence and accuracy
ANSWERS = {  # from the mildest to what outweighs the others
    "none": "No miscalibration shown",
    "slight": "Slightly miscalibrated",
    "unknown": "Too few patients to tell whether the model is calibrated",
    "shown": "Not well calibrated",
}


def concluded(results: Results) -> list[str]:
    """Return the measures that methods are compared by: of calibration, or without probabilities the DSC."""
    return [measure for measure in CONCLUDED if results.has(measure)] or ["dsc"]


def conclude_one(results: Results) -> str:
    """Return whether the one method is calibrated, and whether its confidence finds the bad cases."""
    (name,), patients = results.methods, results.patients()
    row, count = Row(name), results.count()
    if not results.has("ece_predicted"):
        dsc = mean_with_interval(results.values(row, "dsc"), patients)
        return (
            f"The mean DSC of {count} is {_shown(dsc, 'dsc')}. There are no probabilities, so nothing can be said "
            "about calibration."
        )
    sentences = [_calibration(results, row)]
    if finds := _finds_bad_cases(results, row):
        sentences.append(finds)
    if len(set(patients)) < FEWEST_PATIENTS:
        sentences.append(f"{count}: too few to tell how it is for others.")
    else:
        sentences.append(
            f"These {count} cannot tell how it is for patients of another origin, nor of failures too rare to be among "
            "them (in brackets: 95 % intervals)."
        )
    return " ".join(sentences)


def _calibration(results: Results, row: Row) -> str:
    """Return the sentence that answers whether a method is calibrated, in both regions."""
    patients = results.patients()
    gaps = {region: _confidence_and_accuracy(results, row, region) for region in PLACES}
    p_values = holm([sign_flip_p_value(confidence - accuracy, patients) for confidence, accuracy in gaps.values()])
    parts, verdicts = [], []
    for (region, (confidence, accuracy)), p_value in zip(gaps.items(), p_values.tolist(), strict=True):
        place, cases = PLACES[region], int((~np.isnan(confidence[:, 0])).sum())
        if cases == 0:  # a network may predict no foreground at all
            parts.append(f"{place}, there is no voxel")
            continue
        if cases < len(patients):
            place += f" of the {cases} of {len(patients)} cases that have one"
        verdict, kind = _verdict(confidence - accuracy, p_value, patients)
        verdicts.append(verdict)
        means = [number(float(mean_of_defined(part.sum(1))), "ece") for part in (confidence, accuracy)]
        error = mean_with_interval(results.values(row, f"ece_{region}"), patients)
        shown = [
            f"confidence {means[0]}",
            f"accuracy {means[1]}",
            *p_text(p_value),
            f"ECE of a case {_shown(error, 'ece')}",
        ]
        parts.append(f"{place}, {kind} ({', '.join(shown)})")
    answer = max(verdicts, key=list(ANSWERS).index, default="unknown")
    return f"{ANSWERS[answer]}: {'; '.join(parts)}. Chance alone gives a case an ECE above 0."


def _confidence_and_accuracy(results: Results, row: Row, region: str) -> tuple[Array, Array]:
    """Return what the voxels of each bin add to mean confidence and to accuracy of a case, each `(cases, bins)`."""
    count, *sums = results.case_bins(row, region)
    total = count.sum(2, keepdims=True)
    share = np.where(total > 0, 1 / np.where(total > 0, total, 1), np.nan)
    confidence, accuracy = (mean_of_defined(share * part) for part in sums)
    return confidence, accuracy


def _verdict(gaps: Array, p_value: float, patients: list[str]) -> tuple[str, str]:
    """Return what a region says of the model, as a key of `ANSWERS` and in words."""
    if math.isnan(p_value):
        return "unknown", "that cannot be told"
    if p_value >= SIGNIFICANT:
        return "none", "no miscalibration is shown"
    size = float(np.abs(mean_of_defined(gaps)).sum())
    verdict, slightly = ("slight", "slightly ") if size < SLIGHT else ("shown", "")
    total = gaps.sum(1)
    gap = mean_with_interval(total, patients)
    is_told = is_significant(gap, sign_flip_p_value(total[:, None], patients))
    if not is_told or abs(gap.mean) < size / 2:
        return verdict, f"the model is {slightly}too confident in some bins and not confident enough in others"
    return verdict, f"the model is {slightly}{'over' if gap.mean > 0 else 'under'}confident"


def expected_and_true(results: Results, row: Row) -> tuple[Array, Array]:
    """Return the expected and the true DSC of each case, `(cases,)`: means over the structures that have both."""
    structures = [name for name in results.structures if results.has(f"expected_dsc_{name}")]
    pair = np.array([
        [mean_of_defined(results.values(row, f"{measure}_{name}")) for name in structures]
        for measure in ("expected_dsc", "dsc")
    ])  # fmt: skip
    expected, true = mean_of_defined(np.where(np.isnan(pair).any(0), np.nan, pair), axis=1)
    return expected, true


def _finds_bad_cases(results: Results, row: Row) -> str:
    """Return the sentence about expected and true DSC; empty without an interval."""
    if not any(results.has(f"expected_dsc_{name}") for name in results.structures):
        return ""
    expected, true = expected_and_true(results, row)
    correlation = spearman_with_interval(expected, true, results.patients())
    if not correlation.has_interval:
        return ""
    found, count, cases = worst_cases(expected, true)
    by_chance = count**2 / max(cases, 1)
    if correlation.high < 0:
        answer = "Low confidence does not find the bad cases"
    elif correlation.low <= 0:
        answer = "Whether low confidence finds the bad cases cannot be told"
    elif count and found <= by_chance:
        answer = "Low confidence goes with a lower DSC, but does not find the worst cases"
    else:
        answer = "Low confidence points to bad cases"
    shown = f"Spearman's correlation of expected and true DSC is {_shown(correlation, 'rho')}"
    if count:
        shown += (
            f", and of the {count} worst case{'s' * (count > 1)}, {found} {'is' if found == 1 else 'are'} among the "
            f"{count} of lowest expected DSC (by chance: {by_chance:.1f})"
        )
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


def conclude_differences(results: Results, reference: str, table: pd.DataFrame) -> str:
    """Return where methods are better and worse than the reference, and where the difference is not significant.

    Args:
        results: The results.
        reference: Name of the method that the others are compared with.
        table: What `differences` returns for `concluded` measures.
    """
    measures, labels, patients = concluded(results), results.about["labels"], results.patients()
    if len(set(patients)) < FEWEST_PATIENTS:
        return f"{results.count()}: too few to tell which method is better."
    plain = table[(table["temperature"] == "without") & (table["reference_temperature"] == "without")]
    plain = plain[plain["measure"].isin(measures) & (plain["method"] != reference)]
    clauses, unknown, alone = [], [], plain["method"].nunique() == 1
    for name, of_method in plain.groupby("method", sort=False):
        groups: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
        for record in of_method.to_dict("records"):
            measure = record["measure"]
            found = Estimate(*(record[field] for field in Estimate._fields))
            group = "better" if (found.mean > 0) == higher_is_better(measure) else "worse"
            group = group if is_significant(found, record["p_value_holm"]) else "same"
            direction = "" if group == "same" else "a higher " if found.mean > 0 else "a lower "
            size = " ".join([number(found.mean, measure, True), *interval(found, measure, True)])
            notes = [size, *p_text(record["p_value_holm"])] + [f"{found.cases} cases"] * (found.cases < len(patients))
            groups[group].append(f"{direction}{_title(measure)} ({', '.join(notes)})")
        if told := [listed(groups[group]) for group in ("better", "worse") if groups[group]]:
            clauses.append(f"{labels[name]} has {', but '.join(told)}")
        if alone and groups["same"]:
            unknown.append(f"{labels[name]} in {listed(groups['same'])}")
        elif not told:
            unknown.append(labels[name])
    sentences = [f"Compared with {labels[reference]}, {'; '.join(clauses)}."] if clauses else []
    if unknown:
        sentences.append(
            f"No significant difference to {labels[reference]} on these {results.count()}: {', '.join(unknown)}."
        )
    sentences.append(
        f"In brackets: 95 % intervals; p-values are Holm-corrected for {len(plain)} comparisons."
        if len(plain) > 1
        else "In brackets: the 95 % interval."
    )
    if measures == ["dsc"]:
        sentences.append("There are no probabilities in common, so nothing can be said about calibration.")
    else:
        sentences.append(
            "The NLL scores probabilities as a whole; part of an ECE is chance, a larger one in a less confident model."
        )
    return " ".join(sentences)


def _shown(estimate: Estimate, measure: str) -> str:
    return " ".join([number(estimate.mean, measure), *interval(estimate, measure)])


def _title(measure: str) -> str:
    """Return the name of a measure in a sentence, such as "ECE over all voxels"."""
    title, _, place = heading(measure, arrow=False).partition(" ")
    return " ".join([title, PLACES[place]] if place in PLACES else [title])
