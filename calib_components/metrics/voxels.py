"""Reading voxels: checks probabilities and labels, and yields the voxels that count in chunks.

Chunks keep the working memory independent of the size of the volume and the number of regions: some
20 MiB on a CPU. (A case that is not contiguous in memory is copied. A band takes a few bytes for
each voxel of a case.)

With `sigmoid`, each channel is a binary problem of its own: it is read like a prediction of two
    classes, with
probabilities `1 - p` and `p`. One channel alone is always read in this way.

Every voxel that is not ignored must have probabilities in [0, 1] within 1e-5 that sum to 1 within
1e-2 (half precision rounds by about this much), and a valid label. Probabilities whose sum is off
by more than rounding are divided by it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from calib_components.errors import InputError, warn_once
from calib_components.metrics.base import plain_tensor
from calib_components.metrics.regions import IGNORED, Region, band_mask

CPU_CHUNK, GPU_CHUNK = 2**18, 2**23  # probabilities per chunk
RANGE_TOLERANCE = 1e-5
SUM_TOLERANCE = 1e-2
SUM_ROUNDING = 1e-5
FEWEST_SUMS = 16  # below which sums of 1 may be chance
MANY = 8  # more overlapping structures in one dimension are the rows of an image
INVALID_LABEL = torch.iinfo(torch.int64).min


class Voxels:
    """Some voxels of a volume.

    Attributes:
        volume: The case, or channel of sigmoids, that they are of.
        case: Index of the case.
        values: Probabilities or logits `(N, voxels)` in float64; `(1 - p, p)` or `(0, l)` for a
            channel of sigmoids.
        label: Class indices `(voxels,)`.
    """

    def __init__(
        self, volume: Volume, index: torch.Tensor | slice, values: torch.Tensor, label: torch.Tensor
    ) -> None:
        self.volume, self.case = volume, volume.case
        self.values: torch.Tensor = values
        self.label: torch.Tensor = label
        self._index = index

    def invalid(self) -> torch.Tensor:
        """Numbers of values that are no probabilities or finite logits, of sums that are not 1, and
        of wrong labels.

        Sums that are 1 within the tolerance, but not up to rounding, become 1.
        """
        volume, given = self.volume, self.values[int(self.volume.sigmoid) :]
        middle, reach = (
            (0.0, torch.finfo(torch.float64).max) if volume.logits else (0.5, 0.5 + RANGE_TOLERANCE)
        )
        wrong_values = ~((given - middle).abs() <= reach)  # also NaN
        wrong_labels = (self.label < 0) | (self.label >= len(self.values))
        wrong_sums = torch.zeros_like(wrong_labels)
        if not volume.logits:
            sums = self.values.sum(0)
            off = (sums - 1).abs()
            wrong_sums = off > SUM_TOLERANCE
            is_off = off > max(SUM_ROUNDING, torch.finfo(volume.values.dtype).eps)
            if is_off.any():
                self.values = self.values / sums.where(is_off, 1)
        return torch.stack([each.sum() for each in (wrong_values, wrong_sums, wrong_labels)])

    @functools.cached_property
    def p(self) -> torch.Tensor:
        """Probabilities, also where logits were read."""
        return self.values.softmax(0) if self.volume.logits else self.values

    @functools.cached_property
    def confidence(self) -> torch.Tensor:
        """Highest probability of each voxel."""
        return self.p.amax(0)

    @functools.cached_property
    def predicted(self) -> torch.Tensor:
        """Most probable class of each voxel, the first of equal ones."""
        # On a CPU, this and the maximum alone are several times faster than max(0).
        rank = torch.arange(len(self.p), 0, -1, dtype=torch.int32, device=self.p.device)[:, None]
        return len(self.p) - ((self.p >= self.confidence) * rank).amax(0)

    @property
    def p_label(self) -> torch.Tensor:
        """Probability of the label of each voxel."""
        return self.p.gather(0, self.label[None])[0]

    def near_face(self, classes: str, region: Region) -> torch.Tensor:
        """Mask of the voxels in a band around the faces between different classes, "label" or
        "predicted".
        """
        return self.volume.band(classes, region)[self._index]

    def select(self, mask: torch.Tensor) -> Voxels:
        """Return the voxels of a mask."""
        index = mask.nonzero().squeeze(1)
        at = index + self._index.start if isinstance(self._index, slice) else self._index[index]
        return Voxels(self.volume, at, self.values.index_select(1, index), self.label[index])

    def with_label(self, label: torch.Tensor) -> Voxels:
        """Return the same voxels with another label, of any shape that broadcasts."""
        other = Voxels(self.volume, self._index, self.values, label)
        other.p, other.confidence, other.predicted = self.p, self.confidence, self.predicted
        return other


@dataclass(eq=False)
class Volume:
    """A case, or one channel of sigmoids: values `(N or 1, *S)` and ground truth; see
    `read_voxels`.
    """

    case: int
    channel: int
    values: torch.Tensor
    y: torch.Tensor
    sigmoid: bool
    ignore_index: int | None
    temperature: float
    logits: bool

    def __post_init__(self) -> None:
        self.spatial = self.values.shape[1:]
        self.values, self.y = self.values.flatten(1), self.y.flatten(1)
        self.bands: dict[tuple[str, Region], torch.Tensor] = {}
        self.seed = self.channel  # of labels that are drawn

    def chunks(self) -> Iterator[Voxels]:
        """All voxels that are not ignored."""
        for voxels in self._all_voxels():
            kept = None if self.ignore_index is None else voxels.label != self.ignore_index
            if kept is not None and not kept.all():
                voxels = voxels.select(kept)
            if len(voxels.label) > 0:
                yield voxels

    def _all_voxels(self) -> Iterator[Voxels]:
        chunk = CPU_CHUNK if self.values.device.type == "cpu" else GPU_CHUNK
        step = max(1, chunk // (2 if self.sigmoid else len(self.values)))
        for start in range(0, self.values.shape[1], step):
            part = slice(start, start + step)
            values = self.values[:, part].double()
            if self.sigmoid:
                values = torch.cat(
                    [torch.zeros_like(values) if self.logits else 1 - values, values]
                )
            yield Voxels(self, part, values, _class_index(self.y[:, part]))

    def band(self, classes: str, region: Region) -> torch.Tensor:
        """Mask `(voxels,)` of a band of the whole volume."""
        if (classes, region) not in self.bands:
            parts = []
            for voxels in self._all_voxels():
                found = getattr(voxels, classes)
                if self.ignore_index is not None:
                    found = found.masked_fill(voxels.label == self.ignore_index, IGNORED)
                parts.append(found.to(torch.int8 if len(self.values) < 128 else torch.int32))
            mask = band_mask(
                torch.cat(parts).view(self.spatial), region.parameter or 0.0, region.spacing
            )
            self.bands[classes, region] = mask.flatten()
        return self.bands[classes, region]


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
    batch, channels, *spatial = y_pred.shape
    sigmoid = not masks and (sigmoid or channels == 1)
    if y.shape != y_pred.shape and (sigmoid or y.shape != (batch, 1, *spatial)):
        index = f"{(batch, 1, *spatial)} (class index) or "
        shapes = (
            f"{'' if sigmoid else index}{tuple(y_pred.shape)}"
            f" ({'0 or 1 in each channel' if sigmoid else 'one-hot'})"
        )
        hint = " Items of lists have no batch axis, (N, *S)." if channels == 1 else ""
        raise InputError(
            f"y must have shape {shapes} to match {name}, (B, N, *S), got {tuple(y.shape)}.{hint}"
        )
    _check_axes(y_pred, y, sigmoid, name)
    return y_pred, y


def _check_axes(y_pred: torch.Tensor, y: torch.Tensor, sigmoid: bool, name: str) -> None:
    """Raise `InputError` if values sum to 1 along an axis that is not that of classes, or has a
    sigmoid for each.
    """
    if not sigmoid and _is_1(y_pred[..., :1].float().sum(1)):
        return
    if sigmoid and sum_to_1(y_pred, 1):
        raise InputError(
            f"{name} sums to 1 over its channels, as a softmax does. Set sigmoid=False."
        )
    if y_pred.ndim > 3 and sum_to_1(y_pred, 2):
        raise InputError(
            f"{name} has its classes along the third axis. Items of lists have no batch axis, (N,"
            " *S)."
        )
    if (
        y.shape == y_pred.shape
        and (
            (sum_to_1(y_pred, 0) and sum_to_1(y, 0))
            # Rows of one structure
            or (y.ndim == 3 and min(y.shape[1:]) > MANY and ((y == 1).sum(1) > 1).any())
        )
    ):
        raise InputError(
            f"{name} has no batch axis: its classes lie along the first one. Give {name}[None],"
            " y[None]."
        )


def sum_to_1(values: torch.Tensor, axis: int) -> bool:
    """Whether values that differ along an axis sum to 1 along it everywhere."""
    if values.shape[axis] < 2 or values.numel() < FEWEST_SUMS * values.shape[axis]:
        return False
    if not _is_1(values[..., :1].float().sum(axis)):  # a part suffices nearly always
        return False
    values = values.float()
    return _is_1(values.sum(axis)) and bool((values.amax(axis) - values.amin(axis) > 0.1).any())


def _is_1(sums: torch.Tensor) -> bool:
    return bool(((sums - 1).abs() <= SUM_TOLERANCE).all())


def read_voxels(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    region: Region | None = None,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    temperature: float | None = None,
    logits: bool = False,
) -> Iterator[Voxels]:
    """Yield the voxels that are not ignored, chunk by chunk, each of one case, and of one channel
    for sigmoids.

    If every probability is 0 or 1, there is a warning, once per process.

    Args:
        y_pred: Prediction from `check_tensors`.
        y: Ground truth from `check_tensors`.
        region: The voxels to yield; None is all of them. Others are checked, too.
        ignore_index: Label of voxels to leave out; their probabilities are not checked.
        sigmoid: Whether each channel is a binary problem of its own.
        temperature: By which the logits of `y_pred` were divided; None is 1.
        logits: Whether `y_pred` holds logits.

    Raises:
        InputError: At the end, some values are not probabilities (or not finite logits) or not
            labels. It counts them.
    """
    channels = y_pred.shape[1]
    sigmoid = sigmoid or channels == 1
    step = 1 if sigmoid else channels
    any_voxel, only_0_and_1 = False, not logits
    invalid = torch.zeros(3, dtype=torch.int64, device=y_pred.device)
    for case, k in itertools.product(range(len(y_pred)), range(0, channels, step)):
        values, label = y_pred[case, k : k + step], y[case, k : k + step]
        for voxels in Volume(
            case, k, values, label, sigmoid, ignore_index, temperature or 1, logits
        ).chunks():
            invalid += voxels.invalid()
            if invalid.any():  # the rest is counted only
                continue
            only_0_and_1 = only_0_and_1 and bool(((voxels.p == 0) | (voxels.p == 1)).all())
            any_voxel = True
            if len((selected := voxels if region is None else region.select(voxels)).label) > 0:
                yield selected
    wrong_values, wrong_sums, wrong_labels = invalid.tolist()
    among_values, among_voxels = (
        f"of {y_pred.numel()} values",
        f"of {y_pred.numel() // step} voxels",
    )
    ignored = "" if ignore_index is None else f" (or ignore_index={ignore_index})"
    if wrong_values and logits:
        raise InputError(
            f"logits must be finite, got {wrong_values} {among_values} that are NaN or infinite."
        )
    if wrong_values:
        remedy = f"Apply {'sigmoid' if sigmoid else 'softmax'} to logits."
        raise InputError(
            f"y_pred has {wrong_values} {among_values} that are NaN or outside [0, 1]. {remedy}"
        )
    if wrong_sums:
        raise InputError(
            f"y_pred does not sum to 1 over the classes in {wrong_sums} {among_voxels}. Apply"
            " softmax to logits. If each channel is a structure of its own, set sigmoid=True."
            " Where a crop was inverted, set the background to 1 outside"
            " (calib_components.inference.maps.fill_background)."
        )
    if wrong_labels:
        given = (
            "0 or 1 in each channel"
            if sigmoid
            else f"class indices from 0 to {channels - 1} or one-hot"
        )
        raise InputError(
            f"y must hold {given}{ignored}, got other values in {wrong_labels} {among_voxels}."
        )
    if any_voxel and only_0_and_1:
        warn_once(
            "y_pred holds only 0 and 1, like a one-hot segmentation, which says nothing of"
            f" calibration. Give the output of {'sigmoid' if sigmoid else 'softmax'}."
        )


def _class_index(y: torch.Tensor) -> torch.Tensor:
    """Class index of each voxel, or `INVALID_LABEL`, from class indices `(1, voxels)` or one-hot
    `(N, voxels)`.
    """
    if len(y) > 1:
        # PyTorch lacks the maximum of some unsigned types
        y = y if y.is_floating_point() else y.long()
        largest, label = y.max(0)
        return label.masked_fill_((largest != 1) | ((y != 0).sum(0) != 1), INVALID_LABEL)
    label = y[0].long()
    return label.masked_fill_(label != y[0], INVALID_LABEL) if y.is_floating_point() else label
