"""Calibration of class probabilities: reliability bins, the errors read from them, NLL and Brier score.

The bins are computed once and everything else is a small reduction of them. Counts are int64 and sums float64, because
float32 sums lose whole voxels from about one million voxels in a bin. Voxels are read in chunks, so the working memory
does not grow with the volume: about 1 MiB on a CPU (a case that is not contiguous in memory is copied once).

Which voxels count: with `foreground_only` those whose ground truth is not background (class 0), as in Murugesan et al.,
"Trust Your Neighbours: Penalty-Based Constraints for Model Calibration", MICCAI 2023, and never an ignored one.

Checks: all voxels but ignored ones must hold probabilities, in [0, 1] up to 1e-5 and summing to 1 up to 1e-2 (room for
rounding in half precision), and a valid label. On a GPU, checking and selecting voxels waits for the device in every
chunk; metrics run once a case in evaluation, where that is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from calib_components.metrics.case_metric import CaseMetric, plain_tensor

__all__ = [
    "BrierMetric",
    "CECEMetric",
    "CalibrationBins",
    "CalibrationMetric",
    "ECEMetric",
    "NLLMetric",
    "adaptive_calibration_error",
    "brier_score",
    "calibration_bins",
    "negative_log_likelihood",
]

# Probabilities read at once. On a CPU fewer than PyTorch splits over threads: a long row of short parallel operations
# stalls whenever another process, such as a worker that loads data, holds one of the cores.
CPU_CHUNK = 2**15 - 1
GPU_CHUNK = 2**23
RANGE_TOLERANCE = 1e-5
SUM_TOLERANCE = 1e-2
NOT_A_LABEL = torch.iinfo(torch.int64).min


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Reliability bins of one or more cases: all that calibration errors and reliability diagrams need.

    Bin `i` of `num_bins` holds the probabilities in `(i / num_bins, (i + 1) / num_bins]`; exactly 0 is in the first.

    Shape: every field `(B, num_bins)` for the top label, or `(B, N, num_bins)` for each class; `B` cases, `N` classes.

    Attributes:
        count: int64, probabilities in the bin.
        confidence: float64, their sum.
        accuracy: float64, how many of them came true.
    """

    count: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(field.shape) for field in (self.count, self.confidence, self.accuracy)]
        if len(set(shapes)) > 1 or len(shapes[0]) not in (2, 3):
            raise ValueError(
                "count, confidence and accuracy must have one shape, (B, bins) or (B, N, bins), got "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
            )

    def __add__(self, other: CalibrationBins) -> CalibrationBins:
        """Merges case by case: the bins of two parts of the same cases give the bins of the whole."""
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"only bins of the same shape can be added, got {tuple(self.count.shape)} and "
                f"{tuple(other.count.shape)}; pool cases first with pooled()."
            )
        return CalibrationBins(
            self.count + other.count, self.confidence + other.confidence, self.accuracy + other.accuracy
        )

    def pooled(self) -> CalibrationBins:
        """Sums over cases: bins as if all voxels were one case, `B = 1`."""
        return CalibrationBins(
            self.count.sum(0, keepdim=True), self.confidence.sum(0, keepdim=True), self.accuracy.sum(0, keepdim=True)
        )

    def expected_error(self) -> torch.Tensor:
        """ECE of each case, or CECE: `sum_bins count / total * |mean confidence - accuracy|`, mean over classes.

        Returns:
            Float64 `(B,)`; NaN for a case without any counted voxel. The same holds for the other two errors.
        """
        return _mean_over_classes((self.confidence - self.accuracy).abs().sum(-1) / self.count.sum(-1))

    def average_error(self) -> torch.Tensor:
        """ACE of each case `(B,)`: the unweighted mean gap of the bins that are not empty; mean over classes."""
        return _mean_over_classes(self._gaps().nanmean(-1))

    def maximum_error(self) -> torch.Tensor:
        """MCE of each case `(B,)`: the largest gap of a bin; mean over classes."""
        gaps = self._gaps()
        return _mean_over_classes(torch.where(gaps.isnan().all(-1), torch.nan, gaps.nan_to_num().amax(-1)))

    def _gaps(self) -> torch.Tensor:
        """`|mean confidence - accuracy|` of each bin; NaN where it is empty."""
        return (self.confidence - self.accuracy).abs() / self.count

    def to_dict(self) -> dict[str, list]:
        """The three fields as nested lists, exact through JSON."""
        return {name: field.tolist() for name, field in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, list]) -> CalibrationBins:
        """Inverse of `to_dict`."""
        return cls(
            torch.tensor(fields["count"], dtype=torch.int64),
            torch.tensor(fields["confidence"], dtype=torch.float64),
            torch.tensor(fields["accuracy"], dtype=torch.float64),
        )


def _mean_over_classes(errors: torch.Tensor) -> torch.Tensor:
    return errors.mean(1) if errors.ndim == 2 else errors


def calibration_bins(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int = 15,
    foreground_only: bool = True,
    ignore_index: int | None = None,
    classwise: bool = False,
) -> CalibrationBins:
    """Sorts predicted probabilities into equal bins.

    A probability is compared with the bins' edges `i / num_bins` in float64, whatever its own type; one within 1e-15 of
    an edge counts as on it.

    Shape:
        y_pred: `(B, N, *S)`, N >= 2 classes, any number of spatial axes.
        y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot.

    Args:
        y_pred: probabilities of any floating type.
        y: ground truth; indices of any type that hold whole numbers.
        num_bins: number of bins.
        foreground_only: count only voxels whose ground truth is not class 0.
        ignore_index: ground truth value of voxels that are left out unseen.
        classwise: False sorts the highest probability of each voxel, true where its class is the ground truth (as ECE
            needs); True sorts every class's probability, true where that class is the ground truth (CECE).

    Returns:
        Bins of each case, on the device of `y_pred`.

    Raises:
        TypeError: if an input is not a tensor, or `y_pred` not of floating type.
        ValueError: if shapes do not match, `y_pred` does not hold probabilities, or `y` holds an invalid label.
    """
    return _calibration_bins(y_pred, y, num_bins, foreground_only, ignore_index, kinds=(classwise,))[0]


def adaptive_calibration_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int = 15,
    foreground_only: bool = True,
    ignore_index: int | None = None,
) -> torch.Tensor:
    """Adaptive ECE of each case: as top-label ECE, in bins that hold equally many voxels.

    Edges are interpolated between the sorted confidences and bins are `(lo, hi]`, as in the code published with the
    paper. So the least confident voxel is in no bin; of several equally confident ones, one is left out on average.
    Memory grows with the voxels that count, since they are sorted.

    Args: see `calibration_bins`.

    Returns:
        Float64 `(B,)`; NaN for a case without any counted voxel.
    """
    y_pred, y = _checked_tensors(y_pred, y)
    _check_num_bins(num_bins)
    confidences: list[list[torch.Tensor]] = [[] for _ in y_pred]
    hits: list[list[torch.Tensor]] = [[] for _ in y_pred]
    for case, p, label in _counted_voxels(y_pred, y, foreground_only, ignore_index):
        confidence, top = _top_label(p)
        confidences[case].append(confidence)
        hits[case].append(top == label)
    errors = torch.full((len(y_pred),), torch.nan, dtype=torch.float64, device=y_pred.device)
    for case in range(len(y_pred)):
        if confidences[case]:
            errors[case] = _equal_count_error(torch.cat(confidences[case]), torch.cat(hits[case]), num_bins)
    return errors


def _equal_count_error(confidence: torch.Tensor, hit: torch.Tensor, num_bins: int) -> torch.Tensor:
    confidence, order = confidence.sort()
    excess = confidence - hit[order].double()  # how far confidence exceeds correctness
    position = torch.arange(num_bins, dtype=torch.float64, device=confidence.device) * len(confidence) / num_bins
    below = position.long()
    above = (below + 1).clamp_max(len(confidence) - 1)
    edges = torch.lerp(confidence[below], confidence[above], position - below)
    index = torch.bucketize(confidence, edges[1:])
    sums = torch.zeros_like(edges).index_add_(0, index, excess)
    sums[0] -= excess[confidence == edges[0]].mean()
    return sums.abs().sum() / len(confidence)


def negative_log_likelihood(
    y_pred: torch.Tensor, y: torch.Tensor, foreground_only: bool = True, ignore_index: int | None = None
) -> torch.Tensor:
    """Mean over voxels of `-log` of the probability given to the true class, in nats, for each case.

    Probabilities that have underflowed to 0 count as the smallest normal float32 (87.3 nats), so that one voxel does
    not make the mean infinite.

    Args: see `calibration_bins`.

    Returns:
        Float64 `(B,)`; NaN for a case without any counted voxel.
    """
    smallest = torch.finfo(torch.float32).tiny

    def score(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return -p.gather(0, label[None]).clamp_min(smallest).log()

    return _mean_over_voxels(score, y_pred, y, foreground_only, ignore_index)


def brier_score(
    y_pred: torch.Tensor, y: torch.Tensor, foreground_only: bool = True, ignore_index: int | None = None
) -> torch.Tensor:
    """Mean over voxels of `sum_k (s_k - q_k)^2`, `q` the one-hot ground truth, for each case: 0 is best, 2 worst.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    Args: see `calibration_bins`.

    Returns:
        Float64 `(B,)`; NaN for a case without any counted voxel.
    """

    def score(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return p.square().sum(0) - 2 * p.gather(0, label[None])[0] + 1

    return _mean_over_voxels(score, y_pred, y, foreground_only, ignore_index)


def _mean_over_voxels(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    y_pred: torch.Tensor,
    y: torch.Tensor,
    foreground_only: bool,
    ignore_index: int | None,
) -> torch.Tensor:
    y_pred, y = _checked_tensors(y_pred, y)
    total = torch.zeros(len(y_pred), dtype=torch.float64, device=y_pred.device)
    count = torch.zeros_like(total)
    for case, p, label in _counted_voxels(y_pred, y, foreground_only, ignore_index):
        total[case] += score(p, label).sum()
        count[case] += len(label)
    return total / count


def _calibration_bins(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int,
    foreground_only: bool,
    ignore_index: int | None,
    kinds: Sequence[bool],
) -> list[CalibrationBins]:
    """Bins of every kind (classwise or not) from one pass over the voxels."""
    y_pred, y = _checked_tensors(y_pred, y)
    _check_num_bins(num_bins)
    batch, num_classes = y_pred.shape[:2]
    shapes = [(batch, num_classes, num_bins) if classwise else (batch, num_bins) for classwise in kinds]
    counts = [y_pred.new_zeros(shape, dtype=torch.int64) for shape in shapes]
    totals = [(count.flatten(1), count.flatten(1).double(), count.flatten(1).double()) for count in counts]
    first_bin = torch.arange(0, num_classes * num_bins, num_bins, dtype=torch.int32, device=y_pred.device)[:, None]
    for case, p, label in _counted_voxels(y_pred, y, foreground_only, ignore_index):
        for classwise, (count, confidence, accuracy) in zip(kinds, totals, strict=True):
            size = count.shape[1]
            if classwise:
                index = _bin_index(p, num_bins).add_(first_bin)
                accuracy[case].add_(torch.bincount(index.gather(0, label[None])[0], minlength=size))
                index, values = index.flatten(), p.flatten()
            else:
                values, top = _top_label(p)
                index = _bin_index(values, num_bins)
                accuracy[case].index_add_(0, index, (top == label).double())
            count[case].add_(torch.bincount(index, minlength=size))
            # Sum a chunk on its own first: one sum over millions of equal terms would drift, even in float64.
            confidence[case].add_(values.new_zeros(size).index_add_(0, index, values))
    return [
        CalibrationBins(*(field.view(shape) for field in total)) for shape, total in zip(shapes, totals, strict=True)
    ]


def _bin_index(p: torch.Tensor, num_bins: int) -> torch.Tensor:
    # The edge i / num_bins, however rounded, scales to less than i and so falls into the bin below.
    return (p * (num_bins * (1 - 1e-15))).int().clamp_(max=num_bins - 1)


def _top_label(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`p.max(0)`, the first of equals, for probabilities `(N, voxels)`; several times faster on a CPU."""
    confidence = p.amax(0)
    rank = torch.arange(len(p), 0, -1, dtype=torch.int16, device=p.device)[:, None]
    return confidence, len(p) - ((p >= confidence) * rank).amax(0)


def _counted_voxels(
    y_pred: torch.Tensor, y: torch.Tensor, foreground_only: bool, ignore_index: int | None
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yields the voxels that count, chunk by chunk, and checks all that are not ignored.

    A faulty chunk is not yielded; one error sums up the faults of all chunks in the end.

    Yields:
        Case, its probabilities `(N, voxels)` in float64, its class indices `(voxels,)`.
    """
    num_classes = y_pred.shape[1]
    step = max(1, (CPU_CHUNK if y_pred.device.type == "cpu" else GPU_CHUNK) // num_classes)
    faults = torch.zeros(4, dtype=torch.int64)
    for case in range(len(y_pred)):
        case_p, case_y = y_pred[case].flatten(1), y[case].flatten(1)
        for start in range(0, case_p.shape[1], step):
            p = case_p[:, start : start + step].double()
            label = _class_index(case_y[:, start : start + step])
            if ignore_index is not None:
                p, label = _select(label != ignore_index, p, label)
            if len(label) > 0 and not _is_faultless(p, label):
                faults += _count_faults(p, label)
                continue
            if foreground_only:
                p, label = _select(label != 0, p, label)
            if len(label) > 0:
                yield case, p, label
    if faults.any():
        raise ValueError(_describe_faults(faults.tolist(), y_pred, ignore_index))


def _class_index(y: torch.Tensor) -> torch.Tensor:
    """Class index of each voxel, or `NOT_A_LABEL`, from a class index `(1, voxels)` or one-hot `(N, voxels)`."""
    if len(y) > 1:
        largest, label = y.max(0)
        return label.masked_fill_((largest != 1) | ((y != 0).sum(0) != 1), NOT_A_LABEL)
    label = y[0].long()
    return label.masked_fill_(label != y[0], NOT_A_LABEL) if y.is_floating_point() else label


def _select(keep: torch.Tensor, *values: torch.Tensor) -> list[torch.Tensor]:
    index = keep.nonzero().squeeze(1)
    return [value.index_select(-1, index) for value in values]


def _is_faultless(p: torch.Tensor, label: torch.Tensor) -> bool:
    extremes = (*p.aminmax(), *p.sum(0).aminmax(), *label.aminmax())
    low, high, low_sum, high_sum, low_label, high_label = (value.item() for value in extremes)
    return (  # False where NaN
        -RANGE_TOLERANCE <= low <= high <= 1 + RANGE_TOLERANCE
        and 1 - SUM_TOLERANCE <= low_sum <= high_sum <= 1 + SUM_TOLERANCE
        and 0 <= low_label <= high_label < len(p)
    )


def _count_faults(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Values not finite, values outside [0, 1], voxels that do not sum to 1, voxels without a valid label."""
    finite = p.isfinite()
    outside = finite & ((p < -RANGE_TOLERANCE) | (p > 1 + RANGE_TOLERANCE))
    off_sum = (p.sum(0) - 1).abs() > SUM_TOLERANCE
    return torch.stack([(~finite).sum(), outside.sum(), off_sum.sum(), ((label < 0) | (label >= len(p))).sum()]).cpu()


def _describe_faults(faults: list[int], y_pred: torch.Tensor, ignore_index: int | None) -> str:
    not_finite, outside, off_sum, invalid = faults
    values, num_classes = y_pred.numel(), y_pred.shape[1]
    if not_finite:
        return f"y_pred must hold probabilities, but {not_finite} of its {values} values are NaN or infinite."
    if outside:
        return (
            f"y_pred must hold probabilities, but {outside} of its {values} values are outside [0, 1]: "
            "y_pred looks like logits; apply softmax."
        )
    if off_sum:
        return (
            f"y_pred must hold probabilities that sum to 1 over classes, but in {off_sum} of its "
            f"{values // num_classes} voxels they do not: y_pred looks like logits; apply softmax."
        )
    ignored = "" if ignore_index is None else f" (or ignore_index={ignore_index})"
    return (
        f"y must hold class indices 0 to {num_classes - 1}{ignored}, or be their one-hot, but {invalid} of its "
        f"{values // num_classes} voxels do not."
    )


def _checked_tensors(y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y_pred, y = plain_tensor(y_pred, "y_pred"), plain_tensor(y, "y")
    if not y_pred.is_floating_point():
        raise TypeError(f"y_pred must hold probabilities of a floating type, got {y_pred.dtype}.")
    if y_pred.ndim < 3 or y_pred.shape[1] < 2:
        raise ValueError(f"y_pred must have shape (B, N, *S) with N >= 2 classes, got {tuple(y_pred.shape)}.")
    batch, num_classes, *spatial = y_pred.shape
    if y.shape not in ((batch, 1, *spatial), (batch, num_classes, *spatial)):
        raise ValueError(
            f"y must have shape {(batch, 1, *spatial)} (class index) or {tuple(y_pred.shape)} (one-hot) to match "
            f"y_pred, got {tuple(y.shape)}."
        )
    return y_pred, y


def _check_num_bins(num_bins: int) -> None:
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")


class _BinnedMetric(CaseMetric):
    classwise: bool

    def __init__(self, num_bins: int = 15, foreground_only: bool = True, ignore_index: int | None = None) -> None:
        super().__init__()
        _check_num_bins(num_bins)
        self.num_bins = num_bins
        self.foreground_only = foreground_only
        self.ignore_index = ignore_index

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        bins = calibration_bins(y_pred, y, self.num_bins, self.foreground_only, self.ignore_index, self.classwise)
        return [bins.count, bins.confidence, bins.accuracy]

    @property
    def case_bins(self) -> CalibrationBins:
        """Bins of each case."""
        return CalibrationBins(*self.gathered())

    @property
    def bins(self) -> CalibrationBins:
        """Bins of all voxels of all cases together."""
        return self.case_bins.pooled()

    def case_values(self) -> torch.Tensor:
        return self.case_bins.expected_error()


class ECEMetric(_BinnedMetric):
    """Expected calibration error of the predicted class (top label).

    `y_pred`: probabilities `(B, N, *S)`; `y`: class index `(B, 1, *S)` or its one-hot `(B, N, *S)`; anything else is a
    `TypeError` or `ValueError`.

    `aggregate()` is the mean over cases, `aggregate("none")` the value of each; a case without any counted voxel is NaN
    and in no mean. `bins.expected_error()` is the error pooled over all voxels.

    Args:
        num_bins: number of equal bins on (0, 1].
        foreground_only: count only voxels whose ground truth is not class 0.
        ignore_index: ground truth value of voxels that are left out.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """

    classwise = False


class CECEMetric(_BinnedMetric):
    """Classwise expected calibration error: the mean of the ECE of all N classes, background included.

    Arguments, inputs and results as in `ECEMetric`.

    Source: Kull et al., "Beyond temperature scaling", NeurIPS 2019.
    """

    classwise = True


class CalibrationMetric(CaseMetric):
    """ECE and CECE from one pass over the voxels.

    `aggregate()` returns `{"ece": ..., "cece": ...}`, which Ignite keeps as two metrics. The members `ece` and `cece`
    are an `ECEMetric` and a `CECEMetric` that hold the cases, bins included.

    Arguments and inputs as in `ECEMetric`.
    """

    def __init__(self, num_bins: int = 15, foreground_only: bool = True, ignore_index: int | None = None) -> None:
        self.ece = ECEMetric(num_bins, foreground_only, ignore_index)
        self.cece = CECEMetric(num_bins, foreground_only, ignore_index)
        super().__init__()

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        ece = self.ece
        both = _calibration_bins(y_pred, y, ece.num_bins, ece.foreground_only, ece.ignore_index, kinds=(False, True))
        return [field for bins in both for field in (bins.count, bins.confidence, bins.accuracy)]

    def extend(self, *data: torch.Tensor) -> None:
        self.ece.extend(*data[:3])
        self.cece.extend(*data[3:])

    def __len__(self) -> int:
        return len(self.ece)

    def reset(self) -> None:
        self.ece.reset()
        self.cece.reset()

    def case_values(self) -> torch.Tensor:
        """ECE and CECE of each case, `(cases, 2)`."""
        return torch.stack([self.ece.case_values(), self.cece.case_values()], dim=1)

    def aggregate(self, reduction: str = "mean") -> dict[str, torch.Tensor]:  # type: ignore[override]
        """ECE and CECE, each reduced as in `ECEMetric`."""
        return {"ece": self.ece.aggregate(reduction), "cece": self.cece.aggregate(reduction)}


class _VoxelMeanMetric(CaseMetric):
    def __init__(self, foreground_only: bool = True, ignore_index: int | None = None) -> None:
        super().__init__()
        self.foreground_only = foreground_only
        self.ignore_index = ignore_index

    def case_values(self) -> torch.Tensor:
        return self.gathered()


class NLLMetric(_VoxelMeanMetric):
    """Negative log-likelihood of each case, see `negative_log_likelihood`; `aggregate()` is the mean over cases.

    Inputs as in `ECEMetric`.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return negative_log_likelihood(y_pred, y, self.foreground_only, self.ignore_index)


class BrierMetric(_VoxelMeanMetric):
    """Brier score of each case, see `brier_score`; `aggregate()` is the mean over cases.

    Inputs as in `ECEMetric`.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return brier_score(y_pred, y, self.foreground_only, self.ignore_index)
