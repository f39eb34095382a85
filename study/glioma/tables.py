"""Tables of the brain tumours, from the rows of `study.glioma.measure`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from calib_components.metrics.intervals import Estimate, interval
from calib_components.metrics.objects import CANDIDATE, TRUE_OBJECT
from calib_components.quality.ranking import order
from study.tables.networks import markdown

RESULTS = Path(__file__).resolve().parents[1] / "results" / "glioma"
LOSSES = {"cross_entropy": "CE", "ce_dice": "CE + Dice", "nacl": "NACL", "svls": "SVLS"}
SETS = {"home": "home", "other": "other institution"}
NONE, T, VIEWS = "none", "T", "T, eight views"
ESTIMATES = {  # column, and calibrator, of what orders patients
    "expected DSC": ("expected_dsc", T),
    "expected DSC, eight views": ("expected_dsc", VIEWS),
    "predicted volume": ("segmented_volume", T),
}
BAD = 0.7  # DSC of a segmentation that failed in part
RESAMPLES = 2000
BINS = 10


@functools.cache
def read(name: str) -> pd.DataFrame:
    """Return a table of results; columns of cases have short names, without the structure."""
    table = pd.read_csv(RESULTS / f"{name}.csv.gz")
    if name != "cases":
        return table
    return table.rename(columns=lambda column: column.removesuffix("_tumour"))


def rows_of(loss: str, calibrator: str, name: str) -> pd.DataFrame:
    """Return the patients of a set, in their order."""
    table = read("cases")
    is_of = (table["loss"] == loss) & (table["calibrator"] == calibrator) & (table["set"] == name)
    numbers = table[is_of].set_index("case").sort_index()
    return numbers.drop(columns=["loss", "calibrator", "set"]).apply(pd.to_numeric)


def known_losses() -> dict[str, str]:
    """Return the losses that have rows, and their names."""
    present = {*read("cases")["loss"]}
    return {loss: name for loss, name in LOSSES.items() if loss in present}


def shipped() -> str:
    """Return the loss that the protocol ships: the lowest NLL over all voxels of the validation
    patients, with T, among those whose DSC there is at most .01 below the highest.
    """
    means = {loss: rows_of(loss, T, "validation").mean() for loss in known_losses()}
    highest = max(row["dsc"] for row in means.values())
    return min(
        (loss for loss, row in means.items() if row["dsc"] >= highest - 0.01),
        key=lambda loss: means[loss]["nll_all"],
    )


def mean_of(values: pd.Series) -> Estimate:
    """Return a mean over patients, with its interval."""
    return interval(values.to_numpy(), [*values.index])


def shown(found: Estimate, form: str = ".2f") -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


def networks_table() -> str:
    """Return, for each network, its validation and the measures of both test sets."""
    rows = {}
    for loss, title in known_losses().items():
        validation = rows_of(loss, T, "validation")
        cells = [f"{validation['dsc'].mean():.3f} / {validation['nll_all'].mean():.4f}"]
        cells.append(f"{validation['temperature'].iloc[0]:.2f}")
        for name in SETS:
            plain, scaled = rows_of(loss, NONE, name), rows_of(loss, T, name)
            cells += [
                shown(mean_of(plain["dsc"])),
                f"{plain['hd95'].mean():.0f}",
                " -> ".join(f"{each['nll_all'].mean():.3f}" for each in (plain, scaled)),
                " -> ".join(
                    f"{(each['confidence'] - each['accuracy']).mean():+.2f}"
                    for each in (plain, scaled)
                ),
            ]
        rows[title + (", shipped" if loss == shipped() else "")] = cells
    of_set = ("DSC", "HD95", "NLL", "too sure by")
    columns = [
        "validation DSC / NLL",
        "T",
        *(f"{SETS[name]}: {of}" for name in SETS for of in of_set),
    ]
    return markdown(rows, columns)


def gap_closed(loss: str, name: str, estimate: str) -> tuple[np.ndarray, float]:
    """Return the gap that an estimate closes, of resampled patients, and of all."""
    column, calibrator = ESTIMATES[estimate]
    table = rows_of(loss, calibrator, name)
    pairs = table[[column, "dsc"]].fillna(0).to_numpy()
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(pairs), size=(RESAMPLES, len(pairs)))
    return np.array([order(*pairs[rows].T)[0] for rows in drawn]), order(*pairs.T)[0]


def percentiles(resampled: np.ndarray, value: float) -> Estimate:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(value, low, high)


def order_of(loss: str, name: str, estimate: str, minus: str = "") -> Estimate:
    """Return the gap that an estimate closes, or its difference from another's, with an interval
    over patients.
    """
    resampled, value = gap_closed(loss, name, estimate)
    if minus:
        others, other = gap_closed(loss, name, minus)
        resampled, value = resampled - others, value - other
    return percentiles(resampled, value)


def area(loss: str, name: str, estimate: str) -> tuple[float, int]:
    """Return the area under the ROC of an estimate for patients with a DSC below `BAD`, and their
    number.
    """
    column, calibrator = ESTIMATES[estimate]
    table = rows_of(loss, calibrator, name)
    bad = table["dsc"] < BAD
    if bad.all() or not bad.any():
        return np.nan, int(bad.sum())
    return float(roc_auc_score(bad, -table[column].fillna(0))), int(bad.sum())


def order_table() -> str:
    """Return how well estimates of the shipped network order patients."""
    loss, rows = shipped(), {}
    for name, title in SETS.items():
        for estimate in ESTIMATES:
            cells = [shown(order_of(loss, name, estimate), "+.2f"), "-"]
            if estimate != "predicted volume":
                cells[1] = shown(order_of(loss, name, estimate, "predicted volume"), "+.2f")
            found, number = area(loss, name, estimate)
            rows[f"{title}, {estimate}"] = [*cells, f"{found:.2f} ({number})"]
    columns = ["gap closed", "minus volume", f"ROC area, DSC below {BAD} (patients)"]
    return markdown(rows, columns)


def candidates(loss: str, name: str, calibrator: str = T) -> pd.DataFrame:
    """Return candidates and true parts of a set."""
    table = read("objects")
    return table[
        (table["loss"] == loss) & (table["set"] == name) & (table["calibrator"] == calibrator)
    ]


def calibration_of_candidates(
    loss: str, name: str, calibrator: str
) -> tuple[int, float, Estimate, float]:
    """Return the number of candidates, the share of true ones, the mean confidence minus that
    share with an interval over patients, and the calibration error in ten bins.
    """
    table = candidates(loss, name, calibrator)
    found = table[table["kind"] == CANDIDATE]
    gap = found["confidence"] - found["matched"]
    bins = np.minimum((found["confidence"] * BINS).astype(int), BINS - 1)
    error = gap.groupby(bins).sum().abs().sum() / len(gap)
    estimate = interval(gap.to_numpy(), [*found["case"]])
    return len(found), float(found["matched"].mean()), estimate, float(error)


def sensitivity(loss: str, name: str, false_per_patient: float) -> float:
    """Return the share of true parts that candidates find, with so many false ones a patient."""
    table, patients = candidates(loss, name), len(rows_of(loss, T, name))
    found, true = table[table["kind"] == CANDIDATE], table[table["kind"] == TRUE_OBJECT]
    false = np.sort(found.loc[~found["matched"], "confidence"])[::-1]
    allowed = int(false_per_patient * patients)
    threshold = false[allowed] if allowed < len(false) else 0.0
    return float((true["confidence"] > threshold).mean())


def candidates_table() -> str:
    """Return whether the confidence of candidates of the shipped network is calibrated."""
    loss, rows = shipped(), {}
    for name, title in SETS.items():
        for calibrator in (NONE, T):
            number, share, gap, error = calibration_of_candidates(loss, name, calibrator)
            cells = [f"{number}", f"{share:.0%}", shown(gap, "+.2f"), f"{error:.2f}"]
            froc = [f"{sensitivity(loss, name, rate):.2f}" for rate in (0.5, 1, 2)]
            rows[f"{title}, {'as trained' if calibrator == NONE else 'T'}"] = [
                *cells,
                " / ".join(froc),
            ]
    columns = ["candidates", "true", "confidence - share of true", "calibration error"]
    return markdown(rows, [*columns, "parts found at 0.5 / 1 / 2 false a patient"])


def changes(loss: str, kind: str, measure: str) -> pd.Series:
    """Return a measure of each draw of five patients with a calibrator, less that of none."""
    table = read("draws")
    values = table[table["loss"] == loss].pivot(index="draw", columns="calibrator", values=measure)
    return values[kind] - values[NONE]


def card_table() -> str:
    """Return what the shipped network, with T, reaches on both test sets."""
    tables = {title: rows_of(shipped(), T, name) for name, title in SETS.items()}
    measures = {
        "DSC": (lambda rows: rows["dsc"], ".2f"),
        "HD95, pixels": (lambda rows: rows["hd95"], ".0f"),
        "NLL, all voxels": (lambda rows: rows["nll_all"], ".3f"),
        "confidence - accuracy, predicted tumour": (
            lambda rows: rows["confidence"] - rows["accuracy"],
            "+.2f",
        ),
        "expected DSC - DSC": (lambda rows: rows["expected_dsc"] - rows["dsc"], "+.2f"),
    }
    cells = {
        title: [shown(mean_of(measure(rows)), form) for rows in tables.values()]
        for title, (measure, form) in measures.items()
    }
    cells["patients with a DSC below 0.7"] = [
        f"{(rows['dsc'] < BAD).sum()} of {len(rows)}" for rows in tables.values()
    ]
    return markdown(cells, [*tables])
