"""Tables of the heart's losses, from the rows of `study.heart.measure`."""

from __future__ import annotations

import functools
from itertools import product

import pandas as pd

from calib_components.metrics.intervals import Estimate
from study.compare.statistics import paired_difference
from study.tables.networks import Networks, corrected, markdown, p_text, text
from study.tables.shipped import HEART, RESULTS

LOSSES = {"nacl": "NACL", "cross_entropy": "CE", "ce_dice": "CE + Dice"}
PAIRS = (("nacl", "cross_entropy"), ("nacl", "ce_dice"), ("cross_entropy", "ce_dice"))
CALIBRATORS = ("", "T")
CHOSEN = {  # what is shipped, of which network and calibrator
    "NACL": ("nacl_seed1", "T", "none"),
    "cross-entropy": ("cross_entropy_seed0", "", "`--ckpt_dir models/cross_entropy`"),
    "three of cross-entropy": (
        "cross_entropy_ensemble",
        "T",
        "`--load_path models/cross_entropy/ensemble.pt`",
    ),
}
NETWORKS = {  # by title, of which table and calibrator
    "NACL": ("nacl_seed1", "T"),
    "CE": ("cross_entropy_seed0", ""),
    "NACL, ensemble": ("nacl_ensemble", "T"),
    "CE, ensemble": ("cross_entropy_ensemble", "T"),
}
VIEWS = {
    "acdc_shifted": "ACDC, shifted",
    "vendor_a_192": "Siemens, 192",
    "vendor_a_300": "Siemens, 300",
    "vendor_b_192": "Philips, 192",
    "vendor_b_300": "Philips, 300",
}
HEART_AND_HIPPOCAMPUS = HEART | {"hippocampus": "hippocampus"}
DIGITS = {"nll_all": 4}
SHOWN = ("NLL, validation", "DSC, validation")


@functools.cache
def read_heart() -> pd.DataFrame:
    """Return the rows of all networks of the heart, see `study.heart.measure`, with the mean DSC of
    a scan, and by how much the expected one is higher.
    """
    texts = ["network", "set", "case", "patient", "calibrator"]
    types = dict.fromkeys(texts, str)
    table = pd.read_csv(
        RESULTS / "acdc" / "heart.csv.gz", dtype=types, keep_default_na=False, na_values=[""]
    )
    dsc, expected = (
        table.filter(regex=f"^{name}_").mean(axis=1) for name in ("dsc", "expected_dsc")
    )
    calibrator = table["calibrator"].fillna("")
    return table.assign(calibrator=calibrator, dsc=dsc, bias=expected - dsc)


def rows_of(network: str, calibrator: str) -> pd.DataFrame:
    """Return the rows of a network and a calibrator."""
    rows = read_heart()
    return rows[(rows["network"] == network) & (rows["calibrator"] == calibrator)]


@functools.cache
def hippocampus_rows() -> pd.DataFrame:
    """Return the NLL of the calibrators of networks of the hippocampus."""
    return pd.read_csv(RESULTS / "hippocampus" / "calibrators.csv.gz").assign(set="hippocampus")


def heart_scans(network: str, calibrator: str) -> dict[str, pd.DataFrame]:
    """Return the test scans of a network of the heart, by the title of their set."""
    rows = rows_of(network, calibrator).dropna(axis=1, how="all")  # measures of ensembles
    return {title: rows[rows["set"] == name] for name, title in HEART.items()}


@functools.cache
def read_rows() -> pd.DataFrame:
    """Return the rows of single networks, with their loss and seed."""
    rows = read_heart()
    names = rows["network"].str.extract("^(?P<loss>.+)_seed(?P<seed>[0-9]+)$")
    return rows.join(names).dropna(subset="seed").astype({"seed": int})


@functools.cache
def networks_on(name: str) -> Networks:
    """Return the networks on a test set, of a loss and a temperature."""
    rows = read_rows()
    return Networks(rows[rows["set"] == name].set_index(["loss", "calibrator"]))


def means_table(measure: str) -> str:
    """Return the means of each loss and temperature on each set."""
    rows = {}
    for loss, calibrator in product(LOSSES, CALIBRATORS):
        title = f"{LOSSES[loss]}{f' + {calibrator}' if calibrator else ''}"
        found = (networks_on(name).mean((loss, calibrator), measure) for name in HEART)
        rows[title] = [text(each, digits=3) for each in found]
    return markdown(rows, [*HEART.values()])


def differences(measure: str, calibrator: str) -> dict[str, Estimate]:
    """Return the differences of the losses on all sets, corrected for their family."""
    found = {}
    for (one, other), name in product(PAIRS, HEART):
        pair = ((one, calibrator), (other, calibrator))
        title = f"{LOSSES[one]} - {LOSSES[other]}, {HEART[name]}"
        found[title] = networks_on(name).difference(pair, measure)
    return corrected(found)


def differences_table(measure: str, calibrator: str = "") -> str:
    """Return the differences with their p-values, in bold below 0.05."""
    rows: dict[str, list[str]] = {}
    for title, found in differences(measure, calibrator).items():
        cell = f"{text(found, '+', 3)} p {p_text(found.p_value)}"
        is_shown = found.p_value < 0.05
        rows.setdefault(title.partition(",")[0], []).append(f"**{cell}**" if is_shown else cell)
    return markdown(rows, [*HEART.values()])


def difference_of(one: str, other: str, name: str, measure: str) -> Estimate:
    """Return the difference of two losses, such as `nacl+T`, on a set; it is not corrected."""
    pair = one.partition("+")[::2], other.partition("+")[::2]
    return networks_on(name).difference(pair, measure)


def calibrators_table() -> str:
    """Return by how many percent a calibrator changes the NLL over all voxels of one temperature,
    of each loss and set.
    """
    nll = pd.concat([read_rows(), hippocampus_rows()]).pivot(
        index=["loss", "set", "patient", "case"], columns=["calibrator", "seed"], values="nll_all"
    )
    rows = {}
    for kind, loss in product(("class T", "local T"), LOSSES):
        cells = []
        for name in HEART_AND_HIPPOCAMPUS:
            if (loss, name) not in nll.index:
                cells.append("-")
                continue
            found = nll.loc[(loss, name)].dropna(axis=1, how="all")
            values = found[kind]
            reference = found["T"][values.columns]
            patients = [*found.index.get_level_values("patient")]
            change = paired_difference(values.T, reference.T, patients)
            share = 100 / reference.to_numpy().mean()
            cells.append(text([share * each for each in change[:3]], "+", 1))
        rows[f"{kind}, {LOSSES[loss]}"] = cells
    return markdown(rows, [*HEART_AND_HIPPOCAMPUS.values()])


def networks_table(measure: str, sets: str = "") -> str:
    """Return a measure of single networks and ensembles, as shipped or with T, on the five sets, or
    on those of other fields of view (`views`).
    """
    columns = VIEWS if sets else HEART
    rows = {}
    for title, (network, calibrator) in NETWORKS.items():
        kind = "T" if sets else calibrator  # labels are the same
        means = rows_of(network, kind).groupby("set")[measure].mean()
        rows[title] = [f"{means[name]:.{DIGITS.get(measure, 3)}f}" for name in columns]
    return markdown(rows, [*columns.values()])


def shipping_table() -> str:
    """Return NLL and DSC of each network on the even validation patients, who choose what is
    shipped.
    """
    networks = networks_on("validation")
    rows = {}
    for loss, calibrator in product(LOSSES, CALIBRATORS):
        setting, title = (loss, calibrator), f"{LOSSES[loss]} {calibrator}".strip()
        seeds = sorted(networks.rows.loc[setting]["seed"].unique())
        scores = [networks.values(setting, name).mean(1) for name in ("nll_all", "dsc")]
        for seed, nll, dsc in zip(seeds, *scores, strict=True):
            rows[f"{title}, seed {seed}"] = [f"{nll:.4f}", f"{dsc:.3f}"]
    return markdown(rows, ["NLL, all voxels", "DSC"])


def chosen_table() -> str:
    """Return NLL and DSC of what is shipped, on the even validation patients."""
    rows = {}
    for title, (network, calibrator, option) in CHOSEN.items():
        scans = rows_of(network, calibrator)
        of_patients = scans[scans["set"] == "validation"].groupby("patient")
        means = of_patients[["nll_all", "dsc"]].mean().mean()
        cells = [option, "a temperature" if calibrator == "T" else "none"]
        rows[title] = [*cells, f"{means['nll_all']:.4f}", f"{means['dsc']:.3f}"]
    return markdown(rows, ["option of inference", "calibrator in the weights", *SHOWN])
