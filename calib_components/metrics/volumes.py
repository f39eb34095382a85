"""Structures of a case, from their probabilities: volumes, expected DSC, confidence and accuracy.

The probability of a structure is the sum over its classes. With sigmoids, a structure is one
channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from calib_components.errors import InputError, check_number
from calib_components.metrics.base import CaseMetric
from calib_components.metrics.regions import Region
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels, split_channels
from calib_components.quality.estimates import TERMS, expected_dice, structure_sums

Structures = Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class StructureMeasures:
    """Measures of the structures of each case, see `measure_structures`, float64 `(B, structures)`.

    Attributes:
        sums: The sum of each of `TERMS` over the voxels; and the number of voxels in which the
            structure is `true`, and in which it is predicted and true, `correct`.
        voxel_volume: Volume of a voxel.
    """

    sums: dict[str, torch.Tensor]
    voxel_volume: float = 1.0

    @property
    def expected(self) -> torch.Tensor:
        """Expected volume, the sum of the probabilities."""
        return self.voxel_volume * self.sums["expected"]

    @property
    def true(self) -> torch.Tensor:
        """Volume of the ground truth."""
        return self.voxel_volume * self.sums["true"]

    @property
    def low(self) -> torch.Tensor:
        """Volume with `p > 0.95`."""
        return self.voxel_volume * self.sums["certain"]

    @property
    def high(self) -> torch.Tensor:
        """Volume with `p > 0.05`."""
        return self.voxel_volume * self.sums["possible"]

    @property
    def segmented(self) -> torch.Tensor:
        """Volume where a class of the structure is the most probable one; of sigmoids, where
        `p > 0.5`.
        """
        return self.voxel_volume * self.sums["predicted"]

    @property
    def expected_dsc(self) -> torch.Tensor:
        """Expected DSC; 0 if the structure is predicted nowhere, NaN if its probability is 0
        everywhere too.
        """
        return expected_dice(self.sums)

    @property
    def dsc(self) -> torch.Tensor:
        """DSC; NaN for a structure in neither."""
        return 2 * self.sums["correct"] / (self.sums["predicted"] + self.sums["true"])

    @property
    def confidence(self) -> torch.Tensor:
        """Mean probability where the structure is predicted; NaN where it is nowhere."""
        return self.sums["overlap"] / self.sums["predicted"]

    @property
    def accuracy(self) -> torch.Tensor:
        """Share of the voxels that are predicted as the structure and are of it."""
        return self.sums["correct"] / self.sums["predicted"]


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
        >>> round(measures.expected.item(), 4), measures.true.item()  # expected: half of 2.2
        (1.1, 1.0)
        >>> measures.expected_dsc  # 2 * (0.9 + 0.99) / (2 + 2.2)
        tensor([[0.9000]], dtype=torch.float64)
    """
    check_number("voxel_volume", voxel_volume, 0)
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    channels = y_pred.shape[1]
    sigmoid = sigmoid or channels == 1
    classes = [*check_structures(structures, sigmoid, channels).values()]
    if sigmoid:  # class 1 of each channel
        sums = _sums(split_channels(y_pred), split_channels(y), [[1]], ignore_index)
        chosen = [channel for (channel,) in classes]
        sums = {name: total.view(-1, channels)[:, chosen] for name, total in sums.items()}
    else:
        sums = _sums(y_pred, y, classes, ignore_index)
    return StructureMeasures(sums, float(voxel_volume))


def _sums(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    structures: Sequence[Sequence[int]],
    ignore_index: int | None,
) -> dict[str, torch.Tensor]:
    """Return what `StructureMeasures` holds of structures, given by their classes."""
    shape = len(y_pred), len(structures)
    names = (*TERMS, "true", "correct")
    sums = {name: y_pred.new_zeros(shape, dtype=torch.float64) for name in names}
    for voxels in read_voxels(y_pred, y, ignore_index=ignore_index):
        for number, classes in enumerate(structures):
            p, is_predicted, is_true = _structure(voxels, classes)
            found = structure_sums(p, is_predicted)
            found |= {"true": is_true.sum(), "correct": (is_true & is_predicted).sum()}
            for name, value in found.items():
                sums[name][voxels.case, number] += value
    return sums


def _structure(
    voxels: Voxels, classes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the probability of a structure at some voxels, and where it is predicted and true."""
    is_in = torch.zeros(len(voxels.p), dtype=torch.bool, device=voxels.p.device)
    is_in[classes] = True
    return voxels.p[classes].sum(0), is_in[voxels.predicted], is_in[voxels.label]


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

    names = ("expected", "true", "low", "high", "segmented")

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
