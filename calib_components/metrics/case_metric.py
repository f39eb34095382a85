"""What all metrics of this package share: values for each case, gathered over ranks, and their mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from monai.config import TensorOrList
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric

__all__ = ["CaseMetric", "plain_tensor"]


def plain_tensor(value: Any, name: str) -> torch.Tensor:
    """Returns `value` detached and without MONAI's metadata, or raises a TypeError that names the argument."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    return value.as_tensor().detach() if isinstance(value, MetaTensor) else value.detach()


class CaseMetric(CumulativeIterationMetric):
    """Base of the metrics: call it with `(y_pred, y)`, then `aggregate()`, then `reset()`.

    `y_pred` and `y` are batches `(B, C, *S)` or lists of channel-first tensors `(C, *S)`, whose sizes may differ from
    case to case. Works as `metric_fn` of `monai.handlers.IgniteMetricHandler`; buffers are gathered over ranks.
    """

    def __call__(self, y_pred: TensorOrList, y: TensorOrList | None = None, **kwargs: Any) -> Any:
        for name, value in (("y_pred", y_pred), ("y", y)):
            if not isinstance(value, (torch.Tensor, Sequence)):  # which the base class would drop or fail on
                raise TypeError(f"{name} must be a torch.Tensor or a list of them, got {type(value).__name__}.")
        return super().__call__(y_pred, y, **kwargs)

    @abstractmethod
    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """What to keep of a batch: one or more tensors whose first axis is the cases."""

    @abstractmethod
    def case_values(self) -> torch.Tensor:
        """Value of each case, `(cases,)` or `(cases, classes)` float64; NaN where it is undefined."""

    def gathered(self) -> Any:
        """What `measure` returned, concatenated over cases and ranks: a tensor or a list of tensors."""
        buffer = super().get_buffer()
        if buffer is None:
            raise ValueError(f"{type(self).__name__} has no case to aggregate: call it with (y_pred, y) first.")
        return buffer

    def get_buffer(self) -> torch.Tensor:
        """The values of the cases: what Ignite handlers keep as the details of a metric."""
        return self.case_values()

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """Reduces the values of the cases; undefined (NaN) ones are left out of every mean.

        Args:
            reduction: "mean" averages over the classes of a case, then over cases; "mean_batch" over cases only, so one
                value a class is left; "none" returns the values of the cases.

        Returns:
            Float64 tensor. A mean of nothing is NaN.

        Raises:
            ValueError: if no case has been added, or for another reduction.
        """
        values = self.case_values()
        if reduction == "none":
            return values
        if reduction == "mean_batch":
            return values.nanmean(0)
        if reduction == "mean":
            return values.reshape(len(values), -1).nanmean(1).nanmean()
        raise ValueError(f'reduction must be "mean", "mean_batch" or "none", got {reduction!r}.')

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> TensorOrList:
        return self.measure(plain_tensor(y_pred, "y_pred"), plain_tensor(y, "y"), **kwargs)

    def _compute_list(self, y_pred: TensorOrList, y: TensorOrList | None = None, **kwargs: Any) -> Any:
        if y is not None and len(y_pred) != len(y):
            raise ValueError(f"y_pred and y must hold the same number of cases, got {len(y_pred)} and {len(y)}.")
        return super()._compute_list(y_pred, y, **kwargs)
