"""The files of an evaluation, of a network that predicts what it is given."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor

from calib_components.errors import InputError, printable
from calib_components.metrics import case as case_module
from calib_components.metrics.case import (
    MEASURES,
    Case,
    Measure,
    columns,
    find_column,
    measure_case,
    report_columns,
)
from calib_components.posthoc import TemperatureScaled, find_tests
from calib_components.quality import Reference
from calib_workflows import evaluate as evaluate_module
from calib_workflows import evaluation_files, figures
from calib_workflows.cases import NetworkCases
from calib_workflows.data.overlap import find_shared
from calib_workflows.evaluate import NetworkEvaluation, check_case
from calib_workflows.evaluate import evaluate as evaluate_cases
from calib_workflows.evaluation_files import Evaluation
from tests.calib_components.metrics import by_definition
from tests.calib_workflows.made_up import NAMES, STRUCTURES, Replay, example, examples
from tests.helpers import ROOT, files, snapshot

CASES = 3
read = Evaluation.read
# Those of one network and one rater
WRITTEN = {*evaluation_files.FILES} - {
    *(f"{part}.csv" for part in evaluation_files.PARTS),
    "cases/raters.png",
    *(f"cases/missed{number}.png" for number in (1, 2, 3)),
}


def evaluate(folder: Path, items: Sequence[dict[str, Any]], **about: Any) -> None:
    cases = NetworkCases(Replay(items), STRUCTURES)
    folder.mkdir(exist_ok=True)
    evaluate_cases(cases, folder, [*STRUCTURES], NAMES, about)


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the pictures are drawn from; they are left empty to save time."""
    seen: dict[str, list[Any]] = {"reliability_diagram": [], "draw_prediction": []}
    for module, name, picture in (
        (figures, "reliability_diagram", Figure(figsize=(1, 1), dpi=30)),
        (evaluate_module, "draw_prediction", b""),
    ):

        def draw(*args: Any, name: str = name, picture: Any = picture, **options: Any) -> Any:
            seen[name].append((args, options))
            return picture

        monkeypatch.setattr(module, name, draw)
    return seen


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with all its pictures: this fixture comes before that of the pictures."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(folder, examples(CASES), source="made up")
    assert all(
        (folder / name).stat().st_size > 20_000
        for name in ("reliability.png", "reliability_classes.png")
    )
    return folder


def test_cases_have_the_columns_of_the_table_and_nothing_else_is_written(evaluation: Path) -> None:
    assert snapshot(evaluation).keys() == {*WRITTEN, "cases"}
    found = read(evaluation)
    assert found.cases["case"].tolist() == ["case0", "case1", "case2"]
    # One network has no agreement of several
    expected = [name for name, _ in columns([*STRUCTURES]) if not name.startswith("pairwise_dsc")]
    assert [*found.cases][1:] == expected
    assert (found.structures, found.class_names) == ([*STRUCTURES], NAMES)
    assert np.isnan(found.cases["hd95_core"]).tolist() == [False, True, False]


def test_table_of_measures() -> None:
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    for name, (measure, place) in columns(["a", "b"]):
        assert find_column(name, ["a", "b"]) == (measure, place)
        assert measure.column(place) == name
    for name, entry, place in (
        ("ece_if_true", "ece_if_true", "foreground"),
        ("nll_near", "nll", "near"),
        ("dsc_a", "dsc", "a"),
        ("dsc", "dsc", ""),
    ):
        column = find_column(name, ["a"])
        assert column is not None
        assert (column.measure.name, column.place) == (entry, place)
    assert find_column("other", ["a"]) is None


def test_a_new_measure_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the columns of an evaluation and in the tables of reports."""
    volume = Measure(
        "made_up", "made up", lambda case: {"all": case.voxel_volume}, "lower", ("all",)
    )
    monkeypatch.setattr(case_module, "MEASURES", (*MEASURES, volume))
    item = example(0)
    case = Case(item["label"], STRUCTURES, item["pred"].softmax(0), item["pred"].argmax(0))
    assert measure_case(case)["made_up_all"] == 1
    assert "made_up_all" in dict(columns([*STRUCTURES]))
    assert "made_up_all" in report_columns()


def by_numpy(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The errors of regions by column, of the voxels of all cases together."""
    p = np.concatenate([item["pred"].softmax(0).flatten(1) for item in items], 1, dtype=float)
    label = np.concatenate([item["label"].flatten() for item in items])
    whole = by_definition.Case(p, np.ones(len(label), bool))
    errors = {
        f"{name}_if_true": value for name, value in whole.errors_if_true("foreground").items()
    }
    for region in ("foreground", "all", "predicted"):
        measured = whole.measures(label, by_definition.inside(region, p, label))
        suffix = "" if region == "foreground" else f"_{region}"
        errors |= {f"{name}{suffix}": value for name, value in measured.items()}
    return errors


def test_values_are_those_of_numpy(evaluation: Path) -> None:
    found, summary = read(evaluation).cases.set_index("case"), read(evaluation).summary
    of_regions = {name for name, (measure, _) in columns([*STRUCTURES]) if measure.regions}
    of_regions -= {"nll_near"}
    for item in examples(CASES):
        row, expected = found.loc[item["case"]], by_numpy([item])
        for name in of_regions:
            assert row[name] == pytest.approx(expected[name], abs=1e-6), name
        p, predicted = item["pred"].softmax(0)[1].double(), item["pred"].argmax(0) == 1
        possible = p[p > 0.05]
        bits = torch.special.entr(torch.stack([possible, 1 - possible])).sum(0) / np.log(2)
        true = item["label"][0] == 1
        assert row["mean_entropy_core"] == pytest.approx(bits.mean().item(), nan_ok=True)
        assert row["expected_volume_core"] == pytest.approx(p.sum().item())
        assert row["segmented_volume_core"] == predicted.sum()
        dsc = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
        assert row["dsc_core"] == pytest.approx(dsc.item())
    pooled = {name for name in summary if name.endswith("_pooled")}
    assert pooled == {f"{name}_pooled" for name in of_regions if "nll" not in name}
    for name, value in by_numpy(examples(CASES)).items():
        if f"{name}_pooled" in pooled:
            assert summary[f"{name}_pooled"] == pytest.approx(value, abs=1e-6), name


def test_bins_of_regions(evaluation: Path) -> None:
    regions, summary = read(evaluation).regions, read(evaluation).summary
    assert {region: {*kinds} for region, kinds in regions.items()} == {
        "foreground": {"top_label", "classwise", "top_label_if_true", "classwise_if_true"},
        "all": {"top_label", "classwise", "top_label_per_case"},
        "predicted": {"top_label", "top_label_per_case"},
    }
    for region, column in (("foreground", "ece"), ("all", "ece_all")):
        error = regions[region]["top_label"].expected_error().item()
        assert summary[f"{column}_pooled"] == pytest.approx(error)
    sizes = [item["label"].numel() for item in examples(CASES)]
    assert regions["all"]["top_label_per_case"].count.sum(-1).tolist() == sizes


def test_summary_has_statistics_and_what_is_known_of_all_cases(evaluation: Path) -> None:
    summary, found = read(evaluation).summary, read(evaluation).cases
    assert summary["cases"] == CASES
    for name in ("ece", "dsc_core", "hd95_core"):
        defined = found[name].dropna().to_numpy()
        statistics = {"mean": defined.mean(), "std": defined.std(ddof=1), "n": len(defined)}
        assert summary[name] == pytest.approx(statistics)
    assert summary["dsc"]["mean"] == pytest.approx(np.mean([found["dsc_core"], found["dsc_whole"]]))
    assert summary["missed"] == [{"case": "case1", "structure": "core"}]
    assert summary["spurious"] == []
    assert summary["patients"] == {
        "case0": "patient0",
        "case1": "patient0",
        "case2": "patient1",
    }
    assert len({*summary["labels"].values()}) == CASES
    assert (summary["unit"], summary["volume_unit"]) == ("voxels", "voxels")
    assert (summary["channels"], summary["sigmoid"]) == (3, False)
    assert summary["source"] == "made up"


def test_files_come_back_as_they_were_read(evaluation: Path, tmp_path: Path) -> None:
    read(evaluation).write(tmp_path)
    for name in files(tmp_path) - {"calibration.json"}:
        assert (tmp_path / name).read_bytes() == (evaluation / name).read_bytes(), name


def test_two_cases_of_one_name_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 cases are called case0"):
        evaluate(tmp_path, [example(0), example(2), example(0)])
    assert snapshot(tmp_path) == {}


TWO_RANKS = """
import sys
from pathlib import Path
import torch.distributed as dist
from calib_workflows.cases import NetworkCases
from calib_workflows.evaluate import evaluate
from tests.calib_workflows.made_up import NAMES, STRUCTURES, Replay, examples
dist.init_process_group("gloo")
cases = NetworkCases(Replay(examples(3)[dist.get_rank() :: 2]), STRUCTURES)
summary = evaluate(cases, Path(sys.argv[1]), [*STRUCTURES], NAMES, {"source": "made up"})
assert (summary is None) == (dist.get_rank() > 0)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_several_processes_write_what_one_would(evaluation: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node=2", "--no-python"]
    done = subprocess.run(
        [*launcher, sys.executable, "-c", TWO_RANKS, str(tmp_path)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path) == snapshot(evaluation)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Evaluate a calibrated network, whose weights have a stamp."""
    network = TemperatureScaled(torch.nn.Linear(1, 1), 0.5)
    torch.save(network.state_dict(), tmp_path / "model.pt")

    def evaluate_network(weights: int = 1, **options: Any) -> None:
        NetworkEvaluation(
            Replay(examples(1)),  # type: ignore[arg-type]
            network,
            tmp_path / "model.pt",
            STRUCTURES,
            NAMES,
            tmp_path / "out",
            stamp={"weights": weights},
            **options,
        ).run()

    return evaluate_network


def test_evaluation_of_a_network_says_how_it_is_calibrated(
    run: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run()
    summary = read(tmp_path / "out").summary
    assert summary["source"] == "bundle"
    assert summary["calibration"] == {"calibrator": "temperature", "region": "all", "patients": 0}
    assert f"Calibrated (temperature, region all): dsc {summary['dsc']['mean']:.4f}" in caplog.text


def test_what_a_test_set_shows_goes_into_the_weights(
    run: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "model.pt"
    before = torch.load(file) | {"reference": torch.ones(2, len(STRUCTURES), 5)}
    torch.save(before, file)
    for name in ("Philips", "bSSFP", "Philips"):
        run(test_set=name, overwrite=True)
    network = TemperatureScaled(torch.nn.Linear(1, 1))
    network.load_state_dict(torch.load(file))
    tests = find_tests(network)
    assert [*tests] == ["Philips", "bSSFP"]
    found = Reference.from_tensor(tests["Philips"], [*STRUCTURES])
    cases = read(tmp_path / "out").cases
    for number, name in enumerate(STRUCTURES):
        columns = [f"{m}_{name}" for m in ("expected_dsc", "dsc", "expected_volume", "true_volume")]
        expected = cases[columns].to_numpy(copy=True)
        expected[np.isnan(expected[:, 1]), 0] = np.nan
        np.testing.assert_allclose(found.values[:, number, 1:], expected, rtol=1e-6)
    after = torch.load(file)
    after.pop("tests")
    assert after.keys() == before.keys()
    assert all(torch.equal(values, before[name]) for name, values in after.items())


def test_a_test_set_needs_other_patients_and_validation_scans(
    run: Callable[..., None], tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="test_set: the validation cases chose the network"):
        run(test_set="Philips", split="validation")
    with pytest.raises(InputError, match=r"model\.pt: these weights have no validation scans"):
        run(test_set="Philips")
    assert not files(tmp_path / "out")
    assert snapshot(tmp_path)["model.pt"] == before["model.pt"]


@pytest.mark.parametrize("name", ["cases.csv", "summary.json", "cases/best.png"])
def test_file_that_no_evaluation_wrote_is_not_replaced(
    name: str, run: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "out" / "cases").mkdir(parents=True)
    (tmp_path / "out" / "temperature.json").touch()  # which the evaluation leaves alone
    (tmp_path / "out" / name).write_text("{}")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=f"{name} is of no recorded run"):
        run()
    assert snapshot(tmp_path) == before
    run(overwrite=True)
    assert (tmp_path / "out" / "temperature.json").exists()


def test_distances_and_volumes_have_units_where_labels_have_metadata(tmp_path: Path) -> None:
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1]))
    sized = [{**item, "label": MetaTensor(item["label"], affine)} for item in examples(CASES)]
    for name, items in (("voxels", examples(CASES)), ("sized", sized)):
        evaluate(tmp_path / name, items)
    voxels, known = read(tmp_path / "voxels"), read(tmp_path / "sized")
    for evaluation, units in ((voxels, ("voxels", "voxels")), (known, ("mm", "ml"))):
        assert (evaluation.summary["unit"], evaluation.summary["volume_unit"]) == units
    for name, factor in (("hd95_whole", 2), ("true_volume_core", 0.008), ("dsc_core", 1)):
        np.testing.assert_allclose(known.cases[name], factor * voxels.cases[name])


def test_no_name_of_a_case_loses_the_evaluation(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    names = ["NA", "x$_$y, not UTF-8 \udcff\r\n\tb", "\u5fc3" * 60]  # three pictures are drawn
    evaluate(tmp_path, [{**example(i), "case": name} for i, name in enumerate(names)])
    assert read(tmp_path).cases["case"].tolist() == names
    titles = {options["title"].split("\n")[0] for _, options in drawn["draw_prediction"]}
    assert titles == {printable(name) for name in names}


@pytest.mark.parametrize("fails", ["drawing", "replacing"])
def test_failure_mixes_no_evaluations(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tmp_path, examples(2))
    (tmp_path / "model.pt").write_text("weights")
    before, replace = snapshot(tmp_path), Path.replace

    def fail(first: Any, *rest: Any, **options: Any) -> Path:
        if fails == "drawing" or first.name == "calibration.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(first, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(
            *((figures, "reliability_diagram") if fails == "drawing" else (Path, "replace")), fail
        )
        with pytest.raises(InputError, match="No space left"):
            evaluate(tmp_path, examples(2))
    if fails == "drawing":
        assert snapshot(tmp_path) == before
    else:  # files of the new one, and no summary
        assert snapshot(tmp_path).keys() == {"cases", "cases.csv", "model.pt"}
    evaluate(tmp_path, examples(2))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cases.csv", "case,dsc_core\na,1\nb,0.", "cut off"),
        ("summary.json", "{", "property name"),
        ("summary.json", '{"cases": 3}', "of an earlier release.* Evaluate the cases again"),
        ("summary.json", '{"schema_version": 99}', "of a later release"),
        ("calibration.json", '{"schema_version": 2, "class_names": []}', "cases"),
        (
            "calibration.json",
            '{"schema_version": 2, "class_names": 0, "regions": 0, "cases": ["case1", "case0"]}',
            "not those of summary",
        ),
        ("calibration.json", None, "No such file"),
    ],
)
def test_broken_file_is_named(
    name: str, content: str | None, message: str, evaluation: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluation, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        read(tmp_path)


Change = Callable[[pd.DataFrame], pd.DataFrame]
REORDERED: dict[str, Change] = {
    "sorted": lambda table: table.sort_values("dsc_core"),
    "reversed": lambda table: table[::-1],
    "columns moved": lambda table: table[table.columns[::-1]],
}
DAMAGED: dict[str, tuple[Change, str]] = {
    "row missing": (lambda table: table[1:], "case0 has no row"),
    "rows missing": (lambda table: table[:0], "case0 has no row"),
    "row twice": (lambda table: table.iloc[[0, 1, 2, 1]], "case1 has two rows"),
    "row renamed": (lambda table: table.replace("case1", "1"), "case1 has no row"),
    "row added": (lambda table: pd.concat([table, table[:1].assign(case="x")]), "x is not in"),
    "column missing": (lambda table: table.drop(columns="expected_dsc_core"), "expected_dsc_core"),
    "names missing": (lambda table: table.drop(columns="case"), "case"),
}


def edited(evaluation: Path, folder: Path, change: Change, encoding: str = "utf-8") -> Path:
    """A copy of an evaluation, whose cases.csv a spreadsheet has saved."""
    shutil.copytree(evaluation, folder, dirs_exist_ok=True)
    table = change(pd.read_csv(folder / "cases.csv"))
    table.to_csv(folder / "cases.csv", index=False, encoding=encoding, lineterminator="\r\n")
    return folder


@pytest.mark.parametrize("change", REORDERED.values(), ids=REORDERED.keys())
def test_rows_of_cases_are_joined_by_name(change: Change, evaluation: Path, tmp_path: Path) -> None:
    expected = read(evaluation)
    found = read(edited(evaluation, tmp_path, change, "utf-8-sig"))
    pd.testing.assert_frame_equal(found.cases[expected.cases.columns], expected.cases)
    for each in (found, expected):
        assert [*each.cases["case"]] == [*each.summary["patients"]]


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_cases_that_are_not_those_of_the_summary(
    change: Change, message: str, evaluation: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"cases\.csv: .*{message}"):
        read(edited(evaluation, tmp_path, change))


def test_measures_without_a_value_are_null_in_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    evaluate(tmp_path, [{**example(0), "label": torch.zeros(1, 8, 7, 4)}])
    for name in ("summary.json", "calibration.json"):
        # Of NaN, which only Python reads
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)
    summary = read(tmp_path).summary
    assert summary["ece_pooled"] is None  # over the foreground, which there is none of
    assert summary["dsc"] == {"mean": 0, "std": None, "n": 1}


@pytest.mark.parametrize(
    ("cases", "names"), [(1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])]
)
def test_slices_that_are_drawn(
    cases: int, names: list[str], tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    evaluate(tmp_path, examples(cases))
    assert sorted(path.stem for path in (tmp_path / "cases").iterdir()) == names
    found = read(tmp_path).cases
    dsc = (found["dsc_core"] + found["dsc_whole"]) / 2
    for _, options in drawn["draw_prediction"]:
        case = int(options["title"][4])
        item = example(case)
        p, predicted = item["pred"].softmax(0), item["pred"].argmax(0)
        wrong = item["label"][0] != predicted
        index = int(wrong.sum((0, 1)).argmax())
        np.testing.assert_array_equal(options["image"], item["image"][0, ..., index])
        np.testing.assert_array_equal(options["label"], item["label"][0, ..., index])
        np.testing.assert_array_equal(options["prediction"], predicted[..., index])
        entropy = -(p * p.log()).sum(0) / np.log(3)
        np.testing.assert_allclose(options["uncertainty"], entropy[..., index], atol=1e-5)
        assert f"DSC {dsc[case]:.3f} of the volume" in options["title"]
        assert options["class_names"] == NAMES


def test_regions_in_the_reliability_diagrams(tmp_path: Path, drawn: dict[str, list[Any]]) -> None:
    evaluate(tmp_path, examples(1))
    regions = read(tmp_path).regions
    ((bins,), options), ((of_classes, names), _) = drawn["reliability_diagram"]
    assert list(bins) == ["all voxels", "predicted foreground", "ground-truth foreground"]
    for name, each in zip(("all", "predicted", "foreground"), bins.values(), strict=True):
        assert each.to_dict() == regions[name]["top_label"].to_dict()
    assert list(options["if_true"]) == ["ground-truth foreground"]
    assert (of_classes.to_dict(), names) == (regions["all"]["classwise"].to_dict(), NAMES)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("label", lambda label: label + 1, "case0: label.* 3"),
        ("label", lambda label: label * torch.nan, "case0: label.* nan"),
        ("pred", lambda logits: logits * torch.nan, "case0: .*amp"),
        ("image", lambda image: image + torch.inf, "case0: image"),
    ],
)
def test_case_that_cannot_be_measured_is_named(
    key: str, change: Callable[[Any], Any], message: str
) -> None:
    item = example(0)
    assert check_case(item) is item
    with pytest.raises(InputError, match=message):
        check_case({**item, key: change(item[key])})


def test_volume_is_shared_also_if_two_cases_hold_it() -> None:
    summary = {"patients": {"a": "a", "b": "b"}, "labels": {"a": "same", "b": "same"}}
    fitted = Evaluation(pd.DataFrame(), summary, ())
    assert find_shared([{"case": "c", "patient": "c", "content": "same"}], fitted.items())[
        0
    ].is_volume
