"""Sensitivity, specificity, positive predictive value and DSC over thresholds of the probability of a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from calib_components.metrics.volumes import read_structures
from calib_components.metrics.voxels import check_tensors

__all__ = ["ThresholdCounts", "ThresholdTable", "threshold_counts"]

THRESHOLDS = torch.arange(1, 100, dtype=torch.float64) / 100


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
        ratios = self.ratios(structure)
        pooled = {name: above.double().sum(0) / below.sum(0) for name, (above, below) in ratios.items()}
        return ThresholdTable(self.thresholds.clone(), **pooled)

    def ratios(self, structure: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return what each case adds to the ratios of a table, for intervals by resampling of cases.

        Args:
            structure: Index of the structure.

        Returns:
            Numerators and denominators of each case, `(B, T)`, by name, such as "sensitivity"; the sum of the former
            over cases divided by that of the latter is the field of this name in `table`. Those of the DSC are the DSC
            and 1; 0 and 0 of a case without the structure.
        """
        true_positive, predicted = self.true_positive[:, structure], self.predicted[:, structure]
        true, voxels = (field[:, structure, None].expand_as(predicted) for field in (self.true, self.voxels))
        has_structure = true > 0
        return {
            "sensitivity": (true_positive, true),
            "specificity": (voxels - true - (predicted - true_positive), voxels - true),
            "ppv": (true_positive, predicted),
            "dsc": (self.dsc[:, structure].where(has_structure, 0), has_structure.long()),
        }

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
    structures: Mapping[str, Sequence[int]],
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
