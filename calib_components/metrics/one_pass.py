"""One pass over the voxels of a batch for any number of regions and measures.

Next to each error, the pass gives the error that the probabilities would have if they were true, in closed form. A
voxel with probabilities `p` has label `k` with probability `p_k`. If class `k` would put it into the region, it adds
`p_k` to the count of its bin, `p_k` times its confidence to the sum of confidences, and `p_k` to the number correct if
`k` is the event of the bin. So this is the error in the limit of many voxels. With few, such as those of a small
structure, chance adds to it; the mean error over labels drawn from the probabilities (`draws`) includes that.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from calib_components.arguments import check_count
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import (
    RANGE_TOLERANCE,
    SUM_TOLERANCE,
    Voxels,
    check_tensors,
    chunk_size,
    read_chunks,
)

__all__ = ["check_num_bins", "measure_regions"]

LARGEST_NUM_BINS = 10_000  # so that numbers of bins fit into int32 for any number of classes that fits into memory
SMALLEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm


def check_num_bins(num_bins: int) -> None:
    """Raise `ValueError` unless a number of bins is a whole number from 1 to 10,000."""
    check_count("num_bins", num_bins, 1, LARGEST_NUM_BINS)


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
) -> list[dict[str, list[torch.Tensor]]]:
    """Measure probabilities in several regions.

    Args:
        y_pred: Probabilities, `(B, N, *S)`.
        y: Class index, `(B, 1, *S)`, or its one-hot encoding, `(B, N, *S)`; for sigmoids 0 or 1, `(B, N, *S)`.
        regions: Where to measure.
        measures: Any of "top_label" and "classwise" (bins), "if_true" (also those that true probabilities would give),
            "nll" and "brier".
        num_bins: Number of bins.
        ignore_index: Ground-truth value of voxels to leave out; their probabilities are not checked.
        sigmoid: Whether each channel is a binary problem of its own.
        temperature: By which the logits of `y_pred` were divided; the region "plausible" is decided without it.
        draws: How often labels are drawn from the probabilities, for structures.

    Returns:
        For each region, by name: "top_label" `(B, num_bins)` and "classwise" `(B, N, num_bins)`, each as count, sum of
        confidences and number correct; "top_label_if_true" and "classwise_if_true" in the same form, for regions with
        a closed form; "nll" and "brier", `(B,)`; and "resampled", `(B,)`, the mean error of the top label over the
        drawn labels of a structure.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    check_num_bins(num_bins)
    bins = _Bins(y_pred, num_bins, sigmoid or y_pred.shape[1] == 1)
    kinds = [kind for kind in ("top_label", "classwise") if kind in measures]
    scores = [score for score in ("nll", "brier") if score in measures]
    given, regions = regions, list(dict.fromkeys(regions))
    # The region "all" takes whole chunks; of the other regions, small parts are joined to chunks.
    whole = [i for i, region in enumerate(regions) if region.kind == "all"]
    parts = [i for i, region in enumerate(regions) if region.kind != "all"]
    closed = [i for i in parts if regions[i].has_closed_form and "if_true" in measures]
    structures = [i for i in parts if regions[i].kind == "structure" and draws > 0]
    of_whole = _Observed(len(whole), bins, kinds, scores)
    of_parts = _Observed(len(parts), bins, kinds, scores)
    expected = _Expected([regions[i] for i in closed], bins, kinds)
    drawn = _Drawn([regions[i] for i in structures], bins, draws)

    def read_parts() -> Iterator[tuple[Voxels, torch.Tensor]]:
        for voxels in read_chunks(y_pred, y, regions, ignore_index, sigmoid, temperature):
            if whole:
                of_whole.add(voxels, bins.sort(voxels, kinds))
            if structures:
                drawn.add(voxels)
            if parts:
                inside = [voxels.inside(regions[i]) for i in parts]
                needed = functools.reduce(torch.logical_or, inside)
                if closed:
                    needed = needed | expected.add_background(voxels)
                index = needed.nonzero().squeeze(1)
                yield voxels.select(index), torch.stack([mask.index_select(0, index) for mask in inside])

    for voxels, inside in _fill_chunks(read_parts(), chunk_size(y_pred, bins.num_classes)):
        in_bins = bins.sort(voxels, kinds)
        of_parts.add(voxels, in_bins, inside)
        if closed:
            expected.add(voxels, in_bins)
    results: list[dict[str, list[torch.Tensor]]] = [{} for _ in regions]
    for measured, numbers in ((of_whole, whole), (of_parts, parts), (expected, closed), (drawn, structures)):
        for i, of_region in zip(numbers, measured.results(), strict=True):
            results[i].update(of_region)
    return [results[regions.index(region)] for region in given]


def _fill_chunks(parts: Iterator[tuple[Voxels, torch.Tensor]], largest: int) -> Iterator[tuple[Voxels, torch.Tensor]]:
    """Join small parts of the same case, with their masks `(regions, voxels)`."""
    waiting: list[tuple[Voxels, torch.Tensor]] = []
    number = 0
    for voxels, inside in parts:
        if waiting and (number + len(voxels.label) > largest or not voxels.same_case(waiting[0][0])):
            yield _join(waiting)
            waiting, number = [], 0
        if len(voxels.label) > 0:
            waiting.append((voxels, inside))
            number += len(voxels.label)
    if waiting:
        yield _join(waiting)


def _join(parts: Sequence[tuple[Voxels, torch.Tensor]]) -> tuple[Voxels, torch.Tensor]:
    return Voxels.join([voxels for voxels, _ in parts]), torch.cat([inside for _, inside in parts], 1)


class _Bins:
    """Bins of equal width, of the top label or of each class."""

    def __init__(self, y_pred: torch.Tensor, num_bins: int, sigmoid: bool) -> None:
        self.batch, self.channels = y_pred.shape[:2]
        self.device = y_pred.device
        self.num_bins = num_bins
        self.sigmoid = sigmoid
        self.num_classes = 2 if sigmoid else self.channels
        self.sizes = {"top_label": num_bins, "classwise": self.channels * num_bins}
        self.shapes = {"top_label": (num_bins,), "classwise": (self.channels, num_bins)}

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Sums of each case."""
        return torch.zeros(self.batch, *shape, dtype=dtype, device=self.device)

    def class_masks(self, regions: Sequence[Region]) -> torch.Tensor:
        """Which classes put a voxel into each region, `(regions, N)`, 0 or 1 in float64."""
        masks = torch.zeros(len(regions), self.num_classes, dtype=torch.float64)
        for mask, region in zip(masks, regions, strict=True):
            mask[region.true_classes(self.num_classes)] = 1
        return masks.to(self.device)

    def index(self, p: torch.Tensor) -> torch.Tensor:
        # The edge i / num_bins, whichever way it was rounded, scales to less than i and so falls into the bin below.
        return (p * (self.num_bins * (1 - 1e-15))).int().clamp_(max=self.num_bins - 1)

    def sort(self, voxels: Voxels, kinds: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Bins and confidences, `(rows, voxels)`, of each kind.

        One row for the top label; classwise, one for each class, or one for the channel of sigmoids.
        """
        in_bins = {}
        for kind in kinds:
            if kind == "top_label":
                confidence = voxels.top[0][None]
                in_bins[kind] = self.index(confidence), confidence
            elif self.sigmoid:
                confidence = voxels.p[1:]
                in_bins[kind] = self.index(confidence).add_(voxels.channel * self.num_bins), confidence
            else:
                first = torch.arange(0, self.sizes[kind], self.num_bins, dtype=torch.int32, device=self.device)
                in_bins[kind] = self.index(voxels.p).add_(first[:, None]), voxels.p
        return in_bins


class _Sums:
    """Counts, sums of confidences and numbers correct of bins, for each case and region."""

    def __init__(self, regions: int, bins: _Bins, kinds: Sequence[str]) -> None:
        self.regions, self.bins = regions, bins
        self.of_kinds = {kind: [bins.zeros(regions, bins.sizes[kind]) for _ in range(3)] for kind in kinds}

    def add(
        self, case: int, region: int, kind: str, field: int, index: torch.Tensor, weights: torch.Tensor | None = None
    ) -> None:
        """Add weights `(rows, voxels)`, or 1, to the bins `(rows, voxels)` of a field."""
        total = self.of_kinds[kind][field][case, region]
        # Sum a chunk on its own first: one sum over millions of equal terms would drift, even in float64.
        of_chunk = torch.bincount(index.flatten(), None if weights is None else weights.flatten(), len(total))
        total.add_(of_chunk)

    def results(self, region: int) -> dict[str, list[torch.Tensor]]:
        shapes = self.bins.shapes
        return {
            kind: [total[:, region].reshape(-1, *shapes[kind]) for total in sums]
            for kind, sums in self.of_kinds.items()
        }


class _Observed:
    """Sums over the voxels of some regions, with their labels."""

    def __init__(self, regions: int, bins: _Bins, kinds: Sequence[str], scores: Sequence[str]) -> None:
        self.bins = bins
        self.sums = _Sums(regions, bins, kinds)
        self.scores = {score: bins.zeros(regions) for score in scores}
        self.voxels = bins.zeros(regions)

    def add(self, voxels: Voxels, in_bins: Mapping[str, Any], inside: torch.Tensor | None = None) -> None:
        """Add the voxels that are inside each region, `(regions, voxels)`, or all voxels."""
        scores = {score: SCORES[score](voxels.p, voxels.label) for score in self.scores}
        # One region after the other, so that the working memory does not grow with their number.
        for region in range(self.sums.regions):
            to = voxels.case, region
            weight = None if inside is None else inside[region].double()
            for kind, (index, confidence) in in_bins.items():
                self.sums.add(*to, kind, 0, index, None if weight is None else weight.expand(len(index), -1))
                self.sums.add(*to, kind, 1, index, confidence if weight is None else weight * confidence)
                if kind == "classwise" and not self.bins.sigmoid:
                    self.sums.add(*to, kind, 2, index.gather(0, voxels.label[None]), weight)
                else:
                    correct = voxels.label == (voxels.top[1] if kind == "top_label" else 1)
                    self.sums.add(*to, kind, 2, index, correct if weight is None else weight * correct)
            for score, values in scores.items():
                self.scores[score][to] += values.sum() if weight is None else weight @ values
            self.voxels[to] += len(voxels.label) if weight is None else weight.sum()

    def results(self) -> list[dict[str, list[torch.Tensor]]]:
        results = []
        for i in range(self.sums.regions):
            result = self.sums.results(i)
            for fields in result.values():
                fields[0] = fields[0].long()
            result.update({score: [total[:, i] / self.voxels[:, i]] for score, total in self.scores.items()})
            results.append(result)
        return results


class _Expected:
    """What the voxels would add to each region on average if their probabilities were true.

    In most voxels of a volume the background is so probable that the bins of all classes are known: the last of class
    0 and the first of the others. Sums of products replace the sorting of these.
    """

    def __init__(self, regions: Sequence[Region], bins: _Bins, kinds: Sequence[str]) -> None:
        self.bins = bins
        self.classes = bins.class_masks(regions)
        self.unions = [region.kind == "union" for region in regions]
        self.sums = _Sums(len(regions), bins, kinds)
        slack = SUM_TOLERANCE + bins.num_classes * RANGE_TOLERANCE  # by which the others may exceed 1 - p_0
        self.background_above = max(1 + slack - 1 / bins.num_bins, (1 + slack) / 2)
        # Sums of w p over these voxels; w: probability of being in each region, and 1.
        self.background = bins.zeros(bins.channels if bins.sigmoid else 1, len(regions) + 1, bins.num_classes)

    def add_background(self, voxels: Voxels) -> torch.Tensor:
        """Add the voxels that need not be sorted, and return a mask of those that must be."""
        p = voxels.p
        others = p[0] <= self.background_above
        *of_regions, total = self.background[voxels.case, voxels.channel]
        for of_region, classes in zip(of_regions, self.classes, strict=True):
            of_region += p @ (classes @ p).masked_fill_(others, 0)
        total += p @ (~others).double()
        return others

    def add(self, voxels: Voxels, in_bins: Mapping[str, Any]) -> None:
        p, predicted = voxels.p, voxels.top[1]
        background = p[0] > self.background_above  # added already
        for region, (classes, union) in enumerate(zip(self.classes, self.unions, strict=True)):
            chosen = (predicted != 0) & union  # in the region with any label
            weight = torch.where(chosen, p.sum(0), classes @ p).masked_fill_(background, 0)
            for kind, (index, confidence) in in_bins.items():
                event = classes[predicted][None] if kind == "top_label" else classes[-len(index) :, None]
                event = torch.where(chosen, 1, event).masked_fill_(background, 0)
                for field, values in enumerate(
                    (weight.expand(len(index), -1), weight * confidence, event * confidence)
                ):
                    self.sums.add(voxels.case, region, kind, field, index, values)

    def results(self) -> list[dict[str, list[torch.Tensor]]]:
        confidence_sum, totals = self.background[:, :, :-1], self.background[:, :, -1:]
        num_correct = totals * self.classes
        background = (num_correct.sum(-1, keepdim=True).expand_as(num_correct), confidence_sum, num_correct)
        results = []
        for i in range(self.sums.regions):
            result = self.sums.results(i)
            for kind, fields in result.items():
                for field, values in zip(fields, (values[:, :, i] for values in background), strict=True):
                    if kind == "top_label":
                        field[:, -1] += values[..., 0].sum(1)
                    elif self.bins.sigmoid:
                        field[..., 0] += values[..., -1]
                    else:
                        field[:, 1:, 0] += values[:, 0, 1:]
                        field[:, 0, -1] += values[:, 0, 0]
            results.append({f"{kind}_if_true": fields for kind, fields in result.items()})
        return results


class _Drawn:
    """Bins of the top label in structures, with labels drawn from the probabilities."""

    def __init__(self, regions: Sequence[Region], bins: _Bins, draws: int) -> None:
        self.bins, self.draws = bins, draws
        self.classes = bins.class_masks(regions)
        self.sums = [bins.zeros(draws, len(regions), bins.num_bins) for _ in range(3)]
        self.generator = torch.Generator(bins.device)
        self.last = (-1, 0)
        self.seed = 0

    def add(self, voxels: Voxels) -> None:
        confidence, predicted = voxels.top
        index = self.bins.index(confidence)
        # The bins of a case up to here are the seed: other numbers for other cases, but the same ones for this case
        # whichever come before it, since that depends on the number of processes.
        if self.last != (voxels.case, voxels.channel):
            self.last = voxels.case, voxels.channel
            self.seed = voxels.channel
        self.seed = hash((self.seed, int(index.sum())))
        self.generator.manual_seed(self.seed)
        # A number below the probability of the structure puts the voxel there; if the predicted class is one of the
        # structure's, a number below its probability stands for it.
        of_structure = self.classes @ voxels.p
        of_predicted = confidence * self.classes[:, predicted]
        largest = of_structure.amax(0)
        for draw in range(self.draws):  # one after the other, for the working memory
            u = torch.empty_like(confidence).uniform_(generator=self.generator)
            some = (u < largest).nonzero().squeeze(1)
            structure, at = (u[some] < of_structure[:, some]).nonzero().unbind(1)
            at = some[at]
            flat = structure * self.bins.num_bins + index[at]
            correct = (u[at] < of_predicted[structure, at]).double()
            for total, values in zip(self.sums, (None, confidence[at], correct), strict=True):
                of_draw = total[voxels.case, draw].view(-1)
                of_draw.add_(torch.bincount(flat, values, minlength=len(of_draw)))

    def results(self) -> list[dict[str, list[torch.Tensor]]]:
        count, confidence_sum, num_correct = self.sums
        errors = (confidence_sum - num_correct).abs().sum(-1) / count.sum(-1)
        return [{"resampled": [of_structure]} for of_structure in errors.nanmean(1).unbind(1)]


def _nll(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return -p.gather(0, label[None])[0].clamp_min(SMALLEST).log()


def _brier(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return p.square().sum(0) - 2 * p.gather(0, label[None])[0] + 1


SCORES = {"nll": _nll, "brier": _brier}
