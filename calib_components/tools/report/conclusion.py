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
from calib_components.tools.report.data import Context, Results
from calib_components.tools.report.page import Answer
from calib_components.tools.report.statistics import MIN_PATIENTS, mean_of_defined
from calib_components.tools.report.tables import (
    DECIDING,
    LOSS,
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
MAX_NAMED = 3  # cases
OF_DSC = ("dsc",)
PLACES = {"predicted": "where a structure is predicted", "all": "over all voxels"}
ANSWERS = {  # by verdict
    "none": "No miscalibration is shown {place}: {shown}.",
    "slight": "It is slightly {kind} {place}: {shown}.",
    "unknown": "Too few patients to tell whether it is calibrated ({shown} {place}).",
    "shown": "It is not well calibrated: {kind} {place} ({shown}).",
}
MEAN_DSC = "The mean DSC of {patients} is {dsc}."
MEAN_DSC_IS_LOW = "The mean DSC of {patients} is {dsc}, which is low."
BUT_LOW = "Calibration does not make up for that ({shown} {place})."
NO_PROBABILITIES = "Label maps have no probabilities: whether it is calibrated is unknown."
OPTIMISM = "The DSC expected without labels is {side} on average: expected minus true {shown}."
UNSHOWN = "not shown to be too high or too low"
NOT_COMPARED = "There are no probabilities in common: calibration is not compared."
TOO_FEW = "{patients}: too few to tell whose NLL or ECE is better."
NONE_DIFFERS = "No NLL or ECE differs significantly on these {patients}."
NO_SUBSTITUTE = "A lower NLL or ECE does not make up for a low DSC."
EVALUATE = "calib-components evaluate_predictions {} --out evaluation_next"
BUNDLE = (
    "python -m monai.bundle run --bundle_root BUNDLE --config_file"
    " \"['BUNDLE/configs/train.yaml'{overlay}]\""
)
CALIBRATE = (
    "calib-components calibrate_predictions VALIDATION VALIDATION_LABELS --apply_to PREDICTIONS"
    " --out scaled{region}\ncalib-components evaluate_predictions scaled LABELS --out"
    " evaluation_scaled\ncalib-components report {folder} evaluation_scaled --out"
    " temperature_report"
)
CALIBRATE_BUNDLE = BUNDLE.format(overlay=",'BUNDLE/configs/calibrate.yaml'") + "{region}"
TRAIN_LONGER = BUNDLE.format(overlay="") + " --ckpt_dir LONGER --max_epochs 200"
LONGER = (
    "Improve the segmentation: train longer (losses without a Dice term need it most), on scans of"
    " this origin, and ignore padded voxels."
)
FIT = "Fit a temperature on validation patients, evaluate with the same options, and compare."
FIT_AGAIN = (
    "Fit the temperature again, where structures are, evaluate with the same options, and compare."
)


def conclude_one(results: Results) -> Answer:
    """Return what the one network is like, and what to do next."""
    sentences, verdict = describe_one(results)
    return Answer(sentences, *_next_step(results, results.names[0], verdict))


def describe_one(results: Results) -> tuple[list[str], str]:
    """Return how well the one network segments, whether it is calibrated, and how right its
    expected DSC is, in sentences, and the verdict of its calibration.
    """
    (name,) = results.names
    dsc = results.mean(name, "dsc")
    template = MEAN_DSC_IS_LOW if dsc.mean < LOW else MEAN_DSC
    mean = template.format(patients=results.count, dsc=with_interval(dsc, "dsc"))
    sentence, optimism, verdict = NO_PROBABILITIES, "", "unknown"
    if results.has("ece_predicted"):
        sentence, verdict = describe_calibration(results, name)
        optimism = _optimism(results, name)
    sentences = [mean, sentence, optimism, _worst_cases(results, name)]
    return [*filter(None, sentences)], verdict


def _optimism(results: Results, name: str) -> str:
    """Return whether the DSC that is expected without labels is right; empty with few patients."""
    optimism = results.mean(name, "optimism")
    if not optimism.has_interval:
        return ""
    shown = with_interval(optimism, "dsc", True)
    if optimism.low > 0:
        return OPTIMISM.format(side="too high", shown=shown)
    if optimism.high < 0:
        return OPTIMISM.format(side="too low", shown=shown)
    return OPTIMISM.format(side=UNSHOWN, shown=shown)


def _worst_cases(results: Results, name: str) -> str:
    """Return a sentence that names the cases with a DSC far below the others; empty without."""
    measures = {"DSC": "dsc"}
    if results.has("aurc"):
        measures["expected"] = "expected_dsc"
    table = pd.DataFrame(
        {title: results.values(name, measure) for title, measure in measures.items()},
        results.patients.index,
    )
    below = table["DSC"].median() - table["DSC"]
    worst = table[below > max(WORSE, SPREADS * below.abs().median())].sort_values("DSC")
    named = []
    for case, *values in worst[:MAX_NAMED].itertuples(name=None):
        pairs = zip(measures, values, strict=True)
        texts = [f"{title} {number(value, 'dsc')}" for title, value in pairs]
        named.append(f"{printable(case)} ({', '.join(texts)})")
    return f"Look first at {listed(named)}." if named else ""


def describe_calibration(results: Results, name: str) -> tuple[str, str]:
    """Return whether a network is calibrated, as a sentence and a verdict."""
    judgements = judge_regions(results, name)
    if not judgements:
        return "", "unknown"
    severity = [*VERDICTS]
    region = max(judgements, key=lambda each: severity.index(judgements[each].verdict))
    judgement = judgements[region]
    template = ANSWERS[judgement.verdict]
    is_low = _mean_dsc(results, name) < LOW
    if is_low and judgement.verdict in ("none", "slight"):
        template = BUT_LOW
    confidence, accuracy = (
        number(mean, "ece") for mean in (judgement.confidence, judgement.accuracy)
    )
    shown = f"confidence {confidence}, accuracy {accuracy}"
    sentence = template.format(place=PLACES[region], kind=judgement.kind, shown=shown)
    return sentence, judgement.verdict


def _next_step(results: Results, name: str, verdict: str) -> tuple[str, str]:
    """Return what to do next with one network, as a text and commands."""
    if not results.has("ece_predicted"):
        return "Evaluate probabilities.", EVALUATE.format("PROBABILITIES LABELS")
    evaluation = results.evaluations[name]
    is_of_bundle = evaluation.summary.get("source") == "bundle"
    if _mean_dsc(results, name) < LOW:
        better = EVALUATE.format("BETTER_PREDICTIONS LABELS")
        return LONGER, TRAIN_LONGER if is_of_bundle else better
    if verdict == "unknown":
        return "Evaluate more patients.", EVALUATE.format("MORE_PREDICTIONS MORE_LABELS")
    if verdict == "none":
        return "Test patients of another origin.", EVALUATE.format("OTHER_PREDICTIONS OTHER_LABELS")
    text, region = FIT, ""
    if evaluation.summary.get("temperature", 1) != 1:
        text, region = FIT_AGAIN, " --region predicted"
    template = CALIBRATE_BUNDLE if is_of_bundle else CALIBRATE
    folder = shlex.quote(printable(results.folders[name]))
    return text, template.format(region=region, folder=folder)


def conclude_several(context: Context) -> Answer:
    """Return which evaluations have another DSC than the reference, which have better or worse
    probabilities, and whether the best one is calibrated.
    """
    results = context.results
    sentences, best = describe_differences(context)
    verdict = "unknown"
    if results.has("ece_predicted") and _mean_dsc(results, best) >= LOW:
        sentence, verdict = describe_calibration(results, best)
        if sentence:
            sentences.append(f"{results.labels[best]}: {sentence}")
    return Answer(sentences, *_next_step(results, best, verdict))


def describe_differences(context: Context) -> tuple[list[str], str]:
    """Return the differences to the reference in words, and the name of the best evaluation.

    Of two evaluations, the one with the lower DSC is not called better for its probabilities, nor
    is one with a low DSC.
    """
    comparison = Comparison(context)
    sentences = [comparison.dsc_sentence(), comparison.probability_sentence()]
    is_low = max(comparison.dsc.values()) < LOW
    if comparison.lower or comparison.unpraised or is_low:
        sentences.append(NO_SUBSTITUTE)
    best = [*(comparison.better or comparison.higher), context.reference][0]
    return [*filter(None, sentences)], best


class Comparison:
    """Which evaluations differ from the reference, and in what.

    Attributes:
        higher, lower: Evaluations with another DSC than the reference.
        better, worse: Measures of probabilities by evaluation.
        unpraised: Evaluations that are better in probabilities and have a lower or a low DSC, or
            worse and have a higher DSC.
    """

    def __init__(self, context: Context) -> None:
        self.results, self.reference = context.results, context.reference
        self.records = {
            (record["name"], record["measure"]): record
            for record in context.differences.to_dict("records")
        }
        self.dsc = {name: _mean_dsc(self.results, name) for name in self.results.names}
        self.others = [name for name in self.dsc if name != self.reference]
        self.higher: list[str] = []
        self.lower: list[str] = []
        self.better: dict[str, list[str]] = {}
        self.worse: dict[str, list[str]] = {}
        self.unpraised: set[str] = set()
        for name in self.others:
            self._add(name, _change(self.records[name, "dsc"], LOSS))

    def _add(self, name: str, dsc_change: int) -> None:
        """Add an evaluation to what it is, given whether its DSC is higher (1) or lower (-1)."""
        if dsc_change > 0:
            self.higher.append(name)
        elif dsc_change < 0:
            self.lower.append(name)
        better, worse = self._changed(name, 1), self._changed(name, -1)
        is_praised, is_blamed = dsc_change >= 0 and self.dsc[name] >= LOW, dsc_change <= 0
        if better:
            self._add_measures(name, better, self.better if is_praised else None)
        if worse:
            self._add_measures(name, worse, self.worse if is_blamed else None)

    def _add_measures(
        self, name: str, measures: list[str], kind: dict[str, list[str]] | None
    ) -> None:
        if kind is None:
            self.unpraised.add(name)
        else:
            kind[name] = measures

    def _changed(self, name: str, sign: int) -> list[str]:
        """Return the measures of probabilities that are better (1) or worse (-1)."""
        records = [self.records[name, each] for each in DECIDING if (name, each) in self.records]
        return [record["measure"] for record in records if _change(record) == sign]

    def dsc_sentence(self) -> str:
        """Return which evaluations have a lower or higher DSC."""
        base = f"{self.results.labels[self.reference]} ({number(self.dsc[self.reference], 'dsc')})"
        kinds = {"Lower": self.lower, "Higher": self.higher}
        parts = [
            f"{kind} DSC than {base}: {self._listed(dict.fromkeys(names, OF_DSC))}"
            for kind, names in kinds.items()
            if names
        ]
        if parts:
            return "; ".join(parts) + "."
        if len(self.others) == 1:
            base = f"{base}: {self._listed(dict.fromkeys(self.others, OF_DSC))}"
        return f"No DSC is clearly different from that of {base}."

    def probability_sentence(self) -> str:
        """Return which evaluations have better or worse probabilities; empty if none is praised."""
        if not self.results.has("nll_predicted"):
            return NOT_COMPARED
        if self.results.patients.nunique() < MIN_PATIENTS:
            return TOO_FEW.format(patients=self.results.count)
        label = self.results.labels[self.reference]
        parts = [
            f"{kind} NLL or ECE than {label}: {self._listed(measures)}"
            for kind, measures in (("Better", self.better), ("Worse", self.worse))
            if measures
        ]
        if parts:
            return "; ".join(parts) + "."
        if self.unpraised:
            return ""
        return NONE_DIFFERS.format(patients=self.results.count)

    def _listed(self, measures: Mapping[str, Sequence[str]]) -> str:
        """Return evaluations and by what they differ, as text."""
        names = [
            f"{self.results.labels[name]} ({'; '.join(self._about(name, each) for each in differing)})"
            for name, differing in measures.items()
        ]
        return listed(names)

    def _about(self, name: str, measure: str) -> str:
        """Return by what an evaluation differs; of two, with the interval and the p-value."""
        text = heading(measure, arrow=False)
        if measure == "dsc":
            text = number(self.dsc[name], "dsc")
        if len(self.others) > 1:
            return text
        record = self.records[name, measure]
        difference = with_interval(estimate_of(record), measure, True)
        return ", ".join([text, difference, *p_text(record["p_value_holm"])])


def _mean_dsc(results: Results, name: str) -> float:
    return float(mean_of_defined(results.values(name, "dsc")))


def _change(record: Record, limit: float = np.inf) -> int:
    """Return 1 for a value that is better than the reference's, -1 for a worse one, 0 if that is
    not clear.
    """
    estimate = estimate_of(record)
    if not is_significant(estimate, record["p_value_holm"]) and not abs(estimate.mean) > limit:
        return 0
    return 1 if (estimate.mean > 0) == higher_is_better(record["measure"]) else -1
