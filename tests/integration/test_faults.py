"""Planted faults: the test that each names in `tests/faults.yaml` finds it.

A run plants a dozen, another one each day; with `FAULTS=all` in the environment, all of them.
"""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

DAILY = 12
HAS_STUDY = (ROOT / "study").is_dir()  # the product is tested without it, too
FAULTS = [
    fault
    for fault in yaml.safe_load((ROOT / "tests" / "faults.yaml").read_text())
    if HAS_STUDY or not fault["test"].startswith("study")
]


def faults_of_today() -> list[dict[str, str]]:
    if os.environ.get("FAULTS") == "all":
        return FAULTS
    first = datetime.date.today().toordinal() * DAILY
    return [FAULTS[(first + index) % len(FAULTS)] for index in range(DAILY)]


def test_faults_are_of_the_code_as_it_is() -> None:
    stale = [
        fault["id"]
        for fault in FAULTS
        if (ROOT / fault["file"]).read_text().count(fault["old"]) != 1
        or not (ROOT / shlex.split(fault["test"])[0].partition("::")[0]).is_file()
    ]
    assert not stale
    assert len({fault["id"] for fault in FAULTS}) == len(FAULTS)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the tests need, beside the shared data."""
    parent = tmp_path_factory.mktemp("faults")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, parent / "tree", ignore=ignored)
    if (shared := ROOT.parent / "shared").is_dir():
        (parent / "shared").symlink_to(shared)
    return parent / "tree"


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults_of_today(), ids=lambda fault: fault["id"])
def test_is_found(fault: dict[str, str], tree: Path) -> None:
    file = tree / fault["file"]
    code = file.read_text()
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            check=False,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
        )

    file.write_text(code.replace(fault["old"], fault["new"]))
    is_config = fault["file"].startswith("bundles/common")
    try:
        if is_config:
            run("scripts/sync_bundles.py")
        command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        done = run(*command, *shlex.split(fault["test"]))
    finally:
        file.write_text(code)
        if is_config:
            run("scripts/sync_bundles.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
