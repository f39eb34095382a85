"""Sensitivity, specificity, positive predictive value and DSC over thresholds of the probability of a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calib_components.metrics.case_metric import plain_tensor
from calib_components.metrics.structures import StructureMetric, check_structures, read_structures
from calib_components.metrics.threads import one_thread
from calib_components.metrics.voxels import check_tensors

__all__ = ["ThresholdCounts", "ThresholdMetric", "ThresholdTable", "threshold_counts"]

THRESHOLDS = torch.arange(1, 100, dtype=torch.float64) / 100
USUAL = 0.5


@dataclass(frozen=True, eq=False)
class ThresholdTable:
    """What each threshold of the probability of a structure means, see `ThresholdCounts.table`.

    Shape:
        - All fields: `(T,)`, with T thresholds.

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
        >>> [round(values[49].item(), 4) for values in vars(table).values()]  # of p > 0.5
        [0.5, 0.5, 0.5, 0.5, 0.5]
        >>> [round(values[19].item(), 4) for values in vars(table).values()]  # of p > 0.2: three voxels, two correct
        [0.2, 1.0, 0.5, 0.6667, 0.8]
    """

    thresholds: torch.Tensor
    true_positive: torch.Tensor
    predicted: torch.Tensor
    true: torch.Tensor
    voxels: torch.Tensor

    def __post_init__(self) -> None:
        for name, field in vars(self).items():
            plain_tensor(field, name)
        expected = (*self.true.shape, *self.thresholds.shape)
        if self.thresholds.ndim != 1 or self.true.ndim != 2 or self.voxels.shape != self.true.shape:
            raise ValueError(
                "thresholds, true and voxels: expected shapes (T,), (B, structures) and (B, structures), got "
                f"{tuple(self.thresholds.shape)}, {tuple(self.true.shape)} and {tuple(self.voxels.shape)}"
            )
        for name, field in (("true_positive", self.true_positive), ("predicted", self.predicted)):
            if field.shape != expected:
                raise ValueError(f"{name}: expected shape (B, structures, T), {expected}, got {tuple(field.shape)}")

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

        Shape:
            - output: `(B, T)` each.

        Args:
            structure: Index of the structure.

        Returns:
            Numerators and denominators of each case by name, such as "sensitivity"; the sum of the former over cases
            divided by that of the latter is the field of this name in `table`. Those of the DSC are the DSC and 1; 0
            and 0 of a case without the structure.
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
        distance = (self.thresholds - USUAL).abs().masked_fill(mean < mean.amax(-1, keepdim=True), torch.inf)
        return self.thresholds[distance.argmin(-1)].masked_fill(mean.amax(-1) < 0, torch.nan)

    def to_dict(self) -> dict[str, list]:
        """Return the fields as nested lists, which JSON stores exactly."""
        return {name: field.tolist() for name, field in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, list]) -> ThresholdCounts:
        """Inverse of `to_dict`.

        Args:
            fields: Nested lists by name of the field.

        Raises:
            ValueError: A field is missing or does not hold numbers, the shapes do not match, or counts are impossible.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"fields: expected a dictionary of nested lists, got {type(fields).__name__}")
        names = list(cls.__dataclass_fields__)
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(f"fields: expected {', '.join(names)}, got none of the name {', '.join(missing)}")
        counts = cls(
            _tensor("thresholds", fields["thresholds"], torch.float64),
            *(_tensor(name, fields[name], torch.int64) for name in names[1:]),
        )
        true, voxels = counts.true[..., None], counts.voxels[..., None]
        negatives = counts.predicted - counts.true_positive
        if not (
            ((counts.true_positive >= 0) & (counts.true_positive <= true)).all()
            and ((negatives >= 0) & (negatives <= voxels - true)).all()
        ):
            raise ValueError("true_positive, predicted: expected no more voxels than there are, got others")
        return counts


def _tensor(name: str, values: Any, dtype: torch.dtype) -> torch.Tensor:
    try:
        tensor = torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected nested lists of numbers, got {error}") from None
    if tensor.numel() and tensor.is_floating_point() != dtype.is_floating_point:
        kind = "numbers with a decimal point" if dtype.is_floating_point else "whole numbers"
        raise ValueError(f"{name}: expected {kind}, got others")
    return torch.tensor(values, dtype=dtype)


@one_thread()
def threshold_counts(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    structures: Mapping[str, Sequence[int]],
    ignore_index: int | None = None,
    sigmoid: bool = False,
) -> ThresholdCounts:
    """Count the voxels of each structure with a probability above 0.01, 0.02, ... 0.99.

    The probability of a structure is the sum over its classes. It is compared in the type of `y_pred`, as `p > 0.3`
    compares in PyTorch and NumPy: a float32 probability of 0.3, which is slightly more, is not above 0.3.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.
        - output: counts of B cases.

    Args:
        y_pred: Probabilities of any floating-point type.
        y: Ground truth, of any type that holds whole numbers.
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of each.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

    Returns:
        Counts of each case and structure, on the device of `y_pred`; see `ThresholdCounts` for an example.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.
    """
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    structures = check_structures(structures, sigmoid, y_pred.shape[1])
    thresholds = THRESHOLDS.to(y_pred.device, copy=True)
    edges = thresholds.to(y_pred.dtype).double()
    shape = len(y_pred), len(structures)
    true, voxels = torch.zeros(2, *shape, dtype=torch.int64, device=y_pred.device)
    # Number of voxels above exactly so many thresholds; those above none are most of an image, and not needed.
    above, true_above = torch.zeros(2, *shape, len(edges) + 1, dtype=torch.int64, device=y_pred.device)
    for part in read_structures(y_pred, y, structures, ignore_index, sigmoid):
        at, p = (part.case, part.structure), part.rounded
        true[at] += part.true.sum()
        voxels[at] += len(p)
        index = (p > edges[0]).nonzero().squeeze(1)
        number = torch.bucketize(p[index], edges)
        above[at] += torch.bincount(number, minlength=len(edges) + 1)
        true_above[at] += torch.bincount(number[part.true[index]], minlength=len(edges) + 1)
    true_positive, predicted = (count[..., 1:].flip(-1).cumsum(-1).flip(-1) for count in (true_above, above))
    return ThresholdCounts(thresholds, true_positive, predicted, true, voxels)


class ThresholdMetric(StructureMetric):
    """Numbers of voxels above the thresholds 0.01, 0.02, ... 0.99 of each case and structure, see `threshold_counts`.

    `counts` holds them; `counts.table(i)` is the table of a structure and `counts.best()` the threshold of the highest
    mean DSC. `aggregate()` is the mean DSC of the threshold 0.5; `aggregate("mean_batch")` is that of each structure
    and `aggregate("none")` has all values, `(cases, structures)`.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.

    Args:
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of each.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `threshold_counts`.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import ThresholdMetric
        >>> metric = ThresholdMetric({"tumour": [1]})
        >>> _ = metric(torch.tensor([[[0.9, 0.7, 0.2], [0.1, 0.3, 0.8]]]), torch.tensor([[[0, 1, 1]]]))
        >>> metric.counts.best()  # 0.29, the largest below 0.3, separates the classes
        tensor([0.2900], dtype=torch.float64)
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        counts = threshold_counts(y_pred, y, self.structures, self.ignore_index, self.sigmoid)
        return [counts.true_positive, counts.predicted, counts.true, counts.voxels]

    @property
    def counts(self) -> ThresholdCounts:
        """Counts of all cases."""
        true_positive, *others = self.gathered()
        return ThresholdCounts(THRESHOLDS.to(true_positive.device, copy=True), true_positive, *others)

    def case_values(self) -> torch.Tensor:
        return self.counts.dsc[..., THRESHOLDS.tolist().index(USUAL)]
