"""Estimates of the quality of scans, with others from the literature, beside their true DSC, for
docs/quality.md.

python study/tables/score_scans.py BUNDLE DATASET_DIR OUT.csv.gz [--split testing]
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from monai.bundle import ConfigParser

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a clone that is not installed

from calib_components.handlers.weights import load_weights
from calib_components.inference.inferers import agreement_of
from calib_components.inference.maps import normalized_entropy
from calib_components.metrics import dice, structure_masks
from calib_components.quality import ScanEstimates
from calib_components.tools import cli


@torch.inference_mode()
def score_scans(bundle: Path, dataset_dir: Path, out: Path, split: str = "testing") -> None:
    """Write a row for each scan: DSC, estimates and volumes in voxels of its structures, and
    entropies of the scan.

    `averaged_dsc` is that of the mean logits of a slice's eight orientations (`--tta true`),
    `pairwise_dsc` the mean over the pairs of their label maps; all else is of one orientation.
    `entropy_image` is the mean entropy over all voxels, `entropy_predicted` over those of a
    predicted structure, both over the logarithm of the number of classes.

    Args:
        bundle: Folder of a bundle of slices, with weights.
        dataset_dir: Prepared cases.
        out: CSV file.
        split: Cases of the data to score.
    """
    config = ConfigParser()
    config.read_config([str(bundle / "configs" / name) for name in ("train.yaml", "evaluate.yaml")])
    config.update({"bundle_root": str(bundle), "dataset_dir": str(dataset_dir), "device": "cpu"})
    config["split"] = split
    config["validate::dataset::data"] = "@records::cases"
    config["averaged"] = {
        **config["validate::inferer"],
        "average": True,
        "structures": "@structures",
    }
    keys = ("network", "validate::inferer", "averaged", "structures", "validate::dataset")
    network, inferer, orientations, structures, scans = map(config.get_parsed_content, keys)
    load_weights(network, bundle / "models" / "model.pt")
    network.eval()
    rows = []
    for scan in scans:
        averaged = orientations(scan["image"][None], network)[0]
        agreement = agreement_of(averaged, structures)
        averaged = torch.as_tensor(averaged)
        logits, estimates = (
            torch.as_tensor(inferer(scan["image"][None], network)[0]),
            ScanEstimates(structures),
        )
        p, predicted = logits.softmax(0), logits.argmax(0)
        estimates.update(p)
        maps = (predicted[None], averaged.argmax(0)[None], scan["label"].as_tensor())
        *predictions, true = (structure_masks(labels, [*structures.values()]) for labels in maps)
        dsc, averaged_dsc = dice(torch.stack(predictions), torch.stack([true, true])).tolist()
        entropy, volumes = normalized_entropy(p), true.flatten(1).sum(1)
        row = {
            "case": scan["case"],
            "patient": scan["patient"],
            "entropy_image": entropy.mean().item(),
        }
        row["entropy_predicted"] = entropy[:, predicted > 0].mean().item()
        for number, (name, estimate) in enumerate(estimates.compute().items()):
            row |= {f"dsc_{name}": dsc[number], f"averaged_dsc_{name}": averaged_dsc[number]}
            row |= {
                f"expected_dsc_{name}": estimate.expected_dsc,
                f"mean_entropy_{name}": estimate.mean_entropy,
            }
            row |= {f"pairwise_dsc_{name}": agreement[name]}
            row[f"mean_confidence_{name}"] = (
                p[structures[name]].sum(0)[predictions[0][number] > 0].mean().item()
            )
            row |= {
                f"expected_volume_{name}": estimate.expected_voxels,
                f"true_volume_{name}": volumes[number].item(),
            }
        rows.append(row)
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6g")


if __name__ == "__main__":
    cli.run("score_scans", score_scans)
