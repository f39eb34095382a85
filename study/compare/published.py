"""The paper's numbers: Murugesan et al., "Trust Your Neighbours", MICCAI 2023, Tables 1 to 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

PUBLISHED = pd.read_csv(Path(__file__).with_name("published.csv"), index_col=["dataset", "method"])
STRUCTURES = {  # that the paper segments in each data set
    "flare": ["liver", "kidneys", "spleen", "pancreas"],
    "acdc": ["RV", "MYO", "LV"],
    "brats": ["ET", "TC", "WT"],
}


def dataset_of(structures: Sequence[str]) -> str | None:
    """Return the paper's data set with these structures, whatever the images are; None without."""
    return next((name for name, known in STRUCTURES.items() if known == [*structures]), None)
