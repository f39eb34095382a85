"""What to do next with a network, from its evaluation and from what was done before.

The advice ends: no step is proposed twice. A fit of all voxels comes first, then one of the voxels
where a structure is predicted; after that, labels of other patients are needed.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from calib_components.errors import printable
from calib_tools.report.calibration import Judgement
from calib_workflows.evaluation_files import Evaluation
from calib_workflows.options import COMMAND, as_options

LOW = 0.7  # a mean DSC below this is low
MAX_FURTHER = 200  # patients
ENOUGH = 16  # patients of a fit
PREDICTED = "predicted"  # the region of the second fit

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
    "bundle": "Fit a temperature on validation patients, evaluate with the same options, and"
    " compare.",
    "predictions": "Fit a temperature on float32 probabilities of validation patients, evaluate"
    " with the same options, and compare.",
}
FIT_AGAIN = (
    "Fit the temperature again, where structures are predicted, evaluate with the same options, and"
    " compare."
)
UNLIKE = (
    "Label about {count} more patients like these, and fit a temperature on them: with what was"
    " fitted ({done}), it is still {kind}."
)
# Arguments that name places, and what stands for those that are not known
PLACES = {
    "predictions": "PREDICTIONS",
    "members": "",
    "labels": "LABELS",
    "raters": "",
    "validation": "VALIDATION",
    "validation_members": "",
    "validation_labels": "VALIDATION_LABELS",
    "validation_raters": "",
}
# Options of an evaluation that a fit does not take
ALONE = ("split", "shard", "skip_existing", "overwrite")
EVALUATE_COMMAND = "calib-components evaluate_predictions"
CALIBRATE_COMMAND = "calib-components calibrate_predictions"


class Step(NamedTuple):
    """A text, and commands in lines."""

    text: str
    commands: str = ""


def next_step(
    evaluation: Evaluation, folder: str, dsc: float, judgements: Mapping[str, Judgement]
) -> Step:
    """Return what remains to be done with one network.

    Args:
        evaluation: The evaluation, whose summary says what was calibrated before.
        folder: Its folder.
        dsc: Mean DSC.
        judgements: Whether each region is calibrated, see `judge_regions`.
    """
    predicted = judgements.get(PREDICTED)
    if dsc < LOW:
        return Step(SEGMENT)
    if predicted is None:
        return Step(EVALUATE)
    if predicted.verdict == "undecided":
        template = MORE if predicted.further_patients <= MAX_FURTHER else MANY_MORE
        return Step(template.format(count=min(predicted.further_patients, MAX_FURTHER)))
    done, whole = evaluation.summary.get("calibration"), judgements["all"]
    if predicted.verdict != "shown":
        if done is None or whole.verdict != "shown":
            return Step(NOTHING)
        return Step(NOTHING + NO_SINGLE.format(kind=whole.kind, gap=abs(whole.gap.mean)))
    if done is None:
        source = evaluation.summary.get("source", "predictions")
        return Step(FIT_FIRST[source], _commands(evaluation.summary, folder))
    if done["calibrator"] == "temperature" and done["region"] != PREDICTED:
        return Step(FIT_AGAIN, _commands(evaluation.summary, folder, PREDICTED))
    text = f"{done['calibrator']}, region {done['region']}"
    return Step(UNLIKE.format(count=ENOUGH, done=text, kind=predicted.kind))


def latest_calibration(summaries: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return the name of the evaluation of the same network as `name` that was calibrated last: a
    fit of all voxels comes before any other.
    """

    def stage(other: str) -> int:
        done = summaries[other].get("calibration")
        if done is None:
            return 0
        return 1 if (done["calibrator"], done["region"]) == ("temperature", "all") else 2

    network = _network(summaries[name])
    same = [other for other in summaries if network and _network(summaries[other]) == network]
    return max([name, *same], key=stage)


def _network(summary: Mapping[str, Any]) -> list[str]:
    """Return what tells the network of an evaluation from others; nothing if it is not known."""
    done = summary.get("calibration") or {}
    known = {**summary.get("arguments", {}), **done.get("arguments", {})}
    if "members" in known:
        known.pop("predictions", None)  # their calibrated average
    names = ("predictions", "members", "bundle_root", "ckpt_dir")
    return [f"{name} {known[name]}" for name in names if name in known]


def _commands(summary: Mapping[str, Any], folder: str, region: str = "") -> str:
    """Return the commands that fit, evaluate again, and compare, with the arguments of the
    evaluation.
    """
    arguments = summary.get("arguments", {})
    if "pairs" in arguments:  # the names of calibrated predictions are not in that file
        return ""
    of_source = _for_bundle if summary.get("source") == "bundle" else _for_predictions
    done = (summary.get("calibration") or {}).get("arguments", {})
    lines = of_source({**arguments, **done}, folder, region)
    return "\n".join(printable(line) for line in lines)


def _for_bundle(arguments: Mapping[str, str], folder: str, region: str) -> list[str]:
    files = arguments.get("config_file", "['configs/train.yaml','configs/evaluate.yaml']")
    files = re.sub(r",'[^']*multi_gpu_evaluate.yaml'", "", files)  # one process is enough
    shared = {name: value for name, value in arguments.items() if name not in ALONE}
    fit = {**shared, "config_file": files.replace("evaluate.yaml", "calibrate.yaml")}
    suffix = f"_{region}" if region else ""
    after = f"{folder.removesuffix('_calibrated')}_calibrated{suffix}"
    again = {**arguments, "config_file": files, "output_dir": after}
    return [
        f"{COMMAND} {as_options(fit | _region_option(region))}",
        f"{COMMAND} {as_options(again)}",
        _report(folder, after),
    ]


def _for_predictions(arguments: Mapping[str, str], folder: str, region: str) -> list[str]:
    """Return commands for saved predictions; those of the validation cases have names in capitals
    where they are not known.
    """
    shared = {name: value for name, value in arguments.items() if name not in PLACES}
    known = {**PLACES, **arguments}
    source = known["members"] or known["predictions"]
    if not Path(source).name:  # such as "."
        source = os.path.realpath(source)
    suffix = f"_{region}" if region else ""
    before = f"{folder.removesuffix('_scaled')}_average" if known["members"] else source
    scaled, after = (
        f"{place.removesuffix('_scaled')}_scaled{suffix}" for place in (before, folder)
    )
    labels = ["--raters", known["raters"]] if known["raters"] else [known["labels"]]
    fit = [*_validation(known), "--apply_to", source, "--out", scaled]
    again = [scaled, *labels, "--out", after]
    return [
        f"{CALIBRATE_COMMAND} {shlex.join(fit)} {as_options(shared | _region_option(region))}",
        f"{EVALUATE_COMMAND} {shlex.join(again)} {as_options(shared)}",
        _report(folder, after),
    ]


def _validation(known: Mapping[str, str]) -> list[str]:
    """Return the words that name predictions and labels of validation cases."""
    predictions, labels = [known["validation"]], [known["validation_labels"]]
    if known["members"]:
        count = len(known["members"].split(","))
        unknown = ",".join(f"VALIDATION{number}" for number in range(1, 1 + count))
        predictions = ["--members", known["validation_members"] or unknown]
    if known["raters"]:  # whose labels without a prediction are left out
        labels = ["--raters", known["validation_raters"] or known["raters"]]
    return [*predictions, *labels]


def _region_option(region: str) -> dict[str, str]:
    return {"region": region} if region else {}


def _report(before: str, after: str) -> str:
    return shlex.join(["calib-components", "report", before, after, "--out", f"{after}_compared"])
