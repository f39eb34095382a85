"""Reading voxels: checks probabilities and labels, and yields the voxels that count for a metric in chunks.

Chunks keep the working memory independent of the size of the volume and the number of regions: on a CPU about 3 MiB, or
20 MiB in most metrics; chunks on a GPU are larger. (A case that is not contiguous in memory is copied once. A band
needs the classes of a whole case, a few bytes per voxel.)

Which voxels count is described by a `Region`, see `calib_components.metrics.regions`. Ignored voxels never do.

With `sigmoid`, each channel is a binary problem of its own: it is read like a prediction of two classes, with
probabilities `1 - p` and `p`. One channel alone is always read in this way.

What is checked: every voxel that is not ignored must have probabilities in [0, 1] within 1e-5 that sum to 1 within 1e-2
(half precision rounds by about this much), and a valid label. On a GPU, checking and selecting make the host wait for
the device in every chunk, which is cheap for metrics that run once per case.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from calib_components.arguments import check_flag, check_ignore_index, warn_once
from calib_components.errors import InputError
from calib_components.metrics.case_metric import plain_tensor
from calib_components.metrics.regions import IGNORED, Region, band_mask

__all__ = [
    "Voxels",
    "check_temperature",
    "check_tensors",
    "decode_labels",
    "read_chunks",
    "read_voxels",
    "top_label",
]

# Probabilities per chunk. On a CPU fewer than the size from which PyTorch uses several threads: a long series of short
# parallel operations stalls whenever another process, such as a data loader's worker, occupies one of the cores.
CPU_CHUNK = 2**15 - 1
ENLARGE = 8  # with one thread; in chunks of the usual size, most of the time would be the overhead of the calls
GPU_CHUNK = 2**23
RANGE_TOLERANCE = 1e-5
SUM_TOLERANCE = 1e-2
INVALID_LABEL = torch.iinfo(torch.int64).min


@dataclass(eq=False)
class Voxels:
    """Some voxels of a case.

    Attributes:
        case: Index of the case.
        channel: Channel of sigmoids; 0 for softmax.
        values: Probabilities `(N, voxels)` in float64, or logits if `from_logits`; N = 2 for a channel of sigmoids.
        label: Class indices `(voxels,)`.
        from_logits: Whether `values` are logits.
        temperature: By which the logits of `values` were divided.
        bands: Mask of each band, `(voxels,)`.
    """

    case: int
    channel: int
    values: torch.Tensor
    label: torch.Tensor
    from_logits: bool = False
    temperature: float = 1.0
    bands: dict[Region, torch.Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> torch.Tensor:
        """Logits `(N, voxels)` in float64, if these were read; `(0, l)` for a channel of sigmoids."""
        if not self.from_logits:
            raise ValueError("logits: expected voxels read from logits, got probabilities")
        return self.values

    @functools.cached_property
    def p(self) -> torch.Tensor:
        """Probabilities `(N, voxels)` in float64; `(1 - p, p)` for a channel of sigmoids."""
        return self.values.softmax(0) if self.from_logits else self.values

    @functools.cached_property
    def top(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Highest probability of each voxel and its class, the first of equal ones."""
        return top_label(self.p)

    @functools.cached_property
    def p_label(self) -> torch.Tensor:
        """Probability of the label of each voxel."""
        return self.p.gather(0, self.label[None])[0]

    @functools.cached_property
    def is_predicted(self) -> torch.Tensor:
        """Whether the predicted class of each voxel is not background."""
        return self.top[1] != 0

    @functools.cached_property
    def is_true(self) -> torch.Tensor:
        """Whether the label of each voxel is not background."""
        return self.label != 0

    def inside(self, region: Region) -> torch.Tensor:
        """Mask of the voxels that are in a region other than "all"."""
        if region.kind == "predicted":
            return self.is_predicted
        if region.kind == "plausible":
            return self._foreground_above(region.limit)
        if region.kind == "foreground":
            return self.is_true
        if region.kind == "union":
            return self.is_true | self.is_predicted
        if region.kind == "structure":
            return functools.reduce(torch.logical_or, [self.label == k for k in region.classes])
        return self.bands[region]

    def select(self, index: torch.Tensor) -> Voxels:
        """Return the voxels of a mask, or of an index, without their bands."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        values, label = self.values.index_select(1, index), self.label.index_select(0, index)
        selected = replace(self, values=values, label=label, bands={})
        if "top" in vars(self):  # computed already
            confidence, predicted = self.top
            selected.top = confidence.index_select(0, index), predicted.index_select(0, index)
        return selected

    def _foreground_above(self, threshold: float) -> torch.Tensor:
        p = self.p
        if self.temperature == 1:
            return 1 - p[0] > threshold
        # With r = p^T, normalised: sum_{k > 0} r_k / r_0 > threshold / (1 - threshold). The sum is between (1 - p_0)^T
        # and (N - 1)^(1 - T) (1 - p_0)^T, which decides nearly all voxels without their powers. In logarithms, since
        # the powers of any T may be too large or too small for a float.
        temperature, log_odds = self.temperature, _log(threshold) - math.log1p(-threshold)
        spread = (1 - temperature) * math.log(len(p) - 1)
        ratio = temperature * (p[1:].sum(0).clamp_min(0).log() - p[0].clamp_min(0).log())
        above = ratio + min(spread, 0) > log_odds + 1e-9
        unsure = ratio + max(spread, 0) >= log_odds - 1e-9
        index = (unsure & ~above).nonzero().squeeze(1)
        powers = temperature * p.index_select(1, index).clamp_min(0).log()
        above[index] = powers[1:].logsumexp(0) - powers[0] > log_odds
        return above


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def check_tensors(
    y_pred: torch.Tensor, y: torch.Tensor, sigmoid: bool = False, name: str = "y_pred"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check types and shapes of a prediction `(B, N, *S)` and its ground truth, and return both as plain tensors.

    Args:
        y_pred: Probabilities or logits, `(B, N, *S)`.
        y: Class index, `(B, 1, *S)`, or its one-hot encoding, `(B, N, *S)`; for sigmoids 0 or 1, `(B, N, *S)`.
        sigmoid: Whether each channel is a binary problem of its own, as one channel always is.
        name: Name of the argument `y_pred` in errors.

    Returns:
        Both, detached and without MONAI's metadata.

    Raises:
        TypeError: An argument is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: The shapes are wrong or do not match, or `sigmoid` is neither True nor False.
    """
    y_pred, y = plain_tensor(y_pred, name), plain_tensor(y, "y")
    check_flag("sigmoid", sigmoid)
    if not y_pred.is_floating_point():
        kind = "probabilities of " if name == "y_pred" else ""
        raise TypeError(f"{name}: expected {kind}a floating-point type, got {y_pred.dtype}")
    if y.is_complex():
        raise TypeError(f"y: expected class indices or their one-hot encoding, got {y.dtype}")
    if y_pred.ndim < 3:
        raise ValueError(f"{name}: expected shape (B, N, *S) with N classes or channels, got {tuple(y_pred.shape)}")
    if y_pred.numel() == 0:
        raise ValueError(f"{name}: expected at least one voxel, got shape {tuple(y_pred.shape)}")
    batch, channels, *spatial = y_pred.shape
    sigmoid = sigmoid or channels == 1
    if y.shape == y_pred.shape or (y.shape == (batch, 1, *spatial) and not sigmoid):
        return y_pred, y
    expected = f"{(batch, 1, *spatial)} (class index) or {tuple(y_pred.shape)} (one-hot)"
    if sigmoid:
        expected = f"{tuple(y_pred.shape)} (0 or 1 in each channel)"
    remedy = ""
    if y.shape == (batch, *spatial):
        remedy = "; add the channel: y.unsqueeze(1)"
    elif y.shape[2:] == y_pred.shape[1:-1]:
        remedy = f"; the classes are the second dimension of {name}: {name}.movedim(-1, 1)"
    raise InputError(f"y: expected shape {expected} to match {name}, got {tuple(y.shape)}{remedy}")


def check_temperature(value: Any) -> None:
    """Raise `InputError` unless a temperature is None, a number above 0, or a tensor of one."""
    try:
        if value is None or (not isinstance(value, (str, bool)) and 0 < float(value) < math.inf):
            return
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InputError(f"temperature: expected a number above 0, got {value!r}")


def read_voxels(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    region: Region,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    logits: bool = False,
    enlarge: int = 1,
) -> Iterator[Voxels]:
    """Yield the voxels of a region, chunk by chunk; see `read_chunks`."""
    for voxels in read_chunks(y_pred, y, [region], ignore_index, sigmoid, logits=logits, enlarge=enlarge):
        selected = voxels if region.kind == "all" else voxels.select(voxels.inside(region))
        if len(selected.label) > 0:
            yield selected


def read_chunks(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    regions: Sequence[Region],
    ignore_index: int | None = None,
    sigmoid: bool = False,
    temperature: float | None = None,
    logits: bool = False,
    enlarge: int = 1,
) -> Iterator[Voxels]:
    """Yield all voxels that are not ignored, chunk by chunk; `Voxels.inside` says which are in a region.

    Chunks with invalid values are not yielded. After the last chunk, one error reports the invalid values of all. If
    every probability is 0 or 1, there is a warning, once per process.

    Args:
        y_pred: Prediction from `check_tensors`.
        y: Ground truth from `check_tensors`.
        regions: Those that will be asked for.
        ignore_index: Ground-truth value of voxels to leave out; their probabilities are not checked.
        sigmoid: Whether each channel is a binary problem of its own; each comes in chunks of its own.
        temperature: By which the logits of `y_pred` were divided; "plausible" is decided without it. None is 1.
        logits: Whether `y_pred` holds logits.
        enlarge: How many times larger than usual chunks on a CPU are; for callers in `one_thread`.

    Yields:
        Voxels of one case, and of one channel for sigmoids.

    Raises:
        ValueError: Some values are not probabilities (or not finite logits) or not labels, a structure has a class that
            `y_pred` lacks, or an option has an unsuitable value.
    """
    check_ignore_index(ignore_index)
    check_temperature(temperature)
    divisor = 1.0 if temperature is None else float(temperature)
    channels = y_pred.shape[1]
    sigmoid = sigmoid or channels == 1
    num_classes = 2 if sigmoid else channels
    for region in regions:
        region.true_classes(num_classes)  # checks those of a structure
    bands = [region for region in regions if region.kind in ("band", "predicted_band")]
    step = max(1, (enlarge * CPU_CHUNK if y_pred.device.type == "cpu" else GPU_CHUNK) // num_classes)
    invalid = torch.zeros(5, dtype=torch.int64, device="cpu")
    any_voxel, only_0_and_1 = False, True
    for case, channel in ((b, k) for b in range(len(y_pred)) for k in range(channels if sigmoid else 1)):
        rows = slice(channel, channel + 1) if sigmoid else slice(None)
        case_p, case_y = y_pred[case, rows].flatten(1), y[case, rows].flatten(1)
        parts = [slice(start, start + step) for start in range(0, case_p.shape[1], step)]

        def read(
            part: slice, double: bool = True, case: int = case, channel: int = channel, p: Any = case_p, y: Any = case_y
        ) -> Voxels:
            values = p[:, part].double() if double else p[:, part]
            if sigmoid:
                values = torch.cat([torch.zeros_like(values) if logits else 1 - values, values])
            return Voxels(case, channel, values, decode_labels(y[:, part]), logits, divisor)

        masks = {}
        if bands:  # the predicted class of probabilities is the same in any precision
            chunks = map(functools.partial(read, double=logits), parts)
            masks = _band_masks(bands, chunks, num_classes, ignore_index, y_pred.shape[2:])
        for part in parts:
            voxels = read(part)
            kept = None if ignore_index is None else voxels.label != ignore_index
            if kept is not None:
                voxels = voxels.select(kept)
            if len(voxels.label) > 0 and not _all_valid(voxels):
                invalid += _count_invalid(voxels, sigmoid)
                continue
            any_voxel |= len(voxels.label) > 0
            only_0_and_1 = only_0_and_1 and not logits and bool(((voxels.p == 0) | (voxels.p == 1)).all())
            voxels.bands = {band: mask[part] if kept is None else mask[part][kept] for band, mask in masks.items()}
            if len(voxels.label) > 0:
                yield voxels
    if invalid.any():
        raise ValueError(_describe_invalid(invalid.tolist(), y_pred, ignore_index, sigmoid, logits))
    if any_voxel and only_0_and_1:
        warn_once(
            "y_pred: expected probabilities, got only 0 and 1, as in a one-hot segmentation, which says nothing of "
            f"calibration; give the output of {'sigmoid' if sigmoid else 'softmax'}"
        )


def _band_masks(
    bands: Sequence[Region],
    chunks: Iterator[Voxels],
    num_classes: int,
    ignore_index: int | None,
    spatial: Sequence[int],
) -> dict[Region, torch.Tensor]:
    """Mask `(voxels,)` of each band in one case, or one channel of it."""
    kinds = {band.kind for band in bands}
    dtype = torch.int8 if num_classes < 128 else torch.int32  # comparing bytes takes a fraction of the time
    maps: dict[str, list[torch.Tensor]] = {kind: [] for kind in kinds}
    for voxels in chunks:
        for kind in kinds:
            classes = voxels.label if kind == "band" else voxels.top[1]
            if ignore_index is not None:
                classes = classes.masked_fill(voxels.label == ignore_index, IGNORED)
            maps[kind].append(classes.to(dtype))
    whole = {kind: torch.cat(parts).view(*spatial) for kind, parts in maps.items()}
    return {band: band_mask(whole[band.kind], band.limit, band.spacing).flatten() for band in bands}


def top_label(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `p.max(0)`, the first of equal values, for probabilities `(N, voxels)`; several times faster on a CPU."""
    confidence = p.amax(0)
    rank = torch.arange(len(p), 0, -1, dtype=torch.int32, device=p.device)[:, None]
    return confidence, len(p) - ((p >= confidence) * rank).amax(0)


def decode_labels(y: torch.Tensor) -> torch.Tensor:
    """Class index of each voxel, or `INVALID_LABEL`, from class indices `(1, voxels)` or one-hot `(N, voxels)`."""
    if len(y) > 1:
        y = y if y.is_floating_point() else y.long()  # PyTorch lacks the maximum of some unsigned types
        largest, label = y.max(0)
        return label.masked_fill_((largest != 1) | ((y != 0).sum(0) != 1), INVALID_LABEL)
    label = y[0].long()
    return label.masked_fill_(label != y[0], INVALID_LABEL) if y.is_floating_point() else label


def _all_valid(voxels: Voxels) -> bool:
    values, label = voxels.values, voxels.label
    low_label, high_label, low, high = (value.item() for value in (*label.aminmax(), *values.aminmax()))
    if not 0 <= low_label <= high_label < len(values):
        return False
    if voxels.from_logits:
        return -math.inf < low <= high < math.inf  # False where NaN
    low_sum, high_sum = (value.item() for value in values.sum(0).aminmax())
    return (
        -RANGE_TOLERANCE <= low <= high <= 1 + RANGE_TOLERANCE
        and 1 - SUM_TOLERANCE <= low_sum <= high_sum <= 1 + SUM_TOLERANCE
    )


def _count_invalid(voxels: Voxels, sigmoid: bool) -> torch.Tensor:
    """Numbers of values not finite, values outside [0, 1], voxels with another sum than 1, with only 0, bad labels."""
    values, label = voxels.values, voxels.label
    given = values[1:] if sigmoid else values
    finite = given.isfinite()
    outside = finite & ((given < -RANGE_TOLERANCE) | (given > 1 + RANGE_TOLERANCE))
    wrong_sum = (values.sum(0) - 1).abs() > SUM_TOLERANCE
    wrong_label = (label < 0) | (label >= len(values))
    return torch.stack([each.sum() for each in (~finite, outside, wrong_sum, ~values.any(0), wrong_label)]).cpu()


def _describe_invalid(
    invalid: list[int], y_pred: torch.Tensor, ignore_index: int | None, sigmoid: bool, logits: bool
) -> str:
    not_finite, outside, wrong_sum, all_zero, invalid_labels = invalid
    values, channels = y_pred.numel(), y_pred.shape[1]
    voxels = values if sigmoid else values // channels
    if logits and not_finite:
        return f"logits: expected finite values, got {not_finite} of {values} that are NaN or infinite"
    if not_finite:
        return f"y_pred: expected probabilities, got {not_finite} of {values} values that are NaN or infinite"
    if outside and not logits:
        remedy = f"y_pred looks like logits; apply {'sigmoid' if sigmoid else 'softmax'}"
        return f"y_pred: expected probabilities, got {outside} of {values} values outside [0, 1]: {remedy}"
    if all_zero > wrong_sum / 2 and not logits:
        return (
            "y_pred: expected probabilities that sum to 1 over the classes, got another sum in "
            f"{wrong_sum} of {voxels} voxels, 0 in {all_zero}, as outside of a crop that was inverted; background is 1 "
            "there, see calib_components.inference.maps.fill_background"
        )
    if wrong_sum and not logits:
        return (
            "y_pred: expected probabilities that sum to 1 over the classes, got another sum in "
            f"{wrong_sum} of {voxels} voxels; apply softmax to the logits, not sigmoid; if each channel is a structure "
            "of its own with a sigmoid, set sigmoid=True"
        )
    ignored = "" if ignore_index is None else f" (or ignore_index={ignore_index})"
    if sigmoid:
        return f"y: expected 0 or 1 in each channel{ignored}, got other values in {invalid_labels} of {voxels} voxels"
    return (
        f"y: expected class indices from 0 to {channels - 1}{ignored} or their one-hot encoding, got other values "
        f"in {invalid_labels} of {voxels} voxels"
    )
