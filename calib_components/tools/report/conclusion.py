"""What a report begins with: at most four sentences drawn from its numbers, and what to do next.

The DSC and its loss come first. A network that segments badly is not praised for its calibration,
and no conclusion rests on the NLL over all voxels, which easy background decides.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from calib_components.errors import printable
from calib_components.tools.report.calibration import VERDICTS, judge_regions
from calib_components.tools.report.data import WITHOUT, Results, Row
from calib_components.tools.report.page import Answer
from calib_components.tools.report.statistics import (
    FEWEST_PATIENTS,
    mean_of_defined,
    mean_with_interval,
    smallest_p_value,
)
from calib_components.tools.report.structures import expected_and_true
from calib_components.tools.report.tables import (
    DECIDING,
    LOSS,
    SIGNIFICANT,
    Record,
    estimate_of,
    heading,
    higher_is_better,
    is_significant,
    listed,
    number,
    p_text,
    with_interval,
)

LOW = 0.7  # a mean DSC below this is low
# A case is named whose DSC is as far below the median: this, and median absolute deviations
WORSE, SPREADS = 0.2, 5
MOST = 3  # cases are named
PLACES = {"predicted": "where a structure is predicted", "all": "over all voxels"}
ANSWERS = {  # by verdict
    "none": "No miscalibration is shown {place}: {shown}.",
    "slight": "It is slightly {kind} {place}: {shown}.",
    "unknown": "Too few patients to tell whether it is calibrated ({shown} {place}).",
    "shown": "It is not well calibrated: {kind} {place} ({shown}).",
}
BUT_LOW = "Calibration does not make up for that ({shown} {place})."
UNSHOWN = "not shown to be too high or too low"
EVALUATE = "calib-components evaluate_predictions {} --out evaluation_next"
COMPARE = "calib-components compare_losses BUNDLE --dataset_dir PREPARED --out RESULTS"
BUNDLE = (
    "python -m monai.bundle run --bundle_root BUNDLE --config_file"
    " \"['BUNDLE/configs/train.yaml'{}]\""
)
CALIBRATE = (
    "calib-components calibrate_predictions VALIDATION VALIDATION_LABELS --apply_to PREDICTIONS"
    " --out scaled{}\ncalib-components evaluate_predictions scaled LABELS --out"
    " evaluation_scaled\ncalib-components report {} evaluation_scaled --out temperature_report"
)
CALIBRATE_BUNDLE = BUNDLE.format(",'BUNDLE/configs/calibrate.yaml'") + "{}"
LONGER = (
    "Improve the segmentation: train longer (losses without a Dice term need it most), on scans of"
    " this origin, and ignore padded voxels."
)


def conclude_one(results: Results) -> Answer:
    """Return how well the one method segments, whether it is calibrated, and how right its expected
    DSC is.
    """
    row = Row(*results.methods)
    dsc = mean_with_interval(results.values(row, "dsc"), results.patients())
    low = dsc.mean < LOW
    sentences = [
        f"The mean DSC of {results.count()} is {with_interval(dsc, 'dsc')}{', which is low' * low}."
    ]
    if not results.has("ece_predicted"):
        sentences.append("Label maps have no probabilities: whether it is calibrated is unknown.")
        return Answer(
            [*sentences, *_worst_cases(results, row)],
            *_next_of_one(results, row.method, "unknown", low),
        )
    sentence, verdict = _calibration(results, row, low)
    sentences += [sentence] * bool(sentence)
    expected, true = expected_and_true(results, row)
    if (optimism := mean_with_interval(expected - true, results.patients())).has_interval:
        side = "too high" if optimism.low > 0 else "too low" if optimism.high < 0 else UNSHOWN
        shown = with_interval(optimism, "dsc", True)
        sentences.append(
            f"The DSC expected without labels is {side} on average: expected minus true {shown}."
        )
    return Answer(
        [*sentences, *_worst_cases(results, row)], *_next_of_one(results, row.method, verdict, low)
    )


def _worst_cases(results: Results, row: Row) -> list[str]:
    """Return a sentence that names the cases with a DSC far below the others, if there are any."""
    table = pd.DataFrame({"DSC": results.of_cases(row, "dsc")}, results.patients().index)
    if results.has("aurc"):
        table["expected"] = expected_and_true(results, row)[0]
    below = table["DSC"].median() - table["DSC"]
    worst = table[below > max(WORSE, SPREADS * below.abs().median())].sort_values("DSC")[:MOST]
    shown = worst.apply(
        lambda of_kind: of_kind.name + " " + of_kind.map(lambda value: number(value, "dsc"))
    )
    named = [
        f"{printable(case)} ({', '.join(texts)})" for case, *texts in shown.itertuples(name=None)
    ]
    return [f"Look first at {listed(named)}."] if named else []


def _calibration(results: Results, row: Row, low: bool) -> tuple[str, str]:
    """Return whether a network is calibrated, as a sentence and a verdict."""
    if not (judged := judge_regions(results, row)):
        return "", "unknown"
    region = max(judged, key=lambda of: [*VERDICTS].index(judged[of].verdict))
    found, verdict = judged[region], judged[region].verdict
    shown = (
        f"confidence {number(found.confidence, 'ece')}, accuracy {number(found.accuracy, 'ece')}"
    )
    text = BUT_LOW if low and verdict in ("none", "slight") else ANSWERS[verdict]
    return text.format(place=PLACES[region], kind=found.kind, shown=shown), verdict


def _next_of_one(results: Results, method: str, verdict: str, low: bool) -> tuple[str, str]:
    """Return what to do next with one network, as a text and commands."""
    if not results.has("ece_predicted"):
        return "Evaluate probabilities.", EVALUATE.format("PROBABILITIES LABELS")
    found = results.evaluations.get(method)
    of_bundle = found is None or found.summary.get("source") == "bundle"
    if low:
        train = f"{BUNDLE.format('')} --ckpt_dir LONGER --max_epochs 200"
        return LONGER, train if of_bundle else EVALUATE.format("BETTER_PREDICTIONS LABELS")
    if verdict == "unknown":
        return "Evaluate more patients.", EVALUATE.format("MORE_PREDICTIONS MORE_LABELS")
    if verdict == "none":
        return "Test patients of another origin.", EVALUATE.format("OTHER_PREDICTIONS OTHER_LABELS")
    again = found is not None and found.summary.get("temperature", 1) != 1
    text = (
        "Fit the temperature again, where structures are"
        if again
        else "Fit a temperature on validation patients"
    )
    folder = shlex.quote(printable(results.folders.get(method, "evaluation")))
    command = (CALIBRATE_BUNDLE if of_bundle else CALIBRATE).format(
        " --region predicted" * again, folder
    )
    return f"{text}, evaluate with the same options, and compare.", command


def conclude_differences(results: Results, reference: str, table: pd.DataFrame) -> Answer:
    """Return which methods have another DSC than the reference, and which have better or worse
    probabilities.

    `table` is that of `calib_components.tools.report.comparison.differences`. Of two methods, the
    one with the lower DSC is not called better for its probabilities, nor is one with a low DSC.
    """
    plain = table[(table["temperature"] == WITHOUT) & (table["reference_temperature"] == WITHOUT)]
    found = {(record["method"], record["measure"]): record for record in plain.to_dict("records")}
    dsc = {
        name: float(mean_of_defined(results.of_cases(Row(name), "dsc"))) for name in results.methods
    }
    segments = {name: _change(found[name, "dsc"], LOSS) for name in dsc if name != reference}
    told: dict[str, dict[str, str]] = {
        kind: {} for kind in ("Lower", "Higher", "Better", "Worse", "Untold")
    }
    for name, change in segments.items():
        if change:
            told["Higher" if change > 0 else "Lower"][name] = _about(found, dsc, name, ["dsc"])
        praised, blamed = change >= 0 and dsc[name] >= LOW, change <= 0
        for kind, sign in (
            ("Better" if praised else "Untold", 1),
            ("Worse" if blamed else "Untold", -1),
        ):
            if measures := [
                m for m in DECIDING if (name, m) in found and _change(found[name, m]) == sign
            ]:
                told[kind][name] = _about(found, dsc, name, measures)
    texts = {
        kind: listed([results.labels[name] + text for name, text in of.items()])
        for kind, of in told.items()
    }
    label, count, patients = (
        results.labels[reference],
        results.count(),
        results.patients().nunique(),
    )
    base = f"{label} ({number(dsc[reference], 'dsc')})"
    parts = [f"{kind} DSC than {base}: {texts[kind]}" for kind in ("Lower", "Higher") if told[kind]]
    if not parts:
        alone = "".join(
            f": {results.labels[name]}{_about(found, dsc, name, ['dsc'])}" for name in segments
        )
        parts = [f"No DSC is clearly different from that of {base}{alone * (len(segments) == 1)}"]
    sentences = ["; ".join(parts) + "."]
    parts = [
        f"{kind} NLL or ECE than {label}: {texts[kind]}"
        for kind in ("Better", "Worse")
        if told[kind]
    ]
    if not results.has("nll_predicted"):
        parts = ["There are no probabilities in common: calibration is not compared"]
    elif patients < FEWEST_PATIENTS:
        parts = [f"{count}: too few to tell whose NLL or ECE is better"]
    elif not parts and not told["Untold"]:
        smallest = smallest_p_value(patients, len(segments) * len(DECIDING))
        by_flips = min(map(results.seeds, map(Row, dsc))) == 1 and smallest >= SIGNIFICANT
        why = f", and none can: p-values of so few are {smallest:.3f} or more" * by_flips
        parts = [f"No NLL or ECE differs significantly on these {count}{why}"]
    sentences += ["; ".join(parts) + "."] * bool(parts)
    if told["Better"] and len(dsc) == 2:
        measures = [measure for measure in ("nll_all", "ece_all") if results.has(measure)]
        pairs = {
            m: [results.of_cases(Row(name), m) for name in (reference, *segments)] for m in measures
        }
        counts = [
            f"{heading(m, arrow=False)} is better in {(new < old).sum()}"
            for m, (old, new) in pairs.items()
        ]
        sentences.append(f"Of {len(results.patients())} cases, {listed(counts)}.")
    if told["Lower"] or told["Untold"] or max(dsc.values()) < LOW:
        sentences.append("A lower NLL or ECE does not make up for a low DSC.")
    best = next(iter(told["Better"] or told["Higher"]), reference)
    low, verdict = dsc[best] < LOW, "unknown"
    if results.evaluations and results.has("ece_predicted") and not low:
        sentence, verdict = _calibration(results, Row(best), low)
        sentences += [f"{results.labels[best]}: {sentence}"] * bool(sentence)
    return Answer(sentences, *_next_of_several(results, best, verdict, low))


def _change(record: Record, limit: float = np.inf) -> int:
    """Return 1 for a value that is better than the reference's, -1 for a worse one, 0 if that is
    not clear.
    """
    estimate = estimate_of(record)
    if not is_significant(estimate, record["p_value_holm"]) and not abs(estimate.mean) > limit:
        return 0
    return 1 if (estimate.mean > 0) == higher_is_better(record["measure"]) else -1


def _about(
    found: Mapping[tuple[str, str], Record],
    dsc: Mapping[str, float],
    name: str,
    measures: Sequence[str],
) -> str:
    """Return by what a method differs, of two methods with intervals and p-values."""
    texts = []
    for measure in measures:
        record, text = found[name, measure], heading(measure, arrow=False)
        notes = [
            with_interval(estimate_of(record), measure, True),
            *p_text(record["p_value_holm"]),
        ] * (len(dsc) == 2)
        texts.append(", ".join([number(dsc[name], "dsc") if measure == "dsc" else text, *notes]))
    return f" ({'; '.join(texts)})"


def _next_of_several(results: Results, best: str, verdict: str, low: bool) -> tuple[str, str]:
    """Return what to do next after a comparison, as a text and commands."""
    few, label = results.patients().nunique() < FEWEST_PATIENTS, results.labels[best]
    if results.evaluations:
        return _next_of_one(results, best, verdict, low)
    if low:
        return LONGER, f"{COMPARE} --max_epochs 200"
    if few:
        return "Test every patient, by cross-validation.", f"{COMPARE} --folds 5"
    if min(results.seeds(Row(name)) for name in results.methods) == 1:
        return (
            "Repeat the trainings: one of each does not tell a loss from chance.",
            f"{COMPARE} --seeds 0,1,2",
        )
    if not results.test_sets:
        return "Test patients of another origin.", f"{COMPARE} --evaluate_on OTHER=PREPARED_OTHER"
    return f"Train with {label} on your data.", BUNDLE.format(",'BUNDLE/configs/losses/LOSS.yaml'")
