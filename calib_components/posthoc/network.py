"""Networks that carry a temperature in their weights: what reads the weights gives calibrated probabilities.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
from functools import wraps
from typing import Any

import torch
from monai.networks.nets import UNet

from calib_components.errors import InputError

__all__ = ["EnsembleUNet", "TemperatureScaled", "TemperatureUNet", "find_temperature", "set_temperature"]

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.001, 1000  # further out, logits overflow or vanish


class _WithTemperature(torch.nn.Module):
    """A module with the buffer `temperature`, a scalar; state dicts that lack it load as a temperature of 1."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}temperature", torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args)


class TemperatureScaled(_WithTemperature):
    """A network whose logits are divided by a temperature, which is a part of its state dict.

    `softmax(logits / T)` is less confident for T > 1 and more confident for T < 1; the predicted class stays. Fit the
    temperature with `TemperatureScaling`.

    Shape:
        - input, output: those of the network.

    Args:
        network: A network that returns logits as one tensor. Its own state dict is a part of this one's, each name with
            the prefix `network.`. The temperature is on its device, and its mode, training or evaluation, stays.
        temperature: The temperature, from 0.001 to 1000.

    Raises:
        TypeError: The temperature is not a number.
        InputError: The temperature is out of its range; or, when called, the network returns no tensor.

    Examples:
        >>> import torch
        >>> from calib_components.posthoc import TemperatureScaled
        >>> network = TemperatureScaled(torch.nn.Identity(), temperature=2.0)
        >>> network(torch.tensor([[4.0, 2.0]]))
        tensor([[2., 1.]])
        >>> network.state_dict()["temperature"]
        tensor(2.)
    """

    def __init__(self, network: torch.nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        own = next(itertools.chain(network.parameters(), network.buffers()), None)
        self.register_buffer("temperature", torch.ones((), device=None if own is None else own.device))
        set_temperature(self, temperature)
        # A new module is in training, and what restores the mode of a network, as MONAI's `eval_mode`, would then put
        # an evaluated one into training.
        self.training = network.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)
        if not torch.jit.is_scripting() and not isinstance(logits, torch.Tensor):
            raise InputError(
                f"network: expected one tensor of logits, got {type(logits).__name__}; wrap a module that returns the "
                "full-size output alone"
            )
        return logits / self.temperature


class TemperatureUNet(_WithTemperature, UNet):
    """MONAI's `UNet` whose logits are divided by a temperature, as `TemperatureScaled` does.

    Arguments and names in the state dict are those of `monai.networks.nets.UNet`, and one name more, `temperature`.
    Weights of a `UNet` load as a temperature of 1.

    Examples:
        >>> from monai.networks.nets import UNet
        >>> from calib_components.posthoc import TemperatureUNet
        >>> options = dict(spatial_dims=2, in_channels=1, out_channels=4, channels=(8, 16), strides=(2,))
        >>> network = TemperatureUNet(**options)
        >>> network.load_state_dict(UNet(**options).state_dict())
        <All keys matched successfully>
        >>> network.temperature
        tensor(1.)
    """

    @wraps(UNet.__init__)  # type: ignore[misc]  # with the names of its arguments, which the run of a bundle checks
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) / self.temperature


class EnsembleUNet(_WithTemperature):
    """Several U-Nets whose probabilities are averaged, as one network: a deep ensemble.

    The output is the logarithm of the mean softmax of the members, divided by a temperature, so that its softmax, at a
    temperature of 1, is that mean. The members have temperatures of their own, which act before the mean. Source:
    Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017.

    Shape:
        - input, output: those of the members; classes are axis 1 of the output.

    Args:
        args: Arguments of `TemperatureUNet`, for each member.
        members: Number of members. `scripts/join_weights.py` joins the weights of as many networks to those of this
            one, in which the names of the first have the prefix `members.0.`.
        options: Further arguments of `TemperatureUNet`.

    Raises:
        InputError: There are fewer than two members, or two classes: channels with a sigmoid each are not averaged.

    Examples:
        >>> import torch
        >>> from calib_components.posthoc import EnsembleUNet
        >>> options = dict(spatial_dims=2, in_channels=1, out_channels=4, channels=(8, 16), strides=(2,))
        >>> network, image = EnsembleUNet(**options, members=2).eval(), torch.rand(1, 1, 8, 8)
        >>> mean = sum(member(image).softmax(1) for member in network.members) / 2
        >>> torch.allclose(network(image).softmax(1), mean)
        True
    """

    def __init__(self, *args: Any, members: int, **options: Any) -> None:
        super().__init__()
        if type(members) is not int or members < 2:
            raise InputError(f"members: expected a whole number of at least 2, got {members!r}")
        networks = [TemperatureUNet(*args, **options) for _ in range(members)]
        if networks[0].out_channels < 2:  # a softmax of one channel is 1 everywhere
            raise InputError(f"out_channels: expected at least 2 classes, got {networks[0].out_channels}")
        self.members = torch.nn.ModuleList(networks)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.members[0](x).log_softmax(1)
        for number, member in enumerate(self.members):  # TorchScript cannot begin a loop at the second
            if number > 0:
                logits = logits.logaddexp(member(x).log_softmax(1))
        return (logits - math.log(len(self.members))) / self.temperature


# The names of its arguments, which the run of a bundle checks.
EnsembleUNet.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *inspect.signature(TemperatureUNet.__init__).parameters.values(),
        inspect.Parameter("members", inspect.Parameter.KEYWORD_ONLY, annotation=int),
    ]
)


EXPORTED = [network.__name__ for network in (TemperatureScaled, TemperatureUNet, EnsembleUNet)]


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside of what `torch.compile`, `DataParallel` or `DistributedDataParallel` made of it."""
    while True:
        if isinstance(network, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(inner := getattr(network, "_orig_mod", None), torch.nn.Module):  # of torch.compile
            network = inner
        else:
            return network


def find_temperature(network: torch.nn.Module) -> torch.Tensor | None:
    """Return the temperature of a network, the buffer itself, whose value changes with the weights; None without one.

    A network that moves to another device or type gets a new buffer: look for it afterwards.

    Args:
        network: A network of this module, scripted or traced or not, or what `torch.compile`, `DataParallel` or
            `DistributedDataParallel` made of it. A buffer of that name in other networks is something else.
    """
    network = unwrapped(network)
    exported = isinstance(network, torch.jit.ScriptModule) and network.original_name in EXPORTED
    if not isinstance(network, _WithTemperature) and not exported:
        return None
    found = dict(network.named_buffers(recurse=False)).get("temperature")
    return found if found is not None and found.ndim == 0 else None


def set_temperature(network: torch.nn.Module, temperature: float) -> None:
    """Set the temperature of a network.

    Args:
        network: A network with a temperature, see `find_temperature`.
        temperature: The temperature, from 0.001 to 1000.

    Raises:
        TypeError: The network has no temperature, or the temperature is not a number.
        InputError: The temperature is out of its range.
    """
    own = find_temperature(network)
    if own is None:
        raise TypeError(
            f"network: expected one with a temperature, such as TemperatureUNet or TemperatureScaled(network), got "
            f"{type(network).__name__}"
        )
    expected = f"expected a number from {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}"
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real):
        raise TypeError(f"temperature: {expected}, got {temperature!r}")
    if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise InputError(f"temperature: {expected}, got {temperature}")
    own.fill_(temperature)
