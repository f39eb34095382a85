"""What a paper takes from a report: its table in LaTeX, reliability diagrams as PDF and SVG, and a
paragraph on methods.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping

import matplotlib as mpl
import monai
import torch

import calib_components
from calib_components.metrics.case import find_column
from calib_components.metrics.intervals import RESAMPLES, Estimate
from calib_tools.report.comparison import COMPARED
from calib_tools.report.data import Results
from calib_workflows.figures import reliability_diagram
from calib_workflows.pages.numbers import heading, number

FORMATS: Mapping[str, Mapping[str, None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},  # the same figure gives the same bytes
}
ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "": ""}
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
TABLE = r"""% Needs booktabs. Means with 95 % intervals over {count}; bold: the best mean,
% whether its difference is shown or not.
\begin{{tabular}}{{l{columns}}}
\toprule
{head} \\
\midrule
{lines} \\
\bottomrule
\end{{tabular}}
"""
# What the numbers are, by the start of the names of measures
DEFINITIONS = {
    "dsc": "The Dice similarity coefficient (DSC) is the mean over structures that are in the"
    " prediction or the ground truth.",
    "hd95": "HD95 is the 95th percentile of the distances between the surfaces of a structure, both"
    " ways, in {unit}; it is undefined where a structure is missed or spurious.",
    "nll": "The negative log-likelihood (NLL) is the mean of -log of the probability of the true"
    " class over voxels, in nats; near the structures, over those at most 5 mm from a true one.",
    "ece": "The expected calibration error (ECE) has 15 bins of equal width of the highest"
    " probability of a voxel, over the voxels of a case, and is averaged over cases: over all"
    " voxels, those predicted as a structure, and the ground-truth foreground.",
    "cece": "The classwise error (CECE) is the mean of the ECE of each class.",
}
METHODS = (
    "Values are means over {count}. {definitions} Intervals of 95 % are percentiles of a bootstrap"
    " with {resamples:,} resamples of patients; they are about these trained networks. {tests}"
    "Computed with calib-components {version} on MONAI {monai} and PyTorch {torch}."
)
TESTS = (
    "Differences are paired by case; p-values are of sign-flip permutation tests over patients,"
    " Holm-corrected. "
)


def paper_files(results: Results) -> dict[str, bytes]:
    """Return the files by name."""
    files = {"means.tex": _table(results).encode(), "methods.txt": _methods(results).encode()}
    if results.has("ece_predicted"):
        for name in results.names:
            for ending, content in _diagram(results, name):
                files[f"reliability_{name.replace('/', '_')}.{ending}"] = content
    return files


def _table(results: Results) -> str:
    """Return a line for each evaluation and a column for each measure."""
    measures = [measure for measure in COMPARED if results.has(measure)]
    means = {
        measure: {name: results.mean(name, measure) for name in results.names}
        for measure in measures
    }
    lines = [
        [_escape(results.labels[name]), *(_cell(each, name, means[each]) for each in measures)]
        for name in results.names
    ]
    head = ["", *(_escape(heading(each, arrow=False)) + ARROWS[_better(each)] for each in measures)]
    return TABLE.format(
        count=results.count,
        columns="c" * len(measures),
        head=" & ".join(head),
        lines=" \\\\\n\\addlinespace\n".join(map(" & ".join, lines)),
    )


def _cell(measure: str, name: str, means: Mapping[str, Estimate]) -> str:
    """Return a mean with its interval, bold if it is the best of several."""
    found, sign = means[name], 1 if _better(measure) == "higher" else -1
    text = number(found.mean, measure)
    others = [sign * each.mean for other, each in means.items() if other != name]
    if others and sign * found.mean > max(others):
        text = rf"\textbf{{{text}}}"
    if math.isnan(found.low):
        return text
    low, high = (number(end, measure) for end in (found.low, found.high))
    return rf"\shortstack{{{text}\\{{\scriptsize [{low}, {high}]}}}}"


def _better(measure: str) -> str:
    column = find_column(measure, [])
    return column.measure.better if column is not None else ""


def _escape(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)


def _diagram(results: Results, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the reliability diagram of an evaluation in each format, with its ending."""
    titles = {"all": "all voxels", "predicted": "predicted foreground"}
    bins = {title: results.bins[name][region].pooled() for region, title in titles.items()}
    figure = reliability_diagram({title: each for title, each in bins.items() if each.count.any()})
    for ending, metadata in FORMATS.items():
        content = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
            figure.savefig(content, format=ending, metadata=dict(metadata))
        yield ending, content.getvalue()


def _methods(results: Results) -> str:
    """Return the paragraph, with the definitions of the measures in the table."""
    kinds = dict.fromkeys(each.partition("_")[0] for each in COMPARED if results.has(each))
    text = METHODS.format(
        count=results.count,
        definitions=" ".join(DEFINITIONS[kind] for kind in kinds),
        resamples=RESAMPLES,
        tests=TESTS if len(results.names) > 1 else "",
        version=calib_components.__version__,
        monai=monai.__version__,
        torch=torch.__version__.partition("+")[0],
    )
    return text.replace("{unit}", results.unit) + "\n"
