"""The results that are kept under `results/`: published tables, diagrams and metadata follow from
their cases.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calib_tools.predictions import evaluate_predictions
from study.compare.compact import read_compact
from study.compare.data import Comparison, Row, check_same_cases
from study.compare.settings import TABLE1
from study.compare.statistics import mean_with_interval
from study.heart.hand import read_scans
from study.heart.tables import read_heart
from study.tables.fill_tables import fill, numbers
from study.tables.shipped import WEIGHTS, scans_of
from tests.helpers import ACDC, BRATS, FLARE, HIPPOCAMPUS, ROOT, SHARED, run_bundle

DATA, RESULTS = SHARED / "data" / "acdc", ROOT / "study" / "results"
FOLDERS = sorted(
    file.parent.relative_to(RESULTS).as_posix() for file in RESULTS.rglob("comparison.json")
)
SHIPPED_3D = ("hippocampus", "nacl_0.03", 0)
TEST_SETS = ("", "bssfp", "lge")


@functools.cache
def results(folder: str) -> Comparison:
    return read_compact(RESULTS / folder)


def table(file: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / file, dtype={"test_set": object}).fillna({"test_set": ""})


def confidence_and_accuracy(
    found: Comparison, row: Row, seed: int | None = None
) -> tuple[float, ...]:
    """Where a structure is predicted, in percent, all voxels pooled."""
    bins = found.pooled_bins(row, "predicted", seed)
    return tuple(
        100 * (sums.sum() / bins.count.sum()).item()
        for sums in (bins.confidence_sum, bins.num_correct)
    )


def test_results_are_few_and_small_and_hold_no_image() -> None:
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert len(files) <= 80
    assert sum(file.stat().st_size for file in files) < 12 * 2**20
    assert {file.suffix for file in files} == {".csv", ".gz", ".json"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_networks_have_the_same_cases(folder: str) -> None:
    found = results(folder)
    check_same_cases(found)
    assert found.about["missing"] == []
    keys = ["method", "seed", "fold", "test_set", "temperature", "case"]
    assert not found.cases.duplicated(keys).any()
    regions = found.bins.groupby(keys)["region"].agg(sorted)
    assert (regions.map(tuple) == ("all", "predicted")).all()
    assert len(regions) == len(found.cases)


def test_comparison_is_complete() -> None:
    found = results("acdc/three_seeds")
    assert [*found.labels] == [setting.name for setting in TABLE1]
    assert {found.seeds(row) for row in found.groups} == {3}
    assert found.test_sets == ["", "bssfp", "lge"]
    assert [found.patients[name].nunique() for name in TEST_SETS] == [16, 20, 20]


@pytest.mark.slow
def test_tables_of_the_pages_are_those_of_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    fill(check=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("folder", "home", "test_set"),
    [
        ("acdc/three_seeds", "acdc", ""),
        ("acdc/three_seeds", "bssfp", "bssfp"),
        ("acdc/three_seeds", "lge", "lge"),
        ("acdc/authors", "acdc_authors", ""),
        ("abdomen/authors", "flare_authors", ""),
    ],
)
def test_sum_ranks_are_of_unrounded_means(folder: str, home: str, test_set: str) -> None:
    cases = table(f"{folder}/cases.csv.gz").query("temperature == 'without'")
    cases = cases[cases["test_set"] == test_set].set_index("method")
    costs = {name: cases.filter(regex=f"^{name}_").mean(axis=1) for name in ("dsc", "hd95")}
    costs["dsc"] = -costs["dsc"]
    means = pd.DataFrame(costs | {name: cases[name] for name in ("ece", "cece")}).groupby(level=0)
    expected = means.mean().rank().sum(axis=1)
    assert len(expected) == 7
    for name, rank in expected.items():
        assert numbers(f"rank {name} {home}") == [f"{rank:g}"]


def test_ece_of_cases_is_that_of_their_bins() -> None:
    for folder in ("acdc/three_seeds", "chaos"):
        found = results(folder)
        for region, method in itertools.product(("all", "predicted"), found.labels):
            count, confidence, correct = found.case_bins(Row(method), region)
            with np.errstate(invalid="ignore"):  # of a case without voxels there
                errors = np.abs(confidence - correct).sum(2) / count.sum(2)
            np.testing.assert_allclose(
                errors, found.values(Row(method), f"ece_{region}"), atol=2e-5
            )


def test_weights_of_the_hippocampus_are_those_that_the_protocol_chooses() -> None:
    nll = table("hippocampus/validation.csv").set_index(["method", "seed"])["nll_predicted"]
    method = nll.groupby("method").mean().loc[["nacl", "nacl_0.03"]].idxmin()
    assert ("hippocampus", method, nll[method].idxmin()) == SHIPPED_3D
    first = nll.xs(0, level="seed")[
        ["mbls", "mbls_0.3", "nacl_softmax_4.0", "nacl_softmax_1.0", "nacl_0.03", "nacl"]
    ]
    assert first["mbls"] < first["mbls_0.3"]
    assert first.filter(like="nacl").idxmin() == "nacl_softmax_4.0"


def test_metadata_of_the_bundles_are_those_of_the_cases() -> None:
    heart = pd.concat([scans_of(ACDC.name)[name] for name in ("ACDC", "Siemens")])
    found, (_, method, seed) = results("hippocampus"), SHIPPED_3D
    names = {"dsc": "dice", "hd95": "hd95_mm", "ece": "ece_ground_truth_foreground"}
    for name in ("dsc", "hd95", "nll_all", "ece_all", "ece_predicted", "ece"):
        in_3d, places = found.values(Row(method, "with"), name)[seed], 2 if name == "hd95" else 3
        for bundle, values in ((ACDC, heart[name]), (HIPPOCAMPUS, in_3d)):
            metrics = json.loads((bundle / "configs/metadata.json").read_text())["eval_metrics"]
            if bundle == HIPPOCAMPUS or name != "hd95":
                assert metrics[f"mean_{names.get(name, name)}"] == round(values.mean(), places)
    metrics = json.loads((BRATS / "configs/metadata.json").read_text())["eval_metrics"]
    brats = results("brats/leave_one_out")
    expected = {
        f"mean_dice_{name}": np.nanmean(brats.values(Row("nacl"), f"dsc_{short}"))
        for name, short in (
            ("whole_tumour", "WT"),
            ("tumour_core", "TC"),
            ("enhancing_tumour", "ET"),
        )
    }
    for name in ("nll_all", "ece_all", "ece_predicted"):
        expected[f"mean_{name}"] = np.nanmean(brats.values(Row("nacl", "with"), name))
    assert metrics == {
        f"{name}_leave_one_out": round(float(value), 3) for name, value in expected.items()
    }
    metrics = json.loads((FLARE / "configs/metadata.json").read_text())["eval_metrics"]
    cases = results("abdomen/ours").cases
    tested = cases[(cases["test_set"] == "") & (cases["method"] == "cross_entropy_any_scanner")]
    assert len(tested) == 14
    assert metrics == {
        f"mean_dice_{organ}_out_of_fold": round(float(tested[f"dsc_{organ}"].mean()), 3)
        for organ in ("liver", "kidneys", "spleen", "pancreas")
    }


def test_temperature_and_patients_of_the_hippocampus_are_on_its_page() -> None:
    folder, method, seed = SHIPPED_3D
    fits = results(folder).temperatures
    (fit,) = fits[(fits["method"] == method) & (fits["seed"] == seed)].to_dict("records")
    text = " ".join((HIPPOCAMPUS / "docs/README.md").read_text().split())
    assert f"T = {fit['temperature']:.2f}" in text
    assert f"(95 % interval {fit['low']:.2f} to {fit['high']:.2f})" in text
    names = sorted(name.removeprefix("patient") for name in json.loads(fit["leave_one_out"]))
    numbers = [str(int(name)) for name in names]
    assert f"The validation patients were {', '.join(numbers[:-1])} and {numbers[-1]}." in text


def test_patients_of_the_heart_are_on_its_page() -> None:
    text = (ACDC / "docs/README.md").read_text()
    heart = read_heart()
    tested, chosen = (
        {name.removeprefix("acdc_patient") for name in patients if name.startswith("acdc")}
        for patients in (
            heart.loc[heart["set"] == each, "patient"] for each in ("acdc", "validation")
        )
    )
    assert f"| test | {', '.join(sorted(tested))} |" in text
    (validation,) = re.findall(r"\| validation \| (.*) \|", text)
    assert validation.split(", ")[1::2] == sorted(chosen)  # each second one chose what is shipped


def test_model_card_of_the_hippocampus_has_the_means_of_its_weights() -> None:
    folder, method, seed = SHIPPED_3D
    found, row, column = results(folder), Row(method, "with"), 2
    lines = re.findall(r"^\|.*\|$", (HIPPOCAMPUS / "docs/README.md").read_text(), re.MULTILINE)
    cells = {
        parts[0].strip(): parts for line in lines if len(parts := line.strip("|").split("|")) == 3
    }
    expected_dsc = found.groups[row].filter(like="expected_dsc_").mean(axis=1)
    found.groups[row]["expected_dsc"] = expected_dsc
    for title, measure in (
        ("DSC", "dsc"),
        ("expected DSC", "expected_dsc"),
        ("NLL, all voxels", "nll_all"),
        ("NLL, predicted foreground", "nll_predicted"),
        ("ECE, all voxels", "ece_all"),
        ("ECE, predicted foreground", "ece_predicted"),
        ("ECE, true foreground (the paper's)", "ece"),
    ):
        if (shown := cells[title][column].strip()) == "the same":
            shown = cells[title][column - 1].strip()
        mean, low, high = mean_with_interval(found.values(row, measure)[seed], found.patients[""])[
            :3
        ]
        if_true = (
            f" ({np.nanmean(found.values(row, 'ece_if_true')[seed]):.3f})"
            if measure == "ece"
            else ""
        )
        assert shown.partition(" [")[0] == f"{mean:.3f}{if_true}"
        ends = [float(end) for end in re.findall(r"(\d\.\d+)[,\]]", shown)]
        np.testing.assert_allclose(
            ends, [low, high], atol=0.003
        )  # of a bootstrap: other draws in other versions of scipy
    confidence, accuracy = confidence_and_accuracy(found, row, seed)
    (shown,) = (
        parts[column] for title, parts in cells.items() if title.startswith("confidence / accuracy")
    )
    assert shown.strip() == f"{confidence:.0f} / {accuracy:.0f} %"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/acdc")
@pytest.mark.parametrize("network", WEIGHTS)
def test_weights_are_those_of_the_results(network: str, tmp_path: Path) -> None:
    """They give the same numbers on the images of a test patient."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (images, labels):
        folder.mkdir()
    for file in sorted((DATA / "training" / "patient007").glob("*.nii.gz")):
        is_label = file.name.endswith("_gt.nii.gz")
        name = file.name.replace("_gt", "")
        (labels if is_label else images).joinpath(name).symlink_to(file)
    load_path = ACDC / "models" / WEIGHTS[network]
    places = {"dataset_dir": str(images), "output_dir": str(tmp_path / "acdc" / "maps")}
    run_bundle(ACDC, "inference.yaml", load_path=str(load_path), **places)
    evaluate_predictions(
        tmp_path / "acdc" / "maps",
        labels,
        out=tmp_path / "acdc" / "evaluation",
        structures=["RV=1", "MYO=2", "LV=3"],
        patient_pattern="patient[0-9]+",
    )
    found = read_scans(tmp_path / "acdc").set_index("case")
    expected = scans_of(ACDC.name, network)["ACDC"].set_index("case").loc[found.index]
    numbers = found.select_dtypes("number")
    np.testing.assert_allclose(numbers, expected[numbers.columns], rtol=1e-3, atol=1e-3)
