"""The results that are kept under `results/`: published tables, diagrams and metadata follow from their cases."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from calib_components.tools.compare.settings import TABLE1
from calib_components.tools.report.data import Results, Row, read_compact
from calib_components.tools.report.overview import report_datasets
from calib_components.tools.report.readers import check_same_cases
from calib_components.tools.report.report import report
from calib_components.tools.report.sections import differences, mean_records, reference_pairs
from calib_components.tools.report.statistics import holm, seeds_and_patients
from scripts.draw_results import draw_results
from scripts.fill_tables import fill
from tests.helpers import ROOT, SHARED, run_script

DATA, RESULTS = SHARED / "data" / "acdc", ROOT / "results"
FOLDERS = sorted(file.parent.relative_to(RESULTS).as_posix() for file in RESULTS.rglob("comparison.json"))
REFERENCES = {
    "acdc/three_seeds": "ce_dice", "acdc/further": "ce_dice", "acdc/without_dice": "cross_entropy", "chaos": "ce_dice",
    "acdc/variants": None, "acdc/ensembles": "ensemble_of_ce_dice", "brats/leave_one_out": None,
}  # fmt: skip
SHIPPED = ("acdc/further", "nacl_softmax", 0)  # folder, method and seed of the weights in the ACDC bundle
ACDC, BRATS, FLARE = (ROOT / f"bundles/{name}_nacl_segmentation" for name in ("acdc_mri", "brats_mri", "flare_ct"))
TEST_SETS = ("", "bssfp", "lge")
PAGE = (ROOT / "docs/results.md").read_text()


@functools.cache
def results(folder: str) -> Results:
    return read_compact(RESULTS / folder)


def table(file: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / file, dtype={"test_set": object}).fillna({"test_set": ""})


def confidence_and_accuracy(found: Results, row: Row, seed: int | None = None) -> tuple[float, float]:
    """Where a structure is predicted, in percent, all voxels pooled."""
    bins = found.pooled_bins(row, "predicted", seed)
    return tuple(100 * (sums.sum() / bins.count.sum()).item() for sums in (bins.confidence_sum, bins.num_correct))


def test_results_are_few_and_small_and_hold_no_image() -> None:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("needs a clone of the repository")
    files = [ROOT / name for name in listed.stdout.split()]
    assert len(files) <= 80
    assert sum(file.stat().st_size for file in files) < 12 * 2**20
    assert {file.suffix for file in files} == {".csv", ".gz", ".json", ".md"}


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
    assert found.methods == [setting.name for setting in TABLE1]
    assert {found.seeds(row) for row in found.groups} == {3}
    assert found.test_sets == ["bssfp", "lge"]
    assert [len({*found.patients(name)}) for name in TEST_SETS] == [16, 20, 20]


def test_networks_of_several_folders_are_the_same() -> None:
    for method, one, other in (
        ("ce_dice", "acdc/further", "acdc/three_seeds"),
        ("nacl_softmax", "acdc/further", "acdc/variants"),
        ("svls", "acdc/without_dice", "acdc/three_seeds"),
    ):
        pair = [results(folder).cases for folder in (one, other)]
        tables = [cases[cases["method"] == method].reset_index(drop=True) for cases in pair]
        pd.testing.assert_frame_equal(*tables)


MEANS = [file.relative_to(RESULTS).as_posix() for file in sorted(RESULTS.rglob("report/means*.csv"))]


@pytest.mark.parametrize("file", MEANS)
def test_published_means_are_rebuilt(file: str) -> None:
    """Intervals of one seed are those of a bootstrap with other draws in other versions of scipy."""
    folder, _, name = file.partition("/report/means")
    found, test_set = results(folder), name.removeprefix("_on_").removesuffix(".csv")
    published = table(file)
    rebuilt = pd.DataFrame(mean_records(found, found.rows(test_set), list(published["measure"].unique())))
    keys = ["method", "temperature", "measure"]
    both = published.merge(rebuilt, on=keys, suffixes=("", "_rebuilt"))
    assert len(both) == len(published) == len(rebuilt)
    for column in ("mean", "low", "high", "cases", "seeds", "sd_seeds", "sd_patients"):
        tolerance = 2e-2 if column in ("low", "high") else 1e-9
        np.testing.assert_allclose(
            both[column], both[f"{column}_rebuilt"], rtol=tolerance, atol=1e-4 * (tolerance > 1e-3)
        )


def test_published_differences_are_rebuilt() -> None:
    found = results("acdc/three_seeds")
    for test_set in TEST_SETS:
        published = table(f"acdc/three_seeds/report/differences{f'_on_{test_set}' * bool(test_set)}.csv")
        rebuilt = differences(found, reference_pairs(found, "ce_dice", test_set), list(published["measure"].unique()))
        keys = ["method", "temperature", "reference_temperature", "measure"]
        pd.testing.assert_frame_equal(
            published.set_index(keys).sort_index(), rebuilt.set_index(keys).sort_index(), check_dtype=False, rtol=1e-6
        )


def test_differences_follow_from_the_cases_alone() -> None:
    """By numpy: means of patients and seeds, the formula of the t-interval and Holm's correction."""
    cases = pd.read_csv(RESULTS / "acdc/three_seeds/cases.csv.gz").query("test_set.isna() and temperature == 'without'")
    published = table("acdc/three_seeds/report/differences.csv")
    published = published.query("temperature == 'without' and reference_temperature == 'without'")
    p_values = {}
    for method, measure in itertools.product([s.name for s in TABLE1[1:]], ("nll_all", "ece_all", "ece_predicted")):
        tables = [
            cases[cases["method"] == name].pivot_table(index="seed", columns="patient", values=measure).to_numpy()
            for name in (method, "ce_dice")
        ]
        difference = tables[0].mean() - tables[1].mean()
        low, high, p_values[method, measure] = seeds_and_patients(difference, tables)
        (row,) = published.query("method == @method and measure == @measure").to_dict("records")
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((difference, low, high), abs=1e-9)
    adjusted = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    by_key = published.set_index(["method", "measure"])["p_value_holm"]
    assert {key: by_key[key] for key in adjusted} == pytest.approx(adjusted)


def test_tables_of_the_pages_are_those_of_the_reports(capsys: pytest.CaptureFixture[str]) -> None:
    fill(check=True)
    assert capsys.readouterr().out == ""


def test_picture_is_that_of_the_reports(tmp_path: Path) -> None:
    draw_results(tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 50_000


def test_confidence_and_accuracy_of_the_page_are_those_of_the_bins() -> None:
    titles = ["CE + Dice", "FL", "ECP", "LS", "SVLS", "MbLS", "NACL"]
    found = results("acdc/three_seeds")
    for method, title in zip(found.methods, titles, strict=True):
        shown = [confidence_and_accuracy(found, Row(method, "without", name)) for name in TEST_SETS]
        cells = (f"{confidence:.0f} / {accuracy:.0f} %" for confidence, accuracy in shown)
        assert f"| {title} | {' | '.join(cells)} |" in PAGE


def test_ece_of_cases_is_that_of_their_bins() -> None:
    for folder in ("acdc/three_seeds", "chaos"):
        found = results(folder)
        for region, method in itertools.product(("all", "predicted"), found.methods):
            count, confidence, correct = found.case_bins(Row(method), region)
            total = count.sum(2, keepdims=True)
            errors = np.where(
                total[..., 0] > 0, np.abs(confidence - correct).sum(2) / np.maximum(total[..., 0], 1), np.nan
            )
            np.testing.assert_allclose(errors, found.values(Row(method), f"ece_{region}"), atol=2e-5)


def test_shipped_weights_are_of_the_setting_that_the_protocol_chooses() -> None:
    """The lowest NLL of the validation cases among those whose validation DSC is within 0.01 of the best."""
    tables = []
    for folder in ("acdc/three_seeds", "acdc/further", "acdc/variants"):
        found = results(folder)
        keys = ["method", "seed", "fold"]
        tables.append(found.cells.merge(found.temperatures, on=keys))
    cells = pd.concat(tables).drop_duplicates(["method", "seed"])
    means = cells.groupby("method")[["best_val_dsc", "nll_before", "nll_after"]].mean()
    eligible = means[means["best_val_dsc"] >= means["best_val_dsc"].max() - 0.01]
    method, column = eligible[["nll_before", "nll_after"]].stack().idxmin()
    of_method = cells[cells["method"] == method]
    assert (method, column) == (SHIPPED[1], "nll_after")
    assert of_method.loc[of_method[column].idxmin(), "seed"] == SHIPPED[2]


def test_metadata_of_the_bundles_are_those_of_the_cases() -> None:
    folder, method, seed = SHIPPED
    found = results(folder)
    metrics = json.loads((ACDC / "configs/metadata.json").read_text())["eval_metrics"]
    names = {"dsc": "dice", "hd95": "hd95_voxels", "ece": "ece_ground_truth_foreground"}
    assert metrics == {
        f"mean_{names.get(measure, measure)}": round(found.values(Row(method, "with"), measure)[seed].mean(), digits)
        for measure, digits in {"dsc": 3, "hd95": 2, "nll_all": 3, "ece_all": 3, "ece_predicted": 3, "ece": 3}.items()
    }
    metrics = json.loads((BRATS / "configs/metadata.json").read_text())["eval_metrics"]
    brats = results("brats/leave_one_out")
    expected = {
        f"mean_dice_{name}": np.nanmean(brats.values(Row("nacl"), f"dsc_{short}"))
        for name, short in (("whole_tumour", "WT"), ("tumour_core", "TC"), ("enhancing_tumour", "ET"))
    }
    for name in ("nll_all", "ece_all", "ece_predicted"):
        expected[f"mean_{name}"] = np.nanmean(brats.values(Row("nacl", "with"), name))
    assert metrics == {f"{name}_leave_one_out": round(float(value), 3) for name, value in expected.items()}
    metrics = json.loads((FLARE / "configs/metadata.json").read_text())["eval_metrics"]
    mean = results("flare/two_folds").values(Row("nacl"), "dsc").mean()
    assert metrics["mean_dice_of_networks_trained_on_the_other_scan"] == round(mean, 3)


def test_temperature_of_the_shipped_weights_is_on_their_page() -> None:
    folder, method, seed = SHIPPED
    fits = results(folder).temperatures
    (fit,) = fits[(fits["method"] == method) & (fits["seed"] == seed)].to_dict("records")
    text = " ".join((ACDC / "docs/README.md").read_text().split())
    assert f"T = {fit['temperature']:.2f}, which is in the weights" in text
    assert f"(95 % interval {fit['low']:.2f} to {fit['high']:.2f})" in text
    for names, follow in (
        (json.loads(fit["leave_one_out"]), "were the validation patients"),
        ({*results(folder).patients()}, "the test patients"),
    ):
        *numbers, last = sorted(name.removeprefix("patient") for name in names)
        assert f"{', '.join(numbers)} and {last} {follow}" in text


@pytest.mark.parametrize(("column", "test_set"), [(1, ""), (2, "bssfp"), (3, "lge")])
def test_model_card_has_the_means_of_its_weights(column: int, test_set: str) -> None:
    folder, method, seed = SHIPPED
    found, row = results(folder), Row(method, "with", test_set)
    lines = re.findall(r"^\|.*\|$", (ACDC / "docs/README.md").read_text(), re.MULTILINE)
    cells = {parts[0].strip(): parts for line in lines if len(parts := line.strip("|").split("|")) == 4}
    for title, measure in (
        ("DSC", "dsc"), ("NLL, all voxels", "nll_all"), ("ECE, all voxels", "ece_all"),
        ("ECE, predicted foreground", "ece_predicted"), ("ECE, true foreground (the paper's)", "ece"),
    ):  # fmt: skip
        assert cells[title][column].split()[0] == f"{np.nanmean(found.values(row, measure)[seed]):.3f}"
    confidence, accuracy = confidence_and_accuracy(found, row, seed)
    (shown,) = (parts for title, parts in cells.items() if title.startswith("confidence / accuracy"))
    assert shown[column].strip() == f"{confidence:.0f} / {accuracy:.0f} %"


def test_rankings_by_the_papers_ece_and_by_calibration_disagree() -> None:
    """Kendall's tau of the table of rankings, at home."""
    means = table("acdc/three_seeds/report/means.csv").query("temperature == 'without'")
    pair = [means[means["measure"] == measure]["mean"] for measure in ("ece", "ece_predicted")]
    tau = stats.kendalltau(*pair).statistic
    assert f"{tau:+.2f} without temperature" in (RESULTS / "acdc/three_seeds/report/report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "reference"), REFERENCES.items())
def test_whole_report_is_rebuilt(folder: str, reference: str | None, tmp_path: Path) -> None:
    report(RESULTS / folder, tmp_path, reference)
    """Tables are the same; texts may differ."""
    kept, made = (
        [line for line in (of / "report.md").read_text().splitlines() if line.startswith("|")]
        for of in (RESULTS / folder / "report", tmp_path)
    )
    drop = functools.partial(re.sub, r"\[[^\]]*\]|p [=<] [\d.]+|<[^>]*>|\*\*", "")  # intervals, p-values and marks
    assert [*map(drop, made)] == [*map(drop, kept)]


@pytest.mark.slow
def test_overview_is_rebuilt(tmp_path: Path) -> None:
    report_datasets([RESULTS / "acdc/three_seeds", RESULTS / "chaos"], tmp_path)
    for file in sorted((RESULTS / "overview").glob("*.csv")):
        made, kept = pd.read_csv(tmp_path / file.name), pd.read_csv(file)
        columns = [name for name in kept if not name.endswith(("low", "high"))]
        pd.testing.assert_frame_equal(made[columns], kept[columns])


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/acdc")
def test_weights_are_those_of_the_results(tmp_path: Path) -> None:
    """They give the same numbers on the same test patients, prepared again."""
    data, evaluation = tmp_path / "acdc", tmp_path / "eval"
    done = run_script("scripts/prepare_data.py", "acdc", DATA, data)
    assert done.returncode == 0, done.stderr
    config_file = f"['{ACDC}/configs/train.yaml','{ACDC}/configs/evaluate.yaml']"
    places = {"bundle_root": ACDC, "dataset_dir": data, "output_dir": evaluation}
    options = {"config_file": config_file, **places, "device": "cpu", "num_workers": 0}
    done = run_script("-m", "monai.bundle", "run", *(f"--{name}={value}" for name, value in options.items()))
    assert done.returncode == 0, done.stderr
    folder, method, seed = SHIPPED
    found = results(folder).groups[Row(method, "with")]
    expected = found[found["seed"] == seed].set_index("case")
    with open(evaluation / "cases.csv", newline="") as file:
        measured = {row["case"]: row for row in csv.DictReader(file)}
    assert measured.keys() == {*expected.index}
    # HD95 does not change continuously with rounding errors; errors of drawn labels are those of other random numbers.
    columns = [name for name in next(iter(measured.values())) if name in expected]
    names = [name for name in columns if not name.startswith("hd95") and not name.endswith("_resampled")]
    for case, row in measured.items():
        values = {name: expected.loc[case, name] for name in names if row[name]}
        assert {name: float(row[name]) for name in values} == pytest.approx(values, rel=1e-3, abs=1e-3)
