"""Reading voxels: checks probabilities and labels, selects the voxels that enter a metric, and yields them in chunks.

Chunks keep the working memory independent of the size of the volume: about 1 MiB on a CPU. (A case that is not
contiguous in memory is copied once.)

Which voxels enter a metric: with `foreground_only`, the voxels whose ground truth is not background (class 0), as in
Murugesan et al., "Trust Your Neighbours: Penalty-Based Constraints for Model Calibration", MICCAI 2023. Ignored voxels
never do.

What is checked: every voxel that is not ignored must have probabilities in [0, 1] within 1e-5 that sum to 1 within 1e-2
(half precision rounds by about this much), and a valid label. On a GPU, checking and selecting make the host wait for
the device in every chunk, which is cheap for metrics that run once per case.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from calib_components.arguments import check_flag, check_ignore_index, warn_once
from calib_components.metrics.case_metric import plain_tensor

__all__ = ["check_tensors", "decode_labels", "read_voxels", "top_label"]

# Probabilities per chunk. On a CPU fewer than the size from which PyTorch uses several threads: a long series of short
# parallel operations stalls whenever another process, such as a data loader's worker, occupies one of the cores.
CPU_CHUNK = 2**15 - 1
GPU_CHUNK = 2**23
RANGE_TOLERANCE = 1e-5
SUM_TOLERANCE = 1e-2
INVALID_LABEL = torch.iinfo(torch.int64).min


def check_tensors(y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Check types and shapes of probabilities `(B, N, *S)` and their ground truth, and return both as plain tensors.

    Args:
        y_pred: Probabilities, `(B, N, *S)`.
        y: Class index, `(B, 1, *S)`, or its one-hot encoding, `(B, N, *S)`.

    Returns:
        Both, detached and without MONAI's metadata.

    Raises:
        TypeError: An argument is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: The shapes are wrong or do not match.
    """
    y_pred, y = plain_tensor(y_pred, "y_pred"), plain_tensor(y, "y")
    if not y_pred.is_floating_point():
        raise TypeError(f"y_pred: expected probabilities of a floating-point type, got {y_pred.dtype}")
    if y.is_complex():
        raise TypeError(f"y: expected class indices or their one-hot encoding, got {y.dtype}")
    if y_pred.ndim < 3 or y_pred.shape[1] < 2:
        one_channel = y_pred.ndim > 2 and y_pred.shape[1] == 1
        remedy = "; for the one channel of a sigmoid, p, give torch.cat([1 - p, p], 1)"
        raise ValueError(
            f"y_pred: expected shape (B, N, *S) with N >= 2 classes, got {tuple(y_pred.shape)}"
            f"{remedy if one_channel else ''}"
        )
    if y_pred.numel() == 0:
        raise ValueError(f"y_pred: expected at least one voxel, got shape {tuple(y_pred.shape)}")
    batch, num_classes, *spatial = y_pred.shape
    if y.shape not in ((batch, 1, *spatial), (batch, num_classes, *spatial)):
        remedy = ""
        if y.shape == (batch, *spatial):
            remedy = "; add the channel: y.unsqueeze(1)"
        elif y.shape[2:] == y_pred.shape[1:-1]:
            remedy = "; the classes are the second dimension of y_pred: y_pred.movedim(-1, 1)"
        raise ValueError(
            f"y: expected shape {(batch, 1, *spatial)} (class index) or {tuple(y_pred.shape)} (one-hot) to match "
            f"y_pred, got {tuple(y.shape)}{remedy}"
        )
    return y_pred, y


def read_voxels(
    y_pred: torch.Tensor, y: torch.Tensor, foreground_only: bool, ignore_index: int | None
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield the voxels that enter a metric, chunk by chunk. This is the one place that selects voxels.

    Chunks with invalid values are not yielded. After the last chunk, one error reports the invalid values of all. If
    every probability is 0 or 1, there is a warning, once per process.

    Args:
        y_pred: Probabilities from `check_tensors`.
        y: Ground truth from `check_tensors`.
        foreground_only: Whether to select only voxels whose ground truth is not class 0.
        ignore_index: Ground-truth value of voxels to leave out; their probabilities are not checked.

    Yields:
        Index of the case, its probabilities `(N, voxels)` in float64, and its class indices `(voxels,)`.

    Raises:
        ValueError: Some values are not probabilities or not labels, `foreground_only` is neither True nor False, or
            `ignore_index` is not a whole number.
    """
    check_flag("foreground_only", foreground_only)
    check_ignore_index(ignore_index)
    num_classes = y_pred.shape[1]
    step = max(1, (CPU_CHUNK if y_pred.device.type == "cpu" else GPU_CHUNK) // num_classes)
    invalid = torch.zeros(4, dtype=torch.int64)
    any_voxel, only_0_and_1 = False, True
    for case in range(len(y_pred)):
        case_p, case_y = y_pred[case].flatten(1), y[case].flatten(1)
        for start in range(0, case_p.shape[1], step):
            p = case_p[:, start : start + step].double()
            label = decode_labels(case_y[:, start : start + step])
            if ignore_index is not None:
                p, label = _select(label != ignore_index, p, label)
            if len(label) > 0 and not _all_valid(p, label):
                invalid += _count_invalid(p, label)
                continue
            any_voxel |= len(label) > 0
            only_0_and_1 = only_0_and_1 and bool(((p == 0) | (p == 1)).all())
            if foreground_only:
                p, label = _select(label != 0, p, label)
            if len(label) > 0:
                yield case, p, label
    if invalid.any():
        raise ValueError(_describe_invalid(invalid.tolist(), y_pred, ignore_index))
    if any_voxel and only_0_and_1:
        warn_once(
            "y_pred: expected probabilities, got only 0 and 1, as in a one-hot segmentation, which says nothing of "
            "calibration; give the output of softmax"
        )


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


def _select(mask: torch.Tensor, p: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = mask.nonzero().squeeze(1)
    return p.index_select(1, index), label.index_select(0, index)


def _all_valid(p: torch.Tensor, label: torch.Tensor) -> bool:
    extremes = (*p.aminmax(), *p.sum(0).aminmax(), *label.aminmax())
    low, high, low_sum, high_sum, low_label, high_label = (value.item() for value in extremes)
    return (  # False where NaN
        -RANGE_TOLERANCE <= low <= high <= 1 + RANGE_TOLERANCE
        and 1 - SUM_TOLERANCE <= low_sum <= high_sum <= 1 + SUM_TOLERANCE
        and 0 <= low_label <= high_label < len(p)
    )


def _count_invalid(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Numbers of values not finite, values outside [0, 1], voxels with another sum than 1, and invalid labels."""
    finite = p.isfinite()
    outside = finite & ((p < -RANGE_TOLERANCE) | (p > 1 + RANGE_TOLERANCE))
    wrong_sum = (p.sum(0) - 1).abs() > SUM_TOLERANCE
    return torch.stack([(~finite).sum(), outside.sum(), wrong_sum.sum(), ((label < 0) | (label >= len(p))).sum()]).cpu()


def _describe_invalid(invalid: list[int], y_pred: torch.Tensor, ignore_index: int | None) -> str:
    not_finite, outside, wrong_sum, invalid_labels = invalid
    values, num_classes = y_pred.numel(), y_pred.shape[1]
    voxels = values // num_classes
    remedy = "y_pred looks like logits; apply softmax"
    if not_finite:
        return f"y_pred: expected probabilities, got {not_finite} of {values} values that are NaN or infinite"
    if outside:
        return f"y_pred: expected probabilities, got {outside} of {values} values outside [0, 1]: {remedy}"
    if wrong_sum:
        return (
            "y_pred: expected probabilities that sum to 1 over the classes, got another sum in "
            f"{wrong_sum} of {voxels} voxels; apply softmax to the logits, not sigmoid; for the sigmoid of one class, "
            "p, give torch.cat([1 - p, p], 1)"
        )
    ignored = "" if ignore_index is None else f" (or ignore_index={ignore_index})"
    return (
        f"y: expected class indices from 0 to {num_classes - 1}{ignored} or their one-hot encoding, got other values "
        f"in {invalid_labels} of {voxels} voxels"
    )
