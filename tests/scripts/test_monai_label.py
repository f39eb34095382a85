"""What scripts/monai_label does before the server starts, with stand-ins for MONAI Label and a
bundle's package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT

PYTHON = """#!/usr/bin/env bash
# Stands for python: unpacks a package of the bundle "$2", which is in the folder "$4".
case "$1" in
  scripts/package_bundle.py)
    mkdir -p "$4"; cp -r "$2" "$4/$(basename "$2")"; touch "$4/package.zip" ;;
  -m) ;;
esac
"""
SERVER = """#!/usr/bin/env bash
# Stands for monailabel.
if [ "$1" != apps ]; then echo "$@"; exit; fi
mkdir -p "$6/monaibundle"; touch "$6/monaibundle/main.py"
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "scripts" / "helpers").mkdir(parents=True)
    for name in ("monai_label", "helpers/label_app.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    commands = folder / ".venv-monailabel" / "bin"
    commands.mkdir(parents=True)
    (commands.parent / "ready").touch()
    for name, text in (("python", PYTHON), ("monailabel", SERVER)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return folder


def serve(
    repository: Path, bundle: str, here: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [repository / "scripts" / "monai_label", bundle, "studies"]
    variables = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=here, env=variables, capture_output=True, text=True, check=False
    )


def test_a_copy_is_served_until_the_weights_change(repository: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    models = here / "bundle" / "models"
    models.mkdir(parents=True)
    (here / "studies").mkdir()
    assert "bundle/models/model.pt is missing" in serve(repository, "bundle", here).stderr
    (models / "model.pt").write_text("first")
    (models / "facts.yaml").write_text("facts")
    (here / "link").symlink_to("bundle")
    for name in ("link", "bundle"):  # copied, and as it is
        done = serve(repository, name, here, MONAI_LABEL_HOME="home")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(
            f"start_server --app {here}/home/monaibundle --studies {here}/studies"
        )
        assert done.stderr.count("monai_label: 3/4 Copy the bundle") == (name == "link")
        assert "monai_label: 4/4 Start the server" in done.stderr
    served = here / "home" / "monaibundle" / "model" / "bundle"
    assert (served / "data" / "facts.yaml").read_text() == "facts"
    (served / "models" / "model.pt").write_text("trained further")
    assert serve(repository, "bundle", here, MONAI_LABEL_HOME="home").returncode == 0
    (models / "model.pt").write_text("calibrated")
    done = serve(repository, "bundle", here, MONAI_LABEL_HOME="home")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"monai_label: {models}/model.pt has changed since it was copied to {served}"
    )
    assert (served / "models" / "model.pt").read_text() == "trained further"
