"""Reliability bins, and the calibration errors computed from them.

The bins are computed once; every error and diagram is a small reduction of them. Counts are int64 and sums float64:
float32 sums become inexact from about one million voxels per bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from calib_components.arguments import check_flag
from calib_components.metrics.case_metric import plain_tensor
from calib_components.metrics.one_pass import measure_regions
from calib_components.metrics.regions import choose_region
from calib_components.metrics.voxels import RANGE_TOLERANCE

__all__ = ["CalibrationBins", "calibration_bins"]


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Reliability bins of one or more cases: all that calibration errors and reliability diagrams need.

    Bin `i` of `num_bins` holds the probabilities in `(i / num_bins, (i + 1) / num_bins]`; exactly 0 is in the first.

    Shape:
        - All fields and properties: `(B, num_bins)` for the top label, `(B, N, num_bins)` for each of `N` classes; `B`
          cases.

    Attributes:
        count: Number of probabilities in each bin, int64; float64 where it is the number expected if the probabilities
            were true.
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

        Args:
            fields: Nested lists by name of the field.

        Raises:
            ValueError: A field is missing or does not hold numbers, or the shapes do not match.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"fields: expected a dictionary of nested lists, got {type(fields).__name__}")
        names = ["count", "confidence_sum", "num_correct"]
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(
                f"fields: expected {', '.join(names)}, got {', '.join(map(str, fields)) or 'none'} "
                f"(missing: {', '.join(missing)})"
            )
        bins = cls(
            _count(fields["count"]),
            _tensor("confidence_sum", fields["confidence_sum"]),
            _tensor("num_correct", fields["num_correct"]),
        )
        for name, sums in (("confidence_sum", bins.confidence_sum), ("num_correct", bins.num_correct)):
            tolerance = RANGE_TOLERANCE * bins.count.abs()
            if not ((sums >= -tolerance) & (sums <= bins.count + tolerance)).all():  # False where NaN
                raise ValueError(f"{name}: expected sums between 0 and the count of each bin, got others")
        return bins


def _tensor(name: str, values: list) -> torch.Tensor:
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected nested lists of numbers, got {error}") from None


def _count(values: list) -> torch.Tensor:
    """Int64 if all are written without a decimal point, else float64, as `to_dict` writes the two."""
    count = _tensor("count", values)
    if not count.isfinite().all():
        raise ValueError("count: expected finite numbers, got others")
    as_written = torch.tensor(values)
    return count if as_written.is_floating_point() else as_written.long()


def _mean_over_classes(errors: torch.Tensor) -> torch.Tensor:
    return errors.nanmean(1) if errors.ndim == 2 else errors  # a channel of sigmoids may have no voxel in the region


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

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.
        - output: bins of B cases.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        num_bins: Number of bins.
        foreground_only: True is the region "foreground", False is "all".
        ignore_index: Ground-truth value of voxels to leave out; their probabilities are not checked.
        classwise: False bins the highest probability of each voxel, which is correct where its class is the ground
            truth (for ECE). True bins the probability of every class, which is correct where that class is the ground
            truth (for CECE).
        region: Which voxels count, see `calib_components.metrics.regions`: a `Region`, its name, or class indices; None
            is "foreground", voxels whose ground truth is not class 0.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

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
    kind = "classwise" if classwise else "top_label"
    regions = [choose_region(region, foreground_only)]
    return CalibrationBins(*measure_regions(y_pred, y, regions, [kind], num_bins, ignore_index, sigmoid)[0][kind])
