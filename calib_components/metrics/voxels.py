"""Reading voxels: checks probabilities and labels, and yields the voxels that count in chunks.

Chunks keep the working memory independent of the size of the volume and the number of regions: some 20 MiB on a CPU.
(A case that is not contiguous in memory is copied. A band takes a few bytes for each voxel of a case.)

With `sigmoid`, each channel is a binary problem of its own: it is read like a prediction of two classes, with
probabilities `1 - p` and `p`. One channel alone is always read in this way.

Every voxel that is not ignored must have probabilities in [0, 1] within 1e-5 that sum to 1 within 1e-2 (half precision
rounds by about this much), and a valid label.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from calib_components.errors import InputError, warn_once
from calib_components.metrics.base import plain_tensor
from calib_components.metrics.regions import IGNORED, Region, band_mask

__all__ = ["Voxels", "check_tensors", "read_chunks", "read_voxels", "top_label"]

CPU_CHUNK, GPU_CHUNK = 2**18, 2**23  # probabilities per chunk
RANGE_TOLERANCE = 1e-5
SUM_TOLERANCE = 1e-2
INVALID_LABEL = torch.iinfo(torch.int64).min


class Voxels:
    """Some voxels of a case, or of one channel of sigmoids.

    Attributes:
        case: Index of the case.
        channel: Channel of sigmoids; 0 for softmax.
        values: Probabilities `(N, voxels)` in float64, or logits; N = 2 for a channel of sigmoids.
        label: Class indices `(voxels,)`.
    """

    def __init__(self, volume: _Volume, index: torch.Tensor | slice, values: torch.Tensor, label: torch.Tensor) -> None:
        self.case: int = volume.case
        self.channel: int = volume.channel
        self.values: torch.Tensor = values
        self.label: torch.Tensor = label
        self._volume, self._index = volume, index

    @property
    def first_class(self) -> int:
        """First class that is a column of classwise measures: 1 for a channel of sigmoids, otherwise 0."""
        return int(self._volume.sigmoid)

    @property
    def logits(self) -> torch.Tensor:
        """Logits `(N, voxels)` in float64, if these were read; `(0, l)` for a channel of sigmoids."""
        return self.values

    @functools.cached_property
    def p(self) -> torch.Tensor:
        """Probabilities `(N, voxels)` in float64; `(1 - p, p)` for a channel of sigmoids."""
        return self.values.softmax(0) if self._volume.logits else self.values

    @functools.cached_property
    def top(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Highest probability of each voxel and its class, the first of equal ones."""
        return top_label(self.p)

    @property
    def confidence(self) -> torch.Tensor:
        """Highest probability of each voxel."""
        return self.top[0]

    @property
    def predicted(self) -> torch.Tensor:
        """Most probable class of each voxel."""
        return self.top[1]

    @property
    def p_label(self) -> torch.Tensor:
        """Probability of the label of each voxel."""
        return self.p.gather(0, self.label[None])[0]

    @property
    def temperature(self) -> float:
        """Number by which the logits of the probabilities were divided."""
        return self._volume.temperature

    def near_face(self, classes: str, radius: float, spacing: Sequence[float] | None) -> torch.Tensor:
        """Mask of the voxels at most `radius` from a face between different classes, "label" or "predicted"."""
        return self._volume.band(classes, radius, spacing)[self._index]

    def select(self, index: torch.Tensor) -> Voxels:
        """Return the voxels of a mask."""
        index = index.nonzero().squeeze(1)
        at = index + self._index.start if isinstance(self._index, slice) else self._index[index]
        selected = Voxels(self._volume, at, self.values.index_select(1, index), self.label[index])
        if "top" in vars(self):  # computed already
            selected.top = self.confidence[index], self.predicted[index]
        return selected

    def with_label(self, label: torch.Tensor) -> Voxels:
        """Return the same voxels with another label, of any shape that broadcasts."""
        other = Voxels(self._volume, self._index, self.values, label)
        other.p, other.top = self.p, self.top
        return other


class _Volume:
    """A case, or one channel of sigmoids, in chunks."""

    def __init__(
        self, y_pred: torch.Tensor, y: torch.Tensor, case: int, channel: int, sigmoid: bool, **options: Any
    ) -> None:
        rows = slice(channel, channel + 1) if sigmoid else slice(None)
        self.spatial = y_pred.shape[2:]
        self.values, self.y = y_pred[case, rows].flatten(1), y[case, rows].flatten(1)
        self.case, self.channel, self.sigmoid = case, channel, sigmoid
        self.num_classes = 2 if sigmoid else len(self.values)
        self.ignore_index: int | None = options["ignore_index"]
        self.temperature: float = options["temperature"]
        self.logits: bool = options["logits"]
        self._bands: dict[Any, torch.Tensor] = {}

    def chunks(self) -> Iterator[Voxels]:
        """All voxels that are not ignored."""
        for voxels in self._all_voxels():
            kept = None if self.ignore_index is None else voxels.label != self.ignore_index
            yield voxels if kept is None or kept.all() else voxels.select(kept)

    def _all_voxels(self) -> Iterator[Voxels]:
        chunk = CPU_CHUNK if self.values.device.type == "cpu" else GPU_CHUNK
        for start in range(0, self.values.shape[1], step := max(1, chunk // self.num_classes)):
            part = slice(start, start + step)
            values = self.values[:, part].double()
            if self.sigmoid:
                values = torch.cat([torch.zeros_like(values) if self.logits else 1 - values, values])
            yield Voxels(self, part, values, _class_index(self.y[:, part]))

    def band(self, classes: str, radius: float, spacing: Sequence[float] | None) -> torch.Tensor:
        """Mask `(voxels,)` of a band of the whole volume."""
        key = classes, radius, spacing
        if key not in self._bands:
            dtype = torch.int8 if self.num_classes < 128 else torch.int32
            parts = []
            for voxels in self._all_voxels():
                found = getattr(voxels, classes)
                if self.ignore_index is not None:
                    found = found.masked_fill(voxels.label == self.ignore_index, IGNORED)
                parts.append(found.to(dtype))
            self._bands[key] = band_mask(torch.cat(parts).view(*self.spatial), radius, spacing).flatten()
        return self._bands[key]


def check_tensors(
    y_pred: torch.Tensor, y: torch.Tensor, sigmoid: bool = False, name: str = "y_pred"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check types and shapes of probabilities or logits and their ground truth, and return both as plain tensors.

    Arguments are described in `calib_components.metrics`; `name` is that of `y_pred` in errors. This is the one place
    that checks them.

    Raises:
        InputError: `y_pred` is not of a floating-point type, or the shapes are wrong or do not match.
    """
    y_pred, y = plain_tensor(y_pred), plain_tensor(y)
    if not y_pred.is_floating_point():
        raise InputError(f"{name} must be of a floating-point type, got {y_pred.dtype}. The order is {name}, y.")
    if y_pred.ndim < 3 or y_pred.numel() == 0:
        raise InputError(f"{name} must have shape (B, N, *S) and at least one voxel, got {tuple(y_pred.shape)}.")
    batch, channels, *spatial = y_pred.shape
    sigmoid = sigmoid or channels == 1
    if y.shape == y_pred.shape or (y.shape == (batch, 1, *spatial) and not sigmoid):
        return y_pred, y
    expected = f"{(batch, 1, *spatial)} (class index) or {tuple(y_pred.shape)} (one-hot)"
    if sigmoid:
        expected = f"{tuple(y_pred.shape)} (0 or 1 in each channel)"
    remedy = ""
    if y.shape == (batch, *spatial):
        remedy = " Add the channel: y.unsqueeze(1)."
    elif y.shape[2:] == y_pred.shape[1:-1]:
        remedy = f" The classes are the second dimension of {name}: {name}.movedim(-1, 1)."
    raise InputError(f"y must have shape {expected} to match {name}, got {tuple(y.shape)}.{remedy}")


def read_voxels(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    region: Region,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    logits: bool = False,
) -> Iterator[Voxels]:
    """Yield the voxels of a region, chunk by chunk; see `read_chunks`."""
    for voxels in read_chunks(y_pred, y, ignore_index, sigmoid, logits=logits):
        if len((selected := region.select(voxels)).label) > 0:
            yield selected


def read_chunks(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    temperature: float | None = None,
    logits: bool = False,
) -> Iterator[Voxels]:
    """Yield all voxels that are not ignored, chunk by chunk.

    If every probability is 0 or 1, there is a warning, once per process.

    Args:
        y_pred: Prediction from `check_tensors`.
        y: Ground truth from `check_tensors`.
        ignore_index: Label of voxels to leave out; their probabilities are not checked.
        sigmoid: Whether each channel is a binary problem of its own; each comes in chunks of its own.
        temperature: By which the logits of `y_pred` were divided; None is 1.
        logits: Whether `y_pred` holds logits.

    Yields:
        Voxels of one case, and of one channel for sigmoids.

    Raises:
        InputError: Some values are not probabilities (or not finite logits) or not labels. The error counts them.
    """
    sigmoid = sigmoid or y_pred.shape[1] == 1
    options = {"ignore_index": ignore_index, "temperature": temperature or 1, "logits": logits}
    channels = range(y_pred.shape[1] if sigmoid else 1)

    def volumes() -> Iterator[_Volume]:  # one in memory
        return (_Volume(y_pred, y, case, k, sigmoid, **options) for case in range(len(y_pred)) for k in channels)

    any_voxel, only_0_and_1 = False, not logits
    for volume in volumes():
        for voxels in volume.chunks():
            if len(voxels.label) == 0:
                continue
            if not _is_valid(voxels, logits):
                counts = [_count_invalid(part) for volume in volumes() for part in volume.chunks()]
                raise InputError(_describe_invalid(torch.stack(counts).sum(0).tolist(), y_pred, options, sigmoid))
            only_0_and_1 = only_0_and_1 and bool(((voxels.p == 0) | (voxels.p == 1)).all())
            any_voxel = True
            yield voxels
    if any_voxel and only_0_and_1:
        warn_once(
            "y_pred holds only 0 and 1, like a one-hot segmentation, which says nothing of calibration. Give the "
            f"output of {'sigmoid' if sigmoid else 'softmax'}."
        )


def top_label(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `p.max(0)`, the first of equal values, for probabilities `(N, voxels)`; several times faster on a CPU."""
    confidence = p.amax(0)
    rank = torch.arange(len(p), 0, -1, dtype=torch.int32, device=p.device)[:, None]
    return confidence, len(p) - ((p >= confidence) * rank).amax(0)


def _class_index(y: torch.Tensor) -> torch.Tensor:
    """Class index of each voxel, or `INVALID_LABEL`, from class indices `(1, voxels)` or one-hot `(N, voxels)`."""
    if len(y) > 1:
        y = y if y.is_floating_point() else y.long()  # PyTorch lacks the maximum of some unsigned types
        largest, label = y.max(0)
        return label.masked_fill_((largest != 1) | ((y != 0).sum(0) != 1), INVALID_LABEL)
    label = y[0].long()
    return label.masked_fill_(label != y[0], INVALID_LABEL) if y.is_floating_point() else label


def _is_valid(voxels: Voxels, logits: bool) -> bool:
    values, label = voxels.values, voxels.label
    low_label, high_label, low, high = (value.item() for value in (*label.aminmax(), *values.aminmax()))
    if not 0 <= low_label <= high_label < len(values):
        return False
    if logits:
        return -math.inf < low <= high < math.inf  # False where NaN
    low_sum, high_sum = (value.item() for value in values.sum(0).aminmax())
    in_range = -RANGE_TOLERANCE <= low <= high <= 1 + RANGE_TOLERANCE
    return in_range and 1 - SUM_TOLERANCE <= low_sum <= high_sum <= 1 + SUM_TOLERANCE


def _count_invalid(voxels: Voxels) -> torch.Tensor:
    """Numbers of values not finite, values outside [0, 1], voxels with another sum than 1, with only 0, bad labels."""
    given, label = voxels.values[voxels.first_class :], voxels.label
    finite = given.isfinite()
    outside = finite & ((given < -RANGE_TOLERANCE) | (given > 1 + RANGE_TOLERANCE))
    wrong_sum = (voxels.values.sum(0) - 1).abs() > SUM_TOLERANCE
    wrong_label = (label < 0) | (label >= len(voxels.values))
    return torch.stack([each.sum() for each in (~finite, outside, wrong_sum, ~voxels.values.any(0), wrong_label)])


def _describe_invalid(invalid: Sequence[int], y_pred: torch.Tensor, options: Mapping[str, Any], sigmoid: bool) -> str:
    not_finite, outside, wrong_sum, all_zero, wrong_label = invalid
    values, channels = y_pred.numel(), y_pred.shape[1]
    voxels = values if sigmoid else values // channels
    name = "logits" if options["logits"] else "y_pred"
    if not_finite:
        return f"{name} must be finite, got {not_finite} of {values} values that are NaN or infinite."
    if outside and not options["logits"]:
        remedy = f"Apply {'sigmoid' if sigmoid else 'softmax'} to logits."
        return f"y_pred must hold probabilities, got {outside} of {values} values outside [0, 1]. {remedy}"
    if all_zero > wrong_sum / 2 and not options["logits"]:
        return (
            f"y_pred is 0 for all classes in {all_zero} of {voxels} voxels, as outside of a crop that was inverted. "
            "Background is 1 there, see calib_components.inference.maps.fill_background."
        )
    if wrong_sum and not options["logits"]:
        return (
            f"y_pred must sum to 1 over the classes, but does not in {wrong_sum} of {voxels} voxels. Apply softmax to "
            "the logits. If each channel is a structure of its own with a sigmoid, set sigmoid=True."
        )
    expected = "0 or 1 in each channel" if sigmoid else f"class indices from 0 to {channels - 1} or one-hot"
    ignored = "" if options["ignore_index"] is None else f" (or ignore_index={options['ignore_index']})"
    return f"y must hold {expected}{ignored}, got other values in {wrong_label} of {voxels} voxels."
