"""Fill in the numbers of README and pages from the tables in `study/results`, or check them.

    python study/tables/fill_tables.py [--check]

A table stands between two comments. The first names test sets, measures, methods and what is beside
a mean: its `interval`, the number that the paper has (`published`), or nothing. `minus METHOD`
makes it a table of differences, with p-values after Holm's correction. Columns may be sources, too,
such as `confidence`:

    <!-- table: acdc, lge | dsc, nll_all | nacl, nacl+T | interval -->
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
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import InputError
from calib_components.metrics.measures import find_column
from calib_components.tools import cli
from calib_components.tools.report.quality import order
from calib_components.tools.report.statistics import (
    Estimate,
    holm,
    mean_with_interval,
    paired_difference,
)
from study.compare.compact import COMPACT
from study.compare.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/*.md", "study/pages/*.md", "bundles/*/docs/README.md")
FOLDERS = {
    f"acdc/{name}": "acdc" for name in ("three_seeds", "further", "ensembles", "variants")
} | {"chaos": "chaos"}
# Of networks trained on other data; `seen`, the training cases of `few_patients`, is `few_seen`.
OTHERS = {
    "hippocampus": "hippocampus",
    "tuned": "hippocampus",
    "few_patients": "few",
    "acdc/travel": "travel",
}
TITLES = {
    "acdc": "ACDC", "bssfp": "bSSFP", "lge": "LGE", "chaos": "CHAOS", "hippocampus": "hippocampus",
    "few": "test", "few_seen": "training", "travel": "ACDC and Siemens", "travel_vendor_b": "Philips",
    "travel_bssfp": "bSSFP", "travel_lge": "LGE",
}  # fmt: skip
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
TABLE = re.compile(r"(<!-- table: (.+?) -->\n)(?:.*\n)*?(<!-- end of table -->)")
TEXT = re.compile(r"(<!-- from: (.+?) -->)")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d\d+|\b\d+(?= %(?! interval))")
TABLE1 = ["ce_dice", "focal", "entropy_penalty", "label_smoothing", "svls", "mbls", "nacl"]
PAPER = ["dsc", "hd95", "ece", "cece"]  # measures of the paper
SOURCES = {
    "T": ("T", " to "),
    "confidence": ("confidence / accuracy, %", " / "),
    "rank": ("sum-rank ↓", ""),
    "paper_rank": ("sum-rank (paper) ↓", ""),
    "expected_dsc": ("expected DSC", ""),
    "dsc_bias": ("expected DSC - DSC", ""),
    "gap_closed": ("gap closed ↑", ""),
    "agreement_closed": ("gap closed by pairwise DSC ↑", ""),
    "ace": ("ACE ↓", ""),
}


def fill(check: bool = False) -> None:
    """Write the numbers.

    Args:
        check: Write nothing, and exit with 1 if a number differs from what would be written.
    """
    differing = False
    for page in [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]:
        text = page.read_text()
        try:
            filled = TABLE.sub(
                lambda found: found[1] + _table(*found[2].split(" | ")) + found[3], text
            )
            texts = TEXT.split(filled)
            texts[:-1:3] = map(_text, texts[:-1:3], texts[2::3])
            filled = "".join(part for index, part in enumerate(texts) if index % 3 < 2)
        except KeyError as error:
            raise InputError(f"{page}: {error} is not in the results.") from error
        if filled != text:
            differing = True
            if not check:
                page.write_text(filled)
            print(
                f"{page.relative_to(ROOT)}:"
                f" {'differs: run study/tables/fill_tables.py' if check else 'written'}"
            )
    if check and differing:
        sys.exit(1)


@functools.cache
def results(kind: str) -> pd.DataFrame:
    """Return the cases, bins or temperatures of all folders, by test set and method, such as
    `nacl+T`.
    """
    tables = []
    for folder, home in (FOLDERS | OTHERS).items():
        for file in (ROOT / "study" / "results" / folder).glob(f"{kind}.csv*"):
            table = pd.read_csv(file, dtype={"test_set": object}).copy()
            if kind == "cases":
                means = {
                    name: table.filter(regex=f"^{name}_").mean(axis=1)
                    for name in ("dsc", "hd95", "expected_dsc")
                }
                table = table.assign(**means, dsc_bias=means["expected_dsc"] - means["dsc"]).copy()
                if (beside := file.with_name("networks.csv")).is_file():
                    table = table.merge(pd.read_csv(beside).drop(columns="dsc"), how="left")
            table["method"] += table["temperature"].map({"with": "+T"}).fillna("")
            test_set = table.get("test_set", pd.Series(index=table.index, dtype=object))
            names = f"{home}_" + test_set if folder in OTHERS else test_set
            tables.append(table.assign(test_set=names.fillna(home)))
    table = pd.concat(tables, ignore_index=True)
    keys = ["test_set", "method", *table.columns.intersection(["seed", "fold", "region", "case"])]
    table = table.drop_duplicates(keys).copy()
    if kind == "cases":
        table["pairwise_dsc"] = table.get("pairwise_dsc", np.nan)  # not measured of all
        networks = table.groupby(["test_set", "method", "seed"], group_keys=False)
        for name, estimate in (
            ("gap_closed", "expected_dsc"),
            ("agreement_closed", "pairwise_dsc"),
        ):
            table = table.assign(
                **{name: networks[[estimate, "dsc", "patient"]].apply(_gap_closed)}
            )
    return table.set_index(keys[:2]).sort_index()


@functools.cache
def label_of(method: str) -> str:
    """Return how a method, such as `nacl+T`, is called in tables."""
    name, temperature, _ = method.partition("+")
    files = [ROOT / "study" / "results" / folder / COMPACT for folder in FOLDERS | OTHERS]
    known = [json.loads(file.read_text())["labels"] for file in files if file.is_file()]
    return next(labels[name] for labels in known if name in labels) + " + T" * bool(temperature)


def _gap_closed(cases: pd.DataFrame) -> pd.Series[float]:
    """Return pseudo-values of the jackknife over patients, whose mean is the gap that an estimate
    closes.

    With them, this statistic of all scans has intervals and tests as the mean of a measure (Busing
    et al., 1999).

    Args:
        cases: Estimate, DSC and patient of the scans of a network.
    """
    estimates, dsc = cases.iloc[:, :2].to_numpy().T
    if np.isnan(estimates).all():
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
    return mean_with_interval(*_of_cases(method, test_set, measure))


@functools.cache
def difference(method: str, reference: str, test_set: str, measure: str) -> Estimate:
    """Return the difference of two methods; its p-value is not corrected."""
    (values, patients), (others, _) = (
        _of_cases(name, test_set, measure) for name in (method, reference)
    )
    same = method.split("+")[0] == reference.split("+")[0]
    return paired_difference(values, others, patients, same_seeds=same)


def _of_cases(method: str, test_set: str, measure: str) -> tuple[np.ndarray, list[str]]:
    """Return values `(seeds, cases)` and the patients of the cases."""
    rows = results("cases").loc[[(test_set, method)]]
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

    Against cross-entropy, these are those without a Dice term.
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
        family = (*LOSSES, "l1_ace") if base == "ce_dice" else LOSSES
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
    lge`: their difference, the mean over patients, and its interval. `rank nacl lge`: the sum of
    the ranks by the paper's measures. `ace nacl lge`: a mean of cases; `interval nacl lge ace`:
    with its interval. `= 0.05`: no result.
    """
    match source.split():
        case ["=", *constants]:
            return constants
        case ["T", method, home]:
            fits = results("temperatures").loc[[(home, method.removesuffix("+T"))], "temperature"]
            return [f"{end:.2f}" for end in sorted({fits.min(), fits.max()})]
        case ["gap", method, test_set]:
            return [f"{end:+.3f}" for end in calibration(method, test_set)[:3]]
        case ["rank" | "paper_rank" as kind, method, test_set]:
            ours = {of: [mean(name, test_set, of).mean for name in TABLE1] for of in PAPER}
            found = (
                pd.DataFrame(ours, TABLE1)
                if kind == "rank"
                else PUBLISHED.loc[test_set].loc[TABLE1]
            )
            return [f"{(found[PAPER] * [-1, 1, 1, 1]).rank().sum(axis=1)[method]:g}"]
        case ["confidence", method, test_set]:
            count, *sums = predicted(method, test_set).sum()
            return [f"{100 * part / count:.0f}" for part in sums]
        case [
            "expected_dsc" | "dsc_bias" | "gap_closed" | "agreement_closed" | "ace" as column,
            method,
            test_set,
        ]:
            return [f"{mean(method, test_set, column).mean:{'+' * (column == 'dsc_bias')}.3f}"]
        case ["interval", *place]:
            return [f"{end:.3f}" for end in mean(*place)[:3]]
        case ["size", method, "-", *rest]:
            return [f"{abs(difference(method, *rest).mean):.3f}"]
        case ["p" | "holm" as kind, method, "-", *rest]:
            return [
                f"{difference(method, *rest).p_value if kind == 'p' else corrected(method, *rest):.3f}"
            ]
        case [method, "-", *rest]:
            return [f"{end:+.3f}" for end in difference(method, *rest)[:3]]
        case [method, test_set, measure]:
            return [f"{mean(method, test_set, measure).mean:.3f}"]
    raise KeyError(source)


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
    several = len(names) > 1
    lines = [
        [
            "",
            *(
                f"{TITLES[name] * several} {_heading(measure, kind)}".strip()
                for name, measure in columns
            ),
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for method in methods.split(", "):
        cells = [_cell((method, *column), kind, reference) for column in columns]
        lines.append([label_of(method), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _heading(measure: str, kind: str) -> str:
    """Return the heading of a column, with an arrow to better values."""
    if measure in SOURCES:
        return SOURCES[measure][0]
    column = find_column(measure, [])
    if column is None:
        raise KeyError(measure)
    arrow = {"higher": " ↑", "lower": " ↓"}[column.measure.better]
    return (
        f"{column.measure.title} {column.place}".strip()
        + " (paper)" * (kind == "published")
        + arrow
    )


def _cell(place: tuple[str, str, str], kind: str, reference: str) -> str:
    """Return the cell of a method, test set and measure."""
    if kind == "minus":
        found, p_value = (
            difference(place[0], reference, *place[1:]),
            corrected(place[0], reference, *place[1:]),
        )
        p_text = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
        text = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] {p_text}"
        return f"**{text}**" if p_value < 0.05 else text
    if place[2] in SOURCES and not (place[2].endswith("_closed") and kind == "interval"):
        return SOURCES[place[2]][1].join(numbers(f"{place[2]} {place[0]} {place[1]}"))
    found, digits = mean(*place), 2 if place[2] == "hd95" else 3
    text, ends = f"{found.mean:.{digits}f}", f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    if kind == "published":
        return f"{text} ({PUBLISHED.loc[(place[1], place[0]), place[2]]:.{digits}f})"
    cases = results("cases").loc[(place[1], place[0])]
    if_true = f" ({cases[column].mean():.3f})" if (column := f"{place[2]}_if_true") in cases else ""
    return text + if_true + ends * (kind == "interval")


if __name__ == "__main__":
    cli.run("fill_tables", fill)
