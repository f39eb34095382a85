"""Options as typed, errors in one line, and no work before every option is known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from calib_components.errors import InputError
from calib_components.tools import cli
from tests.helpers import ROOT

calls: list[dict[str, Any]] = []


def work(
    folder: Path,
    labels: Sequence[str] = (),
    sizes: Sequence[int] | None = None,
    rates: Sequence[float] = (),
    name: str = "none",
    seed: int = 0,
    rate: float = 0.5,
    fast: bool = False,
    limit: int | None = None,
) -> None:
    """Do the work.

    Args:
        folder: Folder to work in.
        labels: Names of the labels.
        sizes: Sizes.
        rates: Rates.
        name: Name.
        seed: Seed.
        rate: Rate.
        fast: Take the fast way.
        limit: Limit.
    """
    calls.append(dict(locals()))


def accept(folder: Path, **options: Any) -> None:
    """Accept any option."""
    calls.append({"folder": folder, **options})


def join(*folders: Path, out: Path = Path("joined"), name: str | None = None) -> None:
    """Join folders.

    Args:
        folders: Folders to join.
        out: Where to.
        name: Name.
    """
    calls.append({"folders": folders, "out": out, "name": name})


def fail(kind: str) -> None:
    """Fail."""
    if kind == "input":
        raise InputError("data/facts.yaml: expected facts, got nothing")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    raise FileNotFoundError(2, "No such file or directory", "data")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No calls before a test, and the handler of SIGTERM as before after it."""
    calls.clear()
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
    cli.run("tool", {"work": work, "group": {"accept": accept, "fail": fail}, "join": join})


@pytest.mark.parametrize("folder", ["2024_11_25", "1e3", "None", "[a]", "True", "a,b", "~", "'quoted'", "x y"])
def test_folders_are_taken_as_typed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "work", folder, "--name", folder)
    (call,) = calls
    assert call["folder"] == Path(folder)
    assert call["name"] == folder


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--labels=left kidney,GTV+,2nd", ["left kidney", "GTV+", "2nd"]),
        ("--labels=liver", ["liver"]),
        ("--labels=1, 2", ["1", "2"]),
        ("--labels=['left kidney', 'GTV+']", ["left kidney", "GTV+"]),
        ("--labels=liver,tumour (GTV)", ["liver", "tumour (GTV)"]),
        ("--sizes=16,20", [16, 20]),
        ("--sizes=[16, 20]", [16, 20]),
        ("--sizes=(16,20)", [16, 20]),
        ("--rates=0,0.5,1e-3", [0, 0.5, 0.001]),
        ("--seed=7", 7),
        ("--rate=1", 1),
        ("--rate=1e-3", 0.001),
        ("--fast", True),
        ("--fast=False", False),
        ("--limit=3", 3),
        ("--name=1e3", "1e3"),
    ],
)
def test_options_are_read_by_their_type(option: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "work", "folder", option)
    (call,) = calls
    assert call[option.removeprefix("--").partition("=")[0]] == value


@pytest.mark.parametrize("arguments", [["--name"], ["--name", "--fast"], ["--limit", "--seed=1"], ["--labels"]])
def test_option_without_a_value_is_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "work", "folder", *arguments)
    assert caught.value.code == f"tool: {arguments[0]}: expected a value, got none"
    assert calls == []


def test_a_command_without_required_arguments_runs_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tool"])
    cli.run("tool", lambda: calls.append({}))
    assert calls == [{}]


def test_home_folder_that_a_shell_left_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (_, read) = cli.READERS[Path]
    assert [read(text) for text in ("~/results", "a~", "~a", "./~/b")] == [
        tmp_path / "results", Path("a~"), Path("~a"), Path("~/b")
    ]  # fmt: skip


def test_empty_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "work", "")
    assert caught.value.code == "tool: --folder: expected a path, got ''"


def test_whole_numbers_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "work", "folder", "--rates=0,0,1", "--rate=2")
    assert str(calls[0]["rates"]) == "[0, 0, 1]"
    assert str(calls[0]["rate"]) == "2"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed=1.5", "--seed: expected a whole number, got '1.5'"),
        ("--limit=none", "--limit: expected a whole number, got 'none'"),
        ("--rate=fast", "--rate: expected a number, got 'fast'"),
        ("--rate=nan", "--rate: expected a number, got 'nan'"),
        ("--rates=0,-inf", "--rates: expected a number, or several separated by commas, got '0,-inf'"),
        ("--fast=perhaps", "--fast: expected true or false, got 'perhaps'"),
        ("--sizes=16,x", "--sizes: expected a whole number, or several separated by commas, got '16,x'"),
        ("--rates=", "--rates: expected a number, or several separated by commas, got ''"),
    ],
)
def test_wrong_type_is_an_error_of_one_line(option: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "work", "folder", option)
    assert caught.value.code == f"tool: {message}"
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("work folder --sed=1", "--sed: expected an option, got no such option; did you mean --seed?"),
        ("work folder -sed 1", "-sed: expected an option, got no such option; did you mean --seed?"),
        ("work folder extra --nothing", "--nothing: expected an option, got no such option"),
        (
            "work folder --labels=a --lables=b",
            "--lables: expected an option, got no such option; did you mean --labels?",
        ),
        ("work folder --=a", "--: expected an option, got no such option"),
        ("work folder --", "--: expected an option, got no such option"),
        ("work folder -x 1", "-x: expected an option, got no such option"),
        ("work folder -l 1", "-l: expected one option, got one that may be --labels or --limit"),
        ("work folder --name a --name b", "--name: expected once, got twice"),
        ("work folder --name a -n b", "-n: expected once, got twice"),
        ("work", "--folder: expected a value, got none; see tool work --help"),
        ("work --seed 1", "--folder: expected a value, got none; see tool work --help"),
        ("work a b 1 0.5 n 1 0.5 true 3 more", "more: expected at most 9 values without an option, folder, labels"),
        ("wrok folder", "wrok: expected a command, work, group, join, got no such command; did you mean work?"),
        ("group accpt folder", "accpt: expected a command, accept, fail, got no such command; did you mean accept?"),
        ("--folder x", "--folder: expected a command, work, group, join, got no such command"),
        ("group accept folder --=1", "--: expected an option, got no such option"),
        ("group accept", "--folder: expected a value, got none; see tool group accept --help"),
        (
            "group accept folder --x=" + 100_000 * "-" + "1",
            "--x: expected a value such as 1, text, [1, 2] or {a: 1}, got '-----",
        ),
        ("group accept folder --x={a,b}", "--x: expected a value such as 1, text, [1, 2] or {a: 1}, got '{a,b}'"),
        ("group accept folder --x={{a:b}}", "--x: expected a value such as 1, text, [1, 2] or {a: 1}, got '{{a:b}}'"),
    ],
)
def test_mistyped_arguments_are_one_line_before_any_work(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments.split())
    assert str(caught.value.code).startswith(f"tool: {message}")
    assert "\n" not in str(caught.value.code)
    assert capsys.readouterr() == ("", "")
    assert calls == []


@pytest.mark.parametrize(
    "arguments", ["work a -n b", "work --name=b --folder=a", "work -folder a -name=b", "work a --name b"]
)
def test_ways_to_write_an_option(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, *arguments.split())
    assert (calls[0]["folder"], calls[0]["name"]) == (Path("a"), "b")


def test_options_of_any_name_are_read_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "group", "accept", "1e3", "--a::b=[1,2]", "--c-d", "x", "--e", "-3", "--f")
    assert calls == [{"folder": Path("1e3"), "a::b": [1, 2], "c_d": "x", "e": -3, "f": True}]


@pytest.mark.parametrize("text", ["weights#2", "weights # old", "#"])
def test_what_follows_a_number_sign_is_no_comment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "group", "accept", "folder", "--place", text)
    assert calls == [{"folder": Path("folder"), "place": text}]


def test_a_list_may_hold_a_number_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "group", "accept", "folder", "--places=['a#1','b']")
    assert calls == [{"folder": Path("folder"), "places": ["a#1", "b"]}]


@pytest.mark.parametrize(
    ("arguments", "folders", "out"),
    [
        ("a", ["a"], "joined"),
        ("a 1e3 b,c", ["a", "1e3", "b,c"], "joined"),
        ("a --out o b", ["a", "b"], "o"),
        ("--out=o a b -n x", ["a", "b"], "o"),
    ],
)
def test_any_number_of_values(arguments: str, folders: list[str], out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "join", *arguments.split())
    (call,) = calls
    assert call["folders"] == tuple(map(Path, folders))
    assert call["out"] == Path(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "folders: expected at least one value, got none; see tool join --help"),
        (["--out", "o"], "folders: expected at least one value, got none; see tool join --help"),
        (["a", ""], "folders: expected a path, got ''"),
        (["a", "--folders", "b"], "--folders: expected an option, got no such option"),
    ],
)
def test_wrong_values_of_any_number(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "join", *arguments)
    assert caught.value.code == f"tool: {message}"
    assert calls == []


def test_help_lists_the_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PAGER", "cat")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "work", "--help")
    assert caught.value.code == 0
    shown = capsys.readouterr()
    text = shown.out + shown.err
    for part in ("tool work FOLDER <flags>", "--labels=LABELS", "--seed=SEED", "Take the fast way.", "Default: 0.5"):
        assert part in text
    assert "FIRE" not in text
    assert calls == []


@pytest.mark.parametrize("arguments", [("--help",), ("folder", "--rate=1", "--help")])
def test_help_of_a_command_that_accepts_any_option(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAGER", "cat")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "group", "accept", *arguments)
    assert caught.value.code == 0
    shown = capsys.readouterr()
    assert "tool group accept FOLDER <flags>" in shown.out + shown.err
    assert calls == []


def test_group_lists_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("work", "Do the work.", "group"))
    run(monkeypatch, "group")
    assert "fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("input", "data/facts.yaml: expected facts, got nothing"),
        ("file", "data: expected a file or folder that can be read and written, got No such file or directory"),
        ("interrupt", "interrupted; run the same command again to continue"),
        ("terminate", "interrupted; run the same command again to continue"),
    ],
)
def test_errors_and_interrupts_end_in_one_line(kind: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "group", "fail", kind)
    assert caught.value.code == f"tool: {message}"


def test_phantoms_in_a_folder_called_like_a_number(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "make_phantoms.py", "2024_11_25", "--patients", "1"]
    misspelt = subprocess.run([*command, "--sede", "1"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert misspelt.returncode == 1
    assert misspelt.stderr == "make_phantoms: --sede: expected an option, got no such option; did you mean --seed?\n"
    assert list(tmp_path.iterdir()) == []
    for seed, code, message in (("0", 0, ""), ("x", 1, "make_phantoms: --seed: expected a whole number, got 'x'\n")):
        done = subprocess.run([*command, "--seed", seed], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, message)
    assert [path.name for path in tmp_path.iterdir()] == ["2024_11_25"]
    assert (tmp_path / "2024_11_25" / "training" / "patient001" / "Info.cfg").is_file()
