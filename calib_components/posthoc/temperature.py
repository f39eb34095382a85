"""The fit of a temperature: one pass over the voxels, and an interval over patients.

With `b = 1 / T`, and logits `l` less the largest of their voxel, the negative log-likelihood of a patient's voxels is
`L(b) = sum_v [logsumexp_k(b l_vk) - b l_vy]`, which is convex in b, and its derivative is `C - A(b)` with
`C = -sum_v l_vy` and `A(b) = -sum_v sum_k softmax_k(b l_v) l_vk`, both at least 0. The pass keeps C, and A at 25 values
of b, four per octave from 1/8 to 8: one row of a table for each patient. The rest is computed from the table. T is
where `A(b) = C` for the sum of the rows. In between, the logarithm of A is interpolated by a quintic spline: A itself
may fall by many powers of ten within an octave. Resampled patients are other sums of the same rows.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from monai.utils import evenly_divisible_all_gather, string_list_all_gather
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from calib_components.arguments import check_flag, check_ignore_index, warn_once
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import check_tensors, read_voxels
from calib_components.posthoc.estimate import HIGHEST, LOWEST, TemperatureEstimate

__all__ = ["TemperatureScaling"]

Array = NDArray[np.float64]

PER_OCTAVE = 4
LOG2_B = np.linspace(-math.log2(HIGHEST), -math.log2(LOWEST), 6 * PER_OCTAVE + 1)
UNSCALED = 3 * PER_OCTAVE  # where b = 1
SPLINE = make_interp_spline(LOG2_B, np.eye(len(LOG2_B)), k=5)  # of any values at LOG2_B: values @ SPLINE(x)
SMALLEST = 1e-300  # in place of 0, before a logarithm
SUMS = 3 + len(LOG2_B)  # kept of each patient

LEVEL = 0.95
RESAMPLES = 10_000
SIMULATIONS = 500  # so that the standard error of a coverage of 95 % is 1 %
BLOCK = 2**18  # numbers in memory at a time


class TemperatureScaling:
    """Fits a temperature to logits and their ground truth, batch by batch.

    Use it like a metric: `update` with each batch, then `compute`, then `reset`. What is kept is a few hundred bytes a
    patient, however many voxels there are. Across several processes, `compute` adds up the patients of all of them, so
    every process must call it.

    T minimizes the mean negative log-likelihood over the voxels of `region`, `softmax(logits / T)` being the
    probabilities; with `sigmoid`, `sigmoid(logits / T)`, and the mean is over voxels and channels. On random logits its
    relative error is below 1e-5; it grows to 1 % where almost all voxels are right by one and the same large margin.
    Fit it on cases that did not train the network.

    Its interval is from resampling patients, 10 000 times from a fixed seed, because the voxels of a patient are not
    independent of one another.

    Args:
        region: The voxels to fit, see `calib_components.metrics.regions`. Fitted to a region chosen by the ground
            truth, probabilities are not calibrated. The prediction that chooses voxels is the one at T = 1.
        ignore_index: Ground-truth value of voxels to leave out; their logits are not checked.
        sigmoid: Whether each channel is a binary problem of its own, as one channel always is.

    Raises:
        ValueError: An option has an unsuitable value.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.

    Examples:
        >>> import torch
        >>> from calib_components.posthoc import TemperatureScaling
        >>> scaling = TemperatureScaling()
        >>> logits = torch.tensor([[[4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])  # one case, two classes, four voxels
        >>> scaling.update(logits, torch.tensor([[[0, 0, 0, 1]]]), group="patient 1")
        >>> estimate = scaling.compute()
        >>> round(estimate.temperature, 4)  # 4 / log 3, so that the probability is 3/4, which is the accuracy
        3.641
        >>> round(estimate.nll_before, 4), round(estimate.nll_after, 4)
        (1.0181, 0.5623)
    """

    def __init__(self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False) -> None:
        self.region = Region.parse(region)
        check_ignore_index(ignore_index)
        check_flag("sigmoid", sigmoid)
        self.ignore_index = ignore_index
        self.sigmoid = sigmoid
        self.reset()

    def reset(self) -> None:
        """Remove all voxels."""
        self._sums: dict[str, Array] = {}  # of each patient: number of voxels, NLL at T = 1, C, A at LOG2_B

    def update(self, logits: torch.Tensor, y: torch.Tensor, group: str | Sequence[str]) -> None:
        """Add the voxels of a batch.

        Shape:
            - logits: `(B, N, *S)`, with N classes, or channels of sigmoids.
            - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids, `(B, N, *S)`, 0 or 1.

        Args:
            logits: Output of a network before softmax or sigmoid, of any floating-point type.
            y: Ground truth, of any type that holds whole numbers.
            group: Name of the patient, or the names of the patients of the B cases. Cases of one patient may be spread
                over batches and processes.

        Raises:
            TypeError: `logits` or `y` is not a tensor, `logits` is not of a floating-point type, or a name is not text.
            ValueError: Shapes do not match or hold no voxel, some logits are NaN or infinite, `y` holds invalid labels,
                or there are not as many names as cases. Nothing is added then.
        """
        logits, y = check_tensors(logits, y, self.sigmoid, "logits")
        names = _check_group(group, len(logits))
        lowest, highest = logits.aminmax()
        if lowest >= 0 and highest <= 1:
            remedy = (
                "p.double().logit(1e-12)"
                if self.sigmoid or logits.shape[1] == 1
                else "p.double().clamp_min(1e-12).log()"
            )
            warn_once(
                "logits: expected the output of a network before softmax or sigmoid, got only values from 0 to 1; if "
                f"these are probabilities p, give {remedy}"
            )
        sums = logits.new_zeros((len(logits), SUMS), dtype=torch.float64)
        for voxels in read_voxels(logits, y, self.region, self.ignore_index, self.sigmoid, logits=True):
            sums[voxels.case] += _chunk_sums(voxels.logits, voxels.label)
        for name, row in zip(names, sums.cpu().numpy(), strict=True):
            if row[0] > 0:  # otherwise the patient has no voxel in the region
                self._sums[name] = self._sums.get(name, 0) + row

    def add(self, other: TemperatureScaling) -> None:
        """Add the cases of another fit, such as one of another process.

        Patients of the same name are one patient, as in `update`.

        Args:
            other: A fit with the same `region`, `ignore_index` and `sigmoid`, which stays as it is.

        Raises:
            TypeError: It is no such fit.
            ValueError: It has other options. Nothing is added then.
        """
        if not isinstance(other, TemperatureScaling):
            raise TypeError(f"other: expected a TemperatureScaling, got {type(other).__name__}")
        own, given = (
            {"region": fit.region.name, "ignore_index": fit.ignore_index, "sigmoid": fit.sigmoid}
            for fit in (self, other)
        )
        for name in own:
            if own[name] != given[name]:
                raise ValueError(f"other: expected a fit with {name} {own[name]!r} as in this one, got {given[name]!r}")
        for patient, sums in other._sums.items():
            self._sums[patient] = self._sums.get(patient, 0) + sums

    def to_dict(self) -> dict[str, Any]:
        """Return the options and what is kept of each patient of all processes, as data that JSON can store.

        So fits can be put together elsewhere, such as those of several folds. Patients keep their names.
        """
        names, table = self._gathered()
        options = {"region": asdict(self.region), "ignore_index": self.ignore_index, "sigmoid": self.sigmoid}
        return {**options, "patients": dict(zip(names, table.tolist(), strict=True))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TemperatureScaling:
        """Inverse of `to_dict`.

        Raises:
            ValueError: A field is missing, unknown or not as `to_dict` gives it.
        """
        names = ["region", "ignore_index", "sigmoid", "patients"]
        if not isinstance(values, Mapping) or values.keys() != set(names):
            given = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"values: expected a dictionary with {', '.join(names)}, got {given}")
        try:
            region = Region(**values["region"])
        except TypeError as error:
            raise ValueError(f"region: expected the fields of a region, got {values['region']!r:.60}") from error
        fit = cls(region, values["ignore_index"], values["sigmoid"])
        if not isinstance(values["patients"], Mapping):
            raise ValueError(f"patients: expected the sums of each patient, got {type(values['patients']).__name__}")
        for name, row in values["patients"].items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"patients: expected names, got {name!r}")
            is_row = isinstance(row, list) and all(type(value) is float for value in row)
            sums = np.array(row if is_row else [], dtype=float)
            if sums.shape != (SUMS,) or not (np.isfinite(sums).all() and sums[0] >= 1 and (sums[2:] >= 0).all()):
                raise ValueError(f"patients: expected {SUMS} sums over voxels for {name}, got {row!r:.60}")
            fit._sums[name] = sums
        return fit

    def compute(self) -> TemperatureEstimate:
        """Return the temperature of all voxels added so far, in all processes.

        Raises:
            ValueError: No voxel has been added.
        """
        names, table = self._gathered()
        if not names:
            raise ValueError(
                f"TemperatureScaling: expected at least one voxel in region {self.region.name!r}, got none"
            )
        voxels, unscaled, sums = table[:, 0].sum(), table[:, 1].sum(), table[:, 2:]
        total = sums.sum(0)
        log2_b = _roots(total[None])[0]
        at_edge = bool(abs(log2_b) >= LOG2_B[-1])
        low = high = coverage = math.nan
        leave_one_out: dict[str, float] = {}
        if len(names) > 1:
            temperatures, coverage = _resample(sums, log2_b)
            low, high = np.quantile(temperatures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
            others = (1 - np.eye(len(names))) @ sums  # adds up: a difference of sums would lose digits
            leave_one_out = dict(zip(names, (2.0 ** -_roots(others)).tolist(), strict=True))
        return TemperatureEstimate(
            temperature=float(2.0**-log2_b),
            low=low,
            high=high,
            coverage=math.nan if at_edge else coverage,
            leave_one_out=leave_one_out,
            nll_before=float(unscaled / voxels),
            nll_after=max(0.0, float((unscaled + _change(total, log2_b)) / voxels)),  # rounded
            patients=len(names),
            voxels=int(voxels),
            at_edge=at_edge,
        )

    def _gathered(self) -> tuple[list[str], Array]:
        """Return the patients of all processes in the order of their names, and the sums of each."""
        own = torch.from_numpy(np.array([*self._sums.values()]).reshape(-1, SUMS))
        encoded = [json.dumps(name) for name in self._sums]  # in which no character separates names
        names = [json.loads(text) for text in string_list_all_gather(encoded) if text]
        merged: dict[str, Array] = {}
        for name, row in zip(names, evenly_divisible_all_gather(own, concat=True).numpy(), strict=True):
            merged[name] = merged.get(name, 0) + row
        names = sorted(merged)
        return names, np.array([merged[name] for name in names])


def _check_group(group: str | Sequence[str], cases: int) -> list[str]:
    names = [group] * cases if isinstance(group, str) else group
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"group: expected the name of a patient or a sequence of names, got {group!r}")
    if len(names) != cases:
        raise ValueError(f"group: expected a name for each of {cases} cases, got {len(names)}")
    return list(names)


def _chunk_sums(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """What is kept of some voxels, logits `(N, voxels)` and class indices `(voxels,)`: float64 `(28,)`."""
    logits = logits - logits.amax(0)  # now at most 0, so that no exponential overflows
    true = logits.gather(0, label[None]).sum()
    sums = logits.new_zeros(SUMS)
    sums[0], sums[2] = len(label), -true
    for first in range(PER_OCTAVE):
        powers = (logits * 2.0 ** LOG2_B[first]).exp_()
        for i in range(first, len(LOG2_B), PER_OCTAVE):  # an octave further, exp(2 b l) = exp(b l)^2
            total = powers.sum(0)
            if i == UNSCALED:
                sums[1] = total.log().sum() - true
            expected = (powers * logits).sum(0).div_(total).sum()
            sums[3 + i] = -expected
            powers.square_()
    return sums


def _gradients(sums: Array, log2_b: Array | float) -> Array:
    """Return dL/db of each row of `sums`, `(rows, 1 + len(LOG2_B))`: C and A; at one value, or one for each row."""
    logs = np.log(np.maximum(sums[:, 1:], SMALLEST))
    return sums[:, 0] - np.exp((logs * SPLINE(log2_b)).sum(1))


def _roots(sums: Array) -> Array:
    """Return log2 b of the lowest NLL of each row, by bisection; or the edge of the range."""
    low, high = np.full(len(sums), LOG2_B[0]), np.full(len(sums), LOG2_B[-1])
    logs = np.log(np.maximum(sums[:, 1:], SMALLEST))
    target = np.log(np.maximum(sums[:, 0], SMALLEST))
    for _ in range(40):
        middle = (low + high) / 2
        rising = (logs * SPLINE(middle)).sum(1) <= target
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    beyond = [sums[:, 1] <= sums[:, 0], sums[:, -1] >= sums[:, 0]]
    return np.select(beyond, [LOG2_B[0], LOG2_B[-1]], (low + high) / 2)


def _change(total: Array, log2_b: float) -> float:
    """Return the NLL at b less that at b = 1, the integral of the gradient."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    points = log2_b * (nodes + 1) / 2
    gradients = _gradients(np.broadcast_to(total, (len(points), len(total))), points)
    return float((weights * gradients * math.log(2) * 2.0**points).sum() * log2_b / 2)


def _resample(sums: Array, log2_b: float) -> tuple[Array, float]:
    """Bootstrap over patients.

    Returns:
        The temperatures of `RESAMPLES` resamples, and the share of `SIMULATIONS` samples of as many patients whose
        interval holds the temperature of all. The temperature of a resample is above that of all where its gradient at
        `log2_b` is positive, so simulating needs one number a patient and no roots. The resamples, as positions in a
        sample, are the same for all samples.
    """
    number = len(sums)
    generator = np.random.default_rng(0)
    samples = _gradients(sums, log2_b)[generator.integers(number, size=(number, SIMULATIONS))]
    total = sums.sum(0, keepdims=True)
    equal = float(_gradients(total, log2_b + 1e-9)[0] - _gradients(total, log2_b)[0])  # as much as 1e-9 in log2 b
    temperatures, above, below = [], np.zeros(SIMULATIONS), np.zeros(SIMULATIONS)
    rows = max(1, BLOCK // max(number, SIMULATIONS))
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = generator.integers(number, size=(size, number)) + number * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number).astype(float)
        temperatures.append(2.0 ** -_roots(times @ sums))
        difference = times @ samples
        above += (difference > equal).sum(0)
        below += (difference < -equal).sum(0)
    covered = np.maximum(above, below) <= (1 + LEVEL) / 2 * RESAMPLES
    return np.concatenate(temperatures), float(covered.mean())
