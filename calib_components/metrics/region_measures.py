"""Measures of any number of regions, from one pass over the voxels of a batch.

In each chunk of voxels, a region chooses some; their counts, confidences, correct predictions and
scores are summed; and the sums become bins and means.

Next to each error, the pass gives the error that the probabilities would have if they were true, in
closed form. A voxel with probabilities `p` has label `k` with probability `p_k`. If class `k` would
put it into the region, it adds `p_k` to the count of its bin, `p_k` times its confidence to the sum
of confidences, and `p_k` to the number correct if `k` is the event of the bin. So this is the error
in the limit of many voxels. With few, such as those of a small structure, chance adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from calib_components.errors import check_count
from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.regions import Region, choose_region
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels
from calib_components.probabilities import bin_index

LOWEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm
# In float16, half a step from 0, which others round to; bfloat16 goes as low as float32
LOWEST_HALF = 2.0**-25
TOP_LABEL, CLASSWISE = "top_label", "classwise"
IF_TRUE = "_if_true"  # follows the kind of bins that true probabilities would give


@dataclass(frozen=True, eq=False)
class RegionMeasures:
    """Measures of a region.

    Attributes:
        sums: Sums over the voxels of each case, float64: their number, `count`, and their scores,
            `(B,)` each; of each kind of bins the counts, confidences and numbers correct, `(B, 3,
            N, num_bins)`, N being 1 for the top label.
    """

    sums: Mapping[str, torch.Tensor]

    @property
    def count(self) -> torch.Tensor:
        """Number of voxels, `(B,)`, float64."""
        return self.sums["count"]

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """Mean "nll" and "brier", `(B,)` each; NaN without a voxel."""
        return {name: self.sums[name] / self.count for name in SCORES if name in self.sums}

    @cached_property
    def bins(self) -> dict[str, CalibrationBins]:
        """Bins "top_label" and "classwise"; of a region with a closed form also
        "top_label_if_true", "classwise_if_true".
        """
        bins = {}
        for kind, total in self.sums.items():
            if total.ndim > 1:
                count, *others = (total[:, :, 0] if TOP_LABEL in kind else total).unbind(1)
                # Labels that are probabilities give parts of voxels
                if IF_TRUE not in kind and (count == count.round()).all():
                    count = count.long()
                bins[kind] = CalibrationBins(count, *others)
        return bins


def measure_regions(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    measures: Mapping[Region, Collection[str]],
    num_bins: int = 15,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> dict[Region, RegionMeasures]:
    """Measure probabilities in each of several regions. Other arguments and errors: see
    `calib_components.metrics`.

    Args:
        measures: Of each region, any of "top_label" and "classwise" (bins), "if_true" (also those
            that true probabilities would give), "nll" and "brier".
        lowest: Takes the place of lower probabilities in the NLL, such as half a step of
            probabilities that were rounded to 8 bits, in which a 0 need not have been one.
        highest: Takes the place of higher probabilities of sigmoids in the NLL, likewise.
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    sums = RegionSums(measures, y_pred, num_bins, sigmoid, lowest, highest)
    for voxels in read_voxels(y_pred, y, sigmoid=sigmoid, ignore_index=ignore_index, soft=True):
        sums.add(voxels)
    return sums.measures()


@dataclass(eq=False)
class Events:
    """What is binned of some voxels: one row for the top label, or a row for each class.

    Attributes:
        p: Probabilities of the events, `(rows, voxels)`.
        classes: The class whose label makes an event true, `(rows, voxels)` or `(rows, 1)`.
        rows: Where their sums are among those of the classes of the case.
        num_bins: Number of bins.
    """

    p: torch.Tensor
    classes: torch.Tensor
    rows: slice
    num_bins: int

    @cached_property
    def index(self) -> torch.Tensor:
        """Bin of each event, `(rows, voxels)`."""
        return bin_index(self.p, self.num_bins)

    def sums(self, weight: torch.Tensor, weight_true: torch.Tensor) -> torch.Tensor:
        """Sum the weight, `(voxels,)`, weight times probability, and the weight of true events,
        `(rows, voxels)`, in each bin: `(3, rows, num_bins)`.
        """
        sums = self.p.new_zeros(3, len(self.p), self.num_bins)
        weights = weight.expand_as(self.p), weight * self.p, weight_true
        for total, values in zip(sums, weights, strict=True):
            total.scatter_add_(1, self.index, values)
        return sums


def _top_label(voxels: Voxels, num_bins: int) -> Events:
    return Events(voxels.confidence[None], voxels.predicted[None], slice(None), num_bins)


def _classwise(voxels: Voxels, num_bins: int) -> Events:
    classes = torch.arange(len(voxels.p), device=voxels.p.device)[:, None]
    channel = voxels.volume.channel
    if channel is None:
        return Events(voxels.p, classes, slice(None), num_bins)
    # The background of a sigmoid is no class
    return Events(voxels.p[1:], classes[1:], slice(channel, channel + 1), num_bins)


EVENTS = {TOP_LABEL: _top_label, CLASSWISE: _classwise}
# Of each voxel, from its probabilities and the smallest one of each class in a logarithm
SCORES: dict[str, Callable[[Voxels, torch.Tensor], torch.Tensor]] = {
    "nll": lambda voxels, floor: -voxels.p_label.maximum(floor[voxels.label]).log(),
    "brier": lambda voxels, floor: voxels.p.square().sum(0) - 2 * voxels.p_label + 1,
}


def names_of_sums(region: Region, measures: Collection[str]) -> list[str]:
    """Return the names of `RegionMeasures.sums`, for what is measured in a region."""
    kinds = [kind for kind in EVENTS if kind in measures]
    names = ["count", *kinds, *(name for name in SCORES if name in measures)]
    if region.has_closed_form and "if_true" in measures:
        names += [kind + IF_TRUE for kind in kinds]
    return names


class RegionSums:
    """Sums over the voxels of regions: `add` each chunk of `read_voxels`, then `measures`; see
    `measure_regions` for the arguments.

    A chunk is summed on its own first: one sum over millions of equal terms would drift, even in
    float64.
    """

    def __init__(
        self,
        measures: Mapping[Region, Collection[str]],
        y_pred: torch.Tensor,
        num_bins: int = 15,
        sigmoid: bool = False,
        lowest: float = 0.0,
        highest: float = 1.0,
    ) -> None:
        check_count("num_bins", num_bins, 1, 10_000)
        self.num_bins = num_bins
        batch, channels = y_pred.shape[:2]
        self._floor = _probability_floor(y_pred, sigmoid, lowest, highest)
        shapes = {TOP_LABEL: (3, 1, num_bins), CLASSWISE: (3, channels, num_bins)}
        self._sums: dict[Region, dict[str, torch.Tensor]] = {}
        for region, chosen in measures.items():
            self._sums[region] = {}
            for name in names_of_sums(region, chosen):
                shape = batch, *shapes.get(name.removesuffix(IF_TRUE), ())
                self._sums[region][name] = y_pred.new_zeros(shape, dtype=torch.float64)

    def add(self, voxels: Voxels) -> None:
        """Add a chunk of voxels."""
        every = self._events(voxels)
        for region, sums in self._sums.items():
            of_case = {name: total[voxels.case] for name, total in sums.items()}
            inside = region.select(voxels)
            of_case["count"] += inside.weight.sum()
            for name in SCORES.keys() & of_case.keys():
                of_case[name] += (SCORES[name](inside, self._floor) * inside.weight).sum()
            events = every if inside is voxels else self._events(inside)
            for kind in EVENTS.keys() & of_case.keys():
                is_true = events[kind].classes == inside.label
                sums_in_bins = events[kind].sums(inside.weight, is_true * inside.weight)
                of_case[kind][:, events[kind].rows] += sums_in_bins
            self._add_if_true(voxels, every, region, of_case)

    def _events(self, voxels: Voxels) -> dict[str, Events]:
        return {kind: events(voxels, self.num_bins) for kind, events in EVENTS.items()}

    def _add_if_true(
        self,
        voxels: Voxels,
        events: Mapping[str, Events],
        region: Region,
        of_case: Mapping[str, torch.Tensor],
    ) -> None:
        """Add all voxels with each label that would put them into the region, by its
        probability.
        """
        kinds = [kind for kind in EVENTS if kind + IF_TRUE in of_case]
        if not kinds:
            return
        classes = torch.arange(len(voxels.p), device=voxels.p.device)[:, None]
        weights = region.mask(voxels, classes) * voxels.p * voxels.weight  # of each label
        weight = weights.sum(0)
        for kind in kinds:
            true = weights.gather(0, events[kind].classes.expand_as(events[kind].p))
            of_case[kind + IF_TRUE][:, events[kind].rows] += events[kind].sums(weight, true)

    def measures(self) -> dict[Region, RegionMeasures]:
        """Return the measures of each region, from all voxels so far."""
        return {region: RegionMeasures(sums) for region, sums in self._sums.items()}


def _probability_floor(
    y_pred: torch.Tensor, sigmoid: bool, lowest: float, highest: float
) -> torch.Tensor:
    """Return the smallest probability of each class `(N,)` in a logarithm; of sigmoids `(2,)`."""
    if y_pred.dtype == torch.float16:
        lowest = max(lowest, LOWEST_HALF)
    if y_pred.dtype in (torch.float16, torch.bfloat16):
        highest = min(highest, 1 - torch.finfo(y_pred.dtype).eps / 4)  # half a step from 1
    classes = y_pred.shape[1]
    limits = [1 - highest, lowest] if sigmoid or classes == 1 else [lowest] * classes
    return y_pred.new_tensor(limits, dtype=torch.float64).clamp_min(LOWEST)


def calibration_bins(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int = 15,
    foreground_only: bool | None = None,
    ignore_index: int | None = None,
    classwise: bool = False,
    region: Any = None,
    sigmoid: bool = False,
) -> CalibrationBins:
    """Sort predicted probabilities into bins of equal width.

    Probabilities of any type are compared with the bin edges `i / num_bins` in float64; a
    probability within 1e-15 of an edge counts as equal to it.

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        classwise: False bins the highest probability of each voxel, which is correct where its
            class is the ground truth (for ECE). True bins the probability of every class, which is
            correct where that class is the ground truth (for CECE).
        region: See `calib_components.metrics`; None is "foreground".

    Returns:
        Bins of each case, `(B, num_bins)` or `(B, N, num_bins)`, on the device of `y_pred`.
    """
    kind = CLASSWISE if classwise else TOP_LABEL
    chosen = choose_region(region, foreground_only)
    measured = measure_regions(y_pred, y, {chosen: [kind]}, num_bins, ignore_index, sigmoid)
    return measured[chosen].bins[kind]
