"""Errors of structures whose labels are drawn from the probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from calib_components.metrics.regions import Region
from calib_components.metrics.sorted_voxels import Bins, bin_index
from calib_components.metrics.sums import bincount
from calib_components.metrics.voxels import Voxels

__all__ = ["DrawnLabels"]

UNLIKELY = 1e-3  # probability


class DrawnLabels:
    """Bins of the top label in structures, with labels drawn from the probabilities."""

    def __init__(self, regions: Sequence[Region], bins: Bins, draws: int) -> None:
        self.bins, self.draws = bins, draws
        self.classes = bins.class_masks(regions)
        self.first = torch.arange(0, len(regions) * bins.num_bins, bins.num_bins, device=bins.device)[:, None]
        self.sums = [bins.zeros(draws, len(regions), bins.num_bins) for _ in range(3)]
        self.generator = torch.Generator(bins.device)
        self.last = (-1, 0)
        self.seed = 0

    def add(self, voxels: Voxels) -> None:
        confidence, predicted = voxels.top
        index = bin_index(confidence, self.bins.num_bins)
        # The bins of a case up to here are the seed: other numbers for other cases, but the same ones for this case
        # whichever come before it, since that depends on the number of processes.
        if self.last != (voxels.case, voxels.channel):
            self.last = voxels.case, voxels.channel
            self.seed = voxels.channel
        self.seed = hash((self.seed, int(index.sum())))
        self.generator.manual_seed(self.seed)
        # A number below the probability of the structure puts the voxel there; if the predicted class is one of the
        # structure's, a number below its probability stands for it. Most numbers do what probabilities above 0.5 say,
        # which is summed once; then, in each draw, what differs.
        of_structure = self.classes @ voxels.p
        largest = of_structure.amax(0)
        likely = (largest > UNLIKELY).nonzero().squeeze(1)
        unlikely = largest.where(largest <= UNLIKELY, 0)

        def chances(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Of the structures, and of the predicted class where it is one of theirs, `(structures, voxels)`."""
            inside = of_structure.index_select(1, at)
            correct = confidence[at] * self.classes.index_select(1, predicted[at])
            return inside, torch.minimum(inside, correct)

        def add(draws: Any, at: torch.Tensor, inside: torch.Tensor, correct: torch.Tensor) -> None:
            flat = (index[at] + self.first).flatten()
            for total, weights in zip(self.sums, (inside, inside * confidence[at], correct), strict=True):
                of_draws = total[voxels.case, draws]
                size = of_draws.shape[-2:]
                of_draws += bincount(flat, weights.flatten(), size.numel()).view(size)

        of_likely = chances(likely)
        add(slice(None), likely, *((p > 0.5).double() for p in of_likely))
        low = torch.maximum(*(p.where(p <= 0.5, 0).amax(0) for p in of_likely))
        high = torch.minimum(*(p.where(p > 0.5, 1).amin(0) for p in of_likely))
        u = torch.empty_like(confidence)
        for draw in range(self.draws):  # one after the other, for the working memory
            u.uniform_(generator=self.generator)
            drawn = u[likely]
            differs = likely[((drawn < low) | (drawn >= high)).nonzero().squeeze(1)]
            at = torch.cat([differs, (u < unlikely).nonzero().squeeze(1)])
            add(draw, at, *((u[at] < p).double() - (p > 0.5).double() for p in chances(at)))

    def results(self) -> list[dict[str, list[torch.Tensor]]]:
        count, confidence_sum, num_correct = self.sums
        voxels = count.sum(-1)
        errors = ((confidence_sum - num_correct).abs().sum(-1) / voxels).where(voxels > 0, torch.nan)
        return [{"resampled": [of_structure]} for of_structure in errors.nanmean(1).unbind(1)]
