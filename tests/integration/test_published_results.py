"""The results that are kept under `results/`, and what README and bundle say about them."""

from __future__ import annotations

import csv
import itertools
import json
import math
import operator
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from scipy.stats import kendalltau, rankdata

from calib_components.handlers.evaluation_files import read_regions
from calib_components.handlers.fingerprint import EVALUATION, TRAINING, fingerprint
from calib_components.handlers.temperature import read_temperature
from calib_components.tools.compare import report, report_datasets, report_evaluations
from calib_components.tools.compare.cell_settings import Condition
from calib_components.tools.compare.settings import TABLE1, choose_settings
from calib_components.tools.report.published import PUBLISHED, RANKED
from calib_components.tools.report.results import read_results
from calib_components.tools.report.statistics import mean_with_interval, paired_difference
from scripts.draw_results import draw_results
from tests.helpers import ROOT, SHARED, run_script

DATA = SHARED / "data" / "acdc"
SEEDS = ROOT / "results/acdc/three_seeds"
FURTHER = ROOT / "results/acdc/further"
WITHOUT_DICE = ROOT / "results/acdc/without_dice"
SHIPPED = FURTHER / "nacl_softmax/seed0"  # the cell of the weights in the ACDC bundle
BRATS = ROOT / "results/brats/leave_one_out"
BUNDLE = ROOT / "bundles/acdc_mri_nacl_segmentation"
VARIANTS = ROOT / "results/acdc/variants"
CHAOS = ROOT / "results/chaos"
PROTOCOL = {"val_interval": 4, "compile": True}
ABDOMEN = {  # where CHAOS differs from ACDC
    "num_classes": 5,
    "label_codes": [0, 1, 2, 3, 4],
    "structures": {"liver": [1], "right kidney": [2], "left kidney": [3], "spleen": [4]},
    "image_size": [160, 160],
    "crop_size": [160, 160],
    "any_orientation": False,
}
# A part of the page on results, from one text to another, and the folders that have its numbers.
TEXTS = [
    ((SEEDS, FURTHER, WITHOUT_DICE), "# Results", "## Three seeds"),
    ((SEEDS,), "## Three seeds", "## Beyond the seven"),
    ((FURTHER,), "## Beyond the seven", "### Against cross-entropy"),
    ((WITHOUT_DICE,), "### Against cross-entropy", "### The shipped setting"),
    ((VARIANTS,), "## The weight of NACL's penalty", "## A second anatomy"),
    ((CHAOS,), "## A second anatomy", "## Abdominal CT"),
]
OF_TEXTS = pytest.mark.parametrize(
    ("folders", "begin", "end"),
    TEXTS,
    ids=["summary", "three_seeds", "further", "against_cross_entropy", "variants", "chaos"],
)
NUMBERS = {7: "seven", 8: "eight"}
TITLES = {
    "ce_dice": "CE + Dice", "focal": "FL", "entropy_penalty": "ECP", "label_smoothing": "LS", "svls": "SVLS",
    "mbls": "MbLS", "nacl": "NACL",
}  # fmt: skip
NEED_NO_TEMPERATURE = ("entropy_penalty", "svls")
METADATA = json.loads((BUNDLE / "configs/metadata.json").read_text())
TABLE = {
    "DSC": "dsc",
    "NLL, all voxels": "nll_all",
    "ECE, all voxels": "ece_all",
    "ECE, predicted foreground": "ece_predicted",
    "ECE, plausible foreground": "ece_plausible",
    "ECE, true foreground (the paper's)": "ece",
}


def test_table_is_complete() -> None:
    results = read_results(SEEDS)
    assert not results.missing
    assert [method.name for method in results.methods] == [setting.name for setting in TABLE1]


def test_cells_of_several_folders_are_the_same() -> None:
    """The reference and what is compared with several others are in more than one folder."""
    for name, other in (("ce_dice", SEEDS), ("nacl_softmax", VARIANTS)):
        contents = [
            {file.relative_to(folder): file.read_bytes() for file in (folder / name).rglob("*") if file.is_file()}
            for folder in (FURTHER, other)
        ]
        assert len(contents[0]) > 80
        assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("folder", "changes"),
    [(SEEDS, {}), (FURTHER, {}), (VARIANTS, {}), (CHAOS, ABDOMEN)],
    ids=["three_seeds", "further", "variants", "chaos"],
)
def test_cells_are_those_of_the_bundle_as_it_is(folder: Path, changes: dict[str, Any]) -> None:
    for method in read_results(folder).methods:
        (setting,) = choose_settings([method.name], BUNDLE)
        for settings in (cell.settings for cell in method.cells):
            for files, overrides, ids, expected in (
                (("train.yaml", f"losses/{setting.loss}.yaml"), setting.overrides, TRAINING, settings.training),
                (("train.yaml", "evaluate.yaml"), {}, EVALUATION, settings.evaluation),
            ):
                parser = ConfigParser()
                parser.read_config([str(BUNDLE / "configs" / file) for file in files])
                parser.update({**PROTOCOL, **changes, **overrides, "seed": settings.seed})
                assert fingerprint(parser.get(), ids) == expected


def test_no_picture_of_a_patient_is_kept() -> None:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("needs a clone of the repository")
    assert "results/acdc/three_seeds/nacl/seed0/cases.csv\n" in listed.stdout
    assert "/cases/" not in listed.stdout


@pytest.mark.parametrize(
    ("folder", "reference"),
    [
        (SEEDS, "ce_dice"),
        (FURTHER, "ce_dice"),
        (WITHOUT_DICE, "cross_entropy"),
        (VARIANTS, None),
        (CHAOS, "ce_dice"),
        (BRATS, None),
    ],
    ids=["three_seeds", "further", "without_dice", "variants", "chaos", "brats"],
)
def test_report_is_rebuilt_byte_for_byte(folder: Path, reference: str | None, tmp_path: Path) -> None:
    results = shutil.copytree(folder, tmp_path / "results", ignore=shutil.ignore_patterns("cases", "work"))
    report(results, tmp_path / "report", reference)
    compare_with_kept(tmp_path / "report", folder / "report")


def test_means_and_p_values_follow_from_the_cases() -> None:
    """From `cases.csv` alone, with all signs of the patients' differences; the report draws 10,000 of them."""
    measures, methods = ("nll_all", "ece_all", "ece_predicted"), [setting.name for setting in TABLE1]
    patient_of = json.loads((SEEDS / "nacl/seed0/settings.json").read_text())["patients"]
    patients = sorted(set(patient_of.values()))
    with open(SEEDS / "report/means.csv", newline="") as file:
        means = {
            (r["method"], r["measure"]): float(r["mean"]) for r in csv.DictReader(file) if r["temperature"] == "without"
        }
    with open(SEEDS / "report/differences.csv", newline="") as file:
        differences = {(row["method"], row["measure"]): row for row in csv.DictReader(file)}
    signs = np.array(list(itertools.product((1, -1), repeat=len(patients))), np.int8)
    drawn: dict[tuple[str, str], float] = {}
    for measure in measures:
        of_patients = {}
        for method in methods:
            files = [SEEDS / method / f"seed{seed}/cases.csv" for seed in range(3)]
            rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
            assert fmean(float(row[measure]) for row in rows) == pytest.approx(means[method, measure])
            of_patients[method] = np.array(
                [fmean(float(row[measure]) for row in rows if patient_of[row["case"]] == name) for name in patients]
            )
        for method in methods[1:]:
            difference = of_patients[method] - of_patients["ce_dice"]
            assert float(differences[method, measure]["mean"]) == pytest.approx(difference.mean())
            sums = abs(signs @ difference)
            exact = (sums >= abs(difference.sum()) * (1 - 1e-9)).mean()
            drawn[method, measure] = float(differences[method, measure]["p_value"])
            assert drawn[method, measure] == pytest.approx(exact, abs=1e-4 + 5 * (exact * (1 - exact) / 10_000) ** 0.5)
    highest = 0.0
    for place, key in enumerate(sorted(drawn, key=drawn.__getitem__)):
        highest = min(1.0, max(highest, (len(drawn) - place) * drawn[key]))
        assert float(differences[key]["p_value_holm"]) == pytest.approx(highest)


def test_overview_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    report_datasets([SEEDS, CHAOS], tmp_path / "overview")
    compare_with_kept(tmp_path / "overview", ROOT / "results/overview")


@pytest.mark.parametrize("test_set", ["own", "bssfp", "lge"])
def test_report_of_ensembles_is_rebuilt_byte_for_byte(test_set: str, tmp_path: Path) -> None:
    folder = ROOT / "results/acdc/ensembles" / test_set
    networks = [folder / f"ensemble_of_{name}" for name in ("ce_dice", "ce_dice_T", "nacl", "nacl_T")]
    report_evaluations(networks, tmp_path / "report")
    compare_with_kept(tmp_path / "report", folder / "report")


def compare_with_kept(report: Path, kept_report: Path) -> None:
    # Its numbers are rounded, so the same with all versions of numpy and others.
    assert (report / "report.md").read_bytes() == (kept_report / "report.md").read_bytes()
    compare_bytes(report, kept_report)


def compare_bytes(folder: Path, kept_folder: Path) -> None:
    made, kept = ({path.name: path.read_bytes() for path in each.iterdir()} for each in (folder, kept_folder))
    assert made.keys() == kept.keys()
    drawn_with = {"numpy": METADATA["numpy_version"], **METADATA["required_packages_version"]}
    for name in ("matplotlib", "numpy", "scipy"):
        if version(name) != drawn_with[name]:
            pytest.skip(f"figures and last digits may differ: {name} is {version(name)}, was {drawn_with[name]}")
    assert [name for name in made if made[name] != kept[name]] == []


def compare_picture(name: str, draw: Callable[..., None], folder: Path) -> None:
    """Draw a picture of the pages again."""
    (folder / "kept").mkdir()
    (folder / "made").mkdir()
    shutil.copy(ROOT / "docs" / name, folder / "kept")
    draw(out=folder / "made" / name)
    compare_bytes(folder / "made", folder / "kept")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
def test_all_that_tests_skip_without_is_there() -> None:
    """A folder of another name would silence them."""
    for name in ("acdc", "brats", "flare", "mscmr/bssfp", "mscmr/lge", "chaos"):
        assert (SHARED / "data" / name).is_dir()
    assert len(list((SHARED / "golden").glob("*.npz"))) == 4
    assert len(list((SHARED / "modelzoo").glob("meta_schema_*.json"))) == 1


def test_picture_is_that_of_the_report(tmp_path: Path) -> None:
    compare_picture("results.png", draw_results, tmp_path)


def confidence_and_accuracy(method: Path, folder: str = "") -> list[tuple[float, float]]:
    """Where a structure is predicted, in percent, all voxels of three seeds pooled, on each test set."""
    found = []
    for place in PLACES_OF_CELLS:
        kept = [read_regions(method / f"seed{seed}" / place / folder)["predicted"]["top_label"] for seed in range(3)]
        bins = kept[0] + kept[1] + kept[2]
        sums = bins.confidence_sum.sum(), bins.num_correct.sum()
        found.append(tuple(100 * (each / bins.count.sum()).item() for each in sums))
    return found


def test_confidence_and_accuracy_are_those_of_the_bins() -> None:
    page = (ROOT / "docs/results.md").read_text()
    for method, title in TITLES.items():
        for suffix, folder in (("", ""), (" + T", "temperature"))[: 1 if method in NEED_NO_TEMPERATURE else 2]:
            shown = [
                f"{confidence:.0f} / {accuracy:.0f} %"
                for confidence, accuracy in confidence_and_accuracy(SEEDS / method, folder)
            ]
            assert f"| {title}{suffix} | {' | '.join(shown)} |" in page
    home, bssfp, lge = confidence_and_accuracy(FURTHER / "nacl_softmax")
    shown = "it is {:.0f} % confident and {:.0f} % right at home, {:.0f} % and {:.0f} % on bSSFP and {:.0f} % and"
    assert f"{shown.format(*home, *bssfp, lge[0])} {lge[1]:.0f} % on LGE" in section("## Beyond", "### The shipped")
    gaps = {
        (method, folder): operator.sub(*confidence_and_accuracy(SEEDS / method, folder)[2])
        for method in TITLES
        for folder in ("", "temperature")
    }
    ls, nacl, fl = (gaps[method, ""] for method in ("label_smoothing", "nacl", "focal"))
    others = [gaps[name, ""] for name in ("mbls", "entropy_penalty", "svls")]
    others += [gaps[name, "temperature"] for name in ("ce_dice", "focal")] + [lge[0] - lge[1]]
    shown = (
        f"LS and NACL as trained were overconfident by {ls:.0f} and {nacl:.0f} percentage points where a structure is "
        f"predicted; MbLS, ECP, SVLS and NACL on the softmax, and FL and CE + Dice with a temperature, by "
        f"{min(others):.0f} to {max(others):.0f}; FL as trained was underconfident by {-fl:.0f} even there"
    )
    assert shown in section("## What to use when", "## Three seeds")


PLACES_OF_CELLS = ("", "on_bssfp", "on_lge")
PLACES = ((SEEDS, ""), (SEEDS, "_on_bssfp"), (SEEDS, "_on_lge"), (CHAOS, ""))  # columns of the table of claims


def cells_of_claim(title: str) -> list[str]:
    (line,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", (ROOT / "docs/results.md").read_text(), re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def means_without_temperature(folder: Path, test_set: str) -> dict[str, dict[str, float]]:
    """By measure and method."""
    means: dict[str, dict[str, float]] = {}
    for row in read_table(folder / f"report/means{test_set}.csv"):
        if row["temperature"] == "without":
            means.setdefault(row["measure"], {})[row["method"]] = float(row["mean"])
    return means


@pytest.mark.parametrize(
    ("measure", "claim", "digits"),
    [
        ("ece", "lower ECE than CE + Dice", 3),
        ("cece", "lower CECE than CE + Dice", 3),
        ("dsc", "no loss of DSC", 3),
        ("hd95", "lower HD95 (voxels)", 2),
    ],
)
def test_claims_of_the_paper_have_the_differences_of_the_reports(measure: str, claim: str, digits: int) -> None:
    *cells, _ = cells_of_claim(claim)
    for cell, (folder, test_set) in zip(cells, PLACES, strict=True):
        (row,) = (
            row
            for row in read_table(folder / f"report/conditions{test_set}.csv")
            if (row["method"], row["measure"]) == ("nacl", measure)
            and (row["temperature"], row["reference_temperature"]) == ("without", "without")
        )
        mean, low, high = (f"{float(row[name]):+.{digits}f}" for name in ("mean", "low", "high"))
        assert cell == f"{mean} [{low}, {high}]"
        if (folder, test_set, measure) == (SEEDS, "", "ece"):
            before, after = float(row["p_value"]), float(row["p_value_holm"])
            assert f"only before correction ({before:.3f}; after it, p = {after:.2f})" in cells_of_claim(claim)[-1]


@pytest.mark.parametrize("measure", ["ece", "cece"])
def test_claims_of_table_2_have_the_differences_of_the_report(measure: str) -> None:
    *cells, _, _ = cells_of_claim(f"higher {measure.upper()} with the penalty on the softmax")
    for cell, test_set in zip(cells, ("", "_on_bssfp", "_on_lge"), strict=True):
        (row,) = (
            row
            for row in read_table(VARIANTS / f"report/conditions{test_set}.csv")
            if (row["method"], row["measure"]) == ("nacl_softmax", measure)
            and (row["temperature"], row["reference_temperature"]) == ("without", "without")
        )
        assert cell == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*(float(row[name]) for name in ("mean", "low", "high")))


def test_claims_of_the_paper_have_the_ranks_of_the_means() -> None:
    for place, (folder, test_set) in enumerate(PLACES):
        means = means_without_temperature(folder, test_set)
        ranks = {
            measure: dict(
                zip(of, rankdata([-value if measure == "dsc" else value for value in of.values()]), strict=True)
            )
            for measure, of in means.items()
            if measure in RANKED
        }
        assert set(ranks) == set(RANKED)
        sums = {method: sum(of[method] for of in ranks.values()) for method in means["dsc"]}
        number = len(sums)
        assert cells_of_claim("lowest ECE")[place] == f"{ranks['ece']['nacl']:g} of {number}"
        assert cells_of_claim("lowest CECE")[place] == f"{ranks['cece']['nacl']:g} of {number}"
        lower = sum(value < sums["nacl"] for value in sums.values())
        assert cells_of_claim("first by sum-rank")[place] == f"{sums['nacl']:g}: {lower + 1} of {number}"
        of_report = {row["method"]: float(row["sum_rank"]) for row in read_table(folder / "report/ranks.csv")}
        assert test_set or of_report == sums
    ranks_at_home = {
        row["method"]: "{:.0f} [{:.0f}, {:.0f}]".format(
            *(float(row[f"sum_rank{end}"]) for end in ("", "_low", "_high"))
        )
        for row in read_table(SEEDS / "report/ranks.csv")
    }
    shown = ", ".join(f"{TITLES[name]} {rank}" for name, rank in ranks_at_home.items() if name != "nacl")
    assert f"with intervals: NACL {ranks_at_home['nacl']}, {shown}." in section("### What the paper", "## Beyond")


@OF_TEXTS
def test_differences_in_the_text_are_those_of_the_reports(folders: Sequence[Path], begin: str, end: str) -> None:
    """Each `mean (low to high)`, with either sign: which is better says the sentence."""
    rows = [
        tuple(float(row[name]) for name in ("mean", "low", "high"))
        for folder in folders
        for row in read_reported(folder, "differences", "conditions", "temperature")
    ]
    both = [signed for mean, low, high in rows for signed in ((mean, low, high), (-mean, -high, -low))]
    number = r"(-?\d+\.\d{2,})"
    shown = re.findall(
        rf"{number}(?: (?:higher|lower|better|worse))?,? \(?(?:95 % interval )?{number} to {number}",
        section(begin, end).replace("interval 0.92 to 1.24", ""),  # of T
    )
    assert shown
    for texts in shown:
        digits = len(texts[0].partition(".")[2])
        assert any(texts == tuple(f"{value:.{digits}f}" for value in row) for row in both), texts


@OF_TEXTS
def test_p_values_in_the_text_are_those_of_the_reports(folders: Sequence[Path], begin: str, end: str) -> None:
    rows = [
        float(row["p_value_holm"]) for folder in folders for row in read_reported(folder, "differences", "conditions")
    ]
    shown = re.findall(r"p = (0\.\d+)", section(begin, end))
    assert shown or FURTHER in folders
    for text in shown:
        assert any(f"{p_value:.{len(text) - 2}f}" == text for p_value in rows), text


def read_table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def section(begin: str, end: str) -> str:
    """A part of the page, without line breaks."""
    return " ".join((ROOT / "docs/results.md").read_text().partition(begin)[2].partition(end)[0].split())


def read_reported(folder: Path, *names: str) -> list[dict[str, str]]:
    """The rows of tables of a report, for all its test sets."""
    files = [file for name in names for file in sorted((folder / "report").glob(f"{name}*.csv"))]
    return [row for file in files for row in read_table(file)]


def test_page_says_what_the_weight_of_the_penalty_does() -> None:
    text = section("## The weight of NACL's penalty", "## A second anatomy")
    names = ("nacl_0.01", "nacl_0.03", "nacl", "nacl_0.3")
    temperatures = [f"{read_temperature(VARIANTS / name / 'seed0/temperature').temperature:.2f}" for name in names]
    assert "temperatures are {}, {}, {} and {}".format(*temperatures) in text
    (cell,) = (row for row in read_reported(VARIANTS, "cells") if row["method"] == "nacl_0.01")
    plain, scaled = (float(cell[f"val_nll{suffix}"]) for suffix in ("", "_with_temperature"))
    assert f"it is {plain:.4f}, with a temperature {scaled:.4f}" in text
    larger = [next(row for row in read_reported(VARIANTS, "cells") if row["method"] == name) for name in names[1:]]
    nll, with_temperature = (
        "{:.4f}, {:.4f} and {:.4f}".format(*(float(row[name]) for row in larger))
        for name in ("val_nll", "val_nll_with_temperature")
    )
    assert f"with the larger weights {nll}, with temperatures {with_temperature}" in text
    page = " ".join((ROOT / "docs/penalty_weight.md").read_text().split())
    shares: dict[str, list[tuple[float, float]]] = {}
    for place in ("", "on_bssfp", "on_lge"):
        for name in names:
            bins = read_regions(VARIANTS / name / "seed0" / place)["predicted"]["top_label"]
            sums = bins.confidence_sum.sum(), bins.num_correct.sum()
            shares.setdefault(place, []).append(tuple(100 * (each / bins.count.sum()).item() for each in sums))
    on_bssfp, on_lge = (
        [f"{confidence - accuracy:.0f}" for confidence, accuracy in shares[place]] for place in ("on_bssfp", "on_lge")
    )
    for gaps in (on_bssfp, on_lge):
        assert "is {}, {}, {} and {} percentage points".format(*gaps) in text
    assert f"falls from {on_lge[0]} percentage points (0.01) to {on_lge[2]} (0.1) and {on_lge[3]} (0.3)" in page
    assert f"on bSSFP of another hospital, from {on_bssfp[0]} to {on_bssfp[2]} and {on_bssfp[3]}" in page
    of_predicted = means_without_temperature(VARIANTS, "_on_bssfp")["ece_predicted"]
    assert min(of_predicted, key=lambda name: of_predicted[name]) == "nacl_0.03"
    confidence, accuracy = zip(*shares[""], strict=True)
    assert f"accuracy stays at {min(accuracy):.0f} to {max(accuracy):.0f} %" in page
    assert f"falls from {confidence[0]:.0f} % (weight 0.01) to {confidence[3]:.0f} % (0.3)" in page


def test_page_has_the_temperatures_and_the_published_numbers_of_the_variants() -> None:
    text = section("## NACL's other variants", "## A second anatomy")
    softmax, l2 = (
        [
            read_temperature(file.parent).temperature
            for file in (VARIANTS / name).glob("seed*/temperature/temperature.json")
        ]
        for name in ("nacl_softmax", "nacl_l2")
    )
    assert len(softmax) == 3
    assert f"needed no temperature** (T = {min(softmax):.2f} to {max(softmax):.2f})" in text
    assert f"more underconfident (T = {l2[0]:.2f})" in text

    def gaps(name: str) -> list[float]:
        found = [read_regions(folder)["predicted"]["top_label"] for folder in (VARIANTS / name).glob("seed*/on_lge")]
        return sorted(
            100 * ((bins.confidence_sum - bins.num_correct).sum() / bins.count.sum()).item() for bins in found
        )

    least, _, most = gaps("nacl_softmax")
    (nacl,), (of_l2,) = gaps("nacl"), gaps("nacl_l2")
    assert f"is {least:.0f} to {most:.0f} percentage points, that of NACL {nacl:.0f}; squared" in text
    assert f"squared differences leave {of_l2:.0f}." in text
    of_paper = [PUBLISHED["acdc"][name] for name in ("nacl", "nacl_softmax", "nacl_l2", "nacl_5x5")]
    dsc, _, ece, cece = (
        "{}, {}, {} and {}".format(*(f"{value:.3f}".lstrip("0") for value in values))
        for values in zip(*of_paper, strict=True)
    )
    assert f"DSC {dsc}, ECE {ece} and CECE {cece}, in the order" in text


def test_page_has_the_temperatures_and_the_published_numbers_of_the_priors() -> None:
    text = section("### The priors", "## A second anatomy")
    priors = ["gaussian", "max", "min", "median", "mode"]
    for prior in priors:
        temperature = read_temperature(VARIANTS / f"nacl_{prior}/seed0/temperature").temperature
        assert f"**`{prior}`** (T = {temperature:.2f})" in text
    of_paper = [PUBLISHED["acdc"][name] for name in ("nacl", *(f"nacl_{prior}" for prior in priors))]
    dsc, _, ece, cece = (
        ", ".join(f"{value:.3f}".lstrip("0") for value in values) for values in zip(*of_paper, strict=True)
    )
    shown = text.replace(" and .", ", .")
    assert f"DSC {dsc}, ECE {ece}, and" in shown
    assert f"CECE {cece}:" in shown


def test_page_says_what_one_patient_of_chaos_does_to_the_temperatures() -> None:
    text = section("## A second anatomy", "## Abdominal CT")
    methods = ("ce_dice", "svls", "nacl")
    ce_dice, svls, nacl = fits = [read_temperature(CHAOS / method / "seed0_fold0/temperature") for method in methods]
    assert f"(T = {ce_dice.temperature:.2f})" in text
    of_svls = f"{svls.temperature:.2f}, interval {svls.low:.2f} to {svls.high:.2f}"
    assert f"SVLS could not be shown to need a temperature ({of_svls})" in text
    assert f"NACL is underconfident ({nacl.temperature:.2f})" in text
    without = [f"{fit.leave_one_out['chaos15']:.2f}" for fit in fits]
    assert "without this patient, T is {}, {} and {}".format(*without) in text
    coverage = [100 * fit.coverage for fit in fits]
    assert f"in only {min(coverage):.0f} to {max(coverage):.0f} % of simulations" in text
    files = [file for method in methods for file in (CHAOS / method).glob("seed0_fold*/cases.csv")]
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    failed, others = ([row for row in rows if (row["case"] == "chaos15") is fails] for fails in (True, False))
    found = [{"dsc": row[f"dsc_{name}"]} for row in failed for name in ("liver", "spleen")]
    assert f"no network finds them (DSC {ends(found, 'dsc', 2)})" in text
    highest = max(float(row["nll_all"]) for row in others)
    assert f"Its NLL is {ends(failed, 'nll_all', 2)}, that of all others at most {highest:.3f}" in text


def test_page_has_the_ranks_of_the_overview() -> None:
    text = section("## A second anatomy", "## Abdominal CT")

    def of(ranking: str, method: str) -> str:
        with open(ROOT / f"results/overview/ranks_{ranking}.csv", newline="") as file:
            (row,) = (row for row in csv.DictReader(file) if row["method"] == method)
        rank, low, high = (float(row[f"sum_rank{end}"]) for end in ("", "_low", "_high"))
        return f"{rank:.0f} [{low:.0f}, {high:.0f}]"

    titles = ("the paper's measures", "DSC, HD95, NLL, ECE over all and predicted voxels")
    for title, ranking in zip(titles, ("paper", "probabilities"), strict=True):
        plain, scaled = (
            " | ".join(of(f"{ranking}{suffix}", method) for method in ("nacl", "ce_dice", "svls"))
            for suffix in ("", "_temperature")
        )
        assert f"| {title} | {plain} | | the same, with temperatures | {scaled} |" in text
    sums = dict.fromkeys(("nacl", "ce_dice", "svls"), 0.0)
    for folder, place in ((SEEDS, ""), (SEEDS, "bssfp"), (SEEDS, "lge"), (CHAOS, "")):
        methods = {method.name: method for method in read_results(folder).at(Condition(place)).methods}
        for measure in RANKED:
            values = {name: methods[name].by_run(measure) for name in sums}
            if folder == SEEDS:
                values["ce_dice"] = values["ce_dice"][:2]  # without the third network
            means = [np.nanmean(np.nanmean(of_runs, axis=0)) for of_runs in values.values()]
            for name, rank in zip(sums, rankdata([-mean if measure == "dsc" else mean for mean in means]), strict=True):
                sums[name] += rank
    expected = (
        "without it, the sum-ranks by the paper's measures are {:g} for NACL, {:g} for CE + Dice and {:g} for SVLS."
    )
    assert expected.format(*sums.values()) in text


def test_what_shift_adds_and_what_is_plausible_to_each_loss() -> None:
    gaps: dict[tuple[str, str], dict[str, float]] = {}
    plausible: dict[str, list[float]] = {}
    for method in TITLES:
        for folder in ("", "temperature"):
            for place in ("", "on_bssfp", "on_lge"):
                kept = [read_regions(SEEDS / method / f"seed{seed}" / place / folder) for seed in range(3)]
                predicted, every, likely = (
                    kept[0][region]["top_label"] + kept[1][region]["top_label"] + kept[2][region]["top_label"]
                    for region in ("predicted", "all", "plausible")
                )
                gap = (predicted.confidence_sum.sum() - predicted.num_correct.sum()) / predicted.count.sum()
                gaps.setdefault((method, folder), {})[place] = 100 * gap.item()
                plausible.setdefault(method, []).append(100 * (likely.count.sum() / every.count.sum()).item())
    to_bssfp, to_lge = (sorted(gap[place] - gap[""] for gap in gaps.values()) for place in ("on_bssfp", "on_lge"))
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    assert f"to bSSFP by {to_bssfp[0]:.1f} to {to_bssfp[-1]:.1f} percentage points" in text
    assert f"to LGE by {to_lge[0]:.1f} to {to_lge[-1]:.1f}, with or without a temperature" in text
    ls, fl = plausible.pop("label_smoothing"), plausible.pop("focal")
    others = [share for shares in plausible.values() for share in shares]
    shown = (
        f"in {min(ls):.1f} % of all voxels, FL in {min(fl):.0f} to {max(fl):.0f} %, the others in {min(others):.0f} to "
        f"{max(others):.0f} %"
    )
    assert shown in text


def test_what_uncertainty_finds_on_lge() -> None:
    found = read_results(SEEDS).at(Condition("lge"))
    share = [100 * np.nanmean(method.values("error_share_5")) for method in found.methods]
    aurc = {method.name: f"{np.nanmean(method.values('aurc')):.3f}" for method in found.methods}
    ls, mbls, nacl = (aurc.pop(name) for name in ("label_smoothing", "mbls", "nacl"))
    assert mbls == nacl
    shown = (
        f"the 5 % least certain voxels hold {min(share):.0f} to {max(share):.0f} % of the errors for each loss, and "
        f"over all thresholds (AURC, lower is better) LS ({ls}), MbLS and NACL (both {nacl}) find errors less well "
        f"than the others ({min(aurc.values())} to {max(aurc.values())})"
    )
    text = section("### What they show", "### Where the rankings")
    assert shown in text
    differences, ends_of = {}, {}
    for place in ("lge", "bssfp"):
        at = read_results(SEEDS).at(Condition(place))
        methods = {method.name: method.by_run("aurc") for method in at.methods}
        found = [paired_difference(methods[name], methods["ce_dice"], at.patients) for name in ("nacl", "mbls")]
        differences[place] = "{:.4f} and {:.4f} on".format(*(difference.mean for difference in found))
        ends_of[place] = "; ".join(f"{difference.low:.4f} to {difference.high:.4f}" for difference in found)
    shown = (
        f"by {differences['lge']} LGE (95 % intervals {ends_of['lge']}), and by {differences['bssfp']} bSSFP "
        f"({ends_of['bssfp']})"
    )
    assert shown in text


def test_brier_scores_are_those_of_the_reports() -> None:
    def mean(method: str, test_set: str = "", temperature: str = "without") -> str:
        (row,) = (
            row
            for row in read_table(SEEDS / f"report/means{test_set}.csv")
            if (row["method"], row["measure"], row["temperature"]) == (method, "brier_all", temperature)
        )
        return f"{float(row['mean']):.4f}"

    ecp, svls, mbls, nacl = (mean(name) for name in ("entropy_penalty", "svls", "mbls", "nacl"))
    shown = (
        f"at home CE + Dice with a temperature {mean('ce_dice', '', 'with')}, ECP {ecp}, SVLS {svls}, MbLS {mbls} and "
        f"NACL {nacl}; on LGE, MbLS and NACL have the lowest, {mean('mbls', '_on_lge')} and {mean('nacl', '_on_lge')}, "
        f"against {mean('ce_dice', '_on_lge', 'with')}."
    )
    assert shown in section("### What they show", "### Where the rankings")


def test_rankings_agree_as_much_as_the_page_says() -> None:
    taus = {}
    for temperature in ("without", "with"):
        for place in ("", "_on_bssfp", "_on_lge"):
            means: dict[str, list[float]] = {}
            for row in read_table(SEEDS / f"report/means{place}.csv"):
                if row["temperature"] == temperature and row["measure"] in ("ece", "ece_predicted"):
                    means.setdefault(row["measure"], []).append(float(row["mean"]))
            taus[temperature, place] = f"{kendalltau(*means.values()).statistic:+.2f}"
    home, bssfp, lge = (taus["without", place] for place in ("", "_on_bssfp", "_on_lge"))
    assert home == lge
    text = section("### Where the rankings", "### What the paper")
    assert f"at home and on LGE (Kendall's tau {home}), but not on bSSFP ({bssfp})" in text
    home, bssfp, lge = (taus["with", place] for place in ("", "_on_bssfp", "_on_lge"))
    assert f"With temperatures, tau is {home} at home, {bssfp} on bSSFP and {lge} on LGE" in text


def test_networks_of_one_loss_differ_in_hd95() -> None:
    shown = []
    for place in ("bssfp", "lge"):
        (ce_dice,) = (m for m in read_results(SEEDS).at(Condition(place)).methods if m.name == "ce_dice")
        shown.append("{:.1f}, {:.1f} and {:.1f}".format(*(np.nanmean(run.values("hd95")) for run in ce_dice.runs)))
    of_ce_dice = f"the mean HD95 of CE + Dice is {shown[0]} voxels on bSSFP, and {shown[1]} on LGE"
    assert of_ce_dice in section("### What they show", "### Where the rankings")


def test_ensemble_is_compared_with_single_networks() -> None:
    text, shown = section("## Ensembles of", "## The weight of"), {}
    of_folders = {folder: read_results(folder) for folder in (SEEDS, FURTHER)}
    for place, test_set in (("own", ""), ("bssfp", "bssfp"), ("lge", "lge")):
        cases = read_table(ROOT / f"results/acdc/ensembles/{place}/ensemble_of_ce_dice_T/cases.csv")
        at = {
            (folder.name, scaled): {m.name: m for m in results.at(Condition(test_set, scaled)).methods}
            for folder, results in of_folders.items()
            for scaled in (False, True)
        }
        patients = of_folders[SEEDS].at(Condition(test_set)).patients
        for measure, folder, scaled, method in (
            ("nll_all", "three_seeds", True, "ce_dice"),
            ("nll_all", "further", True, "nacl_softmax"),
            ("ece_predicted", "three_seeds", False, "entropy_penalty"),
            ("ece_predicted", "three_seeds", False, "svls"),
        ):
            values = np.array([float(row[measure]) for row in cases])
            others = at[folder, scaled][method].by_run(measure)
            found = paired_difference(values, others, patients)
            low, high = sorted((abs(found.low), abs(found.high)))
            shown[method, place] = f"{abs(found.mean):.4f} ({low:.4f} to {high:.4f})"
            if method == "ce_dice":
                difference = values - others.mean(0)
                assert all(difference[np.array(patients) == name].mean() < 0 for name in set(patients))
            if (method, place) == ("nacl_softmax", "lge"):
                assert found.low < 0 < found.high
    own, bssfp, lge = (shown["ce_dice", place] for place in ("own", "bssfp", "lge"))
    assert f"CE + Dice with one: by {own} at home, by {bssfp} on bSSFP and by {lge} on LGE; and" in text
    own, bssfp = (shown["nacl_softmax", place] for place in ("own", "bssfp"))
    assert f"softmax with one, by {own} at home and by {bssfp} on bSSFP" in text
    ecp, svls = (shown[name, "bssfp"] for name in ("entropy_penalty", "svls"))
    assert f"is above that of single networks of ECP, by {ecp}, and of SVLS, by {svls}." in text


def test_intervals_hold_as_often_as_the_page_says() -> None:
    """The patients of CE + Dice are the population that others are drawn from; seeds differ, and patients do not."""
    found, rng, draws = read_results(SEEDS), np.random.default_rng(0), 500
    (ce_dice,) = (method for method in found.methods if method.name == "ce_dice")
    patients, shares = np.array(found.patients), []
    for measure in ("nll_all", "hd95"):
        values = ce_dice.values(measure)
        population = np.array([np.nanmean(values[patients == name]) for name in sorted(set(found.patients))])
        drawn = [mean_with_interval(rng.choice(population, 16)) for _ in range(draws)]
        shares.append(np.mean([each.low <= population.mean() <= each.high for each in drawn]))
    runs = rng.normal(size=(draws, 2, 3, 1)) + np.zeros(16)
    held = np.mean([each.low <= 0 <= each.high for each in itertools.starmap(paired_difference, runs)])
    text = section("## How far to trust", "## What differs")
    assert f"held the mean NLL in {100 * shares[0]:.0f} % and the mean HD95 in {100 * shares[1]:.0f} %" in text
    assert f"those of three seeds held it in {100 * held:.0f} %" in text


def test_cross_entropy_alone_is_as_the_page_says() -> None:
    fits = [read_temperature(FURTHER / f"cross_entropy/seed{seed}/temperature") for seed in range(3)]
    assert [fit.low < 1 < fit.high for fit in fits] == [True, True, False]
    first, second, last = (f"{fit.temperature:.2f}" for fit in fits)
    interval = f"the interval of the last, {fits[2].low:.2f} to {fits[2].high:.2f}, just leaves out 1"
    text = section("## Beyond the seven", "### The shipped")
    assert f"hardly any temperature** (T = {first}, {second} and {last}; {interval}): it" in text
    assert f"alone, without the Dice term, hardly (T = {first} to {last})." in section(
        "## What to use when", "## Three seeds"
    )
    losses = " ".join((ROOT / "docs/losses.md").read_text().split())
    assert f"alone hardly was, with [{first} to {last}](results.md#beyond-the-seven)." in losses
    seeds, further = read_results(SEEDS), read_results(FURTHER)
    for place in ("", "bssfp", "lge"):
        at = {m.name: m for results in (seeds, further) for m in results.at(Condition(place)).methods}
        control, patients = at["cross_entropy"].by_run("nll_all"), seeds.at(Condition(place)).patients
        alike = ("cross_entropy", "nacl_softmax", "entropy_penalty", "svls")
        of_alike = [at[name].by_run("nll_all") for name in alike]
        (ce_dice,) = (m for m in seeds.at(Condition(place, True)).methods if m.name == "ce_dice")
        for one, other in itertools.combinations([*of_alike, ce_dice.by_run("nll_all")], 2):
            difference = paired_difference(one, other, patients)
            assert difference.low < 0 < difference.high
        if not place:
            nacl = paired_difference(at["nacl"].by_run("nll_all"), control, patients)
            shown = f"NACL's NLL at home is {nacl.mean:.3f} higher"
            assert shown in section("### What the paper claims", "## Beyond the seven")


def test_variation_is_that_of_the_report() -> None:
    rows = {
        row["method"]: row
        for row in reversed(read_table(SEEDS / "report/variation.csv"))
        if row["measure"] == "nll_all"
    }
    assert all(row["temperature"] == "without" for row in rows.values())
    seeds, patients = (
        "{}, {}, {} and {}".format(
            *(f"{float(rows[name][column]):.3f}" for name in ("ce_dice", "entropy_penalty", "svls", "nacl"))
        )
        for column in ("sd_seeds", "sd_patients")
    )
    shown = f"the standard deviation of the seeds' means is {seeds}, that of the patients' means {patients}."
    assert shown in section("## How far to trust", "## What differs")


def test_intervals_of_the_temperatures_are_as_the_page_says() -> None:
    fits = [read_temperature(SEEDS / method / f"seed{seed}/temperature") for method in TITLES for seed in range(3)]
    ends = [abs(end / fit.temperature - 1) for fit in fits for end in (fit.low, fit.high)]
    coverage = [fit.coverage for fit in fits]
    shown = (
        f"the 95 % intervals of T were {100 * min(ends):.0f} to {100 * max(ends):.0f} % to either side, widest for FL, "
        f"and cover the truth in {100 * min(coverage):.0f} to {100 * max(coverage):.0f} % of simulations"
    )
    assert shown in " ".join((ROOT / "docs/results.md").read_text().split())


def test_myocardium_has_a_lower_dsc_in_most_patients() -> None:
    found, means = read_results(SEEDS), {}
    for method in found.methods:
        of_patients: dict[str, list[float]] = {}
        for patient, value in zip(found.patients, method.values("dsc_MYO").tolist(), strict=True):
            of_patients.setdefault(patient, []).append(value)
        means[method.name] = {patient: fmean(values) for patient, values in of_patients.items()}
    methods = {method.name: method.by_run("dsc_MYO") for method in found.methods}
    further = read_results(FURTHER).methods
    methods |= {method.name: method.by_run("dsc_MYO") for method in further}
    higher, intervals = [], []
    for name in ("cross_entropy", "nacl_softmax", "entropy_penalty", "svls"):
        difference = paired_difference(methods["ce_dice"], methods[name], found.patients)
        higher.append(f"{difference.mean:.3f}")
        intervals.append(f"{difference.low:.3f} to {difference.high:.3f}")
    shown = (
        "is {} (CE), {} (NACL on the softmax), {} (ECP) and {} (SVLS) higher with CE + Dice at home (95 % intervals {}"
    )
    text = section("## What to use when", "## Three seeds")
    assert f"{shown.format(*higher, '; '.join(intervals))})" in text
    for place in ("bssfp", "lge"):
        folders = [results.at(Condition(place)) for results in (read_results(SEEDS), read_results(FURTHER))]
        at = {method.name: method.by_run("dsc_MYO") for found in folders for method in found.methods}
        of_alike = {name: at[name] for name in ("cross_entropy", "nacl_softmax", "entropy_penalty", "svls")}
        for values in of_alike.values():
            difference = paired_difference(values, at["ce_dice"], folders[0].patients)
            assert difference.low < 0 < difference.high
        if place == "bssfp":
            means_of = sorted(f"{np.nanmean(values):.3f}" for values in of_alike.values())
            assert f"on bSSFP lower ({np.nanmean(at['ce_dice']):.3f}; {means_of[0]} to {means_of[-1]})" in text
    control = f"has a DSC of the myocardium of {np.nanmean(methods['cross_entropy']):.3f}."
    assert control in section("### What they show", "### Where the rankings")
    reference = means.pop("ce_dice")
    lower = [sum(of[patient] < reference[patient] for patient in reference) for of in means.values()]
    all_means = [fmean(of.values()) for of in means.values()]
    shown = (
        f"is {min(all_means):.3f} to {max(all_means):.3f} for all of them, against {fmean(reference.values()):.3f}, "
        f"and lower in {min(lower)} to {max(lower)} of {len(reference)} patients"
    )
    assert shown in " ".join((ROOT / "docs/results.md").read_text().split())


def test_short_form_has_the_numbers_of_the_reports() -> None:
    def nll(temperature: str, test_set: str) -> str:
        (mean,) = (
            float(row["mean"])
            for row in read_table(SEEDS / f"report/means{test_set}.csv")
            if (row["method"], row["temperature"], row["measure"]) == ("ce_dice", temperature, "nll_all")
        )
        return f"{mean:.3f}"

    text = section("## In short", "## Terms")
    home, bssfp, lge = (f"from {nll('without', at)} to {nll('with', at)}" for at in ("", "_on_bssfp", "_on_lge"))
    assert f"{home} at home, {bssfp} on bSSFP and {lge} on LGE" in text
    home, _, lge = confidence_and_accuracy(SEEDS / "nacl")
    assert "{:.0f} % confident and {:.0f} % right), and not first".format(*home) in text
    assert "even NACL is {:.0f} % confident and {:.0f} % right".format(*lge) in text
    summaries = (
        json.loads((ROOT / f"results/acdc/ensembles/{place}/ensemble_of_ce_dice_T/summary.json").read_text())
        for place in ("own", "bssfp", "lge")
    )
    assert (
        "{:.3f} at home, {:.3f} on bSSFP and {:.3f} on LGE.".format(*(s["nll_all"]["mean"] for s in summaries)) in text
    )


def test_readme_has_the_nll_of_the_reports() -> None:
    rows = {
        "CE + Dice": ("three_seeds/report/means{}.csv", "ce_dice", "without"),
        "CE + Dice, temperature": ("three_seeds/report/means{}.csv", "ce_dice", "with"),
        "ECP (entropy penalty)": ("three_seeds/report/means{}.csv", "entropy_penalty", "without"),
        "cross-entropy alone": ("further/report/means{}.csv", "cross_entropy", "without"),
        "NACL on the softmax": ("further/report/means{}.csv", "nacl_softmax", "without"),
        "SVLS": ("three_seeds/report/means{}.csv", "svls", "without"),
        "NACL on the logits": ("three_seeds/report/means{}.csv", "nacl", "without"),
        "NACL on the logits, temperature": ("three_seeds/report/means{}.csv", "nacl", "with"),
    }  # fmt: skip
    lines = re.findall(r"^\|.*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    readme = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}
    for title, (name, method, temperature) in rows.items():
        for place, shown in zip(("", "_on_bssfp", "_on_lge"), readme[title], strict=True):
            with open(ROOT / "results/acdc" / name.format(place), newline="") as file:
                (mean,) = (
                    row["mean"]
                    for row in csv.DictReader(file)
                    if (row["method"], row["measure"]) == (method, "nll_all") and row.get("temperature") == temperature
                )
            assert shown == f"{float(mean):.3f}"


def test_shipped_weights_are_of_the_setting_that_the_protocol_chooses() -> None:
    """The lowest NLL of the validation cases among those whose validation DSC is within 0.01 of the best."""
    cells = read_reported(SEEDS, "cells")
    # The others there are in several folders.
    cells += [row for row in read_reported(FURTHER, "cells") if row["method"] == "l1_ace"]
    cells += [row for row in read_reported(VARIANTS, "cells") if row["method"] != "nacl"]
    of_method = {name: [cell for cell in cells if cell["method"] == name] for name in {c["method"] for c in cells}}

    def mean(method: str, column: str) -> float:
        return fmean(float(cell[column]) for cell in of_method[method])

    best = max(mean(method, "best_val_dsc") for method in of_method)
    eligible = [method for method in of_method if mean(method, "best_val_dsc") >= best - 0.01]
    columns = ("val_nll", "val_nll_with_temperature")
    method, column = min(((m, column) for m in eligible for column in columns), key=lambda setting: mean(*setting))
    seed = min(of_method[method], key=lambda cell: float(cell[column]))["seed"]
    assert (f"{method}/seed{seed}", column) == (f"{SHIPPED.parent.name}/{SHIPPED.name}", "val_nll_with_temperature")
    of_seeds = [read_temperature(SHIPPED.parent / f"seed{seed}/temperature").nll_after for seed in range(3)]
    text = section("### The shipped", "## Ensembles")
    shown = "({:.4f}; three seeds: {:.4f}, {:.4f} and {:.4f}; the last two, run because the first led, {:.4f})"
    assert shown.format(fmean(of_seeds), *of_seeds, fmean(of_seeds[1:])) in text
    lowest = {name: min(mean(name, column) for column in columns) for name in of_method}
    *first, _ = sorted(lowest, key=lambda name: lowest[name])
    assert first[:4] == [SHIPPED.parent.name, "entropy_penalty", "svls", "nacl_0.01"]
    ecp, svls, small, ce_dice = (f"{lowest[name]:.4f}" for name in (*first[1:4], "ce_dice"))
    assert f"The next are ECP ({ecp}), SVLS ({svls}) and NACL with weight 0.01 ({small}, one seed)" in text
    assert f"CE + Dice with a temperature has {ce_dice}" in text
    assert f"L1-ACE has {lowest['l1_ace']:.4f} with a temperature" in text
    fits = [read_temperature(FURTHER / f"l1_ace/seed{seed}/temperature").temperature for seed in range(3)]
    ends_of_fits = f"(T = {min(fits):.2f} to {max(fits):.2f}"
    assert f"{ends_of_fits}, CE + Dice" in section("## Beyond the seven", "### The shipped")
    assert f"leaves it overconfident {ends_of_fits})" in section("## What to use when", "## Three seeds")
    controls = [float(row[column]) for row in read_reported(FURTHER, "cells") if row["method"] == "cross_entropy"]
    control = (
        f"has {fmean(controls):.4f} (three seeds: {controls[0]:.4f}, {controls[1]:.4f} and {controls[2]:.4f}), so the"
    )
    assert control in text
    assert fmean(controls) > fmean(of_seeds)
    ensemble = read_temperature(ROOT / "results/acdc/ensembles/own/ensemble_of_ce_dice_T").nll_after
    assert f"The ensemble of CE + Dice with a temperature ({ensemble:.4f})" in text
    page = " ".join((BUNDLE / "docs/README.md").read_text().split())
    ends_of_seeds = f"({min(of_seeds):.4f} to {max(of_seeds):.4f})"
    shown = f"{fmean(of_seeds):.4f} as the mean of its three networks {ends_of_seeds}, {of_seeds[0]:.4f} for this one"
    assert shown in page
    of_ecp = [float(cell[column]) for cell in of_method["entropy_penalty"]]
    assert f"ECP is next, {ecp} ({min(of_ecp):.4f} to {max(of_ecp):.4f})" in page
    ends_of_controls = f"({min(controls):.4f} to {max(controls):.4f})"
    assert f"measured as a control, has {fmean(controls):.4f} {ends_of_controls}." in page
    fit = read_temperature(SHIPPED / "temperature")
    assert f"T = {fit.temperature:.2f}, which is in the weights" in page
    assert f"(95 % interval {fit.low:.2f} to {fit.high:.2f})" in page


def test_shipped_setting_is_compared_with_cross_entropy_and_dice() -> None:
    page = (ROOT / "docs/results.md").read_text()
    titles = {title.removesuffix(" (the paper's)"): measure for title, measure in TABLE.items()}
    for title, measure in titles.items():
        if measure in ("dsc", "ece_plausible"):
            continue
        for reference, suffix in (("without", ""), ("with", " + T")):
            cells = []
            for test_set in ("", "_on_bssfp", "_on_lge"):
                with open(FURTHER / f"report/conditions{test_set}.csv", newline="") as file:
                    (row,) = (
                        row
                        for row in csv.DictReader(file)
                        if (row["method"], row["temperature"]) == (SHIPPED.parent.name, "with")
                        and (row["reference_temperature"], row["measure"]) == (reference, measure)
                    )
                mean, low, high = (f"{float(row[name]):+.4f}" for name in ("mean", "low", "high"))
                cells.append(f"{mean} [{low}, {high}]")
            assert f"| {title} | CE + Dice{suffix} | {' | '.join(cells)} |" in page


def test_shipped_network_is_compared_with_cross_entropy_and_dice() -> None:
    results = read_results(FURTHER)
    at = {
        (place, scaled): {method.name: method for method in results.at(Condition(place, scaled)).methods}
        for place in ("", "bssfp", "lge")
        for scaled in (False, True)
    }
    text = (
        (ROOT / "docs/results.md")
        .read_text()
        .partition("The one network that is shipped, with its temperature, minus")[2]
    )
    titles = {title.removesuffix(" (the paper's)"): measure for title, measure in TABLE.items()}
    for title, measure in titles.items():
        if measure in ("dsc", "ece_plausible"):
            continue
        for scaled, suffix in ((False, ""), (True, " + T")):
            cells = []
            for place in ("", "bssfp", "lge"):
                (shipped,) = (
                    run.values(measure)
                    for run in at[place, True][SHIPPED.parent.name].runs
                    if f"seed{run.settings.seed}" == SHIPPED.name
                )
                others = at[place, scaled]["ce_dice"].by_run(measure)
                difference = paired_difference(shipped, others, results.at(Condition(place)).patients)
                cells.append("{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference[:3]))
            assert f"| {title} | CE + Dice{suffix} | {' | '.join(cells)} |" in text
    summaries = [json.loads((SHIPPED / place / "temperature/summary.json").read_text()) for place in PLACES_OF_CELLS]
    means = [means_without_temperature(FURTHER, f"_{place}" * bool(place))["dsc"] for place in PLACES_OF_CELLS]
    dsc = [*(of["dsc"]["mean"] for of in summaries), *(of["ce_dice"] for of in means)]
    shown = "Its DSC is {:.3f}, {:.3f} and {:.3f}; that of CE + Dice, on average, {:.3f}, {:.3f} and {:.3f}.".format(
        *dsc
    )
    assert shown in " ".join(text.split())
    fit = read_temperature(SHIPPED / "temperature").nll_after
    nll = "the second {:.4f}, and {:.4f}, {:.4f} and {:.4f}".format(fit, *(of["nll_all"]["mean"] for of in summaries))
    assert nll in section("### The shipped", "## Ensembles")
    myocardium = summaries[0]["dsc_MYO"]["mean"], np.nanmean(at["", False]["ce_dice"].values("dsc_MYO"))
    shown = "its myocardium at home has {:.3f}, that of CE + Dice {:.3f}.".format(*myocardium)
    assert shown in " ".join(text.split())
    (first,) = re.findall(r"0\.\d{4}, 0\.\d{4} and (0\.\d{4}) on ACDC", section("### The shipped", "## Ensembles"))
    differs = float(first) - summaries[2]["nll_all"]["mean"]
    assert f"its NLL was {differs:.3f} higher than the second's" in " ".join(text.split())
    of_second = summaries[2]["dsc"]["mean"], summaries[2]["ece_predicted"]["mean"]
    shown = "that of the second is {:.3f}, the ECE where a structure is predicted 0.150 and {:.3f}".format(*of_second)
    assert shown in section("### The shipped", "## Ensembles")


def test_bundle_says_what_its_weights_reach() -> None:
    summary = json.loads((SHIPPED / "temperature/summary.json").read_text())
    digits = {"dsc": 3, "hd95": 2, "nll_all": 3, "ece_all": 3, "ece_predicted": 3, "ece": 3}
    names = {"dsc": "dice", "hd95": "hd95_voxels", "ece": "ece_ground_truth_foreground"}
    assert METADATA["eval_metrics"] == {
        f"mean_{names.get(measure, measure)}": round(summary[measure]["mean"], places)
        for measure, places in digits.items()
    }
    page = (BUNDLE / "docs/README.md").read_text()
    for measure, title in (("dsc", "DSC"), ("hd95", "HD95")):
        means = (summary[name]["mean"] for name in (measure, *(f"{measure}_{s}" for s in ("RV", "MYO", "LV"))))
        assert f"| {title} | {' | '.join(f'{mean:.{digits[measure]}f}' for mean in means)} |" in page
    at_home, on_bssfp, found = (read_table(SHIPPED / place / "temperature/cases.csv") for place in PLACES_OF_CELLS)
    missed, others = (
        [row for row in found if (float(row["dsc_RV"]) < 0.2) == is_missed] for is_missed in (True, False)
    )
    text = " ".join(page.split())
    worst, second = sorted(at_home, key=lambda row: float(row["dsc_RV"]))[:2]
    dsc, expected, distance = (float(worst[f"{name}_RV"]) for name in ("dsc", "expected_dsc", "hd95"))
    shown = (
        f"In the worst of {len(at_home)} volumes of ACDC it has DSC {dsc:.2f} (expected: {expected:.2f}): nearly twice"
    )
    assert f"{shown} its volume is segmented (HD95 {distance:.0f})" in text
    dsc, expected = (float(second[f"{name}_RV"]) for name in ("dsc", "expected_dsc"))
    assert f"In the next, with DSC {dsc:.2f} (expected: {expected:.2f}), half of it is missed" in text
    shares = [float(row["segmented_volume_RV"]) / float(row["true_volume_RV"]) for row in (worst, second)]
    assert [f"{share:.1f}" for share in shares] == ["2.0", "0.5"]
    *far, third = sorted(at_home, key=lambda row: -float(row["hd95_RV"]))[:3]
    assert len({row["case"].partition("_")[0] for row in far}) == 1
    assert third is worst
    far.append(max(on_bssfp, key=lambda row: float(row["hd95_RV"])))
    distances = "{}, {} and {}".format(*(f"{float(row['hd95_RV']):.0f}" for row in far))
    assert f"in one of {len(on_bssfp)} bSSFP volumes of another hospital, it marks right ventricle far" in text
    found_far = [float(row["dsc_RV"]) for row in found if float(row["hd95_RV"]) > 20]
    found_in_part = [{"dsc": dsc} for dsc in found_far if dsc > 0.2]
    shown = (
        f"its HD95 is above 20 in {len(found_far)} of {len(found)} volumes, in {len(found_in_part)} of them with a DSC"
    )
    assert f"far from the true one (HD95 {distances}). On LGE, {shown} of {ends(found_in_part, 'dsc', 2)}." in text
    dsc, *of_structures = (ends(missed, f"dsc_{name}", 2) for name in ("RV", "MYO", "LV"))
    assert f"In {len(missed)} of {len(found)} LGE volumes it misses the right ventricle (DSC {dsc})" in text
    assert "The myocardium has DSC {} there, the left ventricle {}.".format(*of_structures) in text
    probability = [{"p": 100 * math.exp(-float(row["nll_structure_RV"]))} for row in missed]
    assert f"the true one has a probability of {ends(probability, 'p', 1)} % (geometric mean)" in text
    expected, of_others = (ends(rows, "expected_dsc_RV", 2) for rows in (missed, others))
    assert f"is too high, {expected}, but lower than in the other volumes ({of_others})" in text
    assert expected.split()[-1] < of_others.split()[0]


def ends(rows: Sequence[Mapping[str, Any]], name: str, digits: int) -> str:
    """The smallest and the largest value of a column, as a page shows them."""
    values = [float(row[name]) for row in rows]
    return " to ".join(f"{value:.{digits}f}" if round(value, digits) else "0" for value in (min(values), max(values)))


def test_model_card_names_the_patients_that_chose_and_that_test() -> None:
    text = " ".join((BUNDLE / "docs/README.md").read_text().split())
    settings = json.loads((SHIPPED / "settings.json").read_text())
    for names, follow in (
        (read_temperature(SHIPPED / "temperature").leave_one_out, "were the validation patients"),
        (set(settings["patients"].values()), "the test patients"),
    ):
        *numbers, last = sorted(name.removeprefix("patient") for name in names)
        assert f"{', '.join(numbers)} and {last} {follow}" in text


@pytest.mark.parametrize(("column", "test_set"), [(1, ""), (2, "on_bssfp"), (3, "on_lge")])
def test_model_card_has_the_intervals_of_its_weights(column: int, test_set: str, tmp_path: Path) -> None:
    report_evaluations([SHIPPED / test_set / "temperature"], tmp_path)
    with open(tmp_path / "means.csv", newline="") as file:
        means = {row["measure"]: row for row in csv.DictReader(file)}
    page = (BUNDLE / "docs/README.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", page, re.MULTILINE)
    ]
    shown = {row[0]: row[column] for row in rows if row[0] in TABLE and len(row) == 4}
    bins = read_regions(SHIPPED / test_set / "temperature")["predicted"]["top_label"]
    sums = bins.confidence_sum.sum(), bins.num_correct.sum()
    confidence, accuracy = (f"{100 * (each / bins.count.sum()).item():.0f}" for each in sums)
    (row,) = (row for row in rows if row[0].startswith("confidence / accuracy"))
    assert row[column] == f"{confidence} / {accuracy} %"
    for title, measure in TABLE.items():
        mean, low, high = (f"{float(means[measure][name]):.3f}" for name in ("mean", "low", "high"))
        if_true = f" ({float(means[measure]['if_true']):.3f})" if means[measure]["if_true"] else ""
        assert shown[title] == f"{mean}{if_true} [{low}, {high}]"


def test_brats_page_has_the_numbers_of_leave_one_out() -> None:
    bundle = ROOT / "bundles/brats_mri_nacl_segmentation"
    page = (bundle / "docs/README.md").read_text()
    found = {}
    for name in ("structures", "means"):
        with open(BRATS / f"report/{name}.csv", newline="") as file:
            found |= {(row["measure"], row.get("temperature")): row for row in csv.DictReader(file)}

    def shown(measure: str, temperature: str | None = None) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(
            *(float(found[measure, temperature][name]) for name in ("mean", "low", "high"))
        )

    text = " ".join(page.split())
    assert f"DSC {shown('dsc_WT')} for the whole tumour, {shown('dsc_TC')} for its core, 0 for" in text
    for title, temperature in (("as trained", "without"), ("T = 0.61", "with")):
        cells = (shown(measure, temperature) for measure in ("nll_all", "ece_all", "ece_predicted"))
        assert f"| {title} | {' | '.join(cells)} |" in page
    assert found["dsc_ET", None]["cases"] == "6"
    of_case = {}
    for fold in range(7):
        (row,) = read_table(BRATS / f"nacl/seed0_fold{fold}/cases.csv")
        of_case[row["case"].removeprefix("BraTS2021_")] = row
        dsc = (row[f"dsc_{name}"] for name in ("WT", "TC", "ET"))
        cells = " | ".join(f"{float(value):.2f}" if value else "-" for value in dsc)
        assert re.search(rf"\| {row['case']} \| [\d,]+ \| [\d,]+ \| {re.escape(cells)} \|", page)
    metrics = json.loads((bundle / "configs/metadata.json").read_text())["eval_metrics"]
    names = {"whole_tumour": "WT", "tumour_core": "TC", "enhancing_tumour": "ET"}
    expected = {f"mean_dice_{name}": found[f"dsc_{short}", None] for name, short in names.items()}
    expected |= {f"mean_{name}": found[name, "with"] for name in ("nll_all", "ece_all", "ece_predicted")}
    assert metrics == {f"{name}_leave_one_out": round(float(row["mean"]), 3) for name, row in expected.items()}

    def share(case: str, structure: str) -> float:
        return float(of_case[case][f"segmented_volume_{structure}"]) / float(of_case[case][f"true_volume_{structure}"])

    missed = [f"{100 - 100 * share('01479', name):.0f} %" for name in ("WT", "TC")]
    assert "volume is {} too small, and that of its core {} (01479)".format(*missed) in text
    assert f"{share('01485', 'TC'):.0f} times its volume in 01485, {share('01481', 'TC'):.0f} times in 01481" in text
    assert f"({float(of_case['01485']['true_volume_TC']):.0f} voxels in 01485)" in text
    wrongly = (f"{float(of_case[case]['segmented_volume_ET']):.0f}" for case in ("01477", "01483"))
    assert "marks some ({} and {} voxels of the network's coarser grid in 01477 and 01483,".format(*wrongly) in text
    plain, scaled = (
        [share_of_bins(BRATS / f"nacl/seed0_fold{fold}" / place) for fold in range(7)] for place in ("", "temperature")
    )
    (before, right), (after, _) = (np.sum(sums, axis=0)[:2] / np.sum(sums, axis=0)[2] for sums in (plain, scaled))
    assert (
        f"{100 * before:.0f} % confident as trained, {100 * after:.0f} % with T, and {100 * right:.0f} % right" in text
    )
    of_cases = [100 * accurate / count for _, accurate, count in plain]
    assert f"({min(of_cases):.0f} to {max(of_cases):.0f} % right)" in text
    temperature = read_temperature(BRATS / "nacl/seed0_fold0/temperature")
    interval = f"T = {temperature.temperature:.2f} (95 % interval {temperature.low:.2f} to {temperature.high:.2f})"
    assert interval in text


@pytest.mark.skipif(not (SHARED / "data/brats").is_dir(), reason="needs ../shared/data/brats")
def test_brats_page_has_the_sizes_of_the_labels() -> None:
    page = (ROOT / "bundles/brats_mri_nacl_segmentation/docs/README.md").read_text()
    files = list((SHARED / "data/brats").rglob("*_seg.nii*"))
    assert len(files) == 7
    for file in files:
        codes = np.asarray(nibabel.load(file).dataobj)
        core, enhancing = np.isin(codes, (1, 4)).sum(), (codes == 4).sum()
        assert f"| {file.name.partition('_seg')[0]} | {core:,} | {enhancing:,} |" in page


def share_of_bins(folder: Path) -> tuple[float, float, float]:
    """Where a structure is predicted: sums of confidence and of correct voxels, and the number of voxels."""
    bins = read_regions(folder)["predicted"]["top_label"]
    return bins.confidence_sum.sum().item(), bins.num_correct.sum().item(), bins.count.sum().item()


def test_flare_page_says_what_one_scan_teaches_of_the_other() -> None:
    folder, bundle = ROOT / "results/flare/two_folds/nacl", ROOT / "bundles/flare_ct_nacl_segmentation"
    summaries = [json.loads((folder / f"seed0_fold{fold}/summary.json").read_text()) for fold in (0, 1)]
    page = " ".join((bundle / "docs/README.md").read_text().split())
    for summary in summaries:
        means = (summary[f"dsc_{name}"]["mean"] for name in ("liver", "kidneys", "spleen", "pancreas"))
        assert f" | {' | '.join(f'{mean:.2f}' for mean in means)} |" in page
    (thick, correct, _), (thin, correct_on_thin, _) = (
        100 * sums / sums[2] for sums in (np.array(share_of_bins(folder / f"seed0_fold{fold}")) for fold in (0, 1))
    )
    ece = f"(ECE {summaries[0]['ece_predicted']['mean']:.2f})"
    shown = f"is {thick:.0f} % confident and {correct:.0f} % right on the scan with 3 mm voxels {ece}, and {thin:.0f} %"
    assert f"{shown} and {correct_on_thin:.0f} % on that of 11 slices" in page
    (found,) = read_table(folder / "seed0_fold1/cases.csv")
    volumes = [
        sum(float(value or 0) for name, value in found.items() if name.startswith(kind))
        for kind in ("segmented_volume", "true_volume")
    ]
    assert volumes[0] < volumes[1] / 10
    own = ROOT / "results/flare/training_scans"
    dsc = json.loads((own / "summary.json").read_text())
    liver, kidneys, spleen, pancreas = (
        f"{dsc[f'dsc_{name}']['mean']:.2f}" for name in ("liver", "kidneys", "spleen", "pancreas")
    )
    shown = (
        f"it has a DSC of {liver} for the liver, {kidneys} for the kidneys, {spleen} for the spleen and {pancreas} for"
    )
    assert shown in page
    bins = read_regions(own)["predicted"]["top_label_per_case"]
    confidence, accuracy = (
        [f"{100 * value:.0f}" for value in reversed((sums.sum(1) / bins.count.sum(1)).tolist())]
        for sums in (bins.confidence_sum, bins.num_correct)
    )
    assert "is {} and {} % confident and {} and {} % right where".format(*confidence, *accuracy) in page
    metrics = json.loads((bundle / "configs/metadata.json").read_text())["eval_metrics"]
    mean = fmean(summary["dsc"]["mean"] for summary in summaries)
    assert metrics["mean_dice_of_networks_trained_on_the_other_scan"] == round(mean, 3)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/acdc")
def test_weights_are_those_of_the_results(tmp_path: Path) -> None:
    """They give the same numbers on the same test patients, prepared again."""
    data, evaluation = tmp_path / "acdc", tmp_path / "eval"
    done = run_script("scripts/prepare_data.py", "acdc", DATA, data)
    assert done.returncode == 0, done.stderr
    config_file = f"['{BUNDLE}/configs/train.yaml','{BUNDLE}/configs/evaluate.yaml']"
    places = {"bundle_root": BUNDLE, "dataset_dir": data, "output_dir": evaluation}
    options = {"config_file": config_file, **places, "device": "cpu", "num_workers": 0}
    done = run_script("-m", "monai.bundle", "run", *(f"--{name}={value}" for name, value in options.items()))
    assert done.returncode == 0, done.stderr
    assert (evaluation / "summary.json").read_text().count('"temperature": 1.0') == 0
    measured, expected = (
        list(csv.DictReader(file.open())) for file in (evaluation / "cases.csv", SHIPPED / "temperature/cases.csv")
    )
    assert [row["case"] for row in measured] == [row["case"] for row in expected]
    # HD95 is left out: it does not change continuously with rounding errors.
    continuous = [name for name in expected[0] if name != "case" and not name.startswith("hd95")]
    for here, there in zip(measured, expected, strict=True):
        values = {name: float(there[name]) for name in continuous if there[name]}
        assert {name: float(here[name]) for name in values} == pytest.approx(values, rel=1e-3, abs=1e-3)
