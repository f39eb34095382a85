"""How good the segmentation of one scan is likely to be, from its probabilities alone, a slab of
slices at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from calib_components.errors import InputError

# Probabilities above which a voxel may be, and almost certainly is, in a structure
POSSIBLE, CERTAIN = 0.05, 0.95
Structures = Mapping[str, Sequence[int]]


class StructureEstimate(NamedTuple):
    """What the probabilities of one scan say of one structure, whose probability at a voxel is `p`.

    Attributes:
        expected_dsc: See `expected_dice`.
        expected_voxels: Expected volume, `sum p`.
        predicted_voxels: Number of voxels predicted as the structure.
        uncertain_share: Of the voxels with `p > 0.05`, the share with `p <= 0.95`; NaN without any,
            as the next.
        mean_entropy: Mean entropy of `p` over the voxels with `p > 0.05`, in bits.
    """

    expected_dsc: float
    expected_voxels: float
    predicted_voxels: float
    uncertain_share: float
    mean_entropy: float


class ScanEstimates:
    """Estimates of the structures of one scan: `update` with each slab, then `compute`.

    Args:
        structures: Class indices by name, which may overlap; class 0 is the background. With
            `sigmoid`, a channel each.
        sigmoid: Whether each channel has a sigmoid of its own.

    Examples:
        >>> import torch
        >>> p = torch.tensor([0.01, 0.3, 0.9, 0.99]).view(1, 2, 2)  # of class 1, one slice
        >>> scan = ScanEstimates({"tumour": [1]})
        >>> scan.update(torch.stack([1 - p, p]))
        >>> round(scan.compute()["tumour"].expected_dsc, 4)  # 2 * (0.9 + 0.99) / (2 + 2.2)
        0.9
    """

    def __init__(self, structures: Structures, sigmoid: bool = False) -> None:
        self.structures, self.sigmoid = structures, sigmoid
        self._sums = torch.zeros(6, len(structures), dtype=torch.float64)
        self._variances = [torch.zeros(0)]  # of the slices

    def update(self, probabilities: torch.Tensor) -> None:
        """Add the next D slices of the scan, probabilities `(N, D, *S)`.

        Raise `InputError` if N is too small.
        """
        number, slices = probabilities.shape[:2]
        if (highest := max(max(classes) for classes in self.structures.values())) >= number:
            raise InputError(
                f"probabilities have {number} classes, but the structures need class {highest}."
            )
        values = probabilities.flatten(1)
        # A row is short enough for float32
        totals = probabilities.sum(-1).flatten(1).sum(1, dtype=torch.float64)
        # Elsewhere, no structure is predicted or possible.
        inside = values.amax(0) > POSSIBLE if self.sigmoid else values[0] < 1 - POSSIBLE
        index = inside.nonzero().squeeze(1)
        values = values[:, index]
        variance, masks = torch.zeros_like(values[0]), self.masks(values)
        for column, (classes, is_predicted) in enumerate(
            zip(map(list, self.structures.values()), masks, strict=True)
        ):
            p = values[classes].sum(0).clamp(0, 1)
            possible = p > POSSIBLE
            entropy = torch.special.entr(p) + torch.special.entr(1 - p)
            parts = (p * is_predicted, is_predicted, possible, p > CERTAIN, entropy * possible)
            sums = [totals[classes].sum(), *(part.sum(dtype=torch.float64) for part in parts)]
            self._sums[:, column] += torch.stack(sums).cpu()
            variance += p * (1 - p)
        self._variances.append(
            torch.bincount(index // (inside.numel() // slices), variance, minlength=slices).cpu()
        )

    def masks(self, probabilities: torch.Tensor) -> list[torch.Tensor]:
        """Return where each structure is predicted, `(*S)`, of probabilities `(N, *S)`."""
        structures = map(list, self.structures.values())
        if self.sigmoid:
            return [probabilities[channel] > 0.5 for (channel,) in structures]
        predicted = probabilities.argmax(0)
        return [torch.isin(predicted, predicted.new_tensor(classes)) for classes in structures]

    def compute(self) -> dict[str, StructureEstimate]:
        """Return the estimates of each structure, from all slices so far."""
        expected, overlap, predicted, possible, certain, entropy = self._sums
        shares = (1 - certain / possible, entropy / possible / math.log(2))
        table = torch.stack(
            [expected_dice(overlap, predicted, expected), expected, predicted, *shares], 1
        )
        return {
            name: StructureEstimate(*row)
            for name, row in zip(self.structures, table.tolist(), strict=True)
        }

    @property
    def most_uncertain_slice(self) -> int:
        """Index of the slice with the largest sum of `p (1 - p)` over voxels and structures."""
        return int(torch.cat(self._variances).argmax())


class PairwiseDice:
    """Agreement of several segmentations of one scan, such as those of turned images: `update`,
    then `compute`.

    Source: Zenk et al., "Comparative benchmarking of failure detection methods in medical image
        segmentation", Medical
    Image Analysis 2025.
    """

    def __init__(self, structures: Structures) -> None:
        self.structures = structures
        self._shared = dict.fromkeys(structures, torch.zeros((), dtype=torch.float64))

    def update(self, labels: torch.Tensor) -> None:
        """Add voxels: the class indices `(M, *S)` that M segmentations give them."""
        for name, classes in self.structures.items():
            masks = torch.isin(labels.flatten(1), labels.new_tensor(list(classes)))
            # Mixed precision would round a product
            shared = torch.stack([(masks & own).sum(1) for own in masks])
            self._shared[name] = self._shared[name] + shared.double().cpu()

    def compute(self) -> dict[str, float]:
        """Return the mean DSC over all pairs, for each structure; NaN if it is in none of the
        segmentations.
        """
        found = {}
        for name, shared in self._shared.items():
            dsc = 2 * shared / (shared.diagonal()[:, None] + shared.diagonal())
            found[name] = float(dsc[torch.ones_like(dsc).triu(1) > 0].nanmean())
        return found


def expected_dice(
    overlap: torch.Tensor, predicted: torch.Tensor, expected: torch.Tensor
) -> torch.Tensor:
    """Return `2 sum_A p / (|A| + sum p)`, where `A` are the voxels predicted as a structure of
    probability `p`.

    It is 0 if there are none, and NaN if the probability is 0 everywhere, too.

    Args:
        overlap: `sum_A p`.
        predicted: `|A|`.
        expected: `sum p`.
    """
    return 2 * overlap / (predicted + expected)


def mean_estimate(expected_dsc: Mapping[str, float], always: Collection[str]) -> float:
    """Return the estimate of a scan, the mean over its structures; NaN without any.

    A structure that is not predicted, 0 or NaN, counts as 0 if it is among those that are `always`
    there.
    """
    counted = [
        value if value > 0 else 0.0
        for name, value in expected_dsc.items()
        if value > 0 or name in always
    ]
    return sum(counted) / len(counted) if counted else math.nan
