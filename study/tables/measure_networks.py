"""Measure networks of a comparison in what an evaluation lacks: MONAI's calibration error, and the
seeds' agreement.

    python study/tables/measure_networks.py bundles/hippocampus_mri_nacl_segmentation --dataset_dir
    PREPARED \
      --work runs/hippocampus/work --out runs/hippocampus/networks.csv

The average calibration error (ACE) is that of MONAI's tutorial on calibration,
`CalibrationErrorMetric`: 20 bins of the probability of each class, which count alike unless empty,
and the mean over the classes without the background. The tutorial pads volumes to 64 x 64 x 64
voxels; here, nothing is padded.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.metrics import CalibrationErrorMetric, DiceMetric
from monai.networks.utils import one_hot

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.errors import InputError, make_folder, writing
from calib_components.quality import PairwiseDice
from calib_components.quality.estimates import Structures
from calib_components.tools import cli
from study.compare.plan import CALIBRATED

NUM_BINS = 20


def measure(bundle: Path, dataset_dir: Path, work: Path, out: Path) -> None:
    """Write a line for each network, without and with its temperature, and test case; print means.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: Prepared cases.
        work: Folder of the work of `compare_losses`, with `METHOD/seedN/model.pt` and
            `model_calibrated.pt`.
        out: CSV file with the columns `method`, `seed`, `temperature`, `case`, `dsc`, `ace` and
            `pairwise_dsc`: the DSC of two seeds' segmentations, the mean over pairs and structures;
            empty with one seed.
    """
    structures, tables = _config(bundle, dataset_dir).get_parsed_content("structures"), []
    for method in sorted({weights.parents[1] for weights in work.glob(f"*/seed*/{CALIBRATED}")}):
        pairs, rows = defaultdict(list), []
        for weights in sorted(method.glob(f"seed*/{CALIBRATED}")):
            for file, temperature in (
                (weights, "with"),
                (weights.with_name("model.pt"), "without"),
            ):
                network = {
                    "method": method.name,
                    "seed": int(weights.parts[-2].removeprefix("seed")),
                    "temperature": temperature,
                }
                for case, labels in measure_weights(bundle, dataset_dir, file):
                    rows.append(network | case)
                    if temperature == "without":
                        pairs[case["case"]].append(labels)
        agreement = {
            case: _pairwise_dsc(torch.stack(labels), structures) for case, labels in pairs.items()
        }
        tables.append(
            pd.DataFrame(rows).assign(
                pairwise_dsc=lambda table, found=agreement: table["case"].map(found)
            )
        )
        print(f"{method.name}: measured", flush=True)
    if not tables:
        raise InputError(f"{work}: no METHOD/seedN/{CALIBRATED}. Run compare_losses first.")
    table = pd.concat(tables).sort_values(keys := ["method", "seed", "temperature", "case"])
    make_folder(out.parent)
    with writing(out) as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.6g")
    print(table.groupby(keys[:3])[["dsc", "ace", "pairwise_dsc"]].mean().round(4).to_string())


def _pairwise_dsc(labels: torch.Tensor, structures: Structures) -> float:
    """Return the mean DSC of pairs of segmentations `(M, *S)`, over structures that one of them
    has.
    """
    pairs = PairwiseDice(structures)
    pairs.update(labels)
    return float(np.nanmean([*pairs.compute().values()])) if len(labels) > 1 else float("nan")


def _config(bundle: Path, dataset_dir: Path) -> ConfigParser:
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.yaml"))
    options = {
        "bundle_root": str(bundle),
        "dataset_dir": str(dataset_dir),
        "num_workers": 0,
        "validate::handlers": [],
    }
    config.update({**options, "validate::dataset::data::split": "testing"})
    return config


def measure_weights(
    bundle: Path, dataset_dir: Path, weights: Path
) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """Return `case`, `dsc` and `ace` of each test case, and its predicted classes."""
    config = _config(bundle, dataset_dir)
    network = config.get_parsed_content("network")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    evaluator, cases = config.get_parsed_content("validate::evaluator"), []

    def add(engine: Engine) -> None:
        state: Any = engine.state
        (read,), (item,) = state.batch, state.output
        ace: Any = CalibrationErrorMetric(
            NUM_BINS, include_background=False, calibration_reduction="average"
        )
        ace(item["pred"][None], one_hot(item["label"][None], len(item["pred"])))
        dice: Any = DiceMetric()
        dice(item["pred_masks"][None], item["label_masks"][None])
        measures = {
            "case": read["case"],
            "dsc": dice.aggregate().item(),
            "ace": ace.aggregate().item(),
        }
        cases.append((measures, item["pred"].argmax(0).byte()))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, add)
    evaluator.run()
    return cases


if __name__ == "__main__":
    cli.run("measure_networks", measure)
