"""Measure the networks of the protocol's ninth round.

    python -m study.glioma.measure WORK WEIGHTS

WORK has the prepared cases of `study.glioma.train`, WEIGHTS the networks. The folder
`study/results/glioma` gets `cases.csv.gz`, a row for each network, calibrator, set and patient;
`objects.csv.gz`, a row for each candidate and true part of the test sets; and `draws.csv.gz`, what
T, and T and bias of five patients of the other institution give of its others, of the network that
is shipped. What is there is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.bundle import ConfigParser
from tqdm import trange

from calib_components.errors import writing
from calib_components.metrics.case import measure_case
from calib_components.metrics.objects import find_objects
from calib_components.posthoc import TemperatureScaling, set_calibrator
from calib_workflows.cases import LabelledCase, NetworkCases
from calib_workflows.fit import fit_to_cases, unscaled
from calib_workflows.weights import load_weights
from study.glioma import tables
from study.glioma.train import BUNDLE, LOSSES
from study.labels.draws import Draws
from study.labels.logits import Stored

RESULTS = Path(__file__).resolve().parents[1] / "results" / "glioma"
TUMOUR = "tumour"
SETS = {  # folder of the prepared cases, and split
    "validation": ("home", "validation"),
    "home": ("home", "testing"),
    "other": ("other", "testing"),
}
VIEWS = "T, eight views"
DRAWN, DRAWS = 5, 20  # patients of the other institution, and how often they are drawn
COLUMNS = [
    *(f"{name}_{TUMOUR}" for name in ("dsc", "hd95", "expected_dsc", "confidence", "accuracy")),
    *(f"{name}_{TUMOUR}" for name in ("expected_volume", "segmented_volume", "true_volume")),
    *("nll_all", "nll_near", "ece_all", "ece_predicted"),
]
Rows = list[dict[str, Any]]


class Network:
    """A trained network, and its cases of a set."""

    def __init__(self, work: Path, weights: Path) -> None:
        self.work = work
        files = [str(BUNDLE / "configs" / f"{each}.yaml") for each in ("train", "evaluate")]
        self.files = ConfigParser.load_config_files(files)
        self.network = self._parse("validation").get_parsed_content("network")
        load_weights(self.network, weights)
        set_calibrator(self.network, unscaled())

    def _parse(self, name: str, views: bool = False) -> ConfigParser:
        folder, split = SETS[name]
        config = ConfigParser(self.files)
        config.update({"bundle_root": str(BUNDLE), "dataset_dir": str(self.work / folder)})
        config.update({"split": split, "device": "cpu", "num_workers": 0})
        config["validate::inferer::average"] = views
        return config

    def cases(self, name: str, views: bool = False) -> NetworkCases:
        """Return the cases of a set, in one view or averaged over flips and quarter turns."""
        config = self._parse(name, views)
        config["network"] = self.network
        structures = config.get_parsed_content("structures")
        return NetworkCases(config.get_parsed_content("validate::evaluator"), structures)


def measure_one(case: LabelledCase) -> tuple[dict[str, Any], Rows]:
    """Return the measures of a case, and its candidates and true parts."""
    measures = measure_case(case.scan)
    objects = [row._asdict() for row in find_objects(case.scan, TUMOUR)]
    row = {"case": case.name, **{name: measures[name] for name in COLUMNS}}
    return row, [{"case": case.name, **each} for each in objects]


def measure(network: Network) -> Iterator[tuple[dict[str, Any], Rows]]:
    """Give the measures of all sets, as trained, with the T of the validation patients, and with
    views; and candidates of the test sets, but those of the views.
    """
    fit = TemperatureScaling()
    fit_to_cases(network.cases("validation"), [fit])
    for calibrator in ("none", "T", VIEWS):
        set_calibrator(network.network, unscaled() if calibrator == "none" else fit)
        for name in SETS:
            keys = {"calibrator": calibrator, "temperature": float(fit.temperature), "set": name}
            for row, objects in network.cases(name, calibrator == VIEWS).map(measure_one):
                counted = [] if calibrator == VIEWS or name == "validation" else objects
                yield {**keys, **row}, [{**keys, **each} for each in counted]


def draw(network: Network) -> Rows:
    """Return what calibrators of some patients of the other institution give of its others."""
    set_calibrator(network.network, unscaled())
    cases = network.cases("other")
    use = Stored(False, {TUMOUR: [1]})
    with torch.no_grad():
        stored = {"cases": cases.map(use), "structures": {TUMOUR: [1]}}
    none = unscaled()
    draws = Draws({**stored, "before": (none.state(), none.name)})
    rows = [row for number in trange(DRAWS) for row in draws.rows(DRAWN, number)]
    return [{key: value for key, value in row.items() if key != "estimates"} for row in rows]


def add(name: str, rows: Rows, loss: str) -> None:
    """Add the rows of a network to a table of results."""
    table, file = pd.DataFrame(rows).assign(loss=loss), RESULTS / f"{name}.csv.gz"
    if file.exists():
        table = pd.concat([pd.read_csv(file), table], ignore_index=True)
    with writing(file) as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.6g", compression="gzip")


def main(work: Path, weights: Path) -> None:
    """Measure what is not there; the draws are of the network that is shipped."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    cases = RESULTS / "cases.csv.gz"
    known = {*pd.read_csv(cases)["loss"]} if cases.exists() else set()
    for loss in LOSSES:
        if loss not in known:
            print(loss, flush=True)
            with torch.no_grad():
                measured = [*measure(Network(work, weights / f"glioma_{loss}.pt"))]
            add("objects", [each for _, objects in measured for each in objects], loss)
            add("cases", [row for row, _ in measured], loss)
    if not (RESULTS / "draws.csv.gz").exists():
        loss = tables.shipped()
        add("draws", draw(Network(work, weights / f"glioma_{loss}.pt")), loss)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
