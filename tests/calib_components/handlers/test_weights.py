from __future__ import annotations

import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.networks.nets import UNet

from calib_components.data.facts import Facts, write_facts
from calib_components.errors import InputError
from calib_components.handlers import WeightsCheckpointLoader, load_torchscript, load_weights
from calib_components.handlers.fingerprint import fingerprint_of_cases, fingerprint_of_list
from calib_components.handlers.weights import check_weights, join_weights, with_temperature
from calib_components.posthoc import EnsembleUNet, TemperatureScaled, TemperatureUNet


def network(channels: int = 1, classes: int = 2, dimensions: int = 2) -> torch.nn.Module:
    conv = torch.nn.Conv2d if dimensions == 2 else torch.nn.Conv3d
    return torch.nn.Sequential(conv(channels, 3, 3), torch.nn.PReLU(), conv(3, classes, 1))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights},
        lambda weights: {"model": weights, "optimizer": {"state": {}}, "epoch": 3},  # as CheckpointSaver writes them
    ],
)
def test_weights_are_in_the_network_when_the_engine_starts(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    trained, other = network(), network()
    torch.save(wrap(trained.state_dict()), tmp_path / "model.pt")
    engine = Engine(lambda *_: None)
    WeightsCheckpointLoader(tmp_path / "model.pt", other).attach(engine)
    assert not torch.equal(other[0].weight, trained[0].weight)
    engine.run([0])
    torch.testing.assert_close(other.state_dict(), trained.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("change", "warned"), [("", 0), ("split", 1), ("cases", 0), ("unknown", 0), ("no record", 0)])
def test_weights_of_another_split_of_the_cases_are_warned_of(
    change: str, warned: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    datalist, folder = tmp_path / "datalist.json", tmp_path / "weights"
    for case in "ab":
        (tmp_path / case).mkdir()
        (tmp_path / case / "source.json").write_text(json.dumps({"content": case}))
    a, b = ({"image": f"{case}/image.nii"} for case in "ab")
    datalist.write_text(json.dumps({"training": [a], "testing": [b]}))
    folder.mkdir()
    trained = network()
    torch.save(trained.state_dict(), folder / "model.pt")
    write_facts(TestFactsOfTheData.DATA, folder)
    settings = {"data": fingerprint_of_list(datalist), "cases": fingerprint_of_cases(datalist, tmp_path)}
    if change == "unknown":  # of an earlier version, or prepared elsewhere
        settings["cases"] = None
        (tmp_path / "a" / "source.json").unlink()
        datalist.write_text(json.dumps({"training": [b], "testing": [a]}))
    if change != "no record":
        torch.save({"settings": settings}, folder / "last.ckpt")
    if change == "split":
        datalist.write_text(json.dumps({"training": [b], "testing": [a]}))
    if change == "cases":
        datalist.write_text(json.dumps({"training": [b], "testing": []}))
    config = ConfigParser({"datalist": str(datalist), "dataset_dir": str(tmp_path)})
    monkeypatch.setattr("calib_components.handlers.weights.running_config", lambda: config)
    engine = Engine(lambda *_: None)
    WeightsCheckpointLoader(folder / "model.pt", network(), TestFactsOfTheData.DATA).attach(engine)
    engine.run([0])
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.startswith(f"{folder}/model.pt: expected weights that were trained with") for line in lines] == (
        [True] * warned
    )


class TestFactsOfTheData:
    DATA = Facts("acdc", 2, 1, ["background", "heart"], [0, 1], {"heart": [1]}, [], [32, 32], [16, 16])

    def load(self, folder: Path, data: Facts | None, **trained_on: Any) -> None:
        trained = network()
        torch.save(trained.state_dict(), folder / "model.pt")
        if trained_on:
            write_facts(replace(self.DATA, **trained_on), folder)
        engine = Engine(lambda *_: None)
        other = network()
        WeightsCheckpointLoader(folder / "model.pt", other, data).attach(engine)
        engine.run([0])
        torch.testing.assert_close(other.state_dict(), trained.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("trained_on", "line"),
        [
            ({"dataset": "flare"}, "dataset, acdc, got flare"),
            ({"in_channels": 3}, "in_channels, 1, got 3"),
            (
                {"class_names": ["background", "liver"]},
                "class_names, ['background', 'heart'], got ['background', 'liver']",
            ),
        ],
    )
    def test_others_than_those_of_the_weights_are_refused(
        self, trained_on: dict[str, Any], line: str, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError) as error:
            self.load(tmp_path, self.DATA, **trained_on)
        assert str(error.value) == (
            f"{tmp_path}/facts.yaml: expected weights of the data's {line}; use weights trained on such data"
        )

    @pytest.mark.parametrize(
        ("trained_on", "line"),
        [
            ({"image_size": [64, 64]}, "image_size, [32, 32], got [64, 64]"),
            ({"crop_size": [32, 32]}, "crop_size, [16, 16], got [32, 32]"),
            ({"label_codes": [0, 5]}, "label_codes, [0, 1], got [0, 5]"),
        ],
    )
    def test_other_sizes_and_codes_are_warned_of(
        self, trained_on: dict[str, Any], line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.load(tmp_path, self.DATA, **trained_on)
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            f"{tmp_path}/facts.yaml: expected weights of the data's {line}; compare results with care"
        ]

    @pytest.mark.parametrize(
        ("data", "trained_on"),
        [(DATA, {"source": "elsewhere", "pixel_size": [1.0, 2.0]}), (None, {"dataset": "flare"})],
        ids=["the same", "no facts of the data"],
    )
    def test_nothing_to_say(
        self, data: Facts | None, trained_on: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.load(tmp_path, data, **trained_on)
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []

    @pytest.mark.parametrize(("sizes", "warned"), [([1.0, 1.1], 0), ([0.4, 5.9], 0), ([0.3, 1.5], 1), ([1.0, 6.1], 1)])
    def test_pixels_of_another_size_are_warned_of(
        self, sizes: list[float], warned: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.load(tmp_path, replace(self.DATA, pixel_size=sizes), pixel_size=[1.0, 2.0])
        lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        expected = f"{tmp_path}/facts.yaml: expected weights of pixels like the data's, {sizes[0]:g} to {sizes[1]:g} mm"
        assert lines == [f"{expected}, got 1 to 2 mm; do not rely on results"] * warned

    def test_weights_without_facts_are_warned_of(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.load(tmp_path, self.DATA)
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warning.startswith(
            f"{tmp_path}/facts.yaml: expected the facts of the data that the weights were trained"
        )


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made-by-weights",)


def changed(**values: Any) -> dict[str, Any]:
    """The weights of the network with some replaced."""
    return {**network().state_dict(), **values}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "trained weights, got a broken file"),
        (b"garbage", "trained weights, got another kind of file"),
        ({"0.weight": Code()}, r"trained weights, got pickled code \(posix.mkdir\), which is not run"),
        ({"network": {}, "optimizer": {}}, "got the state of a training; use model.pt beside it"),
        ([1, 2], "trained weights, got a list"),
        ({}, "got those of another network, without 0.weight"),
        (changed(extra=torch.ones(1)), "got those of another network, with extra"),
        (changed(**{"0.bias": 1}), "got 0.bias of type int"),
        (changed(**{"0.bias": torch.ones(3).int()}), "got 0.bias of type torch.int32, not torch.float32"),
        (changed(**{"0.bias": torch.ones(4)}), r"got those of another network: 0.bias has shape \(4,\), not \(3,\)"),
        (changed(**{"1.weight": torch.tensor([torch.nan])}), "got values that are NaN or infinite in 1.weight"),
        (changed(**{"1.weight": torch.tensor([torch.inf])}), "got values that are NaN or infinite in 1.weight"),
        (
            network(classes=5).state_dict(),
            r"network of 1 channel\(s\) and 5 classes, not of 1 channel\(s\) and 2 classes: 2.weight has shape \(5, ",
        ),
        (
            network(channels=4).state_dict(),
            r"network of 4 channel\(s\) and 2 classes, not of 1 channel\(s\) and 2 classes: 0.weight has shape \(3, ",
        ),
        (network(dimensions=3).state_dict(), r"another network: 0.weight has shape \(3, 1, 3, 3, 3\), not \(3, 1, 3, "),
    ],
)
def test_weights_that_do_not_fit_are_named(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    own = network()
    before = {name: values.clone() for name, values in own.state_dict().items()}
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: expected .*{message}") as error:
        load_weights(own, file)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(own.state_dict(), before, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [file]


def test_truncated_file(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model.pt: expected trained weights, got a broken file$"):
        load_weights(network(), file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchscript_file(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.jit.script(network()).save(file)
    with pytest.raises(InputError, match=r"model.pt: expected trained weights, got a TorchScript file; add conf"):
        load_weights(network(), file)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("absent/model.pt", "absent/model.pt: expected trained weights, got no such file; train first, or set"),
        (".", r"\.: expected trained weights, got Is a directory"),
        (20241125, "load_path: expected the path of weights, got 20241125; write ./NAME"),
    ],
)
def test_no_file(file: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^{message}"):
        load_weights(network(), file)


class TestTemperature:
    def weights(self, **values: Any) -> dict[str, Any]:
        return {**TemperatureScaled(network(), 0.5).state_dict(), **values}

    def test_is_loaded_with_the_weights(self, tmp_path: Path) -> None:
        torch.save(self.weights(), tmp_path / "model.pt")
        own = TemperatureScaled(network(), 3.0)
        load_weights(own, tmp_path / "model.pt")
        assert own.temperature == 0.5

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("temperature", [0.001, 1000])
    def test_ends_of_its_range_are_suitable(self, temperature: float, dtype: torch.dtype, tmp_path: Path) -> None:
        torch.save(self.weights(temperature=torch.tensor(temperature, dtype=dtype)), tmp_path / "model.pt")
        own = TemperatureScaled(network(), 3.0)
        load_weights(own, tmp_path / "model.pt")
        assert own.temperature == pytest.approx(temperature, rel=1e-3)

    def test_is_1_where_weights_have_none(self, tmp_path: Path) -> None:
        weights = self.weights()
        del weights["temperature"]
        torch.save(weights, tmp_path / "model.pt")
        own = TemperatureScaled(network(), 3.0)
        load_weights(own, tmp_path / "model.pt")
        assert own.temperature == 1
        torch.testing.assert_close({**own.state_dict()}, {**weights, "temperature": torch.ones(())}, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("temperature", "got"),
        [
            (torch.tensor(0.0), "a temperature of 0, which is not from 0.001 to 1000"),
            (torch.tensor(-0.7), "a temperature of -0.7"),
            (torch.tensor(1e-60, dtype=torch.float64), "a temperature of 1e-60"),
            (torch.tensor(0.0009), "a temperature of 0.0009"),
            (torch.tensor(1000.5), "a temperature of 1000.5"),
            (torch.tensor(torch.nan), "values that are NaN or infinite in temperature"),
            (torch.tensor(torch.inf), "values that are NaN or infinite in temperature"),
            (torch.tensor([0.5]), r"those of another network: temperature has shape \(1,\), not \(\)"),
            (torch.tensor(2), "temperature of type torch.int64, not torch.float32"),
            (0.5, "temperature of type float"),
        ],
    )
    def test_unsuitable_one_is_refused(self, temperature: Any, got: str, tmp_path: Path) -> None:
        torch.save(self.weights(temperature=temperature), tmp_path / "model.pt")
        own = TemperatureScaled(network(), 3.0)
        with pytest.raises(InputError, match=f"model.pt: expected trained weights, got {got}") as error:
            load_weights(own, tmp_path / "model.pt")
        assert "\n" not in str(error.value)
        assert own.temperature == 3

    def test_network_without_one_refuses_it(self, tmp_path: Path) -> None:
        torch.save({**network().state_dict(), "temperature": torch.tensor(0.5)}, tmp_path / "model.pt")
        with pytest.raises(InputError, match=r"got those of another network, with temperature$"):
            load_weights(network(), tmp_path / "model.pt")

    def test_weights_of_monais_network_load(self, tmp_path: Path) -> None:
        options: Any = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,)}
        unet = UNet(**options)
        torch.save(unet.state_dict(), tmp_path / "model.pt")
        own = TemperatureUNet(**options)
        load_weights(own, tmp_path / "model.pt")
        image = torch.rand(1, 1, 8, 8)
        assert torch.equal(own.eval()(image), unet.eval()(image))

    @pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"model": weights, "epoch": 3}])
    @pytest.mark.parametrize("before", [{}, {"temperature": torch.tensor(0.5)}])
    def test_is_replaced_and_nothing_else(
        self, before: dict[str, torch.Tensor], wrap: Callable[[Any], Any], tmp_path: Path
    ) -> None:
        half = {name: values.half() for name, values in network().state_dict().items()}
        torch.save(wrap({**half, **before}), tmp_path / "model.pt")
        (tmp_path / "other.pt").write_bytes(with_temperature(tmp_path / "model.pt", torch.tensor(0.7)))
        expected = wrap({**half, "temperature": torch.tensor(0.7)})
        written = torch.load(tmp_path / "other.pt", weights_only=True)
        torch.testing.assert_close(written, expected, rtol=0, atol=0)
        (tmp_path / "model.pt").write_bytes(with_temperature(tmp_path / "other.pt", torch.tensor(0.7)))
        assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()

    @pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: OrderedDict(model=weights, epoch=3)])
    def test_versions_of_modules_stay(self, wrap: Callable[[Any], Any], tmp_path: Path) -> None:
        """PyTorch keeps them in an attribute of the state dict, and loads weights by them."""
        own = TemperatureScaled(torch.nn.BatchNorm2d(2))
        before = own.state_dict()
        torch.save(wrap(before), tmp_path / "model.pt")
        (tmp_path / "other.pt").write_bytes(with_temperature(tmp_path / "model.pt", torch.tensor(0.7)))
        written = torch.load(tmp_path / "other.pt", weights_only=True)
        assert type(written) is OrderedDict
        written = written.get("model", written)
        assert list(written) == list(before)
        assert written._metadata == before._metadata
        assert written._metadata["network"] == {"version": 2}

    def test_weights_of_other_classes_pass_the_check_of_names(self, tmp_path: Path) -> None:
        torch.save(self.weights(), tmp_path / "model.pt")
        check_weights(TemperatureScaled(network(classes=5)), tmp_path / "model.pt")
        with pytest.raises(InputError, match="expected trained weights, got those of another network, without "):
            check_weights(TemperatureScaled(torch.nn.Conv2d(1, 2, 1)), tmp_path / "model.pt")


class TestLoadTorchscript:
    def test_network_with_its_weights(self, tmp_path: Path) -> None:
        network = torch.nn.Conv2d(1, 2, 1)
        torch.jit.script(network).save(tmp_path / "model.ts")
        image = torch.rand(1, 1, 3, 3)
        assert torch.equal(load_torchscript(tmp_path / "model.ts", "cpu")(image), network(image))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"model.ts: expected a TorchScript file, got none; write one with "):
            load_torchscript(tmp_path / "model.ts", "cpu")

    @pytest.mark.parametrize("content", [b"", b"garbage", "weights"])
    def test_another_file(self, content: bytes | str, tmp_path: Path) -> None:
        file = tmp_path / "model.ts"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save({"weight": torch.ones(1)}, file)
        with pytest.raises(InputError, match=f"^{file}: expected a TorchScript file, as .* writes it, got .+") as error:
            load_torchscript(file, "cpu")
        assert "\n" not in str(error.value)


class TestJoinedWeights:
    OPTIONS: ClassVar[dict[str, Any]] = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "channels": (4, 8),
        "strides": (2,),
    }
    FACTS = TestFactsOfTheData.DATA

    def save(self, file: Path, facts: Facts | None = None, wrapped: bool = False, **options: Any) -> torch.nn.Module:
        file.parent.mkdir(exist_ok=True)
        network = UNet(**{**self.OPTIONS, **options})  # without a temperature: a member's is 1
        torch.save({"model": network.state_dict()} if wrapped else network.state_dict(), file)
        if facts is not None:
            write_facts(facts, file.parent)
        return network.eval()

    def test_are_those_of_the_ensemble(self, tmp_path: Path) -> None:
        files = [tmp_path / f"seed{seed}/model.pt" for seed in range(3)]
        members = [self.save(file, self.FACTS, wrapped=file is files[1]) for file in files]
        torch.save(  # one that was calibrated
            members[2].state_dict() | {"temperature": torch.tensor(2.0)}, files[2]
        )
        out = tmp_path / "new/folder/model.pt"
        join_weights(*files, out=out)
        ensemble, x = EnsembleUNet(**self.OPTIONS, members=3).eval(), torch.randn(1, 1, 16, 16)
        load_weights(ensemble, out)
        probabilities = [members[0](x).softmax(1), members[1](x).softmax(1), (members[2](x) / 2).softmax(1)]
        torch.testing.assert_close(ensemble(x).softmax(1), sum(probabilities) / 3)
        assert (out.parent / "facts.yaml").read_text() == (files[0].parent / "facts.yaml").read_text()
        assert sorted(path.name for path in out.parent.iterdir()) == ["facts.yaml", "model.pt"]

    def test_of_networks_that_were_trained_on_other_cases_is_an_error(self, tmp_path: Path) -> None:
        """As are the folds of a cross-validation, by the record beside each."""
        files = [tmp_path / f"seed0_fold{fold}/model.pt" for fold in range(3)]
        for fold, file in enumerate(files):
            self.save(file, self.FACTS)
            torch.save({"settings": {"cases": "same", "data": f"list {fold // 2}"}}, file.with_name("last.ckpt"))
        join_weights(*files[:2], out=tmp_path / "both/model.pt")
        message = (
            "fold2/model.pt: expected a network trained with the list of cases of .*fold0/model.pt, got one of another"
        )
        with pytest.raises(InputError, match=message):
            join_weights(*files, out=tmp_path / "all/model.pt")
        assert not (tmp_path / "all").exists()

    def test_of_another_number_of_members_do_not_load(self, tmp_path: Path) -> None:
        files = [tmp_path / f"{seed}.pt" for seed in range(2)]
        for file in files:
            self.save(file)
        join_weights(*files, out=tmp_path / "both.pt")
        with pytest.raises(
            InputError, match=r"both.pt: expected trained weights, got those of another network, without"
        ):
            load_weights(EnsembleUNet(**self.OPTIONS, members=3), tmp_path / "both.pt")

    def test_what_does_not_fit_is_an_error(self, tmp_path: Path) -> None:
        first, wider, of_others, out = (tmp_path / f"{name}/model.pt" for name in ("first", "wider", "others", "out"))
        self.save(first, self.FACTS)
        self.save(second := tmp_path / "second/model.pt", self.FACTS)
        self.save(wider, self.FACTS, channels=(4, 16))
        self.save(of_others, replace(self.FACTS, dataset="flare"))
        (tmp_path / "text.pt").write_text("no weights")
        infinite, hot, ensemble, plain = (tmp_path / f"{name}.pt" for name in ("infinite", "hot", "ensemble", "plain"))
        weights = torch.load(first, weights_only=True)
        torch.save(weights, plain)  # without facts beside it
        self.save(other_plain := tmp_path / "other_plain.pt")
        torch.save({name: values / 0 for name, values in weights.items()}, infinite)
        torch.save(weights | {"temperature": torch.tensor(1e4)}, hot)
        torch.save({f"members.0.{name}": values for name, values in weights.items()}, ensemble)
        copied = shutil.copytree(second.parent, tmp_path / "copied") / "model.pt"
        for files, message in (
            ([first], "files: expected the weights of at least two networks, got 1"),
            ([first, tmp_path / "none.pt"], "none.pt: expected trained weights, got no such file"),
            ([first, wider], r"wider/model.pt: expected trained weights, got those of another network"),
            ([first, of_others], r"others/model.pt: expected weights of the same data as .*first/model.pt"),
            ([tmp_path / "text.pt"] * 2, r"text.pt: expected trained weights, got another kind of file"),
            ([infinite] * 2, r"infinite.pt: expected trained weights, got values that are NaN or infinite in "),
            ([hot] * 2, r"hot.pt: expected trained weights, got a temperature of 10000, which is not from"),
            ([ensemble] * 2, r"ensemble.pt: expected trained weights, got those of an ensemble"),
            (
                [first, second, first],
                r"files: expected different networks, got .*first/model.pt, which is that of .*first",
            ),
            ([second, copied], r"files: expected different networks, got .*copied/model.pt, which is that of .*second"),
        ):
            with pytest.raises(InputError, match=message):
                join_weights(*files, out=out)
        assert not out.exists()
        before = first.read_bytes()
        with pytest.raises(InputError, match=r"--out: expected a new file, got .*, which is that of a member"):
            join_weights(first, second, out=first)
        assert first.read_bytes() == before
        with pytest.raises(
            InputError, match=r"--out: expected a folder without weights of other data, got .*others; choose"
        ):
            join_weights(plain, other_plain, out=of_others.with_name("new.pt"))
        with pytest.raises(
            InputError, match=r"--out: expected a folder without weights of other data, got .*others; choose"
        ):
            join_weights(first, second, out=of_others.with_name("new.pt"))
        assert not of_others.with_name("new.pt").exists()
        with pytest.raises(InputError, match=r"--out: expected a folder without weights of other data"):
            join_weights(first, second, out=plain.with_name("new.pt"))  # its facts would be those of plain.pt, too
        before = wider.read_bytes()
        with pytest.raises(InputError, match=r"model.pt: expected weights of an ensemble or no file, got those of one"):
            join_weights(first, second, out=wider)
        assert wider.read_bytes() == before
        join_weights(first, second, out=out)
        out.write_bytes(with_temperature(out, torch.tensor(1.5)))
        join_weights(first, second, out=out)  # an ensemble may be replaced
