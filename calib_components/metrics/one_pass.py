"""One pass over the voxels of a batch for any number of regions and measures.

Next to each error, the pass gives the error that the probabilities would have if they were true, in closed form. A
voxel with probabilities `p` has label `k` with probability `p_k`. If class `k` would put it into the region, it adds
`p_k` to the count of its bin, `p_k` times its confidence to the sum of confidences, and `p_k` to the number correct if
`k` is the event of the bin. So this is the error in the limit of many voxels. With few, such as those of a small
structure, chance adds to it; the mean error over labels drawn from the probabilities (`draws`) includes that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from calib_components.arguments import check_count
from calib_components.metrics.drawn_labels import DrawnLabels
from calib_components.metrics.regions import Region
from calib_components.metrics.sorted_voxels import ALL, LANES, PREDICTED, Bins, RegionSets, sum_by_index
from calib_components.metrics.threads import one_thread
from calib_components.metrics.voxels import ENLARGE, Voxels, check_tensors, read_chunks

__all__ = ["check_num_bins", "measure_regions"]

LARGEST_NUM_BINS = 10_000  # so that numbers of bins fit into int32 for any number of classes that fits into memory
NEEDED = (ALL, PREDICTED)
SET_BINS = 2**14  # most bins, times sets of regions, that are summed at once: more would not fit a cache
SMALLEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm
LOWEST_HALF = 2.0**-25  # in float16, half a step from 0, which others round to; bfloat16 goes as low as float32

Scores = Mapping[str, Callable[[Voxels], torch.Tensor]]


def check_num_bins(num_bins: int) -> None:
    """Raise `ValueError` unless a number of bins is a whole number from 1 to 10,000."""
    check_count("num_bins", num_bins, 1, LARGEST_NUM_BINS)


@one_thread()
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
        lowest: Takes the place of lower probabilities in the NLL.
        highest: Takes the place of higher probabilities of sigmoids in the NLL.

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
    bins = Bins(y_pred, num_bins, sigmoid or y_pred.shape[1] == 1)
    kinds = [kind for kind in ("top_label", "classwise") if kind in measures]
    if y_pred.dtype == torch.float16:
        lowest = max(lowest, LOWEST_HALF)
    if y_pred.dtype in (torch.float16, torch.bfloat16):
        highest = min(highest, 1 - torch.finfo(y_pred.dtype).eps / 4)  # half a step from 1
    limits = [1 - highest, lowest] if bins.sigmoid else [lowest]
    nll = functools.partial(_nll, lowest=torch.tensor(limits, dtype=torch.float64, device=bins.device))
    of_voxels: Scores = {"nll": nll, "brier": _brier}
    scores = {score: of_voxels[score] for score in of_voxels if score in measures}
    given, regions = regions, list(dict.fromkeys(regions))
    closed = [region for region in regions if region.has_closed_form and "if_true" in measures]
    structures = [region for region in regions if region.kind == "structure" and draws > 0]
    observed = _Observed([*regions, *NEEDED] if closed else regions, bins, kinds, scores)
    expected = _Expected(closed, bins, kinds)
    drawn = DrawnLabels(structures, bins, draws)
    for voxels in read_chunks(y_pred, y, regions, ignore_index, sigmoid, temperature, enlarge=ENLARGE):
        lanes = torch.arange(len(voxels.label), dtype=torch.int32, device=bins.device) & (LANES - 1)
        in_bins = bins.sort(voxels, kinds)
        observed.add(voxels, in_bins, lanes)
        if closed:
            expected.add(voxels, in_bins, lanes)
        if structures:
            drawn.add(voxels)
    results = observed.results()
    for further, measured in ((closed, expected.results(results)), (structures, drawn.results())):
        for region, of_region in zip(further, measured, strict=True):
            results[region].update(of_region)
    return [results[region] for region in given]


class _Sums:
    """Counts, sums of confidences and numbers correct of bins, for each case and region."""

    def __init__(self, regions: int, bins: Bins, kinds: Sequence[str]) -> None:
        self.sigmoid = bins.sigmoid
        self.of_kinds = {kind: [bins.zeros(regions, *bins.shapes[kind]) for _ in range(3)] for kind in kinds}

    def add(self, voxels: Voxels, regions: Any, kind: str, field: int, sums: torch.Tensor) -> None:
        """Add sums `(regions, rows * num_bins)` over some voxels to a field."""
        # A chunk is summed on its own first: one sum over millions of equal terms would drift, even in float64.
        total = self.of_kinds[kind][field][voxels.case, regions]
        if kind == "classwise" and self.sigmoid:
            total = total[:, voxels.channel]
        total += sums.view_as(total)

    def results(self, region: int) -> dict[str, list[torch.Tensor]]:
        return {kind: [total[:, region] for total in sums] for kind, sums in self.of_kinds.items()}


class _Observed:
    """Sums over the voxels of each region, with their labels.

    The voxels are summed by bin and set of regions: one pass serves any number of regions, whose sums are those of the
    sets that have them.
    """

    def __init__(self, regions: Sequence[Region], bins: Bins, kinds: Sequence[str], scores: Scores) -> None:
        self.bins = bins
        self.regions = list(dict.fromkeys(regions))
        self.sums = _Sums(len(self.regions), bins, kinds)
        self.score_of = scores
        self.scores = {score: bins.zeros(len(self.regions)) for score in scores}
        self.voxels = bins.zeros(len(self.regions))
        largest = max([bins.size(kind) for kind in kinds], default=1)
        self.groups: list[tuple[slice, RegionSets]] = []
        start = 0
        for end in range(1, len(self.regions) + 1):
            group = RegionSets(self.regions[start:end], bins)
            if end == start + 1 or group.members.shape[1] * largest <= SET_BINS:
                self.groups[len(self.groups) if end == start + 1 else -1 :] = [(slice(start, end), group)]
            else:
                start = end - 1
                self.groups.append((slice(start, end), RegionSets(self.regions[start:end], bins)))

    def add(self, voxels: Voxels, in_bins: Mapping[str, Any], lanes: torch.Tensor) -> None:
        scores = {score: score_of(voxels) for score, score_of in self.score_of.items()}
        for to, group in self.groups:
            number = group.members.shape[1]
            sets = group.sets(voxels).add_(lanes, alpha=number)
            for kind, (index, confidence) in in_bins.items():
                size = self.bins.size(kind)
                index = index + sets * size
                if kind == "top_label":
                    correct: tuple[torch.Tensor, torch.Tensor | None] = index, (voxels.label == voxels.top[1]).double()
                elif self.bins.sigmoid:
                    correct = index, voxels.label.double()
                else:
                    correct = index.gather(0, voxels.label[None]), None
                for field, (at, weights) in enumerate(((index, None), (index, confidence), correct)):
                    of_sets = sum_by_index(at, weights, number * size).view(number, size)
                    self.sums.add(voxels, to, kind, field, group.members @ of_sets)
            for score, values in scores.items():
                self.scores[score][voxels.case, to] += group.members @ sum_by_index(sets, values, number)
            self.voxels[voxels.case, to] += group.members @ sum_by_index(sets, None, number)

    def results(self) -> dict[Region, dict[str, list[torch.Tensor]]]:
        results = {}
        for i, region in enumerate(self.regions):
            result = self.sums.results(i)
            for fields in result.values():
                fields[0] = fields[0].long()
            result.update({score: [total[:, i] / self.voxels[:, i]] for score, total in self.scores.items()})
            results[region] = result
        return results


class _Expected:
    """What the voxels would add to each region on average if their probabilities were true."""

    def __init__(self, regions: Sequence[Region], bins: Bins, kinds: Sequence[str]) -> None:
        self.bins = bins
        self.classes = bins.class_masks(regions)
        self.unions = [region.kind == "union" for region in regions]
        self.sums = _Sums(len(regions), bins, kinds)

    def add(self, voxels: Voxels, in_bins: Mapping[str, Any], lanes: torch.Tensor) -> None:
        for kind, (index, confidence) in in_bins.items():
            size, num_bins = self.bins.size(kind), self.bins.num_bins
            at, values = (index + lanes * size).flatten(), confidence.flatten()
            if kind == "classwise":
                # Nearly all probabilities of many classes are in the first bin, whose sums are what the others leave.
                are_others = index % num_bins > 0
                others, has_first = are_others.flatten().nonzero().squeeze(1), ~are_others.all(1)
                at, values, columns = at[others], values[others], others.remainder_(len(lanes))
            for region, weight, count, total in self._weights(voxels, confidence):
                if kind == "top_label":
                    correct = self.classes[region].index_select(0, voxels.top[1]) * values
                    fields = [sum_by_index(at, of_voxels, size) for of_voxels in (weight, weight * values, correct)]
                else:  # the numbers correct: see `results`
                    part = weight.index_select(0, columns)
                    counts, sums = (
                        sum_by_index(at, of_others, size).view(-1, num_bins) for of_others in (part, part * values)
                    )
                    counts[:, 0] = (count - counts.sum(1)).clamp_min(0).where(has_first, 0)
                    sums[:, 0] = (total - sums.sum(1)).clamp_min(0).minimum(counts[:, 0])  # but for rounding, it is
                    fields = [counts, sums]
                for field, of_bins in enumerate(fields):
                    self.sums.add(voxels, slice(region, region + 1), kind, field, of_bins)

    def _weights(
        self, voxels: Voxels, confidence: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield each region, the weight of each voxel, and the sums over voxels of it and of it times confidences."""
        step = self.bins.num_classes  # so many regions at a time, for as much memory as the probabilities
        for start in range(0, len(self.classes), step):
            weights = self.classes[start : start + step] @ voxels.p
            for weight, union in zip(weights, self.unions[start:], strict=False):
                if union:  # in the region with any label where foreground is predicted
                    weight.copy_(torch.where(voxels.is_predicted, voxels.p.sum(0), weight))
            yield from zip(itertools.count(start), weights, weights.sum(1), weights @ confidence.T, strict=False)

    def results(self, observed: Mapping[Region, Mapping[str, list[torch.Tensor]]]) -> list[dict[str, Any]]:
        results = []
        for i, (classes, union) in enumerate(zip(self.classes, self.unions, strict=True)):
            result = self.sums.results(i)
            if "classwise" in result:
                # A class is true with its probability; in the region, if it is one of the region's or another one is
                # predicted: so sums of confidences.
                everywhere, where_predicted = (observed[region]["classwise"][1] for region in NEEDED)
                inside = classes[-self.bins.rows["classwise"] :, None]
                correct = inside * everywhere + (1 - inside) * union * where_predicted
                result["classwise"][2] = correct.minimum(result["classwise"][0])  # but for rounding, it is
            results.append({f"{kind}_if_true": fields for kind, fields in result.items()})
        return results


def _nll(voxels: Voxels, lowest: torch.Tensor) -> torch.Tensor:
    """Of each voxel; `lowest` takes the place of lower probabilities, one for all classes or one for each."""
    lowest = lowest.clamp_min(SMALLEST)
    return -voxels.p_label.maximum(lowest[voxels.label] if len(lowest) > 1 else lowest).log()


def _brier(voxels: Voxels) -> torch.Tensor:
    return voxels.p.square().sum(0) - 2 * voxels.p_label + 1
