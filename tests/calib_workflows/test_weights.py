"""Trained weights: what is loaded, what is refused, and how facts go with them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.networks.nets import UNet

from calib_components.errors import InputError
from calib_components.posthoc import TemperatureScaling, TemperatureUNet
from calib_workflows.data.facts import Facts, facts_beside, write_facts
from calib_workflows.runs import fingerprint_of_cases, fingerprint_of_list
from calib_workflows.weights import (
    WeightsCheckpointLoader,
    join_weights,
    load_torchscript,
    load_weights,
    with_calibrator,
    write_weights,
)

DATA = Facts("acdc", 2, 1, ["background", "heart"], [0, 1], {"heart": [1]}, [], [32, 32], [16, 16])
UNET: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": (4, 8),
    "strides": (2,),
}


def network(channels: int = 1, classes: int = 2) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, 3, 3), torch.nn.PReLU(), torch.nn.Conv2d(3, classes, 1)
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made-by-weights",)


def changed(**values: Any) -> dict[str, Any]:
    """The weights of the network with some replaced."""
    return {**network().state_dict(), **values}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file.*train first"),
        (b"garbage", "not a file of tensors"),
        ({"0.weight": Code()}, "not a file of tensors"),
        ({"network": {}, "optimizer": {}}, "use model.pt"),
        ([torch.ones(1)], "holds no weights by name"),
        ({"state_dict": {}}, "entry state_dict"),
        ({"module.0.weight": torch.ones(1)}, "DataParallel: save network.module"),
        ({}, "Missing key.*0.bias"),
        (changed(extra=torch.ones(1)), "Unexpected key.*extra"),
        (changed(class_temperature=torch.ones(4)), "that only version 0.4 knows, class_temp"),
        (changed(class_bias=torch.ones(2)), "that only version 0.4 knows, class_bias"),
        (changed(**{"0.bias": torch.ones(4)}), "size mismatch for 0.bias"),
        (changed(**{"1.weight": torch.tensor([torch.inf])}), "1.weight are NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: .*{message}") as error:
        load_weights(network(), file)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [file] * (content is not None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchscript_truncated_files_and_each_in_place_of_the_other(tmp_path: Path) -> None:
    script, file = tmp_path / "model.ts", tmp_path / "model.pt"
    conv, image = torch.nn.Conv2d(1, 2, 1), torch.rand(1, 1, 3, 3)
    torch.jit.script(conv).save(script)
    assert torch.equal(load_torchscript(script, "cpu")(image), conv(image))
    with pytest.raises(InputError, match=r"inference_ts.yaml"):
        load_weights(network(), script)
    torch.save(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a file of tensors"):
        load_weights(network(), file)
    for other in (file, tmp_path / "absent.ts"):
        with pytest.raises(
            InputError, match=rf"{other.name}: cannot read a TorchScript file"
        ) as error:
            load_torchscript(other, "cpu")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "before", [{}, {"temperature": torch.tensor(0.5), "reference": torch.ones(1, 1, 5)}]
)
def test_calibrator_is_replaced_with_its_reference_and_nothing_else(
    before: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Also not the versions of modules, which PyTorch keeps in an attribute of the state dict."""
    half, fitted = (
        torch.nn.Sequential(network(), torch.nn.BatchNorm2d(2)).half().state_dict(),
        TemperatureScaling(),
    )
    half.update(before)
    file = tmp_path / "model.pt"
    torch.save(half, file)
    fitted.set_state({"temperature": 0.7})
    once = bytes(with_calibrator(file, fitted))
    file.write_bytes(once)
    written = torch.load(file, weights_only=True)
    half.pop("reference", None)  # of another calibrator
    torch.testing.assert_close(
        dict(written), {**half, "temperature": torch.tensor(0.7)}, rtol=0, atol=0
    )
    assert written._metadata["1"] == {"version": 2}
    assert with_calibrator(file, fitted) == once


class TestFactsOfTheData:
    def load(self, folder: Path, data: Facts | None, **trained_on: Any) -> None:
        trained, other, engine = network(), network(), Engine(lambda *_: None)
        torch.save(trained.state_dict(), folder / "model.pt")
        if trained_on:
            write_facts(replace(DATA, **trained_on), folder)
        WeightsCheckpointLoader(folder / "model.pt", other, data).attach(engine)
        assert not torch.equal(other[0].weight, trained[0].weight)
        engine.run([0])
        torch.testing.assert_close(other.state_dict(), trained.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize(
        "trained_on",
        [{"dataset": "flare"}, {"in_channels": 3}, {"class_names": ["background", "liver"]}],
    )
    def test_others_than_those_of_the_weights_are_refused(
        self, trained_on: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=next(iter(trained_on))):
            self.load(tmp_path, DATA, **trained_on)

    @pytest.mark.parametrize(
        ("trained_on", "words"),
        [
            ({"image_size": [64, 64]}, ["image_size [64, 64], these have [32, 32]"]),
            ({}, ["no facts.yaml"]),
            ({"source": "elsewhere"}, []),
            ({"pixel_size": [0.4, 1.5]}, []),
            ({"pixel_size": [3.1, 5.0]}, ["Do not rely"]),
            ({"pixel_size": [0.1, 0.3]}, ["Do not rely"]),
        ],
    )
    def test_other_sizes_and_codes_are_warned_of(
        self,
        trained_on: dict[str, Any],
        words: list[str],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        self.load(tmp_path, replace(DATA, pixel_size=[1.0, 1.5]), **trained_on)
        found = warnings(caplog)
        assert [word in line for word, line in zip(words, found, strict=True)] == [True] * len(
            words
        )

    @pytest.mark.parametrize(
        ("change", "warned"), [("", 0), ("split", 1), ("cases", 0), ("no record", 0)]
    )
    def test_another_split_of_the_cases_is_warned_of(
        self,
        change: str,
        warned: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        datalist, folder = tmp_path / "datalist.json", tmp_path / "weights"
        folder.mkdir()
        for case in "ab":
            (tmp_path / case).mkdir()
            (tmp_path / case / "source.json").write_text(json.dumps({"content": case}))
        a, b = (
            {"case": case, "image": f"{case}/image.nii", "label": f"{case}/label.nii"}
            for case in "ab"
        )
        datalist.write_text(json.dumps({"training": [a], "testing": [b]}))
        settings = {
            "data": fingerprint_of_list(datalist),
            "cases": fingerprint_of_cases(datalist, tmp_path),
        }
        if change in ("split", "cases"):
            datalist.write_text(
                json.dumps({"training": [b], "testing": [a] if change == "split" else []})
            )
        if change != "no record":
            torch.save({"settings": settings}, folder / "last.ckpt")
        config = ConfigParser({"datalist": str(datalist), "dataset_dir": str(tmp_path)})
        monkeypatch.setattr("calib_workflows.weights.config_of_run", lambda: config)
        self.load(folder, DATA, source="")
        assert ["another list of the cases" in line for line in warnings(caplog)] == [True] * warned


def test_facts_go_with_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "new" / "model.pt"
    write_weights(file, b"weights", DATA, "out")
    assert facts_beside(file) == DATA
    other = replace(DATA, crop_size=[32, 32])
    write_weights(file, b"others", other, "out")  # weights that are replaced
    assert facts_beside(file) == other
    write_weights(file.with_name("more.pt"), b"weights", other, "out")
    # They would be taken for others
    for name, facts in (("model.pt", DATA), ("third.pt", DATA), ("model.pt", None)):
        with pytest.raises(InputError, match=r"out: .*other data"):
            write_weights(file.with_name(name), b"weights", facts, "out")
    assert file.read_bytes() == b"others"
    for name in ("model.ts", "datalist.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        with pytest.raises(InputError, match="out"):
            write_weights(tmp_path / name / "model.pt", b"weights", DATA, "out")
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]


def test_weights_of_an_ensemble_are_joined_if_they_belong_together(tmp_path: Path) -> None:
    files, out = (
        [tmp_path / f"seed{seed}" / "model.pt" for seed in range(3)],
        tmp_path / "new/folder/model.pt",
    )
    networks = [UNet(**UNET).eval() for _ in files]
    weights: list[Any] = [each.state_dict() for each in networks]
    weights[2] |= {"temperature": torch.tensor(2.0), "reference": torch.ones(1, 1, 5)}
    for file, content in zip(files, weights, strict=True):
        file.parent.mkdir()
        torch.save(content, file)
        write_facts(DATA, file.parent)
    join_weights(files, out)
    ensemble, x = TemperatureUNet(**UNET).eval(), torch.randn(1, 1, 16, 16)
    load_weights(ensemble, out)
    probabilities = [
        networks[0](x).softmax(1),
        networks[1](x).softmax(1),
        (networks[2](x) / 2).softmax(1),
    ]
    torch.testing.assert_close(ensemble(x).softmax(1), sum(probabilities) / 3)
    again = TemperatureUNet(**UNET).eval()
    again.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(again(x), ensemble(x))
    assert facts_beside(out) == DATA
    with pytest.raises(InputError, match="weights of this network"):
        load_weights(TemperatureUNet(**{**UNET, "channels": (4, 16)}), out)

    def refuse(message: str, *given: Path) -> None:
        with pytest.raises(InputError, match=message):
            join_weights(given, tmp_path / "out" / "model.pt")
        assert not (tmp_path / "out").exists()

    refuse("at least two", files[0])
    refuse("each once", *files, files[0])
    for fold, file in enumerate(files):  # of a cross-validation, by the record beside each
        torch.save(
            {"settings": {"cases": "same", "data": f"list {fold // 2}"}},
            file.with_name("last.ckpt"),
        )
    refuse("lists of cases", *files)
    write_facts(replace(DATA, crop_size=[32, 32]), files[2].parent)
    refuse("facts.yaml", *files)
    torch.save(UNet(**{**UNET, "channels": (4, 16)}).state_dict(), files[2])
    refuse("layers or classes", *files)
