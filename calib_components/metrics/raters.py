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
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.measures import Case, Values
from calib_components.metrics.segmentation import dice
from calib_components.metrics.selective import RiskCoverage
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
    def measured(self) -> dict[str, dict[str, Any]]:
        return _mean([case.measured for case in self.raters.values()])

    @cached_property
    def smooth_bins(self) -> dict[str, CalibrationBins]:
        return _mean([case.smooth_bins for case in self.raters.values()])

    @cached_property
    def structure_measures(self) -> StructureMeasures:
        return _mean([case.structure_measures for case in self.raters.values()])

    @cached_property
    def risk(self) -> RiskCoverage:
        return _mean_risk([case.risk for case in self.raters.values()])

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


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean over raters of what was measured with the label of each."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack([*values]).double().mean(0)
    contents = [_contents(value) for value in values]
    if "nll" in contents[0]:
        return _mean_of_region(contents)
    means = {name: _mean([each[name] for each in contents]) for name in contents[0]}
    return means if isinstance(first, dict) else type(first)(**means)


def _contents(value: Any) -> dict[str, Any]:
    """Return the entries of a dictionary, or the fields of a tuple or dataclass."""
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple):
        return cast(Any, value)._asdict()
    return {each.name: getattr(value, each.name) for each in fields(value)}


def _mean_of_region(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean bins, and the scores of which each voxel of a rater counts once."""
    counts = torch.stack([each["top_label"].count.sum(-1) for each in values]).double()
    means = {}
    for name, first in values[0].items():
        of_raters = [each[name] for each in values]
        if isinstance(first, CalibrationBins):
            means[name] = _mean(of_raters)
        else:
            sums = torch.where(counts > 0, counts * torch.stack(of_raters), 0.0)
            means[name] = sums.sum(0) / counts.sum(0)
    return means


def _mean_risk(values: Sequence[RiskCoverage]) -> RiskCoverage:
    """Return the mean curve, see `RiskCoverage`, exact where raters ignore the same voxels; of all
    errors, the share among the least confident.
    """
    coverage, risk, aurc = (_mean([each[part] for each in values]) for part in range(3))
    errors = torch.stack([each.risk[:, -1] for each in values])
    shares = torch.stack([each.error_share for each in values])
    found = torch.where(errors > 0, errors * shares, 0.0).sum(0)
    return RiskCoverage(coverage, risk, aurc, found / errors.sum(0))
