"""One pass over the voxels of a batch for any number of regions and measures.

Next to each error, the pass gives the error that the probabilities would have if they were true, in closed form. A
voxel with probabilities `p` has label `k` with probability `p_k`. If class `k` would put it into the region, it adds
`p_k` to the count of its bin, `p_k` times its confidence to the sum of confidences, and `p_k` to the number correct if
`k` is the event of the bin. So this is the error in the limit of many voxels. With few, such as those of a small
structure, chance adds to it; the mean error over labels drawn from the probabilities (`draws`) includes that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from calib_components.errors import check_count
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import Voxels, check_tensors, read_chunks

__all__ = ["measure_regions"]

SMALLEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm
LOWEST_HALF = 2.0**-25  # in float16, half a step from 0, which others round to; bfloat16 goes as low as float32


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

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        regions: Where to measure.
        measures: Any of "top_label" and "classwise" (bins), "if_true" (also those that true probabilities would give),
            "nll" and "brier".
        temperature: By which the logits of `y_pred` were divided; the region "plausible" is decided without it.
        draws: How often labels are drawn from the probabilities, for structures.
        lowest: Takes the place of lower probabilities in the NLL.
        highest: Takes the place of higher probabilities of sigmoids in the NLL.

    Returns:
        For each region, by name: "top_label" `(B, num_bins)` and "classwise" `(B, N, num_bins)`, each as count, sum of
        confidences and number correct; "top_label_if_true" and "classwise_if_true" in the same form, for regions with
        a closed form; "nll" and "brier", `(B,)`; and "resampled", `(B,)`, the mean error of the top label over the
        drawn labels of a structure.
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    check_count("num_bins", num_bins, 1, 10_000)
    sigmoid = sigmoid or y_pred.shape[1] == 1
    floor = _lowest_probabilities(y_pred, sigmoid, lowest, highest)
    every_class = torch.arange(len(floor), device=y_pred.device)[:, None]
    kinds = {kind: sums for kind, sums in (("top_label", _TopLabel), ("classwise", _Classwise)) if kind in measures}
    totals = [_Totals(region, y_pred, measures, num_bins, draws) for region in regions]
    labels = _DrawnLabels(draws, num_bins)
    for voxels in read_chunks(y_pred, y, ignore_index, sigmoid, temperature):
        in_bins = {kind: sums(voxels, num_bins) for kind, sums in kinds.items()}
        if any(len(total.drawn) for total in totals):
            labels.draw(voxels)
        for region, total in zip(regions, totals, strict=True):
            part = region.select(voxels)
            if len(part.label) > 0:
                total.add_scores(part, floor)
                for kind, sums in kinds.items():
                    of_part = in_bins[kind] if part is voxels else sums(part, num_bins)
                    _add(total.observed[kind], voxels, of_part.observed())
            if not total.if_true and not len(total.drawn):
                continue
            mask = region.mask(voxels.with_label(every_class))
            if total.if_true:
                weight = (mask * voxels.p).sum(0) if mask.shape[1] > 1 else voxels.p[mask[:, 0]].sum(0)
                for kind in kinds:
                    _add(total.expected[kind], voxels, in_bins[kind].if_true(mask, weight))
            if len(total.drawn):
                total.drawn[:, voxels.case] += torch.einsum("dfkb,k->dfb", labels.sums, mask[:, 0].double())
    return [total.results() for total in totals]


def _lowest_probabilities(y_pred: torch.Tensor, sigmoid: bool, lowest: float, highest: float) -> torch.Tensor:
    """What takes the place of lower probabilities of each class in the NLL."""
    if y_pred.dtype == torch.float16:
        lowest = max(lowest, LOWEST_HALF)
    if y_pred.dtype in (torch.float16, torch.bfloat16):
        highest = min(highest, 1 - torch.finfo(y_pred.dtype).eps / 4)  # half a step from 1
    limits = [1 - highest, lowest] if sigmoid else [lowest] * y_pred.shape[1]
    return torch.tensor(limits, dtype=torch.float64, device=y_pred.device).clamp_min(SMALLEST)


class _TopLabel:
    """The highest probabilities of some voxels in bins."""

    def __init__(self, voxels: Voxels, num_bins: int) -> None:
        self.voxels, self.num_bins = voxels, num_bins
        self.index = bin_index(voxels.confidence, num_bins)

    def observed(self) -> list[torch.Tensor]:
        """Counts, sums of confidences and numbers correct, `(1, num_bins)` each."""
        confidence, predicted = self.voxels.top
        return [self._sum(None), self._sum(confidence), self._sum((predicted == self.voxels.label).double())]

    def if_true(self, mask: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        """The same if each label is true with its probability, from the mask of `RegionKind` and its probability."""
        confidence, predicted = self.voxels.top
        is_in = mask[predicted, 0] if mask.shape[1] == 1 else mask.gather(0, predicted[None])[0]
        return [self._sum(weight), self._sum(weight * confidence), self._sum(is_in * confidence)]

    def _sum(self, weights: torch.Tensor | None) -> torch.Tensor:
        return bincount(self.index, weights, self.num_bins).double()[None]


class _Classwise:
    """The probabilities of every class in bins, with the methods of `_TopLabel`: `(rows, num_bins)`, a row a class.

    Nearly all probabilities of many classes are in the first bin. So only those above it are summed one by one; the
    first bin has what they leave of the sum of the row.
    """

    def __init__(self, voxels: Voxels, num_bins: int) -> None:
        self.voxels, self.first_class = voxels, voxels.first_class
        self.p = voxels.p[self.first_class :]
        self.shape = len(self.p), num_bins
        index = bin_index(self.p, num_bins)
        is_above = index > 0
        number = is_above.sum(1)
        self.has_first = number < self.p.shape[1]
        self.above = is_above.flatten().nonzero().squeeze(1)
        self.row = torch.repeat_interleave(torch.arange(len(number), device=number.device), number)
        self.voxel = self.above - self.row * self.p.shape[1]
        self.index = index.flatten().index_select(0, self.above) + self.row * num_bins
        self.p_above = self.p.flatten().index_select(0, self.above)

    def observed(self) -> list[torch.Tensor]:
        label = self.voxels.label
        count = self._sum(None, torch.full_like(self.p[:, 0], len(label)))
        correct = (label.index_select(0, self.voxel) == self.row + self.first_class).double()
        of_classes = bincount(label, None, len(self.voxels.p))[self.first_class :]
        return [count, self._sum(self.p_above, self.p.sum(1)), self._sum(correct, of_classes)]

    def if_true(self, mask: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        weights, mask = weight.index_select(0, self.voxel), mask[self.first_class :]
        if mask.shape[1] == 1:
            is_in, of_rows = mask[:, 0].index_select(0, self.row), mask[:, 0] * self.p.sum(1)
        else:
            is_in, of_rows = mask.flatten()[self.above], (mask * self.p).sum(1)
        count = self._sum(weights, weight.sum())
        confidence_sum = self._sum(weights * self.p_above, self.p @ weight)
        correct = self._sum(is_in * self.p_above, of_rows)
        return [count, confidence_sum.minimum(count), correct.minimum(count)]  # as they are, but for rounding

    def _sum(self, weights: torch.Tensor | None, of_rows: torch.Tensor) -> torch.Tensor:
        """Sum the weights of the probabilities above the first bin; `of_rows` are the sums over all of a row."""
        sums = bincount(self.index, weights, self.shape[0] * self.shape[1]).double().view(self.shape)
        sums[:, 0] = (of_rows - sums.sum(1)).clamp_min(0).where(self.has_first, 0)
        return sums


class _Totals:
    """Sums over the voxels of a region, of each case."""

    def __init__(
        self, region: Region, y_pred: torch.Tensor, measures: Collection[str], num_bins: int, draws: int
    ) -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=y_pred.device)

        batch, channels = y_pred.shape[:2]
        rows = {kind: number for kind, number in (("top_label", 1), ("classwise", channels)) if kind in measures}
        self.if_true = region.has_closed_form and "if_true" in measures
        self.observed, self.expected = (
            {kind: zeros(3, batch, rows[kind], num_bins) for kind in rows} for _ in range(2)
        )
        self.scores = {score: zeros(batch) for score in ("nll", "brier") if score in measures}
        self.voxels = zeros(batch)
        self.drawn = zeros(draws if region.kind == "structure" else 0, batch, 3, num_bins)

    def add_scores(self, voxels: Voxels, floor: torch.Tensor) -> None:
        """Add the scores of the voxels of a chunk."""
        p_label = voxels.p_label
        if "nll" in self.scores:
            self.scores["nll"][voxels.case] -= p_label.maximum(floor[voxels.label]).log().sum()
        if "brier" in self.scores:
            self.scores["brier"][voxels.case] += (voxels.p.square().sum(0) - 2 * p_label + 1).sum()
        self.voxels[voxels.case] += len(p_label)

    def results(self) -> dict[str, list[torch.Tensor]]:
        """Return what `measure_regions` does of a region."""
        results = {}
        for kind, (count, *others) in self.observed.items():
            results[kind] = [count.long(), *others]
        if self.if_true:
            results |= {f"{kind}_if_true": [*sums] for kind, sums in self.expected.items()}
        for name in results:
            if name.startswith("top_label"):
                results[name] = [sums.squeeze(1) for sums in results[name]]
        results |= {score: [total / self.voxels] for score, total in self.scores.items()}
        if len(self.drawn):
            count, confidence_sum, num_correct = self.drawn.unbind(2)
            results["resampled"] = [((confidence_sum - num_correct).abs().sum(-1) / count.sum(-1)).nanmean(0)]
        return results


def _add(total: torch.Tensor, voxels: Voxels, sums: list[torch.Tensor]) -> None:
    """Add the sums over a chunk `(rows, num_bins)` to those of cases; a channel of sigmoids has one row of several."""
    # A chunk is summed on its own first: one sum over millions of equal terms would drift, even in float64.
    of_case = total[:, voxels.case]
    first = voxels.channel if of_case.shape[1] > 1 else 0
    of_case[:, first : first + len(sums[0])] += torch.stack(sums)


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
        if self.volume != (voxels.case, voxels.channel):
            self.volume, self.seed = (voxels.case, voxels.channel), voxels.channel
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
