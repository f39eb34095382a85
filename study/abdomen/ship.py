"""Make the weights that are shipped: the average of three networks, and the first of them.

    python -m study.abdomen.ship DATA OUT WEIGHTS WEIGHTS WEIGHTS

DATA has the lists of the folds, see `study.abdomen.run`; WEIGHTS are their networks in order. The
temperature of the single networks, each on the patients it has not seen, is printed. Neither
`OUT/ensemble.pt` nor `OUT/model.pt` gets it, or a reference: they would be those of other networks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from monai.bundle import ConfigParser

from calib_components.posthoc import TemperatureScaling
from calib_workflows.cases import Cases, LabelledCase, NetworkCases, Result
from calib_workflows.data.facts import facts_beside
from calib_workflows.fit import fit_to_cases, unscaled
from calib_workflows.weights import join_weights, load_weights, with_calibrator, write_weights
from study.abdomen.run import BUNDLE, fold_list


@dataclass
class FoldCases(Cases):
    """The cases of several networks, one after the other."""

    networks: Sequence[Callable[[], NetworkCases]]

    def map(self, function: Callable[[LabelledCase], Result]) -> list[Result]:
        return [result for cases in self.networks for result in cases().map(function)]


def tested_cases(data: Path, fold: int, weights: Path) -> NetworkCases:
    """Return the patients of a fold, and the network that has not seen them."""
    files = [BUNDLE / "configs" / f"{each}.yaml" for each in ("train", "calibrate")]
    config = ConfigParser(ConfigParser.load_config_files([*map(str, files)]))
    config.update({"bundle_root": str(BUNDLE), "dataset_dir": str(data), "split": "testing"})
    config.update({"datalist": str(fold_list(data, fold)), "device": "cpu"})
    # These weights have no `facts.yaml`, and the lists name no training
    config["validate::dataset::data::refuse_trained"] = False
    network, structures = map(config.get_parsed_content, ("network", "structures"))
    load_weights(network, weights)
    return NetworkCases(config.get_parsed_content("validate::evaluator"), structures)


@torch.no_grad()
def main(data: Path, out: Path, *weights: Path) -> None:
    """Fit the temperature, and write the weights."""
    folds = [functools.partial(tested_cases, data, fold, file) for fold, file in enumerate(weights)]
    fitted = TemperatureScaling()
    estimate = fit_to_cases(FoldCases(folds), [fitted])[0]["temperature"]
    print(estimate.summary())
    facts = facts_beside(BUNDLE / "models" / "model.pt")
    with TemporaryDirectory() as folder:
        copies = [Path(folder, f"{number}.pt") for number in range(len(weights))]
        for copy, file in zip(copies, weights, strict=True):
            write_weights(copy, with_calibrator(file, unscaled()), facts, "WEIGHTS")
        joined = Path(folder, "ensemble.pt")
        join_weights(copies, joined)
        for name, file in (("model.pt", copies[0]), ("ensemble.pt", joined)):
            write_weights(out / name, with_calibrator(file, unscaled()), facts, "OUT")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
