"""The files of a results folder: what is written is read again, and broken ones are errors that name them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from torch.utils.tensorboard import SummaryWriter

from calib_components.errors import InputError
from calib_components.tools.comparison.plan import plan_cell
from calib_components.tools.comparison.results import (
    FinishedCell,
    add_to_plan,
    collect_history,
    read_results,
    read_settings,
    write_history,
    write_settings,
)
from calib_components.tools.comparison.settings import PRESETS
from tests.helpers import ACDC


def test_settings_are_read_as_they_were_written(results: Path, tmp_path: Path) -> None:
    settings = read_settings(results / "nacl" / "seed0")
    write_settings(settings, tmp_path)
    assert read_settings(tmp_path) == settings
    written = (tmp_path / "settings.json").read_text()
    assert '\n  "image_size": [64, 64],\n' in written  # one setting per line
    assert [path.name for path in tmp_path.glob("settings*")] == ["settings.json"]


def test_settings_of_version_0_1_0_are_read_as_fingerprints(data: Path, tmp_path: Path) -> None:
    """That version kept both configurations, without paths, and the resolved crop size."""
    planned = plan_cell(PRESETS["table1"][-1], 3, ACDC, data, tmp_path, tmp_path, {}).settings
    configs = {}
    for part, files in (("train", ["losses/nacl.yaml"]), ("evaluate", ["evaluate.yaml"])):
        parser = ConfigParser()
        parser.read_config([str(ACDC / "configs" / file) for file in ["train.yaml", *files]])
        places = ("bundle_root", "ckpt_dir", "device", "load_path", "output_dir", "resume", "dataset_dir", "datalist")
        config = {key: value for key, value in parser.get().items() if key not in (*places, "num_workers", "_meta_")}
        configs[part] = config
    configs["train"]["seed"] = 3
    dsc, metrics = (configs["evaluate"]["validate"][name] for name in ("key_metric", "additional_metrics"))
    configs["train"]["validate"]["key_metric"]["val_dsc"]["metric_fn"]["_target_"] = (
        "calib_components.metrics.DiceMetric"
    )
    dsc["dsc"]["metric_fn"]["_target_"] = "calib_components.metrics.DiceMetric"
    metrics["cece"] = {**metrics["ece"], "metric_fn": {"_target_": "calib_components.metrics.CECEMetric"}}
    configs["evaluate"]["validate"]["metrics"] = {"ece": {"_target_": "calib_components.metrics.ECEMetric"}}
    metrics["ece"]["metric_fn"] = "@validate::metrics::ece"
    metrics["logit_magnitude"] = metrics.pop("logits")
    kept = ("method", "label", "seed", "bundle", "datalist", "patients")
    old = {**{name: getattr(planned, name) for name in kept}, "crop_size": [144, 144], **configs}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    assert read_settings(tmp_path) == replace(planned, commands=[])
    assert read_settings(tmp_path).changes(planned, evaluated=True) == []
    del old["crop_size"]
    (tmp_path / "settings.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"settings.json: expected a readable file, got one that lacks 'crop_size'"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"settings.json: expected a readable file, got"),
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
    write_history([["epoch", "val_dsc"], [1, ""], [2, 0.5]], folder)
    assert FinishedCell.read(folder).history == [{"epoch": "1", "val_dsc": ""}, {"epoch": "2", "val_dsc": "0.5"}]


def test_plan_grows_and_lists_the_commands(results: Path) -> None:
    settings = replace(read_settings(results / "nacl" / "seed0"), method="mbls", commands=["train it", "evaluate it"])
    for _ in range(2):
        add_to_plan([settings], results)
    plan = json.loads((results / "plan.json").read_text())
    assert [(entry["method"], entry["seed"]) for entry in plan] == [
        ("ce_dice", 0), ("svls", 0), ("nacl", 0), ("ce_dice", 1), ("mbls", 0)
    ]  # fmt: skip
    commands = (results / "commands.sh").read_text()
    assert commands.startswith("# Run these in the folder in which compare_losses was started.")
    assert commands.endswith("\n# mbls, seed 0\ntrain it\nevaluate it\n")


def test_results_are_in_the_order_of_the_plan(results: Path) -> None:
    found = read_results(results)
    assert [(method.name, [c.settings.seed for c in method.cells]) for method in found.methods] == [
        ("ce_dice", [0, 1]), ("nacl", [0])
    ]  # fmt: skip
    assert found.missing == ["svls, seed 0"]
    assert found.dataset == "acdc"
    assert found.split == "testing"
    assert found.patients[:3] == ["patient000", "patient000", "patient001"]


def test_copy_of_a_cell_is_an_error(results: Path) -> None:
    shutil.copytree(results / "nacl", results / "nacl_old")
    with pytest.raises(
        InputError, match=r"nacl_old/seed0: expected each method and seed once, got them in .*nacl/seed0"
    ):
        read_results(results)


def test_cells_of_another_protocol_are_an_error(results: Path, make_cell: Callable[..., None]) -> None:
    make_cell(results, "svls", 0, 0.1, max_epochs=3)
    with pytest.raises(InputError, match=r"svls/seed0: not comparable with .*ce_dice/seed0: max_epochs differs"):
        read_results(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "another"}, "bundle differs"),
        ({"datalist": "1" * 64}, "datalist differs"),
        ({"evaluation": {"split": "validation"}}, "split differs"),
        ({"overrides": {"rank": 1}}, "rank differs"),
    ],
)
def test_cells_that_are_not_comparable_are_an_error(results: Path, change: dict, message: str) -> None:
    folder = results / "nacl" / "seed0"
    write_settings(replace(read_settings(folder), **change), folder)
    with pytest.raises(InputError, match=rf"nacl/seed0: not comparable with .*ce_dice/seed0: {message}"):
        read_results(results)


def test_cells_with_other_cases_or_columns_are_an_error(results: Path) -> None:
    file = results / "nacl" / "seed0" / "cases.csv"
    whole = file.read_text()
    file.write_text("\n".join(whole.splitlines()[:-1]))
    with pytest.raises(InputError, match=r"nacl/seed0: not comparable .*: list of cases in cases.csv differs"):
        read_results(results)
    file.write_text(whole.replace("dsc_RV", "dsc_aorta").replace("hd95_RV", "hd95_aorta"))
    with pytest.raises(InputError, match=r"nacl/seed0: not comparable .*: columns of cases.csv differs"):
        read_results(results)


def test_no_cell_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got no finished cell"):
        read_results(tmp_path)
