"""One pass over the voxels of a batch for any number of regions and measures.

Next to each error, the pass gives the error that the probabilities would have if they were true, in closed form. A
voxel with probabilities `p` has label `k` with probability `p_k`. If class `k` would put it into the region, it adds
`p_k` to the count of its bin, `p_k` times its confidence to the sum of confidences, and `p_k` to the number correct if
`k` is the event of the bin. So this is the error in the limit of many voxels. With few, such as those of a small
structure, chance adds to it; the mean error over labels drawn from the probabilities (`draws`) includes that.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calib_components.arguments import check_count
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import Voxels, check_tensors, read_chunks

__all__ = ["check_num_bins", "measure_regions"]

LARGEST_NUM_BINS = 10_000  # so that numbers of bins fit into int32 for any number of classes that fits into memory
ENLARGE = 8  # in chunks of the usual size, most of the time would be the overhead of the calls
ALL, PREDICTED = NEEDED = (Region("all"), Region("predicted"))
SET_BINS = 2**14  # most bins, times sets of regions, that are summed at once: more would not fit a cache
# Voxels are summed in as many lanes as this, one next to the other: most voxels of a volume fall into the same bin, and
# an addition has to wait for the one before it if both are to the same number.
LANES = 4
UNLIKELY = 1e-3  # probability
SMALLEST = torch.finfo(torch.float32).tiny  # in place of a probability of 0 in a logarithm

Scores = Mapping[str, Callable[[Voxels], torch.Tensor]]


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
    bins = _Bins(y_pred, num_bins, sigmoid or y_pred.shape[1] == 1)
    kinds = [kind for kind in ("top_label", "classwise") if kind in measures]
    limits = [1 - highest, lowest] if bins.sigmoid else [lowest]
    nll = functools.partial(_nll, lowest=torch.tensor(limits, dtype=torch.float64, device=bins.device))
    of_voxels: Scores = {"nll": nll, "brier": _brier}
    scores = {score: of_voxels[score] for score in of_voxels if score in measures}
    given, regions = regions, list(dict.fromkeys(regions))
    closed = [region for region in regions if region.has_closed_form and "if_true" in measures]
    structures = [region for region in regions if region.kind == "structure" and draws > 0]
    observed = _Observed([*regions, *NEEDED] if closed else regions, bins, kinds, scores)
    expected = _Expected(closed, bins, kinds)
    drawn = _Drawn(structures, bins, draws)
    with _one_thread():
        for voxels in read_chunks(y_pred, y, regions, ignore_index, sigmoid, temperature, enlarge=ENLARGE):
            chunk = observed.sort(voxels)
            is_usual = chunk.is_usual(bins)
            usual, rest = is_usual.double(), chunk.select((~is_usual).nonzero().squeeze(1))
            observed.add(rest)
            observed.add_usual(chunk, usual)
            if closed:
                expected.add(rest)
                expected.add_usual(chunk, usual)
            if structures:
                drawn.add(voxels)
    results = observed.results()
    for further, measured in ((closed, expected.results(results)), (structures, drawn.results())):
        for region, of_region in zip(further, measured, strict=True):
            results[region].update(of_region)
    return [results[region] for region in given]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch use one thread of the CPU.

    A long series of short parallel operations stalls whenever another process, such as a data loader's worker, occupies
    one of the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Bins:
    """Bins of equal width, of the top label or of each class."""

    def __init__(self, y_pred: torch.Tensor, num_bins: int, sigmoid: bool) -> None:
        self.batch, self.channels = y_pred.shape[:2]
        self.device = y_pred.device
        self.num_bins = num_bins
        self.sigmoid = sigmoid
        self.num_classes = 2 if sigmoid else self.channels
        self.rows = {"top_label": 1, "classwise": 1 if sigmoid else self.channels}
        self.shapes = {"top_label": (num_bins,), "classwise": (self.channels, num_bins)}

    def size(self, kind: str) -> int:
        """Number of bins in all rows of a kind."""
        return self.rows[kind] * self.num_bins

    def zeros(self, *shape: int) -> torch.Tensor:
        """Sums of each case."""
        return torch.zeros(self.batch, *shape, dtype=torch.float64, device=self.device)

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

        One row for the top label; classwise, one for each class, or one for the channel of sigmoids. The bins of a row
        follow those of the row before.
        """
        in_bins = {}
        for kind in kinds:
            confidence = voxels.top[0][None] if kind == "top_label" else voxels.p[-self.rows[kind] :]
            first = torch.arange(0, len(confidence) * self.num_bins, self.num_bins, dtype=torch.int32)
            in_bins[kind] = self.index(confidence).add_(first[:, None].to(self.device)), confidence
        return in_bins

    def usual(self, kind: str) -> torch.Tensor:
        """Bins of certain background, `(rows,)`, as `sort` gives them."""
        of_rows = torch.arange(self.rows[kind], dtype=torch.int32, device=self.device) * self.num_bins
        if kind == "top_label" or not self.sigmoid:
            of_rows[0] += self.num_bins - 1
        return of_rows


@dataclass(eq=False)
class _Chunk:
    """Some voxels, each with its bins, its sets of regions and its scores.

    Attributes:
        voxels: The voxels.
        in_bins: See `_Bins.sort`.
        sets: Number of the set of regions that each voxel is in, `(voxels,)`, of each group of regions.
        scores: Values `(voxels,)` by name.
    """

    voxels: Voxels
    in_bins: dict[str, tuple[torch.Tensor, torch.Tensor]]
    sets: list[torch.Tensor]
    scores: dict[str, torch.Tensor]

    @functools.cached_property
    def lanes(self) -> torch.Tensor:
        """Lane of each voxel, `(voxels,)`."""
        label = self.voxels.label
        return torch.arange(len(label), dtype=torch.int32, device=label.device) & (LANES - 1)

    def is_usual(self, bins: _Bins) -> torch.Tensor:
        """Mask of the background that is predicted with certainty and in the first set of each group.

        Most voxels of a volume are such ones. They share their bins, so that they are summed without sorting.
        """
        usual = (self.voxels.label == 0) & ~self.voxels.is_predicted
        for sets in self.sets:
            usual &= sets == 0
        for kind, (index, _) in self.in_bins.items():
            for of_row, bin_of_row in zip(index, bins.usual(kind).tolist(), strict=True):
                usual &= of_row == bin_of_row
        return usual

    def select(self, index: torch.Tensor) -> _Chunk:
        """Return the voxels of an index."""

        def selected(values: torch.Tensor) -> torch.Tensor:
            return values.index_select(-1, index)

        return _Chunk(
            self.voxels.select(index),
            {kind: (selected(bins), selected(confidence)) for kind, (bins, confidence) in self.in_bins.items()},
            [selected(sets) for sets in self.sets],
            {score: selected(values) for score, values in self.scores.items()},
        )


def _sum_by_index(index: torch.Tensor, weights: torch.Tensor | None, size: int) -> torch.Tensor:
    """Sum weights, or 1, by `i` of indices `lane * size + i`, in float64."""
    counts = torch.bincount(index.flatten(), None if weights is None else weights.flatten(), LANES * size)
    return counts.double().view(LANES, size).sum(0)


class _Sums:
    """Counts, sums of confidences and numbers correct of bins, for each case and region."""

    def __init__(self, regions: int, bins: _Bins, kinds: Sequence[str]) -> None:
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


class _Group:
    """Some regions, and the sets of them that a voxel may be in.

    The number of a set is that of the regions that the label decides, plus, for each other question, a power of 2 times
    the number of the former.

    Attributes:
        members: Whether a set has a region, `(regions, sets)`, 0 or 1 in float64.
    """

    def __init__(self, regions: Sequence[Region], bins: _Bins) -> None:
        by_label = [region for region in regions if region.has_closed_form]
        columns = [tuple(column) for column in bins.class_masks(by_label).T.tolist()]
        distinct = list(dict.fromkeys(columns))  # background first
        self.of_label = torch.tensor([distinct.index(column) for column in columns], dtype=torch.int32).to(bins.device)
        self.num_of_labels = len(distinct)
        # What else decides: one question for each further region; for the union, whether foreground is predicted.
        asked = {region: PREDICTED if region.kind == "union" else region for region in regions}
        self.questions = list(dict.fromkeys(q for q in asked.values() if q.kind != "all" and not q.has_closed_form))
        number = torch.arange(self.num_of_labels * 2 ** len(self.questions))
        label_decides = dict(zip(by_label, torch.tensor(distinct).T[:, number % self.num_of_labels], strict=True))
        answers = {q: number // self.num_of_labels >> i & 1 for i, q in enumerate(self.questions)}
        zeros = torch.zeros(len(number))
        everywhere = {ALL: zeros + 1}
        self.members = torch.stack(
            [
                torch.maximum(label_decides.get(region, zeros), (everywhere | answers).get(asked[region], zeros))
                for region in regions
            ]
        )
        self.members = self.members.double().to(bins.device)

    def sets(self, voxels: Voxels) -> torch.Tensor:
        """Number of the set that each voxel is in."""
        sets = self.of_label.index_select(0, voxels.label)
        for i, question in enumerate(self.questions):
            sets.add_(voxels.inside(question), alpha=self.num_of_labels * 2**i)
        return sets


class _Observed:
    """Sums over the voxels of each region, with their labels.

    The voxels are summed by bin and set of regions: one pass serves any number of regions, whose sums are those of the
    sets that have them.
    """

    def __init__(self, regions: Sequence[Region], bins: _Bins, kinds: Sequence[str], scores: Scores) -> None:
        self.bins = bins
        self.kinds = kinds
        self.regions = list(dict.fromkeys(regions))
        self.sums = _Sums(len(self.regions), bins, kinds)
        self.score_of = scores
        self.scores = {score: bins.zeros(len(self.regions)) for score in scores}
        self.voxels = bins.zeros(len(self.regions))
        largest = max([bins.size(kind) for kind in kinds], default=1)
        self.groups: list[tuple[slice, _Group]] = []
        start = 0
        for end in range(1, len(self.regions) + 1):
            group = _Group(self.regions[start:end], bins)
            if end == start + 1 or group.members.shape[1] * largest <= SET_BINS:
                self.groups[len(self.groups) if end == start + 1 else -1 :] = [(slice(start, end), group)]
            else:
                start = end - 1
                self.groups.append((slice(start, end), _Group(self.regions[start:end], bins)))

    def sort(self, voxels: Voxels) -> _Chunk:
        """Sort voxels into bins and sets of regions."""
        return _Chunk(
            voxels,
            self.bins.sort(voxels, self.kinds),
            [group.sets(voxels) for _, group in self.groups],
            {score: score_of(voxels) for score, score_of in self.score_of.items()},
        )

    def add(self, chunk: _Chunk) -> None:
        """Add voxels by their bins."""
        voxels = chunk.voxels
        for (to, group), sets in zip(self.groups, chunk.sets, strict=True):
            number = group.members.shape[1]
            sets = chunk.lanes * number + sets
            for kind, (index, confidence) in chunk.in_bins.items():
                size = self.bins.size(kind)
                index = index + sets * size
                if kind == "top_label":
                    correct: tuple[torch.Tensor, torch.Tensor | None] = index, (voxels.label == voxels.top[1]).double()
                elif self.bins.sigmoid:
                    correct = index, voxels.label.double()
                else:
                    correct = index.gather(0, voxels.label[None]), None
                for field, (at, weights) in enumerate(((index, None), (index, confidence), correct)):
                    of_sets = _sum_by_index(at, weights, number * size).view(number, size)
                    self.sums.add(voxels, to, kind, field, group.members @ of_sets)
            for score, values in chunk.scores.items():
                self.scores[score][voxels.case, to] += group.members @ _sum_by_index(sets, values, number)
            self.voxels[voxels.case, to] += group.members @ _sum_by_index(sets, None, number)

    def add_usual(self, chunk: _Chunk, usual: torch.Tensor) -> None:
        """Add the voxels that `_Chunk.is_usual` says, 1 in `usual` and 0 elsewhere."""
        number = usual.sum()
        case = chunk.voxels.case
        for to, group in self.groups:
            first = group.members[:, :1]
            for kind, (_, confidence) in chunk.in_bins.items():
                at = self.bins.usual(kind)
                correct = torch.zeros_like(at, dtype=torch.float64)
                if kind == "top_label" or not self.bins.sigmoid:
                    correct[0] = number
                for field, values in enumerate((number.expand(len(at)), confidence @ usual, correct)):
                    of_bins = torch.zeros(self.bins.size(kind), dtype=torch.float64, device=usual.device)
                    of_bins[at] = values
                    self.sums.add(chunk.voxels, to, kind, field, first * of_bins)
            for score, values in chunk.scores.items():
                self.scores[score][case, to] += first[:, 0] * (values @ usual)
            self.voxels[case, to] += first[:, 0] * number

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

    def __init__(self, regions: Sequence[Region], bins: _Bins, kinds: Sequence[str]) -> None:
        self.bins = bins
        self.classes = bins.class_masks(regions)
        self.unions = [region.kind == "union" for region in regions]
        self.sums = _Sums(len(regions), bins, kinds)

    def add(self, chunk: _Chunk) -> None:
        """Add voxels by their bins."""
        voxels = chunk.voxels
        p, predicted = voxels.p, voxels.top[1]
        in_bins = {kind: (index + chunk.lanes * self.bins.size(kind), p) for kind, (index, p) in chunk.in_bins.items()}
        for region, (classes, union) in enumerate(zip(self.classes, self.unions, strict=True)):
            weight = classes @ p
            if union:  # in the region with any label where foreground is predicted
                weight = torch.where(voxels.is_predicted, p.sum(0), weight)
            for kind, (index, confidence) in in_bins.items():
                values = [weight.expand_as(index), weight * confidence]
                if kind == "top_label":  # classwise, see `results`
                    values.append(classes.index_select(0, predicted) * confidence)
                for field, weights in enumerate(values):
                    sums = _sum_by_index(index, weights, self.bins.size(kind))
                    self.sums.add(voxels, slice(region, region + 1), kind, field, sums)

    def add_usual(self, chunk: _Chunk, usual: torch.Tensor) -> None:
        """Add the voxels that `_Chunk.is_usual` says, 1 in `usual` and 0 elsewhere; background is predicted there."""
        p = chunk.voxels.p * usual
        count, to = self.classes @ p.sum(1, keepdim=True), slice(0, len(self.classes))
        for kind, (_, confidence) in chunk.in_bins.items():
            at = self.bins.usual(kind)
            values = [count.expand(-1, len(at)), self.classes @ (p @ confidence.T)]
            if kind == "top_label":
                values.append(self.classes[:, :1] * (confidence @ usual))
            for field, sums in enumerate(values):
                of_bins = torch.zeros(len(count), self.bins.size(kind), dtype=torch.float64, device=usual.device)
                of_bins[:, at] = sums
                self.sums.add(chunk.voxels, to, kind, field, of_bins)

    def results(self, observed: Mapping[Region, Mapping[str, list[torch.Tensor]]]) -> list[dict[str, Any]]:
        results = []
        for i, (classes, union) in enumerate(zip(self.classes, self.unions, strict=True)):
            result = self.sums.results(i)
            if "classwise" in result:
                # A class is true with its probability; in the region, if it is one of the region's or another one is
                # predicted: so sums of confidences.
                everywhere, where_predicted = (observed[region]["classwise"][1] for region in NEEDED)
                inside = classes[-self.bins.rows["classwise"] :, None]
                result["classwise"][2] = inside * everywhere + (1 - inside) * union * where_predicted
            results.append({f"{kind}_if_true": fields for kind, fields in result.items()})
        return results


class _Drawn:
    """Bins of the top label in structures, with labels drawn from the probabilities."""

    def __init__(self, regions: Sequence[Region], bins: _Bins, draws: int) -> None:
        self.bins, self.draws = bins, draws
        self.classes = bins.class_masks(regions)
        self.first = torch.arange(0, len(regions) * bins.num_bins, bins.num_bins, device=bins.device)[:, None]
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
        # structure's, a number below its probability stands for it. Most numbers do what probabilities above 0.5 say,
        # which is summed once; then, in each draw, what differs.
        of_structure = self.classes @ voxels.p
        largest = of_structure.amax(0)
        likely = (largest > UNLIKELY).nonzero().squeeze(1)
        unlikely = largest.where(largest <= UNLIKELY, 0)

        def chances(at: torch.Tensor) -> torch.Tensor:
            """Of the structure, and of the predicted class there, `(2, structures, voxels)`."""
            inside = of_structure.index_select(1, at)
            correct = confidence[at] * self.classes.index_select(1, predicted[at])
            return torch.stack([inside, torch.minimum(inside, correct)])

        def add(draws: Any, at: torch.Tensor, happens: torch.Tensor) -> None:
            inside, correct = happens
            flat = (index[at] + self.first).flatten()
            for total, weights in zip(self.sums, (inside, inside * confidence[at], correct), strict=True):
                of_draws = total[voxels.case, draws]
                of_draws += torch.bincount(flat, weights.flatten(), self.first.numel() * self.bins.num_bins).view(
                    of_draws.shape[-2:]
                )

        p = chances(likely)
        add(slice(None), likely, (p > 0.5).double())
        low, high = p.where(p <= 0.5, 0).amax((0, 1)), p.where(p > 0.5, 1).amin((0, 1))
        u = torch.empty_like(confidence)
        for draw in range(self.draws):  # one after the other, for the working memory
            u.uniform_(generator=self.generator)
            drawn = u[likely]
            differs = likely[((drawn < low) | (drawn >= high)).nonzero().squeeze(1)]
            at = torch.cat([differs, (u < unlikely).nonzero().squeeze(1)])
            p = chances(at)
            add(draw, at, (u[at] < p).double() - (p > 0.5).double())

    def results(self) -> list[dict[str, list[torch.Tensor]]]:
        count, confidence_sum, num_correct = self.sums
        voxels = count.sum(-1)
        errors = ((confidence_sum - num_correct).abs().sum(-1) / voxels).where(voxels > 0, torch.nan)
        return [{"resampled": [of_structure]} for of_structure in errors.nanmean(1).unbind(1)]


def _nll(voxels: Voxels, lowest: torch.Tensor) -> torch.Tensor:
    """Of each voxel; `lowest` takes the place of lower probabilities, one for all classes or one for each."""
    lowest = lowest.clamp_min(SMALLEST)
    return -voxels.p_label.maximum(lowest[voxels.label] if len(lowest) > 1 else lowest).log()


def _brier(voxels: Voxels) -> torch.Tensor:
    return voxels.p.square().sum(0) - 2 * voxels.p_label + 1
