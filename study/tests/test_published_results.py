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
from scipy import stats

from calib_components.handlers import Evaluation
from calib_components.tools.prepare import prepare_data
from calib_components.tools.report.statistics import sums_of_patients
from study.compare.compact import read_compact
from study.compare.data import Comparison, Row, check_same_cases, select_cases
from study.compare.settings import TABLE1
from study.compare.statistics import mean_with_interval
from study.tables.calibrators import summarize, tabulate
from study.tables.draw_results import draw_results
from study.tables.fill_tables import fill
from tests.helpers import ACDC, BRATS, HIPPOCAMPUS, ROOT, SHARED, run_bundle

DATA, RESULTS = SHARED / "data" / "acdc", ROOT / "study" / "results"
FOLDERS = sorted(
    file.parent.relative_to(RESULTS).as_posix() for file in RESULTS.rglob("comparison.json")
)
SHIPPED = ("acdc/travel", "nacl", 0)  # folder, method and seed of the weights in the ACDC bundle
SHIPPED_3D = ("hippocampus", "nacl_0.03", 0)
FLARE = ROOT / "bundles/flare_ct_nacl_segmentation"
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
    assert [*found.labels] == [setting.name for setting in TABLE1]
    assert {found.seeds(row) for row in found.groups} == {3}
    assert found.test_sets == ["", "bssfp", "lge"]
    assert [found.patients[name].nunique() for name in TEST_SETS] == [16, 20, 20]


def test_tables_of_the_pages_are_those_of_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    fill(check=True)
    assert capsys.readouterr().out == ""


def test_tables_of_calibrators_are_those_of_the_cases() -> None:
    folder = RESULTS / "calibrators"
    means = pd.read_csv(folder / "means.csv")
    pd.testing.assert_frame_equal(summarize(folder), means, rtol=1e-4)
    assert (folder / "table.md").read_text() == tabulate(means)
    page = " ".join((ROOT / "study/pages/evidence.md").read_text().split())
    mean = means.set_index(["calibrator", "measure", "network", "site"])["mean"].unstack(
        ["network", "site"]
    )
    home = [name for name in mean.columns if name[1] == "home"]
    changed, usual = mean.loc["T perturbed"], mean.loc["T"]
    assert (
        "on all eight sets on which nothing was fitted, the expected DSC came closer to the"
        " true one" in page
    )
    others = changed.columns.difference(home)
    assert len(others) == 8
    assert (changed.loc["dsc_bias", others].abs() < usual.loc["dsc_bias", others].abs()).all()
    assert (
        "the NLL over all voxels was not higher on any of them, and at home it rose by at most"
        " 0.0007" in page
    )
    rise = (changed - usual).loc["nll_all"]
    assert rise[others].max() < 5e-5
    assert round(rise[home].max(), 4) == 0.0007
    assert "its NLL there is that of one `T` on both hippocampus networks" in page
    vector = (mean.loc["vector perturbed"] - changed).loc["nll_all"]
    assert vector[["hippocampus_ce_dice", "hippocampus_nacl"]].abs().max() < 0.0005
    assert "it is higher on bSSFP and vendor A, and lower on LGE" in page
    assert vector["acdc_nacl"][["bssfp", "vendor_a"]].min() > 0.001
    assert vector["acdc_nacl"]["lge"] < 0
    assert "On LGE, the expected DSC is at least .14 too high with each of them" in page
    assert (
        mean.xs("dsc_bias", level="measure")["acdc_nacl", "lge"].drop("T perturbed twice").min()
        > 0.14
    )


def test_picture_is_that_of_the_cases(tmp_path: Path) -> None:
    draw_results(tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 50_000


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
    text = (
        "({:.3f}; {:.3f} with 0.3), and NACL is lowest on the softmax with 4 ({:.3f}; {:.3f} with"
        " 1; on the logits "
    )
    text = (text + "{:.3f} with 0.03, {:.3f} with 0.1)").format(*first)
    assert text in " ".join((ROOT / "study/pages/evidence_3d.md").read_text().split())
    assert first["mbls"] < first["mbls_0.3"]
    assert first.filter(like="nacl").idxmin() == "nacl_softmax_4.0"


def test_metadata_of_the_bundles_are_those_of_the_cases() -> None:
    for bundle, (folder, method, seed), unit in (
        (ACDC, SHIPPED, "voxels"),
        (HIPPOCAMPUS, SHIPPED_3D, "mm"),
    ):
        found = results(folder)
        metrics = json.loads((bundle / "configs/metadata.json").read_text())["eval_metrics"]
        names = {"dsc": "dice", "hd95": f"hd95_{unit}", "ece": "ece_ground_truth_foreground"}
        digits = {"dsc": 3, "hd95": 2, "nll_all": 3, "ece_all": 3, "ece_predicted": 3, "ece": 3}
        assert metrics == {
            f"mean_{names.get(name, name)}": round(
                found.values(Row(method, "with"), name)[seed].mean(), places
            )
            for name, places in digits.items()
        }
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
    mean = results("flare/two_folds").values(Row("nacl"), "dsc").mean()
    assert metrics["mean_dice_of_networks_trained_on_the_other_scan"] == round(mean, 3)


def test_means_of_forty_new_patients_are_as_the_page_says() -> None:
    """The mean of 55 patients, and the spread of the patients' parts of a mean over volumes."""
    folder, method, seed = SHIPPED_3D
    found, ends = results(folder), []
    patients = found.patients[""]
    for measure in ("dsc", "nll_predicted", "ece_predicted"):
        values = found.values(Row(method, "with"), measure)[seed]
        parts = sums_of_patients(values - values.mean(), patients) * len({*patients}) / len(values)
        half = (
            stats.t.ppf(0.975, len(parts) - 1)
            * parts.std(ddof=1)
            * (1 / len(parts) + 1 / 40) ** 0.5
        )
        ends += [values.mean() - half, values.mean() + half]
    text = (
        "is {:.3f} to {:.3f}, the NLL where a structure is predicted {:.3f} to {:.3f}, and the ECE"
        " there {:.3f} to"
    )
    assert text.format(*ends) in " ".join((HIPPOCAMPUS / "docs/README.md").read_text().split())


@pytest.mark.parametrize(
    ("bundle", "shipped"), [(ACDC, SHIPPED), (HIPPOCAMPUS, SHIPPED_3D)], ids=["acdc", "hippocampus"]
)
def test_temperature_of_the_shipped_weights_is_on_their_page(
    bundle: Path, shipped: tuple[str, str, int]
) -> None:
    folder, method, seed = shipped
    fits = results(folder).temperatures
    (fit,) = fits[(fits["method"] == method) & (fits["seed"] == seed)].to_dict("records")
    text = " ".join((bundle / "docs/README.md").read_text().split())
    assert f"T = {fit['temperature']:.2f}" in text
    assert f"(95 % interval {fit['low']:.2f} to {fit['high']:.2f})" in text
    names = sorted(name.removeprefix("patient") for name in json.loads(fit["leave_one_out"]))
    if bundle == ACDC:
        start = "acdc_patient"
        names, tested = (
            sorted({name.removeprefix(start) for name in found if name.startswith(start)})
            for found in (json.loads(fit["leave_one_out"]), results(folder).patients[""])
        )
        assert f"{', '.join(tested[:-1])} and {tested[-1]} the test patients" in text
        assert f"{', '.join(names[:-1])} and {names[-1]} were the validation patients" in text
    else:
        numbers = [str(int(name)) for name in names]
        assert f"The validation patients were {', '.join(numbers[:-1])} and {numbers[-1]}." in text


PLACES = [  # columns of a page, with their test set and the cases of it
    (ACDC, SHIPPED, 1, "", "acdc_"),
    (ACDC, SHIPPED, 2, "", "vendor_a_"),
    (ACDC, SHIPPED, 3, "vendor_b", ""),
    (ACDC, SHIPPED, 4, "bssfp", ""),
    (ACDC, SHIPPED, 5, "lge", ""),
    (HIPPOCAMPUS, SHIPPED_3D, 2, "", ""),
]


@pytest.mark.parametrize(("bundle", "shipped", "column", "test_set", "prefix"), PLACES)
def test_model_card_has_the_means_of_its_weights(
    bundle: Path, shipped: tuple[str, str, int], column: int, test_set: str, prefix: str
) -> None:
    folder, method, seed = shipped
    found, row = select_cases(results(folder), prefix), Row(method, "with", test_set)
    lines = re.findall(r"^\|.*\|$", (bundle / "docs/README.md").read_text(), re.MULTILINE)
    width = 6 if bundle == ACDC else 3
    cells = {
        parts[0].strip(): parts
        for line in lines
        if len(parts := line.strip("|").split("|")) == width
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
        ("ECE, plausible foreground", "ece_plausible"),
        ("ECE, true foreground (the paper's)", "ece"),
    ):
        if (shown := cells[title][column].strip()) == "the same":
            shown = cells[title][column - 1].strip()
        mean, low, high = mean_with_interval(
            found.values(row, measure)[seed], found.patients[test_set]
        )[:3]
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


def test_other_means_on_the_page_of_acdc_are_those_of_its_weights() -> None:
    page, (folder, method, seed) = " ".join((ACDC / "docs/README.md").read_text().split()), SHIPPED

    def mean(measure: str, test_set: str = "", prefix: str = "") -> float:
        return float(
            np.nanmean(
                select_cases(results(folder), prefix).values(
                    Row(method, "with", test_set), measure
                )[seed]
            )
        )

    views = [mean("dsc", f"{vendor}_{size}") for vendor in "ab" for size in (192, 300)]
    assert (
        "a DSC of {:.3f} and {:.3f} on Siemens, and {:.3f} and {:.3f} on Philips".format(*views)
        in page
    )
    for title, *place in (
        ("ACDC", "", "acdc_"),
        ("Siemens", "", "vendor_a_"),
        ("Philips", "vendor_b"),
    ):
        for measure, digits in (("dsc", 3), ("hd95", 2)):
            values = [mean(f"{measure}{name}", *place) for name in ("", "_RV", "_MYO", "_LV")]
            assert (
                f"| {title}, {measure.upper()} | "
                + " | ".join(f"{value:.{digits}f}" for value in values)
                in page
            )
    scans = table("acdc/quality/validation.csv.gz")
    dsc = (of_structures(scans, name).mean() for name in ("dsc", "averaged_dsc"))
    assert "on the validation patients from {:.3f} to {:.3f}".format(*dsc) in page
    shares: list[float] = []
    for test_set, prefix in (("", "acdc_"), ("vendor_b", ""), ("lge", "")):
        row = Row(method, "without", test_set)
        shares += confidence_and_accuracy(select_cases(results(folder), prefix), row, seed)
    gaps = []
    for place in PLACES[:5]:
        row = Row(method, "with", place[3])
        confidence, accuracy = confidence_and_accuracy(
            select_cases(results(folder), place[4]), row, seed
        )
        gaps.append(round(confidence - accuracy))
    assert (gaps[0], min(gaps[1:4]), max(gaps[1:4]), gaps[4]) == (1, 3, 5, 9)
    assert (
        "by 1 point on ACDC, 3 to 5 on scanners of Siemens (in the training, too) and Philips and"
        " on bSSFP" in page
    )
    assert "of another hospital, and 9 on LGE" in page
    cells = results(folder).cells.set_index(["method", "seed"]).loc[(method, seed)]
    assert f"the epoch ({cells['best_epoch']} of {cells['epochs']})" in page
    text = (
        "{:.0f} % confident and {:.0f} % right on ACDC, {:.0f} % and {:.0f} % on Philips, and"
        " {:.0f} % and {:.0f} %"
    )
    assert f"{text} on LGE".format(*shares) in page
    found = results(folder)
    lge, philips = (found.groups[Row(method, "without", name)] for name in ("lge", "vendor_b"))
    expected = [cases.filter(like="expected_dsc_").mean(axis=None) for cases in (lge, philips)]
    nll = lge["nll_predicted"].mean()
    assert (
        f"the expected DSC is {expected[0]:.3f}, and the NLL where a structure is predicted"
        f" {nll:.3f}" in page
    )
    assert (
        f"falls to {expected[1]:.3f}, and the NLL over all voxels rises to"
        f" {philips['nll_all'].mean():.3f}" in page
    )


def of_structures(scans: pd.DataFrame, measure: str) -> np.ndarray:
    return scans[[f"{measure}_{name}" for name in ("RV", "MYO", "LV")]].to_numpy()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/acdc")
def test_weights_are_those_of_the_results(tmp_path: Path) -> None:
    """They give the same numbers on the same test patients, prepared again, in the central crop
    that these were measured in.
    """
    prepare_data("acdc", DATA, tmp_path / "acdc", fractions=[0.6, 0.2, 0.2])
    places = {"dataset_dir": str(tmp_path / "acdc"), "output_dir": str(tmp_path / "eval")}
    run_bundle(ACDC, "train.yaml", "evaluate.yaml", crop_center=[0.5, 0.5], **places)
    folder, method, seed = SHIPPED
    of_seeds = select_cases(results(folder), "acdc_").groups[Row(method, "with")]
    expected = of_seeds[of_seeds["seed"] == seed].set_index("case")
    found = Evaluation.read(tmp_path / "eval").cases.set_index("case").add_prefix("acdc_", axis=0)
    assert {*found.index} == {*expected.index}
    # HD95 does not change continuously with rounding errors. Whole slices have more background than
    # the crop, in which all voxels were measured.
    # Volumes are in ml now.
    of_all_voxels = re.compile(
        r"hd95.*|.*volume.*|.*_all|.*_all_if_true|aurc|error_share_5|.*_band"
    )
    names = [name for name in found if name in expected and not of_all_voxels.fullmatch(name)]
    assert {"dsc_RV", "expected_dsc_LV", "ece_predicted", "nll_predicted", "ece"} <= {*names}
    np.testing.assert_allclose(found[names], expected.loc[found.index, names], rtol=1e-3, atol=1e-3)
