"""Base of metrics, whose values of cases are gathered across processes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from monai.config import TensorOrList
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric

from calib_components.errors import InputError, check_choice


def plain_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor detached and without MONAI's metadata."""
    return value.as_tensor().detach() if isinstance(value, MetaTensor) else value.detach()


class CaseMetric(CumulativeIterationMetric):
    """Base class of the metrics: call it with `(y_pred, y)`, then `aggregate()`, then `reset()`.

    Works as the `metric_fn` of `monai.handlers.IgniteMetricHandler`. Across several processes, the
    values of all cases are gathered, so every process must have had a case and call `aggregate()`.

    Shape:
        - y_pred, y: batches `(B, C, *S)`, or lists of channel-first tensors `(C, *S)` whose sizes
          may differ between cases.
    """

    @abstractmethod
    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Compute what is stored of a batch: one or more tensors whose first dimension is the
        cases.
        """

    def gathered(self) -> Any:
        """Return what `measure` computed, concatenated over cases and processes: a tensor or a list
        of tensors.
        """
        values = super().get_buffer()
        if values is None:
            raise InputError(
                f"{type(self).__name__} has no case. Call it before aggregate(), in every process."
            )
        return values

    def get_buffer(self) -> torch.Tensor:
        """Return the value of each case, float64 `(cases,)` or `(cases, structures)`; NaN where it
        is undefined.

        `IgniteMetricHandler` stores them as the details of the metric.
        """
        return self.gathered()

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """Reduce the values of the cases; undefined (NaN) values are left out of every mean.

        Args:
            reduction: "mean" averages over the structures of each case, then over cases.
                "mean_batch" averages over cases only, which leaves one value per structure. "none"
                returns the value of each case.

        Returns:
            Float64. A mean without any defined value is NaN.

        Raises:
            InputError: No case has been added, or the reduction is unknown.
        """
        return self.reduce(self.get_buffer(), reduction)

    @staticmethod
    def reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
        """Reduce values of cases as `aggregate` does."""
        check_choice("reduction", reduction, ["mean", "mean_batch", "none"])
        if reduction == "none":
            return values
        return (
            values.nanmean(0)
            if reduction == "mean_batch"
            else values.reshape(len(values), -1).nanmean(1).nanmean()
        )

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> TensorOrList:
        if y is None:  # also where it is an array
            raise TypeError("y must be a torch.Tensor")
        return self.measure(plain_tensor(y_pred), plain_tensor(y), **kwargs)

    def _compute_list(
        self, y_pred: TensorOrList, y: TensorOrList | None = None, **kwargs: Any
    ) -> Any:
        if y is not None and len(y_pred) != len(y):  # the base class would leave out the rest
            raise InputError(f"y must have as many cases as y_pred, {len(y_pred)}, got {len(y)}.")
        if batched := [tuple(item.shape) for item in y_pred if item.ndim > 4 and len(item) == 1]:
            raise InputError(
                f"y_pred: items of lists have no batch axis, (N, *S), got {batched[0]}."
            )
        return super()._compute_list(y_pred, y, **kwargs)
