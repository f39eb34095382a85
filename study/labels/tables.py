"""What a few labels of another scanner gave, as Markdown, from `study/results/labels`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd

from study.tables.networks import markdown

RESULTS = Path(__file__).resolve().parents[2] / "study" / "results" / "labels"
SETS = {
    "lge": "LGE",
    "bssfp": "bSSFP",
    "vendor_b": "Philips",
    "home": "ACDC and Siemens",
    "hippocampus": "hippocampus",
}
NETWORKS = {"ensemble": "CE, ensemble", "ce": "CE", "nacl": "NACL"}
CHOICES = {"bias": "T and bias", "temperature": "T", "none": "none"}
ADVISED, NONE = "advised", "none"
HARM = 0.005  # of the DSC
AT_HOME = 0.003


@functools.cache
def draws(network: str, name: str, patients: int) -> dict[str, pd.DataFrame]:
    """Return the measures of each draw by calibrator, and of the advised one."""
    table = pd.read_csv(RESULTS / "draws.csv.gz")
    is_of = (table["network"] == network) & (table["set"] == name)
    rows = table[is_of & (table["patients"] == patients)].dropna(axis=1, how="all")
    found = {kind: part.set_index("draw") for kind, part in rows.groupby("calibrator")}
    advised = rows[rows["calibrator"] == rows["advised"]].set_index("draw").sort_index()
    return {**found, ADVISED: advised}


def change(network: str, name: str, patients: int, kind: str, measure: str) -> pd.Series:
    """Return a measure of each draw less that of none."""
    found = draws(network, name, patients)
    return found[kind][measure] - found[NONE][measure]


def change_of_nll(network: str, name: str, patients: int, kind: str, where: str = "") -> float:
    """Return the mean NLL of draws over that of none, less 1."""
    found = draws(network, name, patients)
    column = f"nll{where}"
    return float((found[kind][column] / found[NONE][column]).mean() - 1)


def signed(value: float) -> str:
    """Return a change with three decimals; 0 has no minus."""
    return f"{round(value, 3) + 0.0:+.3f}"


def numbers_of(name: str) -> tuple[int, ...]:
    """Return the numbers of patients that were drawn of a set."""
    return (5, 8) if name in ("home", "hippocampus") else (3, 5, 8, 12)


def draws_table(network: str, *numbers: str) -> str:
    """Return what the advice gave, beside T and bias in each draw, as Markdown; of some numbers of
    patients, or of all.
    """
    rows = {}
    for name, title in SETS.items():
        for patients in numbers_of(name):
            if numbers and str(patients) not in numbers:
                continue
            found = draws(network, name, patients)
            counts = found[NONE]["advised"].value_counts()
            dsc = change(network, name, patients, ADVISED, "dsc")
            always = change(network, name, patients, "bias", "dsc")
            near = change_of_nll(network, name, patients, ADVISED, "_near")
            rows[f"{title}, {patients}"] = [
                ", ".join(f"{counts[key]} {CHOICES[key]}" for key in CHOICES if key in counts),
                f"{found[NONE]['dsc'].mean():.3f}",
                f"{signed(dsc.mean())} ({(dsc < -HARM).mean():.0%})",
                f"{signed(always.mean())} ({(always < -HARM).mean():.0%})",
                signed(change(network, name, patients, "vector", "dsc").mean()),
                f"{change_of_nll(network, name, patients, ADVISED):+.1%}",
                f"{near:+.1%}",
                f"{found[NONE]['bias'].mean():+.3f} -> {found[ADVISED]['bias'].mean():+.3f}",
            ]
    columns = [
        "advised, of 50 draws",
        "DSC, none",
        "advised",
        "T and bias in each draw",
        "vector in each draw",
        "NLL, all",
        "NLL, near",
        "expected - true DSC",
    ]
    return markdown(rows, columns) + "\n"


def structures_table(network: str, name: str) -> str:
    """Return what the advice gave for each structure of a set, as Markdown."""
    rows = {}
    for patients in numbers_of(name):
        found = draws(network, name, patients)
        names = [key.removeprefix("dsc_") for key in found[NONE] if key.startswith("dsc_")]
        cells = []
        for structure in names:
            dsc = change(network, name, patients, ADVISED, f"dsc_{structure}").mean()
            ratios = (found[kind][f"volume_{structure}"].mean() for kind in (NONE, ADVISED))
            cells += [f"{dsc:+.3f}", " -> ".join(f"{each:.2f}" for each in ratios)]
        rows[f"{patients} patients"] = cells
    columns = [f"{each}: {what}" for each in names for what in ("DSC", "volume")]
    return markdown(rows, columns) + "\n"


def limits_table() -> str:
    """Return for how many tested patients the limits of twelve drawn ones hold, as Markdown."""
    rows = {}
    for network, title in NETWORKS.items():
        for name in ("lge", "bssfp", "vendor_b"):
            if network == "ce":
                continue
            found = draws(network, name, 12)[ADVISED]
            tested = int(found["tested"].sum())
            cells = [f"{found['held'].sum() / tested:.0%}", f"{found['width'].mean():.2f}"]
            for structure in ("RV", "MYO", "LV"):
                held = found[f"held_{structure}"].sum() / tested
                cells.append(f"{held:.0%} (±{found[f'width_{structure}'].mean() / 2:.0%})")
            rows[f"{title}, {SETS[name]}"] = [f"{len(found)} x {tested // len(found)}", *cells]
    volumes = [f"volume {structure}" for structure in ("RV", "MYO", "LV")]
    return markdown(rows, ["tested", "all DSC", "their width", *volumes]) + "\n"


def views_table() -> str:
    """Return what eight views change without labels, as Markdown."""
    table = pd.read_csv(RESULTS / "views.csv")
    rows = {}
    for network in ("ce", "ensemble"):
        cells = []
        for name in SETS:
            scans = table[(table["network"] == network) & (table["set"] == name)]
            if scans.empty:
                continue
            one, eight = (scans[scans["views"] == views].set_index("patient") for views in (1, 8))
            difference = eight["dsc"] - one["dsc"]
            error = difference.std() / np.sqrt(len(difference))
            nll = eight["nll"].mean() / one["nll"].mean() - 1
            cells.append(f"{difference.mean():+.3f} ± {error:.3f}, {nll:+.0%}")
        rows[NETWORKS[network]] = cells
    measured = [title for name, title in SETS.items() if name in set(table["set"])]
    return markdown(rows, measured) + "\n"


def class_conditional_table() -> str:
    """Return what fiducio's class-conditional calibrators gave on the same draws, as Markdown."""
    table = pd.read_csv(RESULTS / "class_conditional.csv.gz")
    rows = {}
    for (name, patients), part in table.groupby(["set", "patients"], sort=False):
        found = draws("ensemble", name, patients)
        kinds = {key: rows.set_index("draw") for key, rows in part.groupby("calibrator")}
        kinds = {"T": found["temperature"], "T and bias": found["bias"], **kinds}
        cells = []
        for kind in kinds.values():
            dsc = (kind["dsc"] - found[NONE]["dsc"]).mean()
            nll = (kind["nll"] / found[NONE]["nll"]).mean() - 1
            cells.append(f"{dsc:+.3f}, {nll:+.1%}")
        rows[f"{SETS[name]}, {patients}"] = cells
    return markdown(rows, [*kinds]) + "\n"
