"""Networks that carry a calibrator: what they compute, and how their weights are loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from monai.networks.nets import UNet
from monai.networks.utils import convert_to_onnx, eval_mode

from calib_components.errors import InputError
from calib_components.posthoc import (
    KINDS,
    Calibrator,
    Ensemble,
    TemperatureScaled,
    TemperatureScaling,
    TemperatureUNet,
    describe_calibration,
    find_calibrator,
    find_reference,
    members_of,
    set_calibrator,
)
from calib_components.posthoc.network import calibrator_in
from calib_workflows.weights import load_weights
from tests.helpers import made_up

OPTIONS: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 4,
    "channels": (4, 8),
    "strides": (2,),
    "num_res_units": 1,
}
X = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def temperature(value: float) -> TemperatureScaling:
    fitted = TemperatureScaling()
    fitted.set_state({"temperature": value})
    return fitted


def networks(value: float) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
    """Each network with a temperature, next to its own without one."""
    torch.manual_seed(0)
    plain = UNet(**OPTIONS).eval()
    unet = TemperatureUNet(**OPTIONS).eval()
    unet.load_state_dict(plain.state_dict())
    set_calibrator(unet, temperature(value))
    return [(unet, plain), (TemperatureScaled(plain, value), plain)]


def test_logits_are_divided_by_the_temperature_also_in_exports() -> None:
    for network, plain in networks(2.5):
        assert torch.equal(network(X), plain(X) / 2.5)
        for exported in (torch.jit.script(network), torch.jit.trace(network, X)):
            assert torch.equal(exported(X), network(X))
    half = TemperatureScaled(torch.nn.Identity(), 2.0)(torch.tensor([3.0], dtype=torch.bfloat16))
    assert half.equal(torch.tensor([1.5], dtype=torch.bfloat16))


def test_weights_and_exports_carry_the_reference_until_another_calibrator(tmp_path: Path) -> None:
    network, values = TemperatureUNet(**OPTIONS), torch.rand(4, 2, 5)
    assert find_reference(network).numel() == 0
    network.load_state_dict({**network.state_dict(), "reference": values})
    torch.jit.script(network).save(tmp_path / "model.ts")
    assert torch.equal(find_reference(torch.jit.load(tmp_path / "model.ts")), values)
    other = TemperatureUNet(**OPTIONS)
    other.load_state_dict(network.state_dict())
    assert torch.equal(find_reference(other), values)
    set_calibrator(other, TemperatureScaling())
    assert find_reference(other).numel() == 0
    assert "reference" not in other.state_dict()
    network.load_state_dict(other.state_dict())  # weights without one
    assert find_reference(network).numel() == 0


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_device_of_the_network_stay(training: bool) -> None:
    """What restores the mode of the scaled network must not put an evaluated one into training."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 1, device="meta"), torch.nn.Dropout()
    ).train(training)
    scaled = TemperatureScaled(network)
    with eval_mode(scaled):
        assert not any(module.training for module in scaled.modules())
    assert {module.training for module in scaled.modules()} == {training}
    assert scaled.temperature.device.type == "meta"


class TestWeights:
    def test_load_with_their_temperature_in_place(self) -> None:
        for network, _ in networks(0.67):
            other = copy.deepcopy(network)
            set_calibrator(other, temperature(3))
            buffer = other.temperature
            other.load_state_dict(network.state_dict())
            assert torch.equal(other(X), network(X))
            assert other.temperature is buffer

    def test_without_a_temperature_load_as_one(self) -> None:
        for network, plain in networks(3):
            weights = network.state_dict()
            del weights["temperature"]
            inside = torch.nn.ModuleDict({"part": network})
            inside.load_state_dict({f"part.{name}": value for name, value in weights.items()})
            assert network.temperature == 1
            assert torch.equal(network(X), plain(X))
            assert "temperature" not in weights


def test_found_and_set_inside_of_what_wraps_a_network() -> None:
    for network in (TemperatureUNet(**OPTIONS), torch.nn.Linear(1, 1)):
        wrapped = torch.nn.DataParallel(torch.compile(network, backend="eager"))
        assert find_calibrator(wrapped) is getattr(network, "calibrator", None)
    set_calibrator(
        torch.nn.DataParallel(torch.compile(unet := TemperatureUNet(**OPTIONS))), temperature(2)
    )
    assert unet.temperature == 2


def test_temperature_of_another_network_is_something_else() -> None:
    """Such as that of an attention."""
    network = torch.nn.Linear(1, 1)
    network.register_buffer("temperature", torch.ones(()))
    assert describe_calibration(network) is describe_calibration(torch.jit.script(network)) is None
    with pytest.raises(InputError, match="Linear carries no calibrator"):
        set_calibrator(network, temperature(2))


class Shift(Calibrator):
    """What a further calibrator has to have, for all that reads weights to take it."""

    name = "shift"
    collect = count_voxels = solve = solve_without = None  # type: ignore[assignment]  # no fit

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.shift.reshape(1, -1, 1, 1)


del KINDS["shift"]  # it has no fit


class TestEveryCalibrator:
    @pytest.fixture(params=[*KINDS.values(), Shift], ids=lambda kind: kind.name)
    def kind(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> type[Calibrator]:
        monkeypatch.setitem(KINDS, request.param.name, request.param)
        return request.param

    def test_is_carried_loaded_exported_and_undone(
        self, kind: type[Calibrator], tmp_path: Path
    ) -> None:
        fitted = made_up(kind, 4)
        (network, plain), _ = networks(1)
        set_calibrator(network, fitted)
        expected = fitted(plain(X))
        assert not torch.allclose(expected.softmax(1), plain(X).softmax(1), atol=0.01)
        other = TemperatureUNet(**OPTIONS).eval()
        other.load_state_dict(network.state_dict())
        torch.jit.script(network).save(tmp_path / "model.ts")
        for each in (network, other, torch.jit.load(tmp_path / "model.ts")):
            torch.testing.assert_close(each(X), expected)
        carried = calibrator_in(network.state_dict())
        assert type(carried) is kind
        torch.testing.assert_close(carried.state(), fitted.state())
        torch.save({**plain.state_dict(), "temperature": torch.tensor(3.0)}, tmp_path / "model.pt")
        load_weights(other, tmp_path / "model.pt")
        torch.testing.assert_close(other(X), plain(X) / 3)
        torch.save(network.state_dict(), tmp_path / "model.pt")
        load_weights(other, tmp_path / "model.pt")
        torch.testing.assert_close(other(X), expected)
        for undone in (kind(), TemperatureScaling()):
            set_calibrator(other, undone)
            torch.testing.assert_close(other(X).softmax(1), plain(X).softmax(1))

    def test_keeps_the_type_of_logits(self, kind: type[Calibrator]) -> None:
        logits = torch.randn(1, 4, 8, 8)
        for each in (torch.float16, torch.bfloat16, torch.float64):
            found = made_up(kind, 4)(logits.to(each))
            expected = made_up(kind, 4)(logits)
            torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)
            assert found.dtype == each or kind.name != "temperature"

    def test_onnx(self, kind: type[Calibrator], tmp_path: Path) -> None:
        network, file = TemperatureScaled(torch.nn.Conv2d(1, 4, 3)).eval(), tmp_path / "model.onnx"
        set_calibrator(network, made_up(kind, 4))
        convert_to_onnx(network, [X], filename=file, input_names=["x"], output_names=["logits"])
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"x": X.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(X), atol=1e-5, rtol=1e-5)


class TestEnsemble:
    def test_softmax_is_the_mean_of_those_of_the_members(self) -> None:
        torch.manual_seed(0)
        # The second has a calibrator, which acts before the mean
        members = [network for network, _ in (*networks(1), *networks(2))[::2]]
        members.append(TemperatureUNet(**OPTIONS).eval())
        mean = torch.stack([member(X).softmax(1) for member in members]).mean(0)
        network = TemperatureScaled(Ensemble(members), 1.7).eval()
        torch.testing.assert_close(network(X).softmax(1), (mean.log() / 1.7).softmax(1))
        for exported in (torch.jit.script(network), torch.jit.trace(network, X)):
            torch.testing.assert_close(exported(X), network(X))
        parts = members_of(torch.jit.script(network))
        for part, member in zip(parts, members, strict=True):
            torch.testing.assert_close(part(X), member(X))

    def test_too_few_members_are_an_error(self) -> None:
        with pytest.raises(InputError, match="networks"):
            Ensemble([TemperatureUNet(**OPTIONS)])
        assert members_of(TemperatureUNet(**OPTIONS)) == []
        single = Ensemble([torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)])
        with pytest.raises(ValueError, match="at least two classes"):
            single(X)

    def test_members_are_those_of_the_whole_network_alone(self) -> None:
        """Those inside of another network are not run by themselves."""
        ensemble = Ensemble([torch.nn.Conv2d(1, 3, 1) for _ in range(2)])
        assert len(members_of(ensemble)) == 2
        assert members_of(TemperatureScaled(torch.nn.Sequential(ensemble))) == []
        assert members_of(TemperatureScaled(TemperatureScaled(ensemble))) == []
