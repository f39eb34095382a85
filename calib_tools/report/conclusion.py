"""What a report begins with: a few sentences drawn from its numbers, and what to do next.

The DSC and its loss come first: a network that segments badly is not praised for its calibration.
Then the NLL over all voxels decides which network is better.
"""

from __future__ import annotations

import pandas as pd

from calib_components.errors import printable
from calib_tools.report.calibration import judge_regions
from calib_tools.report.data import Context, Results
from calib_tools.report.next_step import LOW, Step, latest_calibration, next_step
from calib_tools.report.page import Answer
from calib_tools.report.statistics import mean_of_defined
from calib_tools.report.tables import (
    DECIDING,
    EXPLAINING,
    Record,
    heading,
    higher_is_better,
    is_significant,
    number,
)

# Of DSC: a network that loses more is not called better, whether the loss is significant or not
LOSS = 0.05
# A case is named whose DSC is as far below the median: this, and median absolute deviations
WORSE, SPREADS = 0.2, 5
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
DIFFERS = "{kind} than {reference}: {evaluations}."
NONE_DIFFERS = "No significant difference in {measures} on these {patients}."
NO_SUBSTITUTE = "A lower NLL does not make up for a low DSC."


def conclude(context: Context) -> Answer:
    """Return what the network is like, or how several differ and whether the best one is
    calibrated, and what to do next.
    """
    results, best = context.results, context.reference
    if len(results.names) == 1:
        sentences = describe_one(results)
    else:
        sentences, best = describe_differences(context)
        sentences.append(f"{results.labels[best]}: {describe_calibration(results, best)}")
    return Answer(sentences, *_next_step(results, best))


def describe_one(results: Results) -> list[str]:
    """Return whether the one network segments badly, whether it is calibrated, and which cases to
    look at, in sentences.
    """
    (name,) = results.names
    sentences = [describe_calibration(results, name)]
    if mean_of_defined(results.values(name, "dsc")) < LOW:
        sentences.insert(0, DSC_IS_LOW)
    if worst := _worst_cases(results, name):
        sentences.append(LOOK_FIRST.format(cases=", ".join(worst)))
    return sentences


def _worst_cases(results: Results, name: str) -> list[str]:
    """Return the cases with a DSC far below the others, and their DSC."""
    dsc = pd.Series(results.values(name, "dsc"), results.patients.index)
    below = dsc.median() - dsc
    worst = dsc[below > max(WORSE, SPREADS * below.abs().median())].nsmallest(MAX_NAMED)
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


def _next_step(results: Results, name: str) -> Step:
    """Return what to do next with one network, from the evaluation of its last calibration, which
    the text names if it is another one.
    """
    summaries = {name: each.summary for name, each in results.evaluations.items()}
    latest = latest_calibration(summaries, name)
    step = next_step(
        results.evaluations[latest],
        str(results.folders[latest]),
        float(mean_of_defined(results.values(latest, "dsc"))),
        judge_regions(results, latest),
    )
    if latest == name:
        return step
    return step._replace(text=f"{results.labels[latest]}: {step.text}")


def describe_differences(context: Context) -> tuple[list[str], str]:
    """Return the differences to the reference in words, and the name of the best evaluation.

    An evaluation with a lower or a low DSC is not called better for its probabilities.
    """
    results, table = context.results, context.differences
    table = table[table["measure"].isin(["dsc", DECIDING, EXPLAINING])]
    change = table.apply(_change, axis=1)
    is_loss = (table["measure"] == "dsc") & ((change < 0) | (table["mean"] < -LOSS))
    low = [name for name in results.names if mean_of_defined(results.values(name, "dsc")) < LOW]
    behind = [*low, *table["name"][is_loss]]
    is_deciding = table["measure"] == DECIDING
    better = table[(change > 0) & ~table["name"].isin(behind)]
    sentences = []
    for kind, differing in (("Better", better), ("Worse", table[change < 0])):
        if len(differing):
            label = results.labels[context.reference]
            shown = _listed(results, differing)
            sentences.append(DIFFERS.format(kind=kind, reference=label, evaluations=shown))
    if not sentences:
        measures = ", ".join(heading(name, arrow=False) for name in table["measure"].unique())
        sentences.append(NONE_DIFFERS.format(measures=measures, patients=results.count))
    if behind:
        sentences.append(NO_SUBSTITUTE)
    # A higher DSC with a higher NLL is not better, but than a network that segments badly
    is_worse = is_deciding & (change < 0) & (context.reference not in low)
    decided = better["name"][better["measure"] != EXPLAINING]
    ahead = [name for name in decided if name not in {*table["name"][is_worse]}]
    by_nll = table[is_deciding & table["name"].isin(ahead)].sort_values("mean")
    return sentences, [*by_nll["name"], *ahead, context.reference][0]


def _change(record: Record) -> int:
    """Return 1 for a value that is better than the reference's, -1 for a worse one, 0 if that is
    not significant.
    """
    if not is_significant(record):
        return 0
    return 1 if (record["mean"] > 0) == higher_is_better(record["measure"]) else -1


def _listed(results: Results, table: pd.DataFrame) -> str:
    """Return evaluations and the measures in which they differ, as text."""
    headings = table["measure"].map(lambda measure: heading(measure, arrow=False))
    by_name = headings.groupby(table["name"], sort=False).agg(", ".join)
    return "; ".join(f"{results.labels[name]} ({names})" for name, names in by_name.items())
