"""Voxels sorted into reliability bins, and into sets of regions that they are in."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calib_components.metrics.regions import Region
from calib_components.metrics.sums import bincount
from calib_components.metrics.voxels import Voxels

__all__ = ["ALL", "LANES", "PREDICTED", "Bins", "RegionSets", "bin_index", "sum_by_index"]

ALL, PREDICTED = Region("all"), Region("predicted")
# Voxels are summed in as many lanes as this, one next to the other: most voxels of a volume fall into the same bin, and
# an addition has to wait for the one before it if both are to the same number.
LANES = 4


def bin_index(p: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Bin of each probability, int32, for probabilities in float64."""
    # The edge i / num_bins, whichever way it was rounded, scales to less than i and so falls into the bin below.
    return (p * (num_bins * (1 - 1e-15))).int().clamp_(max=num_bins - 1)


class Bins:
    """Bins of equal width, of the top label or of each class."""

    def __init__(self, y_pred: torch.Tensor, num_bins: int, sigmoid: bool) -> None:
        self.batch, self.channels = y_pred.shape[:2]
        self.device = y_pred.device
        self.num_bins = num_bins
        self.sigmoid = sigmoid
        self.num_classes = 2 if sigmoid else self.channels
        self.rows = {"top_label": 1, "classwise": 1 if sigmoid else self.channels}
        self.shapes = {"top_label": (num_bins,), "classwise": (self.channels, num_bins)}

    def size(self, kind: str) -> int:
        """Number of bins in all rows of a kind."""
        return self.rows[kind] * self.num_bins

    def zeros(self, *shape: int) -> torch.Tensor:
        """Sums of each case."""
        return torch.zeros(self.batch, *shape, dtype=torch.float64, device=self.device)

    def class_masks(self, regions: Sequence[Region]) -> torch.Tensor:
        """Which classes put a voxel into each region, `(regions, N)`, 0 or 1 in float64."""
        masks = torch.zeros(len(regions), self.num_classes, dtype=torch.float64)
        for mask, region in zip(masks, regions, strict=True):
            mask[region.true_classes(self.num_classes)] = 1
        return masks.to(self.device)

    def sort(self, voxels: Voxels, kinds: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Bins and confidences, `(rows, voxels)`, of each kind.

        One row for the top label; classwise, one for each class, or one for the channel of sigmoids. The bins of a row
        follow those of the row before.
        """
        in_bins = {}
        for kind in kinds:
            confidence = voxels.top[0][None] if kind == "top_label" else voxels.p[-self.rows[kind] :]
            first = torch.arange(0, len(confidence) * self.num_bins, self.num_bins, dtype=torch.int32)
            in_bins[kind] = bin_index(confidence, self.num_bins).add_(first[:, None].to(self.device)), confidence
        return in_bins


def sum_by_index(index: torch.Tensor, weights: torch.Tensor | None, size: int) -> torch.Tensor:
    """Sum weights, or 1, by `i` of indices `lane * size + i`, in float64."""
    counts = bincount(index.flatten(), None if weights is None else weights.flatten(), LANES * size)
    return counts.double().view(LANES, size).sum(0)


class RegionSets:
    """Some regions, and the sets of them that a voxel may be in.

    The number of a set is that of the regions that the label decides, plus, for each other question, a power of 2 times
    the number of the former.

    Attributes:
        members: Whether a set has a region, `(regions, sets)`, 0 or 1 in float64.
    """

    def __init__(self, regions: Sequence[Region], bins: Bins) -> None:
        by_label = [region for region in regions if region.has_closed_form]
        columns = [tuple(column) for column in bins.class_masks(by_label).T.tolist()]
        distinct = list(dict.fromkeys(columns))  # background first
        self.of_label = torch.tensor([distinct.index(column) for column in columns], dtype=torch.int32).to(bins.device)
        self.num_of_labels = len(distinct)
        # What else decides: one question for each further region; for the union, whether foreground is predicted.
        asked = {region: PREDICTED if region.kind == "union" else region for region in regions}
        self.questions = list(dict.fromkeys(q for q in asked.values() if q.kind != "all" and not q.has_closed_form))
        number = torch.arange(self.num_of_labels * 2 ** len(self.questions))
        label_decides = dict(zip(by_label, torch.tensor(distinct).T[:, number % self.num_of_labels], strict=True))
        answers = {q: number // self.num_of_labels >> i & 1 for i, q in enumerate(self.questions)}
        zeros = torch.zeros(len(number))
        everywhere = {ALL: zeros + 1}
        self.members = torch.stack(
            [
                torch.maximum(label_decides.get(region, zeros), (everywhere | answers).get(asked[region], zeros))
                for region in regions
            ]
        )
        self.members = self.members.double().to(bins.device)

    def sets(self, voxels: Voxels) -> torch.Tensor:
        """Number of the set that each voxel is in."""
        sets = self.of_label.index_select(0, voxels.label)
        for i, question in enumerate(self.questions):
            sets.add_(voxels.inside(question), alpha=self.num_of_labels * 2**i)
        return sets
