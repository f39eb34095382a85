"""Evaluation folders, read and brought to their common cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.calib_components.tools.compare.made_up import make_folder

from calib_components.errors import InputError
from calib_components.handlers.evaluation_files import (
    read_cases,
    read_regions,
    read_risk_coverage,
    read_thresholds,
)
from calib_components.tools.report.evaluations import read_evaluations


def change(folder: Path, **values: object) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, **values}))


def keep(folder: Path, rows: slice) -> None:
    """Keep some of the cases, perhaps in another order; thresholds and risks go."""
    header, *lines = (folder / "cases.csv").read_text().splitlines(keepends=True)
    (folder / "cases.csv").write_text("".join([header, *lines[rows]]))
    content = json.loads((folder / "calibration.json").read_text())
    content["cases"] = content["cases"][rows]
    for kinds in content["regions"].values():
        if "top_label_per_case" in kinds:
            kinds["top_label_per_case"] = {name: of[rows] for name, of in kinds["top_label_per_case"].items()}
    (folder / "calibration.json").write_text(json.dumps(content))
    for name in ("thresholds.json", "risk_coverage.json"):
        (folder / name).unlink()


def test_one_folder_has_what_was_written(tmp_path: Path) -> None:
    found = read_evaluations([make_folder(tmp_path / "a")])
    (method,) = found.methods
    evaluation = method.evaluation
    assert (method.name, method.label, found.notices, found.has_all_cases) == ("a", "a", [], True)
    assert evaluation.cases[:3] == ["patient000_frame01", "patient000_frame12", "patient001_frame01"]
    assert found.patients[:3] == ["patient000", "patient000", "patient001"]
    assert (evaluation.unit, evaluation.volume_unit) == ("mm", "ml")
    assert evaluation.threshold_structures == ["RV", "MYO", "LV"]
    assert evaluation.thresholds is not None
    assert evaluation.thresholds.true.shape == (16, 3)
    assert evaluation.risk.shape == (16, 20)
    assert [*evaluation.regions] == ["foreground", "all", "predicted"]
    assert found.has_regions


def test_common_cases_in_the_order_of_the_first(tmp_path: Path) -> None:
    """The second folder has two patients less, one more, and lists its cases the other way round."""
    first, second = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", patients=9, seed=1)
    keep(second, slice(None, 3, -1))
    found = read_evaluations([first, second])
    common = [f"patient{i:03d}_frame{j:02d}" for i in range(2, 8) for j in (1, 12)]
    for method, folder in zip(found.methods, (first, second), strict=True):
        cases, columns = read_cases(folder)
        assert method.evaluation.cases == common
        assert method.evaluation.regions["all"].count.shape == (12, 15)
        assert method.bins("all").count[0, 0] == 12 * 1000
        assert method.values("ece_all").tolist() == [columns["ece_all"][cases.index(case)] for case in common]
    first_counts = found.methods[0].evaluation.thresholds
    assert first_counts is not None
    assert len(first_counts.true_positive) == len(found.methods[0].evaluation.risk) == 12
    assert not found.has_all_cases
    left_out = "patient000_frame01, patient000_frame12, patient001_frame01, patient001_frame12"
    assert found.notices == [
        f"Cases that not all have, left out: {left_out} of a.",
        "Cases that not all have, left out: patient008_frame12, patient008_frame01 of b.",
        "b lacks what others have, which is not compared: thresholds, risk over coverage.",
    ]


def volumes_of(folder: Path, case: str, factor: float) -> None:
    """Change the true volume of LV of a case."""
    cases, columns = read_cases(folder)
    old = columns["true_volume_LV"][cases.index(case)]
    lines = (folder / "cases.csv").read_text().splitlines()
    at = lines[0].split(",").index("true_volume_LV")
    values = lines[1 + cases.index(case)].split(",")
    values[at] = repr(float(old * factor))
    lines[1 + cases.index(case)] = ",".join(values)
    (folder / "cases.csv").write_text("\n".join([*lines, ""]))


def test_another_ground_truth_of_the_same_name_is_an_error(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", seed=1)
    volumes_of(second, "patient002_frame12", 1 + 1e-7)  # another order of a sum
    read_evaluations([first, second])
    volumes_of(second, "patient002_frame12", 1 + 1e-5)
    with pytest.raises(
        InputError,
        match="got another number of voxels or other volumes of case patient002_frame12: another p",
    ):
        read_evaluations([first, second])
    rename(second, "true_volume_", "volume_")  # not known
    read_evaluations([first, second])


def test_another_part_of_the_grid_is_an_error(tmp_path: Path) -> None:
    """As around the structures: volumes stay, but errors over all voxels are larger."""
    first, second = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", seed=1)
    content = json.loads((second / "calibration.json").read_text())
    content["regions"]["all"]["top_label_per_case"]["count"][3][14] += 1
    (second / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="got another number of voxels or other volumes of case patient001_frame12: "):
        read_evaluations([first, second])


def test_missed_structures_are_those_of_the_common_cases(tmp_path: Path) -> None:
    missed = [{"case": f"patient{i:03d}_frame01", "structure": "RV"} for i in (0, 7)]
    first = make_folder(tmp_path / "a", missed=missed)
    found = read_evaluations([first, make_folder(tmp_path / "b", patients=6)])
    assert found.methods[0].evaluation.missed == ["patient000_frame01"]


def test_label_maps_beside_probabilities_are_compared_by_what_both_have(tmp_path: Path) -> None:
    maps = make_folder(tmp_path / "maps", with_probabilities=False)
    found = read_evaluations([make_folder(tmp_path / "a"), maps])
    assert [*found.first.columns] == ["dsc_RV", "dsc_MYO", "dsc_LV", "hd95_RV", "hd95_MYO", "hd95_LV"]
    assert not found.has_regions
    assert found.notices == [
        "Only names of cases were compared: label maps do not tell whether ground truths are the same.",
        "maps lacks what others have, which is not compared: all that needs probabilities.",
    ]


def test_columns_of_one_are_named(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    text = (second / "cases.csv").read_text().replace("smooth_ece_", "other_")
    (second / "cases.csv").write_text(text)
    assert read_evaluations([first, second]).notices == [
        "a lacks what others have, which is not compared: other_all, other_predicted.",
        "b lacks what others have, which is not compared: smooth_ece_all, smooth_ece_predicted.",
    ]


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (["a", "b"], ["a", "b"]),
        (["a/eval", "b/eval"], ["a/eval", "b/eval"]),
        (["x/a/eval", "x/b/eval", "x/b/test"], ["a/eval", "b/eval", "b/test"]),
        (["a\nb", "<b>"], ["a\\nb", "<b>"]),
    ],
)
def test_labels_are_the_ends_of_paths_that_tell_them_apart(
    places: list[str], labels: list[str], tmp_path: Path
) -> None:
    folders = [make_folder(tmp_path / place, with_probabilities=False) for place in places]
    found = read_evaluations(folders)
    assert [method.label for method in found.methods] == labels
    assert [method.name for method in found.methods] == [label.replace("/", "_") for label in labels]


def test_current_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path / "a", with_probabilities=False))
    assert [method.label for method in read_evaluations([Path(".")]).methods] == ["a"]


def test_patients_that_one_folder_knows_hold_for_the_other(tmp_path: Path) -> None:
    unknown = make_folder(tmp_path / "old", patients=8, unit="mm")
    summary = json.loads((unknown / "summary.json").read_text())
    summary["patients"] = {case: case for case in summary["patients"]}
    (unknown / "summary.json").write_text(json.dumps(summary))
    alone = read_evaluations([unknown])
    assert alone.patients == alone.first.cases
    assert alone.notices == [
        "Each case counts as a patient of its own. If some are of the same patient, intervals are too narrow."
    ]
    found = read_evaluations([unknown, make_folder(tmp_path / "new")])
    assert found.patients[:2] == ["patient000", "patient000"]
    assert found.notices == []


def rename(folder: Path, old: str, new: str, file: str = "cases.csv") -> None:
    (folder / file).write_text((folder / file).read_text().replace(old, new))


def all_of(name: str) -> dict[str, str]:
    """Cases that are all of the patient x."""
    return {f"{name}{i:03d}_frame{j:02d}": "x" for i in range(8) for j in (1, 12)}


CASES, SUMMARY, BINS = (
    "cases.csv: expected ",
    "summary.json: expected the summary of an evaluation, got ",
    "calibration.json: ",
)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda b: (rename(b, "_LV", "_aorta"), (b / "thresholds.json").unlink()),
            "b: expected the structures of .*a, RV, MYO, LV, got RV, MYO, aorta",
        ),
        (lambda b: change(b, unit="voxels"), "b: expected the HD95 of .*a, in mm, got in voxels"),
        (lambda b: change(b, volume_unit="voxels"), "b: expected the volumes of .*a, in ml, got in voxels"),
        (lambda b: rename(b, "patient", "subject"), f"{SUMMARY}one that lacks"),
        (
            lambda b: (
                [rename(b, "patient", "subject", file.name) for file in b.glob("c*.*")],
                [(b / name).unlink() for name in ("thresholds.json", "risk_coverage.json")],
                change(b, patients=all_of("subject")),
            ),
            "b: expected cases of .*a, got none of the same name",
        ),
        (
            lambda b: change(b, patients=all_of("patient")),
            "b: expected case patient000_frame01 to be of patient patient000 as in .*a, got x",
        ),
        (lambda b: change(b, patients=["a"]), f"{SUMMARY}patients that are no"),
        (lambda b: change(b, unit="inch"), f"{SUMMARY}the unit 'inch'"),
        (lambda b: change(b, missed=["a"]), f"{SUMMARY}"),
        (lambda b: change(b, sigmoid=True), r"b: expected the probabilities of .*a, a softmax over 4 classes, got 4 s"),
        (lambda b: change(b, channels=5), "b: expected the probabilities of .*a, a softmax over 4 classes, got a s"),
        (lambda b: change(b, channels="4"), f"{SUMMARY}'4' channels and the sigmoid False"),
        (lambda b: rename(b, '"LV"', '"aorta"', "thresholds.json"), "thresholds.json: expected the structures"),
        (lambda b: rename(b, '["RV", "MYO", "LV"]', "[1, 2, 3]", "thresholds.json"), "thresholds.json: .*are no names"),
        (lambda b: (b / "calibration.json").unlink(), f"{BINS}expected the bins of an evaluation, got"),
        (lambda b: (b / "cases.csv").unlink(), "b: expected an evaluation folder, or alone the"),
        (lambda b: rename(b, "hd95_LV", "hd_LV"), f"{CASES}the columns dsc_RV, .*, got no hd95_LV"),
        (lambda b: rename(b, "dsc_", "dice_"), f"{CASES}the columns dsc_STRUCTURE, .*, got no dsc_STR"),
        (lambda b: (b / "cases.csv").write_text("case,dsc_a,hd95_a,aurc\nx,1,1,2\n"), f"{CASES}aurc to be at"),
        (lambda b: (b / "thresholds.json").write_text("{}"), "thresholds.json: expected the thresholds of an"),
        (lambda b: (b / "risk_coverage.json").write_text("[]"), "risk_coverage.json: expected the risk-coverage"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_compared(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    spoil(second)
    with pytest.raises(InputError, match=message) as caught:
        read_evaluations([first, second])
    assert "\n" not in str(caught.value)


def test_files_of_other_cases_are_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    header, *rows = (folder / "cases.csv").read_text().splitlines(keepends=True)
    for other in (rows[:-1], rows[::-1]):
        (folder / "cases.csv").write_text("".join([header, *other]))
        for name in ("calibration.json", "thresholds.json", "risk_coverage.json"):
            read = {"c": read_regions, "t": read_thresholds, "r": read_risk_coverage}[name[0]]
            with pytest.raises(
                InputError, match=f"{name}: expected .*, got other cases than cases.csv, or another order"
            ):
                read(folder)


def test_the_same_folder_twice_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", with_probabilities=False)
    with pytest.raises(InputError, match=r"a: expected each evaluation folder once, got .*a, .*a"):
        read_evaluations([folder, folder])


def test_structures_in_another_order_are_the_same(tmp_path: Path) -> None:
    first, second = (make_folder(tmp_path / name, with_probabilities=False) for name in "ab")
    cases, columns = read_cases(second)
    order = ["dsc_LV", "dsc_RV", "dsc_MYO", "hd95_LV", "hd95_RV", "hd95_MYO"]
    lines = [",".join(["case", *order])]
    lines += [",".join([case, *(repr(float(columns[name][i])) for name in order)]) for i, case in enumerate(cases)]
    (second / "cases.csv").write_text("\n".join([*lines, ""]))
    found = read_evaluations([first, second])
    assert [method.runs[0].structures for method in found.methods] == [["RV", "MYO", "LV"]] * 2
    np.testing.assert_array_equal(found.methods[0].values("dsc"), found.methods[1].values("dsc"))
