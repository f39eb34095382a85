"""Reading voxels: checks probabilities and labels, and yields the voxels that count in chunks.

Chunks keep the working memory independent of the size of the volume and the number of regions: some
20 MiB on a CPU. (A case that is not contiguous in memory is copied.)

A channel of sigmoids is a case of its own, with the probabilities `1 - p` and `p` of two classes,
see `split_channels`; below, there is softmax only.

Every voxel that is not ignored must have probabilities in [0, 1] within 1e-5 that sum to 1 within
1e-2 (half precision rounds by about this much), and a valid label. Probabilities whose sum is off
by more than rounding are divided by it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from calib_components.errors import InputError, warn_once
from calib_components.metrics.base import plain_tensor
from calib_components.metrics.distances import near_mask
from calib_components.quality.estimates import RANGE_TOLERANCE, SUM_TOLERANCE

CPU_CHUNK, GPU_CHUNK = 2**18, 2**23  # probabilities per chunk
SUM_ROUNDING = 1e-5
FEWEST_SUMS = 16  # below which sums of 1 may be chance
NO_BATCH_AXIS = "Items of lists have no batch axis, (N, *S)."
INVALID_LABEL = torch.iinfo(torch.int64).min


class Voxels:
    """Some voxels of a case.

    Attributes:
        volume: The case that they are of.
        case: Its index.
        values: Probabilities or logits `(N, voxels)` in float64.
        label: Class indices `(voxels,)`.
        weight: How much each counts, `(voxels,)`, where labels are probabilities; None counts all
            once.
    """

    weight: torch.Tensor | None = None

    def __init__(
        self, volume: Volume, index: torch.Tensor | slice, values: torch.Tensor, label: torch.Tensor
    ) -> None:
        self.volume, self.case = volume, volume.case
        self.values: torch.Tensor = values
        self.label: torch.Tensor = label
        self._index = index

    @functools.cached_property
    def p(self) -> torch.Tensor:
        """Probabilities, also where logits were read."""
        return self.values.softmax(0) if self.volume.batch.logits else self.values

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
    def first(self) -> int:
        """Place of the first of them in the case."""
        index = self._index
        return index.start if isinstance(index, slice) else int(index[0])

    @property
    def p_label(self) -> torch.Tensor:
        """Probability of the label of each voxel."""
        return self.p.gather(0, self.label[None])[0]

    def near(self, radius: float, spacing: Sequence[float] | None) -> torch.Tensor:
        """Return which of the voxels are near a true structure, see `near_mask`."""
        return self.volume.near(radius, spacing)[self._index]

    def select(self, mask: torch.Tensor) -> Voxels:
        """Return the voxels of a mask."""
        index = mask.nonzero().squeeze(1)
        at = index + self._index.start if isinstance(self._index, slice) else self._index[index]
        selected = Voxels(self.volume, at, self.values.index_select(1, index), self.label[index])
        for name in {"confidence", "predicted"} & vars(self).keys():  # not computed twice
            vars(selected)[name] = vars(self)[name][index]
        if self.weight is not None:
            selected.weight = self.weight[index]
        return selected

    @property
    def count(self) -> float | torch.Tensor:
        """Number of voxels, or the sum of their weights."""
        return len(self.label) if self.weight is None else self.weight.sum()

    def weighted(self, values: torch.Tensor) -> torch.Tensor:
        """Return values `(..., voxels)` times the weights."""
        return values if self.weight is None else values * self.weight


class Volume:
    """A case.

    Attributes:
        batch: The batch that it is of.
        case: Index of the case.
        values: Probabilities or logits, `(N, voxels)`; `(1, voxels)` of a channel of sigmoids.
        y: Ground truth, `(N or 1, voxels)`.
    """

    def __init__(self, batch: Batch, case: int) -> None:
        self.batch, self.case = batch, case
        self.values, self.y = batch.y_pred[case].flatten(1), batch.y[case].flatten(1)
        self._near: dict[tuple[float, tuple[float, ...] | None], torch.Tensor] = {}

    def chunks(self) -> Iterator[Voxels]:
        """All voxels that are not ignored."""
        for voxels in self._all_voxels():
            if self.batch.ignore_index is not None:
                counts = voxels.label != self.batch.ignore_index
                voxels = voxels if counts.all() else voxels.select(counts)
            if len(voxels.label) > 0:
                yield from self._by_label(voxels) if self.batch.soft else [voxels]

    def _by_label(self, voxels: Voxels) -> Iterator[Voxels]:
        """Give voxels with each class of a probability above 0 as their label, and that as their
        weight.
        """
        q = self.y[:, voxels._index].double()
        if len(q) == 1:
            q = torch.cat([1 - q, q])
        is_valid = (q >= 0).all(0) & ((q.sum(0) - 1).abs() <= SUM_TOLERANCE)
        voxels.label = torch.zeros_like(voxels.label).masked_fill(~is_valid, INVALID_LABEL)
        voxels.weight = q[0]
        yield voxels.select((q[0] > 0) | ~is_valid)
        for k, weight in enumerate(q[1:], start=1):
            voxels.label, voxels.weight = torch.full_like(voxels.label, k), weight
            chosen = (weight > 0) & is_valid
            if chosen.any():
                yield voxels.select(chosen)

    def _parts(self) -> Iterator[slice]:
        chunk = CPU_CHUNK if self.values.device.type == "cpu" else GPU_CHUNK
        step = max(1, chunk // max(2, len(self.values)))
        for start in range(0, self.values.shape[1], step):
            yield slice(start, start + step)

    def _all_voxels(self) -> Iterator[Voxels]:
        for part in self._parts():
            values = self.values[:, part].double()
            if len(values) == 1:
                other = torch.zeros_like(values) if self.batch.logits else 1 - values
                values = torch.cat([other, values])
            yield Voxels(self, part, values, _class_index(self.y[:, part]))

    def near(self, radius: float, spacing: Sequence[float] | None) -> torch.Tensor:
        """Return which voxels of the whole volume are near a true structure, `(voxels,)`."""
        if self.batch.soft:
            raise InputError("region: near needs class indices as y, not probabilities.")
        key = radius, None if spacing is None else tuple(spacing)
        if key not in self._near:
            labels = (_class_index(self.y[:, part]) for part in self._parts())
            ignored = self.batch.ignore_index
            structure = torch.cat([(label > 0) & (label != ignored) for label in labels])
            mask = near_mask(structure.view(self.batch.y_pred.shape[2:]), radius, spacing)
            self._near[key] = mask.flatten()
        return self._near[key]


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
    _check_shapes(y_pred, y, sigmoid, name)
    if not masks:  # those of a structure that is one voxel thick sum to 1 along an axis of space
        _check_class_axis(y_pred, y, sigmoid, name)
    return y_pred, y


def _check_shapes(y_pred: torch.Tensor, y: torch.Tensor, sigmoid: bool, name: str) -> None:
    index_shape = (len(y_pred), 1, *y_pred.shape[2:])
    if y.shape == y_pred.shape or (y.shape == index_shape and not sigmoid):
        return
    expected = f"{index_shape} (class index) or {tuple(y_pred.shape)} (one-hot)"
    if sigmoid:
        expected = f"{tuple(y_pred.shape)} (0 or 1 in each channel)"
    raise InputError(
        f"y must have shape {expected} to match {name}, (B, N, *S), got {tuple(y.shape)}."
    )


def _check_class_axis(y_pred: torch.Tensor, y: torch.Tensor, sigmoid: bool, name: str) -> None:
    """Raise `InputError` if values sum to 1 along an axis that is not that of classes, or has a
    sigmoid for each.
    """
    if not sigmoid and ((y_pred[..., :1].float().sum(1) - 1).abs() <= SUM_TOLERANCE).all():
        return
    if sigmoid and sum_to_1(y_pred, 1):
        raise InputError(
            f"{name} sums to 1 over its channels, as a softmax does. Set sigmoid=False."
        )
    if y_pred.ndim > 3 and sum_to_1(y_pred, 2):
        raise InputError(f"{name} has its classes along the third axis. {NO_BATCH_AXIS}")
    if y.shape == y_pred.shape and sum_to_1(y_pred, 0) and sum_to_1(y, 0):
        raise InputError(
            f"{name} has no batch axis: its classes lie along the first one. Give {name}[None],"
            " y[None]."
        )


def sum_to_1(values: torch.Tensor, axis: int, tolerance: float = SUM_TOLERANCE) -> bool:
    """Whether values that differ along an axis, not the last one, sum to 1 along it everywhere."""
    if values.shape[axis] < 2 or values.numel() < FEWEST_SUMS * values.shape[axis]:
        return False
    for part in (values[..., :1].float(), values.float()):  # a part suffices nearly always
        if not ((part.sum(axis) - 1).abs() <= tolerance).all():  # also NaN
            return False
    return bool((values.amax(axis) - values.amin(axis) > 0.1).any())


def split_channels(values: torch.Tensor) -> torch.Tensor:
    """Return each channel of sigmoids, or of their ground truth, `(B, C, *S)`, as a case,
    `(B C, 1, *S)`.
    """
    return values.flatten(0, 1).unsqueeze(1)


def read_voxels(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    ignore_index: int | None = None,
    logits: bool = False,
    soft: bool = False,
) -> Iterator[Voxels]:
    """Yield the voxels that are not ignored, chunk by chunk, each of one case.

    If every probability is 0 or 1, there is a warning, once per process.

    Args:
        y_pred: Prediction from `check_tensors`, with a softmax over at least two classes, or from
            `split_channels`.
        y: Ground truth, likewise.
        ignore_index: Label of voxels to leave out; their probabilities are not checked.
        logits: Whether `y_pred` holds logits.
        soft: Whether `y` may hold probabilities: then each voxel is yielded with every class that
            has one, and its weight.

    Raises:
        InputError: At the end, some values are not probabilities (or not finite logits) or not
            labels. It counts them.
    """
    soft = soft and _is_soft(y_pred, y, ignore_index)
    batch = Batch(y_pred, y, ignore_index, logits, soft)
    for case in range(len(y_pred)):
        for voxels in Volume(batch, case).chunks():
            if batch.add(voxels):  # after an invalid value, the rest is counted only
                yield voxels
    batch.report()


def _is_soft(y_pred: torch.Tensor, y: torch.Tensor, ignore_index: int | None) -> bool:
    """Whether the ground truth holds probabilities between 0 and 1."""
    if y.shape != y_pred.shape or not (y.is_floating_point() and ((y > 0) & (y < 1)).any()):
        return False
    if ignore_index is not None:
        raise InputError("ignore_index must be None if y holds probabilities.")
    return True


@dataclass(eq=False)
class Batch:
    """Predictions and ground truth as in `read_voxels`, and whether what was read is valid."""

    y_pred: torch.Tensor
    y: torch.Tensor
    ignore_index: int | None
    logits: bool
    soft: bool

    def __post_init__(self) -> None:
        # Numbers of invalid values, sums and labels
        self.invalid = torch.zeros(3, dtype=torch.int64, device=self.y_pred.device)
        self.any_voxel, self.only_0_and_1 = False, not self.logits

    def add(self, voxels: Voxels) -> bool:
        """Check some voxels and return whether all so far are valid.

        Sums of probabilities that are 1 within the tolerance, but not up to rounding, become 1.
        """
        given = voxels.values[-self.y_pred.shape[1] :]
        wrong_labels = (voxels.label < 0) | (voxels.label >= len(voxels.values))
        wrong_sums = torch.zeros_like(wrong_labels)
        if self.logits:
            wrong_values = ~given.isfinite()
        else:
            wrong_values = ~((given - 0.5).abs() <= 0.5 + RANGE_TOLERANCE)  # also NaN
            sums = voxels.values.sum(0)
            off = (sums - 1).abs()
            wrong_sums = off > SUM_TOLERANCE
            is_off = off > max(SUM_ROUNDING, torch.finfo(self.y_pred.dtype).eps)
            if is_off.any():
                voxels.values = voxels.values / sums.where(is_off, 1)
        self.invalid += torch.stack([w.sum() for w in (wrong_values, wrong_sums, wrong_labels)])
        if self.invalid.any():
            return False
        if self.only_0_and_1:
            self.only_0_and_1 = bool(((voxels.values == 0) | (voxels.values == 1)).all())
        self.any_voxel = True
        return True

    def report(self) -> None:
        """Raise `InputError` for what was invalid; warn if every probability was 0 or 1."""
        values, sums, labels = self.invalid.tolist()
        channels = self.y_pred.shape[1]
        among_values = f"of {self.y_pred.numel()} values"
        voxels = self.y_pred.numel() // channels
        activation = "sigmoid" if channels == 1 else "softmax"
        if values and self.logits:
            raise InputError(
                f"logits must be finite, got {values} {among_values} that are NaN or infinite."
            )
        if values:
            raise InputError(
                f"y_pred has {values} {among_values} that are NaN or outside [0, 1]. Apply"
                f" {activation} to logits."
            )
        if sums:
            raise InputError(
                f"y_pred does not sum to 1 over the classes in {sums} of {voxels} voxels. Apply"
                " softmax to logits. If each channel is a structure of its own, set sigmoid=True."
                " Where the network saw nothing, set the background to 1."
            )
        if labels:
            raise InputError(
                f"y must hold {self._valid_labels()}, got other values in {labels} of {voxels}"
                " voxels."
            )
        if self.any_voxel and self.only_0_and_1:
            warn_once(
                "y_pred holds only 0 and 1, like a one-hot segmentation, which says nothing of"
                f" calibration. Give the output of {activation}."
            )

    def _valid_labels(self) -> str:
        last = self.y_pred.shape[1] - 1
        labels = f"class indices from 0 to {last} or one-hot"
        if last == 0:
            labels = "0 or 1 in each channel"
        if self.soft:
            labels = "probabilities of the classes, which sum to 1"
        if self.ignore_index is None:
            return labels
        return f"{labels} (or ignore_index={self.ignore_index})"


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
