"""What several tests share: places, scripts run as a user runs them, small data sets, and bundles
with weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from calib_components.posthoc import Calibrator
from calib_workflows.data.facts import Facts, write_facts

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if path.name != "common")
ACDC = ROOT / "bundles" / "acdc_mri_nacl_segmentation"
HIPPOCAMPUS = ROOT / "bundles" / "hippocampus_mri_nacl_segmentation"
FLARE = ROOT / "bundles" / "flare_ct_nacl_segmentation"
BRATS = ROOT / "bundles" / "brats_mri_nacl_segmentation"
SIZE = (32, 32)  # of what make_prepared makes
SPACING = np.diag([1.5, 1.25, 10.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def blocks(shape: tuple[int, int, int], codes: list[int]) -> np.ndarray:
    """A label with a block of every code."""
    label = np.zeros(shape, np.uint8)
    for i, code in enumerate(codes):
        label[2 + 3 * i : 5 + 3 * i, 4:12, 1:-1] = code
    return label


def make_acdc(root: Path, patients: int = 2, shape: tuple[int, int, int] = (18, 16, 4)) -> Path:
    """ACDC's layout; the groups take turns."""
    rng = np.random.default_rng(0)
    for i in range(1, patients + 1):
        folder = root / "training" / f"patient{i:03d}"
        for frame in (1, 9):
            image = rng.integers(0, 500, shape).astype(np.int16)
            save(folder / f"patient{i:03d}_frame{frame:02d}.nii.gz", image)
            save(folder / f"patient{i:03d}_frame{frame:02d}_gt.nii.gz", blocks(shape, [1, 2, 3]))
        (folder / "Info.cfg").write_text(
            f"ED: 1\nES: 9\nGroup: {['DCM', 'NOR'][i % 2]}\nHeight: 180.0\n"
        )
    return root


def make_brats(folder: Path, name: str, ending: str = "nii.gz") -> None:
    """One case of BraTS: noise of its own in a brain that touches no side of the volume."""
    rng = np.random.default_rng([*name.encode()])
    shape = (22, 24, 9)
    brain = np.zeros(shape, np.int16)
    brain[1:-3, 2:-2, 1:-1] = 1
    for channel in ("flair", "t1", "t1ce", "t2"):
        save(
            folder / f"{name}_{channel}.{ending}",
            brain * rng.integers(50, 900, shape).astype(np.int16),
            np.eye(4),
        )
    save(folder / f"{name}_seg.{ending}", blocks(shape, [1, 2, 4]), np.eye(4))


def make_flare(
    root: Path, name: str, body: np.ndarray, label: np.ndarray, affine: np.ndarray
) -> None:
    save(root / "TrainingImg" / f"{name}_0000.nii.gz", body, affine)
    save(root / "TrainingMask" / f"{name}.nii.gz", label, affine)


def inference_config(bundle: Path) -> ConfigParser:
    """The parsed inference.yaml, on the CPU."""
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.yaml"))
    config["device"] = "cpu"
    config["bundle_root"] = str(bundle)
    return config


def copy_with_weights(bundle: Path, folder: Path) -> Path:
    """Copy a bundle, but for what running it has left there."""
    copy = folder / bundle.name
    for name in ("configs", "docs"):
        shutil.copytree(bundle / name, copy / name)
    shutil.copy(bundle / "LICENSE", copy)
    (copy / "models").mkdir()
    shutil.copy(bundle / "models" / "model.pt", copy / "models")
    return copy


def small_facts(bundle: Path, size: Sequence[int] = SIZE) -> Facts:
    """Facts of a bundle with slices of that size, all of which the network sees, or patches with
    that base.
    """
    facts = inference_config(bundle).get_parsed_content("facts")
    if facts.spatial_dims == 3:
        return replace(facts, crop_size=[*size, 8])
    return replace(facts, image_size=list(size), crop_size=list(size))


def make_prepared(bundle: Path, folder: Path, cases: int = 2) -> Path:
    """Prepared cases of a bundle at 32 x 32, so many of each split: noise with a square of every
    class.
    """
    facts = small_facts(bundle)
    rng = np.random.default_rng(0)
    datalist: dict[str, list[dict[str, Any]]] = {}
    for split in ("training", "validation", "testing"):
        datalist[split] = []
        for index in range(cases):
            case = f"{split}{index}"
            label = np.zeros((*SIZE, 5 * facts.spatial_dims - 8 + index), np.uint8)
            for k in range(1, facts.num_classes):
                label[6 * k : 6 * k + 6, 8:20] = k
            channels = (facts.in_channels,) if facts.in_channels > 1 else ()
            save(
                folder / case / "image.nii",
                rng.normal(size=(*label.shape, *channels)).astype(np.float32),
            )
            save(folder / case / "label.nii", label)
            datalist[split].append(
                {"case": case, "image": f"{case}/image.nii", "label": f"{case}/label.nii"}
            )
    write_facts(replace(facts, source=str(folder)), folder)
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


def make_weights(bundle: Path, folder: Path, size: Sequence[int] = SIZE) -> Path:
    """Random weights of a bundle, and facts as in `small_facts`."""
    config = inference_config(bundle)
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(config.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    write_facts(replace(small_facts(bundle, size), pixel_size=[1.2, 2.0]), folder)
    return folder


def made_up(kind: type[Calibrator], classes: int) -> Calibrator:
    """A calibrator of a kind, whose parameters are not those of a new one."""
    calibrator = kind()
    values = {1: torch.linspace(0.6, 1.5, classes), 0: torch.tensor(2.0)}  # for each class, or one
    state = {name: values[own.ndim] for name, own in calibrator.state().items()}
    calibrator.set_state(state)
    return calibrator


def make_images(bundle: Path, folder: Path) -> Path:
    """One image of a bundle, `scan`, as it comes from a scanner: its own size and spacing."""
    rng = np.random.default_rng(1)
    for suffix in inference_config(bundle).get_parsed_content("facts").file_suffixes or [""]:
        save(folder / f"scan{suffix}.nii.gz", rng.integers(-200, 300, (30, 41, 4)).astype(np.int16))
    return folder


def run_bundle(bundle: Path, *configs: str, **override: Any) -> None:
    """Run a bundle in this process, on the CPU."""
    monai.bundle.run(
        config_file=[str(bundle / "configs" / name) for name in configs],
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        **{"device": "cpu", "num_workers": 0, **override},
    )


def refusal(bundle: Path, *configs: str, **override: Any) -> str:
    """Run a bundle in this process with a mistake of the user, and return the one line that ends
    it.
    """
    log, shown, before = io.StringIO(), io.StringIO(), sys.excepthook
    with redirect_stdout(log), redirect_stderr(shown), pytest.raises(SystemExit) as end:  # noqa: PT012
        try:
            run_bundle(bundle, *configs, **override)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
    sys.excepthook = before
    assert end.value.code == 2
    assert "Traceback" not in log.getvalue()
    (line,) = shown.getvalue().splitlines()
    return line


def snapshot(folder: Path) -> dict[str, str]:
    """Return the hash of each file below a folder, but for those of `.run`, and where links point,
    by their names relative to it.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if ".run" in path.parts:  # locks, and the record of the run
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            )
    return found


def files(folder: Path) -> set[str]:
    """The names of the files in a `snapshot`."""
    return {name for name, content in snapshot(folder).items() if content != "folder"}
