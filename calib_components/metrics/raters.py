"""Cases that several raters labelled.

A voxel and a rater are one observation. So sums over voxels (counts, sums of confidences, numbers
correct, sums of scores) are means over the raters, and errors and mean scores follow from these
sums. Measures of masks, such as the DSC, are means over the raters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from calib_components.metrics.case import Case, MaskFunction, Values
from calib_components.metrics.region_measures import RegionMeasures
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
    def _measures(self) -> tuple[dict[str, RegionMeasures], StructureMeasures]:
        of_raters = [case.region_measures for case in self.raters.values()]
        regions = {
            name: RegionMeasures(_mean([each[name].sums for each in of_raters]))
            for name in of_raters[0]
        }
        sums = _mean([case.structure_measures.sums for case in self.raters.values()])
        return regions, StructureMeasures(sums, self.voxel_volume)

    def of_masks(self, function: MaskFunction) -> Values:
        found = [function(*case.masks) for case in self.raters.values()]
        return self.by_structure(torch.stack(found).nanmean(0))

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


def _mean(sums: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of what was summed with the label of each rater."""
    return {name: torch.stack([each[name] for each in sums]).mean(0) for name in sums[0]}
