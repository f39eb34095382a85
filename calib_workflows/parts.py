"""Tables of an evaluation with a row for each of several raters or networks, beside that of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from calib_components.metrics.case import columns, measure_case
from calib_components.metrics.raters import RatedCase

ALL = "all"  # the row of all raters
AVERAGE = "average"  # the row of the mean of all networks
TABLES = {"raters": ("rater", ALL), "members": ("member", AVERAGE)}
RATERS_DSC = "raters_dsc"  # mean DSC of a rater with the others
IN_RANGE = "volume_in_range"  # whether a rater's volume is between those with p > 0.95 and p > 0.05


def measure_raters(case: RatedCase) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the values of each rater, by column, and what the values of all have besides."""
    rows = {name: measure_case(each) for name, each in case.raters.items()}
    everyone = {}
    for structure, dsc in case.agreement().items():
        of_pairs = np.ma.masked_invalid(dsc)
        everyone[f"{RATERS_DSC}_{structure}"] = float(np.ma.filled(of_pairs.mean(), np.nan))
        with_others = of_pairs.mean(1).filled(np.nan).tolist()
        for row, value in zip(rows.values(), with_others, strict=True):
            row[f"{RATERS_DSC}_{structure}"] = value
        if case.probabilities is not None:
            column, number = f"{IN_RANGE}_{structure}", [*case.structures].index(structure)
            for row, each in zip(rows.values(), case.raters.values(), strict=True):
                found = each.structure_measures
                in_range = (found.low <= found.true) & (found.true <= found.high)
                row[column] = float(in_range[0, number])
            everyone[column] = sum(row[column] for row in rows.values()) / len(rows)
    return rows, everyone


def rated_slice(case: RatedCase, image: torch.Tensor | None) -> tuple[float, dict[str, Any]]:
    """Return how much the raters disagree in the slice in which they do most, and maps of it, for
    `calib_workflows.pages.slices.draw_raters`.
    """
    masks = {}
    for name, each in case.raters.items():
        _, true = each.masks
        masks[name] = true[0].any(0)
    share = torch.stack([*masks.values()]).double().mean(0)
    disputed = (share * (1 - share)).flatten(0, -2).sum(0)
    index = int(disputed.argmax())
    probability = None
    if case.probabilities is not None:
        p = case.probabilities[..., index]
        probability = p.amax(0) if case.sigmoid else 1 - p[0]
    return float(disputed[index]), {
        "masks": {name: mask[..., index].clone() for name, mask in masks.items()},
        "probability": None if probability is None else probability.clone(),
        "image": None if image is None else image[..., index].clone(),
    }


def part_tables(
    records: Sequence[Mapping[str, Any]], cases: pd.DataFrame, structures: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Return the tables of raters and members, by name, as far as the records have such parts.

    Args:
        records: What was recorded of each case.
        cases: The values of all raters and of the mean of all networks, a row for each case.
        structures: Names of the structures.

    Returns:
        Means over the cases: a row for each rater or network, and each structure. The values of
        regions and whole cases are the same for all structures.
    """
    tables = {}
    for kind, (column, whole) in TABLES.items():
        parts = [record[kind] for record in records if kind in record]
        if parts:
            values = {**_by_name(parts), whole: cases}
            tables[kind] = pd.DataFrame(
                {column: name, "structure": structure, "scans": len(each)}
                | _row(each, structure, structures)
                for name, each in values.items()
                for structure in structures
            )
    return tables


def _by_name(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, pd.DataFrame]:
    """Return the values of the cases of each rater or network."""
    by_name: dict[str, list[Mapping[str, float]]] = {}
    for part in parts:
        for name, values in part.items():
            by_name.setdefault(name, []).append(values)
    return {name: pd.DataFrame(rows) for name, rows in by_name.items()}


def _row(values: pd.DataFrame, structure: str, structures: Sequence[str]) -> dict[str, float]:
    """Return the means over cases of a structure and of regions, by short names."""
    short_names = {
        name: name if measure.regions else measure.name
        for name, (measure, place) in columns(structures)
        if measure.regions or place == structure
    }
    short_names |= {f"{short}_{structure}": short for short in (RATERS_DSC, IN_RANGE)}
    means = values.mean(numeric_only=True)
    return {short: means[name] for name, short in short_names.items() if name in means}
