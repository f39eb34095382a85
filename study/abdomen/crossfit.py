"""Cross-fit the average of three networks: five folds of 14 patients, then all of them.

    python -m study.abdomen.crossfit DATA WORK

DATA are the patients as `prepare_data.py flare` prepared them; the lists of the folds are added to
it. `WORK/fold0/seed0` and so on get the networks; a training that was interrupted goes on.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import torch

from calib_tools.bundle_command import bundle_command
from calib_tools.prepare.split import divide
from calib_workflows.data.cases import SPLITS

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "flare_ct_nacl_segmentation"
FOLDS = [f"fold{number}" for number in range(5)]
ALL = "all"
SEEDS = range(3)
EPOCHS = 60
OPTIONS = {"max_epochs": EPOCHS, "any_scanner": True, "compile": True}
# Without units for it in the processor, bfloat16 takes more time than float32
OPTIONS["bfloat16"] = torch.cpu.get_capabilities().get("avx512_bf16", False)


def list_of(data: Path, fold: str) -> Path:
    """Return the file with the lists of a fold."""
    return data / f"datalist_crossfit_{fold}.json"


def write_lists(data: Path) -> None:
    """Write the lists of the folds, and of all patients; none validates."""
    content = json.loads((data / "datalist.json").read_bytes())
    items = {item["patient"]: item for split in SPLITS for item in content[split]}
    parts = divide(dict.fromkeys(items, ""), [1 / len(FOLDS)] * len(FOLDS), seed=0)
    for fold, tested in zip([*FOLDS, ALL], [*parts, []], strict=True):
        trained = [patient for patient in items if patient not in tested]
        for split, names in zip(SPLITS, (trained, [], tested), strict=True):
            content[split] = [items[name] for name in names]
        list_of(data, fold).write_text(json.dumps(content, indent=1))


def train(data: Path, fold: str, seed: int, place: Path) -> None:
    """Train a network, or go on where its training was interrupted."""
    paths = [BUNDLE / "configs" / f"{file}.yaml" for file in ("train", "losses/cross_entropy")]
    folders = {"bundle_root": BUNDLE, "ckpt_dir": place, "output_dir": place, "dataset_dir": data}
    given = folders | {"datalist": list_of(data, fold), "seed": seed, "resume": True} | OPTIONS
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "train.log", "a") as log:
        command = [sys.executable, *bundle_command(paths, given)[1:]]
        subprocess.run(command, check=True, stdout=log, stderr=log)


def main(data: Path, work: Path) -> None:
    """Train the networks that are not finished."""
    if not list_of(data, ALL).exists():
        write_lists(data)
    for fold, seed in itertools.product([*FOLDS, ALL], SEEDS):
        place = work / fold / f"seed{seed}"
        if not (place / "finished").exists():
            print(fold, seed, flush=True)
            train(data, fold, seed, place)
            (place / "finished").touch()


if __name__ == "__main__":
    main(*(Path(word).resolve() for word in sys.argv[1:]))
