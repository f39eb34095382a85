"""What a report begins with: one to three sentences drawn from its numbers, without a claim that they do not support.

Whether a network is calibrated is a test over patients of confidence minus accuracy, which is 0 on average if it is;
without significance, "no miscalibration" is shown only where the interval is close to 0. The ECE of a calibrated
network is above 0 by chance, by an unknown amount: voxels depend on each other. For the same reason the NLL, which
scores probabilities as a whole, stands beside a lower ECE.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from calib_components.tools.report.data import WITHOUT, Results, Row
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    Array,
    Estimate,
    bins_p_value,
    calibration_gap,
    holm,
    mean_of_defined,
    mean_with_interval,
    smallest_p_value,
    spearman_with_interval,
    sums_of_patients,
)
from calib_components.tools.report.text import (
    CONCLUDED,
    SIGNIFICANT,
    estimate_of,
    heading,
    higher_is_better,
    is_significant,
    listed,
    number,
    p_text,
    with_interval,
)

PLACES = {"predicted": "in the predicted foreground", "all": "over all voxels"}
SLIGHT, CLOSE = 0.01, 0.1  # differences of confidence and accuracy
ANSWERS = {  # from the mildest to what outweighs the others: answer, and what it says of a region
    "none": ("No miscalibration shown", "no miscalibration is shown"),
    "slight": ("Slightly miscalibrated", "the model is slightly {}"),
    "unknown": ("Too few patients to tell whether the model is calibrated", "{} cannot tell"),
    "shown": ("Not well calibrated", "the model is {}"),
}
UNTESTED = " Single bins are not tested: sign flips of so few patients cannot reach significance."
NOTHING = "nothing can be said about calibration."


def conclude_one(results: Results) -> str:
    """Return whether the one method is calibrated, and whether its confidence finds the bad cases."""
    (name,), patients, count = results.methods, results.patients(), results.count()
    row = Row(name)
    if not results.has("ece_predicted"):
        dsc = mean_with_interval(results.values(row, "dsc"), patients)
        return f"The mean DSC of {count} is {with_interval(dsc, 'dsc')}. There are no probabilities, so {NOTHING}"
    last = f"These {count} cannot tell how it is for patients of another origin (in brackets: 95 % intervals)."
    if patients.nunique() < 2:
        last = f"{count}: too few to tell how it is for others."
    return " ".join(filter(None, [_calibration(results, row), _finds_bad_cases(results, row), last]))


def _calibration(results: Results, row: Row) -> str:
    """Return the sentence that answers whether a method is calibrated, in both regions."""
    patients, parts, verdicts = results.patients(), [], []
    regions = [_shares(results, row, region) for region in PLACES]
    judged = judge([shares for shares, _ in regions])
    for region, (shares, cases), (verdict, kind, gap) in zip(PLACES, regions, judged, strict=True):
        place = PLACES[region]
        if cases == 0:  # a network may predict no foreground at all
            parts.append(f"{place}, there is no voxel")
            continue
        if cases < len(patients):
            place += f" of the {cases} of {len(patients)} cases that have one"
        verdicts.append(verdict)
        sure, right = (number(share, "ece") for share in shares[1:].sum(2).mean(1))
        error = with_interval(mean_with_interval(results.values(row, f"ece_{region}"), patients), "ece")
        shown = [f"confidence {sure}", f"accuracy {right}", f"difference {with_interval(gap, 'ece')}"]
        shown += [*p_text(gap.p_value), f"ECE of a case {error}"]
        parts.append(f"{place}, {ANSWERS[verdict][1].format(kind)} ({', '.join(shown)})")
    answer = max(verdicts, key=list(ANSWERS).index, default="unknown")
    text = f"{ANSWERS[answer][0]}: {'; '.join(parts)}. Chance alone gives a case an ECE above 0."
    smallest = [smallest_p_value(gap.cases, 2 * len(judged)) for _, _, gap in judged if gap.cases]
    return text + UNTESTED * (answer != "shown" and max(smallest, default=0) >= SIGNIFICANT)


def _shares(results: Results, row: Row, region: str) -> tuple[Array, int]:
    """Return what the voxels of each bin add to 1, confidence and accuracy of a patient, and the number of cases.

    The first are means over the cases of a patient that have a voxel in the region, `(3, patients, bins)`.
    """
    sums = np.stack(results.case_bins(row, region))
    total = sums[:1].sum(3, keepdims=True)
    shares = np.moveaxis(mean_of_defined(sums / np.where(total > 0, total, np.nan), axis=1), 1, 0)
    defined = ~np.isnan(shares[:, 0, 0])
    names = results.patients()[defined]
    cases = sums_of_patients(np.ones((len(names), 1, 1)), names)
    return np.moveaxis(sums_of_patients(shares[defined], names) / cases, 0, 1), len(names)


def judge(regions: Sequence[Array]) -> list[tuple[str, str, Estimate]]:
    """Return what each region says of the model, as a key of `ANSWERS`; how it is wrong; and confidence minus accuracy.

    Given of each region is what the voxels of each bin add to 1, confidence and accuracy of a patient,
    `(3, patients, bins)`. The p-value is the lower one of mean and bins, corrected for both in all regions.
    """
    gaps = [calibration_gap(*shares[1:].sum(2)) for shares in regions]
    testable = [smallest_p_value(gap.cases, 2 * len(gaps)) < SIGNIFICANT for gap in gaps]
    of_bins = [bins_p_value(shares) if test else 1.0 for shares, test in zip(regions, testable, strict=True)]
    p_values = holm([*(gap.p_value for gap in gaps), *of_bins]).reshape(2, -1).T
    judged = []
    for shares, gap, (p_gap, p_bins) in zip(regions, gaps, p_values, strict=True):
        p_value, size = float(np.minimum(p_gap, p_bins)), float(np.abs(mean_of_defined(shares[1] - shares[2])).sum())
        if p_value < SIGNIFICANT:
            verdict, kind = "slight" if size < SLIGHT else "shown", f"{'over' if gap.mean > 0 else 'under'}confident"
            if not p_gap < SIGNIFICANT or abs(gap.mean) < size / 2:
                kind = "too confident in some bins and not confident enough in others"
        else:
            calibrated = gap.cases >= FEWEST_PATIENTS and max(-gap.low, gap.high, size) < CLOSE
            verdict, kind = "none" if calibrated else "unknown", f"{gap.cases} patient{'s' * (gap.cases != 1)}"
        judged.append((verdict, kind, gap._replace(p_value=p_value)))
    return judged


def expected_and_true(results: Results, row: Row) -> tuple[Array, Array]:
    """Return the expected and the true DSC of each case, `(cases,)`: means over the structures that have both."""
    pair = np.array([
        [mean_of_defined(results.values(row, f"{measure}_{name}")) for name in results.structures]
        for measure in ("expected_dsc", "dsc")
    ])  # fmt: skip
    expected, true = mean_of_defined(np.where(np.isnan(pair).any(0), np.nan, pair), axis=1)
    return expected, true


def _finds_bad_cases(results: Results, row: Row) -> str:
    """Return the sentence about expected and true DSC; empty without an interval."""
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
    shown = f"Spearman's correlation of expected and true DSC is {with_interval(correlation, 'rho')}"
    if count:
        shown += f"; worst cases among as many of lowest expected DSC: {found} of {count} (by chance: {by_chance:.1f})"
    return f"{answer}: {shown}."


def worst_cases(expected: Array, true: Array) -> tuple[int, int, int]:
    """Return how many of the worst cases are among as many cases of lowest expected DSC.

    Worst cases are a fifth of the cases and at least one. Cases where either value is undefined (NaN) are left out.
    Returned are how many are found, of how many worst cases, and the number of cases; 0 of 0 where equal values leave
    open which these are.
    """
    pair = pd.DataFrame({"true": true, "expected": expected}).dropna()
    count = max(1, len(pair) // 5)
    chosen = [set(values.nsmallest(count, keep="all").index) for _, values in pair.items()]
    if {*map(len, chosen)} != {count}:
        return 0, 0, len(pair)
    return len(chosen[0] & chosen[1]), count, len(pair)


def conclude_differences(results: Results, reference: str, table: pd.DataFrame) -> str:
    """Return where methods are better and worse than the reference, from the table of `differences`."""
    if results.patients().nunique() < FEWEST_PATIENTS:
        return f"{results.count()}: too few to tell which method is better."
    measures = [measure for measure in CONCLUDED if results.has(measure)] or ["dsc"]
    plain = table[(table["temperature"] == WITHOUT) & (table["reference_temperature"] == WITHOUT)]
    plain = plain[plain["measure"].isin(measures) & (plain["method"] != reference)]
    clauses, unknown, alone = [], [], plain["method"].nunique() == 1
    for name, of_method in plain.groupby("method", sort=False):
        groups: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
        for record in of_method.to_dict("records"):
            found, measure, p_value = estimate_of(record), record["measure"], record["p_value_holm"]
            group, direction = "same", ""
            if is_significant(found, p_value):
                group = "better" if (found.mean > 0) == higher_is_better(measure) else "worse"
                direction = "a higher " if found.mean > 0 else "a lower "
            title, *place = heading(measure, arrow=False).split(" ", 1)
            named = " ".join([title, *(PLACES.get(region, "") for region in place)])
            notes = [with_interval(found, measure, True), *p_text(p_value)]
            groups[group].append(f"{direction}{named} ({', '.join(notes)})")
        label = results.labels[name]
        if significant := [listed(groups[group]) for group in ("better", "worse") if groups[group]]:
            clauses.append(f"{label} has {', but '.join(significant)}")
        if alone and groups["same"]:
            unknown.append(f"{label} in {listed(groups['same'])}")
        elif not significant:
            unknown.append(label)
    label, corrected = results.labels[reference], f"; p-values are Holm-corrected for {len(plain)} comparisons"
    sentences = [f"Compared with {label}, {'; '.join(clauses)}."] if clauses else []
    if unknown:
        sentences.append(f"No significant difference to {label} on these {results.count()}: {', '.join(unknown)}.")
    by_flips = 1 in (results.seeds(Row(reference)), max(results.seeds(Row(name)) for name in plain["method"]))
    if by_flips and (smallest := smallest_p_value(results.patients().nunique(), len(plain))) >= SIGNIFICANT:
        sentences.append(
            f"No difference can be: sign flips of so few patients have p-values of {smallest:.3f} or more."
        )
    sentences.append(f"In brackets: 95 % intervals{corrected * (len(plain) > 1)}.")
    sentences.append(
        f"There are no probabilities in common, so {NOTHING}"
        if measures == ["dsc"]
        else "The NLL scores probabilities as a whole; part of an ECE is chance, more so of a less confident model."
    )
    return " ".join(sentences)
