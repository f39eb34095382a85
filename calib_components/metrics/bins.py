"""Reliability bins, and the calibration errors computed from them.

The bins are computed once; every error and diagram is a small reduction of them. Counts are int64 and sums float64:
float32 sums become inexact from about one million voxels per bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from calib_components.arguments import check_count, check_flag
from calib_components.metrics.case_metric import plain_tensor
from calib_components.metrics.voxels import RANGE_TOLERANCE, check_tensors, read_voxels, top_label

__all__ = ["CalibrationBins", "bin_voxels", "calibration_bins", "check_num_bins"]


LARGEST_NUM_BINS = 10_000  # so that numbers of bins fit into int32 for any number of classes that fits into memory


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Reliability bins of one or more cases: all that calibration errors and reliability diagrams need.

    Bin `i` of `num_bins` holds the probabilities in `(i / num_bins, (i + 1) / num_bins]`; exactly 0 is in the first.

    Shape:
        - All fields and properties: `(B, num_bins)` for the top label, `(B, N, num_bins)` for each of `N` classes; `B`
          cases.

    Attributes:
        count: Number of probabilities in each bin, int64.
        confidence_sum: Their sum, float64.
        num_correct: How many of the predictions were correct, float64.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import CalibrationBins
        >>> sums = torch.tensor([[4.0, 0.0, 9.0]], dtype=torch.float64)
        >>> num_correct = torch.tensor([[2.0, 0.0, 9.0]], dtype=torch.float64)
        >>> bins = CalibrationBins(torch.tensor([[20, 0, 10]]), sums, num_correct)
        >>> bins.confidence.tolist()
        [[0.2, nan, 0.9]]
        >>> bins.accuracy.tolist()
        [[0.1, nan, 0.9]]
        >>> round(bins.expected_error().item(), 4)  # 20 / 30 * |0.2 - 0.1|
        0.0667
    """

    count: torch.Tensor
    confidence_sum: torch.Tensor
    num_correct: torch.Tensor

    def __post_init__(self) -> None:
        for name, field in vars(self).items():
            plain_tensor(field, name)
        shapes = [tuple(field.shape) for field in vars(self).values()]
        if len(set(shapes)) > 1 or len(shapes[0]) not in (2, 3):
            raise ValueError(
                "count, confidence_sum and num_correct: expected one shape, (B, bins) or (B, N, bins), got "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
            )

    @property
    def confidence(self) -> torch.Tensor:
        """Mean confidence of each bin, float64; NaN where the bin is empty."""
        return self.confidence_sum / self.count

    @property
    def accuracy(self) -> torch.Tensor:
        """Fraction of correct predictions in each bin, float64; NaN where the bin is empty."""
        return self.num_correct / self.count

    def __add__(self, other: CalibrationBins) -> CalibrationBins:
        """Merge case by case: the bins of two parts of the same cases give the bins of the whole."""
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"other: expected bins of the same shape, {tuple(self.count.shape)}, got {tuple(other.count.shape)}: "
                "pool the cases first with pooled()"
            )
        return CalibrationBins(
            self.count + other.count,
            self.confidence_sum + other.confidence_sum,
            self.num_correct + other.num_correct,
        )

    def pooled(self) -> CalibrationBins:
        """Sum over cases, as if all voxels belonged to one case, `B = 1`."""
        return CalibrationBins(*(field.sum(0, keepdim=True) for field in vars(self).values()))

    def per_class(self) -> list[CalibrationBins]:
        """Split classwise bins `(B, N, num_bins)` into the bins `(B, num_bins)` of each class.

        Raises:
            ValueError: These are top-label bins.
        """
        if self.count.ndim == 2:
            raise ValueError(f"per_class: expected classwise bins (B, N, bins), got shape {tuple(self.count.shape)}")
        fields = (field.unbind(1) for field in vars(self).values())
        return [CalibrationBins(*fields_of_class) for fields_of_class in zip(*fields, strict=True)]

    def expected_error(self) -> torch.Tensor:
        """Expected calibration error: ECE of top-label bins, CECE (mean over classes) of classwise bins.

        `sum_bins count / total * |confidence - accuracy|`.

        Returns:
            Float64 `(B,)`; NaN for a case without voxels. The same holds for the other two errors.
        """
        return _mean_over_classes((self.confidence_sum - self.num_correct).abs().sum(-1) / self.count.sum(-1))

    def average_error(self) -> torch.Tensor:
        """Average calibration error (ACE), `(B,)`: the unweighted mean of `|confidence - accuracy|` of non-empty bins.

        Classwise bins give the mean over classes.
        """
        return _mean_over_classes(self._gaps().nanmean(-1))

    def maximum_error(self) -> torch.Tensor:
        """Maximum calibration error (MCE), `(B,)`: the largest `|confidence - accuracy|` of a bin.

        Classwise bins give the mean over classes.
        """
        gaps = self._gaps()
        return _mean_over_classes(torch.where(gaps.isnan().all(-1), torch.nan, gaps.nan_to_num().amax(-1)))

    def _gaps(self) -> torch.Tensor:
        """`|confidence - accuracy|` of each bin; NaN where it is empty."""
        return (self.confidence_sum - self.num_correct).abs() / self.count

    def to_dict(self) -> dict[str, list]:
        """Return the three fields as nested lists, which JSON stores exactly."""
        return {name: field.tolist() for name, field in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, list]) -> CalibrationBins:
        """Inverse of `to_dict`.

        Also reads the earlier form, whose fields `confidence` and `accuracy` are the sums now called `confidence_sum`
        and `num_correct`.

        Args:
            fields: Nested lists by name of the field.

        Raises:
            ValueError: A field is missing or does not hold numbers, or the shapes do not match.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"fields: expected a dictionary of nested lists, got {type(fields).__name__}")
        names = ["count", "confidence_sum", "num_correct"]
        if fields.keys() == {"count", "confidence", "accuracy"}:
            fields = {
                "count": fields["count"],
                "confidence_sum": fields["confidence"],
                "num_correct": fields["accuracy"],
            }
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(
                f"fields: expected {', '.join(names)}, got {', '.join(map(str, fields)) or 'none'} "
                f"(missing: {', '.join(missing)})"
            )
        bins = cls(
            _tensor("count", fields["count"], torch.int64),
            _tensor("confidence_sum", fields["confidence_sum"], torch.float64),
            _tensor("num_correct", fields["num_correct"], torch.float64),
        )
        for name, sums in (("confidence_sum", bins.confidence_sum), ("num_correct", bins.num_correct)):
            tolerance = RANGE_TOLERANCE * bins.count.abs()
            if not ((sums >= -tolerance) & (sums <= bins.count + tolerance)).all():  # False where NaN
                raise ValueError(f"{name}: expected sums between 0 and the count of each bin, got others")
        return bins


def _tensor(name: str, values: list, dtype: torch.dtype) -> torch.Tensor:
    try:
        tensor = torch.tensor(values, dtype=torch.float64 if dtype.is_floating_point else None)
        converted = tensor.to(dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected nested lists of numbers, got {error}") from None
    if not dtype.is_floating_point and not torch.equal(converted, tensor):
        raise ValueError(f"{name}: expected whole numbers, got fractions")
    return converted


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
    """Sort predicted probabilities into bins of equal width.

    Probabilities of any type are compared with the bin edges `i / num_bins` in float64; a probability within 1e-15 of
    an edge counts as equal to it.

    Shape:
        - y_pred: `(B, N, *S)`, with N >= 2 classes and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot.
        - output: bins of B cases.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        num_bins: Number of bins.
        foreground_only: Whether to use only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out; their probabilities are not checked.
        classwise: False bins the highest probability of each voxel, which is correct where its class is the ground
            truth (for ECE). True bins the probability of every class, which is correct where that class is the ground
            truth (for CECE).

    Returns:
        Bins of each case, on the device of `y_pred`.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import calibration_bins
        >>> y_pred = torch.tensor([[[0.1, 0.3, 0.4], [0.9, 0.7, 0.6]]])  # one case, two classes, three voxels
        >>> y = torch.tensor([[[1, 1, 0]]])
        >>> bins = calibration_bins(y_pred, y, num_bins=2, foreground_only=False)
        >>> bins.count.tolist(), bins.num_correct.tolist()
        ([[0, 3]], [[0.0, 2.0]])
        >>> round(bins.expected_error().item(), 4)  # |(0.9 + 0.7 + 0.6) / 3 - 2 / 3|
        0.0667
    """
    check_flag("classwise", classwise)
    return bin_voxels(y_pred, y, num_bins, foreground_only, ignore_index, classwise=(classwise,))[0]


def bin_voxels(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    num_bins: int,
    foreground_only: bool,
    ignore_index: int | None,
    classwise: Sequence[bool],
) -> list[CalibrationBins]:
    """Compute several sets of bins, each classwise or not, in one pass; other arguments as in `calibration_bins`."""
    y_pred, y = check_tensors(y_pred, y)
    check_num_bins(num_bins)
    batch, num_classes = y_pred.shape[:2]
    results, flat = [], []
    for by_class in classwise:
        count = y_pred.new_zeros((batch, num_classes, num_bins) if by_class else (batch, num_bins), dtype=torch.int64)
        bins = CalibrationBins(count, count.double(), count.double())
        results.append(bins)
        flat.append([field.flatten(1) for field in vars(bins).values()])  # views, filled below
    first_bin = torch.arange(0, num_classes * num_bins, num_bins, dtype=torch.int32, device=y_pred.device)[:, None]
    for case, p, label in read_voxels(y_pred, y, foreground_only, ignore_index):
        for by_class, fields in zip(classwise, flat, strict=True):
            count, confidence_sum, num_correct = (field[case] for field in fields)
            size = len(count)
            if by_class:
                index = _bin_index(p, num_bins).add_(first_bin)
                num_correct.add_(torch.bincount(index.gather(0, label[None])[0], minlength=size))
                index, values = index.flatten(), p.flatten()
            else:
                values, predicted = top_label(p)
                index = _bin_index(values, num_bins)
                num_correct.index_add_(0, index, (predicted == label).double())
            count.add_(torch.bincount(index, minlength=size))
            # Sum a chunk on its own first: one sum over millions of equal terms would drift, even in float64.
            confidence_sum.add_(values.new_zeros(size).index_add_(0, index, values))
    return results


def _bin_index(p: torch.Tensor, num_bins: int) -> torch.Tensor:
    # The edge i / num_bins, whichever way it was rounded, scales to less than i and so falls into the bin below.
    return (p * (num_bins * (1 - 1e-15))).int().clamp_(max=num_bins - 1)


def check_num_bins(num_bins: int) -> None:
    """Raise `ValueError` unless a number of bins is a whole number from 1 to 10,000."""
    check_count("num_bins", num_bins, 1, LARGEST_NUM_BINS)
