"""The files of an evaluation, from a small engine that predicts what it is given."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine

from calib_components import figures
from calib_components.errors import InputError
from calib_components.handlers import EvaluationWriter
from calib_components.handlers.evaluation import (
    FILES,
    _replace_files,
    read_calibration,
    read_cases,
    read_logits,
    read_summary,
)
from calib_components.metrics import (
    CalibrationMetric,
    DSCMetric,
    ECEMetric,
    HD95Metric,
    LogitMagnitudeMetric,
    NLLMetric,
    calibration_bins,
    structure_masks,
)

STRUCTURES = [[1], [1, 2]]
CASES = 3


def example(case: int) -> dict[str, Any]:
    """A case of three classes; in the second, the first structure is missing from the prediction."""
    generator = torch.Generator().manual_seed(case)
    logits = 3 * torch.randn(3, 8, 7, 4 + case, generator=generator)
    label = torch.randint(3, (1, 8, 7, 4 + case), generator=generator)
    if case == 1:
        logits[1] = -9
    pred = logits.softmax(0)
    masks = {"pred_masks": pred.argmax(0, keepdim=True), "label_masks": label}
    return {
        "case": f"/data/case{case}",
        "image": torch.randn(1, *label.shape[1:], generator=generator),
        "label": label,
        "logits": logits,
        "pred": pred,
        **{name: structure_masks(mask, STRUCTURES) for name, mask in masks.items()},
    }


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def evaluate(folder: Path, cases: int = CASES) -> Engine:
    engine = Engine(lambda engine, batch: batch)
    masks = from_engine(["pred_masks", "label_masks"])
    metrics = {
        "dsc": IgniteMetricHandler(DSCMetric(include_background=True), output_transform=masks),
        "hd95": IgniteMetricHandler(HD95Metric(include_background=True), output_transform=masks),
        "ece": IgniteMetricHandler(CalibrationMetric(), output_transform=from_engine(["pred", "label"])),
        "nll": IgniteMetricHandler(NLLMetric(), output_transform=from_engine(["pred", "label"])),
        "logits": IgniteMetricHandler(LogitMagnitudeMetric(), output_transform=from_engine(["logits", "label"])),
    }
    for name, metric in metrics.items():
        metric.attach(engine, name)
    writer = EvaluationWriter(
        folder,
        metrics,
        ["core", "whole"],
        ["air", "core", "rim"],
        from_engine("case"),
        from_engine(["image", "pred", "label"]),
    )
    writer.attach(engine)
    engine.run([[example(case)] for case in range(cases)])
    return engine


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(folder)
    return folder


def test_writes_its_files_and_nothing_else(evaluation: Path) -> None:
    assert files(evaluation) == set(FILES)


def test_cases_are_read_as_they_were_measured(evaluation: Path) -> None:
    cases, columns = read_cases(evaluation)
    assert cases == ["case0", "case1", "case2"]
    assert list(columns) == ["dsc_core", "dsc_whole", "hd95_core", "hd95_whole", "ece", "cece", "nll"]
    for i in range(CASES):
        item = example(i)
        for name, classwise in (("ece", False), ("cece", True)):
            bins = calibration_bins(item["pred"][None], item["label"][None], classwise=classwise)
            assert columns[name][i] == bins.expected_error().item()
    assert columns["dsc_core"][1] == 0
    assert np.isnan(columns["hd95_core"]).tolist() == [False, True, False]
    with open(evaluation / "cases.csv") as file:
        assert [row["hd95_core"] == "" for row in csv.DictReader(file)] == [False, True, False]


def test_summary_has_mean_deviation_and_number_of_cases(evaluation: Path) -> None:
    summary = read_summary(evaluation)
    _, columns = read_cases(evaluation)
    assert summary["cases"] == CASES
    assert summary["ece"] == {
        "mean": pytest.approx(columns["ece"].mean()),
        "std": pytest.approx(columns["ece"].std(ddof=1)),
        "n": CASES,
    }
    assert summary["hd95_core"]["n"] == 2
    assert summary["dsc"]["mean"] == pytest.approx(np.mean([columns["dsc_core"], columns["dsc_whole"]]))
    assert summary["missed"] == [{"case": "case1", "structure": "core"}]
    assert summary["spurious"] == []


def test_pooled_bins_and_logits(evaluation: Path) -> None:
    bins = read_calibration(evaluation)
    items = [example(i) for i in range(CASES)]
    foreground = sum(int((item["label"] > 0).sum()) for item in items)
    assert bins["top_label"].count.sum() == foreground
    assert bins["classwise"].count.shape == (1, 3, 15)
    assert read_summary(evaluation)["ece_pooled"] == bins["top_label"].expected_error().item()
    names, magnitudes = read_logits(evaluation)
    assert names == ["air", "core", "rim"]
    logits = torch.cat([item["logits"].flatten(1) for item in items], 1)
    label = torch.cat([item["label"].flatten() for item in items])
    torch.testing.assert_close(
        torch.from_numpy(magnitudes[2]), logits[:, label == 2].abs().mean(1, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_next_evaluation_replaces_all_files_and_leaves_others(tmp_path: Path) -> None:
    evaluate(tmp_path)
    (tmp_path / "model.pt").write_text("weights")
    (tmp_path / "cases" / "scan.nii.gz").touch()
    evaluate(tmp_path, cases=2)
    assert read_summary(tmp_path)["cases"] == 2
    assert files(tmp_path) == {*FILES, "model.pt", "cases/scan.nii.gz"}


def test_pictures_of_an_earlier_evaluation_go_if_there_are_none_now(tmp_path: Path) -> None:
    evaluate(tmp_path)
    (tmp_path / "new" / "cases").mkdir(parents=True)
    for name in FILES:
        if not name.startswith("cases"):
            (tmp_path / "new" / name).write_text("new")
    _replace_files(tmp_path / "new", tmp_path)
    assert list((tmp_path / "cases").iterdir()) == []
    assert (tmp_path / "summary.json").read_text() == "new"


def test_folder_in_the_place_of_a_file_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "cases.csv" / "data").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cases.csv: expected a file of an evaluation or nothing, got a folder"):
        evaluate(tmp_path)
    assert (tmp_path / "cases.csv" / "data").is_dir()


def test_names_of_cases_may_hold_any_character(tmp_path: Path) -> None:
    name = 'a,b \u2028 "c"'
    (tmp_path / "cases.csv").write_text('case,ece\n"a,b \u2028 ""c""",0.5\n')
    assert read_cases(tmp_path)[0] == [name]


def test_failure_leaves_the_earlier_evaluation_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}

    def fail(*_: Any, **__: Any) -> None:
        assert (tmp_path / ".unfinished-evaluation" / "summary.json").is_file()  # tables come before figures
        raise OSError("no space left on device")

    monkeypatch.setattr(figures, "reliability_diagram", fail)
    with pytest.raises(OSError, match="no space left"):
        evaluate(tmp_path, cases=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    assert not (tmp_path / ".unfinished-evaluation").exists()


def test_replacement_that_fails_halfway_leaves_no_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(tmp_path)
    replace = Path.replace

    def fail(source: Path, target: Path) -> Path:
        if source.name == "logits.json":
            raise OSError("disk is gone")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        evaluate(tmp_path, cases=2)
    assert not (tmp_path / "summary.json").exists()


def test_cece_is_among_the_metrics_of_the_engine(tmp_path: Path) -> None:
    metrics = evaluate(tmp_path).state.metrics
    summary = read_summary(tmp_path)
    for name in ("ece", "cece", "nll", "dsc"):
        assert isinstance(metrics[name], float)
        assert metrics[name] == pytest.approx(summary[name]["mean"])


def test_metrics_that_it_needs_are_checked_at_once(tmp_path: Path) -> None:
    handlers = {"dsc": IgniteMetricHandler(DSCMetric()), "ece": IgniteMetricHandler(ECEMetric())}
    with pytest.raises(ValueError, match="metrics: expected a handler of a CalibrationMetric called 'ece', got ECEMet"):
        EvaluationWriter(tmp_path, handlers, [], [], from_engine("case"), from_engine("image"))


def test_what_a_killed_evaluation_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-evaluation" / "cases").mkdir(parents=True)
    (tmp_path / ".unfinished-evaluation" / "other.csv").touch()
    evaluate(tmp_path)
    assert files(tmp_path) == set(FILES)


@pytest.mark.parametrize(
    ("read", "name", "content"),
    [
        (read_cases, "cases.csv", ""),
        (read_cases, "cases.csv", "case,dsc_core\na,good\n"),
        (read_cases, "cases.csv", None),
        (read_summary, "summary.json", "{"),
        (read_calibration, "calibration.json", '{"pooled": {"top_label": {"count": [[1]]}}}'),
        (read_calibration, "calibration.json", "{}"),
        (read_logits, "logits.json", '{"class_names": []}'),
        (read_logits, "logits.json", None),
    ],
)
def test_broken_file_is_named(read: Any, name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/{name}: expected a readable file, got .") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_bins_of_version_0_1_are_read(evaluation: Path, tmp_path: Path) -> None:
    content = json.loads((evaluation / "calibration.json").read_text())
    old_names = {"count": "count", "confidence_sum": "confidence", "num_correct": "accuracy"}
    for bins in content["pooled"].values():
        for name in list(bins):
            bins[old_names[name]] = bins.pop(name)
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    for kind, bins in read_calibration(tmp_path).items():
        assert bins.to_dict() == read_calibration(evaluation)[kind].to_dict()
