"""Fill in the numbers of README, pages and `study/results/means.csv` from the tables in
`study/results`, or check them.

    python study/tables/fill_tables.py [--check]

A table stands between two comments. The first names test sets, measures, methods and what is beside
a mean: its `interval`, the number that the paper has (`published`), or nothing. `minus METHOD`
makes it a table of differences, in bold if p < 0.05 after Holm's correction. Columns may be
sources, too, such as `confidence`:

    <!-- table: acdc, lge | dsc, nll_all | nacl, nacl+T | interval -->
    <!-- end of table -->

Other tables are made by a function of the study, whose arguments follow:

    <!-- made: heart.tables.differences_table | nll_all | T -->
    <!-- end of table -->

A comment after a text lists the sources of its percentages and of its numbers with two or more
decimals, see `numbers`:

    On LGE, NACL minus cross-entropy is -0.254 [-0.418, -0.090].
    <!-- from: nacl - cross_entropy lge nll_predicted -->
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import InputError
from calib_components.metrics.case import find_column
from calib_components.metrics.intervals import Estimate
from calib_components.quality.ranking import order
from calib_components.quality.shift import holm
from calib_tools import cli
from study.compare.compact import COMPACT
from study.compare.published import PUBLISHED
from study.compare.ranks import case_ranks
from study.compare.statistics import mean_with_interval, paired_difference
from study.heart.tables import difference_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "study" / "results"
PAGES = ("README.md", "docs/*.md", "study/pages/*.md", "bundles/*/docs/README.md")
FOLDERS = {
    f"acdc/{name}": "acdc" for name in ("three_seeds", "further", "ensembles", "variants")
} | {"chaos": "chaos"}
# Of networks trained on other data; `seen`, the training cases of `few_patients`, is `few_seen`.
OTHERS = {
    "hippocampus": "hippocampus",
    "few_patients": "few",
    "acdc/authors": "acdc_authors",
    "abdomen/authors": "flare_authors",
}
TITLES = {
    "acdc": "ACDC",
    "bssfp": "bSSFP",
    "lge": "LGE",
    "chaos": "CHAOS",
    "hippocampus": "hippocampus",
    "acdc_authors": "test",
    "acdc_authors_seen": "training",
    "few": "test",
    "few_seen": "training",
    "flare_authors": "abdomen",
}
# p-values are corrected over these losses, and L1-ACE if it is compared with CE + Dice.
LOSSES = (
    "focal",
    "entropy_penalty",
    "label_smoothing",
    "svls",
    "mbls",
    "nacl",
    "nacl_softmax",
    "cross_entropy",
)
# In 3D, over these against each reference, without and with T, and the main measures together, as
# the protocol says.
LOSSES_3D = ("cross_entropy", "nacl", "nacl_0.03", "mbls", "svls", "l1_ace")
FAMILIES: dict[str, dict[str, tuple[str, ...]]] = {
    "hippocampus": {"ce_dice": LOSSES_3D},
    "few": {"ce_dice": ("cross_entropy", "nacl", "svls"), "cross_entropy": ("nacl", "svls")},
}
MAIN = ["nll_predicted", "ece_predicted"]
TABLE = re.compile(r"(<!-- (table|made): (.+?) -->\n)(?:.*\n)*?(<!-- end of table -->)")
TEXT = re.compile(r"(<!-- from: (.+?) -->)")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d\d+|\b\d+(?= %(?! interval))")
TABLE1 = ["ce_dice", "focal", "entropy_penalty", "label_smoothing", "svls", "mbls", "nacl"]
PAPER = ["dsc", "hd95", "ece", "cece"]  # measures of the paper
# Of `means.csv`
MEASURES = (
    *PAPER,
    *(f"{name}_{region}" for name in ("nll", "ece") for region in ("all", "predicted")),
    "expected_dsc",
    "gap_closed",
)
SOURCES = {
    "T": ("T", " to "),
    "confidence": ("confidence / accuracy, %", " / "),
    "rank": ("sum-rank ↓", ""),
    "paper_rank": ("sum-rank (paper) ↓", ""),
    "case_rank": ("mean case rank ↓", ""),
    "expected_dsc": ("expected DSC", ""),
    "dsc_bias": ("expected DSC - DSC", ""),
    "gap_closed": ("gap closed ↑", ""),
}


def fill(check: bool = False) -> None:
    """Write the numbers.

    Args:
        check: Write nothing, and exit with 1 if a number differs from what would be written.
    """
    is_different = False
    means = RESULTS / "means.csv"
    for page in [means, *(page for pattern in PAGES for page in sorted(ROOT.glob(pattern)))]:
        text = page.read_text() if page.is_file() else ""
        try:
            filled = means_of_all() if page == means else fill_text(text)
        except KeyError as error:
            raise InputError(f"{page}: {error} is not in the results.") from error
        if filled == text:
            continue
        is_different = True
        name = page.relative_to(ROOT)
        if check:
            print(f"{name}: differs: run study/tables/fill_tables.py")
        else:
            page.write_text(filled)
            print(f"{name}: written")
    if check and is_different:
        sys.exit(1)


def fill_text(text: str) -> str:
    """Return a page with the numbers of the results."""
    makers: dict[str, Callable[..., str]] = {"table": _table, "made": _made}
    with_tables = TABLE.sub(
        lambda found: found[1] + makers[found[2]](*found[3].split(" | ")) + found[4], text
    )
    texts = TEXT.split(with_tables)
    texts[:-1:3] = map(_text, texts[:-1:3], texts[2::3])
    return "".join(part for index, part in enumerate(texts) if index % 3 < 2)


def means_of_all() -> str:
    """Return `means.csv`: a line for each test set, method and measure of the evaluations, with the
    mean and its interval over patients, and over seeds if there are several.
    """
    cases = results("cases")
    rows = [
        (test_set, method, cases.loc[[(test_set, method)], "seed"].nunique(), measure, *found[:3])
        for test_set, method in cases.index.unique()
        for measure in cases.columns.intersection(MEASURES, sort=False)
        if not np.isnan((found := mean(method, test_set, measure)).mean)
    ]
    table = pd.DataFrame(
        rows, columns=["test_set", "method", "seeds", "measure", "mean", "low", "high"]
    )
    return table.to_csv(index=False, float_format="%.4g")


@functools.cache
def results(kind: str) -> pd.DataFrame:
    """Return the cases, bins or temperatures of all folders, by test set and method, such as
    `nacl+T`.
    """
    tables = [
        _read(file, folder, home)
        for folder, home in (FOLDERS | OTHERS).items()
        for file in (RESULTS / folder).glob(f"{kind}.csv*")
    ]
    table = pd.concat(tables, ignore_index=True)
    keys = ["test_set", "method", *table.columns.intersection(["seed", "fold", "region", "case"])]
    table = table.drop_duplicates(keys).copy()
    if kind == "cases":
        networks = table.groupby(["test_set", "method", "seed"], group_keys=False)
        closed = networks[["expected_dsc", "dsc", "patient"]].apply(_gap_closed)
        table = table.assign(gap_closed=closed)
    return table.set_index(keys[:2]).sort_index()


def _read(file: Path, folder: str, home: str) -> pd.DataFrame:
    """Return a table of a folder, whose own test set is called as in TITLES."""
    table = of_common_folds(pd.read_csv(file, dtype={"test_set": object})).copy()
    if file.name.startswith("cases"):
        table = _with_means(table)
    table["method"] += table["temperature"].map({"with": "+T"}).fillna("")
    test_set = table.get("test_set", pd.Series(index=table.index, dtype=object))
    names = f"{home}_" + test_set if folder in OTHERS else test_set
    return table.assign(test_set=names.fillna(home))


def of_common_folds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the folds that all methods have, so that all are compared on the same
    patients while networks of a fold are still in training.
    """
    if "fold" not in table:
        return table
    methods = table.groupby("fold")["method"].transform("nunique")
    return table[methods == table["method"].nunique()]


def _with_means(cases: pd.DataFrame) -> pd.DataFrame:
    """Return cases with means over structures."""
    means = {
        name: cases.filter(regex=f"^{name}_").mean(axis=1)
        for name in ("dsc", "hd95", "expected_dsc")
    }
    return cases.assign(**means, dsc_bias=means["expected_dsc"] - means["dsc"])


@functools.cache
def label_of(method: str) -> str:
    """Return how a method, such as `nacl+T`, is called in tables."""
    name, temperature, _ = method.partition("+")
    files = [RESULTS / folder / COMPACT for folder in FOLDERS | OTHERS]
    known = [json.loads(file.read_text())["labels"] for file in files if file.is_file()]
    label = next(labels[name] for labels in known if name in labels)
    return f"{label} + T" if temperature else label


def _gap_closed(cases: pd.DataFrame) -> pd.Series[float]:
    """Return pseudo-values of the jackknife over patients, whose mean is the gap that an estimate
    closes.

    With them, this statistic of all scans has intervals and tests as the mean of a measure (Busing
    et al., 1999).

    Args:
        cases: Estimate, DSC and patient of the scans of a network.
    """
    estimates, dsc = cases.iloc[:, :2].to_numpy().T
    if np.isnan(estimates).all() or cases["patient"].nunique() <= 2:  # no order without one
        return pd.Series(np.nan, cases.index)
    patients, values = cases["patient"].to_numpy(), np.empty(len(cases))
    whole = order(estimates, dsc)[0]
    for patient in {*patients}:
        own = patients == patient
        values[own] = whole + (1 / own.mean() - 1) * (whole - order(estimates[~own], dsc[~own])[0])
    return pd.Series(values - values.mean() + whole, cases.index)


@functools.cache
def mean(method: str, test_set: str, measure: str) -> Estimate:
    """Return the mean of a measure of cases, with its interval."""
    return mean_with_interval(*values_of_cases(method, test_set, measure))


@functools.cache
def difference(method: str, reference: str, test_set: str, measure: str) -> Estimate:
    """Return the difference of two methods, of the seeds that both have; its p-value is not
    corrected.
    """
    seeds = [{*results("cases").loc[[(test_set, name)], "seed"]} for name in (method, reference)]
    common = sorted(set.intersection(*seeds))
    (values, patients), (others, _) = (
        values_of_cases(name, test_set, measure, common) for name in (method, reference)
    )
    return paired_difference(values, others, patients)


def values_of_cases(
    method: str, test_set: str, measure: str, seeds: Sequence[int] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Return values `(seeds, cases)` of all seeds, or of some, and the patients of the cases."""
    rows = results("cases").loc[[(test_set, method)]]
    if seeds is not None:
        rows = rows[rows["seed"].isin(seeds)]
    values = rows.set_index(["seed", "case"])[measure].unstack()
    return values.to_numpy(), [*rows.groupby("case")["patient"].first()]


def predicted(method: str, test_set: str) -> pd.DataFrame:
    """Return number, sum of confidences and number correct where a structure is predicted, by seed
    and patient.
    """
    bins = results("bins").loc[(test_set, method)]
    bins = bins[bins["region"] == "predicted"]
    patients = results("cases").loc[(test_set, method)].groupby("case")["patient"].first()
    sums = {name: bins.filter(like=name).sum(axis=1) for name in ("count", "confidence", "correct")}
    return pd.DataFrame(sums).groupby([bins["seed"], bins["case"].map(patients)]).sum()


def calibration(method: str, test_set: str) -> Estimate:
    """Return confidence minus accuracy where a structure is predicted, the mean over patients, with
    its interval.
    """
    by_patient = predicted(method, test_set)
    gaps = ((by_patient["confidence"] - by_patient["correct"]) / by_patient["count"]).unstack()
    return mean_with_interval(gaps, [*gaps])


def corrected(method: str, reference: str, test_set: str, measure: str) -> float:
    """Return the p-value of a difference after Holm's correction: over `FAMILIES`, or a measure of
    all losses.

    Against cross-entropy, these are those without a Dice term; in the abdomen, those of the paper.
    """
    base, plus, temperature = reference.split("+")[0], *method.partition("+")[1:]
    if test_set in FAMILIES:
        pairs = [(loss, to) for to, losses in FAMILIES[test_set].items() for loss in losses]
        compared = [
            (loss + end, to + end, each)
            for loss, to in pairs
            for end in ("", "+T")
            for each in MAIN
        ]
    else:
        family: Sequence[str] = (*LOSSES, "l1_ace") if base == "ce_dice" else LOSSES
        if test_set == "flare_authors":
            family = TABLE1
        compared = [
            (loss + plus + temperature, reference, measure) for loss in family if loss != base
        ]
    p_values = [difference(*pair, test_set, each).p_value for *pair, each in compared]
    return dict(zip(compared, holm(p_values), strict=True))[method, reference, measure]


def numbers(source: str) -> list[str]:
    """Return the numbers of a text from a source.

    `nacl+T lge dsc`: the mean. `nacl - ce_dice lge dsc`: the difference and its interval; after
    `size`, the difference without its sign; after `p`, its p-value; after `holm`, that corrected.
    `T nacl acdc`: the lowest and the highest temperature of the seeds. `confidence nacl lge`: mean
    confidence and accuracy of all voxels where a structure is predicted, in percent. `gap nacl
    lge`: their difference, the mean over patients, and its interval. `heart nacl+T -
    cross_entropy+T lge nll_all`: a difference of the fifth round's networks. `rank nacl lge`: the
    sum of the ranks by the paper's measures. `ace nacl lge`: a mean of cases; `interval nacl lge
    ace`: with its interval. `= 0.05`: no result.
    """
    kind, *place = source.split()
    if kind in NUMBERS:
        return NUMBERS[kind](*place)
    if place[:1] == ["-"]:
        return [f"{end:+.3f}" for end in difference(kind, *place[1:])[:3]]
    if len(place) == 2:
        return [f"{mean(kind, *place).mean:.3f}"]
    raise KeyError(source)


def _temperatures(method: str, home: str) -> list[str]:
    fits = results("temperatures").loc[[(home, method.removesuffix("+T"))], "temperature"]
    return [f"{end:.2f}" for end in sorted({fits.min(), fits.max()})]


def _confidence(method: str, test_set: str) -> list[str]:
    count, *sums = predicted(method, test_set).sum()
    return [f"{100 * part / count:.0f}" for part in sums]


def _sum_of_ranks(means: pd.DataFrame, method: str) -> list[str]:
    """Return the sum of the ranks by the paper's measures; ties share the mean rank."""
    return [f"{(means[PAPER] * [-1, 1, 1, 1]).rank().sum(axis=1)[method]:g}"]


def _data_set(test_set: str) -> str:
    """Return how the published values call the data of a test set."""
    return test_set.partition("_")[0]


def _rank(method: str, test_set: str) -> list[str]:
    means = {of: [mean(name, test_set, of).mean for name in TABLE1] for of in PAPER}
    return _sum_of_ranks(pd.DataFrame(means, TABLE1), method)


def _case_rank(method: str, test_set: str) -> list[str]:
    """Return the mean of the ranks by the paper's measures on single cases (its Fig. 1)."""
    costs = [
        [
            sign * values_of_cases(name, test_set, of)[0].mean(0)
            for of, sign in zip(PAPER, (-1, 1, 1, 1), strict=True)
        ]
        for name in TABLE1
    ]
    ranks = case_ranks(np.moveaxis(np.array(costs), 1, 2))
    return [f"{np.nanmean(ranks[TABLE1.index(method)]):.1f}"]


def _format_mean(column: str, sign: str = "") -> Callable[[str, str], list[str]]:
    return lambda method, test_set: [f"{mean(method, test_set, column).mean:{sign}.3f}"]


NUMBERS: dict[str, Callable[..., list[str]]] = {  # by the first word of a source
    "=": lambda *constants: [*constants],
    "T": _temperatures,
    "gap": lambda *place: [f"{end:+.3f}" for end in calibration(*place)[:3]],
    "heart": lambda one, _, *place: [f"{end:+.3f}" for end in difference_of(one, *place)[:3]],
    "rank": _rank,
    "case_rank": _case_rank,
    "paper_rank": lambda method, name: _sum_of_ranks(
        PUBLISHED.loc[_data_set(name)].loc[TABLE1], method
    ),
    "confidence": _confidence,
    "dsc_bias": _format_mean("dsc_bias", "+"),
    **{name: _format_mean(name) for name in ("expected_dsc", "gap_closed")},
    "interval": lambda *place: [f"{end:.3f}" for end in mean(*place)[:3]],
    "size": lambda method, _, *place: [f"{abs(difference(method, *place).mean):.3f}"],
    "p": lambda method, _, *place: [f"{difference(method, *place).p_value:.3f}"],
    "holm": lambda method, _, *place: [f"{corrected(method, *place):.3f}"],
}


def _text(text: str, sources: str) -> str:
    """Return a text, of which the last paragraph has the numbers of the sources."""
    start = max(0, *(text.rfind(mark) for mark in ("\n\n", "\n- ", "-->")))
    values = [value for source in sources.split("; ") for value in numbers(source)]
    if len(NUMBER.findall(text[start:])) != len(values):
        raise InputError(
            f"The sources have {len(values)} numbers, the text has others: {text[start:].strip()}"
        )
    remaining = iter(values)
    return text[:start] + NUMBER.sub(lambda _: next(remaining), text[start:])


def _table(sets: str, measures: str, methods: str, beside: str = "") -> str:
    """Return a table with a line for each method, and a column for each test set and measure."""
    names, kind, reference = sets.split(", "), *beside.partition(" ")[::2]
    columns = [(name, measure) for name in names for measure in measures.split(", ")]
    headings = [_heading(measure, kind) for _, measure in columns]
    if len(names) > 1:
        headings = [
            f"{TITLES[name]} {text}" for (name, _), text in zip(columns, headings, strict=True)
        ]
    lines = [["", *headings], ["---"] * (1 + len(headings))]
    for method in methods.split(", "):
        cells = [_cell((method, *column), kind, reference) for column in columns]
        lines.append([label_of(method), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _made(place: str, *arguments: str) -> str:
    """Return a table that a function makes."""
    module, _, function = place.rpartition(".")
    return f"{getattr(import_module(f'study.{module}'), function)(*arguments)}\n"


def _heading(measure: str, kind: str) -> str:
    """Return the heading of a column, with an arrow to better values."""
    if measure in SOURCES:
        return SOURCES[measure][0]
    column = find_column(measure, [])
    if column is None:
        raise KeyError(measure)
    arrow = {"higher": "↑", "lower": "↓"}[column.measure.better]
    title = f"{column.measure.title} {column.place}".strip()
    return f"{title} (paper) {arrow}" if kind == "published" else f"{title} {arrow}"


def _cell(place: tuple[str, str, str], kind: str, reference: str) -> str:
    """Return the cell of a method, test set and measure."""
    method, test_set, measure = place
    if kind == "minus":
        return _difference_cell(place, reference)
    if measure in SOURCES and not (measure == "gap_closed" and kind == "interval"):
        return SOURCES[measure][1].join(numbers(f"{measure} {method} {test_set}"))
    estimate, digits = mean(*place), 2 if measure == "hd95" else 3
    text, low, high = (f"{end:.{digits}f}" for end in estimate[:3])
    if kind == "published":
        return f"{text} ({PUBLISHED.loc[(_data_set(test_set), method), measure]:.{digits}f})"
    cases = results("cases").loc[(test_set, method)]
    if f"{measure}_if_true" in cases:
        text = f"{text} ({cases[f'{measure}_if_true'].mean():.3f})"
    return f"{text} [{low}, {high}]" if kind == "interval" else text


def _difference_cell(place: tuple[str, str, str], reference: str) -> str:
    method, *column = place
    digits = 2 if column[-1] == "hd95" else 3
    mean_difference, low, high = (
        f"{end:+.{digits}f}" for end in difference(method, reference, *column)[:3]
    )
    text = f"{mean_difference} [{low}, {high}]"
    return f"**{text}**" if corrected(method, reference, *column) < 0.05 else text


if __name__ == "__main__":
    from study.tables import fill_tables  # the same module as that which tables import

    cli.run("fill_tables", fill_tables.fill)
