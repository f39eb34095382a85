"""Estimates of the quality of scans, with others from the literature, beside their true DSC, for docs/quality.md.

python scripts/score_scans.py BUNDLE DATASET_DIR OUT.csv.gz [--split testing]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch
from monai.bundle import ConfigParser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.handlers.weights import load_weights
from calib_components.inference.maps import normalized_entropy
from calib_components.metrics import dice, structure_masks
from calib_components.quality import ScanEstimates
from calib_components.tools import cli

ORIENTATIONS = [(flip, quarter) for flip in ([], [2]) for quarter in range(4)]  # of square slices, as `--tta` has them


@torch.inference_mode()
def score_scans(bundle: Path, dataset_dir: Path, out: Path, split: str = "testing") -> None:
    """Write a row for each scan: DSC, estimates and volumes in voxels of its structures, and entropies of the scan.

    `pairwise_dice` is the mean over the pairs of label maps of a slice's eight orientations, all else of the first.
    `entropy_image` is the mean entropy over all voxels, `entropy_predicted` over those of a predicted structure, both
    over the logarithm of the number of classes.

    Args:
        bundle: Folder of a bundle of slices, with weights.
        dataset_dir: Prepared cases.
        out: CSV file.
        split: Cases of the data to score.
    """
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.yaml"))
    config.update({"bundle_root": str(bundle), "dataset_dir": str(dataset_dir), "device": "cpu"})
    config["validate::dataset::data::split"] = split
    keys = ("network", "validate::inferer", "structures", "validate::dataset")
    network, inferer, structures, scans = (config.get_parsed_content(key) for key in keys)
    load_weights(network, bundle / "models" / "model.pt")
    network.eval()
    rows = []
    for scan in scans:
        views = [inferer(scan["image"][None], _turned(network, *each))[0].as_tensor() for each in ORIENTATIONS]
        maps = (view.argmax(0, keepdim=True) for view in views)
        masks = [structure_masks(labels, [*structures.values()])[None] for labels in maps]
        true = structure_masks(scan["label"].as_tensor(), [*structures.values()])[None]
        agreement = torch.cat([dice(*pair) for pair in combinations(masks, 2)]).nanmean(0).tolist()
        p, estimates = views[0].softmax(0), ScanEstimates(structures)
        estimates.update(p)
        entropy, dsc, volumes = normalized_entropy(p), dice(masks[0], true)[0].tolist(), true[0].flatten(1).sum(1)
        row = {"case": scan["case"], "patient": scan["patient"], "entropy_image": entropy.mean().item()}
        row["entropy_predicted"] = entropy[:, views[0].argmax(0) > 0].mean().item()
        for number, (name, found) in enumerate(estimates.compute().items()):
            row |= {f"dsc_{name}": dsc[number], f"expected_dsc_{name}": found.expected_dsc}
            row |= {f"mean_entropy_{name}": found.mean_entropy, f"pairwise_dice_{name}": agreement[number]}
            row[f"mean_confidence_{name}"] = p[structures[name]].sum(0)[masks[0][0, number] > 0].mean().item()
            row |= {f"expected_volume_{name}": found.expected_voxels, f"true_volume_{name}": volumes[number].item()}
        rows.append(row)
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6g")


def _turned(network: torch.nn.Module, flip: list[int], quarter: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda slices: network(slices.flip(flip).rot90(quarter, (2, 3))).rot90(-quarter, (2, 3)).flip(flip)


if __name__ == "__main__":
    cli.run("score_scans", score_scans)
