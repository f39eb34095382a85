"""Packages are complete: they run where only stock MONAI is installed, from data to predictions.
They hold nothing else, and are the same bytes every time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import pytest
import torch
from packaging.requirements import Requirement

import calib_components
from calib_components.errors import InputError
from calib_workflows.data.facts import write_facts
from scripts.helpers.packages import package_bundle
from tests.helpers import (
    ACDC,
    ROOT,
    SIZE,
    copy_with_weights,
    inference_config,
    make_acdc,
    make_images,
    make_weights,
    small_facts,
    snapshot,
)

RUNS = """
import json, sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from monai.bundle import run
for options in json.loads(sys.argv[1]):
    run(**options)
import calib_components
assert Path(calib_components.__file__).is_relative_to(sys.argv[2])
"""


def pack(bundle: Path, out: Path, **options: Any) -> Path:
    package_bundle(bundle, out, **options)
    (archive,) = out.glob(f"{bundle.name}_v*.zip")
    return archive


def names_in(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as package:
        return [name.removeprefix(f"{ACDC.name}/") for name in package.namelist()]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack it with MONAI's own command for that."""
    name = archive.name.split("_v")[0]
    monai.bundle.download(name=name, url=archive.as_uri(), bundle_dir=str(folder), progress=False)
    return folder / name


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_with_weights(ACDC, tmp_path / "source")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, built, checked and tried as for a release."""
    out = tmp_path_factory.mktemp("release")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["bash", ROOT / "scripts" / "release", "--offline", out]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2
    assert "evaluate_predictions" in done.stdout + done.stderr
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    files = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    packages = {"calib_components", "calib_workflows", "calib_tools"}
    assert names == {*files, *packages, "calib_components.egg-info"}
    return out / "environment"


def link_packages(names: Sequence[str], site_packages: Path) -> None:
    """Link the packages of these names, and what they require, into an environment."""
    known: set[str] = set()
    queue = [*names]
    while queue:
        name = queue.pop()
        if name.lower() in known:
            continue
        known.add(name.lower())
        package = metadata.distribution(name)
        for required in map(Requirement, package.requires or ()):
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                queue.append(required.name)
        for top in {file.parts[0] for file in package.files or () if file.parts[0] != ".."}:
            link = site_packages / top
            if not link.exists():
                link.symlink_to(Path(sysconfig.get_path("purelib")) / top)


@pytest.mark.slow
@pytest.mark.parametrize("required", [False, True], ids=["stock_monai", "wheel"])
def test_runs_where_only_stock_monai_or_the_wheel_is_installed(
    required: bool, bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In an empty folder, with a Python that has what the bundle's page tells to install."""
    if required:
        environment = request.getfixturevalue("wheel")
    else:
        environment = tmp_path / "stock"
        venv.create(environment, symlinks=True)
        (site_packages,) = environment.glob("lib/python*/site-packages")
        (line,) = re.findall("^pip install (.+)$", (bundle / "docs/README.md").read_text(), re.M)
        link_packages(line.split(), site_packages)
    unpacked = unpack(pack(bundle, tmp_path / "dist", required=required), tmp_path / "unpacked")
    make_acdc(tmp_path / "download", patients=3, shape=(30, 41, 4))
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: object) -> None:
        command = [environment / "bin" / "python", *map(str, arguments)]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            command, check=False, cwd=empty, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def options(*configs: str, **further: Any) -> dict[str, Any]:
        files = [str(unpacked / "configs" / name) for name in configs]
        common = {
            "bundle_root": str(unpacked),
            "image_size": list(SIZE),
            "device": "cpu",
            "num_workers": 0,
        }
        return {"config_file": files, **common, **further}

    size, fractions = ",".join(map(str, SIZE)), "0.34,0.33,0.33"
    script = unpacked / "scripts" / "prepare_data.py"
    run(
        script,
        "acdc",
        tmp_path / "download",
        unpacked / "data",
        "--image_size",
        size,
        "--fractions",
        fractions,
    )
    runs = [options("train.yaml", max_epochs=1, overwrite=True)]
    if not required:
        runs += [options("train.yaml", "calibrate.yaml"), options("train.yaml", "evaluate.yaml")]
    runs.append(options("inference.yaml", dataset_dir=str(make_images(ACDC, tmp_path / "images"))))
    run("-c", RUNS, json.dumps(runs), environment if required else unpacked)
    assert (unpacked / "eval" / "summary.json").is_file() == (not required)
    assert nib.load(unpacked / "predictions" / "scan_probability.nii.gz").shape[:3] == (30, 41, 4)
    assert list(empty.iterdir()) == []


def test_requires_the_package_in_place_of_a_copy(bundle: Path, tmp_path: Path) -> None:
    names = names_in(pack(bundle, tmp_path / "dist"))
    archive = pack(bundle, tmp_path / "required", required=True)
    assert names_in(archive) == [name for name in names if not name.startswith("calib_")]
    content = json.loads(zipfile.ZipFile(archive).read(f"{ACDC.name}/configs/metadata.json"))
    assert content["required_packages_version"]["calib-components"] == calib_components.__version__
    assert b"needs calib-components" in zipfile.ZipFile(archive).read(f"{ACDC.name}/docs/README.md")


def test_holds_the_bundle_what_it_uses_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    left_by_a_run = (
        "models/last.ckpt",
        "models/other/last.ckpt",
        "eval/cases.csv",
        "predictions/scan_seg.nii.gz",
        "data/datalist.json",
    )
    hidden = ("docs/.DS_Store", "docs/.git/config", "docs/__pycache__/a.pyc")
    for name in (*left_by_a_run, *hidden, "large_files.yml"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("")
    shutil.copyfile(bundle / "models" / "model.pt", bundle / "models" / "other" / "model.pt")
    write_facts(inference_config(bundle).get_parsed_content("facts"), bundle / "models")
    inside = names_in(pack(bundle, tmp_path / "dist"))
    assert inside == sorted(inside)
    assert not {*left_by_a_run, *hidden} & {*inside}
    at_the_top = {
        "LICENSE",
        "calib_components",
        "calib_tools",
        "calib_workflows",
        "configs",
        "docs",
        "large_files.yml",
        "models",
        "scripts",
    }
    assert {name.split("/")[0] for name in inside} == at_the_top
    assert {"configs/train.yaml", "configs/losses/nacl.yaml", "docs/README.md"} <= {*inside}
    assert [name for name in inside if name.startswith("models/")] == [
        "models/facts.yaml",
        "models/model.pt",
        "models/other/model.pt",
    ]
    assert {"calib_components/losses/nacl.py", "calib_components/py.typed"} <= {*inside}
    assert [name for name in inside if name.startswith("scripts/")] == ["scripts/prepare_data.py"]
    tools = {
        name.removeprefix("calib_tools/") for name in inside if name.startswith("calib_tools/")
    }
    assert {"prepare/acdc.py", "prepare/acdc.yaml"} <= tools
    assert {name.split("/")[0] for name in tools} == {
        "__init__.py",
        "cli.py",
        "commands.py",
        "parallel.py",
        "prepare",
    }


def test_same_files_give_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / ACDC.name
    shutil.copytree(bundle, other, copy_function=shutil.copyfile)
    os.utime(bundle / "LICENSE", (0, 0))
    (bundle / "LICENSE").chmod(0o600)
    assert (
        pack(bundle, tmp_path / "dist1").read_bytes()
        == pack(other, tmp_path / "dist2").read_bytes()
    )


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("LICENSE", None, "LICENSE"),
        ("configs/metadata.json", "{", "metadata.json"),
        ("docs/README.md", "# Title\n\n## Data\n", "README.md: cannot read"),
        ("models/model.pt", "version https://git-lfs.github.com/spec/v1", "torch.save"),
    ],
)
def test_an_unsuitable_bundle_is_refused(
    file: str, content: str | None, word: str, bundle: Path, tmp_path: Path
) -> None:
    (bundle / file).unlink() if content is None else (bundle / file).write_text(content)
    with pytest.raises(InputError, match=word):
        package_bundle(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_an_archive_is_replaced_on_demand(bundle: Path, tmp_path: Path) -> None:
    archive = pack(bundle, tmp_path / "dist")
    (bundle / "docs" / "more.md").write_text("more")
    with pytest.raises(InputError, match="--overwrite"):
        package_bundle(bundle, tmp_path / "dist")
    assert "docs/more.md" not in names_in(archive)
    package_bundle(bundle, tmp_path / "dist", overwrite=True)
    assert "docs/more.md" in names_in(archive)


def test_a_request_to_the_zoo_has_the_files_of_the_archive(bundle: Path, tmp_path: Path) -> None:
    models, unpacked = (
        tmp_path / "zoo" / "models",
        unpack(pack(bundle, tmp_path / "dist"), tmp_path / "unpacked"),
    )
    for overwrite in (False, True):
        package_bundle(bundle, zoo=tmp_path / "zoo", overwrite=overwrite)
        assert snapshot(models / ACDC.name) == snapshot(unpacked)
        (models / ACDC.name / "docs" / "old.md").touch()
    assert (tmp_path / "zoo" / "ci" / "unit_tests" / f"test_{ACDC.name}.py").is_file()


def test_monai_loads_the_network_from_a_local_folder(bundle: Path, tmp_path: Path) -> None:
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    unpack(pack(bundle, tmp_path / "dist"), tmp_path / "unpacked")
    network = inference_config(bundle).get_parsed_content("network_def")
    loaded = monai.bundle.load(
        ACDC.name, model=network, bundle_dir=str(tmp_path / "unpacked"), device="cpu"
    )
    # Monai.bundle.load leaves out what a new network lacks, and serves no quality
    del weights["reference"], weights["tests"], weights["fitted_on"]
    torch.testing.assert_close({**loaded.state_dict()}, {**weights}, rtol=0, atol=0)


def test_metadata_of_other_weights_or_classes_are_refused(bundle: Path, tmp_path: Path) -> None:
    weights = make_weights(ACDC, bundle / "models") / "model.pt"
    with pytest.raises(InputError, match=r"it describes other weights: .*new_bundle\.py"):
        package_bundle(bundle, tmp_path / "dist")
    pack(bundle, tmp_path / "dist", any_weights=True)
    facts = small_facts(ACDC)
    for other in (
        replace(facts, label_codes=[0, 1, 2, 4]),
        replace(facts, class_names=["background", "a", "b", "c"]),
        replace(facts, in_channels=2),
    ):
        write_facts(other, weights.parent)
        with pytest.raises(InputError, match=r"it describes 1 channel.*models/facts\.yaml"):
            package_bundle(bundle, tmp_path / "dist", any_weights=True)
