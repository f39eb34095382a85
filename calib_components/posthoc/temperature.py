"""Temperature scaling: one pass over the voxels, and an interval over patients.

With `b = 1 / T`, and logits `l` less the largest of their voxel, the negative log-likelihood of a
patient's voxels is `L(b) = sum_v [logsumexp_k(b l_vk) - b l_vy]`, which is convex in b, and its
derivative is `C - A(b)` with `C = -sum_v l_vy` and `A(b) = -sum_v sum_k softmax_k(b l_v) l_vk`,
both at least 0. The pass keeps C, and A at 25 values of b, four per octave from 1/8 to 8: one row
of a table for each patient. The rest is computed from the table. T is where `A(b) = C` for the sum
of the rows. In between, the logarithm of A is interpolated by a quintic spline: A itself may fall
by many powers of ten within an octave. Resampled patients are other sums of the same rows.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.stats import bootstrap

from calib_components.errors import InputError, check_number, printable
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import Voxels
from calib_components.posthoc.base import Array, Calibrator, Estimate
from calib_components.quality.ranking import MIN_PATIENTS

LOWEST, HIGHEST = 1 / 8, 8.0  # range that temperatures are fitted in
LIMITS = 0.001, 1000  # of a given one; further out, logits overflow or vanish
PER_OCTAVE = 4
OCTAVES_BELOW_1, OCTAVES_ABOVE_1 = int(math.log2(HIGHEST)), int(-math.log2(LOWEST))  # of b = 1 / T
LOG2_B = np.arange(-OCTAVES_BELOW_1 * PER_OCTAVE, OCTAVES_ABOVE_1 * PER_OCTAVE + 1) / PER_OCTAVE
UNSCALED = OCTAVES_BELOW_1 * PER_OCTAVE  # where b = 1
# A row of `voxel_sums`: the number of voxels, their NLL at T = 1, C, and A at each of LOG2_B
VOXELS, NLL, C = 0, 1, 2
A = 3
ROW = A + len(LOG2_B)
# Of any values at LOG2_B: values @ SPLINE(x)
SPLINE = make_interp_spline(LOG2_B, np.eye(len(LOG2_B)), k=5)
LOWEST_SUM = 1e-300  # in place of 0, before a logarithm
LEAST_INFORMATION = 1e-6  # change of the NLL of a voxel by 1 / T, in nats

PLACES = {"all": "over all voxels", "predicted": "where a structure is predicted"}
COMPARED = (*PLACES,)  # regions whose temperatures every fit gives
# Change of log T without a patient, from which it is named if others change T far less
DECISIVE = 0.1
LEVEL = 0.95
RESAMPLES = 10_000
BLOCK = 2**20  # numbers in memory at a time


@dataclass(frozen=True, repr=False)
class TemperatureEstimate(Estimate):
    """A fitted temperature, and how far other patients could move it.

    Attributes:
        temperature: The temperature T with the lowest NLL, from 1/8 to 8; logits are divided by it.
        low: Lower end of its 95 % interval: the percentile bootstrap over patients. NaN with one
            patient.
        high: Upper end.
        leave_one_out: The temperature fitted without each patient; empty with one patient.
        nll_before: Mean negative log-likelihood of the voxels at T = 1, in nats.
        nll_after: The same at the fitted temperature.
        patients: Number of patients with at least one voxel.
        voxels: Number of voxels; with sigmoid, those of all channels.
        at_edge: Whether the NLL has no minimum between 1/8 and 8, so that `temperature` is one of
            the two.
        region: Name of the region that it is fitted to.
        regions: For this region, `all` and `predicted`, by name: the `temperature` fitted there,
            its interval, `low` to `high`, and the NLL that it costs in each of them, `nll_REGION`.
            A region without a voxel is left out.
    """

    name = "temperature"
    temperature: float
    low: float
    high: float
    leave_one_out: dict[str, float]
    nll_before: float
    nll_after: float
    patients: int
    voxels: int
    at_edge: bool
    region: str = "all"
    regions: dict[str, dict[str, float]] = field(default_factory=dict)

    def summary(self) -> str:
        parts = [f"{self.temperature:.3f}{_edge(self.temperature)}, fitted on {self.count}"]
        if self.patients > 1:
            others = self.leave_one_out.values()
            parts += [
                f"95 % interval {self.low:.3f} to {self.high:.3f}",
                f"{min(others):.3f} to {max(others):.3f} without one of them",
            ]
        parts += [
            f"{fitted['temperature']:.3f}{_edge(fitted['temperature'])} if fitted to region {name}"
            for name, fitted in self.regions.items()
            if name != self.region
        ]
        return "; ".join(parts)

    def effect(self, by_prediction: bool = True) -> str:
        if self.at_edge:
            return "T is the end of its range: nothing follows for the confidence of the model."
        softer = self.temperature > 1
        change = (
            f"T {'>' if softer else '<'} 1: the probabilities become"
            f" {'softer' if softer else 'sharper'}."
        )
        if not by_prediction:
            return change
        fits = self.regions or {self.region: vars(self)}
        return " ".join([change, *(_verdict(name, **fit) for name, fit in fits.items())])

    def conflict(self) -> str:
        """Return why the temperature does not suit the voxels where a structure is predicted; ""
        if it does.
        """
        fit = self.regions.get("predicted", {})
        if not (fit and (self.temperature - 1) * (fit["temperature"] - 1) < 0):
            return ""
        if fit["low"] <= 1 <= fit["high"] or math.isnan(fit["low"]):
            return ""
        return (
            f"T is {self.temperature:.2f} {PLACES.get(self.region, self.region)}, but"
            f" {_with_interval(**fit)} where a structure is predicted, on the other side of 1"
        )

    def warnings(self) -> list[str]:
        sentences = [self._influence(), self._edge()]
        if self.patients < MIN_PATIENTS:
            fitted = f"fitted on {self.count}, fewer than {MIN_PATIENTS}"
            sentences.append(f"The temperature was {fitted}: its interval is not reliable.")
        if self.low <= 1 <= self.high:
            held = f"{self.low:.3f} to {self.high:.3f}"
            sentences.append(
                f"The 95 % interval of the temperature, {held}, includes 1: scaling may not be"
                " needed."
            )
        sentences.append(self._difference())
        return [sentence for sentence in sentences if sentence]

    def _influence(self) -> str:
        """Name the patient without whom T changes far more than without the others, if any."""
        changes = {
            name: abs(math.log(other / self.temperature))
            for name, other in self.leave_one_out.items()
        }
        if not changes:
            return ""
        name = max(changes, key=lambda name: changes[name])
        if changes[name] <= max(DECISIVE, 3 * np.median([*changes.values()])):
            return ""
        return f"T is {self.leave_one_out[name]:.2f} without {printable(name)}: look at it first."

    def _edge(self) -> str:
        if not (self.at_edge or self.low <= LOWEST or self.high >= HIGHEST):
            return ""
        return (
            f"The temperature, {self.temperature:.3f}, or its 95 % interval is at the edge of its"
            f" range, {LOWEST:g} to {HIGHEST:g}: check that logits and ground truth belong"
            " together."
        )

    def _difference(self) -> str:
        """Return what it means that temperatures of regions differ, where their intervals do not
        overlap.
        """
        if not self.regions.keys() >= {*COMPARED}:
            return ""
        first, second = (self.regions[name] for name in COMPARED)
        if not (first["high"] < second["low"] or second["high"] < first["low"]):
            return ""
        text = (
            "T is {} over all voxels, {} where a structure is predicted: no single T fits both."
            " The second costs {:.4f} of NLL over all voxels, the first {:.4f} where a structure"
            " is predicted. Fit it to the region whose probabilities you use. Whether VectorScaling"
            " or ClassBias is better, patients that are left out tell."
        )
        return text.format(
            *(_with_interval(**fit) for fit in (first, second)),
            second["nll_all"] - first["nll_all"],
            first["nll_predicted"] - second["nll_predicted"],
        )


def _verdict(name: str, temperature: float, low: float, high: float, **_: Any) -> str:
    """Return what a temperature says of the confidence of a model in a region."""
    was = "was" if low > 1 or high < 1 else "may have been"  # the latter also where they are NaN
    confident = "overconfident" if temperature > 1 else "underconfident"
    return f"The model {was} {confident} {PLACES.get(name, f'in region {name}')}."


def _edge(temperature: float) -> str:
    """Return what a reader should know of a temperature at an end of the range."""
    return " (the edge of its range)" if temperature in (LOWEST, HIGHEST) else ""


def _with_interval(temperature: float, low: float, high: float, **_: float) -> str:
    return f"{temperature:.2f}{_edge(temperature)} [{low:.2f}, {high:.2f}]"


class TemperatureScaling(Calibrator):
    """Divides logits by a temperature T, fitted batch by batch; see `Calibrator` for its arguments
    and use.

    T minimizes the mean negative log-likelihood over the voxels of `region`, `softmax(logits / T)`
    being the probabilities; with `sigmoid`, `sigmoid(logits / T)`, and the mean is over voxels and
    channels. On random logits its relative error is below 1e-5; it grows to 1 % where almost all
    voxels are right by one and the same large margin. Fit it on cases that did not train the
    network. Its interval is from resampling patients, 10 000 times from a fixed seed, because the
    voxels of a patient are not independent.

    Examples:
        >>> import torch
        >>> from calib_components.posthoc import TemperatureScaling
        >>> scaling = TemperatureScaling()
        >>> logits = torch.tensor([[[4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])  # 4 voxels
        >>> scaling.update(logits, torch.tensor([[[0, 0, 0, 1]]]), group="patient 1")
        >>> estimate = scaling.compute()
        >>> round(estimate.temperature, 4)  # 4 / log 3: the probability is 3/4, the accuracy
        3.641
        >>> scaling(logits).softmax(1)[0, :, 0]
        tensor([0.7500, 0.2500])
    """

    name = "temperature"
    estimate = TemperatureEstimate
    takes_soft_labels = True
    takes_sigmoids = True

    def __init__(
        self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__(region, ignore_index, sigmoid)
        # The one to fit comes first
        self.regions = [*dict.fromkeys((self.region, *map(Region.parse, COMPARED)))]
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / self.temperature  # type: ignore[operator]

    def set_state(self, state: Mapping[str, Any]) -> None:
        value = state["temperature"]
        value = value.item() if isinstance(value, torch.Tensor) else value
        check_number("temperature", value, *LIMITS)
        super().set_state(state)

    def collect(self, voxels: Voxels, patient: str) -> Array:
        """Return `voxel_sums` in each of the regions, `(regions, ROW)`."""
        rows = []
        for region in self.regions:
            selected = region.select(voxels)
            rows.append(voxel_sums(selected.values, selected.label, selected.weight))
        return torch.stack(rows).cpu().numpy()

    def count_voxels(self, part: Array) -> float:
        return float(part[0, VOXELS])

    def solve(self, patients: Mapping[str, Array]) -> TemperatureEstimate:
        rows_by_region = {}
        for number, region in enumerate(self.regions):
            rows = [row[number] for row in patients.values() if row[number, VOXELS] > 0]
            if rows:
                rows_by_region[region.name] = np.array(rows)
        kept = rows_by_region.get(self.region.name)
        if kept is None:
            raise self.no_voxels()
        _check_information(kept)
        fits = {name: fit_rows(rows) for name, rows in rows_by_region.items()}
        fit = fits[self.region.name]
        names = [name for name, row in patients.items() if self.count_voxels(row) > 0]
        voxels = kept[:, VOXELS].sum()
        self.set_state(fit)
        return TemperatureEstimate(
            **fit,
            leave_one_out=dict(zip(names, temperatures_without(kept).tolist(), strict=False)),
            nll_before=float(kept[:, NLL].sum() / voxels),
            nll_after=nll_of(kept, fit),
            patients=len(names),
            voxels=round(voxels),
            at_edge=fit["temperature"] in (LOWEST, HIGHEST),
            region=self.region.name,
            regions=_costs(fits, rows_by_region),
        )

    def best(self) -> float:
        """Return the temperature that `compute` would fit, or the end of the range, alone."""
        rows = [row[0] for row in self._gathered().values()]
        if not rows:
            raise self.no_voxels()
        _check_information(np.array(rows))
        return float(temperatures_of(np.sum(rows, 0)))

    def solve_without(self, patients: Mapping[str, Array]) -> Iterator[dict[str, float]]:
        rows = np.array([row[0] for row in patients.values()])
        yield from ({"temperature": each} for each in temperatures_without(rows).tolist())


def voxel_sums(
    logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the number of voxels, the NLL at T = 1, C, and A at `LOG2_B`, `(ROW,)`, of logits `(N,
    voxels)` and class indices `(voxels,)`, float64, which count by a weight.
    """
    if weight is None:
        weight = logits.new_ones(len(label))
    logits = logits - logits.amax(0)  # now at most 0, so that no exponential overflows
    true = (logits.gather(0, label[None])[0] * weight).sum()
    sums = logits.new_zeros(ROW)
    sums[VOXELS], sums[C] = weight.sum(), -true
    for first in range(PER_OCTAVE):
        powers = (logits * 2.0 ** LOG2_B[first]).exp_()
        # An octave further, exp(2 b l) = exp(b l)^2
        for i in range(first, len(LOG2_B), PER_OCTAVE):
            total = powers.sum(0)
            if i == UNSCALED:
                sums[NLL] = (total.log() * weight).sum() - true
            mean_logit = (powers * logits).sum(0).div_(total)
            sums[A + i] = -(mean_logit * weight).sum()
            powers.square_()
    return sums


def _check_information(rows: Array) -> None:
    """Raise `InputError` if the temperature has no effect on patients with these rows of
    `voxel_sums`.
    """
    steepest = rows[:, C:].sum(0).max()
    if steepest < LEAST_INFORMATION * rows[:, VOXELS].sum():
        raise InputError(
            "No temperature changes the NLL: the logits of all classes are equal, or those of the"
            " labels are larger by far. Check that they are of a trained network."
        )


def _expected(sums: Array, log2_b: Array | float) -> Array:
    """Return A of each row of `sums`, `(..., 1 + len(LOG2_B))`: C and A at `LOG2_B`; at one value,
    or one for each.
    """
    log_a = np.log(np.maximum(sums[..., 1:], LOWEST_SUM))
    return np.exp((log_a * SPLINE(log2_b)).sum(-1))


def temperatures_of(rows: Array) -> Array:
    """Return the T of the lowest NLL of each row of `voxel_sums`, `(..., ROW)`, by bisection, or
    the edge of the range: `(...)`.
    """
    sums = rows[..., C:]
    c, a_at_lowest_b, a_at_highest_b = sums[..., 0], sums[..., 1], sums[..., -1]
    low = np.full(c.shape, LOG2_B[0])
    high = np.full(c.shape, LOG2_B[-1])
    for _ in range(40):
        middle = (low + high) / 2
        rising = _expected(sums, middle) <= c
        low = np.where(rising, low, middle)
        high = np.where(rising, middle, high)
    beyond = [a_at_lowest_b <= c, a_at_highest_b >= c]
    return np.select(beyond, [HIGHEST, LOWEST], 2.0 ** (-(low + high) / 2))


def temperatures_without(rows: Array) -> Array:
    """Return the T of the other patients, for each row of `voxel_sums`, `(patients, ROW)`; none
    of one row.
    """
    if len(rows) == 1:
        return np.empty(0)
    # Adds up: a difference of sums would lose digits
    return temperatures_of(np.tensordot(1 - np.eye(len(rows)), rows, 1))


def fit_rows(rows: Array) -> dict[str, float]:
    """Return the temperature of patients with these rows of `voxel_sums`, `(patients, ROW)`, and
    its interval.

    The ends of the interval, NaN with one patient, are percentiles over resampled patients, from a
    fixed seed.
    """
    low = high = math.nan
    if len(rows) > 1:
        low, high = bootstrap(
            (np.arange(len(rows)),),
            lambda drawn, axis: temperatures_of(rows[drawn].sum(-2)),
            n_resamples=RESAMPLES,
            batch=max(1, BLOCK // rows.size),
            vectorized=True,
            axis=-1,
            confidence_level=LEVEL,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
    return {
        "temperature": float(temperatures_of(rows.sum(0))),
        "low": float(low),
        "high": float(high),
    }


def _costs(
    fits: Mapping[str, dict[str, float]], rows: Mapping[str, Array]
) -> dict[str, dict[str, float]]:
    """Return the fit of each region, and the NLL that it costs in each of them, `nll_REGION`."""
    return {
        name: fit | {f"nll_{other}": nll_of(rows[other], fit) for other in fits}
        for name, fit in fits.items()
    }


def nll_of(rows: Array, fit: Mapping[str, float]) -> float:
    """Return the mean NLL, in nats, at the temperature of a fit, of patients whose rows are those
    of `voxel_sums`, `(patients, ROW)`.
    """
    voxels, unscaled, *total = rows.sum(0)
    change = _change(np.array(total), -math.log2(fit["temperature"]))
    # Rounded, it may be below 0
    return max(0.0, float((unscaled + change) / voxels))


def _change(total: Array, log2_b: float) -> float:
    """Return the NLL at b less that at b = 1, the integral of its derivative."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    points = log2_b * (nodes + 1) / 2
    gradients = total[0] - _expected(np.tile(total, (len(points), 1)), points)
    return float((weights * gradients * math.log(2) * 2.0**points).sum() * log2_b / 2)
