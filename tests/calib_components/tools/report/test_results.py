"""The files of a results folder: what is written is read again, and broken ones are errors that name them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.calib_components.tools.compare.made_up import make_finished_cell, make_fit
from torch.utils.tensorboard import SummaryWriter

from calib_components.errors import InputError
from calib_components.tools.compare.cell_settings import Condition, read_settings, write_settings
from calib_components.tools.compare.cells import collect_history, read_cell, write_history
from calib_components.tools.report.results import PlanEntry, add_to_plan, read_plan, read_results


def test_settings_are_read_as_they_were_written(results: Path, tmp_path: Path) -> None:
    settings = read_settings(results / "nacl" / "seed0")
    write_settings(settings, tmp_path)
    assert read_settings(tmp_path) == settings
    written = (tmp_path / "settings.json").read_text()
    assert '\n  "image_size": [64, 64],\n' in written  # one setting per line
    assert [path.name for path in tmp_path.glob("settings*")] == ["settings.json"]


def test_nothing_in_settings_is_evaluated(results: Path) -> None:
    cell, canary = results / "nacl" / "seed0", results / "canary"
    settings = read_settings(cell)
    evil = {"imports": [f"$open({str(canary)!r}, 'w')"], "image_size": f"$open({str(canary)!r}, 'w')"}
    write_settings(replace(settings, training=settings.training | evil), cell)
    with pytest.raises(InputError, match=r"settings.json: training: expected image_size to be two positive whole num"):
        read_results(results)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"settings.json: expected a JSON file, got"),
        ("[]", r"settings.json: expected method, label, .*, got \[\]"),
        ('{"seed": NaN}', r"settings.json: expected a JSON file, got the number NaN"),
        ('{"method": "nacl"}', r"settings.json: expected method, label, .*, got no label, seed, bundle, .*training"),
    ],
)
def test_broken_settings_are_an_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_settings(tmp_path)


def test_a_cell_that_is_not_finished_is_an_error(results: Path) -> None:
    folder = results / "nacl" / "seed0"
    write_settings(replace(read_settings(folder), made_with={}), folder)
    with pytest.raises(InputError, match=r"nacl/seed0/settings.json: expected versions and device in made_with"):
        read_results(results)


def test_history_has_the_latest_value_of_every_epoch(tmp_path: Path) -> None:
    for stamp, value, epochs in ((1, 0.25, (1, 2)), (2, 0.5, (2, 3))):  # resumed after epoch 1
        with SummaryWriter(tmp_path / str(stamp)) as writer:
            for epoch in epochs:
                writer.add_scalar("train_loss", value, epoch)
        (file,) = (tmp_path / str(stamp)).iterdir()
        file.rename(tmp_path / f"events.out.tfevents.{stamp}.host")
    header, *rows = collect_history(tmp_path)
    assert header == ["epoch", "seconds", "train_loss"]
    assert [(epoch, value) for epoch, _, value in rows] == [(1, 0.25), (2, 0.5), (3, 0.5)]


def test_history_is_read_as_it_was_written(results: Path) -> None:
    folder = results / "nacl" / "seed0"
    write_history([["epoch", "seconds", "val_dsc"], [1, 2.5, ""], [2, 2, 0.5], [3, 2, "nan"]], folder)
    assert read_cell(folder).history == [
        {"epoch": 1, "seconds": 2.5},
        {"epoch": 2, "seconds": 2, "val_dsc": 0.5},
        {"epoch": 3, "seconds": 2},
    ]


def test_plan_grows_and_lists_the_commands(results: Path) -> None:
    settings = replace(read_settings(results / "nacl" / "seed0"), method="mbls")
    for _ in range(2):
        add_to_plan([PlanEntry(settings, ["train it", "evaluate it"], [])], results)
    plan = json.loads((results / "plan.json").read_text())
    assert [(entry["method"], entry["seed"]) for entry in plan] == [
        ("ce_dice", 0), ("svls", 0), ("nacl", 0), ("ce_dice", 1), ("mbls", 0)
    ]  # fmt: skip
    commands = (results / "commands.sh").read_text()
    assert commands.startswith("# Run these in the folder in which compare_losses was started.")
    assert commands.endswith("\n# mbls, seed 0\ntrain it\nevaluate it\n")


def test_results_are_in_the_order_of_the_plan(results: Path) -> None:
    found = read_results(results)
    assert [(method.name, [run.settings.seed for run in method.runs]) for method in found.methods] == [
        ("ce_dice", [0, 1]), ("nacl", [0])
    ]  # fmt: skip
    assert found.missing == ["svls, seed 0"]
    assert found.dataset == "acdc"
    assert found.split == "testing"
    assert found.patients[:3] == ["patient000", "patient000", "patient001"]


def test_copy_of_a_cell_is_an_error(results: Path) -> None:
    shutil.copytree(results / "nacl", results / "nacl_old")
    with pytest.raises(InputError, match=r"settings of nacl_old/seed0, got those of nacl/seed0"):
        read_results(results)


def test_cells_of_another_protocol_are_an_error(results: Path) -> None:
    make_finished_cell(results, "svls", 0, 0.1, max_epochs=3)
    with pytest.raises(InputError, match=r"svls/seed0: expected the same max_epochs as .*ce_dice/seed0, got another"):
        read_results(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "another"}, "bundle as "),
        ({"datalist": "1" * 64}, "datalist as "),
        ({"evaluation": {"split": "validation"}}, "split as "),
        ({"overrides": {"rank": 1}}, "rank as "),
    ],
)
def test_cells_that_are_not_comparable_are_an_error(results: Path, change: dict, message: str) -> None:
    folder = results / "nacl" / "seed0"
    write_settings(replace(read_settings(folder), **change), folder)
    with pytest.raises(InputError, match=rf"nacl/seed0: expected the same {message}"):
        read_results(results)


def test_cells_with_other_cases_or_columns_are_an_error(results: Path) -> None:
    file = results / "nacl" / "seed0" / "cases.csv"
    whole = file.read_text()
    header, first, second, *rest = whole.splitlines()
    file.write_text("\n".join([header, first, second, *rest[:-1], ""]))
    with pytest.raises(InputError, match=r"cases.csv: expected the cases of settings.json, got patient005_frame12 not"):
        read_results(results)
    file.write_text("\n".join([header, second, first, *rest, ""]))
    with pytest.raises(InputError, match=r"nacl/seed0: expected the same list of cases in cases.csv as "):
        read_results(results)
    file.write_text(whole.replace("dsc_RV", "dsc_aorta").replace("hd95_RV", "hd95_aorta"))
    with pytest.raises(InputError, match=r"nacl/seed0: expected the same columns of cases.csv as "):
        read_results(results)


def test_cells_with_another_ground_truth_are_an_error(results: Path) -> None:
    """As where a label was corrected between two trainings."""
    for file in results.rglob("cases.csv"):
        header, first, *rest = file.read_text().splitlines()
        volume = 7 if "nacl" in file.parts else 5
        file.write_text(
            "\n".join([f"{header},true_volume_RV", f"{first},{volume}", *(f"{line},5" for line in rest), ""])
        )
    with pytest.raises(InputError, match=r"nacl/seed0: expected the same ground truth of patient000_frame01 as "):
        read_results(results)


def test_no_cell_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got no finished cell"):
        read_results(tmp_path)


class TestFolds:
    @pytest.fixture
    def folds(self, tmp_path: Path) -> Path:
        """CE+DSC and NACL, each on two folds of three patients."""
        for method in ("ce_dice", "nacl"):
            for fold in (0, 1):
                make_finished_cell(tmp_path, method, 0, 0.1, fold=fold)
        return tmp_path

    def test_cases_are_joined(self, folds: Path) -> None:
        results = read_results(folds)
        assert [method.name for method in results.methods] == ["ce_dice", "nacl"]
        assert results.missing == []
        assert results.first.cases == [f"patient{i:03d}_frame{j:02d}" for i in range(6) for j in (1, 12)]
        assert len(set(results.patients)) == 6
        (run,) = results.methods[0].runs
        assert run.columns["ece"].tolist() == [value for part in run.evaluations for value in part.columns["ece"]]
        assert results.methods[0].values("dsc").shape == (12,)

    def test_run_that_lacks_a_fold_is_not_finished(self, folds: Path) -> None:
        shutil.rmtree(folds / "nacl" / "seed0_fold1")
        results = read_results(folds)
        assert [method.name for method in results.methods] == ["ce_dice"]
        assert results.missing == ["nacl, seed 0, fold 1"]
        assert results.planned == ["ce_dice", "nacl"]
        shutil.rmtree(folds / "ce_dice" / "seed0_fold0")
        with pytest.raises(InputError, match="got no finished cell, or none of all folds"):
            read_results(folds)

    def test_patient_in_two_folds_is_an_error(self, folds: Path) -> None:
        for method in ("ce_dice", "nacl"):
            settings = read_settings(folds / method / "seed0_fold1")
            patients = dict.fromkeys(settings.patients, "patient000")
            write_settings(replace(settings, patients=patients), folds / method / "seed0_fold1")
        with pytest.raises(
            InputError, match=r"seed0_fold1: expected every patient in one fold, got patient000 in fold 0"
        ):
            read_results(folds)

    def test_cells_of_one_split_are_not_comparable(self, folds: Path) -> None:
        make_finished_cell(folds, "svls", 0, 0.1)
        with pytest.raises(InputError, match=r"svls/seed0: expected the same folds.* as .*ce_dice/seed0_fold0"):
            read_results(folds)

    def test_planned_anew_with_other_folds_nothing_of_the_earlier_plan_is_missing(self, folds: Path) -> None:
        """Interrupted before a cell of the first plan was finished."""
        finished = [
            read_settings(folds / method / f"seed0_fold{fold}") for method in ("ce_dice", "nacl") for fold in (0, 1)
        ]
        earlier = [replace(cell, fold=None, folds=None) for cell in finished]
        earlier += [replace(cell, fold=fold, folds=3) for cell in finished for fold in range(3)]
        other_seed = replace(finished[0], seed=1, fold=2, folds=3)
        add_to_plan([PlanEntry(cell, [], []) for cell in [*earlier, other_seed]], folds)
        add_to_plan([PlanEntry(cell, [], []) for cell in finished], folds)
        plan = json.loads((folds / "plan.json").read_text())
        assert {(entry["method"], entry["seed"], entry["fold"]) for entry in plan} == {
            ("ce_dice", 0, 0), ("ce_dice", 0, 1), ("nacl", 0, 0), ("nacl", 0, 1), ("ce_dice", 1, 2)
        }  # fmt: skip
        results = read_results(folds)
        assert [method.name for method in results.methods] == ["ce_dice", "nacl"]
        assert results.missing == ["ce_dice, seed 1, fold 2"]

    def test_plan_names_the_fold(self, folds: Path) -> None:
        add_to_plan([PlanEntry(read_settings(folds / "nacl" / "seed0_fold1"), ["train it"], [])], folds)
        assert json.loads((folds / "plan.json").read_text()) == [
            {"method": "nacl", "seed": 0, "fold": 1, "commands": ["train it"]}
        ]
        assert (folds / "commands.sh").read_text().endswith("\n# nacl, seed 0, fold 1\ntrain it\n")

    def test_commands_can_be_run_from_top_to_bottom(self, folds: Path) -> None:
        """What needs the fits of all folds comes after them, also if it was planned with the first."""
        nacl, ce_dice = (
            [read_settings(folds / method / f"seed0_fold{fold}") for fold in (0, 1)] for method in ("nacl", "ce_dice")
        )
        add_to_plan([PlanEntry(cell, [f"train {cell.fold}"], [f"scale {cell.fold}"]) for cell in nacl], folds)
        add_to_plan([PlanEntry(cell, [f"other {cell.fold}"], []) for cell in ce_dice], folds)
        lines = (folds / "commands.sh").read_text().splitlines()
        assert [line for line in lines if line and line[0] != "#"] == [
            "train 0", "train 1", "other 0", "other 1", "scale 0", "scale 1"
        ]  # fmt: skip
        assert "# nacl, seed 0, fold 1, with one temperature for all folds" in lines
        assert read_plan(folds)[1]["of_all_folds"] == ["scale 1"]

    def test_folds_of_a_run_have_one_temperature(self, tmp_path: Path) -> None:
        for fold in (0, 1):
            make_finished_cell(tmp_path / "same", "nacl", 0, 0.1, fold=fold, temperature=0.7)
            make_finished_cell(tmp_path / "other", "nacl", 0, 0.1, fold=fold, temperature=0.7 + fold / 10)
        (method,) = read_results(tmp_path / "same").at(Condition(scaled=True)).methods
        assert [cell.temperature for cell in method.cells] == [make_fit(0.7)] * 2
        message = r"nacl/seed0_fold1: expected one temperature for all folds, got another one than .*/seed0_fold0$"
        with pytest.raises(InputError, match=message):
            read_results(tmp_path / "other")

    def test_fold_that_waits_for_the_others_is_finished_without_temperature(self, tmp_path: Path) -> None:
        make_finished_cell(tmp_path, "nacl", 0, 0.1, fold=0, temperature=0.7)
        make_finished_cell(tmp_path, "nacl", 0, 0.1, fold=1, temperature=0.7)
        settings = read_settings(tmp_path / "nacl" / "seed0_fold1")
        write_settings(replace(settings, calibration={}), tmp_path / "nacl" / "seed0_fold1")
        results = read_results(tmp_path)
        assert [len(method.cells) for method in results.methods] == [2]
        assert results.at(Condition(scaled=True)).methods == []
