"""The section of objects, beside its numbers by loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_components.errors import InputError
from calib_components.metrics.objects import CANDIDATE, TRUE_OBJECT
from calib_tools.report import objects
from calib_tools.report.data import Context
from calib_tools.report.objects import choose, froc, measure_objects, objects_section
from calib_tools.report.readers import read_evaluations
from calib_tools.report.report import report_folders
from calib_workflows.evaluation_files import OBJECT_COLUMNS
from tests.calib_tools.report.made_up import PNG, cases_of, write_evaluation


def made_up(seed: int, patients: dict[str, str], mean: float = 3) -> pd.DataFrame:
    """Candidates that are right as often as they are confident, and true objects."""
    rng, rows = np.random.default_rng(seed), []
    for case, patient in patients.items():
        for volume in rng.lognormal(-3, 2, rng.poisson(mean)):
            confidence = rng.choice([0.5, 0.61, 0.75, 0.83, 0.97, 1])
            is_right = bool(rng.uniform() < confidence)
            place = case, patient, "lesion"
            rows.append((*place, CANDIDATE, volume, confidence, is_right, "1 2 3"))
            rows.append((*place, TRUE_OBJECT, volume, confidence * is_right, is_right, "1 2 3"))
    table = pd.DataFrame(rows, columns=OBJECT_COLUMNS)
    return table.astype({"confidence": float, "matched": bool})


def by_loops(rows: pd.DataFrame, scans: int, threshold: float) -> dict[str, float]:
    found = missed = false = 0
    for row in rows.itertuples():
        is_kept = row.confidence >= threshold
        found += row.kind == TRUE_OBJECT and row.matched and is_kept
        missed += row.kind == TRUE_OBJECT and not (row.matched and is_kept)
        false += row.kind == CANDIDATE and not row.matched and is_kept
    return {
        "recall": found / max(found + missed, 1),
        "false": false / scans,
        "f1": 2 * found / max(2 * found + missed + false, 1),
    }


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.4, 3.0]))
def test_curve_and_choices_are_those_of_loops(seed: int, mean: float) -> None:
    patients = cases_of(4)
    rows = made_up(seed, patients, mean)
    curve = froc(rows, pd.Series(patients))
    thresholds = [np.inf, *sorted({*rows["confidence"][rows["kind"] == CANDIDATE]}, reverse=True)]
    assert curve[0].tolist() == thresholds
    points = [by_loops(rows, len(patients), threshold) for threshold in thresholds]
    for values, name in zip(curve[1:], points[0], strict=True):
        assert values.tolist() == pytest.approx([point[name] for point in points])
    best = points[thresholds.index(choose(curve, "f1"))]
    assert best["f1"] == max(point["f1"] for point in points)
    few = points[thresholds.index(choose(curve, "false=0.5"))]
    allowed = [point for point in points if point["false"] <= 0.5]
    assert few in allowed
    assert few["recall"] == max(point["recall"] for point in allowed)
    enough = [point for point in points if point["recall"] >= min(0.7, points[-1]["recall"])]
    sensitive = points[thresholds.index(choose(curve, "recall=.7"))]
    assert sensitive["false"] == min(point["false"] for point in enough)


@pytest.mark.parametrize("seed", range(3))  # intervals take their time
def test_reliability_and_recall_by_volume_are_those_of_loops(seed: int) -> None:
    patients = cases_of(8)
    rows, threshold = made_up(seed, patients), 0.6
    found = measure_objects(rows, pd.Series(patients), threshold)
    expected = by_loops(rows, len(patients), threshold)
    means = found["mean"]
    assert means["F1"] == pytest.approx(expected["f1"])
    assert means["recall"] == pytest.approx(expected["recall"])
    assert found["low"]["recall"] <= expected["recall"] <= found["high"]["recall"]
    assert means["false candidates a scan"] == pytest.approx(expected["false"])
    is_true = rows["kind"] == TRUE_OBJECT
    is_kept = rows["confidence"] >= threshold
    for name, mean in means.items():
        title, is_group, ends = name.partition(" in ")
        if is_group:
            low, high = map(float, ends.strip("(]").split(","))
            column = rows[title.split(", ")[1]]
            chosen = (low < column) & (column <= high)
            recall = is_kept[is_true & chosen].mean()
            right = rows["matched"][~is_true & is_kept & chosen].mean()
            assert mean == pytest.approx(recall if "recall" in title else right), name


def test_section_has_the_threshold_of_validation_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(objects, "to_png", lambda figure: figures.append(figure) or PNG)
    counted = {"structures": ["lesion", "none"], "threshold": 0.5, "overlap": 0.0}
    tables = {}
    for name, first in (("test", 0), ("val", 30)):
        patients = cases_of(8, first)
        tables[name] = made_up(first, patients)
        parts = {"objects": tables[name]}
        write_evaluation(tmp_path / name, patients, parts=parts, objects=counted)
    places = {"out": tmp_path / "out", "validation": tmp_path / "val", "overwrite": True}
    report_folders(tmp_path / "test", **places, object_threshold="false=0.4")
    records = pd.read_csv(tmp_path / "out" / "objects.csv").set_index(["label", "measure"])["mean"]
    best = choose(froc(tables["val"], pd.Series(cases_of(8, 30))), "false=0.4")
    assert best > 0.5
    for name, cases in (("val", "validation"), ("test", "test")):
        expected = by_loops(tables[name], 16, best)
        line = records[f"lesion, {cases}, p ≥ {best:.6g}"]
        assert line["false candidates a scan"] == pytest.approx(expected["false"])
        assert line["recall"] == pytest.approx(expected["recall"])
    assert "lesion, test, p ≥ 0.5" in records
    _, curve, *_ = figures[0].axes[1].lines
    assert curve.get_xdata().tolist() == pytest.approx([0.45, 0.65, 0.75, 0.85, 0.95])
    page = (tmp_path / "out/index.html").read_text()
    assert "<h1>How many objects are found? test</h1>" in page
    assert "best for false=0.4" in page
    with pytest.raises(InputError, match="--object_threshold: 'best' is not f1, false=K"):
        report_folders(tmp_path / "test", **places, object_threshold="best")
    write_evaluation(tmp_path / "val", cases_of(8, 30), objects=counted | {"overlap": 0.1})
    with pytest.raises(InputError, match=r"val has the objects .*0\.1.*, not .*0\.0"):
        report_folders(tmp_path / "test", **places)


def test_objects_of_label_maps_have_no_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "to_png", lambda figure: PNG)
    counted = {"structures": ["lesion", "none"], "threshold": 0.5, "overlap": 0.0}
    rows = made_up(0, cases_of(8))
    rows["confidence"] = rows["confidence"].where(rows["confidence"] == 0, 1)
    options = {"parts": {"objects": rows}, "objects": counted}
    write_evaluation(tmp_path / "test", with_probabilities=False, **options)
    (tmp_path / "test" / "cases").mkdir()
    pictures = {"missed1.png", "missed2.png"}
    for name in pictures:
        (tmp_path / "test" / "cases" / name).write_bytes(PNG)
    report_folders(tmp_path / "test", out=tmp_path / "out")
    assert pictures == {file.name for file in (tmp_path / "out").glob("*.png")}
    measures = {*pd.read_csv(tmp_path / "out" / "objects.csv")["measure"]}
    assert {"recall", "F1", "right", "false candidates a scan"} < measures
    assert not any("confidence" in measure for measure in measures)


def test_counts_are_said_first_and_stand_beside_their_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One lesion of three is found; intervals of volume have the order of their ends."""
    counted = {"structures": ["lesion"], "threshold": 0.5, "overlap": 0.0}
    place = "p00_1", "p00", "lesion"
    rows = [
        (*place, TRUE_OBJECT, 5.0, 0, False, "2"),
        (*place, TRUE_OBJECT, 0.5, 1, True, "1"),
        (*place, TRUE_OBJECT, 0.05, 0, False, "3"),
        (*place, CANDIDATE, 0.5, 1, True, "1"),
        (*place, CANDIDATE, 0.5, 1, False, "4"),
    ]
    options = {"parts": {"objects": pd.DataFrame(rows, columns=OBJECT_COLUMNS)}, "objects": counted}
    tested = write_evaluation(tmp_path / "test", with_probabilities=False, **options)
    report_folders(tested, out=tmp_path / "out")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == "1 of 3 lesions found, 1 false candidate in 16 scans."
    page = (tmp_path / "out/index.html").read_text()
    assert first in page
    section = objects_section(Context(read_evaluations([tested])))
    assert section is not None
    cells = {str(measure): cell for measure, cell in section.grid()[1]}
    assert cells["recall"].notes[-1] == "1 of 3"
    assert cells["false candidates a scan"].notes[-1] == "1 in 16 scans"
    volumes = [name for name in cells if "volume" in name]
    ends = [f"recall, volume in {each}" for each in ("(0.01, 0.1]", "(0.1, 1.0]", "(1.0, 10.0]")]
    assert volumes == ends


def test_rows_that_are_missing_are_noticed(tmp_path: Path) -> None:
    rows = made_up(0, cases_of(8))
    write_evaluation(tmp_path / "test", with_probabilities=False, rows={"objects": len(rows)})
    for changed in (rows[1:], pd.concat([rows, rows[:1]])):
        changed.to_csv(tmp_path / "test" / "objects.csv", index=False)
        with pytest.raises(InputError, match=r"objects\.csv: .* rows are not those of summary"):
            report_folders(tmp_path / "test", out=tmp_path / "out")
