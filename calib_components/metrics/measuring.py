"""One pass over the voxels of a batch for any number of regions and measures.

Next to each error, the pass gives the error that the probabilities would have if they were true, in
closed form. A voxel with probabilities `p` has label `k` with probability `p_k`. If class `k` would
put it into the region, it adds `p_k` to the count of its bin, `p_k` times its confidence to the sum
of confidences, and `p_k` to the number correct if `k` is the event of the bin. So this is the error
in the limit of many voxels. With few, such as those of a small structure, chance adds to it; the
mean error over labels drawn from the probabilities (`draws`) includes that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from calib_components.errors import check_count
from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.regions import Region, choose_region
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels

SMALLEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm
# In float16, half a step from 0, which others round to; bfloat16 goes as low as float32
LOWEST_HALF = 2.0**-25
KINDS = ("top_label", "classwise")  # of bins
MANY_SETS = 4096  # of regions, before those without a voxel are left out


class Measured(NamedTuple):
    """Measures of a region.

    Attributes:
        bins: "top_label" and "classwise"; of a region with a closed form also "top_label_if_true",
            "classwise_if_true".
        scores: "nll", "brier", and of a structure "resampled", the mean ECE over the drawn labels;
            `(B,)` each.
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
    """Measure probabilities in each of several regions. Other arguments and errors: see
    `calib_components.metrics`.

    Args:
        measures: Any of "top_label" and "classwise" (bins), "if_true" (also those that true
            probabilities would give), "nll" and "brier".
        temperature: By which the logits of `y_pred` were divided; the region "plausible" is decided
            without it.
        draws: How often labels are drawn from the probabilities, for structures.
        lowest: Takes the place of lower probabilities in the NLL, such as half a step of
            probabilities that were rounded to 8 bits, in which a 0 need not have been one.
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
    batch, channels = y_pred.shape[:2]
    zeros = functools.partial(y_pred.new_zeros, dtype=torch.float64)
    rows = {"top_label": 1, "classwise": channels}
    observed = {
        kind: zeros(3, len(regions), batch, rows[kind], num_bins)
        for kind in KINDS
        if kind in measures
    }
    closed = [
        i for i, region in enumerate(regions) if region.has_closed_form and "if_true" in measures
    ]
    expected = {kind: torch.zeros_like(total) for kind, total in observed.items() if closed}
    structures = [i for i, region in enumerate(regions) if region.kind == "structure" and draws > 0]
    drawn = zeros(len(regions), draws, batch, 3, num_bins) if structures else zeros(0)
    scores = {name: zeros(len(regions), batch) for name in SCORES if name in ("voxels", *measures)}
    for voxels in read_voxels(y_pred, y, None, ignore_index, sigmoid, temperature):
        # A chunk is summed on its own first: one sum over millions of equal terms would drift, even
        # in float64.
        case, (members, sets) = voxels.case, _sets([region.mask(voxels) for region in regions])
        for name, total in scores.items():
            total[:, case] += members @ bincount(
                sets, SCORES[name](voxels, floor), members.shape[1]
            )
        in_bins = {kind: _InBins(voxels, kind, num_bins) for kind in observed}
        for kind, binned in in_bins.items():
            sums = binned.observed(sets, members.shape[1])
            observed[kind][:, :, case, binned.rows] += torch.einsum("rs,fskb->frkb", members, sums)
        by_label = _drawn_sums(voxels, draws, num_bins) if structures else None
        every_class = voxels.with_label(
            torch.arange(len(voxels.p), device=voxels.p.device)[:, None]
        )
        for i in sorted({*closed, *structures}):
            mask = regions[i].mask(every_class)
            if i in closed:
                weight = (
                    (mask * voxels.p).sum(0) if mask.shape[1] > 1 else voxels.p[mask[:, 0]].sum(0)
                )
                for kind, binned in in_bins.items():
                    expected[kind][:, i, case, binned.rows] += binned.if_true(mask, weight)
            if by_label is not None and i in structures:
                drawn[i, :, case] += torch.einsum("dfkb,k->dfb", by_label, mask[:, 0].double())
    results = []
    for i in range(len(regions)):
        bins = {
            kind: CalibrationBins(total[0, i].long(), *total[1:, i])
            for kind, total in observed.items()
        }
        bins |= {
            f"{kind}_if_true": CalibrationBins(*total[:, i])
            for kind, total in expected.items()
            if i in closed
        }
        bins |= {
            kind: each.per_class()[0] for kind, each in bins.items() if kind.startswith("top_label")
        }
        means = {
            name: total[i] / scores["voxels"][i]
            for name, total in scores.items()
            if name != "voxels"
        }
        if i in structures:
            count, confidence_sum, num_correct = drawn[i].unbind(2)
            means["resampled"] = (
                (confidence_sum - num_correct).abs().sum(-1) / count.sum(-1)
            ).nanmean(0)
        results.append(Measured(bins, means))
    return results


# Of each voxel; None is 1
SCORES: dict[str, Callable[[Voxels, torch.Tensor], torch.Tensor | None]] = {
    "voxels": lambda voxels, floor: None,
    "nll": lambda voxels, floor: -voxels.p_label.maximum(floor[voxels.label]).log(),
    "brier": lambda voxels, floor: voxels.p.square().sum(0) - 2 * voxels.p_label + 1,
}


def _sets(masks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the sets of regions that voxels are in, so that one sum by set serves all regions.

    Returns:
        Which regions have which set, `(regions, sets)`, and the set of each voxel.
    """
    sets, number = torch.zeros_like(masks[0], dtype=torch.int64), 1
    for i, mask in enumerate(masks):
        sets, number = 2 * sets + mask, 2 * number
        if number > MANY_SETS or i == len(masks) - 1:  # keep those that some voxel is in
            found = bincount(sets, None, number) > 0
            sets, number = (found.cumsum(0) - 1)[sets], int(found.sum())
    members = torch.stack([bincount(sets, mask.double(), number) for mask in masks])
    return (members > 0).double(), sets


class _InBins:
    """Probabilities of some voxels in bins: a row of the top label, or a row for each class."""

    def __init__(self, voxels: Voxels, kind: str, num_bins: int) -> None:
        volume, self.label = voxels.volume, voxels.label
        if kind == "top_label":
            self.p, self.event, self.rows = (
                voxels.confidence[None],
                voxels.predicted[None],
                slice(0, 1),
            )
        else:
            first = int(volume.sigmoid)
            self.p = voxels.p[first:]
            self.event = torch.arange(first, len(voxels.p), device=self.p.device)[:, None]
            # Of a sigmoid, one of several
            self.rows = slice(volume.channel, volume.channel + len(self.p))
        self.size = len(self.p) * num_bins
        bins = bin_index(self.p, num_bins)
        self.index = bins + torch.arange(0, self.size, num_bins, device=self.p.device)[:, None]
        above = bins.flatten().nonzero().squeeze(1)
        few = 4 * len(above) < bins.numel()
        self.above: torch.Tensor | slice = above if few else slice(None)
        self.has_first = (bins == 0).any(1) if few else None

    def observed(self, sets: torch.Tensor, number: int) -> torch.Tensor:
        """Counts, sums of confidences and numbers correct in each of so many sets, `(3, number,
        rows, num_bins)`.
        """
        index, size = self.index + sets * self.size, number * self.size
        counts, sums = (
            bincount(index.flatten(), weights, size) for weights in (None, self.p.flatten())
        )
        correct = bincount(index[self.event == self.label], None, size)
        return torch.stack([counts, sums, correct]).view(3, number, len(self.p), -1)

    def if_true(self, mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The same in a region if labels are true with their probability, from `RegionKind.mask`
        and its probability.

        Of many classes, nearly all probabilities are in the first bin. Then only those above it are
        summed one by one; the first bin has what they leave of the sum of the row.
        """
        is_in = (
            mask[self.event, 0]
            if mask.shape[1] == 1
            else mask.gather(0, self.event.expand_as(self.p))
        )
        weights = (weight.expand_as(self.p), weight * self.p, is_in * self.p)
        sums = torch.stack(
            [
                bincount(self.index.flatten()[self.above], each.flatten()[self.above], self.size)
                for each in weights
            ]
        )
        sums = sums.view(3, len(self.p), -1)
        if self.has_first is not None:
            whole = torch.stack([each.sum(1) for each in weights])
            sums[..., 0] = (whole - sums.sum(-1)).clamp_min(0).where(self.has_first, 0)
        return sums.minimum(sums[:1])  # as they are, up to rounding


def _drawn_sums(voxels: Voxels, draws: int, num_bins: int) -> torch.Tensor:
    """Draw labels from the probabilities of some voxels.

    Returns:
        Of the voxels with each label and in each bin of the top label: counts, sums of confidences
        and numbers correct, `(draws, 3, N, num_bins)`.
    """
    p, confidence, predicted, volume = voxels.p, voxels.confidence, voxels.predicted, voxels.volume
    in_bin = bin_index(confidence, num_bins)
    # The bins of a case up to here are the seed: other numbers for other cases, but the same ones
    # for this case whichever come before it, since that depends on the number of processes.
    volume.seed = hash((volume.seed, int(in_bin.sum())))
    generator = torch.Generator(p.device).manual_seed(volume.seed)

    def sums(label: torch.Tensor, at: torch.Tensor | slice) -> torch.Tensor:
        index = label * num_bins + in_bin[at]
        weights = (None, confidence[at], (label == predicted[at]).double())
        return torch.stack([bincount(index, each, len(p) * num_bins) for each in weights])

    # Most labels are the predicted ones, which are summed once; then, in each draw, what differs.
    usual, share, u = (
        sums(predicted, slice(None)),
        confidence / p.sum(0),
        torch.empty_like(confidence),
    )
    drawn = []
    for _ in range(draws):
        at = (u.uniform_(generator=generator) >= share).nonzero().squeeze(1)
        others = p[:, at].scatter(0, predicted[None, at], 0).clamp_min(0)
        label = torch.multinomial(others.T, 1, generator=generator)[:, 0] if len(at) else at
        drawn.append(usual + sums(label, at) - sums(predicted[at], at))
    return torch.stack(drawn).view(draws, 3, len(p), num_bins)


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
    regions = [choose_region(region, foreground_only)]
    return measure_regions(y_pred, y, regions, [kind], num_bins, ignore_index, sigmoid)[0].bins[
        kind
    ]


def adaptive_calibration_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int = 15,
    foreground_only: bool | None = None,
    ignore_index: int | None = None,
    region: Any = None,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Adaptive ECE of each case: like top-label ECE, but with bins that hold equally many voxels.

    Bin edges are interpolated between the sorted confidences, and bins are `(lo, hi]`, as in the
    code published with Murugesan et al., MICCAI 2023. So the least confident voxel is in no bin; if
    several are equally confident, one of them is left out on average. Memory grows by some 50 bytes
    with each voxel of the region.

    Arguments and errors: see `calib_components.metrics`. The default region is "foreground".

    Returns:
        Float64 `(B,)`; NaN for a case without voxels.

    Source: Mukhoti et al., "Calibrating Deep Neural Networks using Focal Loss", NeurIPS 2020
        (AdaECE).
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    check_count("num_bins", num_bins, 1)
    errors = torch.full((len(y_pred),), torch.nan, dtype=torch.float64, device=y_pred.device)
    voxels = read_voxels(y_pred, y, choose_region(region, foreground_only), ignore_index, sigmoid)
    for case, parts in itertools.groupby(voxels, lambda part: part.case):
        found = [
            torch.stack(
                [part.confidence, part.confidence - (part.predicted == part.label).double()]
            )
            for part in parts
        ]
        confidence, residual = torch.cat(found, 1).cpu().numpy()
        number = len(confidence)
        edges = np.interp(
            np.arange(num_bins) * number / num_bins, np.arange(number), np.sort(confidence)
        )
        sums = np.bincount(np.searchsorted(edges[1:], confidence), residual, num_bins)
        sums[0] -= residual[confidence == edges[0]].mean()
        errors[case] = np.abs(sums).sum() / number
    return errors


def logit_magnitude_sums(
    logits: torch.Tensor, y: torch.Tensor, ignore_index: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum `|l|` of every channel over the voxels of each ground-truth class, for their mean
    magnitude.

    Args:
        logits: Output of a network before softmax, `(B, N, *S)`.
        y, ignore_index: See `calib_components.metrics`.

    Returns:
        The float64 sums by ground-truth class and channel, `(B, N, N)`, and the int64 numbers of
        voxels of each class, `(B, N)`.

    Raises:
        InputError: Shapes do not match, some logits are NaN or infinite, or `y` holds invalid
            labels.

    Source: Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model
        Calibration", MICCAI 2023,
    Fig. 2.
    """
    logits, y = check_tensors(logits, y, name="logits")
    batch, classes = logits.shape[:2]
    sums = logits.new_zeros(batch, classes, classes, dtype=torch.float64)
    count = logits.new_zeros(batch, classes, dtype=torch.int64)
    for voxels in read_voxels(logits, y, None, ignore_index, logits=True):
        one_hot = (
            voxels.label == torch.arange(len(voxels.values), device=y.device)[:, None]
        ).double()
        sums[voxels.case] += (one_hot @ voxels.values.abs().T)[-classes:, -classes:]
        count[voxels.case] += one_hot.sum(1).long()[-classes:]
    return sums, count
