"""The shape of the code: how many decisions a function makes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

MAX_BRANCHES, MAX_EXCEPTIONS, LIMIT = 10, 5, 15
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.match_case,
)


def count_branches(function: ast.AST) -> int:
    """Return the branch points: statements and expressions that decide or repeat, and operators."""
    count = 0
    for node in ast.walk(function):
        count += isinstance(node, BRANCHES)
        if isinstance(node, ast.comprehension):
            count += len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
    return count


def functions(folder: Path) -> Iterator[tuple[str, ast.AST]]:
    for file in sorted(folder.rglob("*.py")):
        if "tests" in file.relative_to(folder).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.name}", node


def test_branch_points_are_counted() -> None:
    code = "def f(x):\n if x and x or 1:\n  return [y for y in x if y] if x else 0\n"
    assert count_branches(ast.parse(code)) == 6


@pytest.mark.parametrize("folder", ["calib_components", "calib_workflows", "calib_tools", "study"])
def test_few_functions_have_many_branch_points(folder: str) -> None:
    counted = {name: count_branches(node) for name, node in functions(ROOT / folder)}
    many = {name: count for name, count in counted.items() if count > MAX_BRANCHES}
    assert len(many) <= MAX_EXCEPTIONS, many
    assert all(count <= LIMIT for count in many.values()), many
