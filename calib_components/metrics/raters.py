"""Cases that several raters labelled.

A voxel and a rater are one observation. So sums over voxels (counts, sums of confidences, numbers
correct, sums of scores) are means over the raters, and errors and mean scores follow from these
sums. Measures of masks, such as the DSC, are means over the raters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.measures import Case, Values
from calib_components.metrics.measuring import Measured
from calib_components.metrics.segmentation import dice
from calib_components.metrics.volumes import StructureMeasures


@dataclass(eq=False)
class RatedCase(Case):
    """A case with the labels of several raters. Its `label` is that of most of them; of as many,
    the lower class.

    Attributes:
        raters: The case with the label of each rater, by name.
    """

    raters: Mapping[str, Case] = field(default_factory=dict)

    @classmethod
    def of(cls, raters: Mapping[str, Case]) -> RatedCase:
        """Return the case of all raters; one who ignores every voxel has not labelled it."""
        raters = {name: case for name, case in raters.items() if case.counted.any()} or raters
        first, *_ = raters.values()
        values = {each.name: getattr(first, each.name) for each in fields(Case)}
        labels = torch.stack([case.label for case in raters.values()])
        return cls(**{**values, "label": labels.mode(0).values}, raters=raters)

    def labels(self) -> list[torch.Tensor]:
        return [case.label for case in self.raters.values()]

    @cached_property
    def measured(self) -> dict[str, Measured]:
        of_raters = [case.measured for case in self.raters.values()]
        return {name: _mean_of([each[name] for each in of_raters]) for name in of_raters[0]}

    @cached_property
    def structure_measures(self) -> StructureMeasures:
        of_raters = [case.structure_measures for case in self.raters.values()]
        sums = {
            name: torch.stack([each.sums[name] for each in of_raters]).mean(0)
            for name in of_raters[0].sums
        }
        return StructureMeasures(sums, self.voxel_volume)

    def measure_masks(self, function: Callable[[Case], Values]) -> Values:
        found = [function(case) for case in self.raters.values()]
        return {name: _mean_of_defined([each[name] for each in found]) for name in found[0]}

    def agreement(self) -> dict[str, NDArray[np.float64]]:
        """Return the DSC of each pair of raters, of the voxels that both count, `(R, R)` by
        structure; NaN on the diagonal, and where a structure is in neither.
        """
        cases = [*self.raters.values()]
        dsc = np.full((len(self.structures), len(cases), len(cases)), np.nan)
        for i, j in combinations(range(len(cases)), 2):
            both = cases[i].counted & cases[j].counted
            masks = (case.masks[1] & both for case in (cases[i], cases[j]))
            dsc[:, i, j] = dsc[:, j, i] = dice(*masks)[0]
        return dict(zip(self.structures, dsc, strict=True))


def _mean_of_defined(values: Sequence[float]) -> float:
    return float(np.ma.masked_invalid(values).mean()) if np.isfinite(values).any() else np.nan


def _mean_of(of_raters: Sequence[Measured]) -> Measured:
    """Return what was measured of a region with the label of each rater: mean bins, and the scores
    of which each voxel of a rater counts once.
    """
    bins = {
        kind: CalibrationBins(
            *(
                torch.stack([getattr(each.bins[kind], field) for each in of_raters])
                .double()
                .mean(0)
                for field in vars(first)
            )
        )
        for kind, first in of_raters[0].bins.items()
    }
    counts = torch.stack([each.count for each in of_raters])
    scores = {}
    for name in of_raters[0].scores:
        sums = counts * torch.stack([each.scores[name] for each in of_raters])
        scores[name] = sums.where(counts > 0, 0.0).sum(0) / counts.sum(0)
    return Measured(counts.mean(0), bins, scores)
