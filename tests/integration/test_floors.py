"""What the packages import of each other, and the first of others."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate

import pytest

from tests.helpers import ROOT

FLOORS = ("calib_components", "calib_workflows", "calib_tools", "study")
# What a loss, a metric or a calibrator in anybody's training needs
DEPENDENCIES = {"calib_components", "monai", "numpy", "scipy", "torch", "typing_extensions"}


def imported(folder: str) -> Iterator[tuple[Path, str]]:
    """Yield each file of a package, and the top name of each module that it imports."""
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield file, node.module.split(".")[0]


@pytest.mark.parametrize("floor", FLOORS[:-1])
def test_imports_go_down_only(floor: str) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    found = [*imported(floor)]
    assert len(found) > 20
    assert [(file, name) for file, name in found if name in above] == []


def test_components_need_their_dependencies_alone() -> None:
    allowed = {*DEPENDENCIES, *sys.stdlib_module_names}
    found = imported("calib_components")
    assert [(file, name) for file, name in found if name not in allowed] == []


@pytest.mark.parametrize("place", ["calib_components.bundle.start_run", "calib_components.data"])
def test_bundles_of_version_04_are_refused_in_one_line(place: str) -> None:
    with pytest.raises(SystemExit, match=r"version 0.4 is in calib_workflows"):
        locate(place)  # as MONAI finds a component
    assert locate("calib_components.nothing") is None
