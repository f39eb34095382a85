"""Mistakes of users in runs of a bundle: each ends with one line, without a traceback in a log."""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib_components.posthoc import VectorScaling
from calib_workflows.data.facts import FACTS
from calib_workflows.weights import with_calibrator
from tests.helpers import ACDC, made_up, make_images, make_prepared, make_weights, refusal, save

TRAIN, INFER = ("train.yaml",), ("inference.yaml",)
EVALUATE = (*TRAIN, "evaluate.yaml")
CALIBRATE = (*TRAIN, "calibrate.yaml")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared cases, weights and images, and unsuitable ones, each in a folder of its own."""
    root = tmp_path_factory.mktemp("places")
    make_prepared(ACDC, root / "data")
    file = make_weights(ACDC, root / "models") / "model.pt"
    for name in ("images", "truncated"):
        image = make_images(ACDC, root / name) / "scan.nii.gz"
    image.write_bytes(image.read_bytes()[:3000])
    save(root / "nan" / "scan.nii.gz", np.full((30, 41, 4), np.nan, np.float32))
    for name in ("damaged", "vector", "facts"):
        shutil.copytree(root / "models", root / name)
    (root / "damaged" / "model.pt").write_bytes(file.read_bytes()[:5000])
    calibrated = with_calibrator(file, made_up(VectorScaling, 5))
    (root / "vector" / "model.pt").write_bytes(calibrated)
    with open(root / "facts" / FACTS, "a") as facts:
        facts.write("pixel_size: abc\n")
    (root / "list").mkdir()
    (root / "list" / "datalist.json").write_text('{"testing": ["case"]}')
    return root


@pytest.mark.parametrize(
    ("files", "options", "line"),
    [
        (INFER, {"dataset_dir": "nan", "num_workers": 1}, r"/scan\.nii\.gz: 4920 values are NaN"),
        (INFER, {"dataset_dir": "truncated"}, r"/scan\.nii\.gz: cannot read the file: .*ended"),
        (INFER, {"ckpt_dir": "damaged"}, r"/model\.pt: cannot read trained weights: not a file of"),
        (INFER, {"ckpt_dir": "vector"}, r"/model\.pt: .*its calibrator is of 5 classes"),
        (INFER, {"ckpt_dir": "facts"}, r"/facts\.yaml: pixel_size must be list"),
        (EVALUATE, {"dataset_dir": "list"}, r"/datalist\.json: cannot read the list"),
        (INFER, {"save": "labels"}, "save must be one of 'label', 'uncertainty', 'probability'"),
        (INFER, {"image_size": "a"}, "options: image_size must be list"),
        (INFER, {"image_size": "null"}, "options: cannot read crop_size: .*image_size"),
        (EVALUATE, {"split": "nope"}, "split must be one of 'training', 'validation', 'testing'"),
        (CALIBRATE, {"pool": 5}, "pool: no such option"),
        (CALIBRATE, {"region": "plausible"}, "region must be one of"),
        (CALIBRATE, {"members": "a.pt"}, "calibrated_path: name the file of the ensemble"),
        (CALIBRATE, {"calibrator": "scalar"}, "calibrator must be one of 'none', 'temperature'"),
        (CALIBRATE, {}, "calibrated_path: no training on these cases made"),
        (TRAIN, {"learning_rate": 1e30}, "validation0: logits of the network are NaN"),
    ],
    ids=str,
)
def test_ends_with_one_line(
    files: tuple[str, ...], options: dict[str, Any], line: str, places: Path, tmp_path: Path
) -> None:
    names = {"dataset_dir": "images" if files == INFER else "data", "ckpt_dir": "models", **options}
    folders = {name: str(places / names[name]) for name in ("dataset_dir", "ckpt_dir")}
    if files == TRAIN:
        folders["ckpt_dir"] = str(tmp_path / "models")
    shown = refusal(ACDC, *files, **options | folders, output_dir=str(tmp_path / "out"))
    assert re.match(f"(?:{re.escape(str(places))}/\\w+)?{line}", shown), shown
    assert not list(tmp_path.glob("out/*.nii.gz"))


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
