"""Put the files of the draws together: `python -m study.labels.collect WORK`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from study.labels.draws import Draws
from study.labels.tables import RESULTS


def tables_of(folder: Path) -> pd.DataFrame:
    """Return the rows of all files `NETWORK_SET.csv` of a folder."""
    parts = []
    for file in sorted(folder.glob("*.csv")):
        network, _, name = file.stem.partition("_")
        parts.append(pd.read_csv(file).assign(network=network, set=name))
    return pd.concat(parts)


def views_of(folder: Path, plain: Path) -> pd.DataFrame:
    """Return DSC and NLL of each patient in one view and in eight, by the shipped calibrator."""
    rows = []
    for file in sorted(folder.glob("*_views_*.pt")):
        network, _, name = file.stem.partition("_views_")
        single = f"{network}_{name}.pt"
        first = folder / single if (folder / single).exists() else plain / single
        for views, source in ((1, first), (8, file)):
            draws = Draws.read(source)
            scans = pd.DataFrame([draws.measure(scan, draws.before) for scan in draws.scans])
            means = scans.groupby("patient")[["dsc", "nll", "nll_near"]].mean().reset_index()
            rows.append(means.assign(network=network, set=name, views=views))
    return pd.concat(rows)


def main(work: Path) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    options = {"index": False, "float_format": "%.6g"}
    tables_of(work / "out").to_csv(RESULTS / "draws.csv.gz", **options)
    tables_of(work / "cc").to_csv(RESULTS / "class_conditional.csv.gz", **options)
    views_of(work / "views", work).to_csv(RESULTS / "views.csv", **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
