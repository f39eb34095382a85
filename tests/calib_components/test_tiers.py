"""What each tier of the package imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import calib_components

PACKAGE = Path(calib_components.__file__).parent
EXTRAS = {
    "fire",
    "filelock",
    "ignite",
    "jinja2",
    "matplotlib",
    "nibabel",
    "pandas",
    "tensorboard",
    "tqdm",
    "yaml",
}


def imported(module: Path) -> Iterator[str]:
    """Names that a module imports when it is imported, with those of the packages that they are
    in.
    """
    for node in ast.parse(module.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def needed(*packages: str) -> set[str]:
    """All that packages import, also through modules of this one."""
    found: set[str] = set()
    waiting = {f"calib_components.{name}" for name in packages}
    while waiting:
        name = waiting.pop()
        found.add(name)
        path = PACKAGE.parent.joinpath(*name.split("."))
        for module in (path.with_suffix(".py"), path / "__init__.py"):
            if name.startswith("calib_components") and module.is_file():
                waiting |= {*imported(module)} - found
    return found


def test_losses_metrics_and_posthoc_need_no_extra() -> None:
    assert needed("losses", "metrics", "posthoc") & EXTRAS == set()
    assert "ignite" in needed("handlers")  # the search goes through modules


@pytest.mark.parametrize("package", ["bundle", "data", "errors", "handlers", "inference"])
def test_training_needs_neither_matplotlib_nor_the_tools(package: str) -> None:
    assert (
        needed(package)
        & {"matplotlib", "fire", "calib_components.tools", "calib_components.figures"}
        == set()
    )
