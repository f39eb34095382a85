"""Expected volume of each structure, from its probabilities, beside the true one."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from calib_components.errors import InputError
from calib_components.metrics.structures import StructureMetric, check_structures, read_structures
from calib_components.metrics.threads import one_thread
from calib_components.metrics.voxels import check_tensors

__all__ = ["VolumeMetric", "Volumes", "structure_volumes"]

LOW, HIGH = 0.95, 0.05  # thresholds that bound the volume


class Volumes(NamedTuple):
    """Volumes of the structures of each case, see `structure_volumes`.

    Shape:
        - All fields: `(B, structures)`.

    Attributes:
        expected: Sum of the probabilities, float64.
        true: Volume of the ground truth.
        low: Volume with probability above 0.95.
        high: Volume with probability above 0.05.
        segmented: Volume where a class of the structure is the most probable one; of sigmoids, with probability above
            0.5.
    """

    expected: torch.Tensor
    true: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    segmented: torch.Tensor


@one_thread()
def structure_volumes(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    structures: Mapping[str, Sequence[int]],
    ignore_index: int | None = None,
    sigmoid: bool = False,
    voxel_volume: float = 1.0,
) -> Volumes:
    """Expected, segmented and true volume of each structure, and a range of volumes.

    The expected volume is the sum of the probabilities over voxels. If they are calibrated in an image, it is that of
    the ground truth on average, whether voxels are independent or not. Unlike the volume of the predicted class, it
    counts the many voxels in which a structure is unlikely.

    How far the volume may be from it depends on how voxels depend on each other, which probabilities of single voxels
    do not say. The range from `low`, the volume with `p > 0.95`, to `high`, that with `p > 0.05`, holds the volume with
    a probability of at least 90 % if all voxels are fully dependent (comonotone): if one random number `u` decides for
    all of them, and a voxel is in the structure where `p > u`. No other dependence with the same probabilities has a
    larger variance; if voxels are independent, the interval is much narrower. A probability of a structure of several
    classes is their sum, compared in the type of `y_pred`, as `p > 0.05` compares in PyTorch and NumPy.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.
        - output: `(B, structures)` each.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of each.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.
        voxel_volume: Volume of one voxel, such as in ml; 1 gives numbers of voxels.

    Returns:
        Float64, in the unit of `voxel_volume`.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.

    Sources: Popordanoska et al., "On the Relationship Between Calibrated Predictors and Unbiased Volume Estimation",
    MICCAI 2021 (the expected volume). Dhaene et al., "The concept of comonotonicity in actuarial science and finance:
    theory", Insurance: Mathematics and Economics 31, 2002 (the range).

    Examples:
        >>> import torch
        >>> from calib_components.metrics import structure_volumes
        >>> p = torch.tensor([0.01, 0.3, 0.9, 0.99])  # of class 1
        >>> y_pred, y = torch.stack([1 - p, p]).unsqueeze(0), torch.tensor([[[0, 0, 1, 1]]])
        >>> volumes = structure_volumes(y_pred, y, {"tumour": [1]}, voxel_volume=0.5)
        >>> volumes.true, volumes.expected  # 0.5 * (0.01 + 0.3 + 0.9 + 0.99)
        (tensor([[1.]], dtype=torch.float64), tensor([[1.1000]], dtype=torch.float64))
        >>> volumes.low, volumes.high
        (tensor([[0.5000]], dtype=torch.float64), tensor([[1.5000]], dtype=torch.float64))
        >>> volumes.segmented
        tensor([[1.]], dtype=torch.float64)
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    structures = check_structures(structures, sigmoid, y_pred.shape[1])
    is_number = isinstance(voxel_volume, numbers.Real) and not isinstance(voxel_volume, bool)
    if not (is_number and 0 < voxel_volume < math.inf):
        raise InputError(f"voxel_volume: expected a number above 0, got {voxel_volume!r}")
    shape = 5, len(y_pred), len(structures)
    expected, true, low, high, segmented = totals = torch.zeros(shape, dtype=torch.float64, device=y_pred.device)
    thresholds = torch.tensor([LOW, HIGH], dtype=y_pred.dtype).tolist()
    for voxels in read_structures(y_pred, y, structures, ignore_index, sigmoid):
        at, p = (voxels.case, voxels.structure), voxels.rounded
        true[at] += voxels.true.sum()
        expected[at] += voxels.p.sum()
        for total, threshold in zip((low, high), thresholds, strict=True):
            total[at] += (p > threshold).sum()
        segmented[at] += voxels.predicted.sum()
    return Volumes(*(totals * float(voxel_volume)))


class VolumeMetric(StructureMetric):
    """Expected and true volume of the structures of each case, see `structure_volumes`.

    `aggregate()` is the mean over structures, then cases, of the expected volume minus the true one; 0 is without bias.
    `aggregate("mean_batch")` is the mean of each structure and `aggregate("none")` has all differences, `(cases,
    structures)`. The attributes hold the volumes.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.
        - voxel_volume: an option of the call, `metric(y_pred, y, voxel_volume=0.02)`: the volume of a voxel of these
          cases, such as in ml; 1 if it is not given.

    Args:
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of each.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `structure_volumes`.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import VolumeMetric
        >>> metric = VolumeMetric({"tumour": [1]})
        >>> _ = metric(torch.tensor([[[0.9, 0.6], [0.1, 0.4]]]), torch.tensor([[[0, 0]]]), voxel_volume=0.02)
        >>> metric.expected, metric.true
        (tensor([[0.0100]], dtype=torch.float64), tensor([[0.]], dtype=torch.float64))
        >>> metric.aggregate()
        tensor(0.0100, dtype=torch.float64)
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor, voxel_volume: float = 1.0) -> list[torch.Tensor]:
        return [*structure_volumes(y_pred, y, self.structures, self.ignore_index, self.sigmoid, voxel_volume)]

    @property
    def volumes(self) -> Volumes:
        """All volumes, `(cases, structures)` each."""
        return Volumes(*self.gathered())

    @property
    def true(self) -> torch.Tensor:
        """Volume of the ground truth, `(cases, structures)`."""
        return self.volumes.true

    @property
    def expected(self) -> torch.Tensor:
        """Sum of the probabilities, `(cases, structures)`."""
        return self.volumes.expected

    @property
    def low(self) -> torch.Tensor:
        """Volume with probability above 0.95, `(cases, structures)`."""
        return self.volumes.low

    @property
    def high(self) -> torch.Tensor:
        """Volume with probability above 0.05, `(cases, structures)`."""
        return self.volumes.high

    @property
    def segmented(self) -> torch.Tensor:
        """Volume of the predicted label map, `(cases, structures)`."""
        return self.volumes.segmented

    def case_values(self) -> torch.Tensor:
        return self.expected - self.true
