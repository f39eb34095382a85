"""Train the networks of the protocol's ninth round, one after the other.

    python -m study.glioma.train RAW WORK WEIGHTS

RAW are the 61 patients in nnU-Net's layout. WORK gets the prepared cases, those of DU and CS in
`home` and those of FG in `other`, and a folder for each loss, where a training that was interrupted
goes on. WEIGHTS gets `glioma_LOSS.pt`, in half precision; what is there is not trained again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from calib_components.errors import writing
from calib_tools.bundle_command import bundle_command
from calib_tools.commands import prepare_data
from study.abdomen.run import save_in_half

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "acdc_mri_nacl_segmentation"
LOSSES = ("cross_entropy", "ce_dice", "nacl", "svls")
OPTIONS: dict[str, Any] = {"max_epochs": 80, "val_interval": 4, "compile": True, "bfloat16": True}
OTHER = "_FG_"  # in the names of the patients of the other institution


def splits_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the split of each patient of both institutions, as the protocol states it."""
    ordered = sorted(names)
    home = [name for name in ordered if OTHER not in name]
    tested = home[::5]
    others = [name for name in home if name not in tested]
    split = dict.fromkeys(others, "training") | dict.fromkeys(others[::4], "validation")
    split |= dict.fromkeys(tested, "testing")
    return {"home": split, "other": {name: "testing" for name in ordered if OTHER in name}}


def prepare(raw: Path, work: Path) -> None:
    """Prepare what is missing of both institutions."""
    names = [file.name.partition(".")[0] for file in (raw / "labelsTr").iterdir()]
    for place, split in splits_of(names).items():
        lists = work / f"{place}.csv"
        rows = ["case,split", *(f"{name},{part}" for name, part in split.items())]
        with writing(lists) as unfinished:
            unfinished.write_text("\n".join(rows) + "\n")
        options = {"like": "acdc", "structures": ["tumour=1"], "split": lists}
        prepare_data("nnunet", raw, work / place, **options)


def train(loss: str, work: Path) -> Path:
    """Train a network, or go on where its training was interrupted; return its weights."""
    place = work / loss
    place.mkdir(parents=True, exist_ok=True)
    given = {"bundle_root": BUNDLE, "dataset_dir": work / "home", "ckpt_dir": place}
    given |= {"output_dir": place, "overwrite": True, "resume": True, **OPTIONS}
    files = [BUNDLE / "configs" / name for name in ("train.yaml", f"losses/{loss}.yaml")]
    command = [sys.executable, *bundle_command(files, given)[1:]]
    with open(place / "train.log", "a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    return place / "model.pt"


def main(raw: Path, work: Path, weights: Path) -> None:
    """Train what is not there."""
    work.mkdir(parents=True, exist_ok=True)
    prepare(raw, work)
    for loss in LOSSES:
        file = weights / f"glioma_{loss}.pt"
        if not file.exists():
            print(loss, flush=True)
            save_in_half(train(loss, work), file)


if __name__ == "__main__":
    main(*(Path(word).resolve() for word in sys.argv[1:]))
