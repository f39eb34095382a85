"""Train and measure the networks of the seventh round, one after the other.

    python -m study.abdomen.run DATA WORK STUDY

DATA are the 14 patients as `prepare_data.py flare` prepared them; the lists of three folds are
added to it. WORK gets checkpoints and evaluations; a training that was interrupted goes on there.
STUDY is the folder `study` of a clone: it gets `results/abdomen/REGIME`, five tables to which each
network adds its rows as it finishes, and `weights/abdomen_*.pt`, the networks of our regime in half
precision. A network whose rows are there is left out.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.inferers import SliceInferer

from calib_components.errors import writing
from calib_tools.bundle_command import bundle_command
from calib_tools.prepare.split import divide
from calib_tools.report.readers import describe_measures
from calib_workflows.data.cases import SPLITS, load_sample, read_lists
from calib_workflows.evaluation_files import Evaluation
from calib_workflows.weights import load_weights, read_weights, save
from study.compare.compact import COMPACT, read_compact, write_compact
from study.compare.data import WITHOUT, Comparison
from study.compare.readers import read_history, tables_of
from study.compare.run import write_history
from study.compare.settings import LABELS, TABLE1

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "flare_ct_nacl_segmentation"
FOLDS = 3
EPOCHS = {"ours": 100, "authors": 40}
PLAIN = {  # the authors' regime: no augmentation, and the weights of the last epoch
    "spatial_augmentation::3::prob": 0,
    "val_interval": EPOCHS["authors"],
}
OPTIONS: dict[str, dict[str, Any]] = {"ours": {"val_interval": 4}, "authors": PLAIN}
ANY_SCANNER = "_any_scanner"  # after the loss: see AUGMENTED
AUGMENTED = {"any_scanner": True, "max_epochs": 60}  # intensities, too
OURS = ("cross_entropy", f"cross_entropy{ANY_SCANNER}")
TEST_SETS = {"": "testing", "validation": "validation"}  # in the tables, and their splits


@dataclass(frozen=True)
class Network:
    """A network of the round."""

    regime: str
    method: str  # a file in the bundle's configs/losses, and ANY_SCANNER
    fold: int  # whose patients it is tested on

    @property
    def loss(self) -> str:
        """The file in the bundle's configs/losses."""
        return self.method.removesuffix(ANY_SCANNER)

    @property
    def options(self) -> dict[str, Any]:
        """The options of its training."""
        given = {"max_epochs": EPOCHS[self.regime], "compile": True, "bfloat16": True}
        given |= OPTIONS[self.regime]
        return given if self.method == self.loss else given | AUGMENTED

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that say of which network a row is."""
        return {"method": self.method, "seed": 0, "fold": self.fold}


def planned() -> Iterator[Network]:
    """Give the networks in their order."""
    for method, fold in itertools.product(OURS, range(FOLDS)):
        yield Network("ours", method, fold)
    for fold, setting in itertools.product(range(FOLDS), TABLE1):
        yield Network("authors", setting.loss, fold)


def fold_list(data: Path, fold: int) -> Path:
    """Return the file with the lists of a fold."""
    return data / f"datalist_fold{fold}.json"


def write_folds(data: Path) -> None:
    """Write the lists of the folds: each tests 5, 5 or 4 patients, and one of the others chooses
    the epoch.
    """
    content = json.loads((data / "datalist.json").read_bytes())
    items = {item["patient"]: item for split in SPLITS for item in content[split]}
    parts = divide(dict.fromkeys(items, ""), [1 / FOLDS] * FOLDS, seed=0)
    for fold, tested in enumerate(parts):
        chooses = parts[(fold + 1) % FOLDS][0]
        trained = [patient for patient in items if patient not in (*tested, chooses)]
        for split, names in zip(SPLITS, (trained, [chooses], tested), strict=True):
            content[split] = [items[name] for name in names]
        fold_list(data, fold).write_text(json.dumps(content, indent=1))


def run_bundle(network: Network, data: Path, work: Path, name: str, **options: Any) -> None:
    """Run `train.yaml` with the loss of a network, or with another configuration."""
    files = ["train", f"losses/{network.loss}"] if name == "train" else ["train", name]
    given = {
        "bundle_root": BUNDLE,
        "dataset_dir": data,
        "datalist": fold_list(data, network.fold),
        "ckpt_dir": work,
        "overwrite": True,
    }
    paths = [BUNDLE / "configs" / f"{file}.yaml" for file in files]
    command = [sys.executable, *bundle_command(paths, {**given, **options})[1:]]
    with open(work / f"{name}.log", "a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


def train(network: Network, data: Path, work: Path) -> None:
    """Train a network, or go on where its training was interrupted."""
    run_bundle(network, data, work, "train", output_dir=work, resume=True, **network.options)


def measure(network: Network, data: Path, work: Path) -> Comparison:
    """Evaluate a network, and return its tables."""
    tables: dict[str, list[pd.DataFrame]] = {"cases": [], "bins": []}
    for test_set, split in TEST_SETS.items():
        place = work / f"evaluation_{split}"
        run_bundle(network, data, work, "evaluate", output_dir=place, split=split)
        evaluation = Evaluation.read(place)
        row = {**network.keys, "test_set": test_set, "temperature": WITHOUT}
        parts = tables_of(evaluation, row)
        for name, part in zip(tables, parts, strict=True):
            tables[name].append(part)
    write_history(work, work)
    cells = network.keys | read_history(work) | {"torch": torch.__version__}
    about: dict[str, Any] = {**describe_measures(evaluation)}
    names = {each.method: LABELS[each.loss] for each in planned()}
    names[OURS[1]] = f"{names[OURS[0]]}, intensities augmented"
    about |= {"class_names": list(evaluation.class_names), "labels": names, "split": "testing"}
    about |= {"folds": FOLDS, "missing": []}
    joined = {name: pd.concat(parts) for name, parts in tables.items()}
    return Comparison(
        **joined, cells=pd.DataFrame([cells]), temperatures=pd.DataFrame(), about=about
    )


@torch.inference_mode()
def logit_magnitudes(network: Network, data: Path, weights: Path) -> pd.DataFrame:
    """Return the mean magnitude of each logit over the voxels of each true class, of each test
    patient: the numbers of the paper's Fig. 2.
    """
    config = ConfigParser(ConfigParser.load_config_file(BUNDLE / "configs" / "train.yaml"))
    config.update({"bundle_root": str(BUNDLE), "device": "cpu"})
    trained, classes = (
        config.get_parsed_content("network"),
        config.get_parsed_content("class_names"),
    )
    size = config.get_parsed_content("image_size")
    load_weights(trained, weights)
    trained.eval()
    infer = SliceInferer(roi_size=size, sw_batch_size=16, spatial_dim=2)
    rows = []
    for item in read_lists(fold_list(data, network.fold), data)["testing"]:
        image, label = load_sample(item["image"]), load_sample(item["label"])[0]
        magnitudes = torch.as_tensor(infer(image[None], trained))[0].abs()
        for index, name in enumerate(classes):
            inside = label == index
            means = magnitudes[:, inside].double().mean(1).tolist()
            row = {"case": item["case"], "true_class": name, "voxels": int(inside.sum())}
            rows.append(network.keys | row | dict(zip(classes, means, strict=True)))
    return pd.DataFrame(rows)


def save_in_half(weights: Path, file: Path) -> None:
    """Write weights in half precision."""
    state = read_weights(weights)
    save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, file)


def is_finished(network: Network, results: Path) -> bool:
    """Return whether the tables have the rows of a network."""
    if not (results / COMPACT).exists():
        return False
    table = read_compact(results).cells
    return bool(((table["method"] == network.method) & (table["fold"] == network.fold)).any())


def add_to_results(measured: Comparison, magnitudes: pd.DataFrame, results: Path) -> None:
    """Add the rows of a network to the tables of its regime; those of the cells come last."""
    file = results / "magnitudes.csv"
    names = ("cases", "bins", "cells")
    tables = {name: [getattr(measured, name)] for name in names}
    (keys,) = measured.cells[["method", "fold"]].to_dict("records")

    def others(table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of other networks, also if this one was interrupted while it wrote."""
        return table[(table["method"] != keys["method"]) | (table["fold"] != keys["fold"])]

    if (results / COMPACT).exists():
        present = read_compact(results)
        tables = {name: [others(getattr(present, name)), *tables[name]] for name in names}
        magnitudes = pd.concat([others(pd.read_csv(file)), magnitudes])
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    results.mkdir(parents=True, exist_ok=True)
    with writing(file) as unfinished:
        magnitudes.to_csv(unfinished, index=False, float_format="%.6g", lineterminator="\n")
    write_compact(Comparison(**joined, temperatures=pd.DataFrame(), about=measured.about), results)


def main(data: Path, work: Path, study: Path) -> None:
    """Train and measure what is not finished."""
    write_folds(data)
    for network in planned():
        results = study / "results" / "abdomen" / network.regime
        if is_finished(network, results):
            continue
        place = work / network.regime / network.method / f"fold{network.fold}"
        place.mkdir(parents=True, exist_ok=True)
        print(f"{network.regime}, {network.method}, fold {network.fold}", flush=True)
        train(network, data, place)
        weights = place / "model.pt"
        if network.regime == "ours":
            save_in_half(
                weights, study / "weights" / f"abdomen_{network.method}_fold{network.fold}.pt"
            )
        magnitudes = logit_magnitudes(network, data, weights)
        add_to_results(measure(network, data, place), magnitudes, results)


if __name__ == "__main__":
    main(*(Path(word).resolve() for word in sys.argv[1:]))
