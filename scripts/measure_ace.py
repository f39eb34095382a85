"""Measure the networks of a comparison as MONAI's tutorial on calibration does: DSC and average calibration error.

    python scripts/measure_ace.py bundles/hippocampus_mri_nacl_segmentation --dataset_dir PREPARED \
      --work runs/hippocampus/work --out runs/hippocampus/ace.csv

The average calibration error (ACE) is MONAI's `CalibrationErrorMetric`: 20 bins of the probability of each class, which
count alike unless empty, and the mean over the classes without the background, for each test case. The tutorial pads
volumes to 64 x 64 x 64 voxels; here, nothing is padded. Networks that the file has are skipped: the command continues
as they are trained.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.metrics import CalibrationErrorMetric, DiceMetric
from monai.networks.utils import one_hot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.errors import InputError, make_folder, writing
from calib_components.tools import cli
from calib_components.tools.compare.plan import CALIBRATED

NUM_BINS = 20


def measure(bundle: Path, dataset_dir: Path, work: Path, out: Path) -> None:
    """Write a line for each network, without and with its temperature, and test case; print means.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: Prepared cases.
        work: Folder of the work of `compare_losses`, with `METHOD/seedN/model.pt` and `model_calibrated.pt`.
        out: CSV file with the columns `method`, `seed`, `temperature`, `case`, `dsc` and `ace`.
    """
    keys = ["method", "seed", "temperature"]
    table = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=[*keys, "case", "dsc", "ace"])
    make_folder(out.parent)
    for weights in sorted(work.glob(f"*/seed*/{CALIBRATED}")):
        method, seed = weights.parts[-3], int(weights.parts[-2].removeprefix("seed"))
        for file, temperature in ((weights.with_name("model.pt"), "without"), (weights, "with")):
            if (table[keys] == [method, seed, temperature]).all(axis=1).any():
                continue
            found = pd.DataFrame(measure_weights(bundle, dataset_dir, file))
            found = found.assign(method=method, seed=seed, temperature=temperature)
            table = pd.concat([table, found[table.columns]]) if len(table) else found[table.columns]
            with writing(out) as unfinished:
                table.sort_values([*keys, "case"]).to_csv(unfinished, index=False, float_format="%.6g")
    if table.empty:
        raise InputError(f"{work}: no METHOD/seedN/{CALIBRATED}. Run compare_losses first.")
    print(table.groupby(keys)[["dsc", "ace"]].mean().round(4).to_string())


def measure_weights(bundle: Path, dataset_dir: Path, weights: Path) -> list[dict[str, Any]]:
    """Return `case`, `dsc` and `ace` of each test case."""
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "train.yaml"))
    options = {"bundle_root": str(bundle), "dataset_dir": str(dataset_dir), "num_workers": 0, "validate::handlers": []}
    config.update({**options, "validate::dataset::data::split": "testing"})
    network = config.get_parsed_content("network")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    evaluator, cases = config.get_parsed_content("validate::evaluator"), []

    def add(engine: Engine) -> None:
        state: Any = engine.state
        (read,), (item,) = state.batch, state.output
        ace: Any = CalibrationErrorMetric(NUM_BINS, include_background=False, calibration_reduction="average")
        ace(item["pred"][None], one_hot(item["label"][None], len(item["pred"])))
        dice: Any = DiceMetric()
        dice(item["pred_masks"][None], item["label_masks"][None])
        cases.append({"case": read["case"], "dsc": dice.aggregate().item(), "ace": ace.aggregate().item()})

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, add)
    evaluator.run()
    return cases


if __name__ == "__main__":
    cli.run("measure_ace", measure)
