"""Planned cells: commands, what is recorded of the settings, and checks."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fire
import numpy as np
import pytest
import yaml

from calib_components.errors import InputError
from calib_workflows.data.cases import read_lists
from study.compare.cells import add_to_plan
from study.compare.plan import PlannedCell, Protocol
from study.compare.settings import PRESETS, Setting, choose_settings
from study.tests.conftest import write_list
from tests.helpers import ACDC, save

NACL_MAX = next(setting for setting in PRESETS["table3"] if setting.name == "nacl_max")
STEPS = ["train", "evaluate", "calibrate", "evaluate_temperature"]


def plan(
    data: Path,
    setting: Setting = NACL_MAX,
    seed: int = 0,
    fold: int | None = None,
    test_sets: dict[str, Path] | None = None,
    **overrides: Any,
) -> PlannedCell:
    out, folds = data.parent / "out", None if fold is None else 2
    return Protocol(ACDC, data, out, out / "work", overrides, folds, test_sets or {}).plan_cell(
        setting, seed, fold
    )


def options_of(cell: PlannedCell, step: str) -> dict[str, Any]:
    """The options of a step as Fire reads what a shell makes of the command that is shown."""
    read: list[dict[str, Any]] = []
    (shown,) = (found.shown for found in cell.steps if found.name == step)
    words = shlex.split(shown)
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    fire.Fire(lambda **options: read.append(options), words[4:])
    return read[0]


class TestCommands:
    def test_are_plain_runs_of_the_bundle(self, data: Path) -> None:
        cell = plan(data, max_epochs=2, image_size=[64, 64], split="testing")
        assert [step.name for step in cell.steps] == STEPS
        train, evaluate, calibrate, scaled = (options_of(cell, name) for name in STEPS)
        configs = ACDC / "configs"
        assert train["config_file"] == [
            str(configs / "train.yaml"),
            str(configs / "losses" / "nacl.yaml"),
        ]
        assert evaluate["config_file"] == [
            str(configs / "train.yaml"),
            str(configs / "evaluate.yaml"),
        ]
        assert calibrate["config_file"] == [
            str(configs / "train.yaml"),
            str(configs / "calibrate.yaml"),
        ]
        assert (train["loss::prior"], train["seed"], train["resume"], train["max_epochs"]) == (
            "max",
            0,
            True,
            2,
        )
        assert train["image_size"] == evaluate["image_size"] == [64, 64]
        assert evaluate["split"] == "testing"
        assert "split" not in train  # no such id there
        assert "split" not in calibrate  # that of the evaluation
        assert "load_path" not in evaluate
        # The fit reads model.pt
        assert train["ckpt_dir"] == calibrate["ckpt_dir"] == str(cell.work)
        assert (
            calibrate["calibrated_path"]
            == scaled["load_path"]
            == f"{cell.work}/model_calibrated.pt"
        )
        assert calibrate["output_dir"] == scaled["output_dir"] == f"{cell.work}/eval/temperature"

    def test_paths_stay_text(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(data.parent)
        data.rename("2024_11_25")
        cell = Protocol(ACDC, Path("2024_11_25"), Path("1e3"), Path("None")).plan_cell(NACL_MAX, 0)
        train = options_of(cell, "train")
        assert (train["dataset_dir"], train["ckpt_dir"]) == ("2024_11_25", "None/nacl_max/seed0")

    def test_without_validation_cases_there_is_no_temperature(self, data: Path) -> None:
        assert plan(data, split="validation").settings.calibration == {}  # these would be evaluated
        write_list(data, training="a", testing="c")
        assert [step.name for step in plan(data).steps] == ["train", "evaluate"]

    def test_further_test_set(self, data: Path, scanner: Path) -> None:
        datalist = str(data / "datalist.json")
        cell = plan(
            data, test_sets={"b": scanner}, datalist=datalist, split="validation", max_epochs=2
        )
        assert [step.output for step in cell.steps] == [
            "history.csv",
            "summary.json",
            "on_b/summary.json",
        ]
        cell = plan(data, test_sets={"b": scanner}, datalist=datalist, max_epochs=2)
        plain, scaled = (options_of(cell, f"evaluate{name}_on_b") for name in ("", "_temperature"))
        assert plain["dataset_dir"] == scaled["dataset_dir"] == str(scanner)
        assert plain["split"] == "testing"  # whatever the own
        assert "datalist" not in plain
        assert scaled["output_dir"] == f"{cell.work}/eval/on_b/temperature"
        assert scaled["load_path"] == f"{cell.work}/model_calibrated.pt"
        assert cell.settings.evaluate_on["b"]["patients"] == {"x_1": "x", "y_1": "y"}

    def test_each_fold_fits_its_own_temperature(self, data: Path) -> None:
        cell = plan(data, fold=1)
        assert [step.name for step in cell.steps] == STEPS
        for step in ("train", "calibrate"):
            assert options_of(cell, step)["datalist"] == str(data / "datalist_fold1.json")
        assert cell.settings.patients == {"a_1": "a"}
        write_list(data, "datalist_fold1.json", training="bc", testing="a")
        assert [step.name for step in plan(data, fold=1).steps] == ["train", "evaluate"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "word"),
        [
            ({name: 1}, f"--{name}")
            for name in ("max_epoch", "resume", "device", "loss::prior", "ckpt_dir")
        ]
        + [({"image_size": [63, 64]}, "image_size")],
    )
    def test_option_that_is_unknown_or_set_per_cell_or_of_no_use(
        self, given: dict[str, Any], word: str, data: Path
    ) -> None:
        with pytest.raises(InputError, match=word):
            plan(data, **given)

    @pytest.mark.parametrize("splits", [("ac", "b", "c"), ("a", "bc", "c"), ("a", "b", "")])
    def test_patients_on_both_sides_and_no_cases(self, splits: tuple[str, ...], data: Path) -> None:
        write_list(data, **dict(zip(("training", "validation", "testing"), splits, strict=True)))
        with pytest.raises(InputError, match=r"datalist\.json"):
            plan(data)

    def test_test_set_of_other_geometry_or_without_cases(self, data: Path, scanner: Path) -> None:
        facts = yaml.safe_load((ACDC / "configs" / "train.yaml").read_text())["facts"]
        kept = {name: value for name, value in facts.items() if name not in ("_target_", "file")}
        (scanner / "facts.yaml").write_text(yaml.safe_dump({**kept, "image_size": [96, 96]}))
        with pytest.raises(InputError, match="image_size"):
            plan(data, test_sets={"b": scanner})
        (scanner / "facts.yaml").unlink()
        write_list(scanner, training="x")
        with pytest.raises(InputError, match="testing"):
            plan(data, test_sets={"b": scanner})

    def test_patients_of_a_test_set_that_the_network_has_seen_are_named(
        self, data: Path, scanner: Path
    ) -> None:
        write_list(scanner, testing="abx")
        protocol = Protocol(ACDC, data, data, data, {}, None, {"b": scanner})
        assert [pair.one["patient"] for pair in protocol.seen_cases("b")] == ["a", "b"]

    def test_volumes_of_the_training_are_refused(self, data: Path, scanner: Path) -> None:
        rng = np.random.default_rng(0)
        for folder in (data, scanner):
            for items in read_lists(folder / "datalist.json", folder).values():
                for item in items:
                    save(Path(item["image"]), rng.random((4, 4, 2), np.float32))
        protocol = Protocol(ACDC, data, data, data, {}, None, {"b": scanner})
        assert protocol.seen_cases("b") == []
        shutil.copy(data / "b_1.nii", scanner / "y_1.nii")
        with pytest.raises(
            InputError, match=r"--evaluate_on: .*same volume is on both sides \(y_1 and b_1\)"
        ):
            protocol.seen_cases("b")
        shutil.copy(data / "a_1.nii", data / "c_1.nii")
        with pytest.raises(
            InputError, match=r"datalist\.json: the same volume is on both sides \(c_1 and a_1\)"
        ):
            plan(data)


class TestSettings:
    @pytest.mark.parametrize(
        ("change", "differing"),
        [
            ({"seed": 1}, []),
            ({"setting": PRESETS["table1"][0]}, []),
            ({"num_workers": 7, "cache": 0}, []),
            ({"max_epochs": 3}, ["max_epochs"]),
            ({"split": "validation"}, ["split", "datalist"]),
            ({"setting": replace(NACL_MAX, overrides={"loss::prior": "min"})}, ["loss"]),
            ({"train::handlers": []}, ["train::handlers"]),
        ],
    )
    def test_differences_are_those_that_reach_numbers(
        self, change: dict[str, Any], differing: list[str], data: Path
    ) -> None:
        here, there = (plan(data, **given).settings for given in ({}, change))
        found = here.differences(there)
        assert found[:1] == differing[:1]
        assert there.differences(here) == found

    def test_other_data_differ(self, data: Path, scanner: Path) -> None:
        here = plan(data, test_sets={"b": scanner}).settings
        write_list(scanner, testing="xz")
        write_list(data, training="ad", validation="b", testing="c")
        there = plan(data, test_sets={"b": scanner}).settings
        assert set(here.differences(there)) == {"datalist", "test set b"}
        # A test set that one lacks does not count
        assert here.differences(plan(data).settings) == ["datalist"]
        assert replace(here, cases="x").differences(replace(here, cases="y")) == ["cases"]
        assert replace(here, cases="x").differences(replace(here, cases=None)) == []

    def test_folds_differ_in_their_cases(self, data: Path) -> None:
        first, second = (plan(data, fold=fold).settings for fold in (0, 1))
        assert first.differences(second) == []
        other = {**second.calibration, "region": "predicted"}
        assert first.differences(replace(second, calibration=other)) != []
        assert first.differences(plan(data).settings)[0] == "folds"

    def test_plan_keeps_order_and_replaces_runs_with_other_folds(self, tmp_path: Path) -> None:
        def entry(method: str, fold: int | None = None, *commands: str) -> dict[str, Any]:
            return {
                "method": method,
                "seed": 0,
                **({} if fold is None else {"fold": fold}),
                "commands": [*commands],
            }

        add_to_plan([entry("a"), entry("b"), entry("c", 0), entry("c", 1)], tmp_path)
        add_to_plan([entry("a", None, "do"), entry("c")], tmp_path)
        planned = json.loads((tmp_path / "plan.json").read_text())
        assert [(one["method"], one.get("fold")) for one in planned] == [
            ("a", None),
            ("b", None),
            ("c", None),
        ]
        shown = (tmp_path / "commands.sh").read_text().splitlines()
        assert shown[1:5] == ["", "# a, seed 0", "do", ""]


class TestChooseSettings:
    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        shutil.copytree(ACDC / "configs", tmp_path / "bundle" / "configs")
        return tmp_path / "bundle"

    def test_presets_settings_and_overlays_once_in_order(self, bundle: Path) -> None:
        def names(*chosen: str) -> list[str]:
            return [setting.name for setting in choose_settings(chosen, bundle)]

        table1 = ["ce_dice", "focal", "entropy_penalty", "label_smoothing", "svls", "mbls", "nacl"]
        assert names("table1") == table1
        assert len(names("tuning")) == 23
        (bundle / "configs" / "losses" / "mine.yaml").write_text(
            "loss: {_target_: torch.nn.CrossEntropyLoss}\n"
        )
        assert names("nacl_softmax", "mine", "table2") == [
            "nacl_softmax",
            "mine",
            "nacl",
            "nacl_l2",
            "nacl_5x5",
        ]
        assert choose_settings(["mine"], bundle) == [Setting("mine", "mine", "mine")]

    def test_unknown_names_and_two_meanings_are_refused(self, bundle: Path) -> None:
        with pytest.raises(InputError, match="'nalc' is unknown"):
            choose_settings(["nalc"], bundle)
        (bundle / "configs" / "losses" / "nacl_l2.yaml").write_text("loss: {}\n")
        with pytest.raises(InputError, match=r"nacl_l2\.yaml"):
            choose_settings(["nacl_l2"], bundle)
        assert choose_settings(["nacl"], bundle)  # no concern of it
