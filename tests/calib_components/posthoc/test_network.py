"""Networks that carry a temperature: what they compute, and how their weights are loaded."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.networks.nets import UNet
from monai.networks.utils import eval_mode
from torch.nn.parallel import DistributedDataParallel

from calib_components.errors import InputError
from calib_components.posthoc import (
    EnsembleUNet,
    TemperatureScaled,
    TemperatureUNet,
    find_temperature,
    set_temperature,
)

OPTIONS: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 4,
    "channels": (4, 8),
    "strides": (2,),
    "num_res_units": 1,
}


def networks(temperature: float) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
    """Each network with a temperature, next to its own without one."""
    torch.manual_seed(0)
    plain = UNet(**OPTIONS).eval()
    unet = TemperatureUNet(**OPTIONS).eval()
    unet.load_state_dict(plain.state_dict())
    set_temperature(unet, temperature)
    return [(unet, plain), (TemperatureScaled(plain, temperature), plain)]


@pytest.mark.parametrize("temperature", [1, 2.5, 0.125])
def test_logits_are_divided_by_the_temperature(temperature: float) -> None:
    x = torch.randn(2, 1, 16, 16)
    for network, plain in networks(temperature):
        assert torch.equal(network(x), plain(x) / temperature)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_network_stays(training: bool) -> None:
    """What restores the mode of the scaled network must not put an evaluated one into training."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Dropout()).train(training)
    scaled = TemperatureScaled(network)
    with eval_mode(scaled):
        assert not any(module.training for module in scaled.modules())
    assert {module.training for module in scaled.modules()} == {training}


def test_temperature_is_on_the_device_of_the_network() -> None:
    assert TemperatureScaled(torch.nn.Conv2d(1, 2, 1, device="meta")).temperature.device.type == "meta"
    assert TemperatureScaled(torch.nn.Identity(), 2).temperature.device.type == "cpu"


def test_network_of_several_outputs_is_an_error() -> None:
    class DeepSupervision(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, x[..., ::2]]

    with pytest.raises(InputError, match=r"^network: expected one tensor of logits, got list; wrap a module that"):
        TemperatureScaled(DeepSupervision())(torch.zeros(1, 2, 4))


def test_half_precision_stays_half() -> None:
    network = TemperatureScaled(torch.nn.Identity(), 2.0)
    assert network(torch.tensor([3.0], dtype=torch.bfloat16)).equal(torch.tensor([1.5], dtype=torch.bfloat16))


def test_scripted_and_traced_networks_are_exact() -> None:
    x = torch.randn(1, 1, 16, 16)
    for network, _ in networks(1.7):
        for exported in (torch.jit.script(network), torch.jit.trace(network, x)):
            assert torch.equal(exported(x), network(x))
            assert find_temperature(exported) == network.temperature


def test_names_in_the_state_dict() -> None:
    (unet, plain), (scaled, _) = networks(3)
    names = list(plain.state_dict())
    assert sorted(unet.state_dict()) == sorted([*names, "temperature"])
    assert sorted(scaled.state_dict()) == sorted([*(f"network.{name}" for name in names), "temperature"])
    assert [name for name, _ in unet.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_weights_without_a_temperature_load_as_one() -> None:
    for network, _ in networks(3):
        weights = {name: value for name, value in network.state_dict().items() if name != "temperature"}
        network.load_state_dict(weights)
        assert find_temperature(network) == 1
        assert "temperature" not in weights
        inside = torch.nn.ModuleDict({"part": network})
        inside.load_state_dict({f"part.{name}": value for name, value in weights.items()})


def test_weights_with_a_temperature_keep_it(tmp_path: Path) -> None:
    (saved, plain), _ = networks(0.67)
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    network = TemperatureUNet(**OPTIONS).eval()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(network(x), plain(x) / torch.tensor(0.67))


def test_missing_weights_are_still_an_error() -> None:
    weights = TemperatureUNet(**OPTIONS).state_dict()
    weights.pop("model.0.conv.unit0.conv.weight")
    with pytest.raises(RuntimeError, match="Missing key"):
        TemperatureUNet(**OPTIONS).load_state_dict(weights)


def test_find_and_set_in_a_distributed_network(tmp_path: Path) -> None:
    network = TemperatureUNet(**OPTIONS)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(network)
        set_temperature(wrapped, 2)
        assert find_temperature(wrapped) is network.temperature
    finally:
        dist.destroy_process_group()
    assert network.temperature == 2


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.DataParallel,
        lambda network: torch.compile(network, backend="eager"),
        lambda network: torch.nn.DataParallel(torch.compile(network, backend="eager")),
    ],
    ids=["DataParallel", "compiled", "both"],
)
def test_find_and_set_in_a_wrapped_network(wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    network = TemperatureUNet(**OPTIONS)
    wrapped = wrap(network)
    set_temperature(wrapped, 2)
    assert find_temperature(wrapped) is network.temperature
    assert network.temperature == 2
    assert find_temperature(wrap(torch.nn.Linear(1, 1))) is None


def test_temperature_of_a_torchscript_file(tmp_path: Path) -> None:
    torch.jit.script(TemperatureScaled(torch.nn.Identity(), 0.5)).save(tmp_path / "model.ts")
    assert find_temperature(torch.jit.load(tmp_path / "model.ts")) == 0.5
    attention = torch.nn.Linear(1, 1)
    attention.register_buffer("temperature", torch.tensor(0.07))
    torch.jit.script(attention).save(tmp_path / "model.ts")
    assert find_temperature(torch.jit.load(tmp_path / "model.ts")) is None  # something else


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_temperature_of_another_network_is_something_else(kind: str) -> None:
    """Such as that of an attention."""
    network = torch.nn.Linear(1, 1)
    if kind == "buffer":
        network.register_buffer("temperature", torch.ones(()))
    else:
        network.temperature = torch.nn.Parameter(torch.ones(()))
    assert find_temperature(network) is None
    with pytest.raises(TypeError, match=r"^network: expected one with a temperature"):
        set_temperature(network, 2)


def test_networks_without_a_temperature() -> None:
    network = torch.nn.Linear(1, 1)
    assert find_temperature(network) is None
    with pytest.raises(TypeError, match=r"^network: expected one with a temperature, such as .*, got Linear$"):
        set_temperature(network, 2)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 1e-60, 0.0009999, 1000.1, 10**400])
def test_values_that_are_no_temperature(value: float) -> None:
    network = TemperatureScaled(torch.nn.Identity(), 2)
    with pytest.raises(
        ValueError, match=rf"^temperature: expected a number from 0.001 to 1000, got {re.escape(str(value))}$"
    ):
        set_temperature(network, value)
    assert network.temperature == 2


@pytest.mark.parametrize("value", [0.001, 1000, np.float64(0.5)])
def test_values_that_are_a_temperature(value: float) -> None:
    assert TemperatureScaled(torch.nn.Identity(), value).temperature == np.float32(value)


@pytest.mark.parametrize("value", ["2", None, True])
def test_types_that_are_no_temperature(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^temperature: expected a number from 0.001 to 1000, got {value!r}$"):
        TemperatureScaled(torch.nn.Identity(), value)


def test_names_of_arguments_are_those_of_the_unet() -> None:
    """A run of a bundle compares them with those in its configuration."""
    assert inspect.signature(TemperatureUNet) == inspect.signature(UNet)


class TestEnsemble:
    def test_softmax_is_the_mean_of_those_of_the_members(self) -> None:
        torch.manual_seed(0)
        network, x = EnsembleUNet(**OPTIONS, members=3).eval(), torch.randn(2, 1, 16, 16)
        set_temperature(network.members[1], np.float32(2))  # acts before the mean
        mean = torch.stack([member(x).softmax(1) for member in network.members]).mean(0)
        torch.testing.assert_close(network(x).softmax(1), mean)
        set_temperature(network, 1.7)
        torch.testing.assert_close(network(x).softmax(1), (mean.log() / 1.7).softmax(1))
        assert find_temperature(network) is network.temperature

    def test_channels_of_sigmoids_are_not_averaged(self) -> None:
        """The softmax of one channel is 1 everywhere."""
        with pytest.raises(InputError, match=r"^out_channels: expected at least 2 classes, got 1$"):
            EnsembleUNet(**{**OPTIONS, "out_channels": 1}, members=2)

    def test_by_hand_where_exponentials_overflow(self) -> None:
        network = EnsembleUNet(**OPTIONS, members=2)
        logits = iter([torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])])
        for member in network.members:
            member.forward = lambda _: next(logits)  # type: ignore[method-assign]
        assert network(torch.zeros(1)).softmax(1).tolist() == [[0.5, 0.5]]

    def test_scripted_and_traced_ensembles_are_exact(self) -> None:
        torch.manual_seed(0)
        network, x = EnsembleUNet(**OPTIONS, members=2).eval(), torch.randn(1, 1, 16, 16)
        for exported in (torch.jit.script(network), torch.jit.trace(network, x)):
            torch.testing.assert_close(exported(x), network(x))

    def test_of_copies_is_the_network(self) -> None:
        torch.manual_seed(0)
        network, x = EnsembleUNet(**OPTIONS, members=2).eval(), torch.randn(1, 1, 16, 16)
        network.members[1].load_state_dict(network.members[0].state_dict())
        torch.testing.assert_close(network(x), network.members[0](x).log_softmax(1))

    def test_names_of_its_arguments_are_those_of_the_network(self) -> None:
        names = list(inspect.signature(EnsembleUNet).parameters)
        assert names == [*inspect.signature(UNet).parameters, "members"]

    @pytest.mark.parametrize("members", [1, 0, 2.0, "3", True])
    def test_fewer_than_two_members_are_an_error(self, members: Any) -> None:
        with pytest.raises(
            ValueError, match=re.escape(f"members: expected a whole number of at least 2, got {members!r}")
        ):
            EnsembleUNet(**OPTIONS, members=members)
