"""Overlap (DSC) and surface distance (HD95) of hard segmentations, for each case and structure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance

from calib_components.metrics.case_metric import CaseMetric, plain_tensor

__all__ = ["DiceMetric", "HD95Metric", "dice", "hausdorff_distance_95", "structure_masks"]


def dice(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Dice similarity coefficient `2 |A & B| / (|A| + |B|)`.

    Args:
        y_pred: masks `(B, C, *S)` of 0 and 1, one-hot or overlapping regions.
        y: masks likewise, or class index `(B, 1, *S)` where `y_pred` is one-hot.

    Returns:
        Float64 `(B, C)`: 0 for a structure in only one of the two, NaN in none.

    Raises:
        TypeError, ValueError: one of the two is not a tensor as above, or they do not match.
    """
    y_pred, y = _masks(y_pred, y)
    return 2 * _voxels(y_pred & y).double() / (_voxels(y_pred) + _voxels(y))


def hausdorff_distance_95(
    y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """95th percentile of the distances between two surfaces, those of both directions pooled (as medpy's `hd95`).

    A surface is the voxels of a structure that have a face neighbour outside it; beyond the image is outside. Pooling
    is not the larger of two directed percentiles, which MONAI's `HausdorffDistanceMetric(percentile=95)` takes.

    Args:
        y_pred: masks `(B, C, *S)` of 0 and 1, one-hot or overlapping regions.
        y: masks likewise, or class index `(B, 1, *S)` where `y_pred` is one-hot.
        spacing: size of a voxel along each axis of `*S`, say in mm; None measures in voxels.

    Returns:
        Float64 `(B, C)`, in the unit of `spacing`; NaN unless the structure is in both.

    Raises:
        TypeError, ValueError: one of the two is not a tensor as above, they do not match, or spacing has not one value
            an axis.
    """
    y_pred, y = _masks(y_pred, y)
    if spacing is not None and np.shape(spacing) != (y.ndim - 2,):
        raise ValueError(f"spacing must have one value for each of the {y.ndim - 2} spatial axes, got {spacing}.")
    result = torch.full(y.shape[:2], torch.nan, dtype=torch.float64, device=y.device)
    in_both = (_voxels(y_pred) > 0) & (_voxels(y) > 0)
    for case, structure in in_both.nonzero().tolist():
        surfaces = get_mask_edges(y_pred[case, structure], y[case, structure])
        distances = [
            torch.as_tensor(get_surface_distance(start, end, spacing=spacing))
            for start, end in (surfaces, surfaces[::-1])
        ]
        result[case, structure] = torch.cat(distances).double().quantile(0.95)
    return result


def structure_masks(label: torch.Tensor, structures: Sequence[Sequence[int]]) -> torch.Tensor:
    """Masks of structures, each the union of some classes.

    Args:
        label: class index, `(1, *S)`.
        structures: class indices of each structure; they may share classes, as the regions of BraTS do.

    Returns:
        Boolean masks, `(len(structures), *S)`.

    Raises:
        TypeError, ValueError: the label is not one class index map.
    """
    label = plain_tensor(label, "label")
    if label.shape[:1] != (1,):
        raise ValueError(f"label must be one map of class indices, (1, *S), got {tuple(label.shape)}.")
    return torch.cat([torch.isin(label, torch.tensor(classes).to(label)) for classes in structures])


def _voxels(mask: torch.Tensor) -> torch.Tensor:
    return mask.flatten(2).sum(2)


class _StructureMetric(CaseMetric):
    """Values of each case and structure, with the voxels of the structure in prediction and ground truth."""

    def __init__(self, include_background: bool = False) -> None:
        super().__init__()
        self.include_background = include_background

    @abstractmethod
    def score(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Value of each case and structure, `(B, C)`, from boolean masks."""

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        y_pred, y = _masks(y_pred, y)
        if not self.include_background:
            if y_pred.shape[1] == 1:
                raise ValueError("y_pred has one channel, so none is left with include_background=False.")
            y_pred, y = y_pred[:, 1:], y[:, 1:]
        return [self.score(y_pred, y), _voxels(y_pred), _voxels(y)]

    def case_values(self) -> torch.Tensor:
        return self.gathered()[0]

    @property
    def missed(self) -> torch.Tensor:
        """Which structures of the ground truth have no voxel in the prediction: bool `(cases, structures)`."""
        _, predicted, true = self.gathered()
        return (true > 0) & (predicted == 0)

    @property
    def spurious(self) -> torch.Tensor:
        """Which structures of the prediction have no voxel in the ground truth: bool `(cases, structures)`."""
        _, predicted, true = self.gathered()
        return (true == 0) & (predicted > 0)


def _masks(y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as boolean masks `(B, C, *S)`, checked."""
    y_pred, y = plain_tensor(y_pred, "y_pred"), plain_tensor(y, "y")
    if y_pred.ndim < 3:
        raise ValueError(f"y_pred must have shape (B, C, *S), got {tuple(y_pred.shape)}.")
    batch, channels, *spatial = y_pred.shape
    if y.shape == (batch, 1, *spatial) and channels > 1:
        masks = y == torch.arange(channels, device=y.device).view(-1, *[1] * len(spatial))
        invalid = int((~masks.any(1)).sum())
        if invalid:
            raise ValueError(f"y must hold class indices 0 to {channels - 1}, but {invalid} of its voxels do not.")
        y_pred = _binary(y_pred, "y_pred")
        several_or_none = int((y_pred.sum(1) != 1).sum())
        if several_or_none:
            raise ValueError(
                f"y_pred must be one-hot where y is a class index, but {several_or_none} of its voxels are in several "
                "classes or none: for regions give masks for y as well, see structure_masks."
            )
        return y_pred, masks
    if y.shape == y_pred.shape:
        return _binary(y_pred, "y_pred"), _binary(y, "y")
    raise ValueError(
        f"y must have shape {(batch, 1, *spatial)} (class index) or {tuple(y_pred.shape)} (masks) to match y_pred, "
        f"got {tuple(y.shape)}."
    )


def _binary(masks: torch.Tensor, name: str) -> torch.Tensor:
    if masks.dtype == torch.bool:
        return masks
    invalid = int(((masks != 0) & (masks != 1)).sum())
    if invalid:
        raise ValueError(
            f"{name} must hold masks of 0 and 1, but {invalid} of its {masks.numel()} values are neither: "
            "give the one-hot of the predicted class."
        )
    return masks != 0


class DiceMetric(_StructureMetric):
    """Dice similarity coefficient of each case and structure.

    `y_pred`: masks `(B, C, *S)`, one-hot or overlapping regions; `y`: masks likewise or, for a one-hot `y_pred`, class
    index `(B, 1, *S)`. `aggregate()` averages over the structures of a case, then over cases; a structure in neither
    prediction nor ground truth is NaN and in no mean. See also `missed` and `spurious`.

    Args:
        include_background: False leaves channel 0 out; True for regions that have no background channel.
    """

    def score(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return dice(y_pred, y)


class HD95Metric(_StructureMetric):
    """95th percentile of the pooled surface distances of each case and structure, see `hausdorff_distance_95`.

    Inputs and results as in `DiceMetric`; a structure in only one of prediction and ground truth is NaN too.

    Args:
        include_background: False leaves channel 0 out; True for regions that have no background channel.
        spacing: size of a voxel along each spatial axis; None measures in voxels.
    """

    def __init__(self, include_background: bool = False, spacing: Sequence[float] | None = None) -> None:
        super().__init__(include_background)
        self.spacing = spacing

    def score(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return hausdorff_distance_95(y_pred, y, self.spacing)
