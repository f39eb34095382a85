"""The commands of the installed package. What they do is tested beside them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calib_components.__main__ import main

OPTIONS = {
    "prepare_data": "--image_size",
    "report": "--validation",
    "evaluate_predictions": "--structures",
    "calibrate_predictions": "--apply_to",
    "nnunet calibrate": "--patient_pattern",
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The handler of SIGTERM as it was, after a test that calls `main`."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run a command, and return its exit code, or what Python would print as it exits."""
    monkeypatch.setenv("PAGER", "cat")
    monkeypatch.setattr(sys, "argv", ["calib-components", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("command", ["", *OPTIONS])
def test_help_lists_commands_and_options(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *command.split(), *(["--help"] if command else [])) == 0
    shown = "".join(capsys.readouterr())
    assert all(
        name in shown
        for name in ([OPTIONS[command]] if command else [name.split()[0] for name in OPTIONS])
    )


@pytest.mark.parametrize(
    "arguments",
    ["prepare_data flare absent OUT", "reprot results", "report absent", "report absent --ou x"],
)
def test_mistakes_end_with_2_and_leave_nothing(
    arguments: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments.split()) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_compare_losses_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "compare_losses", "bundle", "--seeds", "0,1") == 2
    assert "scripts/compare_losses.py" in capsys.readouterr().err


def test_missing_extra_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of one module: losses register an operator, and TorchScript keeps the ids of operators that
    # are gone.
    monkeypatch.delitem(sys.modules, "calib_components.tools.cli", raising=False)
    monkeypatch.delattr("calib_components.tools.cli", raising=False)
    monkeypatch.setitem(sys.modules, "fire", None)
    assert str(run(monkeypatch, "report")).startswith("calib-components: no module fire.")
