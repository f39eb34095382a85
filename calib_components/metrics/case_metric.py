"""Base of all metrics of this package: values of each case, gathered across processes, and their mean."""

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
    """Return `value` detached and without MONAI's metadata, or raise a `TypeError` that names the argument."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value.as_tensor().detach() if isinstance(value, MetaTensor) else value.detach()


class CaseMetric(CumulativeIterationMetric):
    """Base class of the metrics: call it with `(y_pred, y)`, then `aggregate()`, then `reset()`.

    Works as the `metric_fn` of `monai.handlers.IgniteMetricHandler`. Across several processes, the values of all cases
    are gathered, so every process must call `aggregate()`.

    Shape:
        - y_pred, y: batches `(B, C, *S)`, or lists of channel-first tensors `(C, *S)` whose sizes may differ between
          cases.
    """

    def __call__(self, y_pred: TensorOrList, y: TensorOrList | None = None, **kwargs: Any) -> Any:
        for name, value in (("y_pred", y_pred), ("y", y)):
            if not isinstance(value, (torch.Tensor, Sequence)):  # the base class would fail on it or ignore it
                raise TypeError(f"{name}: expected a torch.Tensor or a list of them, got {type(value).__name__}")
        return super().__call__(y_pred, y, **kwargs)

    @abstractmethod
    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Compute what is stored of a batch: one or more tensors whose first dimension is the cases."""

    @abstractmethod
    def case_values(self) -> torch.Tensor:
        """Return the value of each case, float64 `(cases,)` or `(cases, classes)`; NaN where it is undefined."""

    def gathered(self) -> Any:
        """Return what `measure` computed, concatenated over cases and processes: a tensor or a list of tensors.

        Raises:
            ValueError: No case has been added.
        """
        buffer = super().get_buffer()
        if buffer is None:
            raise ValueError(f"{type(self).__name__}: expected at least one case to aggregate, got none")
        return buffer

    def get_buffer(self) -> torch.Tensor:
        """Return the values of the cases, which `IgniteMetricHandler` stores as the details of the metric."""
        return self.case_values()

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the values of the cases; undefined (NaN) values are left out of every mean.

        Args:
            reduction: "mean" averages over the classes of each case, then over cases. "mean_batch" averages over cases
                only, which leaves one value per class. "none" returns the value of each case.

        Returns:
            Float64. A mean without any defined value is NaN.

        Raises:
            ValueError: No case has been added, or the reduction is unknown.
        """
        values = self.case_values()
        if reduction == "none":
            return values
        if reduction == "mean_batch":
            return values.nanmean(0)
        if reduction == "mean":
            return values.reshape(len(values), -1).nanmean(1).nanmean()
        raise ValueError(f'reduction: expected "mean", "mean_batch" or "none", got {reduction!r}')

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> TensorOrList:
        return self.measure(plain_tensor(y_pred, "y_pred"), plain_tensor(y, "y"), **kwargs)

    def _compute_list(self, y_pred: TensorOrList, y: TensorOrList | None = None, **kwargs: Any) -> Any:
        if y is not None and len(y_pred) != len(y):
            raise ValueError(f"y: expected as many cases as y_pred, {len(y_pred)}, got {len(y)}")
        return super()._compute_list(y_pred, y, **kwargs)
