"""A bundle as somebody else has it: with weights, and with small data of its own kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from tests.layouts import save

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if path.name != "common")
SIZE = (32, 32)


def inference_config(bundle: Path) -> ConfigParser:
    """The parsed inference.yaml, on the CPU."""
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.yaml"))
    config["device"] = "cpu"
    return config


def copy_with_weights(bundle: Path, folder: Path) -> Path:
    """Copy a bundle, but for what running it has left there; where it has no weights, the copy gets random ones."""
    copy = folder / bundle.name
    for name in ("configs", "docs"):
        shutil.copytree(bundle / name, copy / name)
    shutil.copy(bundle / "LICENSE", copy)
    (copy / "models").mkdir()
    weights = Path("models", "model.pt")
    if (bundle / weights).is_file():
        shutil.copy(bundle / weights, copy / weights)
    else:
        torch.manual_seed(0)
        torch.save(inference_config(bundle).get_parsed_content("network_def").state_dict(), copy / weights)
    return copy


def make_prepared(bundle: Path, folder: Path, cases: int = 2) -> Path:
    """Prepared cases of a bundle, so many of each split: noise with a square of every class."""
    facts = inference_config(bundle)
    rng = np.random.default_rng(0)
    datalist: dict[str, list[dict[str, Any]]] = {}
    for split in ("training", "validation", "testing"):
        datalist[split] = []
        for index in range(cases):
            case = f"{split}{index}"
            label = np.zeros((*SIZE, 2 + index), np.uint8)
            for k in range(1, facts["num_classes"]):
                label[6 * k : 6 * k + 6, 8:20] = k
            channels = (facts["in_channels"],) if facts["in_channels"] > 1 else ()
            save(folder / case / "image.nii", rng.normal(size=(*label.shape, *channels)).astype(np.float32))
            save(folder / case / "label.nii", label)
            datalist[split].append({"case": case, "image": f"{case}/image.nii", "label": f"{case}/label.nii"})
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


def make_images(bundle: Path, folder: Path) -> Path:
    """One image of a bundle, `scan`, as it comes from a scanner: its own size and spacing."""
    rng = np.random.default_rng(1)
    for suffix in inference_config(bundle)["file_suffixes"] or [""]:
        save(folder / f"scan{suffix}.nii.gz", rng.integers(-200, 900, (30, 41, 4)).astype(np.int16))
    return folder
