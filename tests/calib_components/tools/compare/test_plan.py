"""Planned cells: commands, what is recorded of the settings, and checks."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.calib_components.tools.compare.made_up import make_datalist

from calib_components.data.facts import read_facts, write_facts
from calib_components.errors import InputError
from calib_components.tools.compare.cell_settings import Condition, read_settings, write_settings
from calib_components.tools.compare.plan import (
    PlannedCell,
    check_comparable,
    check_folds,
    check_unchanged,
    find_folds,
    plan_cell,
)
from calib_components.tools.compare.settings import PRESETS, Setting
from tests.helpers import ACDC

NACL_MAX = next(setting for setting in PRESETS["table3"] if setting.name == "nacl_max")


def plan(
    data: Path, setting: Setting = NACL_MAX, bundle: Path = ACDC, cell_seed: int = 0, **overrides: Any
) -> PlannedCell:
    out = data.parent / "out"
    return plan_cell(setting, cell_seed, bundle, data, out, out / "work", overrides)


def test_commands_are_plain_runs_of_the_bundle(data: Path) -> None:
    cell = plan(data, max_epochs=2, image_size=[64, 64], split="validation")
    train, evaluate = (shlex.split(command) for command in cell.settings.commands)
    assert [train, evaluate] == [step.command for step in cell.steps]
    assert train[:4] == evaluate[:4] == ["python", "-m", "monai.bundle", "run"]
    assert {"--loss::prior=max", "--seed=0", "--resume=True", "--max_epochs=2", "--image_size=[64, 64]"} <= set(train)
    assert "--split=validation" in evaluate
    assert "--split=validation" not in train  # no such id there
    assert f"--config_file=['{ACDC}/configs/train.yaml','{ACDC}/configs/losses/nacl.yaml']" in train
    assert f"--config_file=['{ACDC}/configs/train.yaml','{ACDC}/configs/evaluate.yaml']" in evaluate


def options_of(cell: PlannedCell, step: str) -> dict[str, str]:
    (command,) = (found.command for found in cell.steps if found.name == step)
    assert command[:4] == ["python", "-m", "monai.bundle", "run"]
    return {name: value for name, _, value in (option.partition("=") for option in command[4:])}


def test_temperature_is_fitted_on_the_validation_split_and_leaves_the_weights_as_they_are(data: Path) -> None:
    cell = plan(data, max_epochs=2, split="testing")
    assert [step.name for step in cell.steps] == ["train", "evaluate", "calibrate", "evaluate_temperature"]
    assert cell.settings.commands == [step.shown for step in cell.steps]
    assert cell.settings.calibration == {"split": "validation", "region": "all"}
    calibrate, evaluate = (options_of(cell, step) for step in ("calibrate", "evaluate_temperature"))
    assert calibrate["--config_file"] == f"['{ACDC}/configs/train.yaml','{ACDC}/configs/calibrate.yaml']"
    assert calibrate["--ckpt_dir"] == str(cell.work)  # the fit reads model.pt
    assert calibrate["--calibrated_path"] == evaluate["--load_path"] == f"{cell.work}/model_calibrated.pt"
    assert calibrate["--output_dir"] == evaluate["--output_dir"] == f"{cell.work}/eval/temperature"
    assert "--split" not in calibrate  # of the evaluation
    assert "--load_path" not in options_of(cell, "evaluate")


def test_without_validation_cases_of_its_own_there_is_no_temperature(data: Path) -> None:
    assert plan(data, split="validation").settings.calibration == {}  # these would be evaluated
    listed = make_datalist("a", "b", "c")
    (data / "datalist.json").write_text(json.dumps({**listed, "validation": []}))
    cell = plan(data)
    assert [step.name for step in cell.steps] == ["train", "evaluate"]
    assert cell.settings.conditions == [Condition()]


class TestFurtherTestSets:
    @pytest.fixture
    def scanner(self, data: Path) -> Path:
        """A prepared test set of two cases."""
        folder = data.parent / "scanner"
        folder.mkdir()
        testing = [{"case": f"case{i}", "patient": f"patient{i}"} for i in range(2)]
        (folder / "datalist.json").write_text(json.dumps({"training": [], "validation": [], "testing": testing}))
        return folder

    def plan(self, data: Path, evaluate_on: dict[str, Path], **overrides: Any) -> PlannedCell:
        out = data.parent / "out"
        return plan_cell(NACL_MAX, 0, ACDC, data, out, out / "work", overrides, evaluate_on=evaluate_on)

    def finish(self, data: Path, evaluate_on: dict[str, Path]) -> PlannedCell:
        cell = self.plan(data, evaluate_on)
        for folder in (cell.results, cell.work):
            folder.mkdir(parents=True)
            write_settings(cell.settings, folder)
        return cell

    def test_is_evaluated_without_and_with_temperature(self, data: Path, scanner: Path) -> None:
        cell = self.plan(data, {"b": scanner}, datalist=str(data / "datalist.json"), split="testing")
        assert [step.name for step in cell.steps[4:]] == ["evaluate_on_b", "evaluate_temperature_on_b"]
        assert cell.settings.conditions == [
            Condition(), Condition(scaled=True), Condition("b"), Condition("b", scaled=True)
        ]  # fmt: skip
        assert cell.settings.patients_of("b") == {"case0": "patient0", "case1": "patient1"}
        plain, scaled = (options_of(cell, step.name) for step in cell.steps[4:])
        assert plain["--dataset_dir"] == scaled["--dataset_dir"] == str(scanner)
        assert plain["--split"] == "testing"
        assert "--datalist" not in plain  # that of its own folder
        assert plain["--output_dir"] == f"{cell.work}/eval/on_b"
        assert scaled["--output_dir"] == f"{cell.work}/eval/on_b/temperature"
        assert scaled["--load_path"] == f"{cell.work}/model_calibrated.pt"

    def test_whole_testing_split_is_evaluated_whatever_the_own_split(self, data: Path, scanner: Path) -> None:
        assert options_of(self.plan(data, {"b": scanner}, split="validation"), "evaluate_on_b")["--split"] == "testing"

    @pytest.mark.parametrize(
        ("listed", "message"),
        [
            (
                {"training": [1], "validation": [1], "testing": []},
                "got some for training and validation alone; prep",
            ),
            ({"training": [], "validation": [], "testing": []}, "expected cases for testing, got none"),
            ({"testing": ["a"]}, "expected a case and its patient for testing, got 'a'"),
        ],
    )
    def test_without_test_cases_is_an_error(self, data: Path, scanner: Path, listed: dict, message: str) -> None:
        (scanner / "datalist.json").write_text(json.dumps(listed))
        with pytest.raises(InputError, match=f"scanner/datalist.json: .*{message}"):
            self.plan(data, {"b": scanner})

    def test_prepared_otherwise_is_an_error(self, data: Path, scanner: Path) -> None:
        facts = read_facts("absent", **own_facts())
        write_facts(replace(facts, crop_size=[96, 96]), scanner)
        with pytest.raises(InputError, match=r"expected data prepared like .* got .*scanner with another crop_size"):
            self.plan(data, {"b": scanner})

    def test_finished_cell_is_evaluated_on_what_it_lacks(self, data: Path, scanner: Path) -> None:
        made = self.finish(data, {"a": scanner})
        planned = self.plan(data, {"a": scanner, "b": scanner})
        assert made.unfinished_steps() == self.plan(data, {}).unfinished_steps() == []
        assert [step.name for step in planned.unfinished_steps()] == ["evaluate_on_b", "evaluate_temperature_on_b"]
        assert planned.entry().commands == [
            *made.settings.commands, *(step.shown for step in planned.steps[6:])
        ]  # fmt: skip
        check_comparable([planned], data.parent / "out")
        with pytest.raises(InputError, match=r"/model.pt: expected the weights of a finished cell, .*; delete .*seed0"):
            check_unchanged(planned)
        (planned.work / "model.pt").touch()
        with pytest.raises(InputError, match=r"model_calibrated.pt: expected the weights of a finished cell"):
            check_unchanged(planned)
        (planned.work / "model_calibrated.pt").touch()
        check_unchanged(planned)

    def test_other_data_of_the_same_name_are_an_error(self, data: Path, scanner: Path) -> None:
        self.finish(data, {"b": scanner})
        (scanner / "datalist.json").write_text(json.dumps(make_datalist("x", "y", "z")))
        planned = self.plan(data, {"b": scanner})
        with pytest.raises(InputError, match=r"expected results of the same settings, got others \(test set b\)"):
            check_unchanged(planned)
        with pytest.raises(InputError, match=r"mbls.*expected the same test set b as .*nacl_max/seed0, got another"):
            check_comparable([replace(planned, name="mbls", results=data / "mbls")], data.parent / "out")


def test_settings_are_the_fingerprints_after_overrides(data: Path) -> None:
    settings = plan(data, max_epochs=2, image_size=[64, 64], crop_size=[64, 64], num_workers=0).settings
    assert settings.training["max_epochs"] == 2
    assert settings.training["lr_scheduler"]["milestones"] == [1]
    assert settings.training["crop_size"] == settings.evaluation["crop_size"] == [64, 64]
    assert settings.training["loss"] == {"_target_": "calib_components.losses.NACLLoss", "prior": "max"}
    assert settings.patients == {"c_1": "c"}
    assert settings.overrides == {}
    assert (settings.fold, settings.folds) == (None, None)


def test_settings_are_those_of_the_run_for_options_as_they_are_typed(data: Path) -> None:
    typed = plan(data, any_orientation="false", compile="true", image_size=(64, 64), crop_size=(64, 64)).settings
    meant = plan(data, any_orientation=False, compile=True, image_size=[64, 64], crop_size=[64, 64]).settings
    assert (typed.training, typed.evaluation) == (meant.training, meant.evaluation)
    assert "Flip" not in str(typed.training)
    assert typed.training["train::trainer"]["compile"] is True


def test_overrides_that_the_fingerprints_do_not_show_are_recorded(data: Path) -> None:
    inert = {"num_workers": 0, "train::dataloader::num_workers": 1, "class_names": list("abcd"), "cache": 0}
    shown = {"val_interval": 1, "learning_rate": 0.001, "split": "testing", "validate::inferer::sw_batch_size": 4}
    hidden = {"train::handlers": [], "validate::handlers": [], "rank": 1}
    cell = plan(data, **inert, **shown, **hidden)
    assert cell.settings.overrides == hidden
    with pytest.raises(InputError, match=r"expected the same train::handlers, .* as .*, got another"):
        check_comparable([plan(data, **shown), cell], data.parent / "out")


def test_text_that_fire_would_read_as_something_else_is_quoted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    data.rename("2024_11_25")
    command = plan(Path("2024_11_25"), split="testing", batch_size=8).steps[1].command
    assert {"--split=testing", "--dataset_dir='2024_11_25'", "--batch_size=8"} <= set(command)


def test_facts_of_the_data_replace_those_of_the_bundle(tmp_path: Path, data: Path) -> None:
    data = data.rename(tmp_path / "Bob's data")
    facts = read_facts("absent", **own_facts())
    write_facts(replace(facts, crop_size=[96, 96], structures={"heart": [1, 2, 3]}), data)
    cell = plan(data)
    assert cell.settings.training["crop_size"] == [96, 96]
    assert cell.settings.evaluation["structures"] == {"heart": [1, 2, 3]}
    config_file = shlex.split(cell.settings.commands[1])[4].removeprefix("--config_file=")
    assert ast.literal_eval(config_file) == [f"{ACDC}/configs/train.yaml", f"{ACDC}/configs/evaluate.yaml"]


def own_facts() -> dict[str, Any]:
    config = yaml.safe_load((ACDC / "configs" / "train.yaml").read_text())["facts"]
    return {name: value for name, value in config.items() if name not in ("_target_", "file")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the facts of a data set, got None"),
        ("- 3\n", r"expected the facts of a data set, got \[3\]"),
        ("a: [", "expected the facts of a data set, got .*expected the node content"),
        ("crop_size: $__import__('os')._exit(3)\n", "expected the facts of a data set, got none called dataset"),
    ],
)
def test_broken_facts_are_an_error(content: str, message: str, data: Path) -> None:
    (data / "facts.yaml").write_text(content)
    with pytest.raises(InputError, match=f"facts.yaml: {message}"):
        plan(data)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_epoch": 3}, r"--max_epoch: expected an id of .*, got no such id; did you mean --max_epochs\?"),
        ({"train::trainer::epochs": 3}, r"--train::trainer::epochs: expected an id of .*, got no such id"),
        ({"seed": 1}, r"--seed: expected an option of the comparison, got one that it sets for each cell"),
        ({"loss::prior": "max"}, r"--loss::prior: expected losses as files in configs/losses"),
        ({"split": "holdout"}, r"split: expected training, validation or testing, got 'holdout'"),
        ({"datalist": "/nowhere.json"}, r"/nowhere.json: expected the list of prepared cases, got no such file"),
        ({"crop_size": 144}, r"crop_size: expected two multiples of 16, .* got 144"),
        ({"crop_size": [144, 144, 9]}, r"crop_size: expected two multiples of 16"),
        ({"crop_size": "@crop_size"}, r"crop_size: expected a value, got references that form a circle"),
        ({"image_size": 64}, r"image_size: expected two multiples of 16, .* got 64"),
        ({"max_epochs": "zero"}, r"max_epochs: expected a whole number of at least 1, got 'zero'"),
        ({"max_epochs": 0}, r"max_epochs: expected a whole number of at least 1, got 0"),
    ],
)
def test_wrong_override_is_an_error(overrides: dict[str, Any], message: str, data: Path) -> None:
    with pytest.raises(InputError, match=message):
        plan(data, **overrides)


TWICE = {**make_datalist("a", "b", "c"), "testing": make_datalist("a", "b", "c")["testing"] * 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a JSON file, got Expecting property name"),
        ("[]", "expected cases for training, got none"),
        ('{"training": [{"case": "a"}]}', "expected a case and its patient for training, got {'case': 'a'}"),
        (json.dumps(make_datalist("a", "b", "a")), "expected other patients for testing than for training, got a"),
        (json.dumps(TWICE), "expected every case for testing once, got one of them"),
        (
            json.dumps(make_datalist("a", "b", "site1/c")),
            "expected names of cases without /, got 'site1/c_1' for testing",
        ),
    ],
)
def test_broken_list_of_cases_is_an_error(content: str, message: str, data: Path) -> None:
    (data / "datalist.json").write_text(content)
    with pytest.raises(InputError, match=f"datalist.json: {message}"):
        plan(data)


def test_from_the_bundles_own_folder_it_has_its_name(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ACDC)
    assert plan(data, bundle=Path()).settings.bundle == ACDC.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_epochs": 3}, r"\(max_epochs\)"),
        ({"learning_rate": 0.01, "val_interval": 2}, r"\(learning_rate, val_interval\)"),
        ({"optimizer::_target_": "torch.optim.SGD"}, r"\(optimizer\)"),
        ({"rank": 1}, r"\(rank\)"),
    ],
)
@pytest.mark.parametrize("folder", ["results", "work"])
def test_cell_made_with_other_settings_is_an_error(
    data: Path, change: dict[str, Any], message: str, folder: str
) -> None:
    made, planned = plan(data), plan(data, **change)
    getattr(made, folder).mkdir(parents=True)
    write_settings(made.settings, getattr(made, folder))
    check_unchanged(made)
    with pytest.raises(
        InputError, match=rf"nacl_max/seed0: expected results of the same settings, got others {message}; delete it"
    ):
        check_unchanged(planned)


def test_another_evaluation_invalidates_results_but_not_a_training(data: Path) -> None:
    made, planned = plan(data), plan(data, split="validation")
    for folder in (made.results, made.work):
        folder.mkdir(parents=True)
        write_settings(made.settings, folder)
    with pytest.raises(
        InputError, match=r"out/nacl_max/seed0: expected results of the same settings, got others \(split\)"
    ):
        check_unchanged(planned)
    shutil.rmtree(made.results)
    check_unchanged(planned)


def test_other_data_invalidate_a_cell(data: Path) -> None:
    made = plan(data)
    made.work.mkdir(parents=True)
    write_settings(made.settings, made.work)
    listed = json.loads((data / "datalist.json").read_text())
    (data / "datalist.json").write_text(json.dumps({**listed, "validation": []}))
    with pytest.raises(InputError, match=r"expected results of the same settings, got others \(the data\)"):
        check_unchanged(plan(data))


def test_cases_that_hold_something_else_invalidate_a_cell(data: Path) -> None:
    listed = {
        name: [{**item, "image": f"{item['case']}/image.nii"} for item in items]
        for name, items in json.loads((data / "datalist.json").read_text()).items()
    }
    (data / "datalist.json").write_text(json.dumps(listed))
    unknown = plan(data)
    sources = [data / item["case"] / "source.json" for items in listed.values() for item in items]
    for source in sources:
        source.parent.mkdir()
        source.write_text('{"content": "1"}')
    made = plan(data)
    made.work.mkdir(parents=True)
    write_settings(made.settings, made.work)
    assert read_settings(made.work) == made.settings
    sources[0].write_text('{"content": "1", "files": ["of another day"]}')
    check_unchanged(plan(data))
    check_unchanged(unknown)
    sources[0].write_text('{"content": "2"}')
    with pytest.raises(InputError, match=r"expected results of the same settings, got others \(the data\)"):
        check_unchanged(plan(data))
    assert made.settings.differences(plan(data, cell_seed=1).settings) == ["cases"]
    assert made.settings.differences(unknown.settings) == []


def test_results_without_settings_are_an_error(data: Path) -> None:
    cell = plan(data)
    cell.results.mkdir(parents=True)
    with pytest.raises(InputError, match=r"expected a finished cell, got a folder without settings.json; delete it"):
        check_unchanged(cell)


def test_work_of_something_else_is_an_error(data: Path) -> None:
    cell = plan(data)
    (cell.work / "eval").mkdir(parents=True)
    with pytest.raises(
        InputError, match=rf"^--work: expected a folder of its own, got one with {cell.work}, which is of"
    ):
        check_unchanged(cell)


def test_rewording_the_bundle_invalidates_nothing(data: Path, tmp_path: Path) -> None:
    made = plan(data)
    for folder in (made.results, made.work):
        folder.mkdir(parents=True)
        write_settings(made.settings, folder)
    bundle = tmp_path / ACDC.name
    shutil.copytree(ACDC / "configs", bundle / "configs")
    train = bundle / "configs" / "train.yaml"
    config = yaml.safe_load(train.read_text())
    config["side"] = config.pop("image_size")
    config["image_size"] = "$list(@side)"
    config["train"]["handlers"].append({"_target_": "GarbageCollector"})
    config["validate"]["additional_metrics"] = {}  # of a training, where they only observe
    train.write_text("# Reworded.\n" + yaml.safe_dump(config, sort_keys=False))
    planned = plan(data, bundle=bundle, num_workers=0)
    check_unchanged(planned)
    check_comparable([made, planned], data.parent / "out")


def test_cells_that_differ_in_loss_and_seed_alone_are_comparable(data: Path) -> None:
    first, second = plan(data, PRESETS["table1"][0]), plan(data, PRESETS["table1"][1])
    other_seed = plan(data, PRESETS["table1"][1], cell_seed=1)
    assert other_seed.settings.training["seed"] == 1
    check_comparable([first, second, other_seed], data.parent / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.01}, "learning_rate"),
        ({"network": "$@network_def.to(@device).half()"}, "network"),
        ({"validate::key_metric::val_dsc::metric_fn::include_background": False}, "validate::key_metric"),
        ({"train::dataset::transform": "@validate::preprocessing"}, "train::dataset"),
        ({"train::trainer::optimizer": "$torch.optim.SGD(@network.parameters(), 0.1)"}, "train::trainer"),
        ({"train::trainer::amp": False}, "train::trainer"),
    ],
)
def test_loss_file_that_changes_more_than_the_loss_is_not_comparable(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    bundle = tmp_path / ACDC.name
    shutil.copytree(ACDC / "configs", bundle / "configs")
    mine = bundle / "configs" / "losses" / "mine.yaml"
    mine.write_text(yaml.safe_dump({"loss": {"_target_": "torch.nn.CrossEntropyLoss"}, **changes}))
    cells = [plan(data, setting, bundle) for setting in (NACL_MAX, Setting("mine", "mine", "mine"))]
    with pytest.raises(InputError, match=f"mine, seed 0: expected the same {message} as nacl_max, seed 0, got another"):
        check_comparable(cells, data.parent / "out")


@pytest.mark.parametrize("state", ["finished", "started"])
def test_cells_that_are_not_planned_are_compared_too(data: Path, state: str) -> None:
    made = plan(data, PRESETS["table1"][0], learning_rate=0.01)
    folder = made.results if state == "finished" else made.work
    folder.mkdir(parents=True)
    write_settings(made.settings, folder)
    check_comparable([made], data.parent / "out")
    with pytest.raises(InputError, match=r"nacl_max, seed 0: expected the same learning_rate as .*ce_dice/seed0, got"):
        check_comparable([plan(data)], data.parent / "out")


def test_planning_leaves_the_gpu_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("calib_components.bundle._check_device", lambda device, _: checked.append(str(device)))
    plan(data)
    assert set(checked) == {"cpu"}


class TestFolds:
    @pytest.fixture
    def folds(self, data: Path) -> Path:
        """Prepared data of two folds."""
        for fold, testing in enumerate("xy"):
            (data / f"datalist_fold{fold}.json").write_text(json.dumps(make_datalist("a", "b", testing)))
        return data

    def plan(self, data: Path, setting: Setting, fold: int) -> PlannedCell:
        out = data.parent / "out"
        return plan_cell(setting, 0, ACDC, data, out, out / "work", {}, fold, 2)

    def test_each_fold_is_a_cell_of_its_own(self, folds: Path) -> None:
        find_folds(2, folds)
        cell = self.plan(folds, NACL_MAX, 1)
        assert cell.name == "nacl_max, seed 0, fold 1"
        assert cell.results == folds.parent / "out" / "nacl_max" / "seed0_fold1"
        assert cell.settings.patients == {"y_1": "y"}
        assert (cell.settings.fold, cell.settings.folds) == (1, 2)
        assert cell.settings.overrides == {}
        for step in cell.steps:
            assert f"--datalist={folds}/datalist_fold1.json" in step.command

    def test_one_temperature_is_fitted_to_all_folds_of_a_run(self, folds: Path) -> None:
        cell = self.plan(folds, NACL_MAX, 1)
        assert [step.name for step in cell.unfinished_steps()] == ["train", "calibrate", "evaluate"]
        assert [step.name for step in cell.steps_of_all_folds()] == ["pool", "evaluate_temperature"]
        assert cell.settings.calibration == {"split": "validation", "region": "all", "folds": 2}
        own, pooled, scaled = (options_of(cell, name) for name in ("calibrate", "pool", "evaluate_temperature"))
        out, folder = folds.parent / "out", "nacl_max/seed0_fold1"
        assert own["--output_dir"] == f"{out}/work/{folder}/eval/fit"
        assert pooled["--output_dir"] == scaled["--output_dir"] == f"{out}/work/{folder}/eval/temperature"
        assert pooled["--pool"] == str([f"{out}/nacl_max/seed0_fold{fold}/fit" for fold in (0, 1)])
        assert pooled["--calibrated_path"] == scaled["--load_path"] == f"{out}/work/{folder}/model_calibrated.pt"
        assert own["--calibrated_path"] != pooled["--calibrated_path"]
        assert "--pool" not in own

    def test_fold_without_cases_to_fit_on_has_the_temperature_of_the_others(self, folds: Path) -> None:
        listed = make_datalist("a", "b", "x")
        (folds / "datalist_fold0.json").write_text(json.dumps({**listed, "validation": []}))
        cell = self.plan(folds, NACL_MAX, 0)
        assert [step.name for step in cell.steps] == ["train", "evaluate", "pool", "evaluate_temperature"]
        out = folds.parent / "out"
        for fold in (0, 1):
            pooled = options_of(self.plan(folds, NACL_MAX, fold), "pool")
            assert pooled["--pool"] == str([f"{out}/nacl_max/seed0_fold1/fit"])

    def finish(self, cell: PlannedCell, **changes: Any) -> None:
        cell.results.mkdir(parents=True, exist_ok=True)
        write_settings(replace(cell.settings, **changes), cell.results)

    def test_finished_fold_is_evaluated_with_the_temperature_of_all(self, folds: Path) -> None:
        cells = [self.plan(folds, NACL_MAX, fold) for fold in (0, 1)]
        for cell in cells:
            self.finish(cell, calibration={})
            cell.work.mkdir(parents=True)
            (cell.work / "model.pt").touch()
            check_unchanged(cell)
            assert cell.unfinished_steps() == []
            assert [step.name for step in cell.steps_of_all_folds()] == ["pool", "evaluate_temperature"]
        check_comparable(cells, folds.parent / "out")
        self.finish(cells[0])
        assert cells[0].steps_of_all_folds() == []
        check_comparable(cells, folds.parent / "out")
        check_folds(cells)

    def test_temperature_of_all_folds_needs_the_test_sets_of_a_finished_fold(self, folds: Path) -> None:
        cell = self.plan(folds, NACL_MAX, 0)
        self.finish(cell, calibration={}, evaluate_on={"lge": {"datalist": "0", "patients": {"a": "a"}}})
        with pytest.raises(InputError, match=r"^--evaluate_on: expected lge=DIR too, on which .*seed0_fold0 was evalu"):
            check_unchanged(cell)

    def test_fold_with_a_temperature_of_its_own_is_not_comparable(self, folds: Path) -> None:
        """As earlier versions fitted it."""
        cell = self.plan(folds, NACL_MAX, 0)
        self.finish(cell, calibration={"split": "validation", "region": "all"})
        with pytest.raises(
            InputError, match=r"seed0_fold0: expected results of the same settings, got others \(calibration\)"
        ):
            check_unchanged(cell)

    def test_fold_that_is_trained_again_needs_the_others_again(self, folds: Path) -> None:
        cells = [self.plan(folds, NACL_MAX, fold) for fold in (0, 1)]
        check_folds(cells)
        self.finish(cells[0])
        message = r"nacl_max/seed0_fold0: expected no temperature of all folds before nacl_max, seed 0, fold 1 is"
        with pytest.raises(InputError, match=message):
            check_folds(cells)
        self.finish(cells[0], calibration={})
        check_folds(cells)

    def test_folds_and_losses_are_comparable_but_not_with_cells_of_one_split(self, folds: Path) -> None:
        other = PRESETS["table1"][0]
        cells = [self.plan(folds, setting, fold) for setting in (NACL_MAX, other) for fold in (0, 1)]
        check_comparable(cells, folds.parent / "out")
        with pytest.raises(InputError, match=r"ce_dice, seed 0: expected the same folds as nacl_max.*, got another"):
            check_comparable([cells[0], plan(folds, other)], folds.parent / "out")

    @pytest.mark.parametrize("folds_given", [1, 3])
    def test_another_number_of_folds_is_an_error(self, folds: Path, folds_given: int) -> None:
        with pytest.raises(InputError, match=r"--folds: expected datalist_fold0.json to .*, got datalist_fold0.json, "):
            find_folds(folds_given, folds)
