"""Structures of a case, from their probabilities: volumes, expected DSC, and counts above
thresholds.

The probability of a structure is the sum over its classes. With sigmoids, a structure is one
channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from calib_components.errors import InputError, check_number
from calib_components.metrics.base import CaseMetric, CaseTensors
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels
from calib_components.quality.estimates import TERMS, expected_dice, structure_sums

THRESHOLDS = torch.arange(1, 100, dtype=torch.float64) / 100
LOW, HIGH = 94, 4  # positions of the thresholds 0.95 and 0.05, which bound the volume

Structures = Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class ThresholdCounts(CaseTensors):
    """Numbers of voxels above thresholds, of each case and structure: all that sensitivity, PPV and
    the like need.

    The probability of a structure is compared in the type of `y_pred`, as `p > 0.3` compares in
    PyTorch and NumPy: a float32 probability of 0.3, which is slightly more, is not above 0.3.

    Attributes:
        thresholds: 0.01, 0.02, ... 0.99, float64 `(T,)`.
        true_positive: Number of voxels of the structure above each threshold, int64 `(B,
            structures, T)`.
        predicted: Number of all voxels above each threshold, `(B, structures, T)`.
        true: Number of voxels of the structure, `(B, structures)`.
    """

    thresholds: torch.Tensor
    true_positive: torch.Tensor
    predicted: torch.Tensor
    true: torch.Tensor

    @property
    def dsc(self) -> torch.Tensor:
        """Dice similarity coefficient `(B, structures, T)`; NaN for a structure in neither, 0 for
        one in one only.
        """
        return 2 * self.true_positive.double() / (self.predicted + self.true[..., None])

    def best(self) -> torch.Tensor:
        """Return the threshold with the highest mean DSC for each structure, `(structures,)`.

        Of thresholds with equal DSC, the one nearest to 0.5. NaN for a structure that is nowhere. A
        threshold chosen on the cases on which it is reported looks better than it is: choose it on
        validation cases.
        """
        mean = self.dsc.where(self.true[..., None] > 0, torch.nan).nanmean(0).nan_to_num(-1)
        distance = (
            (self.thresholds - 0.5).abs().masked_fill(mean < mean.amax(-1, keepdim=True), torch.inf)
        )
        return self.thresholds[distance.argmin(-1)].masked_fill(mean.amax(-1) < 0, torch.nan)


class StructureMeasures(NamedTuple):
    """Measures of the structures of each case, see `measure_structures`.

    Attributes:
        expected: Expected volume, the sum of the probabilities; float64 `(B, structures)`, as the
            next ones.
        true: Volume of the ground truth.
        low: Volume with `p > 0.95`.
        high: Volume with `p > 0.05`.
        segmented: Volume where a class of the structure is the most probable one; of sigmoids,
            where `p > 0.5`.
        expected_dsc: Expected DSC; 0 if the structure is predicted nowhere, NaN if its probability
            is 0 everywhere too.
        thresholds: Counts above thresholds.
        sums: The sum of each of `TERMS` over the voxels, `(B, structures)`.
    """

    expected: torch.Tensor
    true: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    segmented: torch.Tensor
    expected_dsc: torch.Tensor
    thresholds: ThresholdCounts
    sums: dict[str, torch.Tensor]


def measure_structures(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    structures: Structures,
    ignore_index: int | None = None,
    sigmoid: bool = False,
    voxel_volume: float = 1.0,
) -> StructureMeasures:
    """Measure the structures of each case.

    The expected volume is the sum of the probabilities over voxels. If they are calibrated in an
    image, it is that of the ground truth on average, whether voxels are independent or not. Unlike
    the volume of the predicted class, it counts the many voxels in which a structure is unlikely.
    The range from `low` to `high` holds the volume with a probability of at least 90 % if all
    voxels are fully dependent (comonotone): if one random number `u` decides for all of them, and a
    voxel is in the structure where `p > u`. No other dependence with the same probabilities has a
    larger variance.

    The expected Dice similarity coefficient (DSC) is an estimate of quality without ground truth:
    `2 sum_A p / (|A| + sum p)`, where `A` are the voxels whose predicted class is in the structure.
    This is the ratio of the expected numerator of the DSC of `A` to its expected denominator, if
    the probabilities are calibrated. Cases in the order of this value show the segmentations to
    check first.

    Other arguments and errors: see `calib_components.metrics`.

    Args:
        voxel_volume: Volume of one voxel, such as in ml; 1 gives numbers of voxels.

    Sources: Popordanoska et al., "On the Relationship Between Calibrated Predictors and Unbiased
        Volume Estimation", MICCAI 2021 (the expected volume). Dhaene et al., "The concept of
        comonotonicity in actuarial science and finance: theory", Insurance: Mathematics and
        Economics 31, 2002 (the range). Li et al., "Estimating Model Performance under Domain Shifts
        with Class-Specific Confidence Scores", MICCAI 2022 (the expected DSC as an estimate).
        Borges et al., "Soft Dice Confidence: A Near-Optimal Confidence Estimator for Selective
        Prediction in Semantic Segmentation", arXiv:2402.10665, 2024 (to order cases).

    Examples:
        >>> import torch
        >>> from calib_components.metrics import measure_structures
        >>> p = torch.tensor([0.01, 0.3, 0.9, 0.99])  # of class 1
        >>> y_pred, y = torch.stack([1 - p, p]).unsqueeze(0), torch.tensor([[[0, 0, 1, 1]]])
        >>> measures = measure_structures(y_pred, y, {"tumour": [1]}, voxel_volume=0.5)
        >>> [round(volume.item(), 4) for volume in measures[:5]]  # expected: half of 2.2
        [1.1, 1.0, 0.5, 1.5, 1.0]
        >>> measures.expected_dsc  # 2 * (0.9 + 0.99) / (2 + 2.2)
        tensor([[0.9000]], dtype=torch.float64)
    """
    check_number("voxel_volume", voxel_volume, 0)
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    batch, channels = y_pred.shape[:2]
    sigmoid = sigmoid or channels == 1
    checked = check_structures(structures, sigmoid, channels)
    shape, edges = (batch, len(checked)), THRESHOLDS.to(y_pred).double()
    sums = {name: y_pred.new_zeros(shape, dtype=torch.float64) for name in TERMS}
    true = y_pred.new_zeros(shape, dtype=torch.int64)
    # Numbers of voxels, and of those of the structure, above exactly so many thresholds
    above = y_pred.new_zeros((2, *shape, len(edges) + 1), dtype=torch.int64)
    for voxels in read_voxels(y_pred, y, ignore_index=ignore_index, sigmoid=sigmoid):
        for number, classes in enumerate(checked.values()):
            if sigmoid and classes != [voxels.volume.channel]:
                continue
            p, is_predicted, is_true = _structure(voxels, [1] if sigmoid else classes)
            for name, value in structure_sums(p, is_predicted).items():
                sums[name][voxels.case, number] += value
            true[voxels.case, number] += is_true.sum()
            rounded = p.to(y_pred.dtype).double()
            above[:, voxels.case, number] += _count_above(rounded, is_true, edges)
    # From the voxels above exactly so many thresholds to those above each
    predicted, true_positive = above[..., 1:].flip(-1).cumsum(-1).flip(-1)
    volume = float(voxel_volume)
    return StructureMeasures(
        expected=volume * sums["expected"],
        true=volume * true.double(),
        low=volume * predicted[..., LOW].double(),
        high=volume * predicted[..., HIGH].double(),
        segmented=volume * sums["predicted"],
        expected_dsc=expected_dice(sums),
        thresholds=ThresholdCounts(
            THRESHOLDS.to(y_pred.device, copy=True), true_positive, predicted, true
        ),
        sums=sums,
    )


def _structure(
    voxels: Voxels, classes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the probability of a structure at some voxels, and where it is predicted and true."""
    is_in = torch.zeros(len(voxels.p), dtype=torch.bool, device=voxels.p.device)
    is_in[classes] = True
    return voxels.p[classes].sum(0), is_in[voxels.predicted], is_in[voxels.label]


def _count_above(p: torch.Tensor, is_true: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return how many voxels, and how many of them of the structure, are above exactly so many
    thresholds, `(2, T + 1)`.

    Those above none, most of an image, are not counted: nobody needs them.
    """
    index = (p > edges[0]).nonzero().squeeze(1)
    places, length = torch.bucketize(p[index], edges), len(edges) + 1
    parts = places, places[is_true[index]]
    return torch.stack([torch.bincount(part, minlength=length) for part in parts])


def check_structures(
    structures: Structures, sigmoid: bool = False, channels: float = math.inf
) -> dict[str, list[int]]:
    """Return the class indices of each structure, one each for sigmoids; raise `InputError` if they
    are not such.
    """
    checked = {name: list(Region.parse(classes).classes) for name, classes in structures.items()}
    for name, classes in checked.items():
        if not classes or classes[-1] >= channels or (sigmoid and len(classes) > 1):
            what = "one channel" if sigmoid else "class indices"
            below = "" if channels == math.inf else f" below {channels}"
            raise InputError(
                f"structures: give {what}{below} for {name!r}, got {structures[name]!r}."
            )
    return checked


class StructureMetric(CaseMetric):
    """Base of metrics of structures, which have their arguments in common."""

    def __init__(
        self, structures: Structures, ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__()
        self.structures = check_structures(structures, sigmoid)
        self.ignore_index, self.sigmoid = ignore_index, sigmoid


class VolumeMetric(StructureMetric):
    """Expected and true volume of the structures of each case, see `measure_structures`.

    `aggregate()` is the mean over structures, then cases, of the expected volume minus the true
    one; 0 is without bias. `aggregate("mean_batch")` is the mean of each structure and
    `aggregate("none")` has all differences, `(cases, structures)`. So have the attributes
    `expected`, `true`, `low`, `high` and `segmented`.

    The call takes the volume of a voxel of these cases, such as in ml: `metric(y_pred, y,
    voxel_volume=0.02)`.

    Arguments and errors: see `calib_components.metrics`.
    """

    names = StructureMeasures._fields[:5]

    def measure(
        self, y_pred: torch.Tensor, y: torch.Tensor, voxel_volume: float = 1.0
    ) -> list[torch.Tensor]:
        measures = measure_structures(
            y_pred, y, self.structures, self.ignore_index, self.sigmoid, voxel_volume
        )
        return [getattr(measures, name) for name in self.names]

    def get_buffer(self) -> torch.Tensor:
        return self.expected - self.true


class ExpectedDSCMetric(StructureMetric):
    """Dice similarity coefficient (DSC) to expect of the structures of each case, see
    `measure_structures`.

    It is called with the ground truth, as all metrics are, but uses it only to leave out ignored
    voxels. Reductions are those of `DSCMetric`.

    Arguments and errors: see `calib_components.metrics`.
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return measure_structures(
            y_pred, y, self.structures, self.ignore_index, self.sigmoid
        ).expected_dsc
