"""Reliability bins, and the calibration errors computed from them.

Counts are int64 and sums float64: float32 sums become inexact from about one million voxels per
bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calib_components.errors import InputError, check_count


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Reliability bins of one or more cases: all that calibration errors and reliability diagrams
    need.

    Bin `i` of `num_bins` holds the probabilities in `(i / num_bins, (i + 1) / num_bins]`; exactly 0
    is in the first.

    All fields and properties have shape `(B, num_bins)` for the top label, or `(B, N, num_bins)`
    for each of N classes.

    Attributes:
        count: Number of probabilities, int64; float64 where it is the number expected if the
            probabilities were true.
        confidence_sum: Their sum, float64.
        num_correct: How many of the predictions were correct, float64.
    """

    count: torch.Tensor
    confidence_sum: torch.Tensor
    num_correct: torch.Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(field.shape) for field in _fields(self)]
        if len(set(shapes)) > 1 or len(shapes[0]) not in (2, 3):
            raise InputError(
                f"Fields of bins must have one shape, (B, bins) or (B, N, bins), got {shapes}."
            )

    @property
    def confidence(self) -> torch.Tensor:
        """Mean confidence of each bin; NaN where it is empty."""
        return self.confidence_sum / self.count

    @property
    def accuracy(self) -> torch.Tensor:
        """Fraction of correct predictions in each bin; NaN where it is empty."""
        return self.num_correct / self.count

    def to_dict(self) -> dict[str, list]:
        """Return the fields as nested lists, which JSON stores exactly."""
        return {name: field.tolist() for name, field in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, list]) -> CalibrationBins:
        """Inverse of `to_dict`."""
        return cls(**{name: torch.from_numpy(np.array(field)) for name, field in values.items()})

    @classmethod
    def joined(cls, parts: Sequence[CalibrationBins]) -> CalibrationBins:
        """Join the cases of several."""
        return cls(*(torch.cat(fields) for fields in zip(*map(_fields, parts), strict=True)))

    def __add__(self, other: CalibrationBins) -> CalibrationBins:
        """Merge case by case: the bins of two parts of the same cases give the bins of the
        whole.
        """
        if self.count.shape != other.count.shape:  # others would broadcast
            raise InputError(
                f"Bins of shapes {tuple(self.count.shape)} and {tuple(other.count.shape)} cannot be"
                " added. Pool the cases first with pooled()."
            )
        both = zip(_fields(self), _fields(other), strict=True)
        return CalibrationBins(*(one + another for one, another in both))

    def pooled(self) -> CalibrationBins:
        """Sum over cases, as if all voxels belonged to one case, `B = 1`."""
        return CalibrationBins(*(field.sum(0, keepdim=True) for field in _fields(self)))

    def per_class(self) -> list[CalibrationBins]:
        """Split classwise bins `(B, N, num_bins)` into the bins `(B, num_bins)` of each class."""
        by_class = zip(*(field.unbind(1) for field in _fields(self)), strict=True)
        return [CalibrationBins(*fields) for fields in by_class]

    def expected_error(self, mean: bool = True) -> torch.Tensor:
        """Expected calibration error: ECE of top-label bins, CECE (mean over classes) of classwise
        bins.

        `sum_bins count / total * |confidence - accuracy|`, float64 `(B,)`; NaN for a case without
        voxels. `mean=False` keeps the error of each class, `(B, N)`.
        """
        errors = (self.confidence_sum - self.num_correct).abs().sum(-1) / self.count.sum(-1)
        return mean_over_classes(errors) if mean else errors

    def average_error(self) -> torch.Tensor:
        """Average calibration error (ACE), `(B,)`: the mean of `|confidence - accuracy|` over
        non-empty bins, of classwise bins also over classes.
        """
        return mean_over_classes(self._gaps.nanmean(-1))

    def maximum_error(self) -> torch.Tensor:
        """Maximum calibration error (MCE), `(B,)`: the largest `|confidence - accuracy|` of a bin,
        of classwise bins the mean over classes.

        A bin with few voxels can decide it. Source: Naeini et al., "Obtaining well calibrated
        probabilities using Bayesian binning", AAAI 2015.
        """
        largest = self._gaps.nan_to_num(-1).amax(-1)
        return mean_over_classes(largest.masked_fill(largest < 0, torch.nan))

    def with_equal_counts(self, num_bins: int = 15) -> CalibrationBins:
        """Make bins that hold the same number of voxels each, for the adaptive ECE.

        Neighbouring bins are joined, so start from narrow ones, such as 1,000. One on a border is
        divided in proportion, as voxels of one probability are; counts are float64.

        Source: Nixon et al., "Measuring calibration in deep learning", CVPR Workshops 2019.

        Examples:
            >>> import torch
            >>> from calib_components.metrics import calibration_bins
            >>> y_pred, y = torch.rand(1, 3, 20, 20).softmax(1), torch.randint(3, (1, 1, 20, 20))
            >>> narrow = calibration_bins(y_pred, y, num_bins=1000, region="all")
            >>> narrow.with_equal_counts(4).count
            tensor([[100., 100., 100., 100.]], dtype=torch.float64)
        """
        check_count("num_bins", num_bins, 1)
        rows = [field.double().flatten(0, -2).numpy(force=True) for field in _fields(self)]
        merged = [np.empty((len(rows[0]), num_bins)) for _ in rows]
        for index, count in enumerate(rows[0]):
            total = count.cumsum()
            borders = np.linspace(0, total[-1], num_bins + 1)
            for field, result in zip(rows, merged, strict=True):
                sums = np.interp(borders, [0, *total], [0, *field[index].cumsum()])
                result[index] = np.diff(sums)
        shape = (*self.count.shape[:-1], num_bins)
        return CalibrationBins(*(torch.from_numpy(each).reshape(shape) for each in merged))

    @property
    def _gaps(self) -> torch.Tensor:
        """`|confidence - accuracy|` of each bin; NaN where it is empty."""
        return (self.confidence_sum - self.num_correct).abs() / self.count


def _fields(bins: CalibrationBins) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return bins.count, bins.confidence_sum, bins.num_correct


def mean_over_classes(errors: torch.Tensor) -> torch.Tensor:
    """Mean of classwise errors `(B, N)`; those of the top label, `(B,)`, as they are."""
    # A channel of sigmoids may have no voxel in the region
    return errors.nanmean(1) if errors.ndim == 2 else errors
