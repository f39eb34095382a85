"""Networks that carry a calibrator in their weights: whatever reads the weights gives calibrated
probabilities.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from monai.networks.nets import UNet

from calib_components.errors import InputError, check_count
from calib_components.posthoc.base import CARRIED, KINDS, Calibrator
from calib_components.posthoc.temperature import TemperatureScaling

REFERENCE = "reference"  # name of the buffer
TESTS = "tests"  # likewise: JSON as bytes, the labelled test scans by the name of their set
MEMBERS = "model.members."  # in the names of the weights of an ensemble, before a number
# Likewise: the region, the number of patients, what tells the weights, a fingerprint of the cases,
# and what the network had before, if these are not of its training
FITTED_ON = "fitted_on"
WEIGHTS, CASES, BASELINE = "weights", "cases", "baseline"
OF_THE_FIT = (REFERENCE, TESTS, FITTED_ON)  # another calibrator has others


class Calibrated(torch.nn.Module):
    """Mixin of networks that carry a calibrator: at first a temperature of 1, afterwards that of
    the weights they load.

    A state dict has its parameters beside those of the network; one without any loads as one that
    changes nothing. So are the `reference` of calibrated weights and its `tests`, see
    `calib_components.quality.Reference`.
    """

    __jit_unused_properties__ = ("temperature",)
    if TYPE_CHECKING:  # TorchScript reads annotations
        calibrator: Any

    @property
    def temperature(self) -> torch.Tensor:
        """The temperature, `()`, of a network that carries one."""
        return self.calibrator.temperature

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        carried = calibrator_in(state_dict, prefix) or type(self.calibrator)()
        set_calibrator(self, carried)
        for name, values in carried.state().items():
            state_dict[f"{prefix}{CARRIED}{name}"] = state_dict.pop(f"{prefix}{name}", values)
        device = next(iter(self.calibrator.state().values())).device
        for name in OF_THE_FIT:
            stored = state_dict.get(f"{prefix}{name}")
            if stored is not None:
                self.register_buffer(name, torch.zeros_like(stored, device=device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class TemperatureScaled(Calibrated):
    """A network whose logits are divided by a temperature, which is a part of its state dict.

    `softmax(logits / T)` is less confident for T > 1 and more confident for T < 1; the predicted
    class stays. Fit the temperature with `TemperatureScaling`. `set_calibrator` puts any calibrator
    in its place.

    Shape:
        - input, output: those of the network.

    Args:
        network: A network that returns logits as one tensor. In the state dict its names have the
            prefix `network.`.
        temperature: The temperature, from 0.001 to 1000.

    Raises:
        InputError: The temperature is out of its range.

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
        tensors = itertools.chain(network.parameters(), network.buffers())
        device = next((tensor.device for tensor in tensors), None)
        self.calibrator = TemperatureScaling().to(device)
        self.calibrator.set_state({"temperature": temperature})
        # A new module is in training, into which MONAI's `eval_mode` would then put an evaluated
        # network.
        self.training = self.calibrator.training = network.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.calibrator(self.network(x))


class Ensemble(torch.nn.Module):
    """Several networks whose probabilities are averaged, as one network: a deep ensemble.

    The output is the logarithm of the mean softmax of the members, so that its softmax is that
    mean. To calibrate it, wrap it in `TemperatureScaled`. Source: Lakshminarayanan et al., "Simple
    and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017.

    Shape:
        - input, output: those of the members; classes are axis 1 of the output.

    Args:
        networks: The members, at least 2, which return logits of two classes or more as one tensor.

    Raises:
        InputError: There are too few members.
        ValueError: When called: logits are of one class, whose softmax is 1 everywhere.
    """

    def __init__(self, networks: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        check_count("networks", len(networks), 2)
        self.members = torch.nn.ModuleList(networks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.tensor(-math.inf)  # logarithm of the sum
        for member in self.members:
            total = add_probabilities(total, member(x))
        return total - math.log(len(self.members))


def add_probabilities(total: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Add the softmax of the logits of a member to a sum of which both are the logarithm."""
    if not torch.jit.is_tracing() and logits.shape[1] < 2:
        raise ValueError("networks: an ensemble needs logits of at least two classes.")
    return total.logaddexp(logits.log_softmax(1))


class TemperatureUNet(Calibrated, UNet):
    """MONAI's `UNet` that carries a calibrator, at first a temperature of 1.

    Arguments and names in the state dict are those of `UNet`, whose weights load, and one name
    more, `temperature`. With the weights of an ensemble, which `calibrate.yaml` writes, the network
    becomes an `Ensemble` of such networks, with a calibrator each, and one of its own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calibrator = TemperatureScaling()
        self.calibrator.set_state({"temperature": 1.0})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.calibrator(self.model(x))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        start = f"{prefix}{MEMBERS}"
        members = {
            name.removeprefix(start).partition(".")[0]
            for name in state_dict
            if name.startswith(start)
        }
        if members and not isinstance(self.model, Ensemble):
            self.model = Ensemble([copy.deepcopy(self) for _ in members])
        super()._load_from_state_dict(state_dict, prefix, *args)


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside of what `torch.compile`, `DataParallel` or
    `DistributedDataParallel` made of it.
    """
    if isinstance(network, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return unwrapped(network.module)
    inner = getattr(network, "_orig_mod", None)  # of torch.compile
    return network if inner is None else unwrapped(inner)


def members_of(network: Any) -> list[torch.nn.Module]:
    """Return the members of a network that is an `Ensemble`, or one with a calibrator after it,
    scripted or not; none of others.
    """
    inner = unwrapped(network)
    for part in (inner, getattr(inner, "model", None), getattr(inner, "network", None)):
        if isinstance(part, Ensemble) or getattr(part, "original_name", "") == Ensemble.__name__:
            return [*cast(Ensemble, part).members.children()]
    return []


def find_calibrator(network: torch.nn.Module) -> Calibrator | None:
    """Return the calibrator that a network carries, also inside of what wraps it; None without
    one.
    """
    calibrator = getattr(unwrapped(network), "calibrator", None)
    return calibrator if isinstance(calibrator, Calibrator) else None


def find_reference(network: torch.nn.Module) -> torch.Tensor:
    """Return the reference in the weights of a network, scripted or not; an empty tensor without
    one.
    """
    reference = _find_buffer(network, REFERENCE)
    return torch.empty(0) if reference is None else reference


def find_tests(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the labelled test scans in the weights of a network, like its reference, by the name
    of their set.
    """
    stored = from_bytes(_find_buffer(network, TESTS))
    return {name: torch.tensor(values) for name, values in stored.items()}


def describe_calibration(network: torch.nn.Module) -> dict[str, Any] | None:
    """Return the name of the calibrator in the weights of a network, the region that it was fitted
    to, and the number of patients, 0 if it is not known; None if it changes nothing.
    """
    calibrator = find_calibrator(network)
    if calibrator is None:
        return None
    new = type(calibrator)().state()
    state = calibrator.state()
    # Of a new one, a number may stand for a parameter of each class
    if all((state[name].cpu() == new[name]).all() for name in new):
        return None
    fit = from_bytes(_find_buffer(network, FITTED_ON))
    region, patients = fit.get("region", "all"), fit.get("patients", 0)
    return {"calibrator": calibrator.name, "region": region, "patients": patients}


def to_bytes(data: Mapping[str, Any]) -> torch.Tensor:
    """Return JSON data as bytes, `(bytes,)`, for the weights."""
    return torch.tensor([*json.dumps(data).encode()], dtype=torch.uint8)


def from_bytes(stored: torch.Tensor | None) -> dict[str, Any]:
    """Inverse of `to_bytes`; empty for None."""
    return {} if stored is None else json.loads(bytes(stored.tolist()))


def _find_buffer(network: torch.nn.Module, name: str) -> torch.Tensor | None:
    return dict(unwrapped(network).named_buffers()).get(name)


def set_calibrator(network: torch.nn.Module, calibrator: Calibrator) -> None:
    """Put the parameters of a calibrator into a network; those of a new calibrator undo the
    calibration.

    The network loses its reference, and what is known of the fit of the calibrator before.

    Raises:
        InputError: The network carries no calibrator, or the calibrator has patients and is not
            fitted to them.
    """
    calibrator.check_fitted()
    inner, carried = unwrapped(network), find_calibrator(network)
    if carried is None:
        raise InputError(
            f"{type(inner).__name__} carries no calibrator. Use TemperatureUNet, or wrap it:"
            " TemperatureScaled(network)."
        )
    if type(carried) is not type(calibrator):
        device = next(carried.buffers()).device
        carried = inner.calibrator = type(calibrator)().to(device).train(carried.training)
    carried.set_state(calibrator.state())
    for name in OF_THE_FIT:
        inner.register_buffer(name, None)


def calibrator_in(weights: Mapping[str, torch.Tensor], prefix: str = "") -> Calibrator | None:
    """Return the calibrator in a state dict, whose names have a prefix; None if there is none."""
    for kind in KINDS.values():
        calibrator = kind()
        names = [*calibrator.state()]
        if all(f"{prefix}{name}" in weights for name in names):
            calibrator.set_state({name: weights[f"{prefix}{name}"] for name in names})
            return calibrator
    return None
