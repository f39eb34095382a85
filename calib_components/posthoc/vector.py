"""A scale and a bias for each class, fitted to a sample of voxels.

The negative log-likelihood of `softmax(w l + b)` is convex in the scales `w` and the biases `b`.
It is minimised over at most 20,000 voxels of each patient, fewer of many patients or classes,
drawn from a fixed seed: half of them where the network or the label has foreground. Each counts for
the voxels that it was drawn from, so the mean is that of all.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics.voxels import Voxels
from calib_components.posthoc.base import Array, Calibrator, Estimate

MOST_VOXELS = 10_000  # of foreground, and of background, that are kept of a patient
MOST_LOGITS = 40_000_000  # that are kept of all patients
MOST_STEPS = 1000
MOST_FOLDS = 8  # in which patients are left out
FEW_PATIENTS = 5  # with fewer, scales and biases are not advised
STEEP = 1e-4  # slope of the NLL that is not its minimum


@dataclass(frozen=True, repr=False)
class VectorEstimate(Estimate):
    """Fitted scales and biases, and how well they suit other patients.

    Attributes:
        parameters: Each scale and bias by its name.
        nll_before, nll_after: Mean negative log-likelihood of the voxels without and with them, in
            nats.
        changed: Share of the voxels whose most probable class is another one.
        patients, voxels: Numbers of patients and voxels.
    """

    name = "vector"
    parameters: dict[str, float]
    nll_before: float
    nll_after: float
    changed: float
    patients: int
    voxels: int

    def summary(self) -> str:
        texts = (f"{name} {value:.2f}" for name, value in self.parameters.items())
        return f"{', '.join(texts)}, fitted on {self.count}"

    def effect(self, by_prediction: bool = True) -> str:
        return f"The label of {self.changed:.3%} of the voxels changes."

    def warnings(self) -> list[str]:
        few = [f"Fitted on {self.count}: label more."] if self.patients < FEW_PATIENTS else []
        return few + [
            f"The {name} is negative: the lower its logit, the more probable is the class. Check"
            " that channels and labels are in the same order."
            for name, value in self.parameters.items()
            if not name.startswith("bias") and value < 0
        ]


@dataclass(frozen=True, eq=False)
class Sample:
    """Some of the voxels of a patient.

    Attributes:
        logits: `(N, voxels)`, float32.
        label: Class indices `(voxels,)`.
        is_foreground: Whether the network or the label has foreground, `(voxels,)`.
        keys: Random numbers `(voxels,)`: of all voxels, those with the smallest are kept.
        counts: Number of all voxels of background and of foreground, `(2,)`, float64.
    """

    logits: NDArray[np.float32]
    label: NDArray[np.int64]
    is_foreground: NDArray[np.bool_]
    keys: Array
    counts: Array

    def __add__(self, other: Sample) -> Sample:
        logits = np.concatenate([self.logits, other.logits], 1)
        label, is_foreground, keys = (
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("label", "is_foreground", "keys")
        )
        return Sample(logits, label, is_foreground, keys, self.counts + other.counts).reduced(
            MOST_VOXELS
        )

    def reduced(self, most: int) -> Sample:
        """Return the voxels of background and of foreground with the smallest keys, at most so many
        of each.
        """
        kept = []
        for kind in (False, True):
            index = np.flatnonzero(self.is_foreground == kind)
            kept.append(index[np.argsort(self.keys[index], kind="stable")[:most]])
        chosen = np.sort(np.concatenate(kept))
        return Sample(
            self.logits[:, chosen],
            self.label[chosen],
            self.is_foreground[chosen],
            self.keys[chosen],
            self.counts,
        )

    def __mul__(self, factor: float) -> Sample:
        return replace(self, counts=self.counts * factor)

    @property
    def weight(self) -> Array:
        """How many voxels each stands for, `(voxels,)`."""
        kept = np.bincount(self.is_foreground.astype(int), minlength=2)
        return (self.counts / np.maximum(kept, 1))[self.is_foreground.astype(int)]


class _Fit:
    """The minimum of the mean NLL over the samples of patients."""

    def __init__(self, samples: Sequence[Sample], is_shared: bool) -> None:
        self.is_shared = is_shared  # all classes have one scale, and the background no bias
        self.logits = torch.from_numpy(
            np.concatenate([each.logits for each in samples], 1)
        ).double()
        self.label = torch.from_numpy(np.concatenate([each.label for each in samples]))
        self.weight = torch.from_numpy(np.concatenate([each.weight for each in samples]))
        sizes = [len(each.label) for each in samples]
        self.patient = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(sizes))
        classes = len(self.logits)
        self.scales, biases = (1, classes - 1) if is_shared else (classes, classes)
        self.start = np.repeat([1.0, 0.0], [self.scales, biases])
        # The parameters are those of logits less their mean and of spread 1: gradients are alike
        self.center = self.logits.mean(1)
        self.spread = float((self.logits - self.center[:, None]).std()) or 1.0

    def split(self, parameters: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scales, `(N,)` or `(1,)`, and the biases, `(N,)`."""
        values = torch.as_tensor(parameters)
        scales, shifts = values[: self.scales] / self.spread, values[self.scales :]
        if self.is_shared:
            shifts = F.pad(shifts, (1, 0))
        shifts = shifts - scales * self.center
        # Equal biases change nothing
        return scales, shifts - (shifts[0] if self.is_shared else shifts.mean())

    def calibrated(self, parameters: Any) -> torch.Tensor:
        """Return the calibrated logits, `(N, voxels)`."""
        scales, shifts = self.split(parameters)
        return self.logits * scales[:, None] + shifts[:, None]

    def nll(self, logits: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the mean NLL of logits `(N, voxels)` by the weight of voxels."""
        losses = F.cross_entropy(logits.T, self.label, reduction="none")
        return (losses * weight).sum() / weight.sum()

    def minimum(self, start: Array, weight: torch.Tensor) -> Array:
        """Return the parameters with the lowest NLL."""
        # Where nearly all voxels are background, its changes are small, too
        unit = self.nll(self.logits, weight).clamp(1e-12, 1)

        def value_and_gradient(values: Array) -> tuple[float, Array]:
            parameters = torch.tensor(values, requires_grad=True)
            nll = self.nll(self.calibrated(parameters), weight) / unit
            nll.backward()
            return nll.item(), parameters.grad.numpy()  # type: ignore[union-attr]

        options = {"maxiter": MOST_STEPS, "ftol": 1e-12, "gtol": 1e-7}
        found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
        is_wrong = self.calibrated(found.x).argmax(0) != self.label
        if np.abs(found.jac).max() > STEEP or not (is_wrong & (weight > 0)).any():
            raise InputError(
                "The fit of scales and biases did not converge: the classes may be separable, as"
                " where labels are those of the network. Check them, or fit a temperature."
            )
        if self.is_shared and self.split(found.x)[0] <= 0:
            raise InputError(
                "The fitted temperature is not positive: the lower a logit, the more probable is"
                " its class. Check that the labels are those of these predictions."
            )
        return found.x


class VectorScaling(Calibrator):
    """Multiplies the logits of each class by a scale and adds a bias; see `Calibrator` for its
    arguments. Labels may change.

    Raises:
        InputError: Channels are sigmoids. By `compute`, if a class is no voxel's label, or the fit
            does not converge, as where the classes are separable.

    Examples:
        >>> import torch
        >>> from calib_components.posthoc import ClassBias
        >>> fit = ClassBias()
        >>> logits = torch.tensor([[[4.0, 4.0, 4.0, 2.0], [0.0, 1.0, 3.0, 0.0]]])  # 4 voxels
        >>> fit.update(logits, torch.tensor([[[0, 1, 1, 0]]]), group="patient 1")
        >>> estimate = fit.compute()
        >>> p = fit(logits).softmax(1)[0, 1]
        >>> round(p.mean().item(), 3)  # of class 1: half of the voxels
        0.5
    """

    name = "vector"
    estimate: ClassVar[type[VectorEstimate]] = VectorEstimate
    _is_shared: ClassVar[bool] = False

    def __init__(
        self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__(region, ignore_index, sigmoid)
        self._most = MOST_VOXELS  # that are kept of each kind of a patient
        self.register_buffer(f"{self.name}_scale", torch.ones(1))
        self.register_buffer(f"{self.name}_shift", torch.zeros(1))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        scaled = logits.movedim(1, -1) * self.vector_scale + self.vector_shift  # type: ignore[operator]
        return scaled.movedim(-1, 1)

    def collect(self, voxels: Voxels, patient: str) -> Sample:
        """Return a sample of the voxels of the region."""
        inside = self.region.select(voxels)
        is_foreground = (inside.predicted != 0) | (inside.label != 0)
        flags = is_foreground.cpu().numpy()
        generator = np.random.default_rng((zlib.crc32(patient.encode()), int(voxels.index[0])))
        return Sample(
            inside.values.float().cpu().numpy(),
            inside.label.cpu().numpy(),
            flags,
            generator.random(len(flags)),
            np.array([(~flags).sum(), flags.sum()], float),
        ).reduced(MOST_VOXELS)

    def _add(self, patients: Mapping[str, Sample]) -> None:
        super()._add(patients)
        if not self._patients:
            return
        classes = len(next(iter(self._patients.values())).logits)
        most, before = MOST_VOXELS, self._most
        # By halves, so that all patients are reduced rarely
        while most > 1 and 2 * most * classes * len(self._patients) > MOST_LOGITS:
            most //= 2
        self._most = min(most, before)
        if self._most < MOST_VOXELS:
            for name in self._patients if self._most < before else patients:
                self._patients[name] = self._patients[name].reduced(self._most)

    def count_voxels(self, part: Sample) -> float:
        return len(part.label)

    def solve(self, patients: Mapping[str, Sample]) -> VectorEstimate:
        fit = self._fit(patients)
        parameters = fit.minimum(fit.start, fit.weight)
        scales, shifts = fit.split(parameters)
        self.set_state(self._state(scales, shifts))
        calibrated = fit.calibrated(parameters)
        changed = fit.logits.argmax(0) != calibrated.argmax(0)
        return self.estimate(
            self._named(scales.tolist(), shifts.tolist()),
            nll_before=fit.nll(fit.logits, fit.weight).item(),
            nll_after=fit.nll(calibrated, fit.weight).item(),
            changed=float((changed * fit.weight).sum() / fit.weight.sum()),
            patients=len(patients),
            voxels=round(fit.weight.sum().item()),
        )

    def solve_without(self, patients: Mapping[str, Sample]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the parameters that fit the patients of the other folds, of at most eight."""
        fit = self._fit(patients)
        start = fit.minimum(fit.start, fit.weight)
        folds = min(len(patients), MOST_FOLDS)
        states = []
        for fold in range(folds):
            weight = fit.weight * (fit.patient % folds != fold)
            self._check_classes(fit, weight, "but in patients that are left out together")
            parameters = fit.minimum(start, weight)
            states.append(self._state(*fit.split(parameters)))
        for number in range(len(patients)):
            yield states[number % folds]

    def _fit(self, patients: Mapping[str, Sample]) -> _Fit:
        samples = [*patients.values()]
        if not sum(len(each.label) for each in samples):
            raise self.no_voxels()
        fit = _Fit(samples, self._is_shared)
        self._check_classes(fit, fit.weight)
        return fit

    def _check_classes(self, fit: _Fit, weight: torch.Tensor, where: str = "") -> None:
        """Raise `InputError` if a class is the label of no voxel that has a weight."""
        for number in range(len(fit.logits)):
            if not ((fit.label == number) & (weight > 0)).any():
                place = f" {where}" if where else ""
                raise InputError(
                    f"No voxel is labelled as class {number}{place}, so it has no {self.name}. Fit"
                    " a temperature."
                )

    def _state(self, scales: torch.Tensor, shifts: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"{self.name}_scale": scales, f"{self.name}_shift": shifts}

    def _named(self, scales: Sequence[float], shifts: Sequence[float]) -> dict[str, float]:
        named = {f"scale of class {k}": scale for k, scale in enumerate(scales)}
        return named | {f"bias of class {k}": shift for k, shift in enumerate(shifts)}


@dataclass(frozen=True, repr=False)
class BiasEstimate(VectorEstimate):
    """A temperature and the bias of each class, see `VectorEstimate`."""

    name = "bias"


class ClassBias(VectorScaling):
    """Divides logits by a temperature and adds a bias to those of each class but the background,
    see `VectorScaling`: what corrects structures that are all too large.
    """

    name = "bias"
    estimate = BiasEstimate
    _is_shared = True

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        scaled = logits.movedim(1, -1) * self.bias_scale + self.bias_shift  # type: ignore[operator]
        return scaled.movedim(-1, 1)

    def _named(self, scales: Sequence[float], shifts: Sequence[float]) -> dict[str, float]:
        biases = {f"bias of class {k}": shift for k, shift in enumerate(shifts) if k}
        return {"temperature": 1 / scales[0], **biases}
