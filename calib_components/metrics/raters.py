"""Cases that several raters labelled.

A voxel and a rater are one observation. So sums over voxels (counts, sums of confidences, numbers
correct, sums of scores) are means over the raters, and errors and mean scores follow from these
sums. Measures of masks, such as the DSC, are means over the raters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from calib_components.metrics.bins import CalibrationBins
from calib_components.metrics.measures import Case, Values
from calib_components.metrics.measuring import Measured
from calib_components.metrics.selective import RiskCoverage
from calib_components.quality.estimates import PairwiseDice


@dataclass(eq=False)
class RatedCase(Case):
    """A case with the labels of several raters; its `label` is that of most of them.

    Attributes:
        raters: The case with the label of each rater, by name.
    """

    raters: Mapping[str, Case] = field(default_factory=dict)

    @classmethod
    def of(cls, raters: Mapping[str, Case]) -> RatedCase:
        """Return the case of all raters."""
        first, *_ = raters.values()
        values = {each.name: getattr(first, each.name) for each in fields(Case)}
        labels = torch.stack([case.label for case in raters.values()])
        return cls(**{**values, "label": labels.mode(0).values}, raters=raters)

    def labels(self) -> list[torch.Tensor]:
        return [case.label for case in self.raters.values()]

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return _mean([case.call(function, *arguments, **options) for case in self.raters.values()])

    def measure_masks(self, function: Callable[[Case], Values]) -> Values:
        found = [function(case) for case in self.raters.values()]
        return {name: _mean_of_defined([each[name] for each in found]) for name in found[0]}

    def agreement(self) -> PairwiseDice:
        """Return the agreement of the raters with each other, in their order."""
        pairs = PairwiseDice(self.structures)
        masks = torch.stack([case.masks[1][0] for case in self.raters.values()])
        for number, name in enumerate(self.structures):
            pairs.add(name, masks[:, number])
        return pairs


def _mean_of_defined(values: Sequence[float]) -> float:
    return float(np.ma.masked_invalid(values).mean()) if np.isfinite(values).any() else np.nan


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean over raters of what was measured with the label of each."""
    first = values[0]
    if isinstance(first, Measured):
        return _mean_of_region(values)
    if isinstance(first, RiskCoverage):
        return _mean_risk(values)
    if isinstance(first, torch.Tensor):
        return torch.stack([*values]).double().mean(0)
    if isinstance(first, list):
        return [_mean(each) for each in zip(*values, strict=True)]
    contents = [_contents(value) for value in values]
    means = {name: _mean([each[name] for each in contents]) for name in contents[0]}
    return means if isinstance(first, dict) else type(first)(**means)


def _contents(value: Any) -> dict[str, Any]:
    """Return the entries of a dictionary, or the fields of a tuple or dataclass."""
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple):
        return value._asdict()  # type: ignore[attr-defined]
    return {each.name: getattr(value, each.name) for each in fields(value)}


def _mean_of_region(values: Sequence[Measured]) -> Measured:
    """Return the mean bins, and the scores of which each voxel of a rater counts once."""
    counts = torch.stack([each.bins["top_label"].count.sum(-1) for each in values]).double()
    scores = {}
    for name in values[0].scores:
        of_raters = torch.stack([each.scores[name] for each in values])
        sums = torch.where(counts > 0, counts * of_raters, 0.0)
        scores[name] = sums.sum(0) / counts.sum(0)
    bins: dict[str, CalibrationBins] = _mean([each.bins for each in values])
    return Measured(bins, scores)


def _mean_risk(values: Sequence[RiskCoverage]) -> RiskCoverage:
    """Return the mean curve; of all errors of all raters, the share among the least confident."""
    coverage, risk, aurc = (_mean([each[part] for each in values]) for part in range(3))
    errors = torch.stack([each.risk[:, -1] for each in values])
    shares = torch.stack([each.error_share for each in values])
    found = torch.where(errors > 0, errors * shares, 0.0).sum(0)
    return RiskCoverage(coverage, risk, aurc, found / errors.sum(0))
