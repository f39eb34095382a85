"""Which estimate finds the scans that a network of the heart segments badly? As Zenk et al.
(Medical Image Analysis 2025) ask it, of single networks and of ensembles, on all sets.

    python -m study.heart.failures

prints a table for each measure.
"""

from __future__ import annotations

from calib_components.quality.ranking import rank_scans
from calib_components.quality.reference import MIN_BAD
from calib_components.tools.report.statistics import Estimate
from study.heart.measure import STRUCTURES
from study.tables.networks import markdown, text
from study.tables.shipped import HEART, heart_scans, scan_estimates, scan_means

# Of the results, and titles
NETWORKS = {"nacl_seed0": "NACL", "nacl_ensemble": "NACL, ensemble", "cross_entropy_seed0": "CE"}
MEASURES = {  # of a `Ranking`, and the DSC below which a scan is bad
    "AURC": ("aurc", 0.7),
    "gap closed": ("gap_closed", 0.7),
    "ROC, DSC below 0.7": ("roc", 0.7),
    "ROC, DSC below 0.8": ("roc", 0.8),
}


def failures_table(measure: str) -> str:
    """Return a measure of each estimate of the quality of scans, on each set, as Markdown."""
    field, bad = MEASURES[measure]
    rows: dict[str, list[str]] = {}
    for network, title in NETWORKS.items():
        for scans in heart_scans(network).values():
            dsc = scan_means(scans, "dsc", [*STRUCTURES])
            is_shown = field != "roc" or (dsc < bad).sum() >= MIN_BAD
            for estimate, values in scan_estimates(scans, [*STRUCTURES]).items():
                ranking = rank_scans(values, dsc, scans["patient"], bad)
                found = Estimate(*getattr(ranking, field))
                cell = text(found, digits=3) if is_shown else "-"
                rows.setdefault(f"{title}: {estimate}", []).append(cell)
    return markdown(rows, [*HEART.values()])


if __name__ == "__main__":
    for measure in MEASURES:
        print(f"{measure}\n\n{failures_table(measure)}\n")
