"""Vector scaling: a scale and a bias for each class, fitted in a few passes over the voxels.

With `c` the logits less their mean over the classes, on which no probability depends, the
probabilities are `softmax(s c + b)`. Their negative log-likelihood is convex in the parameters `(s,
b)`. A pass at some parameters keeps its value, gradient and Hessian there, for each patient. The
next pass is at the minimum of the quadratic function with the sums of all, a step of Newton's
method, which is halved where the likelihood got worse. Where the probabilities of a class add up to
several times its voxels, or a fraction of them, that step would be far too long: biases bring the
sums to the numbers of voxels first. The minimum is where the gradient vanishes relative to the
curvature. There, the parameters without a patient are one more step, with other sums of the same
rows: so is the likelihood of patients that are left out of the fit.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.posthoc.base import Array, Calibrator, Estimate

MOST_PASSES = 30
TOLERANCE = 1e-6  # of the gradient, relative to the curvature: the change of a logit
FEWEST_EXPECTED = 1e-6  # probability of a class, relative to its voxels
FEWEST_PATIENTS = 2  # for each parameter, a rule of thumb
SMALLEST = 1e-150  # in place of 0, below a fraction
ONCE = [[1.0]]  # each patient


@dataclass(frozen=True)
class VectorEstimate(Estimate):
    """Fitted scales and biases, and how well they suit other patients.

    Attributes:
        parameters: Each scale and bias by its name.
        nll_before, nll_after: Mean negative log-likelihood of the voxels without and with them, in
            nats.
        nll_left_out: The same of each patient with the parameters of the others, by one step. NaN
            with one patient.
        changed: Number of voxels whose most probable class is another one.
        patients, voxels: Numbers of patients and voxels.
    """

    name = "vector"
    parameters: dict[str, float]
    nll_before: float
    nll_after: float
    nll_left_out: float
    changed: int
    patients: int
    voxels: int

    def summary(self) -> str:
        texts = (f"{name} {value:.2f}" for name, value in self.parameters.items())
        return f"{', '.join(texts)}, fitted on {self.count}"

    def effect(self, by_prediction: bool = True) -> str:
        return f"The label of {self.changed} of {self.voxels} voxels changes."

    def warnings(self) -> list[str]:
        sentences = [
            f"The {name} is negative: the lower its logit, the more probable is the class. Check"
            " that channels and labels are in the same order."
            for name, value in self.parameters.items()
            if name.startswith("scale") and value < 0
        ]
        number = len(self.parameters) - 1  # a constant added to all biases changes nothing
        if self.patients < FEWEST_PATIENTS * number:
            sentences.append(
                f"{self.count}, fewer than {FEWEST_PATIENTS * number}, for {number} parameters:"
                " they may not suit others."
            )
        if self.nll_left_out > self.nll_before:
            sentences.append(
                f"The NLL of patients that are left out of the fit is {self.nll_left_out:.4f}, more"
                f" than {self.nll_before:.4f} without it. Use a temperature."
            )
        return sentences


class _Sums(NamedTuple):
    """What is kept of patients, `(patients, ...)`, in this order."""

    voxels: Array
    nll_before: Array
    nll: Array  # at the parameters
    changed: Array
    labels: Array  # number of voxels of each class
    gradient: Array
    hessian: Array

    @classmethod
    def read(cls, rows: Array) -> _Sums:
        classes = round((math.sqrt(9 + 16 * (rows.shape[1] - 4)) - 3) / 8)
        *numbers, labels, gradient, hessian = np.split(
            rows, [1, 2, 3, 4, 4 + classes, 4 + 3 * classes], axis=1
        )
        hessian = hessian.reshape(len(rows), 2 * classes, 2 * classes)
        voxels, before, nll, changed = (number[:, 0] for number in numbers)
        return cls(voxels, before, nll, changed, labels, gradient, hessian)

    @property
    def units(self) -> Array:
        """Root of the curvature of all patients along each parameter, `(2 N,)`, above 0."""
        # Rounded, one of 0 may be below 0
        return np.sqrt(abs(self.hessian.sum(0).diagonal())) + SMALLEST

    @property
    def relative_gradient(self) -> Array:
        """The gradient of all patients relative to the curvature, `(2 N,)`; huge without any.

        It is about the change of a logit by which each parameter is off.
        """
        curvature = self.units * np.tile(np.split(self.units, 2)[1], 2)
        return (abs(self.gradient.sum(0)) + SMALLEST) / curvature


class VectorScaling(Calibrator):
    """Multiplies the logits of each class by a scale and adds a bias; see `Calibrator` for its
    arguments.

    The logits get a mean of 0 over the classes first. The fit takes about six passes over the
    cases, and keeps of each patient `4 + 3 N + 4 N^2` numbers, with N classes. Labels may change.

    Raises:
        InputError: Channels are sigmoids. By `passes`, if a class is no voxel's label or has almost
            no probability, or the fit does not converge, as where the classes are separable. By
            `compute`, if the cases were not added in each of the `passes`.

    Examples:
        >>> import torch
        >>> from calib_components.posthoc import ClassBias
        >>> fit = ClassBias()
        >>> logits = torch.tensor([[[4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])  # 4 voxels
        >>> for _ in fit.passes():
        ...     fit.update(logits, torch.tensor([[[0, 0, 0, 1]]]), group="patient 1")
        >>> estimate = fit.compute()
        >>> fit(logits).softmax(1)[0, :, 0]  # three of the four voxels are class 0
        tensor([0.7500, 0.2500])
    """

    name = "vector"
    estimate: ClassVar[type[VectorEstimate]] = VectorEstimate
    is_affine = True
    has_scale: ClassVar[bool] = True

    def __init__(
        self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__(region, ignore_index, sigmoid)
        if self.has_scale:
            self.register_buffer("class_scale", torch.ones(1))
        self.register_buffer("class_bias", torch.zeros(1))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        centered = (logits - logits.mean(1, keepdim=True)).movedim(1, -1)
        return (centered * self.class_scale + self.class_bias).movedim(-1, 1)  # type: ignore[operator]

    def passes(self) -> Iterator[int]:
        lowest, start, step = math.inf, self._values(1), np.zeros(0)
        for number in range(MOST_PASSES):
            self._rows.clear()
            yield number
            rows = [*self._gathered().values()]
            if not rows:
                return  # `compute` says so
            sums = _Sums.read(np.array(rows)[:, 0])
            labels = sums.labels.sum(0)
            expected = labels + sums.gradient.sum(0)[len(labels) :]
            if number == 0:
                self._check_classes(labels, expected)
            nll = sums.nll.sum()
            if nll <= lowest * (1 + 1e-12):
                lowest, start, step = nll, self._values(len(labels)), self._step(sums)
                off = sums.relative_gradient[self._fitted(len(labels))]
                if off.max() < TOLERANCE:
                    return
                missing = np.log(labels / np.maximum(expected, SMALLEST))
                if abs(missing).max() > 1:
                    step = np.append(0 * missing, missing - missing.mean())
            else:  # also NaN
                step = step / 2
            scale, bias = np.split((start + step).ravel(), 2)
            self.set_state({"class_scale": scale, "class_bias": bias})
            self._is_fitted = False  # before `compute`
        raise InputError(
            f"The {self.name} did not converge, least of all that of class"
            f" {off.argmax() % len(labels)}. The classes may be separable, or all logits equal or"
            " far too large. Check them, or fit a temperature."
        )

    def _check_classes(self, labels: Array, expected: Array) -> None:
        """Refuse classes that determine no parameter, by the sums of labels and probabilities."""
        for number, (true, p) in enumerate(zip(labels, expected, strict=True)):
            if true == 0 or p < FEWEST_EXPECTED * true:
                raise InputError(
                    f"Class {number} is the label of {true:.0f} voxels, and its probabilities add"
                    f" up to {max(p, 0):.3g}, so it has no {self.name}. Fit a temperature, or train"
                    " the network again."
                )

    def voxel_sums(
        self, logits: torch.Tensor, label: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        """Return what `_Sums` holds, of these voxels."""
        centered, classes = logits - logits.mean(0), len(logits)
        parameters = torch.from_numpy(self._values(classes)).to(logits)
        calibrated = centered * parameters[:classes, None] + parameters[classes:, None]
        true = F.one_hot(label, classes).T.to(logits)
        nll = [(each.logsumexp(0) - (each * true).sum(0)).sum() for each in (centered, calibrated)]
        changed = (centered.argmax(0) != calibrated.argmax(0)).sum()
        p = calibrated.softmax(0)
        # (2, N, V), what scales and biases multiply
        inputs = torch.stack([centered, torch.ones_like(p)])
        gradient = ((p - true) * inputs).sum(-1).flatten()
        weighted = (p * inputs).flatten(0, 1)
        same_class = torch.einsum("inv,jnv,nv->ijn", inputs, inputs, p).diag_embed()  # (2, 2, N, N)
        hessian = same_class.transpose(1, 2).reshape(2 * classes, -1) - weighted @ weighted.T
        numbers = torch.stack([logits.new_tensor(len(label)), *nll, changed])
        return torch.cat([numbers, true.sum(1), gradient, hessian.flatten()])

    def solve(self, names: Sequence[str], rows: Array) -> VectorEstimate:
        sums = _Sums.read(rows[:, 0])
        classes = sums.labels.shape[1]
        fitted = self._fitted(classes)
        if sums.relative_gradient[fitted].max() > 10 * TOLERANCE:
            raise InputError(
                f"A {self.name} needs several passes: for _ in fit.passes(), update with all cases."
            )
        values = self._values(classes)[fitted].tolist()
        labels = [f"{kind} of class {k}" for kind in ("scale", "bias") for k in range(classes)]
        voxels = sums.voxels.sum()
        return self.estimate(
            dict(zip(labels[fitted], values, strict=True)),
            nll_before=float(sums.nll_before.sum() / voxels),
            nll_after=float(sums.nll.sum() / voxels),
            nll_left_out=self._nll_left_out(sums),
            changed=int(sums.changed.sum()),
            patients=len(rows),
            voxels=int(voxels),
        )

    def states_without(self, names: Sequence[str], rows: Array) -> list[dict[str, Array]]:
        """Return the parameters one step from those of all patients."""
        sums = _Sums.read(rows[:, 0])
        values = self._values(sums.labels.shape[1]) + self._step(sums, 1 - np.eye(len(rows)))
        names = ("class_scale", "class_bias")
        return [dict(zip(names, np.split(each, 2), strict=True)) for each in values]

    def _nll_left_out(self, sums: _Sums) -> float:
        """Return the mean NLL of each patient with the parameters of the others."""
        if len(sums.nll) == 1:
            return math.nan
        steps = self._step(sums, 1 - np.eye(len(sums.nll)))
        curvature = np.einsum("pi,pij,pj->", steps, sums.hessian, steps)
        nll = sums.nll.sum() + (sums.gradient * steps).sum() + curvature / 2
        return float(nll / sums.voxels.sum())

    def _step(self, sums: _Sums, times: Any = ONCE) -> Array:
        """Return the step to the minimum for each row of `times` that patients are there."""
        times = np.broadcast_to(times, (len(times), len(sums.nll)))
        gradient, hessian = times @ sums.gradient, np.einsum("rp,pij->rij", times, sums.hessian)
        classes = sums.labels.shape[1]
        fitted = self._fitted(classes)
        units = sums.units[fitted]
        scaled = hessian[:, fitted, fitted] / (units[:, None] * units)
        inverse = np.linalg.pinv(scaled, rcond=1e-10, hermitian=True)
        steps = np.zeros_like(gradient)
        steps[:, fitted] = -np.einsum("rij,rj->ri", inverse, gradient[:, fitted] / units) / units
        # Equal biases change nothing
        steps[:, classes:] -= steps[:, classes:].mean(1, keepdims=True)
        return steps

    def _fitted(self, classes: int) -> slice:
        return slice(0 if self.has_scale else classes, None)

    def _values(self, classes: int) -> Array:
        """Return the scales and the biases."""
        state = {"class_scale": torch.ones(1), **self.state()}
        return torch.cat([each.cpu().double().expand(classes) for each in state.values()]).numpy()

    def _options(self) -> dict[str, Any]:
        """Rows belong to the parameters that they were summed at."""
        return {
            **super()._options(),
            "state": {name: values.tolist() for name, values in self.state().items()},
        }


@dataclass(frozen=True)
class BiasEstimate(VectorEstimate):
    """Fitted biases, see `VectorEstimate`; all scales are 1."""

    name = "bias"


class ClassBias(VectorScaling):
    """Adds a bias to the logits of each class, see `VectorScaling`: what corrects structures that
    are all too large.
    """

    name = "bias"
    estimate = BiasEstimate
    has_scale = False

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits.movedim(1, -1) + self.class_bias).movedim(-1, 1)  # type: ignore[operator]
