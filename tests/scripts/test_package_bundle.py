"""Packages stand alone: they run where only stock MONAI is, hold nothing else, and are the same bytes every time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import pytest
import torch

from scripts.package_bundle import PackageError, package_bundle
from tests.helpers import BUNDLES, SIZE, copy_with_weights, inference_config, make_images, make_prepared

ACDC = next(path for path in BUNDLES if path.name.startswith("acdc"))


@pytest.fixture(scope="module")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what this one has but for `calib_components`: its editable install is not followed."""
    folder = tmp_path_factory.mktemp("stock")
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "stock.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    check = "import importlib.util as util; assert util.find_spec('monai') and not util.find_spec('calib_components')"
    subprocess.run([python, "-c", check], check=True, cwd=folder)
    return python


def pack(bundle: Path, out: Path) -> Path:
    package_bundle(str(bundle), str(out))
    (archive,) = out.glob(f"{bundle.name}_v*.zip")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack it with MONAI's own command for that."""
    name = archive.name.split("_v")[0]
    monai.bundle.download(name=name, url=archive.as_uri(), bundle_dir=str(folder), progress=False)
    return folder / name


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_runs_where_only_stock_monai_is(bundle: Path, stock_python: Path, tmp_path: Path) -> None:
    archive = pack(copy_with_weights(bundle, tmp_path / "source"), tmp_path / "dist")
    unpacked = unpack(archive, tmp_path / "unpacked")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*configs: str, dataset_dir: Path, **options: Any) -> None:
        files = [str(unpacked / "configs" / name) for name in configs]
        options |= {"config_file": files, "bundle_root": unpacked, "dataset_dir": dataset_dir}
        options |= {"image_size": list(SIZE), "device": "cpu", "num_workers": 0}
        done = subprocess.run(
            [stock_python, "-m", "monai.bundle", "run", *(f"--{key}={value}" for key, value in options.items())],
            check=False,
            cwd=elsewhere,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    prepared = make_prepared(bundle, tmp_path / "prepared")
    before = torch.load(unpacked / "models" / "model.pt", weights_only=True)
    run("train.yaml", dataset_dir=prepared, max_epochs=1)
    after = torch.load(unpacked / "models" / "model.pt", weights_only=True)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    run("train.yaml", "evaluate.yaml", dataset_dir=prepared)
    assert (unpacked / "eval" / "summary.json").is_file()
    run("inference.yaml", dataset_dir=make_images(bundle, tmp_path / "images"))
    for kind in ("seg", "probability", "uncertainty"):
        assert nib.load(unpacked / "predictions" / f"scan_{kind}.nii.gz").shape[:3] == (30, 41, 4)
    assert list(elsewhere.iterdir()) == []


def test_holds_the_bundle_and_the_components_and_nothing_else(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    for left_by_a_run in ("models/last.pt", "eval/cases.csv", "predictions/scan_seg.nii.gz", "data/datalist.json"):
        (bundle / left_by_a_run).parent.mkdir(exist_ok=True)
        (bundle / left_by_a_run).write_text("")
    with zipfile.ZipFile(pack(bundle, tmp_path / "dist")) as package:
        names = package.namelist()
    assert names == sorted(names)
    inside = [name.removeprefix(f"{ACDC.name}/") for name in names]
    assert {name.split("/")[0] for name in inside} == {"LICENSE", "calib_components", "configs", "docs", "models"}
    assert {"configs/train.yaml", "configs/losses/nacl.yaml", "docs/README.md", "models/model.pt"} <= set(inside)
    assert "calib_components/losses/nacl.py" in inside
    assert not any("last.pt" in name or "__pycache__" in name for name in inside)


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one = copy_with_weights(ACDC, tmp_path / "one")
    other = tmp_path / "other" / ACDC.name
    shutil.copytree(one, other, copy_function=shutil.copyfile)
    for path in (one / "LICENSE", one / "configs" / "train.yaml"):
        os.utime(path, (0, 0))
        path.chmod(0o600)
    assert pack(one, tmp_path / "dist1").read_bytes() == pack(other, tmp_path / "dist2").read_bytes()


@pytest.mark.parametrize("name", ["models/model.pt", "models", "docs/notes.md", "configs/losses"])
def test_a_link_out_of_the_bundle_is_refused(name: str, tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    outside = tmp_path / "outside"
    if (bundle / name).exists():
        (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    with pytest.raises(PackageError, match="symbolic link"):
        package_bundle(str(bundle), str(tmp_path / "dist"))
    assert not (tmp_path / "dist").exists()


def test_a_version_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    metadata = bundle / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "version": "/../../0.1.0"}))
    with pytest.raises(PackageError, match="is not of the form"):
        package_bundle(str(bundle), str(tmp_path / "dist"))


def test_an_archive_that_leaves_the_folder_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "evil_v0.1.0.zip"
    with zipfile.ZipFile(archive, "w") as package:
        package.writestr("evil/../../outside.txt", "")
    with pytest.raises(ValueError, match="Unsafe path"):
        unpack(archive, tmp_path / "unpacked")
    assert not (tmp_path / "outside.txt").exists()


def test_a_folder_that_is_no_bundle_is_one_line_of_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/package_bundle.py", tmp_path], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == f"package_bundle: {tmp_path}/LICENSE: no such file or folder; every bundle has one\n"


def test_monai_loads_the_network_from_a_local_folder(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path / "source")
    unpack(pack(bundle, tmp_path / "dist"), tmp_path / "unpacked")
    network = inference_config(bundle).get_parsed_content("network_def")
    loaded = monai.bundle.load(ACDC.name, model=network, bundle_dir=str(tmp_path / "unpacked"), device="cpu")
    assert loaded is network
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.testing.assert_close(network.state_dict(), weights, rtol=0, atol=0)
