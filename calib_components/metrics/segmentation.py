"""Overlap (DSC) and surface distance (HD95) of segmentations, for each case and structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

from calib_components.errors import InputError, warn_once
from calib_components.metrics.base import CaseMetric, plain_tensor
from calib_components.metrics.distances import voxel_sizes
from calib_components.metrics.voxels import check_tensors


def dice(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Dice similarity coefficient (DSC), `2 |A & B| / (|A| + |B|)`, of each case and structure.

    Shape:
        - y_pred: `(B, C, *S)`, with any number of spatial dimensions.
        - y: `(B, C, *S)`, or `(B, 1, *S)` class index if `y_pred` is one-hot.
        - output: `(B, C)`.

    Args:
        y_pred: Masks of 0 and 1, one-hot or overlapping.
        y: Masks of 0 and 1, or class index.

    Returns:
        Float64; 0 for a structure in only one of the two, NaN for a structure in neither.

    Raises:
        InputError: Shapes do not match or hold no voxel, or values are not masks or class indices.

    Source: Dice, "Measures of the amount of ecologic association between species", Ecology 26,
        1945.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import dice
        >>> dice(torch.tensor([[[1, 1, 0, 0, 0]]]), torch.tensor([[[0, 1, 1, 1, 0]]]))  # 2 / 5
        tensor([[0.4000]], dtype=torch.float64)
    """
    y_pred, y = _masks(y_pred, y)
    return 2 * _voxels(y_pred & y).double() / (_voxels(y_pred) + _voxels(y))


def hausdorff_distance_95(
    y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """95th percentile of the Hausdorff distance (HD95) of each case and structure.

    The percentile is taken over the distances from each surface to the other, pooled over both
    directions, as in medpy's `hd95`. MONAI's `HausdorffDistanceMetric(percentile=95)` is another
    number: the larger of the two directed percentiles. The surface consists of the voxels of the
    structure that have a face neighbour outside it; everything beyond the image is outside.

    Args:
        y_pred, y: As in `dice`.
        spacing: Size of a voxel along each axis of `*S`, such as in mm; None measures in voxels.

    Returns:
        Float64 `(B, C)`, in the unit of `spacing`; NaN unless the structure is in both.

    Raises:
        InputError: As `dice`, or `spacing` does not have one positive value per axis.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import hausdorff_distance_95
        >>> y_pred, y = torch.zeros(1, 1, 1, 10), torch.zeros(1, 1, 1, 10)
        >>> y_pred[..., [0, 9]], y[..., 0] = 1, 1
        >>> hausdorff_distance_95(y_pred, y)  # the 95th percentile of 0, 9 and 0
        tensor([[8.1000]], dtype=torch.float64)
    """
    y_pred, y = _masks(y_pred, y)
    sizes = voxel_sizes(spacing, y.ndim - 2)
    result = torch.full(y.shape[:2], torch.nan, dtype=torch.float64, device=y.device)
    in_both = (_voxels(y_pred) > 0) & (_voxels(y) > 0)
    for case, structure in in_both.nonzero().tolist():
        predicted, true = y_pred[case, structure].cpu().numpy(), y[case, structure].cpu().numpy()
        (box,) = find_objects((predicted | true).astype(np.uint8))
        surfaces = [mask[box] & ~binary_erosion(mask[box]) for mask in (predicted, true)]
        distances = [_distances(start, end, sizes) for start, end in (surfaces, surfaces[::-1])]
        result[case, structure] = np.percentile(np.concatenate(distances), 95)
    return result


def _distances(start: np.ndarray, end: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each voxel of the surface `start` to the nearest of `end`."""
    apart = np.argwhere(start & ~end) * spacing  # all others are at no distance
    # Its time depends on the size of the surfaces, that of a distance transform on the box around
    # them. With these options the tree takes less time to build, which counts when each point is
    # looked up once.
    tree = KDTree(np.argwhere(end) * spacing, leafsize=32, compact_nodes=False, balanced_tree=False)
    return np.concatenate([np.zeros(np.count_nonzero(start & end)), tree.query(apart)[0]])


def structure_masks(label: torch.Tensor, structures: Sequence[Sequence[int]]) -> torch.Tensor:
    """Masks of structures, each the union of one or more classes.

    Args:
        label: Class index `(1, *S)`.
        structures: Class indices of each structure. Structures may overlap, as the regions of BraTS
            do.

    Returns:
        Boolean masks `(len(structures), *S)`.

    Raises:
        InputError: `label` does not have exactly one channel or holds other values than class
            indices.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import structure_masks
        >>> structure_masks(torch.tensor([[0, 1, 2, 3]]), [[3], [1, 3], [1, 2, 3]]).int()
        tensor([[0, 0, 0, 1],
                [0, 1, 0, 1],
                [0, 1, 1, 1]], dtype=torch.int32)
    """
    label = plain_tensor(label)
    if label.shape[:1] != (1,):
        raise InputError(
            f"label must be one map of class indices, (1, *S), got shape {tuple(label.shape)}."
        )
    indices = label.long()  # in uint8, class 300 would be 44
    if (indices < 0).any() or (label.is_floating_point() and (indices != label).any()):
        raise InputError(
            "label must hold class indices, whole numbers of at least 0. Do not interpolate labels."
        )
    return torch.cat(
        [
            torch.isin(indices, torch.tensor(classes, device=indices.device))
            for classes in structures
        ]
    )


def _voxels(mask: torch.Tensor) -> torch.Tensor:
    # One mask after the other: a sum over a dimension would copy all masks as int64.
    counts = [each.count_nonzero() for each in mask.flatten(0, 1)]
    return torch.stack(counts).view(mask.shape[:2])


def _masks(y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Check both and return them as boolean masks `(B, C, *S)`."""
    y_pred, y = check_tensors(y_pred, y, masks=True)
    if y.shape == y_pred.shape:
        return _binary(y_pred, "y_pred"), _binary(y, "y")
    channels = y_pred.shape[1]
    indices = y if y.is_floating_point() else y.long()  # PyTorch does not compare uint16 with int64
    masks = indices == torch.arange(channels, device=y.device).view(-1, *[1] * (y.ndim - 2))
    if invalid := int((~masks.any(1)).sum()):
        raise InputError(
            f"y must hold class indices from 0 to {channels - 1}, got other values in {invalid} of"
            f" {y.numel()} voxels."
        )
    y_pred = _binary(y_pred, "y_pred")
    if not_one_hot := int((y_pred.sum(1) != 1).sum()):
        raise InputError(
            f"y_pred must be one-hot because y is a class index, got {not_one_hot} of {y.numel()}"
            " voxels in several classes or none. For overlapping regions, give y as masks too (see"
            " structure_masks)."
        )
    return y_pred, masks


def _binary(masks: torch.Tensor, name: str) -> torch.Tensor:
    if masks.dtype == torch.bool:
        return masks
    if invalid := int(((masks != 0) & (masks != 1)).sum()):
        raise InputError(
            f"{name} must hold masks of 0 and 1, got other values in {invalid} of {masks.numel()}"
            " elements. Give the one-hot encoding of the predicted class."
        )
    return masks != 0


class DSCMetric(CaseMetric):
    """Dice similarity coefficient (DSC) of each case and structure, see `dice`, which has the same
    shapes and errors.

    `aggregate()` averages over the structures of each case, then over cases;
    `aggregate("mean_batch")` returns the mean of each structure and `aggregate("none")` all values,
    `(cases, structures)`. A structure in neither prediction nor ground truth is NaN and left out of
    the means.

    `monai.metrics.DiceMetric` differs: it has other arguments, includes the background by default,
    and leaves out a structure that is predicted but not in the ground truth, which is 0 here.

    Args:
        include_background: False leaves out channel 0. Set it to True if no channel is background.
    """

    def __init__(self, include_background: bool = False) -> None:
        super().__init__()
        self.include_background = include_background

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return dice(*self.chosen(y_pred, y))

    def chosen(self, y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the masks of the structures that count."""
        y_pred, y = _masks(y_pred, y)
        if self.include_background:
            return y_pred, y
        if y_pred.shape[1] == 1:
            raise InputError(
                "y_pred has one channel, which is left out as background. Set"
                " include_background=True."
            )
        overlap = y[:, 0] & y[:, 1:].any(1)
        if overlap.any():
            warn_once(
                "y has voxels of channel 0 in other channels too, but channel 0 is left out as"
                " background. Set include_background=True if each channel is a structure."
            )
        return y_pred[:, 1:], y[:, 1:]


class HD95Metric(DSCMetric):
    """95th percentile of the Hausdorff distance (HD95) of each case and structure, see
    `hausdorff_distance_95`.

    Used like `DSCMetric`. A structure that is not in both prediction and ground truth is NaN and
    left out of the means.

    Args:
        include_background: False leaves out channel 0. Set it to True if no channel is background.
        spacing: Size of a voxel along each spatial axis, such as in mm; None measures in voxels.
            Cases of another spacing are given theirs in the call, as with MONAI's metrics:
            `metric(y_pred, y, spacing=(1.5, 1.5))`.
    """

    def __init__(
        self, include_background: bool = False, spacing: Sequence[float] | None = None
    ) -> None:
        super().__init__(include_background)
        self.spacing = spacing

    def measure(
        self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float] | None = None
    ) -> torch.Tensor:
        return hausdorff_distance_95(
            *self.chosen(y_pred, y), self.spacing if spacing is None else spacing
        )
