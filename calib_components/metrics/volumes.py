"""Structures of a case, from their probabilities: volumes, expected DSC, confidence and accuracy.

The probability of a structure is the sum over its classes. With sigmoids, a structure is one
channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calib_components.errors import check_number
from calib_components.metrics.base import CaseMetric
from calib_components.metrics.voxels import Voxels, check_tensors, read_voxels
from calib_components.quality.estimates import (
    TERMS,
    Structures,
    check_structures,
    expected_dice,
    structure_sums,
)


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
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    sums = StructureSums(structures, y_pred, sigmoid, voxel_volume)
    for voxels in read_voxels(y_pred, y, sigmoid=sigmoid, ignore_index=ignore_index):
        sums.add(voxels)
    return sums.measures()


class StructureSums:
    """Sums over the voxels of structures: `add` each chunk of `read_voxels`, then `measures`; see
    `measure_structures` for the arguments.
    """

    def __init__(
        self,
        structures: Structures,
        y_pred: torch.Tensor,
        sigmoid: bool = False,
        voxel_volume: float = 1.0,
    ) -> None:
        check_number("voxel_volume", voxel_volume, 0)
        batch, channels = y_pred.shape[:2]
        check_structures(structures, sigmoid or channels == 1, channels)
        self._classes = [[*classes] for classes in structures.values()]
        shape = batch, len(structures)
        self._sums = {
            name: y_pred.new_zeros(shape, dtype=torch.float64)
            for name in (*TERMS, "true", "correct")
        }
        self._voxel_volume = float(voxel_volume)

    def add(self, voxels: Voxels) -> None:
        """Add a chunk of voxels."""
        channel = voxels.volume.channel
        for number, classes in enumerate(self._classes):
            if channel is None:
                self._add(voxels, number, classes)
            elif classes == [channel]:
                self._add(voxels, number, [1])

    def _add(self, voxels: Voxels, number: int, classes: Sequence[int]) -> None:
        is_in = torch.zeros(len(voxels.p), dtype=torch.bool, device=voxels.p.device)
        is_in[classes] = True
        is_predicted, is_true = is_in[voxels.predicted], is_in[voxels.label]
        found = structure_sums(voxels.p[classes].sum(0), is_predicted)
        found |= {"true": is_true.sum(), "correct": (is_true & is_predicted).sum()}
        for name, value in found.items():
            self._sums[name][voxels.case, number] += value

    def measures(self) -> StructureMeasures:
        """Return the measures of the structures, from all voxels so far."""
        return StructureMeasures(self._sums, self._voxel_volume)


class StructureMetric(CaseMetric):
    """Base of metrics of structures, which have their arguments in common."""

    def __init__(
        self, structures: Structures, ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__()
        check_structures(structures, sigmoid)
        self.structures = structures
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

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in VolumeMetric.names:
            return self.gathered()[self.names.index(name)]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

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
