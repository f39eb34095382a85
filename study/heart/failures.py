"""Which estimate finds the scans that a network of the heart segments badly? As Zenk et al.
(Medical Image Analysis 2025) ask it, of single networks and of ensembles, on all sets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import product

import pandas as pd

from calib_components.quality.ranking import Ranking, rank_scans
from study.heart.measure import STRUCTURES
from study.heart.tables import NETWORKS, heart_scans
from study.tables.networks import markdown, text
from study.tables.shipped import HEART

SHIPPED = {  # titles, and whose estimates
    "expected DSC, `model.pt`": ("NACL", "expected DSC"),
    "expected DSC, `ensemble.pt`": ("CE, ensemble", "expected DSC"),
    "pairwise DSC, `ensemble.pt`": ("CE, ensemble", "pairwise DSC of networks"),
    "predicted volume, `ensemble.pt`": ("CE, ensemble", "predicted volume"),
}


def failures_table() -> str:
    """Return the gap that each estimate closes on each set, as Markdown."""
    rows: dict[str, list[str]] = {}
    for title, name in product(NETWORKS, HEART):
        for estimate, ranking in rankings(title, name).items():
            cell = text(ranking.gap_closed, digits=3)
            rows.setdefault(f"{title}: {estimate}", []).append(cell)
    return markdown(rows, [*HEART.values()])


def shipped_table() -> str:
    """Return how much of the gap estimates of the shipped weights close, as Markdown."""
    rows = {}
    for title, (network, estimate) in SHIPPED.items():
        found = [rankings(network, name)[estimate] for name in HEART]
        rows[title] = [text(each.gap_closed, digits=2) for each in found]
    return markdown(rows, [*HEART.values()])


@functools.cache
def rankings(title: str, name: str) -> dict[str, Ranking]:
    """Return how the estimates of a network order the scans of a set."""
    scans = heart_scans(*NETWORKS[title])[HEART[name]]
    dsc = scan_means(scans, "dsc", [*STRUCTURES])
    estimates = scan_estimates(scans, [*STRUCTURES])
    return {key: rank_scans(each, dsc, scans["patient"]) for key, each in estimates.items()}


def scan_means(scans: pd.DataFrame, measure: str, structures: Sequence[str]) -> pd.Series:
    """Return the means of a measure over the structures of scans; one that is missing counts 0."""
    return scans[[f"{measure}_{name}" for name in structures]].fillna(0).mean(axis=1)


def scan_estimates(scans: pd.DataFrame, structures: Sequence[str]) -> dict[str, pd.Series]:
    """Return estimates of the quality of scans, higher for better, by their title."""
    estimates = {
        "expected DSC": scan_means(scans, "expected_dsc", structures),
        "predicted volume": scan_means(scans, "predicted", structures),
        "mean confidence, predicted voxels": scan_means(scans, "confidence", structures),
        "1 - mean entropy, predicted voxels": 1 - scans["entropy_predicted"],
    }
    agreements = {"pairwise_dsc": "pairwise DSC of networks", "views_dsc": "pairwise DSC of views"}
    for measure, title in agreements.items():
        if f"{measure}_{structures[0]}" in scans:
            estimates[title] = scan_means(scans, measure, structures)
    return estimates
