"""Structures of a case: classes with a name, and what the voxels of a case say of each.

The probability of a structure is the sum over its classes. With sigmoids, a structure is one channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from calib_components.arguments import check_flag, check_ignore_index
from calib_components.errors import InputError
from calib_components.metrics.case_metric import CaseMetric
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import ENLARGE, Voxels, read_voxels

__all__ = ["StructureMetric", "StructureVoxels", "check_structures", "read_structures"]


class StructureVoxels:
    """Some voxels of a case, and one structure.

    Attributes:
        case: Index of the case.
        structure: Index of the structure.
        p: Probability of the structure, `(voxels,)` in float64.
        true: Mask of the voxels whose ground truth is the structure, `(voxels,)`.
    """

    def __init__(self, voxels: Voxels, structure: int, classes: Sequence[int], dtype: torch.dtype) -> None:
        self.case, self.structure = voxels.case, structure
        self.p = voxels.p[classes[0]] if len(classes) == 1 else voxels.p[list(classes)].sum(0)
        self._voxels, self._dtype = voxels, dtype
        self._is_in = torch.zeros(len(voxels.p), dtype=torch.bool, device=self.p.device)
        self._is_in[list(classes)] = True
        self.true = self._is_in.index_select(0, voxels.label)

    @property
    def predicted(self) -> torch.Tensor:
        """Mask of the voxels whose most probable class is in the structure; for a sigmoid, those above 0.5."""
        return self._is_in.index_select(0, self._voxels.top[1])

    @property
    def rounded(self) -> torch.Tensor:
        """Probability as the type of `y_pred` holds it, for comparison with a threshold of the same type."""
        return self.p if self._dtype == torch.float64 else self.p.to(self._dtype).double()


def check_structures(structures: Any, sigmoid: bool = False, channels: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the class indices of each structure as tuples.

    Args:
        structures: Class indices by name.
        sigmoid: Whether each channel is a binary problem of its own, as one channel always is.
        channels: Number of classes or channels, if it is known.

    Raises:
        ValueError: They are not class indices by name; or, for sigmoids, not one channel for each name.
    """
    if not isinstance(structures, Mapping) or not structures:
        raise InputError(f'structures: expected class indices by name, such as {{"heart": [1, 2]}}, got {structures!r}')
    sigmoid = sigmoid or channels == 1
    checked = {}
    for name, classes in structures.items():
        try:
            region = Region.parse(classes)
        except ValueError:
            region = None
        if region is None or region.kind != "structure":
            raise InputError(f"structures: expected class indices for {name!r}, got {classes!r}")
        if sigmoid and len(region.classes) > 1:
            raise InputError(f"structures: expected one channel of sigmoids for {name!r}, got {list(region.classes)}")
        if channels is not None and region.classes[-1] >= channels:
            kind = "a channel" if sigmoid else "class indices"
            raise InputError(
                f"structures: expected {kind} from 0 to {channels - 1} for {name!r}, got {list(region.classes)}"
            )
        if str(name) in checked:
            raise InputError(f"structures: expected each name once, got {name} twice")
        checked[str(name)] = region.classes
    return checked


def read_structures(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    structures: Mapping[str, Sequence[int]],
    ignore_index: int | None = None,
    sigmoid: bool = False,
) -> Iterator[StructureVoxels]:
    """Yield the voxels that are not ignored, chunk by chunk, once for each structure; for use with `one_thread`.

    Args:
        y_pred: Probabilities from `check_tensors`.
        y: Ground truth from `check_tensors`.
        structures: Class indices by name, from `check_structures`.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, as one channel always is.

    Raises:
        ValueError: As `read_voxels` does.
    """
    sigmoid = sigmoid or y_pred.shape[1] == 1
    for voxels in read_voxels(y_pred, y, Region("all"), ignore_index, sigmoid, enlarge=ENLARGE):
        for number, classes in enumerate(structures.values()):
            if not sigmoid:
                yield StructureVoxels(voxels, number, classes, y_pred.dtype)
            elif classes == (voxels.channel,):
                yield StructureVoxels(voxels, number, (1,), y_pred.dtype)


class StructureMetric(CaseMetric):
    """Base of the metrics that take structures by name."""

    def __init__(
        self, structures: Mapping[str, Sequence[int]], ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_flag("sigmoid", sigmoid)
        self.structures = check_structures(structures, sigmoid)
        self.ignore_index = ignore_index
        self.sigmoid = sigmoid
