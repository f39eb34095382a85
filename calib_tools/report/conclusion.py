"""What a report begins with: a few sentences drawn from its numbers, and what to do next.

The advice ends: no step is proposed twice. A fit of all voxels comes first, then one of the voxels
where a structure is predicted; after that, labels of other patients are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calib_components.errors import printable
from calib_components.quality.ranking import BAD
from calib_tools.report.calibration import Judgement, judge_regions
from calib_tools.report.data import Context, Results
from calib_workflows.pages.numbers import number
from calib_workflows.pages.page import Answer

MAX_FURTHER = 200  # patients
FIT_PATIENTS = 16  # patients that a fit needs
# A case is named whose DSC is below the median by both
WORSE = 0.2
DEVIATIONS = 5  # median absolute ones
MAX_NAMED = 3  # cases
UNDECIDED = "Whether it is calibrated is undecided."
BENT = (
    " It is too confident at some confidences and not confident enough at others: the ECE there is"
    " {ece}."
)
DSC_IS_LOW = "The mean DSC is low: calibration does not make up for that."
NO_PROBABILITIES = (
    "Without probabilities of predicted structures, whether it is calibrated is unknown."
)
LOOK_FIRST = "Look first at {cases}."
SEGMENT = (
    "Improve the segmentation first: train longer (losses without a Dice term need it most), on"
    " scans of this origin, and ignore padded voxels."
)
EVALUATE = "Evaluate probabilities."
NOTHING = "Nothing on images like these: where it predicts a structure, it is calibrated."
NO_SINGLE = (
    " Over all voxels, it is {kind} by {gap:.3f}: no single temperature fits both regions. Keep"
    " this one for the confidence of what is predicted; take one of all voxels for volumes."
)
MORE = "Label about {count} more patients and evaluate them: that would tell."
MANY_MORE = "Label other patients: more than {count} more would be needed to tell."
FIT_FIRST = {  # by the source of the probabilities
    "bundle": "Fit a temperature on validation patients with configs/calibrate.yaml, evaluate with"
    " the same options, and compare.",
    "predictions": "Fit a temperature on float32 probabilities of validation patients with"
    " calibrate_predictions, evaluate with the same options, and compare.",
}
FIT_AGAIN = (
    "Fit the temperature again, where structures are predicted (--region predicted), evaluate with"
    " the same options, and compare."
)
UNLIKE = (
    "Label about {count} more patients like these, and fit a temperature on them: with what was"
    " fitted ({done}), it is still {kind}."
)


def conclude(context: Context) -> Answer:
    """Return what each network is like and, of one, what to do next."""
    results = context.results
    if len(results.names) > 1:
        sentences = [
            f"{label}: {describe_calibration(results, name)}"
            for name, label in results.labels.items()
        ]
        return Answer(sentences)
    (name,) = results.names
    dsc, summary = results.cases[name]["dsc"].mean(), results.evaluations[name].summary
    return Answer(describe_one(results), next_step(summary, dsc, judge_regions(results, name)))


def describe_one(results: Results) -> list[str]:
    """Return whether the one network segments badly, whether it is calibrated, and which cases to
    look at, in sentences.
    """
    (name,) = results.names
    sentences = [describe_calibration(results, name)]
    if results.cases[name]["dsc"].mean() < BAD:
        sentences.insert(0, DSC_IS_LOW)
    if worst := _worst_cases(results, name):
        sentences.append(LOOK_FIRST.format(cases=", ".join(worst)))
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
    if judgement.verdict == "undecided":
        return UNDECIDED
    bent = BENT.format(ece=number(judgement.pooled_ece, "ece")) if judgement.is_bent else ""
    return f"It is {judgement.text}.{bent}"


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
        template = MORE if predicted.further_patients <= MAX_FURTHER else MANY_MORE
        return template.format(count=min(predicted.further_patients, MAX_FURTHER))
    done, whole = summary.get("calibration"), judgements["all"]
    if predicted.verdict != "shown":
        if done is None or whole.verdict != "shown":
            return NOTHING
        return NOTHING + NO_SINGLE.format(kind=whole.kind, gap=abs(whole.gap.mean))
    if done is None:
        return FIT_FIRST[summary.get("source", "predictions")]
    if done["calibrator"] == "temperature" and done["region"] != "predicted":
        return FIT_AGAIN
    text = f"{done['calibrator']}, region {done['region']}"
    return UNLIKE.format(count=FIT_PATIENTS, done=text, kind=predicted.kind)
