"""One pass over the voxels of a batch for any number of regions and measures.

In each chunk of voxels, the mask of a region chooses some; their counts, confidences, correct
predictions and scores are summed; and the sums become bins and means.

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
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels, split_channels

SMALLEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm
# In float16, half a step from 0, which others round to; bfloat16 goes as low as float32
LOWEST_HALF = 2.0**-25


@dataclass(frozen=True, eq=False)
class Measured:
    """Measures of a region.

    Attributes:
        count: Number of voxels, `(B,)`, float64.
        bins: "top_label" and "classwise"; of a region with a closed form also "top_label_if_true",
            "classwise_if_true".
        scores: "nll" and "brier", `(B,)` each; NaN without a voxel.
    """

    count: torch.Tensor
    bins: dict[str, CalibrationBins]
    scores: dict[str, torch.Tensor]


def measure_regions(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    measures: Mapping[Region, Collection[str]],
    num_bins: int = 15,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> dict[Region, Measured]:
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
    check_count("num_bins", num_bins, 1, 10_000)
    batch, channels = y_pred.shape[:2]
    if sigmoid or channels == 1:
        y_pred, y = split_channels(y_pred), split_channels(y)
    floor = _probability_floor(y_pred, lowest, highest)
    sums = {
        region: _RegionSums(region, names, y_pred, num_bins) for region, names in measures.items()
    }
    if_true = {kind for region_sums in sums.values() for kind in region_sums.if_true}
    for voxels in read_voxels(y_pred, y, ignore_index=ignore_index, soft=True):
        events = {kind: EVENTS[kind](voxels, num_bins) for kind in if_true}
        for region_sums in sums.values():
            region_sums.add(voxels, floor)
            region_sums.add_if_true(voxels, events)
    return {region: region_sums.reduce(batch) for region, region_sums in sums.items()}


def _probability_floor(y_pred: torch.Tensor, lowest: float, highest: float) -> torch.Tensor:
    """Return the smallest probability of each class `(N,)` in a logarithm; of sigmoids `(2,)`."""
    if y_pred.dtype == torch.float16:
        lowest = max(lowest, LOWEST_HALF)
    if y_pred.dtype in (torch.float16, torch.bfloat16):
        highest = min(highest, 1 - torch.finfo(y_pred.dtype).eps / 4)  # half a step from 1
    classes = y_pred.shape[1]
    limits = [1 - highest, lowest] if classes == 1 else [lowest] * classes
    return y_pred.new_tensor(limits, dtype=torch.float64).clamp_min(SMALLEST)


@dataclass(eq=False)
class Events:
    """What is binned of some voxels: one row for the top label, or a row for each class.

    Attributes:
        p: Probabilities of the events, `(rows, voxels)`.
        classes: The class whose label makes an event true, `(rows, voxels)` or `(rows, 1)`.
        num_bins: Number of bins.
    """

    p: torch.Tensor
    classes: torch.Tensor
    num_bins: int

    @cached_property
    def index(self) -> torch.Tensor:
        """Number of the bin of each event, those of all rows in turn, `(rows * voxels,)`."""
        bins = bin_index(self.p, self.num_bins)
        first = torch.arange(len(bins), device=bins.device) * self.num_bins
        return (bins + first[:, None]).flatten()

    def sums(self, *weights: torch.Tensor | None) -> torch.Tensor:
        """Sum weights `(rows, voxels)`, None for 1, in each bin: float64 `(weights, rows,
        bins)`.
        """
        shape = len(self.p), self.num_bins
        flat = (None if weight is None else weight.flatten() for weight in weights)
        sums = [bincount(self.index, each, shape[0] * shape[1]) for each in flat]
        return torch.stack(sums).view(-1, *shape)


def _top_label(voxels: Voxels, num_bins: int) -> Events:
    return Events(voxels.confidence[None], voxels.predicted[None], num_bins)


def _classwise(voxels: Voxels, num_bins: int) -> Events:
    first = int(voxels.volume.batch.y_pred.shape[1] == 1)  # the background of a sigmoid is no class
    classes = torch.arange(first, len(voxels.p), device=voxels.p.device)[:, None]
    return Events(voxels.p[first:], classes, num_bins)


EVENTS = {"top_label": _top_label, "classwise": _classwise}
# Of each voxel, from its probabilities and the smallest one of each class in a logarithm
SCORES: dict[str, Callable[[Voxels, torch.Tensor], torch.Tensor]] = {
    "nll": lambda voxels, floor: -voxels.p_label.maximum(floor[voxels.label]).log(),
    "brier": lambda voxels, floor: voxels.p.square().sum(0) - 2 * voxels.p_label + 1,
}


class _RegionSums:
    """Sums over the voxels of a region, float64, of each case.

    A chunk is summed on its own first: one sum over millions of equal terms would drift, even in
    float64.
    """

    def __init__(
        self, region: Region, measures: Collection[str], y_pred: torch.Tensor, num_bins: int
    ) -> None:
        self.region, self.num_bins = region, num_bins
        batch, channels = y_pred.shape[:2]
        rows = {"top_label": 1, "classwise": channels}

        def zeros(*shape: int) -> torch.Tensor:
            return y_pred.new_zeros(shape, dtype=torch.float64)

        # Counts, sums of confidences, and numbers correct
        kinds = [kind for kind in EVENTS if kind in measures]
        self.observed = {kind: zeros(3, batch, rows[kind], num_bins) for kind in kinds}
        self.if_true: dict[str, torch.Tensor] = {}
        if region.has_closed_form and "if_true" in measures:
            self.if_true = {kind: zeros(3, batch, rows[kind], num_bins) for kind in kinds}
        self.count = zeros(batch)
        self.scores = {name: zeros(batch) for name in SCORES if name in measures}

    def add(self, voxels: Voxels, floor: torch.Tensor) -> None:
        """Add a chunk of voxels, of which those in the region count."""
        inside, case = self.region.select(voxels), voxels.case
        self.count[case] += inside.count
        for name, total in self.scores.items():
            total[case] += inside.weighted(SCORES[name](inside, floor)).sum()
        for kind, total in self.observed.items():
            events = EVENTS[kind](inside, self.num_bins)
            is_true = (events.classes == inside.label).double()
            once = None if inside.weight is None else inside.weight.expand_as(events.p)
            sums = events.sums(once, inside.weighted(events.p), inside.weighted(is_true))
            total[:, case] += sums

    def add_if_true(self, voxels: Voxels, events: Mapping[str, Events]) -> None:
        """Add all voxels with each label that would put them into the region, by its
        probability.
        """
        if not self.if_true:
            return
        classes = torch.arange(len(voxels.p), device=voxels.p.device)[:, None]
        weights = voxels.weighted(self.region.mask(voxels, classes) * voxels.p)  # of each label
        for kind, total in self.if_true.items():
            p = events[kind].p
            weight = weights.sum(0).expand_as(p)
            p_true = weights.gather(0, events[kind].classes.expand_as(p))
            sums = events[kind].sums(weight, weight * p, p_true)
            total[:, voxels.case] += sums

    def reduce(self, batch: int) -> Measured:
        """Return the bins and the mean scores of the cases of a batch, of which a case of several
        sigmoids has a voxel in each channel.
        """

        def of_cases(kind: str, total: torch.Tensor) -> torch.Tensor:
            by_channel = total.unflatten(1, (batch, -1))
            return by_channel.sum((2, 3)) if kind == "top_label" else by_channel.flatten(2, 3)

        bins = {}
        for kind, total in self.observed.items():
            count, *others = of_cases(kind, total)
            bins[kind] = CalibrationBins(_whole(count), *others)
        for kind, total in self.if_true.items():
            bins[f"{kind}_if_true"] = CalibrationBins(*of_cases(kind, total))
        count = self.count.view(batch, -1).sum(1)
        scores = {name: total.view(batch, -1).sum(1) / count for name, total in self.scores.items()}
        return Measured(count, bins, scores)


def _whole(counts: torch.Tensor) -> torch.Tensor:
    """Return counts as integers, unless labels that are probabilities gave parts of voxels."""
    return counts.long() if (counts == counts.round()).all() else counts


def bin_index(p: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Bin `(lo, hi]` of each probability, int32, for probabilities in float64."""
    # The edge i / num_bins, whichever way it was rounded, scales to less than i and so falls into
    # the bin below.
    return (p * (num_bins * (1 - 1e-15))).int().clamp_(max=num_bins - 1)


def bincount(index: torch.Tensor, weights: torch.Tensor | None, size: int) -> torch.Tensor:
    """Return `torch.bincount` in float64, also where PyTorch is told to use deterministic
    algorithms alone.
    """
    if weights is None or not (index.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return torch.bincount(index, weights, size).double()
    return torch.zeros(size, dtype=torch.float64, device=index.device).index_add_(0, index, weights)


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
        Bins of each case, on the device of `y_pred`.
    """
    kind = "classwise" if classwise else "top_label"
    chosen = choose_region(region, foreground_only)
    measured = measure_regions(y_pred, y, {chosen: [kind]}, num_bins, ignore_index, sigmoid)
    return measured[chosen].bins[kind]
