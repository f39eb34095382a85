"""What users of the shipped weights are handed, on patients that were not fitted: do the limits
hold, and is each structure calibrated?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from calib_components.metrics.intervals import interval
from calib_components.posthoc.network import REFERENCE, TESTS, from_bytes
from calib_components.quality import Reference, find_shift
from calib_components.quality.ranking import rank_scans
from calib_components.quality.reference import ALL_DSC, volume_of
from calib_components.quality.shift import SIGNIFICANT
from calib_tools.report.calibration import Judgement
from calib_tools.report.data import derive
from calib_tools.report.statistics import CalibrationGap, correct_gaps, paired_difference
from calib_workflows.data.facts import facts_beside
from calib_workflows.evaluation_files import REFERENCE as MEASURED
from study.compare.compact import with_confidence
from study.tables.networks import markdown, text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "study" / "results"
HEART = {
    "acdc": "ACDC",
    "vendor_a": "Siemens",
    "vendor_b": "Philips",
    "bssfp": "bSSFP",
    "lge": "LGE",
}
AT_HOME = ("ACDC", "Siemens")
SPLITS, DRAWS, SIX = 1000, 200, 6  # of the test of a folder: splits, and draws of six patients
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
    """Return the reference in weights of a bundle, with the test scans of the page of new scans."""
    file = ROOT / "bundles" / bundle / "models" / WEIGHTS[network]
    facts = facts_beside(file)
    assert facts is not None
    weights = torch.load(file, weights_only=True)
    tests = {name: torch.tensor(rows) for name, rows in from_bytes(weights[TESTS]).items()}
    return Reference.from_tensor(weights[REFERENCE], [*facts.structures], tests)


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


def labelled_scans(scans: pd.DataFrame, structures: Sequence[str]) -> Reference:
    """Return the labelled scans of `scans_of` as those of a reference."""
    values = [scans[[f"{measure}_{name}" for name in structures]] for measure in MEASURED]
    return Reference.from_scans(structures, [*scans["patient"]], np.stack(values, -1))


def limits_table(bundle: str, network: str = "nacl") -> str:
    """Return for how many test patients the limits of a bundle's weights hold, as Markdown: those
    in the weights, of whom the page of new scans tells.
    """
    known = read_reference(bundle, network)
    columns = {
        title: {limit: str(each) for limit, each in known.coverage(scans).items()}
        for title, scans in known.tests.items()
    }
    table = pd.DataFrame(columns)
    expected = known.values[..., 1].T
    bounds = np.stack([*map(known.lower_bound, known.structures, expected)])
    widths = {ALL_DSC: np.nanmedian(expected - bounds)}
    for name in known.structures:
        low, high = known.volume_range(name, 1.0)
        widths[volume_of(name)] = high - low
    table["median width"] = pd.Series(widths).map("{:.2f}".format).reindex(table.index).fillna("")
    return _text(table)


def is_unlike(known: Reference, scans: Reference) -> bool:
    """Return whether the network is less sure of the scans than of the reference."""
    expected = dict(zip(scans.structures, scans.values[..., 1].T, strict=True))
    patients = scans.patient_numbers.astype(str)
    p_values = find_shift(known, patients, expected, known.estimate(scans))
    return min(p_values.values()) < SIGNIFICANT


def _of_patients(scans: Reference, patients: np.ndarray) -> Reference:
    return replace(scans, values=scans.values[np.isin(scans.patient_numbers, patients)])


def share_of_splits(known: Reference, home: Reference) -> float:
    """Return in how many random splits of the patients of the reference and those at home the ones
    look unlike the others.
    """
    generator, values = np.random.default_rng(0), home.values.copy()
    values[..., 0] += known.patients
    everyone = replace(known, values=np.concatenate([known.values, values]))
    fired = []
    for _ in range(SPLITS):
        patients = generator.permutation(np.unique(everyone.patient_numbers))
        first, second = np.split(patients, [known.patients])
        fired.append(is_unlike(_of_patients(everyone, first), _of_patients(everyone, second)))
    return float(np.mean(fired))


def shift_table() -> str:
    """Return how often the test of a folder fires, for each set and network of the heart, as
    Markdown.
    """
    rows = {}
    for network, title in SHIPPED.items():
        known = read_reference(BUNDLES[0], network)
        sets = {
            name: labelled_scans(scans, known.structures)
            for name, scans in scans_of(BUNDLES[0], network).items()
        }
        row = {}
        for name, scans in sets.items():
            generator, patients = np.random.default_rng(0), np.unique(scans.patient_numbers)
            draws = (generator.choice(patients, SIX, replace=False) for _ in range(DRAWS))
            fired = [is_unlike(known, _of_patients(scans, drawn)) for drawn in draws]
            all_of_them = "yes" if is_unlike(known, scans) else "no"
            row[name] = f"{np.mean(fired):.0%}; {all_of_them}"
        at_home = [each.values.copy() for name, each in sets.items() if name in AT_HOME]
        at_home[1][..., 0] += sets[AT_HOME[0]].patients
        home = replace(known, values=np.concatenate(at_home))
        row["splits at home"] = f"{share_of_splits(known, home):.1%}"
        rows[title] = row
    return _text(pd.DataFrame(rows).T)


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
                mean = interval(scans[measure], [*scans["patient"]])
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
        cells = [text(interval(each[name], [*each["patient"]])) for name in measures]
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
