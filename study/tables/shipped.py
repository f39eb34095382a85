"""What users of the shipped weights are handed, on patients that were not fitted: do the limits
hold, and is each structure calibrated?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from calib_components.posthoc.network import REFERENCE
from calib_components.quality import Reference
from calib_components.quality.ranking import rank_scans
from calib_components.quality.reference import holding_patients
from calib_tools.report.calibration import Judgement
from calib_tools.report.data import derive
from calib_tools.report.quality import LIMITED, count_held, find_limits
from calib_tools.report.statistics import (
    CalibrationGap,
    correct_gaps,
    mean_with_interval,
    paired_difference,
)
from calib_workflows.data.facts import facts_beside
from study.compare.compact import with_confidence
from study.tables.networks import markdown, text

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
PARTS = ("RV", "MYO", "LV")
SHIPPED = {"nacl": "NACL", "cross_entropy": "CE", "ensemble": "ensemble"}  # of the heart
MEASURES = {"dsc": "DSC", "expected_dsc": "expected DSC", "nll_all": "NLL, all voxels"}
WEIGHTS = {
    "nacl": "model.pt",
    "cross_entropy": "cross_entropy/model.pt",
    "ensemble": "cross_entropy/ensemble.pt",
}
BUNDLES = ("acdc_mri_nacl_segmentation", "hippocampus_mri_nacl_segmentation")


def read_reference(bundle: str, network: str = "nacl") -> Reference:
    """Return the reference in weights of a bundle."""
    file = ROOT / "bundles" / bundle / "models" / WEIGHTS[network]
    facts = facts_beside(file)
    assert facts is not None
    weights = torch.load(file, weights_only=True)
    (stored,) = (values for name, values in weights.items() if name.endswith(REFERENCE))
    return Reference.from_tensor(stored, [*facts.structures])


def scans_of(bundle: str, network: str = "nacl") -> dict[str, pd.DataFrame]:
    """Return the test scans of a network that a bundle ships, as users get them, by the title of
    their set.
    """
    if bundle == BUNDLES[0]:
        table = pd.read_csv(RESULTS / "acdc/shipped/cases.csv.gz")
        table = table[table["method"] == network].dropna(axis=1, how="all")
        return {
            title: _derived(table[table["test_set"] == name], PARTS)
            for name, title in HEART.items()
        }
    table = pd.read_csv(RESULTS / "hippocampus/cases.csv.gz")
    is_shipped = (table["method"] == "nacl_0.03") & (table["seed"] == 0)
    scans = table[is_shipped & (table["temperature"] == "with")]
    return {"hippocampus": _derived(scans, ["anterior", "posterior"])}


def _derived(scans: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
    """Return scans with what follows from their measures."""
    return derive(with_confidence(scans.reset_index(drop=True)), structures)


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
    bounds, ranges = limits.values()
    widths = (
        scans["expected_dsc"] - bounds["low"],
        (ranges["high"] - ranges["low"]) / scans["expected_volume"],
    )
    return {
        title: (*count_held(table, patients), float(width.median()))
        for (title, table), width in zip(limits.items(), widths, strict=True)
    }


def limits_table(bundle: str, network: str = "nacl") -> str:
    """Return for how many test patients the limits of a bundle's weights hold, as Markdown."""
    known = read_reference(bundle, network)
    splits = split_coverage(known)
    columns: dict[str, list[str]] = {}
    for title, scans in scans_of(bundle, network).items():
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
    return _text(pd.DataFrame(columns, index))


def gaps_table(bundle: str, network: str = "nacl") -> str:
    """Return confidence minus accuracy of each structure, Holm-corrected over those of a set, as
    Markdown.
    """
    structures = read_reference(bundle).structures
    columns = {}
    for title, scans in scans_of(bundle, network).items():
        gaps = {
            structure: CalibrationGap(
                scans[f"confidence_{structure}"], scans[f"accuracy_{structure}"], scans["patient"]
            )
            for structure in structures
        }
        columns[title] = [
            f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] {Judgement(gap).text}"
            for gap in correct_gaps(gaps).values()
        ]
    return _text(pd.DataFrame(columns, [*structures]))


def numbers_table() -> str:
    """Return DSC, NLL and calibration of the shipped networks of the heart, as Markdown."""
    rows: dict[str, list[str]] = {}
    for network, title in SHIPPED.items():
        for scans in scans_of(BUNDLES[0], network).values():
            for measure, name in MEASURES.items():
                mean = mean_with_interval(scans[measure], [*scans["patient"]])
                rows.setdefault(f"{title}: {name}", []).append(text(mean, digits=3))
            confidence, accuracy = _predicted(scans)
            gap = CalibrationGap(confidence, accuracy, confidence.index).estimate()
            cell = text([100 * each for each in gap[:3]], "+", 1)
            rows.setdefault(f"{title}: too sure by, points", []).append(cell)
    return markdown(rows, [*HEART.values()])


def _predicted(scans: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return confidence and accuracy of each patient where a structure is predicted, if one is."""
    sums = {}
    for each in ("confidence", "accuracy"):
        parts = [
            (scans[f"{each}_{name}"] * scans[f"segmented_volume_{name}"]).fillna(0)
            for name in PARTS
        ]
        sums[each] = sum(parts).groupby(scans["patient"]).sum()
    volumes = scans[[f"segmented_volume_{name}" for name in PARTS]].sum(axis=1)
    volume = volumes.groupby(scans["patient"]).sum().replace(0, np.nan).dropna()
    sums = {each: values[volume.index] for each, values in sums.items()}
    return sums["confidence"] / volume, sums["accuracy"] / volume


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
        cells = [text(mean_with_interval(each[name], [*each["patient"]])) for name in measures]
        for name in ("expected", "pairwise"):
            if each[name].notna().all():
                ranking = rank_scans(each[name], each["DSC"], each["patient"])
                cells.append(text([*ranking.gap_closed], digits=2))
            else:
                cells.append("-")
        columns[title] = cells
    one, several = groups["one network, with T"], groups["ensemble, with T"]
    differences = [
        text(paired_difference(several[name], one[name], [*one["patient"]]), "+")
        for name in measures
    ]
    columns["difference, with T"] = [*differences, "", ""]
    index = [*measures, "gap closed: expected DSC", "gap closed: pairwise DSC"]
    return _text(pd.DataFrame(columns, index))


def _text(table: pd.DataFrame) -> str:
    """Return a table of texts as Markdown."""
    rows = dict(zip(table.index, table.to_numpy().tolist(), strict=True))
    return markdown(rows, [*table.columns])
