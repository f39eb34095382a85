"""What is checked when a bundle's run starts, and how its errors are shown."""

from __future__ import annotations

import copy
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow

from calib_components.bundle import OneLineErrors, check_ids, check_values, running_config, start_run
from calib_components.errors import InputError, error_line
from tests.helpers import BUNDLES, ROOT

CONFIG = {
    "seed": 0,
    "learning_rate": 0.1,
    "loss": {"_target_": "calib_components.losses.MbLSLoss", "margin": 5.0},
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$[torch.zeros(1)]", "lr": "@learning_rate"},
    "train": {"scheduler": "@optimizer", "trainer": ["@loss", "@train::scheduler"]},
    "run": ["$print(@seed)", "$@train::trainer"],
}


def parser(**overrides: Any) -> ConfigParser:
    config = ConfigParser(copy.deepcopy(CONFIG))
    config.update(overrides)
    return config


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
@pytest.mark.parametrize(
    "files",
    [
        ("train.yaml",),
        ("train.yaml", "losses/svls.yaml"),
        ("train.yaml", "multi_gpu_train.yaml"),
        ("train.yaml", "evaluate.yaml"),
        ("train.yaml", "evaluate.yaml", "multi_gpu_evaluate.yaml"),
        ("inference.yaml",),
        ("inference.yaml", "inference_ts.yaml"),
        ("inference.yaml", "inference_trt.yaml"),
    ],
    ids=lambda files: "+".join(files),
)
def test_the_ids_of_every_bundle_have_an_effect(bundle: Path, files: tuple[str, ...]) -> None:
    config = ConfigParser()
    config.read_config([str(bundle / "configs" / file) for file in files])
    config.read_meta(str(bundle / "configs" / "metadata.json"))
    check_ids(config, bundle / "configs")


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_an_exported_configuration_runs_from_its_own_folder(form: str, tmp_path: Path) -> None:
    config = ConfigParser()
    config.read_config(str(BUNDLES[0] / "configs" / "train.yaml"))
    (tmp_path / "summary.json").write_text("[1, 2]")  # no configuration
    ConfigParser.export_config_file(config.get(), str(tmp_path / f"train.{form}"), fmt=form)
    check_ids(config, tmp_path)
    config["learning_rat"] = 1
    with pytest.raises(InputError, match="learning_rat: expected an id"):
        check_ids(config, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1}, "learning_rat: expected an id .*, got one without effect; did you mean learning_rate?"),
        ({"sed": 1}, "sed: expected .* did you mean seed?"),
        ({"zzz": 1}, "zzz: expected an id that the configuration uses, got one without effect$"),
        ({"loss::margn": 1.0}, "loss::margn: .* did you mean loss::margin?"),
        ({"train::schedular": 1}, "train::schedular: .* did you mean train::scheduler?"),
        ({"loss": {"_target_": "calib_components.losses.NACL"}}, "loss: expected a class or function .*, got calib"),
        ({"loss": {"_target_": "NoSuchLoss"}}, "loss: expected a class or function that Python finds, got NoSuchLoss"),
    ],
)  # fmt: skip
def test_ids_without_effect(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    check_ids(parser(), tmp_path)
    with pytest.raises(InputError, match="^" + re.sub(r"\?$", r"\?", message)):
        check_ids(parser(**overrides), tmp_path)


def test_ids_of_the_bundle_need_no_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = parser(**{"optimizer::lr": 0.2, "train::schedule": 1})  # nothing refers to learning_rate any more
    with pytest.raises(InputError, match=r"^learning_rate: expected"):
        check_ids(config, tmp_path)
    (tmp_path / "train.yaml").write_text("learning_rate: 0.1\ntrain::schedule: 3\n")
    check_ids(config, tmp_path)
    assert caplog.text == ""
    (tmp_path / "train.yaml").write_text("learning_rate: 0.1\ntrain::schedule: 3\nsplit: testing\n")  # is not loaded
    check_ids(config, tmp_path)
    assert "learning_rate: no effect here, it is an id of another configuration" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("seed", 2**32, "a whole number from 0"),
        ("seed", True, "a whole number from 0"),
        ("max_epochs", 0, "a whole number of at least 1"),
        ("max_epochs", 1.5, "a whole number of at least 1"),
        ("batch_size", "16", "a whole number of at least 1"),
        ("num_workers", -1, "a whole number of at least 0"),
        ("learning_rate", 0, "a number above 0"),
        ("learning_rate", float("nan"), "a number above 0"),
        ("learning_rate", "1e-3x", "a number above 0"),
        ("image_size", [128], "two multiples of 16"),
        ("image_size", [120, 128], "two multiples of 16"),
        ("image_size", 128, "two multiples of 16"),
        ("crop_size", [0, 3], "two multiples of 16"),
        ("resume", "yes", "true or false"),
        ("dataset_dir", 20241125, "a path without # or ::, with no ~ in front; write ./NAME if it reads as a number"),
        ("output_dir", "", "a path"),
        ("split", "test", "training, validation or testing"),
        ("device", "gpu", "one that PyTorch finds"),
        ("device", "cuda:99", "one that PyTorch finds"),
        ("device", 3.5, "one that PyTorch finds"),
    ],
)
def test_values_of_options(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected {re.escape(expected)}.*, got {re.escape(repr(value))}"):
        check_values(ConfigParser({name: value}))


def test_without_a_configuration_there_is_nothing_to_check() -> None:
    assert running_config() is None
    start_run(["ckpt_dir"])


@pytest.fixture
def hook() -> Iterator[None]:
    yield
    sys.excepthook = sys.__excepthook__


def run(tmp_path: Path, text: str) -> str | None:
    """Run a configuration, and return the one line that is left of its exception."""
    return error_line(failure(tmp_path, text))


def failure(tmp_path: Path, text: str) -> RuntimeError:
    """Run a configuration, and return its exception."""
    (tmp_path / "config.yaml").write_text(text)
    workflow = ConfigWorkflow(str(tmp_path / "config.yaml"), workflow_type=None, logging_file=False)
    workflow.initialize()
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    return error.value


@pytest.mark.usefixtures("hook")
def test_start_run_checks_the_configuration_that_it_is_in(tmp_path: Path) -> None:
    text = "seed: x\nrun:\n- _target_: calib_components.bundle.start_run\n- $print(@seed)\n"
    assert run(tmp_path, text) == "seed: expected a whole number from 0 to 4294967295, got 'x'"


@pytest.mark.usefixtures("hook")
def test_folders_are_checked_and_not_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = (
        "out: {}\nthere: {}\nrun:\n- _target_: calib_components.bundle.start_run\n  folders: [out, there]\n"
        "- $print(@out, @there)\n"
    ).format(tmp_path / "new" / "deep", tmp_path / "file" / "deep")
    line = run(tmp_path, text)
    assert line == f"there: expected a folder that can be written, got {tmp_path}/file/deep: Not a directory"
    assert not (tmp_path / "new").exists()


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        raise InputError(f"case{index}.nii: expected a whole file, got half")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mistake_in_a_worker_leaves_the_engine_as_one_line(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(lambda *_: None)
    OneLineErrors().attach(engine)
    loader = torch.utils.data.DataLoader(Broken(), num_workers=num_workers)
    with pytest.raises(InputError) as error:
        engine.run(loader)
    assert str(error.value) == error_line(error.value) == "case0.nii: expected a whole file, got half"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_other_errors_leave_the_engine_as_they_are() -> None:
    engine = Engine(lambda *_: 1 / 0)
    OneLineErrors().attach(engine)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: pytest.fail("called"))
    with pytest.raises(ZeroDivisionError):
        engine.run([1])


@pytest.mark.usefixtures("hook")
def test_other_errors_are_shown_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_run()
    start_run()  # a second time changes nothing
    sys.excepthook(ZeroDivisionError, ZeroDivisionError("by zero"), None)
    assert capsys.readouterr().err == "ZeroDivisionError: by zero\n"
    mistake = failure(tmp_path, "seed: x\nrun:\n- _target_: calib_components.bundle.start_run\n- $print(@seed)\n")
    sys.excepthook(RuntimeError, mistake, mistake.__traceback__)
    assert capsys.readouterr().err == "seed: expected a whole number from 0 to 4294967295, got 'x'\n"
    # Of the script that has started the run, after it.
    sys.excepthook(PermissionError, PermissionError(13, "Permission denied", "table.csv"), None)
    assert capsys.readouterr().err == "PermissionError: [Errno 13] Permission denied: 'table.csv'\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 1e-6), ("learning_rate", 2), ("seed", 2**32 - 1), ("max_epochs", 1), ("num_workers", 0),
     ("image_size", [16, 16]), ("resume", "true"), ("device", "cpu:0"), ("split", "training")],
)  # fmt: skip
def test_values_that_are_right(name: str, value: Any) -> None:
    check_values(ConfigParser({name: value}))


@pytest.mark.parametrize(
    ("bundle", "tta", "any_orientation"),
    [("flare_ct", True, None), ("acdc_mri", "true", False), ("flare_ct", False, None), ("acdc_mri", True, None)],
)
def test_orientations_that_were_not_trained_on_are_not_averaged_over(
    bundle: str, tta: Any, any_orientation: bool | None
) -> None:
    folder, config = ROOT / "bundles" / f"{bundle}_nacl_segmentation", ConfigParser()
    config.read_config(str(folder / "configs/inference.yaml"))
    config.update({"tta": tta, "bundle_root": str(folder)})
    if any_orientation is not None:
        config["any_orientation"] = any_orientation
    if tta and (bundle == "flare_ct" or any_orientation is False):
        with pytest.raises(InputError, match=r"^tta: expected false for a network that was not trained on slices in a"):
            check_values(config)
    else:
        check_values(config)


@pytest.mark.parametrize(
    ("content", "expected"),
    [({"validate": {}}, "configs/multi_gpu_train.yaml or multi_gpu_evaluate.yaml"), ({}, "inference in one process")],
)
def test_processes_that_do_not_share_the_work_are_refused(
    content: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "calib_components.bundle._running_workflow", lambda: SimpleNamespace(parser=ConfigParser(content))
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # as torchrun does, on two machines
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=rf"^config_file: expected {expected}.*, got several processes"):
        start_run()


@pytest.mark.parametrize(("interval", "warned"), [(1, 0), (4, 0), (60, 1), (200, 1)])
def test_epochs_that_are_not_validated_are_warned_of(
    interval: int, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = ConfigParser()
    config.read_config(str(ROOT / "bundles/acdc_mri_nacl_segmentation/configs/train.yaml"))
    config.update({"val_interval": interval, "bundle_root": str(ROOT / "bundles/acdc_mri_nacl_segmentation")})
    check_values(config)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == warned
    ending = "nothing is validated" if interval > 100 else "epochs after the last validation"
    assert all(f"expected a divisor of max_epochs, 100, got {interval}; {ending}" in line for line in lines)


def test_a_slice_axis_without_effect_is_refused() -> None:
    config = ConfigParser()
    config.read_config(str(ROOT / "bundles/flare_ct_nacl_segmentation/configs/inference.yaml"))
    config.update({"slice_axis": 0, "bundle_root": str(ROOT / "bundles/flare_ct_nacl_segmentation")})
    with pytest.raises(
        InputError, match=r"^slice_axis: expected null, since slices follow from the orientation here, got 0$"
    ):
        check_values(config)
    config = ConfigParser()
    config.read_config(str(ROOT / "bundles/acdc_mri_nacl_segmentation/configs/inference.yaml"))
    config.update({"slice_axis": 0, "bundle_root": str(ROOT / "bundles/acdc_mri_nacl_segmentation")})
    check_values(config)
