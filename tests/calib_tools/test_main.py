"""The commands of the installed package and of `scripts`: their help, and mistakes in arguments.

What they do is tested beside them.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError

from calib_tools import cli, commands
from calib_tools.__main__ import COMMANDS, ELSEWHERE, main
from scripts.helpers import commands as of_scripts
from study.compare import commands as of_study
from tests.helpers import ROOT

# Prints the help of each command line, and what they have imported.
SHOW_HELP = """
import contextlib, io, json, runpy, sys
shown = {}
for file, *words in json.loads(sys.argv[1]):
    sys.argv = [file, *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(file, run_name="__main__")
    shown[" ".join([file, *words])] = out.getvalue()
print(json.dumps([shown, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


MAIN = "calib_tools/__main__.py"
PACKAGE: dict[str, Callable[..., None]] = {
    f"{MAIN} prepare_data": commands.prepare_data,
    f"{MAIN} evaluate_predictions": commands.evaluate_predictions,
    f"{MAIN} calibrate_predictions": commands.calibrate_predictions,
    f"{MAIN} report": commands.report_folders,
    f"{MAIN} run_cases": commands.run_cases,
    f"{MAIN} nnunet calibrate": commands.calibrate_model,
}
SCRIPTS: dict[str, Callable[..., None]] = {
    **{
        f"scripts/{name}.py": getattr(commands, name)
        for name in ("prepare_data", "evaluate_predictions", "calibrate_predictions", "run_cases")
    },
    **{
        f"scripts/{name}.py": getattr(of_scripts, name)
        for name in ("demo", "new_bundle", "package_bundle")
    },
    "scripts/compare_losses.py": of_study.compare_losses,
}
BENCHMARKS: dict[str, Callable[..., None]] = {
    f"scripts/bench.py {name}": getattr(of_scripts, name)
    for name in ("losses", "evaluation", "inference")
}
DOCUMENTED = PACKAGE | SCRIPTS | BENCHMARKS
OTHERS = ["scripts/sync_bundles.py", "scripts/bench.py", MAIN]


@pytest.fixture(scope="module")
def helps() -> tuple[dict[str, str], list[str]]:
    """The help of each command line, and the packages that all of them import."""
    lines = json.dumps([line.split() for line in (*DOCUMENTED, *OTHERS)])
    environment = {**os.environ, "COLUMNS": "4000", "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, lines],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return tuple(json.loads(shown))  # type: ignore[return-value]


def words_of(text: str) -> str:
    return " ".join(text.replace("`", "").split())


@pytest.mark.parametrize("line", DOCUMENTED)
def test_help_has_every_option_and_what_it_is(
    line: str, helps: tuple[dict[str, str], list[str]]
) -> None:
    shown, command = words_of(helps[0][line]), DOCUMENTED[line]
    documented = inspect.getdoc(command) or ""
    assert words_of(documented.partition("\n\n")[0]) in shown
    for name in inspect.signature(command).parameters.keys() - {"overrides"}:
        (sentence,) = re.findall(rf"^    {name}: (.*)", documented, re.MULTILINE)
        assert words_of(sentence) in shown


def test_help_imports_neither_torch_nor_monai(helps: tuple[dict[str, str], list[str]]) -> None:
    assert "cyclopts" in helps[1]
    assert {"torch", "monai", "numpy", "pandas", "nibabel"} & {*helps[1]} == set()


def test_help_says_which_command_trains_and_segments(
    helps: tuple[dict[str, str], list[str]],
) -> None:
    for words in ELSEWHERE.values():
        assert words in helps[0][MAIN]
    assert re.search("nnunet +Commands: trainers, calibrate", helps[0][MAIN])


PAGES = [
    file
    for pattern in ("*.md", "docs/*.md", "demo/*.md", "bundles/*/docs/*.md")
    for file in sorted(ROOT.glob(pattern))
    if not file.name.startswith("CHANGELOG")
]


def printed_commands(page: Path) -> Iterator[tuple[str, Any, list[str]]]:
    """The commands in code blocks and code spans of a page, with what reads them and their
    words.
    """
    text = page.read_text().replace("\\\n", " ")
    for script, rest in re.findall(
        r"(?:python scripts/(\w+)\.py|calib-components) ([^`\n|)]*)", text
    ):
        called = DOCUMENTED.get(f"scripts/{script}.py") if script else COMMANDS
        words = shlex.split(rest.partition(";")[0], comments=True)
        is_mention = len(words) < 2 or "](" in rest
        if called and not is_mention and "[@]" not in rest:  # arrays of a shell
            yield rest, called, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_pages_are_read(page: Path) -> None:
    for rest, called, words in printed_commands(page):
        try:
            cli.parse("tool", called, words)
        except CycloptsError as error:
            pytest.fail(f"{rest}: {error}")


def test_pages_print_commands() -> None:
    assert sum(len([*printed_commands(page)]) for page in PAGES) > 20


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The handler of SIGTERM as it was, after a test that calls `main`."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run a command, and return its exit code, or what Python would print as it exits."""
    monkeypatch.setattr(sys, "argv", ["calib-components", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare_data flare absent OUT", "absent"),
        ("reprot results", '"report"'),
        ("report absent", "absent"),
        ("report absent --ou x", "--out"),
        *((word, word) for word in ELSEWHERE),
    ],
)
def test_mistakes_are_one_line_end_with_2_and_leave_nothing(
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("calib-components: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "calib_tools.cli", raising=False)
    monkeypatch.delattr("calib_tools.cli", raising=False)
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert str(run(monkeypatch, "report")).startswith("calib-components: no module cyclopts.")
