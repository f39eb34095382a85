"""A temperature for each voxel, from the probabilities around it: a small convolutional network.

`log T = log T0 + f(p)`, where T0 is one temperature of all voxels, `p = softmax(logits / T0)`, and
f has two layers of 8 convolutions of 3 x 3 (x 3) with ReLU and one of 1 x 1 (x 1). The weights of
the last layer start at 0, so that T is T0 then. They are trained by the negative log-likelihood
with Adam, and averaged over about an epoch. How many epochs, patients that are left out decide:
four networks are trained without a quarter of the patients each, and the number with the lowest NLL
of the quarters, in the mean, is that of the network of all patients.

Source: Ding et al., "Local Temperature Scaling for Probability Calibration", ICCV 2021. Theirs
sees logits and images; ours sees probabilities alone, so that saved predictions have all it needs.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from monai.utils import optional_import
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics.base import plain_tensor
from calib_components.posthoc.base import Array, Calibrator, Estimate, gathered
from calib_components.posthoc.temperature import TemperatureScaling, temperatures_of

FEWEST_PATIENTS = 15
FOLDS = 4
HIDDEN = 8  # channels
MOST_EPOCHS, PATIENCE = 40, 5
LEARNING_RATE = 3e-3
BLOCK = 64  # voxels along each axis of a part of a large case
MOST_NUMBERS = 2**20  # probabilities that are kept of a case
MOST_IN_EPOCH = 2**25  # that are trained on
SIZES = (3, 3, 1)  # of the kernels along each axis
LAYERS = [f"local_{kind}{layer}" for layer in range(len(SIZES)) for kind in ("weight", "bias")]
# Logits `(B, N, *S)` in half precision, and class indices `(B, 1, *S)`, of a part of a case
Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LocalTemperatureEstimate(Estimate):
    """A fitted local temperature.

    Attributes:
        temperature: That of all voxels, T0.
        epochs: Of the training; 0 if none lowered the NLL of patients that are left out, so that T0
            is the temperature of each voxel.
        nll_before, nll_after: Mean negative log-likelihood of the voxels without and with the local
            temperature, in nats.
        nll_left_out: The same of each patient with the network of the others.
        nll_temperature: The same with one temperature of the others.
        patients, voxels: Numbers of patients and voxels.
    """

    name = "local_temperature"
    temperature: float
    epochs: int
    nll_before: float
    nll_after: float
    nll_left_out: float
    nll_temperature: float
    patients: int
    voxels: int

    def summary(self) -> str:
        return f"around {self.temperature:.3f}, {self.epochs} epochs, fitted on {self.count}"

    def effect(self, by_prediction: bool = True) -> str:
        return (
            f"NLL of patients that are left out: {self.nll_left_out:.4f}, with one temperature"
            f" {self.nll_temperature:.4f}."
        )

    def warnings(self) -> list[str]:
        if self.epochs:
            return []
        return ["One temperature suits patients that are left out better: each voxel has it."]


class LocalTemperature(Calibrator):
    """Divides logits by a temperature that depends on the probabilities around a voxel; see
    `Calibrator` for its arguments and use.

    Predicted classes stay. The fit keeps a part of each case in half precision, at most 2 MB, and
    takes minutes. It is of slices if the logits are, `(B, N, H, W)`, or of volumes,
    `(B, N, H, W, D)`. It needs 15 patients. `to_dict` does not have what it needs.

    Raises:
        InputError: The region is not `all`, or channels are sigmoids. By `compute`, if there are
            fewer than 15 patients, or the cases are not of one number of dimensions.
    """

    name = "local_temperature"
    estimate = LocalTemperatureEstimate
    if TYPE_CHECKING:  # TorchScript reads annotations
        local_temperature: torch.Tensor
        local_weight0: torch.Tensor
        local_bias0: torch.Tensor
        local_weight1: torch.Tensor
        local_bias1: torch.Tensor
        local_weight2: torch.Tensor
        local_bias2: torch.Tensor

    def __init__(
        self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__(region, ignore_index, sigmoid)
        if self.region.name != "all":
            raise InputError("region: a local temperature is fitted to all voxels.")
        self._parts: dict[str, list[Part]] = {}  # of each patient
        self._left_out: dict[str, Calibrator] = {}
        self.register_buffer("local_temperature", torch.ones(()))
        for name in LAYERS:
            self.register_buffer(name, torch.zeros(0))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits / self.local_temperature
        if self.local_bias0.numel() == 0:
            return logits
        x = logits.softmax(1).to(self.local_weight0.dtype)
        x = _convolved(x, self.local_weight0, self.local_bias0).relu()
        x = _convolved(x, self.local_weight1, self.local_bias1).relu()
        log_temperature = _convolved(x, self.local_weight2, self.local_bias2)
        return logits / log_temperature.exp().to(logits.dtype)

    def update(self, logits: torch.Tensor, y: torch.Tensor, group: str | Sequence[str]) -> None:
        super().update(logits, y, group)
        label = y[:, :1] if y.shape[1] == 1 else y.argmax(1, keepdim=True)
        logits = plain_tensor(logits).detach().cpu().log_softmax(1).half()
        label = plain_tensor(label).cpu().short()
        if isinstance(group, str):
            self._add_parts({group: _parts_of(logits, label, group)})
            return
        for index, name in enumerate(group):
            case = slice(index, index + 1)
            self._add_parts({name: _parts_of(logits[case], label[case], name)})

    def add(self, other: Calibrator) -> None:
        super().add(other)
        self._add_parts(cast(LocalTemperature, other)._parts)

    def _add_parts(self, parts: Mapping[str, Sequence[Part]]) -> None:
        for name, of_patient in parts.items():
            self._parts.setdefault(name, []).extend(of_patient)

    def voxel_sums(
        self, logits: torch.Tensor, label: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the sums of `TemperatureScaling`, whose temperature the network starts with."""
        return TemperatureScaling.voxel_sums(logits, label)

    def solve(self, names: Sequence[str], rows: Array) -> LocalTemperatureEstimate:
        if len(names) < FEWEST_PATIENTS:
            raise InputError(
                f"A local temperature needs {FEWEST_PATIENTS} patients, got {len(names)}. Fit a"
                " temperature."
            )
        parts = self._gathered_parts(names)
        folds = [{*names[number::FOLDS]} for number in range(FOLDS)]
        trainings = [self._trained(names, rows, parts, fold) for fold in folds]
        curve: list[float] = []  # NLL of the folds after each epoch
        networks: list[list[Calibrator]] = []
        best = 0
        for epoch in _with_progress(range(MOST_EPOCHS + 1), self.name):
            networks.append([next(training) for training in trainings])
            curve.append(self._mean_nll(zip(networks[epoch], folds, strict=True), parts))
            best = int(np.argmin(curve))
            if epoch == best + PATIENCE:
                break
        self._left_out = {
            name: network
            for network, fold in zip(networks[best], folds, strict=True)
            for name in fold
        }
        whole = self._trained(names, rows, parts, ())
        self.set_state(next(itertools.islice(whole, best, None)).state())
        return LocalTemperatureEstimate(
            temperature=self.local_temperature.item(),
            epochs=best,
            nll_before=self._mean_nll([(LocalTemperature(), names)], parts),
            nll_after=self._mean_nll([(self, names)], parts),
            nll_left_out=curve[best],
            nll_temperature=curve[0],
            patients=len(names),
            voxels=int(rows[:, 0, 0].sum()),
        )

    def states_without(self, names: Sequence[str], rows: Array) -> list[dict[str, torch.Tensor]]:
        return [self._left_out[name].state() for name in names]

    def _gathered_parts(self, names: Sequence[str]) -> dict[str, list[Part]]:
        """Return the parts of all processes."""
        whole = type(self)()
        for parts in gathered(self._parts):
            whole._add_parts(parts)
        if not all(whole._parts.get(name) for name in names):
            raise InputError("A local temperature needs the cases, not what other fits keep.")
        return whole._parts

    def _trained(
        self,
        names: Sequence[str],
        rows: Array,
        parts: Mapping[str, Sequence[Part]],
        without: Collection[str],
    ) -> Iterator[Calibrator]:
        """Yield the calibrator of all patients but some before the training, and after each
        epoch.
        """
        is_fitted = np.array([name not in without for name in names])
        temperature = float(temperatures_of(rows[is_fitted, 0].sum(0)))
        chosen = [part for name in names if name not in without for part in parts[name]]
        state = first_state(chosen[0][0], temperature)
        network = self.with_state(state)
        yield self.with_state(state)
        weights = {name: network.state()[name].requires_grad_() for name in LAYERS}
        optimizer = torch.optim.Adam([*weights.values()], LEARNING_RATE)
        means = {name: values.detach().clone() for name, values in weights.items()}
        generator = torch.Generator().manual_seed(0)
        size = sum(label.numel() for _, label in chosen) / len(chosen)
        steps = math.ceil(MOST_IN_EPOCH / (size * chosen[0][0].shape[1]))
        while True:
            for index in torch.randperm(len(chosen), generator=generator)[:steps]:
                optimizer.zero_grad()
                loss, _ = self._nll(network, chosen[index])
                (loss / size).backward()
                optimizer.step()
                for name, values in weights.items():
                    means[name].lerp_(values.detach(), 1 / min(steps, len(chosen)))
            yield self.with_state({**state, **means})

    def _mean_nll(
        self,
        networks: Iterable[tuple[Calibrator, Iterable[str]]],
        parts: Mapping[str, Sequence[Part]],
    ) -> float:
        """Return the mean NLL of the voxels of patients, each with a calibrator."""
        with torch.inference_mode():
            sums = [
                self._nll(network, part)
                for network, names in networks
                for name in names
                for part in parts[name]
            ]
        total, voxels = torch.tensor(sums, dtype=torch.float64).sum(0).tolist()
        return total / voxels

    def _nll(self, network: Calibrator, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the NLL of a part, and its number of voxels."""
        logits, label = part[0].float(), part[1][:, 0].long()
        ignored = -100 if self.ignore_index is None else self.ignore_index
        nll = F.cross_entropy(network(logits), label, reduction="sum", ignore_index=ignored)
        return nll, (label != ignored).sum()


def _with_progress(epochs: Iterable[int], name: str) -> Iterable[int]:
    """Return epochs with a progress bar on terminals, if tqdm is installed."""
    tqdm, is_installed = optional_import("tqdm", name="tqdm")
    return tqdm(epochs, desc=name, disable=None) if is_installed else epochs


def _convolved(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return a convolution that keeps the shape `(B, C, H, W)` or `(B, C, H, W, D)`."""
    padding = weight.shape[-1] // 2
    if weight.ndim == 4:
        return torch.conv2d(x, weight, bias, padding=padding)
    return torch.conv3d(x, weight, bias, padding=padding)


def first_state(logits: torch.Tensor, temperature: float) -> dict[str, Any]:
    """Return the parameters before the training, for logits `(B, N, *S)`."""
    dims = logits.ndim - 2
    channels = [logits.shape[1], *[HIDDEN] * (len(SIZES) - 1), 1]
    state: dict[str, Any] = {"local_temperature": temperature}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer, size in enumerate(SIZES):
            kind = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
            made = kind(channels[layer], channels[layer + 1], size)
            state |= {f"local_weight{layer}": made.weight, f"local_bias{layer}": made.bias}
    last = len(SIZES) - 1
    for name in (f"local_weight{last}", f"local_bias{last}"):
        state[name] = torch.zeros_like(state[name])
    return {name: torch.as_tensor(each).detach() for name, each in state.items()}


def _parts_of(logits: torch.Tensor, label: torch.Tensor, name: str) -> list[Part]:
    """Return a case `(B, N, *S)` as one part, or some blocks of it if it is large."""
    if logits.numel() <= MOST_NUMBERS:
        return [(logits, label)]
    blocks = [(logits, label)]
    for axis in (0, *range(2, logits.ndim)):
        step = 1 if axis == 0 else BLOCK
        blocks = [
            pair
            for block in blocks
            for pair in zip(*(tensor.split(step, axis) for tensor in block), strict=True)
        ]
    number = MOST_NUMBERS * len(blocks) // logits.numel()
    return [(p.clone(), y.clone()) for p, y in _drawn(blocks, max(1, number), name)]


def _drawn(parts: Sequence[Part], number: int, name: str) -> list[Part]:
    """Return some parts of a patient, the same each time."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return [parts[index] for index in torch.randperm(len(parts), generator=generator)[:number]]
