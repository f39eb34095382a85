"""Measure the networks of the sixth round against each of several raters and against all, as
trained and with a temperature that was fitted to all raters of other scans.

    python -m study.raters.measure RETINA BRAINS NETWORKS OUT

RETINA has `drive` and `chase`, BRAINS the raters of the newborn brains, and NETWORKS what
`study.raters.train` wrote. OUT gets `retina.csv` and `brains.csv.gz`: a row for each network, scan,
temperature and rater.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from calib_components.metrics.case import measure_case
from calib_components.metrics.raters import RatedCase
from calib_components.posthoc import TemperatureScaling
from calib_tools.predictions.cases import read_case, to_logits
from calib_tools.predictions.classes import IGNORED, classes_of
from calib_tools.predictions.formats import Stored
from calib_tools.predictions.pairing import find_pairs
from calib_workflows.parts import measure_raters
from study.raters.train import FOLDS

COLUMNS = ("dsc", "raters_dsc", "hd95", "nll_all", "nll_near", "ece_all", "ece_predicted")
Cases = Mapping[str, RatedCase]


def read_cases(predictions: Path, raters: Sequence[Path], structure: str) -> dict[str, RatedCase]:
    """Read the predictions of a network, and the labels of each rater, 255 is left out."""
    pairs = find_pairs({"": predictions}, {folder.name: folder for folder in raters})
    classes = classes_of([pair.prediction for pair in pairs], [f"{structure}=1"], False, 255)
    cases = {pair.name: read_case(pair, classes) for pair in pairs}
    return {name: case for name, case in cases.items() if isinstance(case, RatedCase)}


def fit_temperature(cases: Cases) -> TemperatureScaling:
    """Return the temperature of all voxels and all raters."""
    first, *_ = cases.values()
    fit = TemperatureScaling("all", IGNORED, first.sigmoid)
    for name, case in cases.items():
        for label in case.labels():
            fit.update(_logits(case)[None], label[None], name)
    fit.compute()
    return fit


def scaled(case: RatedCase, fit: TemperatureScaling) -> RatedCase:
    """Return a case with its probabilities at a temperature."""
    logits = fit(_logits(case))
    p = logits.sigmoid() if case.sigmoid else logits.softmax(0)
    values: dict[str, Any] = {"probabilities": p, "lowest": 0.0, "highest": 1.0}
    return RatedCase.of({name: replace(each, **values) for name, each in case.raters.items()})


def _logits(case: RatedCase) -> torch.Tensor:
    assert case.probabilities is not None
    stored = Stored(case.probabilities.numpy(), case.lowest, case.highest)
    return to_logits(stored, case.sigmoid)


def measure(case: RatedCase, structure: str) -> Iterator[dict[str, Any]]:
    """Give a row for each rater and one for all."""
    of_raters, everyone = measure_raters(case)
    rows = {**of_raters, "all": {**measure_case(case), **everyone}}
    for rater, row in rows.items():
        one = case if rater == "all" else case.raters[rater]
        bins = one.region_measures["predicted"].bins["top_label"]
        sums = (bins.count.sum(), bins.confidence_sum.sum(), bins.num_correct.sum())
        names = ("predicted_voxels", "confidence", "correct")
        shown = {name: row.get(f"{name}_{structure}", row.get(name)) for name in COLUMNS}
        yield {"rater": rater, **shown, **dict(zip(names, map(float, sums), strict=True))}


def measure_network(
    cases: Cases, others_of: Callable[[str], Cases], structure: str
) -> Iterator[dict[str, Any]]:
    """Give the rows of a network, as trained and with T.

    Args:
        cases: The scans that are measured.
        others_of: Returns the scans that fit the temperature of one.
        structure: Name of the structure.
    """
    fits: dict[tuple[str, ...], TemperatureScaling] = {}
    for name, case in cases.items():
        others = others_of(name)
        fit = fits.setdefault(tuple(others), fits.get(tuple(others)) or fit_temperature(others))
        for temperature, probabilities in (
            (1.0, case),
            (float(fit.temperature), scaled(case, fit)),
        ):
            for row in measure(probabilities, structure):
                yield {"scan": name, "temperature": temperature, **row}


def measure_retina(retina: Path) -> Iterator[dict[str, Any]]:
    """Give the rows of the strangers' networks: odd images of DRIVE fit T."""
    for network in ("wnet", "m2unet"):
        for name in ("drive", "chase"):
            folder = retina / name
            if not (folder / "predictions" / network).is_dir():
                continue
            raters = [folder / "rater1", folder / "rater2"]
            cases = read_cases(folder / "predictions" / network, raters, "vessel")
            if name == "drive":
                odd = dict([*cases.items()][::2])
                cases = dict([*cases.items()][1::2])
            for row in measure_network(cases, lambda _, odd=odd: odd, "vessel"):
                yield {"set": name, "network": network, **row}


def measure_brains(brains: Path, networks: Path) -> Iterator[dict[str, Any]]:
    """Give the rows of the networks of newborn brains: the scans of four folds fit T."""
    raters = sorted(brains.glob("rater*"))
    for folder in tqdm(sorted(networks.glob("*_seed*")), desc="brains", disable=None):
        cases = read_cases(folder, raters, "brain")
        fold_of = {name: number % FOLDS for number, name in enumerate(cases)}

        def others_of(name: str, cases: Cases = cases, fold_of: Any = fold_of) -> Cases:
            return {other: case for other, case in cases.items() if fold_of[other] != fold_of[name]}

        target, _, setting = folder.name.partition("_")
        loss, _, seed = setting.rpartition("_seed")
        for row in measure_network(cases, others_of, "brain"):
            yield {"target": target, "loss": loss, "seed": seed, **row}


def main(retina: Path, brains: Path, networks: Path, out: Path) -> None:
    """Write both tables."""
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "retina.csv": measure_retina(retina),
        "brains.csv.gz": measure_brains(brains, networks),
    }
    for name, rows in tables.items():
        table = pd.DataFrame([*rows])
        table.to_csv(out / name, index=False, float_format="%.6g")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
