"""The files of an evaluation, from a small engine that predicts what it is given."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.handlers import from_engine

from calib_components.errors import InputError, printable
from calib_components.metrics import Region, calibration_bins, measure_structures, risk_coverage
from calib_components.metrics import measures as measures_module
from calib_components.metrics.measures import (
    MEASURES,
    Measure,
    columns,
    find_column,
    measure_case,
    report_columns,
)
from calib_components.metrics.measuring import measure_regions
from calib_components.metrics.regions import REGIONS, RegionKind
from calib_workflows import evaluation_files, figures
from calib_workflows.data.overlap import find_shared
from calib_workflows.evaluate import EvaluationRecords, EvaluationWriter, check_case
from calib_workflows.evaluation_files import Evaluation
from tests.helpers import files, snapshot

STRUCTURES = {"core": [1], "whole": [1, 2]}
NAMES = ["air", "core", "rim"]
CASES = 3
read = Evaluation.read
# Those of one network and one rater
WRITTEN = {*evaluation_files.FILES} - {
    *(f"{part}.csv" for part in evaluation_files.PARTS),
    "cases/raters.png",
    *(f"cases/missed{number}.png" for number in (1, 2, 3)),
}


def example(case: int) -> dict[str, Any]:
    """A case of three classes; in the second, the first structure is missing from the
    prediction.
    """
    generator = torch.Generator().manual_seed(case)
    logits = 3 * torch.randn(3, 8, 7, 4 + case, generator=generator)
    label = torch.randint(3, (1, 8, 7, 4 + case), generator=generator)
    if case == 1:
        logits[1] = -9
    image = torch.randn(1, *label.shape[1:], generator=generator)
    return {
        "case": f"/data/case{case}",
        "image": image,
        "label": label,
        "logits": logits,
        "pred": logits.softmax(0),
    }


def evaluate(
    folder: Path,
    items: Sequence[dict[str, Any]],
    temperature: Any = None,
    **choice: Any,
) -> tuple[Engine, list[str]]:
    """Run an engine; return it, and the names of the cases that it measured."""
    cases = [
        {"case": item["case"], "patient": f"patient of {Path(item['case']).name}"} for item in items
    ]
    records = EvaluationRecords(folder, cases)
    chosen = [case["case"] for case in records.to_measure(**choice)]
    engine = Engine(lambda engine, batch: batch)
    transform = from_engine(["image", "pred", "label"])
    EvaluationWriter(
        records, STRUCTURES, NAMES, from_engine("case"), transform, temperature
    ).attach(engine)
    engine.run([[item] for item in items if item["case"] in chosen])
    return engine, [Path(case).name for case in chosen]


def examples(cases: int = CASES) -> list[dict[str, Any]]:
    return [example(case) for case in range(cases)]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the pictures are drawn from; they are left empty to save time."""
    seen: dict[str, list[Any]] = {"reliability_diagram": [], "uncertainty_overlay": []}
    for name, calls in seen.items():

        def draw(*args: Any, calls: list[Any] = calls, **options: Any) -> Figure:
            calls.append((args, options))
            return Figure(figsize=(1, 1), dpi=30)

        monkeypatch.setattr(figures, name, draw)
    return seen


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with all its pictures: this fixture comes before that of the pictures."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(folder, examples())
    assert all(
        (folder / name).stat().st_size > 20_000
        for name in ("reliability.png", "reliability_classes.png")
    )
    return folder


def test_cases_have_the_columns_of_the_table_and_nothing_else_is_written(evaluation: Path) -> None:
    assert files(evaluation) == WRITTEN
    found = read(evaluation).cases.set_index("case")
    assert [*found.index] == ["case0", "case1", "case2"]
    assert set(found) <= set(dict(columns([*STRUCTURES])))
    closed = {
        "ece_if_true",
        "ece_union_if_true",
        "ece_structure_core_if_true",
        "cece_structure_whole_if_true",
    }
    further = {"brier_union", "smooth_ece_predicted", "dsc_whole", "mean_entropy_core", "aurc"}
    assert closed | further < set(found)
    assert not any(name.startswith(("ece_all_", "ece_band_i")) for name in found)
    assert np.isnan(found["hd95_core"]).tolist() == [False, True, False]


def test_table_of_measures() -> None:
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    for name, (measure, place) in columns(["a", "b"]):
        assert find_column(name, ["a", "b"]) == (measure, place)
        assert measure.column(place) == name
    column = find_column("ece_structure_a_if_true", ["a"])
    assert column is not None
    assert (column.measure.name, column.place, column.measure.better) == (
        "ece_if_true",
        "structure_a",
        "",
    )
    assert find_column("dsc", ["a"]).place == ""  # type: ignore[union-attr]
    assert find_column("other", ["a"]) is None


def test_a_new_region_and_a_new_measure_are_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the columns of an evaluation and in the tables of reports."""
    unsure = RegionKind(lambda voxels, label, region: voxels.confidence < 0.9, by_prediction=True)
    monkeypatch.setitem(REGIONS, "unsure", unsure)
    volume = Measure(
        "made_up", "made up", "lower", "", "case", lambda case: {"": case.voxel_volume}
    )
    monkeypatch.setattr(measures_module, "MEASURES", (*MEASURES, volume))
    item = example(0)
    case = measures_module.Case(item["label"], STRUCTURES, item["pred"], item["pred"].argmax(0))
    measured = measure_case(case)
    names = dict(columns([*STRUCTURES]))
    assert {"ece_unsure", "nll_unsure", "made_up"} < measured.keys() & names.keys()
    assert measured["made_up"] == 1
    assert {"ece_unsure", "made_up"} < set(report_columns())


@pytest.mark.parametrize("temperature", [None, torch.tensor(0.5)])
def test_values_are_those_of_the_metrics(temperature: Any, tmp_path: Path) -> None:
    shown = evaluate(tmp_path, examples(), temperature)[0].state.metrics
    found, summary = read(tmp_path).cases, read(tmp_path).summary
    regions = {name: Region.parse(STRUCTURES.get(name, name)) for name in [*REGIONS, *STRUCTURES]}
    kinds, divided = ["top_label", "classwise", "nll"], None if temperature is None else 0.5
    for i, item in enumerate(examples()):
        y_pred, y = item["pred"][None], item["label"][None]
        measured = measure_regions(y_pred, y, [*regions.values()], kinds, temperature=divided)
        for region, (bins, scores) in zip(regions, measured, strict=True):
            place = (
                f"_structure_{region}"
                if region in STRUCTURES
                else f"_{region}".removesuffix("_foreground")
            )
            expected = {
                "ece": bins["top_label"].expected_error(),
                "cece": bins["classwise"].expected_error(),
                **scores,
            }
            for name, value in expected.items():
                assert found[f"{name}{place}"][i] == pytest.approx(value.item(), abs=1e-12)
        assert (
            found["expected_volume_core"][i]
            == measure_structures(y_pred, y, STRUCTURES).expected[0, 0]
        )
        p = item["pred"][1][item["pred"][1] > 0.05].double()
        bits = torch.special.entr(torch.stack([p, 1 - p])).sum(0).mean().item() / np.log(2)
        assert found["mean_entropy_core"][i] == pytest.approx(bits, rel=1e-6, nan_ok=True)
        assert found["segmented_volume_core"][i] == (item["pred"].argmax(0) == 1).sum()
    assert summary["temperature"] == (1 if temperature is None else 0.5)
    for name in ("dsc", "hd95", "ece_all", "ece_predicted"):
        assert shown[f"test_{name}"] == pytest.approx(summary[name]["mean"])


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
    assert summary["patients"] == {f"case{i}": f"patient of case{i}" for i in range(CASES)}
    assert (summary["unit"], summary["volume_unit"]) == ("voxels", "voxels")
    assert (summary["channels"], summary["sigmoid"]) == (3, False)
    assert summary["source"] == "bundle"


def test_bins_of_regions(evaluation: Path) -> None:
    regions, summary = read(evaluation).regions, read(evaluation).summary
    y_pred, y = (
        torch.cat([item[key].flatten(1) for item in examples()], 1)[None]
        for key in ("pred", "label")
    )
    assert list(regions) == [*REGIONS, "structure_core", "structure_whole"]
    for region, kinds in regions.items():
        if "band" not in region:
            classes = STRUCTURES.get(region.removeprefix("structure_"), region)
            for kind, name in (("top_label", "ece"), ("classwise", "cece")):
                pooled = (
                    calibration_bins(y_pred, y, region=classes, classwise=name == "cece")
                    .expected_error()
                    .item()
                )
                assert kinds[kind].expected_error().item() == pytest.approx(pooled)
                suffix = "" if region == "foreground" else f"_{region}"
                assert summary[f"{name}{suffix}_pooled"] == pytest.approx(pooled)
        assert ("top_label_if_true" in kinds) == (
            region in ("foreground", "union") or region.startswith("structure")
        )
        assert ("top_label_per_case" in kinds) == (region in ("all", "predicted"))
    assert len(regions["all"]["top_label_per_case"].count) == CASES


def test_thresholds_and_risk(evaluation: Path) -> None:
    items, found = examples(), read(evaluation)
    assert found.class_names == NAMES
    half = found.thresholds.thresholds.tolist().index(0.5)
    assert found.structures == [*STRUCTURES]
    assert found.thresholds.predicted[0, 1, half] == ((1 - items[0]["pred"][0]) > 0.5).sum()
    np.testing.assert_array_equal(
        found.risk[1], risk_coverage(items[1]["pred"][None], items[1]["label"][None]).risk[0]
    )
    assert found.coverage[-1] == 1


def test_files_come_back_as_they_were_read(evaluation: Path, tmp_path: Path) -> None:
    read(evaluation).write(tmp_path)
    for name in files(tmp_path) - {"calibration.json"}:
        assert (tmp_path / name).read_bytes() == (evaluation / name).read_bytes(), name


def test_shares_and_continued_runs_write_what_one_would(evaluation: Path, tmp_path: Path) -> None:
    for shard in ("3/3", "1/3"):
        evaluate(tmp_path, examples(), shard=shard)
        assert not (tmp_path / "summary.json").exists()
    assert evaluate(tmp_path, examples(), skip_existing=True)[1] == ["case1"]
    assert files(tmp_path) == WRITTEN
    for name in (name for name in WRITTEN if not name.endswith(".png")):
        assert (tmp_path / name).read_bytes() == (evaluation / name).read_bytes(), name


def test_records_of_other_weights_or_older_than_the_files_do_not_count(tmp_path: Path) -> None:
    image = tmp_path / "image.nii"
    image.touch()
    items = [{"case": name, "patient": "a", "image": image} for name in ("a", "b")]
    records = EvaluationRecords(tmp_path / "out", items, {"weights": 1})
    records.write("a", {"values": {}})
    assert [records.has(name) for name in ("a", "b")] == [True, False]
    assert [item["case"] for item in records.to_measure(skip_existing=True)] == ["b"]
    assert not EvaluationRecords(tmp_path / "out", items, {"weights": 2}).has("a")
    os.utime(image, ns=(2**62, 2**62))
    assert not records.has("a")
    with pytest.raises(InputError, match="2 cases are called a"):
        EvaluationRecords(tmp_path, [{"case": "x/a"}, {"case": "y/a"}])
    with pytest.raises(InputError, match="shard"):
        records.to_measure("3/3")


@pytest.mark.parametrize("name", ["cases.csv", "summary.json", "cases/best.png"])
def test_file_that_no_evaluation_wrote_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "temperature.json").touch()  # which the evaluation leaves alone
    evaluate(tmp_path / "new", examples(1))
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"{name} is of no recorded run"):
        evaluate(tmp_path, examples(1))
    assert (tmp_path / name).read_text() == "{}"
    with pytest.raises(InputError, match=r"is of a run with case case1 None, not \["):
        evaluate(tmp_path / "new", examples(2))


def test_distances_and_volumes_have_units_where_labels_have_metadata(tmp_path: Path) -> None:
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1]))
    sized = [{**item, "label": MetaTensor(item["label"], affine)} for item in examples()]
    for name, items in (("voxels", examples()), ("sized", sized)):
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
    titles = {options["title"].split("\n")[0] for _, options in drawn["uncertainty_overlay"]}
    assert titles == {printable(name) for name in names}


@pytest.mark.parametrize("fails", ["drawing", "replacing"])
def test_failure_mixes_no_evaluations_and_loses_no_work(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tmp_path, examples(2))
    (tmp_path / "model.pt").write_text("weights")
    before, replace = snapshot(tmp_path), Path.replace

    def fail(first: Any, *rest: Any, **options: Any) -> Path:
        if fails == "drawing" or first.name == "thresholds.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(first, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(
            *((figures, "reliability_diagram") if fails == "drawing" else (Path, "replace")), fail
        )
        with pytest.raises(InputError, match="No space left"):
            evaluate(tmp_path, examples(2))
    now = {
        name: text for name, text in snapshot(tmp_path).items() if not name.startswith(".records")
    }
    if fails == "drawing":
        assert now == before
    else:  # files of the new one, and no summary
        assert now.keys() == {"cases", "cases.csv", "calibration.json", "model.pt"}
    assert evaluate(tmp_path, examples(2), skip_existing=True)[1] == ["case1"]
    assert read(tmp_path).summary["cases"] == 2
    assert files(tmp_path) == {*WRITTEN, "model.pt"} - {"cases/median.png"}  # none of two cases


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cases.csv", "case,dsc_core\na,1\nb,0.", "cut off"),
        ("cases.csv", "case;dsc_core\na;1\n", "not separated by commas"),
        ("summary.json", "{", "property name"),
        ("summary.json", '{"schema_version": 99}', "99"),
        ("calibration.json", '{"class_names": []}', "cases"),
        ("calibration.json", '{"cases": ["case1", "case0", "case2"]}', "not those of summary"),
        ("thresholds.json", '{"cases": ["case0"]}', "not those of summary"),
        ("thresholds.json", None, "No such file"),
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
    for _, options in drawn["uncertainty_overlay"]:
        case = int(options["title"][4])
        item = example(case)
        wrong = item["label"][0] != item["pred"].argmax(0)
        index = int(wrong.sum((0, 1)).argmax())
        np.testing.assert_array_equal(options["image"], item["image"][0, ..., index])
        np.testing.assert_array_equal(options["label"], item["label"][0, ..., index])
        np.testing.assert_array_equal(options["prediction"], item["pred"].argmax(0)[..., index])
        entropy = -(item["pred"] * item["pred"].log()).sum(0) / np.log(3)
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
