"""The interface of calibrators: fitted to logits patient by patient, applied to logits, stored as a
few tensors.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from calib_components.errors import InputError, warn_once
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels
from calib_components.probabilities import are_probabilities

Array = NDArray[np.float64]
KINDS: dict[str, type[Calibrator]] = {}  # every calibrator by its name
# Names in the weights of what version 0.4 fitted, and this one does not know
RETIRED = ("class_temperature", "class_bias")
# Prefix of its parameters in a network, which the names in a state dict lack
CARRIED = "calibrator."


class _ProbabilityCheck:
    """Whether what was given as logits are probabilities, from all voxels that count."""

    def __init__(self) -> None:
        self.are_from_0_to_1 = True
        self.sum_to_1: bool | None = None  # until there is a voxel outside of padding

    def add(self, values: torch.Tensor) -> None:
        """Add logits `(N, voxels)`."""
        if self.are_from_0_to_1:
            self.are_from_0_to_1 = bool(are_probabilities(values))
            values = values[:, values.any(0)]  # the output of a softmax may be 0 in padding
            if values.numel():
                self.sum_to_1 = self.sum_to_1 is not False and bool(are_probabilities(values, 0))

    def refuse(self) -> None:
        """Raise `InputError` for the output of a softmax; warn of what may be that of sigmoids."""
        if not self.are_from_0_to_1 or self.sum_to_1 is None:
            return
        if self.sum_to_1:
            raise InputError(
                "logits are from 0 to 1 and sum to 1 in each voxel: they are probabilities p. Pass"
                " p.double().clamp_min(1e-12).log()."
            )
        warn_once(
            "All logits are from 0 to 1. If they are probabilities p of sigmoids, pass"
            " p.double().logit(1e-12)."
        )


def gathered(value: Any) -> list[Any]:
    """Return the value of each process; all have to call it."""
    parts = [value]
    if dist.is_available() and dist.is_initialized():
        parts *= dist.get_world_size()
        dist.all_gather_object(parts, value)
    return parts


class Estimate(ABC):
    """The report of a fit: a frozen dataclass with these fields among others, and texts for
    readers.
    """

    name: ClassVar[str]  # of its calibrator
    nll_before: float
    nll_after: float
    patients: int
    voxels: int

    def __repr__(self) -> str:
        """The type and the summary: the fields are long."""
        return f"{type(self).__name__}({self.summary()})"

    @property
    def count(self) -> str:
        """The number of patients as text."""
        return "1 patient" if self.patients == 1 else f"{self.patients} patients"

    @abstractmethod
    def summary(self) -> str:
        """Return what was fitted and how uncertain it is, as one line."""

    @abstractmethod
    def effect(self, by_prediction: bool = True) -> str:
        """Return what the fit does to probabilities and, with `Region.by_prediction`, says of the
        network.
        """

    @abstractmethod
    def warnings(self) -> list[str]:
        """Return what a user should know before relying on the fit, one sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as data that JSON can store; NaN becomes None."""
        text = json.dumps(asdict(self))  # type: ignore[call-overload]  # a subclass is a dataclass
        return json.loads(text, parse_constant=lambda _: None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Inverse of `to_dict`; fields that other versions of this package have are left out."""
        names = {field.name for field in fields(cls)} & {*values}  # type: ignore[arg-type]
        text = json.dumps({name: values[name] for name in names})
        return cls(**json.loads(text, object_hook=_nan_for_none))


def _nan_for_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}


class Calibrator(torch.nn.Module, ABC):
    """Base class of calibrators: `update` with each batch, then `compute`; applied by calling it on
    logits.

    Its parameters are buffers; `set_calibrator` puts them into a network, whose weights and exports
    then carry them. Those of a new calibrator change nothing, and applying it is an error until
    `compute`, `set_state` or `load_state_dict` gives it others. What is kept of a patient does not
    grow with its voxels. Across several processes, `compute` puts the patients of all together, so
    every process must call it. A subclass has a `name`, the type of its `estimate`, buffers,
    `forward`, `collect`, `count_voxels`, `solve` and `solve_without`.

    Args:
        region: The voxels to fit, see `calib_components.metrics.regions`; predictions are those
            before calibration. Fitted to a region chosen by the ground truth, probabilities are not
            calibrated.
        ignore_index: Ground-truth value of voxels to leave out; their logits are not checked.
        sigmoid: Whether each channel is a binary problem of its own, as one channel always is.

    Raises:
        InputError: The region is unknown, or there is none of sigmoids. When called: it is not
            fitted.
    """

    _is_fitted = True  # also of calibrators that version 0.4 pickled, which lack the attribute
    name: ClassVar[str]  # `NAME.json` is its estimate
    estimate: ClassVar[type[Estimate]]
    takes_soft_labels: ClassVar[bool] = False  # then `collect` heeds the weights of voxels
    takes_sigmoids: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            KINDS[cls.name] = cls

    def __init__(
        self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__()
        if sigmoid and not self.takes_sigmoids:
            raise InputError(f"sigmoid: there is no {self.name} of sigmoids. Fit a temperature.")
        self.region, self.ignore_index, self.sigmoid = Region.parse(region), ignore_index, sigmoid
        self._patients: dict[str, Any] = {}  # what was collected of each
        self._is_fitted = False  # until compute, set_state or load_state_dict

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._is_fitted:
            raise InputError(
                f"{type(self).__name__} is not fitted. Call update with the cases of each patient,"
                " then compute; or set_state."
            )
        return super().__call__(logits)

    def check_fitted(self) -> None:
        """Raise `InputError` if patients were added, and nothing is fitted to them yet."""
        if self._patients and not self._is_fitted:
            raise InputError(f"{type(self).__name__} is not fitted. Call compute first.")

    @abstractmethod
    def collect(self, voxels: Voxels, patient: str) -> Any:
        """Return what to keep of some voxels of a patient, of which those of the region count.

        What is kept of two parts is their sum, `+`; `*` weights it.
        """

    @abstractmethod
    def count_voxels(self, part: Any) -> float:
        """Return how many voxels of the region were collected of a patient."""

    @abstractmethod
    def solve(self, patients: Mapping[str, Any]) -> Estimate:
        """Set the parameters that fit what was collected of patients; return the estimate.

        Raises:
            InputError: It determines no parameters.
        """

    @abstractmethod
    def solve_without(self, patients: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield for each patient the parameters that fit the others, after `solve`."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the parameters by their names."""
        return dict(self.named_buffers())

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Replace the parameters, in place where the shape stays, by a tensor or number for each
        name in `state()`.
        """
        self._is_fitted = True
        for name, buffer in self.state().items():
            values = torch.as_tensor(state[name]).to(buffer)
            if values.shape == buffer.shape:
                buffer.copy_(values)
            else:  # such as one value for each class
                self.register_buffer(name, values.clone())

    def update(self, logits: torch.Tensor, y: torch.Tensor, group: str | Sequence[str]) -> None:
        """Add the voxels of a batch to the fit.

        Shape:
            - logits: `(B, N, *S)`, with N classes, or channels of sigmoids.
            - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids, `(B, N, *S)`, 0 or
              1. A temperature also takes probabilities, such as shares of raters, `(B, N, *S)`.

        Args:
            logits: Output of a network before softmax or sigmoid, of any floating-point type.
            y: Ground truth, of any type that holds whole numbers.
            group: Name of the patient, or of those of the B cases, which may be spread over batches
                and processes.

        Raises:
            InputError: Shapes do not match, logits are NaN, infinite or probabilities, `y` holds
                invalid labels, or there are not as many names as cases. Nothing is added then.
        """
        logits, y = check_tensors(logits, y, self.sigmoid, "logits")
        names = [group] * len(logits) if isinstance(group, str) else list(group)
        if len(names) != len(logits):
            raise InputError(
                f"group has {len(names)} names for {len(logits)} cases. Give one name for each"
                " case."
            )
        if logits.shape[1] == 1 and not self.takes_sigmoids:
            raise InputError(
                f"logits: one channel is a sigmoid, which has no {self.name}. Fit a temperature."
            )
        check = _ProbabilityCheck()
        collected: dict[str, Any] = {}
        for voxels in read_voxels(
            logits,
            y,
            sigmoid=self.sigmoid,
            ignore_index=self.ignore_index,
            logits=True,
            soft=self.takes_soft_labels,
        ):
            check.add(voxels.values if voxels.volume.channel is None else voxels.values[1:])
            name = names[voxels.case]
            part = self.collect(voxels, name)
            collected[name] = collected[name] + part if name in collected else part
        check.refuse()
        self._add(collected)

    def add(self, other: Calibrator) -> None:
        """Add the patients of another fit, such as of another process; those of the same name are
        one.

        Raises:
            InputError: The other fit has another region, `ignore_index` or `sigmoid`. Nothing is
                added then.
        """
        if self._options() != other._options():
            raise InputError(
                f"Fits with different options cannot be added: {self._options()} and"
                f" {other._options()}."
            )
        self._add(other._patients)

    def scale(self, factor: float) -> None:
        """Multiply what was added so far, such as by 1 / R for the labels of R raters."""
        self._patients = {name: part * factor for name, part in self._patients.items()}

    def compute(self) -> Any:
        """Fit the parameters to all voxels added so far, in all processes, and return the
        `Estimate`.

        Raises:
            InputError: No voxel has been added, or they do not determine the parameters.
        """
        estimate = self.solve(self._gathered())
        self._is_fitted = True
        return estimate

    def left_out(self) -> dict[str, Calibrator]:
        """Return for each patient with a voxel in the region a calibrator that is fitted to the
        others, after `compute`; none of one patient alone.
        """
        patients = {
            name: part for name, part in self._gathered().items() if self.count_voxels(part) > 0
        }
        if len(patients) < 2:
            return {}
        return dict(zip(patients, map(self.with_state, self.solve_without(patients)), strict=True))

    def with_state(self, state: Mapping[str, Any]) -> Calibrator:
        """Return another calibrator of the same options, with these parameters and no patients."""
        other = type(self)(*self._options())
        other.set_state(state)
        return other

    def no_voxels(self) -> InputError:
        """Return the error for no voxels to fit."""
        return InputError(
            f"There are no voxels in region {self.region.name!r} to fit a {self.name} to. Call"
            " update with labelled cases first."
        )

    def _options(self) -> tuple[Region, int | None, bool]:
        return self.region, self.ignore_index, self.sigmoid

    def _add(self, patients: Mapping[str, Any]) -> None:
        for name, part in patients.items():
            known = self._patients
            known[name] = known[name] + part if name in known else part

    def _gathered(self) -> dict[str, Any]:
        """Return what was collected of the patients of all processes, in the order of their
        names.
        """
        whole = type(self)(*self._options())
        for patients in gathered(self._patients):
            whole._add(patients)
        return dict(sorted(whole._patients.items()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = {name: state_dict.get(f"{prefix}{name}") for name in self.state()}
        if all(values is not None for values in stored.values()):
            self.set_state(stored)  # also of other shapes, such as one value for each class
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        # In the weights of a network, the parameters stand beside those of the network.
        super()._save_to_state_dict(destination, prefix.removesuffix(CARRIED), keep_vars)
