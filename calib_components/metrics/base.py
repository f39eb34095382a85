"""Bases of metrics, whose values of cases are gathered across processes, and of dataclasses of
tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from monai.config import TensorOrList
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from typing_extensions import Self  # which PyTorch needs; Python has it from 3.11

from calib_components.errors import InputError, check_choice


def plain_tensor(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor detached and without MONAI's metadata."""
    return value.as_tensor().detach() if isinstance(value, MetaTensor) else value.detach()


class CaseTensors:
    """Base of dataclasses of tensors, whose first dimension is the cases if they have two or more
    dimensions.
    """

    def to_dict(self) -> dict[str, list]:
        """Return the fields as nested lists, which JSON stores exactly."""
        return {name: field.tolist() for name, field in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, list]) -> Self:
        """Inverse of `to_dict`."""
        return cls(*(torch.from_numpy(np.array(values[field.name])) for field in fields(cls)))  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the cases of several."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        values = [[getattr(part, name) for part in parts] for name in names]
        return cls(*(torch.cat(each) if each[0].ndim > 1 else each[0] for each in values))


class CaseMetric(CumulativeIterationMetric):
    """Base class of the metrics: call it with `(y_pred, y)`, then `aggregate()`, then `reset()`.

    Works as the `metric_fn` of `monai.handlers.IgniteMetricHandler`. Across several processes, the
    values of all cases are gathered, so every process must have had a case and call `aggregate()`.

    Shape:
        - y_pred, y: batches `(B, C, *S)`, or lists of channel-first tensors `(C, *S)` whose sizes
          may differ between cases.
    """

    names: tuple[str, ...] = ()  # of the tensors that `measure` returns, which are attributes

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in type(self).names:
            return self.gathered()[self.names.index(name)]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

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
