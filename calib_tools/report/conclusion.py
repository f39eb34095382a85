"""What a report begins with: the answer to what was asked, in sentences whose numbers are in its
tables, and what to do next.

The advice ends: no step is proposed twice. A fit of all voxels comes first, then one of the voxels
where a structure is predicted; after that, labels of other patients are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from calib_components.errors import printable
from calib_components.quality.ranking import BAD
from calib_tools.report.calibration import Judgement, judge_regions
from calib_tools.report.comparison import compare, describe_differences
from calib_tools.report.data import Context, Results
from calib_tools.report.objects import describe_objects
from calib_tools.report.raters import describe_raters
from calib_tools.report.statistics import MIN_PATIENTS
from calib_workflows.pages.numbers import number, to_cell
from calib_workflows.pages.page import Answer

MAX_FURTHER = 200  # patients
FIT_PATIENTS = 16  # patients that a fit needs
# A case is named whose DSC is below the median by both
WORSE = 0.2
DEVIATIONS = 5  # median absolute ones
MAX_NAMED = 3  # cases
JUDGED = "Where it predicts a structure, it is {text}: confidence minus accuracy is {gap} points."
UNDECIDED = (
    "Where it predicts a structure, whether it is calibrated is undecided: confidence minus"
    " accuracy is {gap} points."
)
BENT = (
    " It is too confident at some confidences and not confident enough at others: the ECE there is"
    " {ece}."
)
DSC_IS_LOW = "The mean DSC is below {bad}: calibration does not make up for that."
NO_PROBABILITIES = (
    "Without probabilities of predicted structures, whether it is calibrated is unknown."
)
TOO_FEW = (
    "Intervals other than that of confidence minus accuracy need six patients (here: {count})."
)
UNLABELLED = "{count} labels lack {name}, which is predicted there: was it labelled in them?"
LOOK_FIRST = "Look first at {cases}."
SEGMENT = (
    "Find out whether these images are unlike the training's: evaluate patients of the training's"
    " origin that the network has not seen. If their DSC is low, too, it needs more training"
    " (losses without a Dice term need it most); if not, a few labelled patients like these tell"
    " whether a calibrator helps (docs/another_scanner.md of the repository)."
)
EVALUATE = "Evaluate probabilities, which tell whether it is calibrated."
NOTHING = "Nothing on images like these: where it predicts a structure, it is calibrated."
BOTH = (
    "Rely on its mean confidence, not on single values: one temperature cannot lower some"
    " confidences and raise others."
)
NO_SINGLE = (
    " Over all voxels, it is {kind} by {gap:.3f}: no single temperature fits both regions. Keep"
    " this one for the confidence of what is predicted; take one of all voxels for volumes."
)
MORE = (
    "If the mean stays the same, the interval would {target} with about {count} more patients like"
    " these."
)
MANY_MORE = (
    "Even if the mean stays the same, more than {count} more patients like these are needed for the"
    " interval to {target}."
)
SPREAD_UNKNOWN = "Evaluate six patients or more: fewer do not tell how much patients differ."
FIT = (
    "{tool} compares calibrators on validation patients, each left out, and applies the one that"
    " helps them. Whether it closes this gap, which is another goal, an evaluation with it says,"
    " with the same options."
)
TOOLS = {  # by the source of the probabilities
    "bundle": "configs/calibrate.yaml",
    "predictions": "On float32 probabilities, calibrate_predictions",
}
FIT_AGAIN = (
    "The temperature was fitted to other voxels than those of this gap. Fit it where structures"
    " are predicted (--region predicted --calibrator temperature), evaluate with the same options,"
    " and compare: the gap may close while the NLL over all voxels, which the advice heeds, rises."
)
UNLIKE = (
    "Label about {count} more patients like these, and calibrate it on them: with what was fitted"
    " ({done}), it is still {kind}. Those that are left out say whether it helps."
)


def conclude(context: Context) -> Answer:
    """Return what was asked for, whether each network is calibrated and, of one, what to do next.

    Of one network, what was asked for is how many objects are found, and whether it agrees with
    raters; of several, which is better.
    """
    results = context.results
    if len(results.names) > 1:
        reference = results.names[0]
        sentences = describe_differences(results, compare(results, reference), reference)
        for name, label in results.labels.items():
            sentence = describe_calibration(results, name)
            sentences.append(f"{label}: {sentence[0].lower()}{sentence[1:]}")
        return Answer(sentences)
    (name,) = results.names
    sentences = [*describe_objects(results), *describe_raters(results), *describe_one(results)]
    if results.patients.nunique() < MIN_PATIENTS:
        sentences.append(TOO_FEW.format(count=results.count))
    dsc, summary = results.cases[name]["dsc"].mean(), results.evaluations[name].summary
    return Answer(sentences, next_step(summary, dsc, judge_regions(results, name)))


def describe_one(results: Results) -> list[str]:
    """Return whether the one network segments badly, whether it is calibrated, and which cases to
    look at, in sentences.
    """
    (name,) = results.names
    sentences = [describe_calibration(results, name)]
    if results.cases[name]["dsc"].mean() < BAD:
        sentences.insert(0, DSC_IS_LOW.format(bad=BAD))
    sentences += _unlabelled(results, name)
    if worst := _worst_cases(results, name):
        sentences.append(LOOK_FIRST.format(cases=", ".join(worst)))
    return sentences


def _unlabelled(results: Results, name: str) -> list[str]:
    """Return which structures some labels lack that the network predicts in most cases, and there,
    too.
    """
    if name not in results.evaluations:  # a comparison of trainings
        return []
    cases, summary = results.cases[name], results.evaluations[name].summary
    lacking = Counter(entry["structure"] for entry in summary["spurious"])
    missed = Counter(entry["structure"] for entry in summary["missed"])
    sentences = []
    for structure, count in lacking.items():
        labelled = (cases[f"true_volume_{structure}"] > 0).sum()
        if labelled - missed[structure] + count > len(cases) / 2:
            sentences.append(UNLABELLED.format(count=count, name=printable(structure)))
    return sentences


def _worst_cases(results: Results, name: str) -> list[str]:
    """Return the cases with a DSC far below the others, and their DSC."""
    dsc = results.cases[name]["dsc"]
    below = dsc.median() - dsc
    limit = max(WORSE, DEVIATIONS * below.abs().median())
    worst = dsc[below > limit].nsmallest(MAX_NAMED)
    return [f"{printable(case)} (DSC {number(value, 'dsc')})" for case, value in worst.items()]


def describe_calibration(results: Results, name: str) -> str:
    """Return whether a network is calibrated where it predicts a structure, in words."""
    judgement = judge_regions(results, name).get("predicted")
    if judgement is None:
        return NO_PROBABILITIES
    mean, low, high = judgement.percent
    record = {"measure": "gap", "unit": "points", "mean": mean, "low": low, "high": high}
    template = UNDECIDED if judgement.verdict == "undecided" else JUDGED
    sentence = template.format(text=judgement.text, gap=to_cell(record))
    if judgement.is_bent:
        sentence += BENT.format(ece=number(judgement.pooled_ece, "ece"))
    return sentence


def next_step(summary: Mapping[str, Any], dsc: float, judgements: Mapping[str, Judgement]) -> str:
    """Return what remains to be done with one network.

    Args:
        summary: That of its evaluation, which says what was calibrated before.
        dsc: Mean DSC.
        judgements: Whether each region is calibrated, see `judge_regions`.
    """
    predicted = judgements.get("predicted")
    if dsc < BAD:
        return SEGMENT
    if predicted is None:
        return EVALUATE
    if predicted.verdict == "undecided":
        return _ask_for_more(predicted)
    done, whole = summary.get("calibration"), judgements["all"]
    if predicted.verdict != "shown":
        if predicted.is_bent:
            return BOTH
        if done is None or whole.verdict != "shown":
            return NOTHING
        return NOTHING + NO_SINGLE.format(kind=whole.kind, gap=abs(whole.gap.mean))
    if done is None:
        return FIT.format(tool=TOOLS[summary.get("source", "predictions")])
    if done["calibrator"] == "temperature" and done["region"] != "predicted":
        return FIT_AGAIN
    text = f"{done['calibrator']}, region {done['region']}"
    return UNLIKE.format(count=FIT_PATIENTS, done=text, kind=predicted.kind)


def _ask_for_more(judgement: Judgement) -> str:
    """Return how many more patients would decide whether a network is calibrated."""
    count, template = judgement.further_patients, MORE
    if judgement.gap.cases < MIN_PATIENTS:
        template = SPREAD_UNKNOWN
    elif count > MAX_FURTHER:
        template = MANY_MORE
    return template.format(count=min(count, MAX_FURTHER), target=judgement.target)
