"""What is checked when a bundle's run starts, and how its errors are shown."""

from __future__ import annotations

import copy
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow

from calib_components.errors import InputError, error_line
from calib_workflows.data.facts import facts_beside, write_facts
from calib_workflows.options import (
    _is_no_mistake,
    check_ids,
    check_training,
    check_values,
    config_of_run,
    read_as_typed,
    read_files,
    start_run,
)
from tests.helpers import ACDC, BUNDLES, ROOT, make_weights, refusal

CONFIG = {
    "seed": 0,
    "learning_rate": 0.1,
    "loss": {"_target_": "calib_components.losses.MbLSLoss", "margin": 5.0},
    "optimizer": {
        "_target_": "torch.optim.SGD",
        "params": "$[torch.zeros(1)]",
        "lr": "@learning_rate",
    },
    "train": {"scheduler": "@optimizer", "trainer": ["@loss", "@train::scheduler"]},
    "run": ["$print(@seed)", "$@train::trainer"],
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The hook and the filter of logs as they were."""
    yield
    sys.excepthook = sys.__excepthook__
    for place in logging.root.handlers:
        place.removeFilter(_is_no_mistake)


def parser(**overrides: Any) -> ConfigParser:
    config = ConfigParser(copy.deepcopy(CONFIG))
    config.update(overrides)
    return config


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
@pytest.mark.parametrize(
    "files",
    [
        ("train.yaml", "losses/svls.yaml"),
        ("train.yaml", "calibrate.yaml"),
        ("train.yaml", "evaluate.yaml", "multi_gpu_evaluate.yaml"),
        ("inference.yaml", "inference_ts.yaml"),
    ],
    ids=lambda files: "+".join(files),
)
def test_the_ids_of_every_bundle_have_an_effect(bundle: Path, files: tuple[str, ...]) -> None:
    config = ConfigParser()
    config.read_config([str(bundle / "configs" / file) for file in files])
    config.read_meta(str(bundle / "configs" / "metadata.json"))
    check_ids(config, read_files(bundle / "configs", config))


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (("train.yaml", "evaluate.yaml"), "tta"),  # of inference
        (("train.yaml", "calibrate.yaml"), "strength"),  # of perturb.yaml
    ],
)
def test_an_option_of_other_files_has_no_effect(files: tuple[str, ...], name: str) -> None:
    config = ConfigParser()
    config.read_config([str(ACDC / "configs" / file) for file in files])
    config[name] = 1
    with pytest.raises(InputError, match=f"^{name}: no such option of these files"):
        check_ids(config, read_files(ACDC / "configs", config))


def test_an_exported_configuration_runs_from_its_own_folder(tmp_path: Path) -> None:
    config = ConfigParser()
    config.read_config(str(BUNDLES[0] / "configs" / "train.yaml"))
    (tmp_path / "summary.json").write_text("[1, 2]")  # no configuration
    ConfigParser.export_config_file(config.get(), str(tmp_path / "train.json"), fmt="json")
    check_ids(config, read_files(tmp_path, config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1}, "learning_rat: .*did you mean learning_rate?"),
        ({"train::schedular": 1}, "train::schedular: .* did you mean train::scheduler?"),
    ],
)
def test_ids_without_effect(overrides: dict[str, Any], message: str) -> None:
    check_ids(parser(), [])
    with pytest.raises(InputError, match="^" + re.sub(r"\?$", r"\?", message)):
        check_ids(parser(**overrides), [])


def test_ids_of_the_bundle_need_no_effect() -> None:
    # Nothing refers to learning_rate any more
    config = parser(**{"optimizer::lr": 0.2, "train::schedule": 1})
    with pytest.raises(InputError, match=r"^learning_rate: "):
        check_ids(config, [])
    check_ids(config, [{"learning_rate": 0.1, "train::schedule": 3}])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tta": "true", "any_orientation": False}, "tta: "),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on, got 0."),
        ({"device": "cuda:99"}, "device: cuda:99 cannot be used: "),
        ({"amp": "flase"}, "amp must be true or false, got 'flase'"),
    ],
)
def test_values_that_would_have_another_effect(values: dict[str, Any], message: str) -> None:
    files: list[dict[str, Any]] = [{"amp": "$@b"}, {"amp": False}]
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        check_values(ConfigParser(values), files)
    check_values(ConfigParser({"ignore_index": "null", "loss": "$x", "amp": "true"}), files)


def test_weights_are_those_of_the_working_folder_or_else_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, here = tmp_path / "bundle", tmp_path / "here"
    for folder in (bundle, here):
        (folder / "models").mkdir(parents=True)
    monkeypatch.chdir(here)

    def found(file: str) -> str:
        config = parser(bundle_root=str(bundle), load_path=file)
        read_as_typed(config)
        return config["load_path"]

    (bundle / "models" / "model.pt").touch()
    assert found("models/model.pt") == str(bundle / "models" / "model.pt")
    (here / "models" / "model.pt").touch()
    assert found("models/model.pt") == "models/model.pt"
    for other in ("absent.pt", str(here / "models" / "model.pt"), "$@bundle_root + '/model.pt'"):
        assert found(other) == other


def test_options_mean_what_is_typed() -> None:
    loss = {"squared_pred": "False", "weight": "null"}
    config = ConfigParser(
        {
            "resume": "TRUE",
            "image_size": (128, 96),
            "loss": loss,
            "output_dir": Path("out"),
            "dataset_dir": 2024,
        }
    )
    check_values(config, [])
    assert (config["output_dir"], config["loss::weight"]) == ("out", None)
    assert config["dataset_dir"] == "2024"
    assert (config["resume"], config["image_size"]) == (True, [128, 96])
    assert config["loss::squared_pred"] is False  # an option of a component


@pytest.mark.parametrize(
    ("bundle", "file", "overrides", "name"),
    [
        ("acdc_mri", "inference.yaml", {"num_classes": 5}, "class_names"),
        ("acdc_mri", "inference.yaml", {"facts_file": "facts_2.yaml"}, "facts_file"),
        # Its slices lie along one of the file
        ("acdc_mri", "inference.yaml", {"slice_axis": 0, "tta": True}, None),
        # It would mislead later inference
        ("acdc_mri", "train.yaml", {"slice_axis": 0}, "slice_axis"),
        ("flare_ct", "inference.yaml", {"tta": True}, "tta"),
        ("acdc_mri", "inference.yaml", {"crop_size": [16, 16]}, "crop_size: .* too small"),
        (
            "hippocampus_mri",
            "train.yaml",
            {"crop_size": [40, 40]},
            "crop_size must be three multiples of 8",
        ),
        (
            "hippocampus_mri",
            "train.yaml",
            {"spatial_dims": 2},
            "are 3D. Give configs/volumes.yaml, too",
        ),
    ],
)
def test_options_that_contradict_the_facts(
    bundle: str, file: str, overrides: dict[str, Any], name: str | None
) -> None:
    folder, config = ROOT / "bundles" / f"{bundle}_nacl_segmentation", ConfigParser()
    config.read_config(str(folder / "configs" / file))
    config.update({"bundle_root": str(folder), "device": "cpu", **overrides})
    with pytest.raises(InputError, match=name) if name else nullcontext():
        check_values(config, [])


def test_the_orientations_that_weights_were_trained_on_decide(tmp_path: Path) -> None:
    config = ConfigParser(
        {"tta": True, "any_orientation": True, "load_path": str(tmp_path / "model.pt")}
    )
    check_values(config, [])
    facts = facts_beside(make_weights(ACDC, tmp_path) / "model.pt")
    assert facts is not None
    for known in (None, True, False):
        write_facts(replace(facts, any_orientation=known), tmp_path)
        with pytest.raises(InputError, match="tta: ") if known is False else nullcontext():
            check_values(config, [])
    write_facts(replace(facts, any_orientation=True), tmp_path)
    config["any_orientation"] = False  # the default of a bundle
    check_values(config, [])


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (["evaluate.yaml"], "Give configs/train.yaml"),
        (["inference_ts.yaml"], "for inference configs/inference.yaml, before"),
        (["train.yaml", "multi_gpu_train.yaml"], "torchrun"),
    ],
    ids=str,
)
def test_files_that_do_not_make_a_run(files: list[str], remedy: str, tmp_path: Path) -> None:
    line = refusal(ACDC, *files, ckpt_dir=str(tmp_path), output_dir=str(tmp_path))
    assert re.match(f"config_file: .*{remedy}", line)
    assert list(tmp_path.iterdir()) == []


class TestTraining:
    def check(self, folder: Path, bundle: Path = ACDC, **overrides: Any) -> None:
        config = ConfigParser()
        config.read_config(str(bundle / "configs" / "train.yaml"))
        config.update(
            {"bundle_root": str(bundle), "device": "cpu", "ckpt_dir": str(folder), **overrides}
        )
        check_training(config)

    @pytest.mark.parametrize("name", ["model.pt", "last.ckpt"])
    def test_weights_are_replaced_on_request(self, name: str, tmp_path: Path) -> None:
        self.check(tmp_path, resume=True)  # of nothing
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=f"ckpt_dir: .* has {name}.*--overwrite true"):
            self.check(tmp_path)
        # There is nothing to resume
        with pytest.raises(InputError) if name == "model.pt" else nullcontext():
            self.check(tmp_path, resume=True)
        self.check(tmp_path, overwrite=True)
        # As MONAI Label's
        loader = {"_target_": "CheckpointLoader", "load_path": str(tmp_path / "model.pt")}
        self.check(tmp_path, **{"train::handlers": [loader]})

    @pytest.mark.parametrize("name", ["DiceCELoss", "monai.losses.FocalLoss"])
    def test_losses_of_monai_apply_softmax(self, name: str, tmp_path: Path) -> None:
        loss: dict[str, Any] = {"_target_": name, "to_onehot_y": True}
        with pytest.raises(InputError, match=r"^loss: \w+ has no softmax"):
            self.check(tmp_path, loss=loss)
        activation = "softmax" if name == "DiceCELoss" else "use_softmax"
        self.check(tmp_path, loss={**loss, activation: True})

    def test_every_loss_of_a_bundle_passes(self, tmp_path: Path) -> None:
        for file in (ACDC / "configs" / "losses").iterdir():
            self.check(tmp_path, **ConfigParser.load_config_file(file))


def failure(tmp_path: Path, text: str) -> RuntimeError:
    """Run a configuration, and return its exception, which MONAI wraps."""
    with pytest.raises(RuntimeError) as error:
        run(tmp_path, text)
    return error.value


def run(tmp_path: Path, text: str) -> ConfigWorkflow:
    (tmp_path / "config.yaml").write_text(text)
    workflow = ConfigWorkflow(str(tmp_path / "config.yaml"), workflow_type=None, logging_file=False)
    workflow.initialize()
    workflow.run()
    return workflow


class TestRun:
    def test_checks_its_own_configuration_and_shows_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = "tta: true\nrun:\n- _target_: calib_workflows.options.start_run\n- $print(@tta)\n"
        error = failure(tmp_path, f"any_orientation: false\n{text}- $print(@any_orientation)\n")
        with pytest.raises(SystemExit) as end:
            sys.excepthook(type(error), error, error.__traceback__)
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith("tta: the network was not trained")
        sys.excepthook(ZeroDivisionError, ZeroDivisionError("by zero"), None)
        assert capsys.readouterr().err == "ZeroDivisionError: by zero\n"

    def test_folders_are_checked_and_not_created(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        text = (
            "out: {}\nthere: {}\nrun:\n- _target_: calib_workflows.options.start_run\n  folders:"
            " [out, there]\n- $print(@out, @there)\n"
        ).format(tmp_path / "new" / "deep", tmp_path / "file" / "deep")
        assert str(error_line(failure(tmp_path, text))).startswith("there: ")
        assert not (tmp_path / "new").exists()

    def test_components_find_the_configuration_of_their_run_alone(self, tmp_path: Path) -> None:
        text = "calib_workflows.options.config_of_run().get('seed') == 3 or 1 / 0"
        run(tmp_path, f"seed: 3\nrun:\n- $import calib_workflows\n- ${text}\n- $print(@seed)\n")
        assert config_of_run() is None
        start_run(["ckpt_dir"])  # without a configuration there is nothing to check


def test_the_traceback_of_a_bug_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(_is_no_mistake)
    with pytest.raises(ZeroDivisionError):
        Engine(lambda *_: 1 / 0).run([1])
    assert "division by zero" in caplog.text
    caplog.handler.removeFilter(_is_no_mistake)
