"""Reading voxels: checks probabilities and labels, and yields the voxels that count in chunks.

Chunks keep the working memory independent of the size of the volume and the number of regions: some
20 MiB on a CPU. (A case that is not contiguous in memory is copied.)

A channel of sigmoids is read as a volume of its own, with the probabilities `1 - p` and `p` of two
classes; after reading, there is softmax only.

Every voxel that is not ignored must have probabilities, see `calib_components.probabilities`, and a
valid label. Probabilities whose sum is off by more than rounding are divided by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from calib_components.errors import InputError, warn_once
from calib_components.metrics.base import plain_tensor
from calib_components.metrics.distances import near_mask
from calib_components.probabilities import are_probabilities, describe_range

CPU_CHUNK, GPU_CHUNK = 2**18, 2**23  # probabilities per chunk
SUM_ROUNDING = 1e-5
INVALID_LABEL = torch.iinfo(torch.int64).min


@dataclass(eq=False)
class Voxels:
    """Some voxels of a volume.

    Attributes:
        volume: The volume that they are of.
        index: Their places in it, `(voxels,)`.
        values: Probabilities or logits `(N, voxels)` in float64.
        label: Class indices `(voxels,)`.
        weight: How much each counts, `(voxels,)`: 1, or the probability of the label.
    """

    volume: Volume
    index: torch.Tensor
    values: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor

    @property
    def case(self) -> int:
        """Index of the case in the batch."""
        return self.volume.case

    @functools.cached_property
    def p(self) -> torch.Tensor:
        """Probabilities, also where logits were read."""
        return self.values.softmax(0) if self.volume.is_logits else self.values

    @functools.cached_property
    def confidence(self) -> torch.Tensor:
        """Highest probability of each voxel."""
        return self.p.amax(0)

    @functools.cached_property
    def predicted(self) -> torch.Tensor:
        """Most probable class of each voxel, the first of equal ones."""
        # On a CPU, this and the maximum alone are several times faster than max(0).
        classes = len(self.p)
        rank = torch.arange(classes, 0, -1, dtype=torch.int32, device=self.p.device)[:, None]
        return classes - ((self.p >= self.confidence) * rank).amax(0)

    @property
    def p_label(self) -> torch.Tensor:
        """Probability of the label of each voxel."""
        return self.p.gather(0, self.label[None])[0]

    def near(self, radius: float, spacing: tuple[float, ...] | None) -> torch.Tensor:
        """Return which of the voxels are near a true structure, see `near_mask`."""
        return self.volume.near(radius, spacing)[self.index]

    def select(self, mask: torch.Tensor) -> Voxels:
        """Return the voxels of a mask; the same object if these are all."""
        if mask.all():
            return self
        chosen = mask.nonzero().squeeze(1)
        return Voxels(
            self.volume,
            self.index[chosen],
            self.values.index_select(1, chosen),
            self.label[chosen],
            self.weight[chosen],
        )


class Volume:
    """A case, or a channel of sigmoids of one.

    Args:
        case: Its index in the batch.
        channel: The channel; None for a softmax.
        y_pred: Probabilities or logits, `(N, *S)`; of a channel, `(1, *S)`.
        y: Ground truth, `(N or 1, *S)`.
        ignore_index: Label of voxels to leave out.
        is_logits: Whether `y_pred` holds logits.
        is_soft: Whether `y` holds probabilities.
    """

    def __init__(
        self,
        case: int,
        channel: int | None,
        y_pred: torch.Tensor,
        y: torch.Tensor,
        ignore_index: int | None,
        is_logits: bool,
        is_soft: bool,
    ) -> None:
        self.case, self.channel, self.shape = case, channel, y_pred.shape[1:]
        self.values, self.y = y_pred.flatten(1), y.flatten(1)
        self.ignore_index, self.is_logits, self.is_soft = ignore_index, is_logits, is_soft
        self._near: dict[tuple[float, tuple[float, ...] | None], torch.Tensor] = {}

    def chunks(self) -> Iterator[Voxels]:
        """Yield all voxels that are not ignored."""
        chunk = CPU_CHUNK if self.values.device.type == "cpu" else GPU_CHUNK
        step = max(1, chunk // max(2, len(self.values)))
        for start in range(0, self.values.shape[1], step):
            part = slice(start, start + step)
            values, y = self.values[:, part].double(), self.y[:, part]
            if self.channel is not None:
                other = torch.zeros_like(values) if self.is_logits else 1 - values
                values = torch.cat([other, values])
            label = _class_index(y)
            index = torch.arange(start, start + len(label), device=label.device)
            voxels = Voxels(self, index, values, label, torch.ones_like(values[0]))
            if self.is_soft:
                yield from self._by_label(voxels, y.double())
                continue
            if self.ignore_index is not None:
                voxels = voxels.select(label != self.ignore_index)
            if len(voxels.label) > 0:
                yield voxels

    def _by_label(self, voxels: Voxels, q: torch.Tensor) -> Iterator[Voxels]:
        """Yield voxels with each class of a probability `q` above 0 as their label, and that as
        their weight.
        """
        if len(q) == 1:
            q = torch.cat([1 - q, q])
        if not are_probabilities(q, 0):
            raise InputError(
                "y must hold probabilities of the classes, which sum to 1, got"
                f" {describe_range(q, 0)}."
            )
        for k, weight in enumerate(q):
            label = torch.full_like(voxels.label, k)
            labelled = Voxels(self, voxels.index, voxels.values, label, weight)
            if (weight > 0).any():
                yield labelled.select(weight > 0)

    def near(self, radius: float, spacing: tuple[float, ...] | None) -> torch.Tensor:
        """Return which voxels of the whole volume are near a true structure, `(voxels,)`."""
        if self.is_soft:
            raise InputError("region: near needs class indices as y, not probabilities.")
        if (radius, spacing) not in self._near:
            label = _class_index(self.y)
            structure = (label > 0) & (label != self.ignore_index)
            mask = near_mask(structure.view(self.shape), radius, spacing)
            self._near[radius, spacing] = mask.flatten()
        return self._near[radius, spacing]


def check_tensors(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    sigmoid: bool = False,
    name: str = "y_pred",
    masks: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check types and shapes of probabilities, logits or masks and their ground truth; return both
    as plain tensors.

    Arguments are described in `calib_components.metrics`; `name` is that of `y_pred` in errors.
    This is the one place that checks them.
    """
    y_pred, y = plain_tensor(y_pred), plain_tensor(y)
    if not (masks or y_pred.is_floating_point()):
        raise InputError(
            f"{name} must be of a floating-point type, got {y_pred.dtype}. The order is {name}, y."
        )
    if y_pred.ndim < 3 or y_pred.numel() == 0:
        raise InputError(
            f"{name} must have shape (B, N, *S) and at least one voxel, got {tuple(y_pred.shape)}."
        )
    sigmoid = not masks and (sigmoid or y_pred.shape[1] == 1)
    index_shape = (len(y_pred), 1, *y_pred.shape[2:])
    if y.shape == (len(y_pred), *y_pred.shape[2:]):
        y = y.unsqueeze(1)
    _check_shape(y, y_pred.shape, None if sigmoid else index_shape, name)
    return y_pred, y


def _check_shape(
    y: torch.Tensor, shape: torch.Size, index_shape: tuple[int, ...] | None, name: str
) -> None:
    """Raise `InputError` unless a ground truth has a shape or, of a softmax, that of indices."""
    if y.shape in (shape, index_shape):
        return
    expected = f"{index_shape} (class index) or {tuple(shape)} (one-hot)"
    if index_shape is None:
        expected = f"{tuple(shape)} (0 or 1 in each channel)"
    raise InputError(
        f"y must have shape {expected} to match {name}, (B, N, *S), got {tuple(y.shape)}."
    )


def read_voxels(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    logits: bool = False,
    soft: bool = False,
) -> Iterator[Voxels]:
    """Yield the voxels that are not ignored, chunk by chunk, each of one case or channel.

    If every probability is 0 or 1, there is a warning, once per process.

    Args:
        y_pred: Prediction from `check_tensors`.
        y: Ground truth, likewise.
        sigmoid: Whether each channel is a binary problem of its own, as one channel always is.
        ignore_index: Label of voxels to leave out; their probabilities are not checked.
        logits: Whether `y_pred` holds logits.
        soft: Whether `y` may hold probabilities: then each voxel is yielded with every class that
            has one, and its weight.

    Raises:
        InputError: Some values are not probabilities (or not finite logits) or not labels.
    """
    soft = soft and _is_soft(y_pred, y, ignore_index)
    channels = range(y_pred.shape[1]) if sigmoid or y_pred.shape[1] == 1 else [None]
    any_voxel, only_0_and_1 = False, not logits
    for case in range(len(y_pred)):
        for channel in channels:
            rows = slice(None) if channel is None else slice(channel, channel + 1)
            given = y_pred[case, rows], y[case, rows]
            for voxels in Volume(case, channel, *given, ignore_index, logits, soft).chunks():
                _check_and_normalise(voxels)
                if only_0_and_1:
                    only_0_and_1 = bool(((voxels.values == 0) | (voxels.values == 1)).all())
                any_voxel = True
                yield voxels
    if any_voxel and only_0_and_1:
        warn_once(
            "y_pred holds only 0 and 1, like a one-hot segmentation, which says nothing of"
            " calibration. Give the output of softmax or sigmoid."
        )


def _is_soft(y_pred: torch.Tensor, y: torch.Tensor, ignore_index: int | None) -> bool:
    """Whether the ground truth holds probabilities between 0 and 1."""
    if y.shape != y_pred.shape or not y.is_floating_point():
        return False
    if not ((y > 0) & (y < 1)).any():
        return False
    if ignore_index is not None:
        raise InputError("ignore_index must be None if y holds probabilities.")
    return True


def _check_and_normalise(voxels: Voxels) -> None:
    """Raise `InputError` for invalid values or labels; make sums of probabilities 1 that are off by
    more than rounding.
    """
    volume, values = voxels.volume, voxels.values
    if volume.is_logits:
        if not values.isfinite().all():
            raise InputError("logits must be finite, got some that are NaN or infinite.")
    elif not are_probabilities(values, 0):
        if volume.channel is not None:
            raise InputError(
                "y_pred must hold probabilities from 0 to 1, got"
                f" {describe_range(values[1])}. Apply sigmoid to logits."
            )
        raise InputError(
            "y_pred must hold probabilities, which sum to 1 over the classes, got"
            f" {describe_range(values, 0)}. Apply softmax to logits. If each channel is a structure"
            " of its own, set sigmoid=True. Where the network saw nothing, set the background to 1."
        )
    else:
        sums = values.sum(0)
        is_off = (sums - 1).abs() > max(SUM_ROUNDING, torch.finfo(volume.values.dtype).eps)
        if is_off.any():
            voxels.values = values / sums.where(is_off, 1)
    wrong = (voxels.label < 0) | (voxels.label >= len(values))
    if wrong.any():
        labels = f"class indices from 0 to {len(values) - 1} or one-hot"
        if volume.channel is not None:
            labels = "0 or 1 in each channel"
        if volume.ignore_index is not None:
            labels += f" (or ignore_index={volume.ignore_index})"
        raise InputError(
            f"y must hold {labels}, got other values in {int(wrong.sum())} of {len(wrong)} voxels."
        )


def _class_index(y: torch.Tensor) -> torch.Tensor:
    """Class index of each voxel, or `INVALID_LABEL`, from class indices `(1, voxels)` or one-hot
    `(N, voxels)`.
    """
    if len(y) == 1:
        label = y[0].long()
        if y.is_floating_point():
            label.masked_fill_(label != y[0], INVALID_LABEL)
        return label
    # PyTorch lacks the maximum of some unsigned types
    y = y if y.is_floating_point() else y.long()
    largest, label = y.max(0)
    is_one_hot = (largest == 1) & ((y != 0).sum(0) == 1)
    return label.masked_fill_(~is_one_hot, INVALID_LABEL)
