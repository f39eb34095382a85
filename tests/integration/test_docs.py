"""The commands of the README and of the bundles' pages run as they are written, on small data and for one epoch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from calib_components.losses import NACLLoss
from tests.helpers import ROOT, make_brats, make_flare

SMALL = {
    r"prepare_data\.py \w+": "--image_size 32,32 --fractions 0.4,0.3,0.3",
    r"compare_losses\.py": "--max_epochs 1 --devices cpu --num_workers 0",
    r"monai\.bundle run": "--image_size [32,32] --max_epochs 1 --device cpu --num_workers 0",
}


def commands(page: Path, section: str) -> list[str]:
    """The bash blocks of one section of a page."""
    text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert text, f"{page} has no section {section}"
    return re.findall(r"^```bash\n(.*?)^```", text[1], re.MULTILINE | re.DOTALL)


def snippets(language: str) -> list[str]:
    """The blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_one_line_of_a_config() -> None:
    (config,) = snippets("yaml")
    assert isinstance(ConfigParser(yaml.safe_load(config)).get_parsed_content("loss"), NACLLoss)


def test_one_line_of_python() -> None:
    names = {"logits": torch.randn(2, 4, 16, 16, requires_grad=True), "label": torch.randint(4, (2, 1, 16, 16))}
    for code in snippets("python"):
        exec(code, names)
    names["loss"].backward()
    assert names["ece"].aggregate("none").shape == (2,)


def run(script: str, folder: Path, places: dict[str, Path]) -> None:
    """Run a block of commands in a folder, with the places it speaks of and at a small size."""
    for name, place in places.items():
        script = re.sub(rf"(?<![\w/]){name}\b", str(place), script)
    for command, options in SMALL.items():
        script = re.sub(command, lambda found, options=options: f"{found[0]} {options}", script)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the commands use, so that they may write into it."""
    for name in ("bundles", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pt", "__pycache__"))
    return tmp_path


@pytest.fixture
def places(tmp_path: Path, phantoms: Path) -> dict[str, Path]:
    """What the pages call the user's folders."""
    downloads = tmp_path / "downloads"
    rng = np.random.default_rng(0)
    for index in range(5):
        make_brats(downloads / "brats" / ("HGG" if index % 2 else "LGG"), f"BraTS19_{index}")
        body = rng.integers(-200, 300, (24, 20, 5)).astype(np.int16)
        label = np.zeros(body.shape, np.uint8)
        for code in range(1, 5):
            label[4 * code : 4 * code + 4, 4:12, 1:-1] = code
        make_flare(downloads / "flare", f"train_{index:03d}", body, label, np.diag([2.0, 2.0, 5.0, 1.0]))
        for kind, array in (("images", body), ("labels", np.minimum(label, 2))):
            (downloads / "mine" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), downloads / "mine" / kind / f"scan{index}.nii.gz")
    return {
        "ACDC": phantoms,
        "FLARE": downloads / "flare",
        "BRATS": downloads / "brats",
        "MINE": downloads / "mine",
        "../NEW": downloads / "mine" / "images",
    }


@pytest.mark.parametrize(
    ("bundle", "images", "expected"),
    [
        ("acdc_mri_nacl_segmentation", "ACDC/training/patient001", "patient001_frame01"),
        ("flare_ct_nacl_segmentation", "FLARE/TrainingImg", "train_003_0000"),
        ("brats_mri_nacl_segmentation", "BRATS", "BraTS19_3"),
    ],
)
def test_page_of_bundle(bundle: str, images: str, expected: str, repository: Path, places: dict[str, Path]) -> None:
    folder = repository / "bundles" / bundle
    name, *below = images.split("/")
    places["IMAGES"] = places[name].joinpath(*below)
    sections = ["Data", "Train", "Evaluate", "Inference"]
    if bundle.startswith("acdc"):  # once is enough: these commands differ in the size of slices only
        sections += ["Several GPUs", "Export"]
    for section in sections:
        for script in commands(folder / "docs" / "README.md", section):
            run(script, folder, places)
    assert (folder / "models" / "model.pt").is_file()
    assert (folder / "eval" / "summary.json").is_file()
    for kind in ("seg", "probability", "uncertainty"):
        assert (folder / "predictions" / f"{expected}_{kind}.nii.gz").is_file()


def test_own_data(repository: Path, places: dict[str, Path]) -> None:
    for script in commands(ROOT / "README.md", "I have my own images and labels"):
        run(script, repository, places)
    assert (repository / "own" / "eval" / "summary.json").is_file()
    seg = nib.load(repository / "own" / "predictions" / "scan0_seg.nii.gz")
    assert set(np.unique(seg.get_fdata())) <= {0, 1, 2}
    page = (repository / "runs" / "own" / "report" / "report.md").read_text()
    assert page.startswith("# Losses compared: liver, tumour\n")
    assert "paper" not in page


def test_training_on_acdc(repository: Path, places: dict[str, Path]) -> None:
    (script,) = commands(ROOT / "README.md", "I want to train on ACDC")
    run(script.replace('pip install -e ".[bundles]"', ""), repository, places)
    assert (repository / "bundles" / "acdc_mri_nacl_segmentation" / "eval" / "summary.json").is_file()
