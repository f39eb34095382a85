"""Mistakes of users in runs of a bundle: each ends with one line, without a traceback in a log."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from calib_components.data.facts import FACTS
from calib_components.handlers.weights import with_calibrator
from calib_components.posthoc import ClassBias, VectorScaling
from tests.helpers import ACDC, made_up, make_images, make_prepared, make_weights, refusal, save

TRAIN, INFER = ("train.yaml",), ("inference.yaml",)
EVALUATE = (*TRAIN, "evaluate.yaml")
CALIBRATE = (*TRAIN, "calibrate.yaml")
PERTURB = (*CALIBRATE, "perturb.yaml")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared cases, weights and images, and unsuitable ones, each in a folder of its own."""
    root = tmp_path_factory.mktemp("places")
    make_prepared(ACDC, root / "data")
    make_weights(ACDC, root / "models")
    make_images(ACDC, root / "images")
    for name, value in (("nan", np.nan), ("constant", 3)):
        save(root / name / "scan.nii.gz", np.full((30, 41, 4), value, np.float32))
    image = (root / "images" / "scan.nii.gz").read_bytes()
    (root / "truncated").mkdir()
    (root / "truncated" / "scan.nii.gz").write_bytes(image[:3000])
    for name in ("damaged", "text", "vector", "bias", "other", "reference", "facts"):
        shutil.copytree(root / "models", root / name)
    file = root / "models" / "model.pt"
    (root / "damaged" / "model.pt").write_bytes(file.read_bytes()[:5000])
    (root / "text" / "model.pt").write_text("hi")
    for name, kind in (("vector", VectorScaling), ("bias", ClassBias)):
        (root / name / "model.pt").write_bytes(with_calibrator(file, made_up(kind, 5)))
    torch.save({"a": torch.zeros(3)}, root / "other" / "model.pt")
    weights = torch.load(file, weights_only=True)
    torch.save({**weights, "reference": torch.ones(3)}, root / "reference" / "model.pt")
    facts = yaml.safe_load((root / "facts" / FACTS).read_text())
    (root / "facts" / FACTS).write_text(yaml.safe_dump({**facts, "pixel_size": "abc"}))
    (root / "list").mkdir()
    (root / "list" / "datalist.json").write_text(json.dumps({"testing": ["case"]}))
    return root


@pytest.mark.parametrize(
    ("files", "options", "line"),
    [
        (INFER, {"dataset_dir": "nan", "num_workers": 1}, r"/scan\.nii\.gz: 4920 values are NaN"),
        (INFER, {"dataset_dir": "constant"}, r"/scan\.nii\.gz: channel 0 has no contrast"),
        (INFER, {"dataset_dir": "truncated"}, r"/scan\.nii\.gz: cannot read the file: .*ended"),
        (INFER, {"ckpt_dir": "damaged"}, r"/model\.pt: cannot read trained weights: not a file of"),
        (INFER, {"ckpt_dir": "text"}, r"/model\.pt: cannot read trained weights: not a file of"),
        (INFER, {"ckpt_dir": "vector"}, r"/model\.pt: .*its calibrator is of 5 classes"),
        (EVALUATE, {"ckpt_dir": "bias"}, r"/model\.pt: .*its calibrator is of 5 classes"),
        (EVALUATE, {"ckpt_dir": "other"}, r"/model\.pt: cannot read weights of this network"),
        (INFER, {"ckpt_dir": "reference"}, r"The reference in the weights is \(3,\), not"),
        (INFER, {"ckpt_dir": "facts"}, r"/facts\.yaml: pixel_size must be list"),
        (EVALUATE, {"dataset_dir": "list"}, r"/datalist\.json: cannot read the list"),
        (INFER, {"save": "labels"}, "save must be one of 'label', 'uncertainty', 'probability'"),
        (INFER, {"device": "cuda:99"}, "device: cannot read 'cuda:99' as a device: "),
        (INFER, {"num_workers": -1}, "num_workers must be an integer of at least 0"),
        (INFER, {"image_size": "a"}, "options: image_size must be list"),
        (INFER, {"image_size": "null"}, "options: image_size must be two multiples of 16"),
        (INFER, {"structures": {}}, "options: structures must have class indices"),
        (EVALUATE, {"split": "nope"}, "split must be one of 'training', 'validation', 'testing'"),
        (CALIBRATE, {"temperature": "text"}, "temperature must be a number from 0.001 to 1000"),
        (CALIBRATE, {"temperature": True}, "temperature must be a number from 0.001 to 1000"),
        (CALIBRATE, {"pool": 5}, r"5/temperature_fit\.json: cannot read a fit"),
        (CALIBRATE, {"calibrator::_target_": "calib_components.Nope"}, "Cannot locate class"),
        (PERTURB, {"draws": 1.5}, "draws must be an integer of at least 1"),
        (PERTURB, {"strength": "nan"}, "strength must be a number of at least 0, got 'nan'"),
        (TRAIN, {"loss": "dice"}, "loss is a component, got dice. Set --loss::_target_."),
        (TRAIN, {"learning_rate": 1e30}, "validation0: logits of the network are NaN"),
    ],
    ids=str,
)
def test_ends_with_one_line(
    files: tuple[str, ...], options: dict[str, Any], line: str, places: Path, tmp_path: Path
) -> None:
    usual = {
        "dataset_dir": "images" if files == INFER else "data",
        "ckpt_dir": str(tmp_path / "ckpt") if files == TRAIN else "models",
    }
    folders = {name: str(places / options.get(name, value)) for name, value in usual.items()}
    written = {"output_dir": str(tmp_path / "out")}
    if files[1:2] == ("calibrate.yaml",):
        written["calibrated_path"] = str(tmp_path / "model.pt")
    shown = refusal(ACDC, *files, **{**options, **folders, **written})
    assert re.match(f"(?:{re.escape(str(places))}/\\w+)?{line}", shown), shown


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more than some bytes into a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "line"),
    [
        (2**12, r"ckpt_dir: cannot write to .*: File too large\."),
        (2**20, r".*/model\.pt: cannot write it: File too large\."),
    ],
)
def test_a_full_disk(size: int, line: str, places: Path, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("ckpt_dir", "output_dir")}
    with files_of_at_most(size):
        shown = refusal(ACDC, *TRAIN, dataset_dir=str(places / "data"), **folders)
    assert re.fullmatch(line, shown)
