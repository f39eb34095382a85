"""Evaluation folders as tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_tools.report.readers import read_evaluations
from tests.calib_tools.report.made_up import bins_of, cases_of, write_evaluation


def test_evaluations_keep_common_cases_and_columns(tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "a/eval", changed={"pairwise_dsc_RV": 0.1})
    two = write_evaluation(tmp_path / "b/eval", cases_of(7))
    found = read_evaluations([one, two])
    assert found.names == ["a/eval", "b/eval"]
    assert found.count == "7 patients"
    assert not found.has("pairwise_dsc_RV")
    assert found.notices[0].startswith(
        "2 cases that not all have are left out, such as p07_1, p07_2"
    )
    assert found.bins["b/eval"]["all"].count.shape == (14, 15)


def test_a_structure_that_is_missed_altogether_has_an_expected_dsc_of_0(tmp_path: Path) -> None:
    changed = {"dsc_RV": 0.0, "expected_dsc_RV": np.nan}
    for measure in ("dsc", "expected_dsc"):
        changed |= {f"{measure}_MYO": 0.6, f"{measure}_LV": 0.9}
    found = read_evaluations([write_evaluation(tmp_path / "a", changed=changed)])
    for measure, value in (("dsc", 0.5), ("expected_dsc", 0.5), ("optimism", 0.0)):
        assert found.values("a", measure).tolist() == pytest.approx([value] * 16)


def test_cases_are_paired_by_name_whatever_their_order(tmp_path: Path) -> None:
    volumes = {f"true_volume_{s}": 80 + 2.0 * np.arange(16)[::-1] for s in ("RV", "MYO", "LV")}
    one = write_evaluation(tmp_path / "a")
    two = write_evaluation(
        tmp_path / "b", dict(reversed(cases_of(8).items())), seed=1, changed=volumes
    )
    found = read_evaluations([one, two])
    by_name = pd.read_csv(two / "cases.csv", index_col="case")["nll_all"]
    assert found.values("b", "nll_all").tolist() == by_name[list(cases_of(8))].tolist()


def test_patients_are_those_that_a_folder_knows(tmp_path: Path) -> None:
    known = write_evaluation(tmp_path / "a")
    own = write_evaluation(tmp_path / "b", {case: case for case in cases_of(8)})
    found = read_evaluations([own, known])
    assert found.count == "8 patients"
    alone = read_evaluations([own])
    assert alone.count == "16 cases"
    assert "Each case counts as a patient" in alone.notices[0]


UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "unit": ({"unit": "voxels"}, "unit"),
    "channels": ({"sigmoid": True}, "channels"),
    "patients": ({"patients": dict.fromkeys(cases_of(8), "one")}, "patient"),
    "cases": ({"patient_of": cases_of(2, first=50)}, "No case"),
    "ground truth": ({"changed": {"true_volume_LV": 3.0}}, "ground truth"),
    "structures": ({"changed": {"dsc_aorta": 1.0, "hd95_aorta": 1.0}}, "structures"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_evaluations_that_cannot_be_compared_are_refused(name: str, tmp_path: Path) -> None:
    options, keyword = UNLIKE[name]
    folders = [write_evaluation(tmp_path / "a"), write_evaluation(tmp_path / "b", **options)]
    with pytest.raises(InputError, match=keyword):
        read_evaluations(folders)


def test_comparisons_reward_no_miss_and_no_wrong_structure(tmp_path: Path) -> None:
    """A missed structure has no HD95; finding nothing where there is nothing is right."""
    undefined = np.where(np.arange(16) == 5, np.nan, 0.5)
    names = [f"{metric}_{s}" for metric in ("dsc", "hd95") for s in ("RV", "MYO", "LV")]
    changed = dict.fromkeys(names, undefined)
    changed["hd95_RV"] = np.where(np.arange(16) == 3, np.nan, undefined)
    missed = [{"case": "p01_2", "structure": "RV"}]
    one = write_evaluation(tmp_path / "a", changed=changed, missed=missed)
    whole = dict.fromkeys(names, 0.75)
    found = read_evaluations([one, write_evaluation(tmp_path / "b", changed=whole)])
    # The mean of the other structures
    assert np.flatnonzero(np.isnan(found.values("a", "hd95"))).tolist() == [5]
    assert found.difference("b", "a", "hd95").cases == 14
    assert found.values("a", "missed").tolist() == [0, 0, 0, 1, *[0] * 12]
    assert np.isnan(found.values("a", "dsc")[5])
    dsc = found.difference("b", "a", "dsc")
    assert (dsc.cases, dsc.mean) == (16, pytest.approx((15 * 0.25 - 0.25) / 16))


def edit_table(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(folder / "cases.csv")).to_csv(folder / "cases.csv", index=False)


def edit_json(folder: Path, name: str, *keys: str, value: Any = None) -> None:
    """Set an entry of a file, or remove it."""
    content = json.loads((folder / name).read_bytes())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    if value is None:
        del place[keys[-1]]
    (folder / name).write_text(json.dumps(content))


PER_CASE = ("regions", "predicted", "top_label_per_case")
EDITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "value": (
        lambda folder: edit_table(folder, lambda table: table.replace(table.dsc_LV[0], 68.9)),
        r"cases\.csv: dsc_LV has mean .* in summary\.json",
    ),
    "infinite": (
        lambda folder: edit_table(folder, lambda table: table.replace(table.dsc_LV[0], np.inf)),
        "dsc_LV has mean inf",
    ),
    "empty cell": (
        lambda folder: edit_table(folder, lambda table: table.replace(table.dsc_LV[0], np.nan)),
        "dsc_LV has mean .* of 15 cases, in .* of 16",
    ),
    "column": (
        lambda folder: edit_table(folder, lambda table: table.assign(ece_predicted=0.9)),
        "ece_predicted has mean 0.9",
    ),
    "bins cut": (
        lambda folder: edit_json(
            folder,
            "calibration.json",
            *PER_CASE,
            value={name: np.ones((16, 3)).tolist() for name in vars(bins_of(np.zeros(1)))},
        ),
        r"calibration\.json: it is not of the errors in cases\.csv",
    ),
    "bins of cases": (
        lambda folder: edit_json(
            folder, "calibration.json", *PER_CASE, value=bins_of(np.zeros(15)).to_dict()
        ),
        r"calibration\.json: cannot read the bins",
    ),
    "region": (
        lambda folder: edit_json(folder, "calibration.json", "regions", "predicted"),
        r"calibration\.json: cannot read the bins",
    ),
    "unit": (
        lambda folder: edit_json(folder, "summary.json", "unit"),
        r"summary\.json: unit is missing",
    ),
    "missed": (
        lambda folder: edit_json(folder, "summary.json", "missed", value="none"),
        r"summary\.json: missed is missing, or something else",
    ),
    "rows": (
        lambda folder: edit_json(folder, "summary.json", "rows", value={"objects": 3}),
        r"objects\.csv: .*No such file",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_files_that_were_changed_are_named(edit: str, tmp_path: Path) -> None:
    change, message = EDITS[edit]
    folder = write_evaluation(tmp_path / "net", gap=0.05)
    change(folder)
    with pytest.raises(InputError, match=message):
        read_evaluations([folder])


def test_files_of_two_evaluations_are_named(tmp_path: Path) -> None:
    one, other = (write_evaluation(tmp_path / f"{gap}", seed=1, gap=gap) for gap in (0.05, 0.1))
    for name in ("cases.csv", "calibration.json", "summary.json"):
        mixed = shutil.copytree(one, tmp_path / f"mixed {name}")
        shutil.copy(other / name, mixed / name)
        with pytest.raises(InputError, match=r"files are of two evaluations"):
            read_evaluations([mixed])


def test_what_a_spreadsheet_rounds_or_adds_changes_nothing(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "net")
    before = read_evaluations([folder]).cases["net"]
    edit_table(folder, lambda table: table.round(5).assign(dsc_mean=0.5, age=50))
    after = read_evaluations([folder]).cases["net"]
    pd.testing.assert_frame_equal(before, after, atol=1e-4)
