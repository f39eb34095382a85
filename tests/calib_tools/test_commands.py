"""The light module of commands: it calls what it describes, with every option."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from calib_tools import commands

RUN = {
    "prepare_data": "calib_tools.prepare.prepare",
    "evaluate_predictions": "calib_tools.predictions.evaluate",
    "calibrate_predictions": "calib_tools.predictions.calibrate",
    "report_folders": "calib_tools.report.report",
    "run_cases": "calib_tools.run_cases",
    "calibrate_model": "calib_tools.nnunet.calibrate",
}


def test_all_commands_are_here() -> None:
    defined = {
        name
        for name, each in vars(commands).items()
        if inspect.isfunction(each) and not name.startswith("_")
    }
    assert defined == {*RUN, "call"}


@pytest.mark.parametrize("name", RUN)
def test_what_runs_has_the_options_of_the_command(name: str) -> None:
    module = importlib.import_module(RUN[name])
    command: Callable[..., Any] = getattr(commands, name)
    assert inspect.signature(command) == inspect.signature(getattr(module, name))
    documented = inspect.getdoc(command) or ""
    for option in inspect.signature(command).parameters:
        assert f"\n    {option}: " in documented


@pytest.mark.parametrize("name", RUN)
def test_a_command_passes_on_what_it_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = importlib.import_module(RUN[name]), []
    signature = inspect.signature(getattr(commands, name))
    monkeypatch.setattr(
        module, name, lambda *args, **options: given.append(signature.bind(*args, **options))
    )
    required = {
        option: option
        for option, each in signature.parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    getattr(commands, name)(**required)
    given[0].apply_defaults()
    expected = signature.bind(**required)
    expected.apply_defaults()
    assert given[0].arguments == expected.arguments


def test_help_imports_no_torch() -> None:
    code = "import sys; from calib_tools.__main__ import main; main()"
    check = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    command = [sys.executable, "-c", check, "evaluate_predictions", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--structures" in done.stdout
    assert done.stdout.endswith("False\n")
