"""One pass over the voxels of a batch for any number of regions and measures.

Next to each error, the pass gives the error that the probabilities would have if they were true, in closed form. A
voxel with probabilities `p` has label `k` with probability `p_k`. If class `k` would put it into the region, it adds
`p_k` to the count of its bin, `p_k` times its confidence to the sum of confidences, and `p_k` to the number correct if
`k` is the event of the bin. So this is the error in the limit of many voxels. With few, such as those of a small
structure, chance adds to it; the mean error over labels drawn from the probabilities (`draws`) includes that.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch

from calib_components.errors import check_count
from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.regions import Region, choose_region
from calib_components.metrics.voxels import Voxels, check_tensors, read_chunks

SMALLEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm
LOWEST_HALF = 2.0**-25  # in float16, half a step from 0, which others round to; bfloat16 goes as low as float32
KINDS = ("top_label", "classwise")  # of bins


class Measured(NamedTuple):
    """Measures of a region.

    Attributes:
        bins: "top_label" and "classwise"; of a region with a closed form also "top_label_if_true", "classwise_if_true".
        scores: "nll", "brier", and of a structure "resampled", the mean ECE over the drawn labels; `(B,)` each.
    """

    bins: dict[str, CalibrationBins]
    scores: dict[str, torch.Tensor]


def measure_regions(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    regions: Sequence[Region],
    measures: Collection[str],
    num_bins: int = 15,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    temperature: float | None = None,
    draws: int = 0,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> list[Measured]:
    """Measure probabilities in each of several regions. Other arguments and errors: see `calib_components.metrics`.

    Args:
        measures: Any of "top_label" and "classwise" (bins), "if_true" (also those that true probabilities would give),
            "nll" and "brier".
        temperature: By which the logits of `y_pred` were divided; the region "plausible" is decided without it.
        draws: How often labels are drawn from the probabilities, for structures.
        lowest: Takes the place of lower probabilities in the NLL, such as half a step of probabilities that were
            rounded to 8 bits, in which a 0 need not have been one.
        highest: Takes the place of higher probabilities of sigmoids in the NLL, likewise.
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    check_count("num_bins", num_bins, 1, 10_000)
    sigmoid = sigmoid or y_pred.shape[1] == 1
    if y_pred.dtype == torch.float16:
        lowest = max(lowest, LOWEST_HALF)
    if y_pred.dtype in (torch.float16, torch.bfloat16):
        highest = min(highest, 1 - torch.finfo(y_pred.dtype).eps / 4)  # half a step from 1
    limits = [1 - highest, lowest] if sigmoid else [lowest] * y_pred.shape[1]
    floor = y_pred.new_tensor(limits, dtype=torch.float64).clamp_min(SMALLEST)
    totals = [_Totals(region, y_pred, measures, num_bins, draws, floor) for region in regions]
    labels = _DrawnLabels(draws, num_bins)
    for voxels in read_chunks(y_pred, y, ignore_index, sigmoid, temperature):
        in_bins = {kind: _InBins(voxels, kind, num_bins) for kind in KINDS if kind in measures}
        if any(len(total.drawn) for total in totals):
            labels.draw(voxels)
        for total in totals:
            total.add(voxels, in_bins, labels)
    return [total.results() for total in totals]


class _Totals:
    """Sums over the voxels of a region, of each case."""

    def __init__(
        self,
        region: Region,
        y_pred: torch.Tensor,
        measures: Collection[str],
        num_bins: int,
        draws: int,
        floor: torch.Tensor,
    ) -> None:
        batch, channels = y_pred.shape[:2]
        zeros = functools.partial(y_pred.new_zeros, dtype=torch.float64)
        rows = {"top_label": 1, "classwise": channels}
        kinds = [kind for kind in KINDS if kind in measures]
        expected = kinds if region.has_closed_form and "if_true" in measures else []
        self.region, self.num_bins, self.floor = region, num_bins, floor
        self.observed, self.expected = (
            {kind: zeros(3, batch, rows[kind], num_bins) for kind in each} for each in (kinds, expected)
        )
        self.scores = {score: zeros(batch) for score in ("nll", "brier") if score in measures}
        self.voxels = zeros(batch)
        self.drawn = zeros(draws if region.kind == "structure" else 0, batch, 3, num_bins)

    def add(self, voxels: Voxels, in_bins: dict[str, _InBins], labels: _DrawnLabels) -> None:
        """Add the voxels of a chunk that are in the region, or would be with another label."""
        part, case = self.region.select(voxels), voxels.case
        # A chunk is summed on its own first: one sum over millions of equal terms would drift, even in float64.
        if len(part.label) > 0:
            self.voxels[case] += len(part.label)
            if "nll" in self.scores:
                self.scores["nll"][case] -= part.p_label.maximum(self.floor[part.label]).log().sum()
            if "brier" in self.scores:
                self.scores["brier"][case] += (part.p.square().sum(0) - 2 * part.p_label + 1).sum()
            for kind, total in self.observed.items():
                of_part = in_bins[kind] if part is voxels else _InBins(part, kind, self.num_bins)
                total[:, case, of_part.rows] += of_part.observed()
        if self.expected or len(self.drawn):
            every_class = torch.arange(len(voxels.p), device=voxels.p.device)[:, None]
            mask = self.region.mask(voxels.with_label(every_class))
            weight = (mask * voxels.p).sum(0) if mask.shape[1] > 1 else voxels.p[mask[:, 0]].sum(0)
            for kind, total in self.expected.items():
                total[:, case, in_bins[kind].rows] += in_bins[kind].if_true(mask, weight)
            if len(self.drawn):
                self.drawn[:, case] += torch.einsum("dfkb,k->dfb", labels.sums, mask[:, 0].double())

    def results(self) -> Measured:
        """Return the measures of the region."""
        bins = {kind: CalibrationBins(count.long(), *sums) for kind, (count, *sums) in self.observed.items()}
        bins |= {f"{kind}_if_true": CalibrationBins(*sums) for kind, sums in self.expected.items()}
        for kind in bins:
            if kind.startswith("top_label"):
                (bins[kind],) = bins[kind].per_class()
        scores = {score: total / self.voxels for score, total in self.scores.items()}
        if len(self.drawn):
            count, confidence_sum, num_correct = self.drawn.unbind(2)
            scores["resampled"] = ((confidence_sum - num_correct).abs().sum(-1) / count.sum(-1)).nanmean(0)
        return Measured(bins, scores)


class _InBins:
    """Probabilities of some voxels in bins: a row of the top label, or a row for each class.

    Nearly all probabilities of many classes are in the first bin. So only those above it are summed one by one; the
    first bin has what they leave of the sum of the row.
    """

    def __init__(self, voxels: Voxels, kind: str, num_bins: int) -> None:
        volume, self.label = voxels.volume, voxels.label
        if kind == "top_label":
            self.p, self.event, self.rows = voxels.confidence[None], voxels.predicted[None], slice(0, 1)
        else:
            first = int(volume.sigmoid)
            self.p = voxels.p[first:]
            self.event = torch.arange(first, len(voxels.p), device=self.p.device)[:, None]
            self.rows = slice(volume.channel, volume.channel + len(self.p))  # of a sigmoid, one of several
        self.shape = len(self.p), num_bins
        index = bin_index(self.p, num_bins)
        self.has_first = (index == 0).any(1)
        self.above = index.flatten().nonzero().squeeze(1) if self.has_first.any() else slice(None)
        offset = torch.arange(0, len(self.p) * num_bins, num_bins, device=self.p.device)[:, None]
        self.index = (index + offset).flatten()[self.above]

    def observed(self) -> torch.Tensor:
        """Counts, sums of confidences and numbers correct, `(3, rows, num_bins)`."""
        correct = (self.event == self.label).double()
        sums = [self._sum(None, len(self.label)), self._sum(self.p, self.p.sum(1)), self._sum(correct, correct.sum(1))]
        return torch.stack(sums)

    def if_true(self, mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The same if each label is true with its probability, from the mask of `RegionKind` and its probability."""
        is_in = mask[self.event, 0] if mask.shape[1] == 1 else mask.gather(0, self.event.expand_as(self.p))
        correct = is_in * self.p
        count = self._sum(weight.expand_as(self.p), weight.sum())
        sums = [count, self._sum(weight * self.p, self.p @ weight), self._sum(correct, correct.sum(1))]
        return torch.stack(sums).minimum(count)  # as they are, but for rounding

    def _sum(self, weights: torch.Tensor | None, of_rows: torch.Tensor | int) -> torch.Tensor:
        """Sum weights `(rows, voxels)` in each bin; `of_rows` are their sums over all bins of a row."""
        above = None if weights is None else weights.flatten()[self.above]
        sums = bincount(self.index, above, self.shape[0] * self.shape[1]).double().view(self.shape)
        sums[:, 0] = (of_rows - sums.sum(1)).clamp_min(0).where(self.has_first, 0)
        return sums


class _DrawnLabels:
    """Labels drawn from the probabilities of some voxels.

    Attributes:
        sums: Of the voxels with each label and in each bin of the top label: counts, sums of confidences and numbers
            correct, `(draws, 3, N, num_bins)`.
    """

    def __init__(self, draws: int, num_bins: int) -> None:
        self.draws, self.num_bins = draws, num_bins
        self.volume, self.seed = (-1, 0), 0

    def draw(self, voxels: Voxels) -> None:
        """Draw the labels of some voxels."""
        p, (confidence, predicted) = voxels.p, voxels.top
        in_bin = bin_index(confidence, self.num_bins)
        # The bins of a case up to here are the seed: other numbers for other cases, but the same ones for this case
        # whichever come before it, since that depends on the number of processes.
        volume = voxels.case, voxels.volume.channel
        if self.volume != volume:
            self.volume, self.seed = volume, voxels.volume.channel
        self.seed = hash((self.seed, int(in_bin.sum())))
        generator = torch.Generator(p.device).manual_seed(self.seed)

        def sums(label: torch.Tensor, at: torch.Tensor | slice) -> torch.Tensor:
            index = label * self.num_bins + in_bin[at]
            weights = (None, confidence[at], (label == predicted[at]).double())
            return torch.stack([bincount(index, of, len(p) * self.num_bins).double() for of in weights])

        # Most labels are the predicted ones, which are summed once; then, in each draw, what differs.
        usual, share, u = sums(predicted, slice(None)), confidence / p.sum(0), torch.empty_like(confidence)
        drawn = []
        for _ in range(self.draws):
            at = (u.uniform_(generator=generator) >= share).nonzero().squeeze(1)
            others = p[:, at].scatter(0, predicted[None, at], 0).clamp_min(0)
            label = torch.multinomial(others.T, 1, generator=generator)[:, 0] if len(at) else at
            drawn.append(usual + sums(label, at) - sums(predicted[at], at))
        self.sums = torch.stack(drawn).view(self.draws, 3, len(p), self.num_bins)


def bin_index(p: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Bin `(lo, hi]` of each probability, int32, for probabilities in float64."""
    # The edge i / num_bins, whichever way it was rounded, scales to less than i and so falls into the bin below.
    return (p * (num_bins * (1 - 1e-15))).int().clamp_(max=num_bins - 1)


def bincount(index: torch.Tensor, weights: torch.Tensor | None, size: int) -> torch.Tensor:
    """Return what `torch.bincount` does, also where PyTorch is told to use deterministic algorithms alone."""
    if weights is None or not (index.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return torch.bincount(index, weights, size)
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

    Probabilities of any type are compared with the bin edges `i / num_bins` in float64; a probability within 1e-15 of
    an edge counts as equal to it.

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        classwise: False bins the highest probability of each voxel, which is correct where its class is the ground
            truth (for ECE). True bins the probability of every class, which is correct where that class is the ground
            truth (for CECE).
        region: See `calib_components.metrics`; None is "foreground".

    Returns:
        Bins of each case, on the device of `y_pred`.
    """
    kind = "classwise" if classwise else "top_label"
    regions = [choose_region(region, foreground_only)]
    return measure_regions(y_pred, y, regions, [kind], num_bins, ignore_index, sigmoid)[0].bins[kind]
