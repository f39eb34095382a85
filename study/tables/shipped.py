"""What users of the shipped weights are handed, on patients that were not fitted: do the limits
hold, is each structure calibrated, and which estimate orders the scans?

    python study/tables/shipped.py

prints the tables of the bundles' pages and of docs/quality.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.data.facts import facts_beside
from calib_components.posthoc.network import REFERENCE
from calib_components.quality import Reference
from calib_components.quality.ranking import rank_scans
from calib_components.quality.reference import MIN_BAD, holding_patients
from calib_components.tools.report.calibration import Judgement
from calib_components.tools.report.data import derive
from calib_components.tools.report.quality import LIMITED, count_held, find_limits
from calib_components.tools.report.statistics import (
    CalibrationGap,
    holm,
    holm_levels,
    mean_with_interval,
    paired_difference,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "study" / "results"
SPLITS, SHARE = 500, 0.75  # of the validation patients: random splits, and what limits are made of
HEART = {
    "acdc": "ACDC",
    "vendor_a": "Siemens",
    "vendor_b": "Philips",
    "bssfp": "bSSFP",
    "lge": "LGE",
}
TITLES = {"DSC at least": "DSC", "volume in its range": "volume"}  # as the pages have them
BUNDLES = ("acdc_mri_nacl_segmentation", "hippocampus_mri_nacl_segmentation")


def read_reference(bundle: str) -> Reference:
    """Return the reference in the weights of a bundle."""
    folder = ROOT / "bundles" / bundle / "models"
    facts = facts_beside(folder / "model.pt")
    assert facts is not None
    weights = torch.load(folder / "model.pt", weights_only=True)
    (stored,) = (values for name, values in weights.items() if name.endswith(REFERENCE))
    return Reference.from_tensor(stored, [*facts.structures])


def test_scans(bundle: str) -> dict[str, pd.DataFrame]:
    """Return the test scans of a bundle's weights, with their temperature, by the title of their
    set.
    """
    if bundle == BUNDLES[0]:
        return heart_scans("nacl_seed0")
    table = pd.read_csv(RESULTS / "hippocampus/cases.csv.gz")
    is_shipped = (table["method"] == "nacl_0.03") & (table["seed"] == 0)
    scans = table[is_shipped & (table["temperature"] == "with")].reset_index(drop=True)
    derived = derive(scans, ["anterior", "posterior"])
    return {"hippocampus": derived.loc[:, ~derived.columns.duplicated()]}


@functools.cache
def read_heart() -> pd.DataFrame:
    """Return the rows of all networks of the heart, see `study.heart.measure`."""
    texts = ["network", "set", "case", "patient", "calibrator"]
    types = dict.fromkeys(texts, str)
    table = pd.read_csv(
        RESULTS / "acdc" / "heart.csv.gz", dtype=types, keep_default_na=False, na_values=[""]
    )
    return table.assign(calibrator=table["calibrator"].fillna(""))


def heart_scans(network: str, calibrator: str = "T") -> dict[str, pd.DataFrame]:
    """Return the test scans of a network of the heart, by the title of their set."""
    rows = read_heart()
    rows = rows[(rows["network"] == network) & (rows["calibrator"] == calibrator)]
    rows = rows.dropna(axis=1, how="all")  # measures of ensembles
    return {title: rows[rows["set"] == name] for name, title in HEART.items()}


def split_coverage(known: Reference) -> pd.DataFrame:
    """Split the patients of a reference at random, make limits of some, and try them on the others.

    Returns:
        Of each structure and limit, the mean share of patients for whom it holds in every scan, and
        the median width: of the DSC, and of the volume as a share of the expected volume.
    """
    generator = np.random.default_rng(0)
    patients = np.unique(known.values[:, 0, 0])
    rows = []
    for _ in range(SPLITS):
        chosen = generator.permutation(patients)[: int(SHARE * len(patients))]
        is_chosen = np.isin(known.values[:, 0, 0], chosen)
        limits = Reference(known.structures, known.values[is_chosen])
        for number, structure in enumerate(known.structures):
            scans = known.values[~is_chosen, number]
            table = dict(zip(LIMITED, scans[:, 1:].T, strict=True))
            for name, (held, count, width) in try_limits(
                limits, structure, table, scans[:, 0]
            ).items():
                rows.append((structure, name, held / count, width))
    table = pd.DataFrame(rows, columns=["structure", "limit", "coverage", "width"])
    means = table.groupby(["structure", "limit"])["coverage"].mean()
    widths = table.groupby(["structure", "limit"])["width"].median()
    return pd.concat([means, widths], axis=1)


def try_limits(
    known: Reference, structure: str, scans: Mapping[str, Any], patients: Any
) -> dict[str, tuple[int, int, float]]:
    """Return for how many of how many patients the limits of a structure hold, and their median
    width, by their title.
    """
    limits = find_limits(known, structure, scans)
    (bounds, _), (ranges, _) = limits.values()
    widths = (
        scans["expected_dsc"] - bounds[:, 0],
        np.diff(ranges)[:, 0] / scans["expected_volume"],
    )
    return {
        title: (*count_held(*pair, patients), float(np.nanmedian(width)))
        for (title, pair), width in zip(limits.items(), widths, strict=True)
    }


def limits_table(bundle: str) -> str:
    """Return for how many test patients the limits of a bundle's weights hold, as Markdown."""
    known = read_reference(bundle)
    splits = split_coverage(known)
    columns: dict[str, list[str]] = {}
    for title, scans in test_scans(bundle).items():
        cells = []
        for structure in known.structures:
            table = {name: scans[f"{name}_{structure}"].to_numpy() for name in LIMITED}
            for held, count, _ in try_limits(known, structure, table, scans["patient"]).values():
                low, high = holding_patients(known.count_patients(structure), count)
                cells.append(f"{held} of {count} ({low} to {high})")
        columns[title] = cells
    index = [f"{each}, {limit}" for each in known.structures for limit in TITLES.values()]
    order = [(each, limit) for each in known.structures for limit in TITLES]
    chosen = splits.loc[order]
    columns["over splits"] = [f"{share:.0%}" for share in chosen["coverage"]]
    columns["median width"] = [f"{width:.2f}" for width in chosen["width"]]
    return markdown(pd.DataFrame(columns, index))


def gaps_table(bundle: str) -> str:
    """Return confidence minus accuracy of each structure, Holm-corrected over those of a set, as
    Markdown.
    """
    structures = read_reference(bundle).structures
    columns = {}
    for title, scans in test_scans(bundle).items():
        gaps = [_gap(scans, structure) for structure in structures]
        p_values = [gap.p_value for gap in gaps]
        corrected = zip(gaps, holm_levels(p_values), holm(p_values), strict=True)
        estimates = [gap.estimate(level)._replace(p_value=p) for gap, level, p in corrected]
        columns[title] = [
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] {Judgement(estimate, 0, 0).text}"
            for estimate in estimates
            for mean, low, high, *_ in [estimate]
        ]
    return markdown(pd.DataFrame(columns, [*structures]))


def order_table(bundle: str) -> str:
    """Return how well estimates order the test scans of the heart, as Markdown."""
    structures = read_reference(bundle).structures
    columns = {
        title: _order_cells(scans, structures) for title, scans in test_scans(bundle).items()
    }
    return markdown(pd.DataFrame(columns))


def ensemble_table() -> str:
    """Return what the ensemble of the hippocampus gives beside one network, as Markdown."""
    scans = pd.read_csv(RESULTS / "hippocampus/ensemble.csv")
    scans["DSC"] = scans.filter(regex="^dsc_").mean(axis=1)
    scans["expected"] = scans.filter(regex="^expected_dsc_").mean(axis=1)
    scans["pairwise"] = scans.filter(regex="^pairwise_dsc_").mean(axis=1)
    scans["expected minus true DSC"] = scans["expected"] - scans["DSC"]
    titles = {"nll_all": "NLL, all voxels", "nll_near": "NLL, within 5 mm of a structure"}
    scans = scans.rename(columns=titles)
    measures = ["DSC", *titles.values(), "expected minus true DSC"]
    groups = {
        f"{network}, {'as trained' if temperature == 1 else 'with T'}": of_group.reset_index()
        for (network, temperature), of_group in scans.groupby(
            ["network", "temperature"], sort=False
        )
    }
    columns = {}
    for title, each in groups.items():
        cells = [_estimate(mean_with_interval(each[name], [*each["patient"]])) for name in measures]
        for name in ("expected", "pairwise"):
            known = each[name].notna().all()
            gap = rank_scans(each[name], each["DSC"], each["patient"]).gap_closed if known else ()
            cells.append(_interval(gap) if known else "-")
        columns[title] = cells
    one, several = groups["one network, with T"], groups["ensemble, with T"]
    differences = [
        _estimate(paired_difference(several[name], one[name], [*one["patient"]]), "+")
        for name in measures
    ]
    columns["difference, with T"] = [*differences, "", ""]
    index = [*measures, "gap closed: expected DSC", "gap closed: pairwise DSC"]
    return markdown(pd.DataFrame(columns, index))


def _estimate(found: Any, sign: str = "") -> str:
    return " ".join([f"{found.mean:{sign}.4f}", f"[{found.low:{sign}.4f}, {found.high:{sign}.4f}]"])


def scan_means(scans: pd.DataFrame, measure: str, structures: Sequence[str]) -> pd.Series:
    """Return the means of a measure over the structures of scans; one that is missing counts 0."""
    return scans[[f"{measure}_{name}" for name in structures]].fillna(0).mean(axis=1)


def scan_estimates(scans: pd.DataFrame, structures: Sequence[str]) -> dict[str, pd.Series]:
    """Return estimates of the quality of scans, higher for better, by their title."""
    estimates = {
        "expected DSC": scan_means(scans, "expected_dsc", structures),
        "predicted volume": scan_means(scans, "predicted", structures),
        "mean confidence, predicted voxels": scan_means(scans, "confidence", structures),
        "1 - mean entropy, predicted voxels": 1 - scans["entropy_predicted"],
    }
    agreements = {"pairwise_dsc": "pairwise DSC of networks", "views_dsc": "pairwise DSC of views"}
    for measure, title in agreements.items():
        if f"{measure}_{structures[0]}" in scans:
            estimates[title] = scan_means(scans, measure, structures)
    return estimates


def _order_cells(scans: pd.DataFrame, structures: Sequence[str]) -> dict[str, str]:
    """Return the rows of a set of `order_table`."""
    dsc = scan_means(scans, "dsc", structures)
    estimates = scan_estimates(scans, structures)
    expected = estimates["expected DSC"]
    cells = {"DSC, true and expected": f"{dsc.mean():.3f}, {expected.mean():.3f}"}
    for title, values in estimates.items():
        cells[f"gap closed: {title}"] = _interval(rank_scans(values, dsc, scans["patient"])[0])
    volume = scans["true_volume_LV"].groupby(scans["patient"])
    first = volume.rank(ascending=False) == 1  # of the patient's scans, that with the larger LV
    has_phases = not first.all()
    for phase, chosen in (("end-diastole", first), ("end-systole", ~first)):
        cell = "one phase"
        if has_phases:
            cell = _interval(
                rank_scans(expected[chosen], dsc[chosen], scans["patient"][chosen]).gap_closed
            )
        cells[f"gap closed within {phase}: expected DSC"] = cell
    for bad in (0.7, 0.8):
        count = int((dsc < bad).sum())
        found = rank_scans(expected, dsc, scans["patient"], bad)
        roc = f"{_interval(found.roc)}, " if count >= MIN_BAD else ""
        cells[f"ROC, DSC below {bad}: expected DSC"] = f"{roc}{count} of {len(dsc)} scans"
    return cells


def _interval(found: Any) -> str:
    """Return a value with the ends of its interval."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts as Markdown."""
    rows = [["", *table.columns], ["---"] * (1 + len(table.columns))]
    rows += [[str(name), *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _gap(scans: pd.DataFrame, structure: str) -> CalibrationGap:
    columns = [f"confidence_{structure}", f"accuracy_{structure}"]
    means = scans[columns].dropna().groupby(scans["patient"]).mean()
    return CalibrationGap(means[columns[0]], means[columns[1]])


if __name__ == "__main__":
    for bundle in BUNDLES:
        print(f"{bundle}\n\n{limits_table(bundle)}\n\n{gaps_table(bundle)}\n")
    print(f"{order_table(BUNDLES[0])}\n\n{ensemble_table()}")
