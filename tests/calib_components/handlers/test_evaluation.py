"""The files of an evaluation, from a small engine that predicts what it is given."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine

from calib_components import figures
from calib_components.errors import InputError, printable
from calib_components.handlers import EvaluationWriter, check_case
from calib_components.handlers.evaluation import (
    read_calibration,
    read_cases,
    read_logits,
    read_regions,
    read_risk_coverage,
    read_summary,
    read_thresholds,
)
from calib_components.handlers.evaluation_files import FILES, replace_files
from calib_components.handlers.evaluation_pictures import draw_slice, largest_slice
from calib_components.handlers.evaluation_records import record_file
from calib_components.metrics import (
    CalibrationBins,
    CalibrationMetric,
    DSCMetric,
    ECEMetric,
    ExpectedDSCMetric,
    HD95Metric,
    LogitMagnitudeMetric,
    RiskCoverageMetric,
    SmoothECEMetric,
    ThresholdMetric,
    VolumeMetric,
    calibration_bins,
    structure_masks,
)

STRUCTURES = {"core": [1], "whole": [1, 2]}
REGIONS = ["all", "predicted", "plausible", "predicted_band", "union", "band"]
CALIBRATION = {"regions": REGIONS, "structures": STRUCTURES, "draws": 3}
FURTHER: dict[str, Any] = {
    "smooth_ece": (SmoothECEMetric, {"regions": ["all", "predicted"]}),
    "volume": (VolumeMetric, {"structures": STRUCTURES}),
    "expected_dsc": (ExpectedDSCMetric, {"structures": STRUCTURES}),
    "thresholds": (ThresholdMetric, {"structures": STRUCTURES}),
    "selective": (RiskCoverageMetric, {}),
}
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
        **{name: structure_masks(mask, [*STRUCTURES.values()]) for name, mask in masks.items()},
    }


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def evaluate(folder: Path, cases: int = CASES, **changed: Any) -> Engine:
    return run(folder, [{**example(case), **changed} for case in range(cases)])


def run(folder: Path, items: Iterable[dict[str, Any]], *of_engine: Any) -> Engine:
    engine, _ = make_engine(folder, *of_engine)
    engine.run([[item] for item in items])
    return engine


def make_engine(
    folder: Path,
    calibration: CalibrationMetric | None = None,
    structures: dict[str, list[int]] = STRUCTURES,
    records: Path | None = None,
) -> tuple[Engine, EvaluationWriter]:
    calibration = CalibrationMetric(**CALIBRATION) if calibration is None else calibration
    engine = Engine(lambda engine, batch: batch)
    masks = from_engine(["pred_masks", "label_masks"])
    metrics = {
        "dsc": IgniteMetricHandler(DSCMetric(include_background=True), output_transform=masks),
        "hd95": IgniteMetricHandler(HD95Metric(include_background=True), output_transform=masks),
        "ece": IgniteMetricHandler(calibration, output_transform=from_engine(["pred", "label"])),
        "logits": IgniteMetricHandler(LogitMagnitudeMetric(), output_transform=from_engine(["logits", "label"])),
    }
    further = FURTHER if "union" in calibration.regions else {}
    for name, (metric, options) in further.items():
        metrics[name] = IgniteMetricHandler(metric(**options), output_transform=from_engine(["pred", "label"]))
    for name, handler in metrics.items():
        handler.attach(engine, name)
    writer = EvaluationWriter(
        folder,
        metrics,
        structures,
        ["air", "core", "rim"],
        from_engine("case"),
        from_engine(["image", "pred", "label"]),
        lambda batch: [Path(item["case"]).name[:4] for item in batch],
        records,
    )
    writer.attach(engine)
    return engine, writer


@pytest.fixture(autouse=True)
def reliability(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Bins and options of the reliability diagrams, which are left empty to save time."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def diagram(bins: Any, class_names: Any = None, **options: Any) -> Figure:
        seen.append((bins, {**options, "class_names": class_names}))
        return Figure()

    monkeypatch.setattr(figures, "reliability_diagram", diagram)
    return seen


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with all its pictures: this fixture comes before that of the reliability diagrams."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(folder)
    assert all((folder / name).stat().st_size > 20_000 for name in ("reliability.png", "reliability_classes.png"))
    return folder


def test_writes_its_files_and_nothing_else(evaluation: Path) -> None:
    assert files(evaluation) == set(FILES)


def test_cases_are_read_as_they_were_measured(evaluation: Path) -> None:
    cases, columns = read_cases(evaluation)
    assert cases == ["case0", "case1", "case2"]
    assert list(columns) == [
        "dsc_core", "dsc_whole", "hd95_core", "hd95_whole",
        "ece", "cece", "nll", "brier", "ece_if_true", "cece_if_true",
        "ece_all", "cece_all", "nll_all", "brier_all",
        "ece_predicted", "cece_predicted", "nll_predicted", "brier_predicted",
        "ece_plausible", "cece_plausible", "nll_plausible", "brier_plausible",
        "ece_predicted_band", "cece_predicted_band", "nll_predicted_band", "brier_predicted_band",
        "ece_union", "cece_union", "nll_union", "brier_union", "ece_union_if_true", "cece_union_if_true",
        "ece_band", "cece_band", "nll_band", "brier_band",
        "ece_structure_core", "cece_structure_core", "nll_structure_core", "brier_structure_core",
        "ece_structure_core_if_true", "cece_structure_core_if_true", "ece_structure_core_resampled",
        "ece_structure_whole", "cece_structure_whole", "nll_structure_whole", "brier_structure_whole",
        "ece_structure_whole_if_true", "cece_structure_whole_if_true", "ece_structure_whole_resampled",
        "smooth_ece", "smooth_ece_all", "smooth_ece_predicted",
        "true_volume_core", "true_volume_whole", "segmented_volume_core", "segmented_volume_whole",
        "expected_volume_core", "expected_volume_whole",
        "volume_low_core", "volume_low_whole", "volume_high_core", "volume_high_whole",
        "expected_dsc_core", "expected_dsc_whole", "aurc", "error_share_5",
    ]  # fmt: skip
    for i in range(CASES):
        item = example(i)
        for name, classwise in (("ece", False), ("cece", True)):
            bins = calibration_bins(item["pred"][None], item["label"][None], classwise=classwise)
            assert columns[name][i] == bins.expected_error().item()
    assert columns["dsc_core"][1] == 0
    assert np.isnan(columns["hd95_core"]).tolist() == [False, True, False]
    with open(evaluation / "cases.csv") as file:
        assert [row["hd95_core"] == "" for row in csv.DictReader(file)] == [False, True, False]


# Ten voxels in a row, their probabilities and labels. A border between labels is nearer to the first than one between
# predictions: 1.5 and 2.5 voxels.
P = torch.tensor(
    [
        [0.98, 0.01, 0.01], [0.90, 0.06, 0.04], [0.62, 0.30, 0.08], [0.25, 0.65, 0.10], [0.21, 0.70, 0.09],
        [0.08, 0.10, 0.82], [0.97, 0.02, 0.01], [0.97, 0.02, 0.01], [0.97, 0.02, 0.01], [0.97, 0.02, 0.01],
    ], dtype=torch.float64
)  # fmt: skip
Y = torch.tensor([0, 0, 1, 1, 0, 2, 0, 0, 0, 0])
INSIDE = {
    "": [2, 3, 5],
    "_all": list(range(10)),
    "_predicted": [3, 4, 5],
    "_plausible": [1, 2, 3, 4, 5],
    "_predicted_band": [1, 2, 3, 4, 5, 6, 7],
    "_union": [2, 3, 4, 5],
    "_band": [0, 1, 2, 3, 4, 5, 6, 7],
    "_structure_core": [2, 3],
    "_structure_whole": [2, 3, 5],
}
# Confidence minus correctness, summed in each of the five bins that are used, over the number of voxels: 0.62 and 0.65
# are in one bin, and so are 0.97 and 0.98.
ECE = {
    "": (0.27 + 0.18) / 3,
    "_all": (0.27 + 0.7 + 0.18 + 0.1 + 0.02 + 4 * 0.03) / 10,
    "_predicted": (0.35 + 0.7 + 0.18) / 3,
    "_plausible": (0.27 + 0.7 + 0.18 + 0.1) / 5,
    "_predicted_band": (0.27 + 0.7 + 0.18 + 0.1 + 2 * 0.03) / 7,
    "_union": (0.27 + 0.7 + 0.18) / 4,
    "_band": (0.27 + 0.7 + 0.18 + 0.1 + 0.02 + 2 * 0.03) / 8,
    "_structure_core": 0.27 / 2,
    "_structure_whole": (0.27 + 0.18) / 3,
}
# The same where labels are drawn: voxel 3 of the core adds 0.65 * 0.65 to the confidences and 0.65 to the correct ones.
ECE_IF_TRUE = {
    "": (abs(0.38 * 0.62 - 0.25 * 0.65) + 0.21 * 0.7 + 0.08 * 0.82 + 0.1 * 0.9 + 0.02 * 0.98 + 0.12 * 0.97) / 3.08,
    "_union": (0.38 * 0.62 + 0.1 * 0.9 + 0.02 * 0.98 + 0.12 * 0.97) / (3 + 0.38 + 0.1 + 0.02 + 0.12),
    "_structure_core": (
        abs(0.3 * 0.62 - 0.65 * 0.35) + 0.7 * 0.3 + 0.1 * 0.82 + 0.06 * 0.9 + 0.01 * 0.98 + 0.08 * 0.97
    ) / (0.3 + 0.65 + 0.7 + 0.1 + 0.06 + 0.01 + 0.08),
}  # fmt: skip


def test_measures_worked_by_hand(tmp_path: Path) -> None:
    # Every voxel twice: pictures need two rows.
    pred, label = (x[..., None, None].expand(-1, -1, 2, 1) for x in (P.T, Y[None]))
    item = {**predicted(label, pred.argmax(0, keepdim=True)), "image": pred[:1], "pred": pred}
    run(tmp_path, [item])
    _, columns = read_cases(tmp_path)
    summary = read_summary(tmp_path)
    for suffix, inside in INSIDE.items():
        p, onehot = P[inside], torch.nn.functional.one_hot(Y[inside], 3)
        gaps = torch.zeros(3, 15, dtype=torch.float64)
        for k in range(3):
            gaps[k].index_add_(0, (p[:, k] * 15).long(), p[:, k] - onehot[:, k])  # no probability is at an edge
        expected = {
            "ece": ECE[suffix],
            "cece": gaps.abs().sum(1).mean().item() / len(inside),
            "nll": -p[onehot.bool()].log().mean().item(),
            "brier": (p - onehot).square().sum(1).mean().item(),
        }
        for name, value in expected.items():
            assert columns[f"{name}{suffix}"][0] == pytest.approx(value, rel=1e-6), f"{name}{suffix}"
        for name in ("ece", "cece"):
            assert summary[f"{name}{suffix}_pooled"] == pytest.approx(expected[name], rel=1e-6)
    for suffix, value in ECE_IF_TRUE.items():
        assert columns[f"ece{suffix}_if_true"][0] == pytest.approx(value, rel=1e-6)
        assert summary[f"ece{suffix}_if_true_pooled"] == pytest.approx(value, rel=1e-6)
    assert columns["ece_structure_whole_if_true"] == columns["ece_if_true"]
    assert summary["temperature"] == 1
    assert not any(name.startswith(("ece_all_", "ece_band_i", "ece_union_re")) for name in columns)


def test_values_of_resampled_labels_are_repeated(evaluation: Path, tmp_path: Path) -> None:
    evaluate(tmp_path)
    assert (tmp_path / "cases.csv").read_text() == (evaluation / "cases.csv").read_text()
    _, columns = read_cases(tmp_path)
    for name, defined in (("core", [True, False, True]), ("whole", [True, True, True])):  # no core is probable in one
        resampled = columns[f"ece_structure_{name}_resampled"]
        assert (~np.isnan(resampled)).tolist() == defined
        assert ((resampled[defined] > 0) & (resampled[defined] < 1)).all()


@pytest.mark.parametrize("temperature", [0.5, torch.tensor(0.5)])
def test_temperature_of_the_network(temperature: float | torch.Tensor, tmp_path: Path) -> None:
    run(tmp_path, [example(0)], CalibrationMetric(**CALIBRATION, temperature=temperature))
    assert read_summary(tmp_path)["temperature"] == 0.5


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


def test_bins_of_regions(evaluation: Path) -> None:
    regions = read_regions(evaluation)
    assert list(regions) == ["foreground", *REGIONS, "structure_core", "structure_whole"]
    items = [example(i) for i in range(CASES)]
    voxels = {
        "all": sum(item["label"].numel() for item in items),
        "predicted": sum(int(item["pred_masks"].any(0).sum()) for item in items),
        "structure_core": sum(int((item["label"] == 1).sum()) for item in items),
    }
    for name, count in voxels.items():
        assert regions[name]["top_label"].count.sum() == count
        assert regions[name]["classwise"].count.sum() == 3 * count
    both = ["top_label", "classwise"]
    for name, kinds in regions.items():
        known = name in ("foreground", "union") or name.startswith("structure")
        per_case = ["top_label_per_case"] if name in ("all", "predicted") else []
        assert list(kinds) == both + [f"{kind}_if_true" for kind in both if known] + per_case
        for kind in per_case:
            assert len(kinds[kind].count) == CASES
            assert kinds[kind].pooled().to_dict() == kinds["top_label"].to_dict()
    for kind, bins in read_calibration(evaluation).items():
        assert bins.to_dict() == regions["foreground"][kind].to_dict()
    weight = sum((1 - item["pred"][0].double()).sum().item() for item in items)
    assert regions["foreground"]["top_label_if_true"].count.sum().item() == pytest.approx(weight, rel=1e-6)
    summary = read_summary(evaluation)
    assert summary["ece_if_true_pooled"] == regions["foreground"]["top_label_if_true"].expected_error().item()
    assert summary["cece_union_pooled"] == regions["union"]["classwise"].expected_error().item()


def test_structures_called_as_the_bins(tmp_path: Path) -> None:
    names = ["classwise", "top_label"]
    calibration = CalibrationMetric(structures={name: [1] for name in names})
    run(tmp_path, [example(0)], calibration)
    summary = read_summary(tmp_path)
    for name in names:
        of_structure = calibration.regions[f"structure_{name}"]
        assert summary[f"ece_structure_{name}_pooled"] == of_structure.bins.expected_error().item()
        assert summary[f"cece_structure_{name}_pooled"] == of_structure.cece.bins.expected_error().item()
        assert f"cece_structure_{name}_if_true_pooled" in summary


def test_next_evaluation_replaces_all_files_and_leaves_others(tmp_path: Path) -> None:
    evaluate(tmp_path)
    (tmp_path / "model.pt").write_text("weights")
    (tmp_path / "cases" / "scan.nii.gz").touch()
    evaluate(tmp_path, cases=2)
    assert read_summary(tmp_path)["cases"] == 2
    assert files(tmp_path) == {*FILES, "model.pt", "cases/scan.nii.gz"} - {"cases/median.png"}  # none of two cases


def test_pictures_of_an_earlier_evaluation_go_if_there_are_none_now(tmp_path: Path) -> None:
    evaluate(tmp_path)
    (tmp_path / "new" / "cases").mkdir(parents=True)
    for name in FILES:
        if not name.startswith("cases"):
            (tmp_path / "new" / name).write_text("new")
    replace_files(tmp_path / "new", tmp_path)
    assert list((tmp_path / "cases").iterdir()) == []
    assert (tmp_path / "summary.json").read_text() == "new"


def test_folder_in_the_place_of_a_file_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "cases.csv" / "data").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cases.csv: expected a file of an evaluation or nothing, got a folder"):
        evaluate(tmp_path)
    assert (tmp_path / "cases.csv" / "data").is_dir()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cases.csv", "case,age,sex\na,70,f\n"),
        ("cases.csv", "case,dsc,hd95\na,1,2\n"),
        ("summary.json", '{"foreground_mean": {}}'),
        ("thresholds.json", '{"mine": 0.5}'),
        ("reliability.png", "a picture of mine"),
        ("cases/best.png", "a picture of mine"),
    ],
)
def test_a_table_of_somebody_else_is_not_replaced(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}: expected a file of an evaluation or nothing, got another one"):
        evaluate(tmp_path)
    assert (tmp_path / name).read_text() == content


def test_names_of_cases_may_hold_any_character(tmp_path: Path) -> None:
    name = 'a,b \u2028 "c"'
    (tmp_path / "cases.csv").write_text('case,ece\n"a,b \u2028 ""c""",0.5\n')
    assert read_cases(tmp_path)[0] == [name]


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the pictures of cases."""
    seen: list[str] = []
    draw = figures.uncertainty_overlay

    def overlay(*args: Any, title: str, **options: Any) -> Figure:
        seen.append(title)
        return draw(*args, title=title, **options)

    monkeypatch.setattr(figures, "uncertainty_overlay", overlay)
    return seen


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "names",
    [
        ["x$_$y", "_", "a\\b^"],
        ["a\r\n\tb\0", "not UTF-8 \udcff", "%s{}"],
        ["\u5fc3", "long" * 60, "=1+1"],
        ["$", " ", "..."],
    ],
)
def test_no_name_loses_the_evaluation(names: list[str], tmp_path: Path, titles: list[str]) -> None:
    run(tmp_path, [{**example(i), "case": name} for i, name in enumerate(names)])
    assert read_cases(tmp_path)[0] == names
    assert files(tmp_path) == set(FILES)
    assert {title.split("\n")[0] for title in titles} == {printable(name) for name in names}


def test_failure_leaves_the_earlier_evaluation_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}

    def fail(*_: Any, **__: Any) -> None:
        assert (tmp_path / ".unfinished-evaluation" / "summary.json").is_file()  # tables come before figures
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figures, "reliability_diagram", fail)
    message = f"{tmp_path}: expected a folder that an evaluation can be written to, got No space left on device"
    with pytest.raises(InputError, match=f"^{message}$"):
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
    message = f"^{tmp_path}: expected a folder that an evaluation can be written to, got disk is gone$"
    with pytest.raises(InputError, match=message):
        evaluate(tmp_path, cases=2)
    assert files(tmp_path) == {"cases.csv", "calibration.json"}  # of the new evaluation: no summary, nothing old
    assert read_cases(tmp_path)[0] == ["case0", "case1"]


def test_means_are_among_the_metrics_of_the_engine(tmp_path: Path) -> None:
    metrics = evaluate(tmp_path).state.metrics
    summary = read_summary(tmp_path)
    for name in ("ece", "cece", "nll", "brier", "dsc", "ece_all", "ece_predicted"):
        assert isinstance(metrics[name], float)
        assert metrics[name] == pytest.approx(summary[name]["mean"])


def test_metrics_that_it_needs_are_checked_at_once(tmp_path: Path) -> None:
    handlers = {"dsc": IgniteMetricHandler(DSCMetric()), "ece": IgniteMetricHandler(ECEMetric())}
    with pytest.raises(ValueError, match="metrics: expected a handler of a CalibrationMetric called 'ece', got ECEMet"):
        EvaluationWriter(tmp_path, handlers, {}, [], from_engine("case"), from_engine("image"))


class TestRecords:
    @pytest.fixture
    def records(self, tmp_path: Path) -> Path:
        """Records of the cases, written by two engines."""
        (tmp_path / "records").mkdir()
        for cases in ([2, 0], [1]):
            engine, _ = make_engine(tmp_path / "out", records=tmp_path / "records")
            engine.run([[example(case)] for case in cases])
        assert files(tmp_path) == {str(record_file("records", f"case{case}")) for case in range(CASES)}
        return tmp_path / "records"

    def test_files_of_records_are_those_of_one_evaluation(self, records: Path, tmp_path: Path) -> None:
        _, writer = make_engine(tmp_path / "out", records=records)
        for _ in range(2):  # the second time, nothing is left of the first
            writer.assemble([f"case{case}" for case in range(CASES)])
        evaluate(tmp_path / "expected")
        assert files(tmp_path / "out") == set(FILES)
        for name in FILES:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name

    def test_a_record_holds_its_own_case_only(self, records: Path) -> None:
        sizes = [record_file(records, f"case{case}").stat().st_size for case in range(CASES)]
        assert max(sizes) < 1.1 * min(sizes)

    def test_a_missing_or_broken_record_is_named(self, records: Path, tmp_path: Path) -> None:
        _, writer = make_engine(tmp_path / "out", records=records)
        record_file(records, "case1").write_bytes(b"broken")
        for case in ("case1", "case9"):
            file = record_file(records, case)
            with pytest.raises(InputError, match=f"^{file}: expected what was measured of a case, got "):
                writer.assemble([case])
        assert files(tmp_path / "out") == set()

    def test_records_are_needed_to_assemble_them(self, tmp_path: Path) -> None:
        _, writer = make_engine(tmp_path)
        with pytest.raises(ValueError, match=r"^records: expected the folder of the records, got None$"):
            writer.assemble(["case0"])


def test_what_a_killed_evaluation_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-evaluation" / "cases").mkdir(parents=True)
    (tmp_path / ".unfinished-evaluation" / "other.csv").touch()
    evaluate(tmp_path)
    assert files(tmp_path) == set(FILES)


@pytest.mark.parametrize(
    ("read", "name", "content", "message"),
    [
        (read_cases, "cases.csv", "", "the cases of an evaluation, got a table without cases"),
        (read_cases, "cases.csv", "case,dsc_core\n", "got a table without cases"),
        (read_cases, "cases.csv", "name,dsc_core\na,1\n", "got a table without cases"),
        (read_cases, "cases.csv", "case,dsc_core\na,good\n", "got could not convert string to float: 'good'"),
        (read_cases, "cases.csv", "case,dsc_core\na,1\nb,1,2\n", "got 3 cells of case 2 in 2 columns"),
        (read_cases, "cases.csv", "case,dsc_core\na,1\nb\n", "got 1 cells of case 2 in 2 columns"),
        (read_cases, "cases.csv", "case,ece\na,1\na,1\n", "got the case a 2 times"),
        (read_cases, "cases.csv", "case,ece,ece\na,1,2\n", "got the column ece 2 times"),
        (read_cases, "cases.csv", "case,ece\na,inf\n", "got infinite values"),
        (read_cases, "cases.csv", 'case,ece\n"a,1\n', "got unexpected end of data"),
        (read_cases, "cases.csv", "\x89PNG\r\n\x1a\n\0", "got "),
        (read_cases, "cases.csv", None, "got No such file or directory"),
        (read_summary, "summary.json", "{", "the summary of an evaluation, got Expecting property name"),
        (read_summary, "summary.json", "[]", "got "),
        (read_summary, "summary.json", "{}", "got one that lacks 'missed'"),
        (read_summary, "summary.json", '{"missed": 1, "spurious": []}', "got no list of missed or of spurious"),
        (read_calibration, "calibration.json", '{"pooled": {"top_label": {"count": [[1]]}}}', "the bins of an evaluat"),
        (read_calibration, "calibration.json", '{"pooled": {}}', "got one that lacks 'top_label'"),
        (read_calibration, "calibration.json", "{}", "got one that lacks 'pooled'"),
        (read_calibration, "calibration.json", "[" * 100_000, "got "),
        (read_regions, "calibration.json", '{"regions": []}', "the bins of an evaluation, got "),
        (read_regions, "calibration.json", '{"regions": {"all": 1}}', "the bins of an evaluation, got "),
        (
            read_regions,
            "calibration.json",
            '{"regions": {"all": {"top_label": {"count": [[1]]}}}}',
            "the bins of an eval",
        ),
        (read_logits, "logits.json", '{"class_names": []}', "the logits of an evaluation, got one that lacks 'magnit"),
        (
            read_logits,
            "logits.json",
            '{"class_names": ["a"], "magnitudes": [[1, 2]]}',
            r"got magnitudes of shape \(1, 2",
        ),
        (read_logits, "logits.json", '{"class_names": ["a"], "magnitudes": [["b"]]}', "got could not convert string"),
        (read_logits, "logits.json", None, "got No such file or directory"),
    ],
)
def test_broken_file_is_named(read: Any, name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/{name}: expected .*{message}") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_measures_without_a_value_are_null_in_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    evaluate(tmp_path, cases=1, label=torch.zeros(1, 8, 7, 4), label_masks=torch.zeros(2, 8, 7, 4).bool())
    for name in ("summary.json", "calibration.json", "logits.json"):
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)  # of NaN, which only Python reads
    summary = read_summary(tmp_path)
    assert summary["ece_pooled"] is None  # over the foreground, which there is none of
    assert summary["dsc"] == {"mean": 0, "std": None, "n": 1}


@pytest.mark.parametrize(("cases", "names"), [(1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])])
def test_no_picture_is_there_twice(cases: int, names: list[str], tmp_path: Path, titles: list[str]) -> None:
    evaluate(tmp_path, cases)
    assert sorted(path.stem for path in (tmp_path / "cases").iterdir()) == names
    assert len({title.splitlines()[0] for title in titles}) == len(titles) == cases
    _, columns = read_cases(tmp_path)
    dsc = (columns["dsc_core"] + columns["dsc_whole"]) / 2
    assert [float(title.split()[2]) for title in titles] == [round(value, 3) for value in sorted(dsc)]


def certain(classes: torch.Tensor, num_classes: int = 3) -> torch.Tensor:
    """Logits `(N, *S)` of a network that is right about classes `(1, *S)`."""
    return 9.0 * torch.nn.functional.one_hot(classes[0].long(), num_classes).movedim(-1, 0)


def predicted(label: torch.Tensor, found: torch.Tensor) -> dict[str, Any]:
    """A case of this label of which the network is certain of the classes found."""
    logits = certain(found)
    masks = {"label_masks": label, "pred_masks": found}
    return {
        **example(0),
        "label": label,
        "logits": logits,
        "pred": logits.softmax(0),
        **{name: structure_masks(mask, [*STRUCTURES.values()]) for name, mask in masks.items()},
    }


def test_title_has_the_scores_of_the_slice_that_is_drawn(tmp_path: Path, titles: list[str]) -> None:
    label = torch.zeros(1, 8, 8, 2, dtype=torch.uint8)
    label[0, :4, :4, 0] = 1  # most foreground, of which half is found
    label[0, 0, :2, 1] = 1
    label[0, 7, 7, 1] = 2
    found = label.clone()
    found[0, :2, :, 0] = 0
    run(tmp_path, [predicted(label, found)])
    # Core: 2 * 10 / (18 + 10) in the volume and 2 * 8 / (16 + 8) in the slice. Whole: 2 * 11 / (19 + 11) and the same.
    assert titles == ["case0\nDSC 0.724 of the volume, 0.667 of this slice"]


def test_title_names_the_structures_missed_in_the_slice(tmp_path: Path, titles: list[str]) -> None:
    label = torch.zeros(1, 8, 8, 2, dtype=torch.uint8)
    label[0, :4, :4, 0], label[0, 5, 5, 0], label[0, 5, 5, 1] = 2, 1, 1
    found = label.clone()
    found[0, 5, 5, 0] = 0  # core is found in the other slice alone
    run(tmp_path, [predicted(label, found)])
    scores, missed = titles[0].splitlines()[1:]
    assert scores == "DSC 0.819 of the volume, 0.485 of this slice"  # (2/3 + 34/35) / 2 and (0 + 32/33) / 2
    assert missed == "missed in this slice: core"


def test_case_without_foreground_shows_what_was_predicted_in_it(tmp_path: Path, titles: list[str]) -> None:
    label = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    found = label.clone()
    found[0, 2:4, 2:4, 2] = 1
    run(tmp_path, [predicted(label, found)])
    assert titles == ["case0\nDSC 0.000 of the volume, 0.000 of this slice"]


def test_case_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^case1: expected each case once in an evaluation, got it 2 times$"):
        run(tmp_path, [example(0), example(1), {**example(2), "case": "/other/case1"}])
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("a", "a_if_true"), "ece_structure_a_if_true"),
        (("a_resampled", "a"), "ece_structure_a_resampled"),
        (("a", "a_pooled"), "ece_structure_a_pooled"),
        (("a", "a_if_true_pooled"), "ece_structure_a_if_true_pooled"),
    ],
)
def test_structures_of_which_a_column_would_be_lost_are_refused(
    names: tuple[str, str], column: str, tmp_path: Path
) -> None:
    structures = {name: [k] for k, name in enumerate(names, 1)}
    with pytest.raises(
        InputError, match=f"^structures: expected names that give different columns, got {column} twice"
    ):
        # It is said before the work: measuring the case, which has nothing, would be another error.
        run(tmp_path, [{}], CalibrationMetric(structures=structures, draws=1), structures)
    assert files(tmp_path) == set()


def test_structures_with_similar_names_have_all_their_columns(tmp_path: Path) -> None:
    structures = {"a": [1], "a_resampled": [1, 2], "all": [2], "if_true": [1]}
    run(tmp_path, [example(0)], CalibrationMetric(regions=["all"], structures=structures))  # without draws
    columns = read_cases(tmp_path)[1]
    assert {"ece_structure_a_resampled", "ece_structure_all", "ece_structure_if_true", "ece_all"} <= set(columns)
    assert len(columns) == 2 * 2 + 6 + 4 + 4 * 6


def test_as_many_names_as_channels(tmp_path: Path) -> None:
    four = torch.rand(4, 8, 7, 4).softmax(0)
    with pytest.raises(
        InputError, match=r"^class_names: expected 4 names, one per channel of the network, got air, co"
    ):
        evaluate(tmp_path, cases=1, logits=four, pred=four)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "file/eval: expected a folder that an evaluation can be written to, got Not a directory"),
        ("cases", "cases/eval/cases: expected a folder of pictures or nothing, got a file"),
        ("hidden", "hidden/eval: expected a folder that an evaluation can be written to, got File exists"),
    ],
)
def test_place_that_cannot_be_written_is_named_before_the_work(place: str, message: str, tmp_path: Path) -> None:
    blocked = {"file": "file", "cases": "cases/eval/cases", "hidden": "hidden/eval/.unfinished-evaluation"}[place]
    (tmp_path / blocked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / blocked).write_text("mine")
    started = []

    def items() -> Any:
        started.append(True)
        yield example(0)

    with pytest.raises(InputError, match=f"^{tmp_path}/{message}$"):
        run(tmp_path / place / "eval", items())
    assert files(tmp_path) == {blocked}


def test_pictures_of_more_than_255_classes_show_the_right_one() -> None:
    label = torch.full((2, 2, 1), 300)
    of_slice = label[..., 0]
    drawn = draw_slice(None, of_slice, of_slice, None, {"all": (of_slice > 0, of_slice > 0)})
    assert np.unique(drawn.label).tolist() == np.unique(drawn.prediction).tolist() == [300]
    assert (drawn.image, drawn.uncertainty, drawn.dsc, drawn.missed) == (None, None, 1, ())


def test_slice_that_is_drawn_has_the_most_foreground() -> None:
    label = torch.zeros(4, 4, 3, dtype=torch.int)
    label[:2, :, 1], label[0, 0, 2] = 1, 2
    prediction = torch.zeros(4, 4, 3, dtype=torch.int)
    prediction[1, :, 1] = 1
    assert largest_slice(prediction, label) == 1
    assert largest_slice(prediction, 0 * label) == 1
    prediction, label = prediction[..., 1], label[..., 1]
    masks = {name: (prediction == k, label == k) for name, k in {"a": 1, "b": 2, "c": 3}.items()}
    drawn = draw_slice(None, prediction, label, label / 2, masks)
    assert (drawn.label == label.numpy()).all()
    assert drawn.dsc == pytest.approx(2 * 4 / 12)  # of a alone: b is not in this slice
    assert drawn.missed == ()
    of_nothing = {"a": (label > 9, label == 1), "b": (label > 9, label == 2)}
    assert draw_slice(None, 0 * prediction, label, None, of_nothing).missed == ("a",)


def test_measures_for_the_clinic_are_read_as_they_were_measured(evaluation: Path) -> None:
    columns = read_cases(evaluation)[1]
    made = {name: metric(**options) for name, (metric, options) in FURTHER.items()}
    risk_of, smooth, expected_dsc = (made[name] for name in ("selective", "smooth_ece", "expected_dsc"))
    for i, item in enumerate(map(example, range(CASES))):
        for metric in (risk_of, smooth, expected_dsc):
            metric(item["pred"][None], item["label"][None])
        expected = {"aurc": risk_of.aggregate("none")[i], "error_share_5": risk_of.error_share[i]}
        expected |= {f"smooth_ece_{region}": each.aggregate("none")[i] for region, each in smooth.regions.items()}
        of_structures = expected_dsc.aggregate("none")[i]
        expected |= {f"expected_dsc_{name}": of_structures[k] for k, name in enumerate(STRUCTURES)}
        for name, value in expected.items():
            assert columns[name][i] == pytest.approx(value.item(), rel=1e-6), name
        core = item["pred"][1]
        assert columns["true_volume_core"][i] == (item["label"] == 1).sum()
        assert columns["segmented_volume_core"][i] == (item["pred"].argmax(0) == 1).sum()
        assert columns["expected_volume_core"][i] == pytest.approx(core.double().sum().item())
        assert columns["volume_low_core"][i] == (core > 0.95).sum()
        assert columns["volume_high_core"][i] == (core > 0.05).sum()
        wrong = (item["pred"].argmax(0) != item["label"][0]).double().mean().item()
        coverage, risk = read_risk_coverage(evaluation)
        assert risk[i, -1] == pytest.approx(wrong)
    assert coverage[-1] == 1
    names, counts = read_thresholds(evaluation)
    assert names == [*STRUCTURES]
    half = counts.thresholds.tolist().index(0.5)
    assert counts.predicted[0, 1, half] == ((1 - example(0)["pred"][0]) > 0.5).sum()
    summary = read_summary(evaluation)
    assert summary["patients"] == {f"case{i}": "case" for i in range(CASES)}
    assert (summary["unit"], summary["volume_unit"]) == ("voxels", "voxels")
    assert summary["smooth_ece_all"]["n"] == CASES


LABEL = torch.tensor([[[0.0, 1], [2, 2]]])
LOGITS = torch.zeros(3, 2, 2)


def test_checked_case_is_the_same_item() -> None:
    item = {"case": "a", "image": LABEL, "label": LABEL, "pred": LOGITS}
    assert check_case(item) is item


@pytest.mark.parametrize(
    ("label", "logits", "message"),
    [
        (LABEL + 1, LOGITS, "patient1: expected class indices from 0 to 2, those of the network, got 3"),
        (LABEL.byte() + 253, LOGITS, "patient1: expected class indices from 0 to 2, those of the network, got 253"),
        (LABEL - 1, LOGITS, "patient1: expected class indices from 0 to 2, those of the network, got -1"),
        (LABEL / 2, LOGITS, r"patient1: expected class indices from 0 to 2, those of the network, got 0\.5"),
        (LABEL * torch.nan, LOGITS, "patient1: expected class indices from 0 to 2, those of the network, got nan"),
        (
            MetaTensor(LABEL + 9, meta={"filename_or_obj": "data/patient1/label.nii"}),
            LOGITS,
            "data/patient1/label.nii: expected class indices from 0 to 2, those of the network, got 9",
        ),
        (LABEL, LOGITS * torch.nan, "patient1: expected finite logits, got some that are NaN or infinite; try --amp f"),
        (LABEL, LOGITS + torch.inf, "patient1: expected finite logits, got some that are NaN or infinite; try --amp f"),
    ],
)
def test_case_that_cannot_be_measured_is_named(label: torch.Tensor, logits: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        check_case({"case": "patient1", "image": LABEL, "label": label, "pred": logits})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_image_that_cannot_be_measured_is_named(value: float) -> None:
    image = MetaTensor(LABEL + value, meta={"filename_or_obj": "data/image.nii"})
    message = "data/image.nii: expected finite values, got some that are NaN or infinite"
    with pytest.raises(InputError, match=f"^{message}$"):
        check_case({"case": "patient1", "image": image, "label": LABEL, "pred": LOGITS * value})


def same(one: CalibrationBins, other: CalibrationBins) -> bool:
    return one.to_dict() == other.to_dict()


def test_regions_that_are_drawn(tmp_path: Path, reliability: list[tuple[Any, dict[str, Any]]]) -> None:
    evaluate(tmp_path)
    regions = read_regions(tmp_path)
    (bins, options), (of_classes, options_of_classes) = reliability
    drawn = {"all voxels": "all", "predicted foreground": "predicted", "ground-truth foreground": "foreground"}
    assert list(bins) == list(drawn)
    assert all(same(bins[title], regions[name]["top_label"]) for title, name in drawn.items())
    assert options["bands"]
    assert options["class_names"] is None
    assert list(options["if_true"]) == ["ground-truth foreground"]
    assert same(options["if_true"]["ground-truth foreground"], regions["foreground"]["top_label_if_true"])
    assert same(of_classes, regions["all"]["classwise"])
    assert options_of_classes == {"class_names": ["air", "core", "rim"], "bands": True}


def test_classes_of_the_foreground_are_not_drawn(tmp_path: Path, reliability: list[tuple[Any, dict[str, Any]]]) -> None:
    evaluate(tmp_path)
    run(tmp_path, [example(0)], CalibrationMetric())
    assert files(tmp_path) == {*FILES, "cases/best.png"} - {
        "reliability_classes.png",
        "thresholds.json",
        "risk_coverage.json",
        "cases/median.png",
        "cases/worst.png",
    }
    assert list(reliability[-1][0]) == ["ground-truth foreground"]
    assert list(read_cases(tmp_path)[1])[4:] == ["ece", "cece", "nll", "brier", "ece_if_true", "cece_if_true"]


def test_metric_of_another_region(tmp_path: Path, reliability: list[tuple[Any, dict[str, Any]]]) -> None:
    run(tmp_path, [example(0)], CalibrationMetric(region="band"))
    assert not {"reliability.png", "reliability_classes.png"} & files(tmp_path)
    assert reliability == []
    assert list(read_cases(tmp_path)[1])[4:] == ["ece", "cece", "nll", "brier"]
    assert list(read_regions(tmp_path)) == ["band"]
