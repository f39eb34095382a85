"""Base of all metrics of this package: values of each case, gathered across processes, and their mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from monai.config import TensorOrList
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric

from calib_components.arguments import check_known

__all__ = ["CaseMetric", "plain_tensor"]


# What to do instead of giving an option of MONAI's metrics.
HINTS = {
    "reduction": "give it to aggregate()",
    "metric_reduction": "give it to aggregate()",
    "calibration_reduction": "bins.average_error() and bins.maximum_error() are the other two",
    "include_background": 'region="foreground" leaves out the voxels of class 0',
    "get_not_nans": 'values that are NaN are left out of every mean; aggregate("none") has them',
    "num_classes": "the number of classes is read from y_pred",
    "n_bins": "the option is called num_bins",
    "softmax": "give probabilities, the output of softmax",
    "sigmoid": "DSC and HD95 take masks, after a sigmoid and a threshold; the logit magnitude takes logits",
    "to_onehot_y": "class indices and one-hot are both accepted",
    "percentile": "it is always the 95th",
    "directed": "distances in both directions are always pooled",
    "distance_metric": "it is always the Euclidean distance",
}


def plain_tensor(value: Any, name: str) -> torch.Tensor:
    """Return `value` detached and without MONAI's metadata, or raise a `TypeError` that names the argument."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value.as_tensor().detach() if isinstance(value, MetaTensor) else value.detach()


class CaseMetric(CumulativeIterationMetric):
    """Base class of the metrics: call it with `(y_pred, y)`, then `aggregate()`, then `reset()`.

    Works as the `metric_fn` of `monai.handlers.IgniteMetricHandler`. Across several processes, the values of all cases
    are gathered, so every process must have had a case and call `aggregate()`.

    Shape:
        - y_pred, y: batches `(B, C, *S)`, or lists of channel-first tensors `(C, *S)` whose sizes may differ between
          cases.
    """

    _channels: int | None  # of the cases that are stored
    _seen: int | None  # of these, and of the call that goes on

    def __new__(cls, *_: Any, **options: Any) -> Any:
        check_known(cls, options, HINTS)
        return super().__new__(cls)

    def __call__(self, y_pred: TensorOrList, y: TensorOrList | None = None, **kwargs: Any) -> Any:
        for name, value in (("y_pred", y_pred), ("y", y)):
            if not isinstance(value, (torch.Tensor, list, tuple)):  # the base class would fail on it or ignore it
                raise TypeError(f"{name}: expected a torch.Tensor or a list of them, got {type(value).__name__}")
            if isinstance(value, torch.Tensor):
                no_case = value.ndim > 0 and len(value) == 0
            else:
                no_case = not value
                for case in value:
                    plain_tensor(case, name)
            if no_case:
                raise ValueError(f"{name}: expected at least one case, got none")
        self._seen = self._channels
        values = super().__call__(y_pred, y, **kwargs)
        self._channels = self._seen  # a call that fails stores no case
        return values

    @abstractmethod
    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Compute what is stored of a batch: one or more tensors whose first dimension is the cases."""

    @abstractmethod
    def case_values(self) -> torch.Tensor:
        """Return the value of each case, float64 `(cases,)` or `(cases, classes)`; NaN where it is undefined."""

    @property
    def parts(self) -> Sequence[CaseMetric]:
        """All metrics that one pass fills."""
        return [self]

    @property
    def num_stored(self) -> int | None:
        """How many of the tensors that a pass computes this part stores; None for all."""
        return None

    def extend(self, *data: torch.Tensor) -> None:
        """Store what `measure` computed, of each part its own."""
        values = iter(data)
        for part in self.parts:
            CumulativeIterationMetric.extend(part, *islice(values, part.num_stored))

    def reset(self) -> None:
        """Remove all cases."""
        for part in self.parts:
            CumulativeIterationMetric.reset(part)
            part._channels = None

    def gathered(self) -> Any:
        """Return what `measure` computed, concatenated over cases and processes: a tensor or a list of tensors.

        Raises:
            ValueError: No case has been added.
        """
        # All processes gather all parts together; afterwards a single one may read any of them.
        for part in self.parts:
            part._sync()
        own = CumulativeIterationMetric.get_buffer(self)
        if own is None:
            raise self._no_case()
        return own

    def stored_tensors(self) -> list[torch.Tensor]:
        """Return what this process stores of its cases, as `extend` takes it: another metric can go on from there.

        Raises:
            ValueError: No case has been added.
        """
        buffers = [cases for part in self.parts for cases in part._buffers or ()]
        if not buffers:
            raise self._no_case()
        return [torch.stack(cases) for cases in buffers]

    def _no_case(self) -> ValueError:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        return ValueError(
            f"{type(self).__name__}: expected at least one case to aggregate, got none"
            f"{'; each of the processes needs one' if several else ''}"
        )

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
        return self.reduce(self.case_values(), reduction)

    @staticmethod
    def reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
        """Reduce values of cases as `aggregate` does."""
        if reduction == "none":
            return values
        if reduction == "mean_batch":
            return values.nanmean(0)
        if reduction == "mean":
            return values.reshape(len(values), -1).nanmean(1).nanmean()
        raise ValueError(f'reduction: expected "mean", "mean_batch" or "none", got {reduction!r}')

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> TensorOrList:
        measured = self.measure(plain_tensor(y_pred, "y_pred"), plain_tensor(y, "y"), **kwargs)
        if self._seen not in (None, y_pred.shape[1]):
            raise ValueError(f"y_pred: expected {self._seen} channels, as before, got {y_pred.shape[1]}")
        self._seen = y_pred.shape[1]
        return measured

    def _compute_list(self, y_pred: TensorOrList, y: TensorOrList | None = None, **kwargs: Any) -> Any:
        if y is not None and len(y_pred) != len(y):
            raise ValueError(f"y: expected as many cases as y_pred, {len(y_pred)}, got {len(y)}")
        return super()._compute_list(y_pred, y, **kwargs)
