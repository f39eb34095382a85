"""Packages are complete: they run where only stock MONAI is installed, from data to predictions. They hold nothing
else, and are the same bytes every time."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import pytest
import torch

from calib_components.data.facts import write_facts
from calib_components.errors import InputError
from scripts.package_bundle import package_bundle
from tests.helpers import (
    ACDC,
    BUNDLES,
    SIZE,
    blocks,
    copy_with_weights,
    inference_config,
    make_acdc,
    make_brats,
    make_flare,
    make_images,
    run_script,
)


@pytest.fixture(scope="module")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has all that this one has except `calib_components`, whose editable install is not followed."""
    folder = tmp_path_factory.mktemp("stock")
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "stock.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    check = "import importlib.util as util; assert util.find_spec('monai') and not util.find_spec('calib_components')"
    subprocess.run([python, "-c", check], check=True, cwd=folder)
    return python


def pack(bundle: Path, out: Path) -> Path:
    package_bundle(bundle, out)
    (archive,) = out.glob(f"{bundle.name}_v*.zip")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack it with MONAI's own command for that."""
    name = archive.name.split("_v")[0]
    monai.bundle.download(name=name, url=archive.as_uri(), bundle_dir=str(folder), progress=False)
    return folder / name


def make_download(dataset: str, folder: Path) -> Path:
    """Three small patients in the layout of a data set."""
    if dataset == "acdc":
        return make_acdc(folder, patients=3, shape=(30, 41, 4))
    for name in "abc":
        if dataset == "brats":
            make_brats(folder, name)
        else:
            body = np.random.default_rng(0).integers(-200, 300, (30, 41, 4)).astype(np.int16)
            make_flare(folder, name, body, blocks(body.shape, [1, 2, 3, 4]), np.diag([2.0, 2.0, 5.0, 1.0]))
    return folder


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_prepares_trains_calibrates_evaluates_and_infers_with_stock_monai_only(
    bundle: Path, stock_python: Path, tmp_path: Path
) -> None:
    archive = pack(copy_with_weights(bundle, tmp_path / "source"), tmp_path / "dist")
    unpacked = unpack(archive, tmp_path / "unpacked")
    dataset = bundle.name.split("_")[0]
    make_download(dataset, tmp_path / "download")
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: object) -> None:
        done = subprocess.run(
            [stock_python, *map(str, arguments)],
            check=False,
            cwd=empty,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def options(*configs: str, **further: Any) -> dict[str, Any]:
        files = [str(unpacked / "configs" / name) for name in configs]
        common = {"bundle_root": str(unpacked), "image_size": list(SIZE), "device": "cpu", "num_workers": 0}
        return {"config_file": files, **common, **further}

    size, fractions = ",".join(map(str, SIZE)), "0.34,0.33,0.33"
    script, source = unpacked / "scripts" / "prepare_data.py", tmp_path / "download"
    run(script, dataset, source, unpacked / "data", "--image_size", size, "--fractions", fractions)
    before = torch.load(unpacked / "models" / "model.pt", weights_only=True)
    runs = [
        options("train.yaml", max_epochs=1),
        options("train.yaml", "calibrate.yaml"),
        options("train.yaml", "evaluate.yaml"),
        options("inference.yaml", dataset_dir=str(make_images(bundle, tmp_path / "images"))),
    ]
    if bundle == ACDC:  # each as a user types it
        for given in runs:
            run("-m", "monai.bundle", "run", *(f"--{key}={value}" for key, value in given.items()))
    else:  # the same configs, except for the facts of the data, in one process
        code = "import json, sys, monai\nfor options in json.loads(sys.argv[1]):\n    monai.bundle.run(**options)"
        run("-c", code, json.dumps(runs))
    weights = torch.load(unpacked / "models" / "model.pt", weights_only=True)
    temperature = weights.pop("temperature").item()
    assert any(not torch.equal(before[name], weights[name]) for name in weights)
    assert json.loads((unpacked / "eval" / "temperature.json").read_text())["temperature"] == pytest.approx(temperature)
    assert json.loads((unpacked / "eval" / "summary.json").read_text())["temperature"] == temperature != 1
    for kind in ("seg", "probability", "uncertainty"):
        assert nib.load(unpacked / "predictions" / f"scan_{kind}.nii.gz").shape[:3] == (30, 41, 4)
    assert list(empty.iterdir()) == []


def test_holds_the_bundle_what_it_uses_and_nothing_else(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    for left_by_a_run in ("models/last.ckpt", "eval/cases.csv", "predictions/scan_seg.nii.gz", "data/datalist.json"):
        (bundle / left_by_a_run).parent.mkdir(exist_ok=True)
        (bundle / left_by_a_run).write_text("")
    (bundle / "large_files.yml").write_text("large_files: []\n")
    with zipfile.ZipFile(pack(bundle, tmp_path / "dist")) as package:
        names = package.namelist()
    assert names == sorted(names)
    inside = [name.removeprefix(f"{ACDC.name}/") for name in names]
    at_the_top = {"LICENSE", "calib_components", "configs", "docs", "large_files.yml", "models", "scripts"}
    assert {name.split("/")[0] for name in inside} == at_the_top
    assert {"configs/train.yaml", "configs/losses/nacl.yaml", "docs/README.md", "models/model.pt"} <= set(inside)
    assert {"calib_components/losses/nacl.py", "calib_components/py.typed"} <= set(inside)
    assert {"configs/calibrate.yaml", "calib_components/posthoc/temperature.py"} <= set(inside)
    assert [name for name in inside if name.startswith("scripts/")] == ["scripts/prepare_data.py"]
    tools = {name.removeprefix("calib_components/tools/") for name in inside if "/tools/" in name}
    assert {"__init__.py", "cli.py", "prepare/acdc.py", "prepare/acdc.yaml"} <= tools
    at_the_top = {"__init__.py", "cli.py", "prepare"}
    assert {name.split("/")[0] for name in tools} == at_the_top
    assert not any(name.endswith("__main__.py") for name in inside)
    assert not any("last.ckpt" in name or "__pycache__" in name for name in inside)


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
    with pytest.raises(InputError, match="expected a file or folder of the bundle itself, got a symbolic link"):
        package_bundle(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": "/../../0.1.0"}', "expected a version of the form 1.2.3, got '/../../0.1.0'"),
        ("{}", "expected JSON with a version, got one that lacks 'version'"),
        ("{", "expected JSON with a version, got Expecting"),
    ],
)
def test_a_version_that_is_missing_or_leaves_the_folder_is_refused(text: str, message: str, tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    (bundle / "configs" / "metadata.json").write_text(text)
    with pytest.raises(InputError, match=f"metadata.json: {re.escape(message)}"):
        package_bundle(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_hidden_and_compiled_files_are_left_out(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    for name in (".env", "docs/.DS_Store", "docs/.git/config", "configs/.train.yaml.swp", "docs/__pycache__/a.pyc"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("SECRET=1")
    with zipfile.ZipFile(pack(bundle, tmp_path / "dist")) as package:
        names = package.namelist()
    assert not [name for name in names if "/." in name or "pyc" in name]


def test_facts_beside_the_weights_are_packed(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    write_facts(inference_config(bundle).get_parsed_content("facts"), bundle / "models")
    (bundle / "models" / "last.ckpt").write_text("the state of a training")
    with zipfile.ZipFile(pack(bundle, tmp_path / "dist")) as package:
        models = {name.rpartition("/")[2] for name in package.namelist() if name.startswith(f"{ACDC.name}/models/")}
    assert models == {"model.pt", "facts.yaml"}
    (bundle / "models" / "facts.yaml").write_text("dataset: acdc\n")
    with pytest.raises(InputError, match=r"models/facts.yaml: expected the facts of a data set, got none called"):
        package_bundle(bundle, tmp_path / "dist")


def test_full_disk_leaves_the_earlier_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = copy_with_weights(ACDC, tmp_path)
    before = pack(bundle, tmp_path / "dist").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(
        InputError, match=r"_v[\w.]+zip: expected a file that can be written, got No space left on device"
    ):
        package_bundle(bundle, tmp_path / "dist")
    (archive,) = (tmp_path / "dist").iterdir()
    assert archive.read_bytes() == before


def test_an_archive_that_leaves_the_folder_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "evil_v0.1.0.zip"
    with zipfile.ZipFile(archive, "w") as package:
        package.writestr("evil/../../outside.txt", "")
    with pytest.raises(ValueError, match="Unsafe path"):
        unpack(archive, tmp_path / "unpacked")
    assert not (tmp_path / "outside.txt").exists()


def test_a_folder_that_is_no_bundle_is_one_line_of_error(tmp_path: Path) -> None:
    done = run_script("scripts/package_bundle.py", tmp_path)
    assert done.returncode == 1
    expected = f"{tmp_path}/LICENSE: expected a file or folder, as in every bundle, got none"
    assert done.stderr == f"package_bundle: {expected}\n"


def test_monai_loads_the_network_from_a_local_folder(tmp_path: Path) -> None:
    bundle = copy_with_weights(ACDC, tmp_path / "source")
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    weights["temperature"] = torch.tensor(0.67)
    torch.save(weights, bundle / "models" / "model.pt")
    unpack(pack(bundle, tmp_path / "dist"), tmp_path / "unpacked")
    network = inference_config(bundle).get_parsed_content("network_def")
    loaded = monai.bundle.load(ACDC.name, model=network, bundle_dir=str(tmp_path / "unpacked"), device="cpu")
    assert loaded is network
    torch.testing.assert_close({**network.state_dict()}, {**weights}, rtol=0, atol=0)
