"""Structures of a case, from their probabilities: volumes, expected DSC, and counts above thresholds.

The probability of a structure is the sum over its classes. With sigmoids, a structure is one channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from calib_components.errors import InputError, check_number
from calib_components.metrics.base import CaseMetric
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import check_tensors, read_chunks

__all__ = [
    "ExpectedDSCMetric",
    "ThresholdCounts",
    "ThresholdTable",
    "VolumeMetric",
    "Volumes",
    "check_structures",
    "expected_dsc",
    "structure_volumes",
    "threshold_counts",
]

LOW, HIGH = 0.95, 0.05  # thresholds that bound the volume
THRESHOLDS = torch.arange(1, 100, dtype=torch.float64) / 100

Structures = Mapping[str, Sequence[int]]


class Volumes(NamedTuple):
    """Volumes of the structures of each case, `(B, structures)` each, float64; see `structure_volumes`.

    Attributes:
        expected: Sum of the probabilities.
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


def structure_volumes(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    structures: Structures,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    voxel_volume: float = 1.0,
) -> Volumes:
    """Expected, segmented and true volume of each structure, and a range of volumes.

    The expected volume is the sum of the probabilities over voxels. If they are calibrated in an image, it is that of
    the ground truth on average, whether voxels are independent or not. Unlike the volume of the predicted class, it
    counts the many voxels in which a structure is unlikely.

    The range from `low`, the volume with `p > 0.95`, to `high`, that with `p > 0.05`, holds the volume with a
    probability of at least 90 % if all voxels are fully dependent (comonotone): if one random number `u` decides for
    all of them, and a voxel is in the structure where `p > u`. No other dependence with the same probabilities has a
    larger variance. Probabilities are compared in the type of `y_pred`, as `p > 0.05` compares in PyTorch and NumPy.

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        voxel_volume: Volume of one voxel, such as in ml; 1 gives numbers of voxels.

    Returns:
        Float64, in the unit of `voxel_volume`.

    Sources: Popordanoska et al., "On the Relationship Between Calibrated Predictors and Unbiased Volume Estimation",
    MICCAI 2021 (the expected volume). Dhaene et al., "The concept of comonotonicity in actuarial science and finance:
    theory", Insurance: Mathematics and Economics 31, 2002 (the range).

    Examples:
        >>> import torch
        >>> from calib_components.metrics import structure_volumes
        >>> p = torch.tensor([0.01, 0.3, 0.9, 0.99])  # of class 1
        >>> y_pred, y = torch.stack([1 - p, p]).unsqueeze(0), torch.tensor([[[0, 0, 1, 1]]])
        >>> volumes = structure_volumes(y_pred, y, {"tumour": [1]}, voxel_volume=0.5)
        >>> [round(volume.item(), 4) for volume in volumes]  # expected: 0.5 * (0.01 + 0.3 + 0.9 + 0.99)
        [1.1, 1.0, 0.5, 1.5, 1.0]
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    check_number("voxel_volume", voxel_volume, 0)
    totals = torch.zeros(5, len(y_pred), len(structures), dtype=torch.float64, device=y_pred.device)
    low, high = torch.tensor([LOW, HIGH], dtype=y_pred.dtype).double()
    for at, voxels in read_structures(y_pred, y, structures, ignore_index, sigmoid):
        above = [voxels.rounded > low, voxels.rounded > high, voxels.predicted]
        totals[:, at[0], at[1]] += torch.stack([each.sum().double() for each in (voxels.p, voxels.true, *above)])
    return Volumes(*(totals * float(voxel_volume)))


def expected_dsc(
    y_pred: torch.Tensor,
    structures: Structures,
    y: torch.Tensor | None = None,
    ignore_index: int | None = None,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Dice similarity coefficient (DSC) to expect of each structure: an estimate of quality without ground truth.

    `2 sum_A p / (|A| + sum p)`, where `A` are the voxels whose predicted class is in the structure (for a sigmoid:
    `p > 0.5`) and `p` is its probability, the sum over its classes. This is the ratio of the expected numerator of the
    DSC of `A` to its expected denominator, if the probabilities are calibrated. Cases in the order of this value show
    the segmentations to check first.

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        y: Ground truth, which says only which voxels are ignored; None: none are.

    Returns:
        Float64 `(B, structures)`; 0 if the structure is predicted nowhere, NaN if its probability is 0 everywhere too.

    Sources: Li et al., "Estimating Model Performance under Domain Shifts with Class-Specific Confidence Scores", MICCAI
    2022 (as an estimate of the DSC). Borges et al., "Soft Dice Confidence: A Near-Optimal Confidence Estimator for
    Selective Prediction in Semantic Segmentation", arXiv:2402.10665, 2024 (to order cases).

    Examples:
        >>> import torch
        >>> from calib_components.metrics import expected_dsc
        >>> p = torch.tensor([0.1, 0.3, 0.6, 1.0])  # of class 1
        >>> expected_dsc(torch.stack([1 - p, p]).unsqueeze(0), {"tumour": [1]})  # 2 * (0.6 + 1) / (2 + 2)
        tensor([[0.8000]], dtype=torch.float64)
    """
    if y is None and ignore_index is not None:
        raise InputError("ignore_index needs y, which says where it is.")
    if y is None:  # any valid label
        y = torch.zeros_like(y_pred if sigmoid else y_pred[:, :1], dtype=torch.uint8)
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    overlap, both = torch.zeros(2, len(y_pred), len(structures), dtype=torch.float64, device=y_pred.device)
    for at, voxels in read_structures(y_pred, y, structures, ignore_index, sigmoid):
        overlap[at] += voxels.p @ voxels.predicted.double()
        both[at] += voxels.predicted.sum() + voxels.p.sum()
    return 2 * overlap / both


@dataclass(frozen=True, eq=False)
class ThresholdTable:
    """What each of T thresholds of the probability of a structure means, `(T,)` each; see `ThresholdCounts.table`.

    Attributes:
        thresholds: Thresholds, float64.
        sensitivity: Share of the structure's voxels that are above the threshold, of all cases together.
        specificity: Share of the other voxels that are not.
        ppv: Positive predictive value (precision): share of the voxels above the threshold that are the structure's.
        dsc: Dice similarity coefficient (DSC), mean over cases.
    """

    thresholds: torch.Tensor
    sensitivity: torch.Tensor
    specificity: torch.Tensor
    ppv: torch.Tensor
    dsc: torch.Tensor


@dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """Numbers of voxels above thresholds, of each case and structure: all that a table of thresholds needs.

    Shape:
        - thresholds: `(T,)`, with T thresholds.
        - true_positive, predicted: `(B, structures, T)`, with B cases.
        - true, voxels: `(B, structures)`.

    Attributes:
        thresholds: Thresholds, float64.
        true_positive: Number of voxels of the structure with a probability above each threshold, int64.
        predicted: Number of all voxels with a probability above each threshold.
        true: Number of voxels of the structure.
        voxels: Number of voxels that are not ignored; it differs between channels of sigmoids if the ground truth does.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import threshold_counts
        >>> p = torch.tensor([0.1, 0.3, 0.6, 0.9])  # of class 1
        >>> y_pred, y = torch.stack([1 - p, p]).unsqueeze(0), torch.tensor([[[0, 1, 0, 1]]])
        >>> table = threshold_counts(y_pred, y, {"tumour": [1]}).table(0)
        >>> [round(values[19].item(), 4) for values in vars(table).values()]  # of p > 0.2: three voxels, two correct
        [0.2, 1.0, 0.5, 0.6667, 0.8]
    """

    thresholds: torch.Tensor
    true_positive: torch.Tensor
    predicted: torch.Tensor
    true: torch.Tensor
    voxels: torch.Tensor

    @property
    def dsc(self) -> torch.Tensor:
        """Dice similarity coefficient, `(B, structures, T)`.

        0 for a structure in only one of prediction and ground truth, NaN for one in neither.
        """
        return 2 * self.true_positive.double() / (self.predicted + self.true[..., None])

    def table(self, structure: int) -> ThresholdTable:
        """Return sensitivity, specificity, PPV and DSC of a structure at each threshold.

        The first three are of the voxels of all cases together, and NaN where none count. The DSC is the mean over the
        cases that have the structure, so that it is over the same ones at each threshold.

        Args:
            structure: Index of the structure.

        Source: Altman and Bland, "Diagnostic tests 1: sensitivity and specificity", BMJ 308, 1994, and "2: predictive
        values", BMJ 309, 1994.
        """
        true_positive, predicted = self.true_positive[:, structure], self.predicted[:, structure]
        true, voxels = (field[:, structure, None].expand_as(predicted) for field in (self.true, self.voxels))

        def pooled(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
            return above.double().sum(0) / below.sum(0)

        return ThresholdTable(
            self.thresholds.clone(),
            sensitivity=pooled(true_positive, true),
            specificity=pooled(voxels - true - (predicted - true_positive), voxels - true),
            ppv=pooled(true_positive, predicted),
            dsc=self.dsc[:, structure].where(true > 0, torch.nan).nanmean(0),
        )

    def best(self) -> torch.Tensor:
        """Return the threshold with the highest mean DSC for each structure, `(structures,)`.

        Of thresholds with equal DSC, the one nearest to 0.5. NaN for a structure that is nowhere. A threshold chosen on
        the cases on which it is reported looks better than it is: choose it on validation cases.
        """
        mean = self.dsc.where(self.true[..., None] > 0, torch.nan).nanmean(0).nan_to_num(-1)
        distance = (self.thresholds - 0.5).abs().masked_fill(mean < mean.amax(-1, keepdim=True), torch.inf)
        return self.thresholds[distance.argmin(-1)].masked_fill(mean.amax(-1) < 0, torch.nan)

    def to_dict(self) -> dict[str, list]:
        """Return the fields as nested lists, which JSON stores exactly."""
        return {name: field.tolist() for name, field in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, list]) -> ThresholdCounts:
        """Inverse of `to_dict`."""
        thresholds = torch.tensor(fields["thresholds"], dtype=torch.float64)
        names = ("true_positive", "predicted", "true", "voxels")
        return cls(thresholds, *(torch.tensor(fields[name], dtype=torch.int64) for name in names))


def threshold_counts(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    structures: Structures,
    ignore_index: int | None = None,
    sigmoid: bool = False,
) -> ThresholdCounts:
    """Count the voxels of each structure with a probability above 0.01, 0.02, ... 0.99.

    The probability of a structure is compared in the type of `y_pred`, as `p > 0.3` compares in PyTorch and NumPy: a
    float32 probability of 0.3, which is slightly more, is not above 0.3.

    Arguments and errors: see `calib_components.metrics`.

    Returns:
        Counts of each case and structure, on the device of `y_pred`; see `ThresholdCounts` for an example.
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    thresholds = THRESHOLDS.to(y_pred.device, copy=True)
    edges = thresholds.to(y_pred.dtype).double()
    shape = len(y_pred), len(structures)
    true, voxels = torch.zeros(2, *shape, dtype=torch.int64, device=y_pred.device)
    # Number of voxels above exactly so many thresholds; those above none are most of an image, and not needed.
    above, true_above = torch.zeros(2, *shape, len(edges) + 1, dtype=torch.int64, device=y_pred.device)
    for at, part in read_structures(y_pred, y, structures, ignore_index, sigmoid):
        true[at] += part.true.sum()
        voxels[at] += len(part.p)
        index = (part.rounded > edges[0]).nonzero().squeeze(1)
        number = torch.bucketize(part.rounded[index], edges)
        above[at] += torch.bincount(number, minlength=len(edges) + 1)
        true_above[at] += torch.bincount(number[part.true[index]], minlength=len(edges) + 1)
    true_positive, predicted = (count[..., 1:].flip(-1).cumsum(-1).flip(-1) for count in (true_above, above))
    return ThresholdCounts(thresholds, true_positive, predicted, true, voxels)


class _StructureVoxels(NamedTuple):
    """Some voxels, and one structure: its probability, also as the type of `y_pred` holds it, and two masks."""

    p: torch.Tensor
    rounded: torch.Tensor
    true: torch.Tensor
    predicted: torch.Tensor


def check_structures(structures: Structures, sigmoid: bool = False, channels: float = math.inf) -> dict[str, list[int]]:
    """Return the class indices of each structure, one each for sigmoids; raise `InputError` if they are not such."""
    if not isinstance(structures, Mapping) or not structures:
        raise InputError(f'structures must be class indices by name, such as {{"heart": [1, 2]}}, got {structures!r}.')
    checked = {}
    for name, classes in structures.items():
        region = Region.parse(classes)
        if region.kind != "structure" or (sigmoid and len(region.classes) > 1):
            expected = "one channel" if sigmoid else "class indices"
            raise InputError(f"structures must have {expected} for {name!r}, got {classes!r}.")
        if region.classes[-1] >= channels:
            raise InputError(f"structures has {classes!r} for {name!r}, y_pred has 0 to {channels - 1}.")
        checked[name] = list(region.classes)
    return checked


def read_structures(
    y_pred: torch.Tensor, y: torch.Tensor, structures: Structures, ignore_index: int | None, sigmoid: bool
) -> Iterator[tuple[tuple[int, int], _StructureVoxels]]:
    """Yield the position of each case and structure, and the voxels that are not ignored, chunk by chunk."""
    channels = y_pred.shape[1]
    sigmoid = sigmoid or channels == 1
    checked = check_structures(structures, sigmoid, channels)
    for voxels in read_chunks(y_pred, y, ignore_index, sigmoid):
        for number, classes in enumerate(checked.values()):
            if sigmoid and classes != [voxels.channel]:
                continue
            rows = torch.tensor([1] if sigmoid else classes, device=y_pred.device)
            is_in = torch.zeros(len(voxels.p), dtype=torch.bool, device=y_pred.device).index_fill(0, rows, True)
            p = voxels.p[rows[0]] if len(rows) == 1 else voxels.p[rows].sum(0)
            found = is_in[voxels.label], is_in[voxels.predicted]
            yield (voxels.case, number), _StructureVoxels(p, p.to(y_pred.dtype).double(), *found)


class _StructureMetric(CaseMetric):
    def __init__(self, structures: Structures, ignore_index: int | None = None, sigmoid: bool = False) -> None:
        super().__init__()
        self.structures = check_structures(structures, sigmoid)
        self.ignore_index, self.sigmoid = ignore_index, sigmoid


class VolumeMetric(_StructureMetric):
    """Expected and true volume of the structures of each case, see `structure_volumes`.

    `aggregate()` is the mean over structures, then cases, of the expected volume minus the true one; 0 is without bias.
    `aggregate("mean_batch")` is the mean of each structure and `aggregate("none")` has all differences, `(cases,
    structures)`. `volumes` and the attributes of its names hold the volumes, `(cases, structures)` each.

    The call takes the volume of a voxel of these cases, such as in ml: `metric(y_pred, y, voxel_volume=0.02)`.

    Arguments and errors: see `calib_components.metrics`.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor, voxel_volume: float = 1.0) -> list[torch.Tensor]:
        return [*structure_volumes(y_pred, y, self.structures, self.ignore_index, self.sigmoid, voxel_volume)]

    @property
    def volumes(self) -> Volumes:
        """All volumes."""
        return Volumes(*self.gathered())

    def __getattr__(self, name: str) -> Any:
        if name not in Volumes._fields:
            raise AttributeError(name)
        return getattr(self.volumes, name)

    def case_values(self) -> torch.Tensor:
        return self.volumes.expected - self.volumes.true


class ExpectedDSCMetric(_StructureMetric):
    """Dice similarity coefficient (DSC) to expect of the structures of each case, see `expected_dsc`.

    It is called with the ground truth, as all metrics are, but uses it only to leave out ignored voxels. `aggregate()`
    averages over the structures of each case, then over cases; `aggregate("mean_batch")` returns the mean of each
    structure and `aggregate("none")` all values, `(cases, structures)`.

    Arguments and errors: see `calib_components.metrics`.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return expected_dsc(y_pred, self.structures, y, self.ignore_index, self.sigmoid)

    def case_values(self) -> torch.Tensor:
        return self.gathered()
