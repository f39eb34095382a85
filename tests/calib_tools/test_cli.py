"""Command lines: options as typed, no work before all of them are known, one line for a mistake."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from calib_components.errors import InputError
from calib_tools import cli

calls: list[dict[str, Any]] = []


def work(
    folder: Path,
    labels: Sequence[str] = (),
    *,
    sizes: Sequence[int] | None = None,
    name: str | None = None,
    rate: float = 0.5,
    fast: bool = False,
    limit: int | None = None,
) -> None:
    """Do the work."""
    calls.append(dict(locals()))


def accept(folder: Path, slurm: dict[str, Any] | None = None, **options: Any) -> None:
    """Accept any option."""
    if folder == Path("broken"):
        raise InputError("broken: two\nlines")
    if folder == Path("full"):
        raise OSError(28, "No space left on device", "table.csv")
    calls.append({"folder": folder, "slurm": slurm, **options})


def join(*folders: Path, out: Path = Path("joined")) -> None:
    """Join folders."""
    calls.append({"folders": folders, "out": out})


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    calls.clear()
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    cli.run("tool", {"work": work, "group": {"accept": accept}, "join": join})
    return calls[-1]


@pytest.mark.parametrize(
    "text", ["2024_11_25", "1e3", "None", "[a]", "True", "a,b", "'quoted'", "x y", "a#b", "-3"]
)
def test_paths_and_text_are_taken_as_typed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = run(monkeypatch, "work", text, "--name", text)
    assert (call["folder"], call["name"]) == (Path(text), text)
    assert run(monkeypatch, "join", text, "b")["folders"] == (Path(text), Path("b"))


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert run(monkeypatch, "join", "a", "--out=~/out")["out"] == Path("/home/me/out")


@pytest.mark.parametrize(
    ("typed", "option", "value"),
    [
        (["--labels", "left kidney,2nd"], "labels", ["left kidney", "2nd"]),
        (["--labels=['1', 'GTV+']"], "labels", ["1", "GTV+"]),
        (['--labels="left kidney","GTV+"'], "labels", ["left kidney", "GTV+"]),
        (["--sizes", "16,20"], "sizes", [16, 20]),
        (["--sizes=[16, 20]"], "sizes", [16, 20]),
        (["--sizes", "16", "--sizes", "20"], "sizes", [16, 20]),
        (["--rate=1e-3"], "rate", 0.001),
        (["--fast"], "fast", True),
        (["--fast", "true"], "fast", True),
        (["--fast=False"], "fast", False),
        (["--limit", "-3"], "limit", -3),
    ],
)
def test_options_are_read_by_annotation(
    typed: list[str], option: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "work", "a", *typed)[option] == value


def test_free_options_are_read_as_monai_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = "--size=64,64 --a::b x.y --train::x::0 0.5 --lr -1e-3 --tta true --c#d [1,2]"
    slurm = "--slurm={time: 5, partition: gpu}"
    call = run(monkeypatch, "group", "accept", "1e3", *typed.split(), slurm)
    assert call == {
        "folder": Path("1e3"),
        "slurm": {"time": 5, "partition": "gpu"},
        "size": (64, 64),
        "a::b": "x.y",
        "train::x::0": 0.5,
        "lr": -0.001,
        "tta": "true",
        "c#d": [1, 2],
    }


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("work a --fats", "--fast"),
        ("work a -f", "-f"),
        ("work", "--folder"),
        ("wrok a", "work"),
        ("group x", "accept"),
        ("work a --limit=x", "--limit"),
        ("work a --limit 1.5", "--limit"),
        ("work a --sizes 1,x", "--sizes"),
        ("work a --fast=maybe", "--fast"),
        ("work a --limit 1 --limit 2", "--limit"),
        ("join a --out=", "path is empty"),
        ("group accept a --lr --tta 3", "--lr"),
        ("group accept broken", r"two\nlines"),
        ("group accept full", "No space left"),
    ],
)
def test_mistake_is_one_line_and_ends_with_2_before_any_work(
    typed: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *typed.split())
    assert (caught.value.code, calls) == (2, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tool: ")
    assert message in line


def test_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit, match="tool: interrupted"):
        cli.run("tool", interrupt)


def test_structures() -> None:
    codes = cli.parse_structures(["left kidney=1", "GTV+=2+4", "Ödem=3"])
    assert codes == {"left kidney": {1}, "GTV+": {2, 4}, "Ödem": {3}}


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["a"],
        ["a=one"],
        [" =1"],
        ["a=0+1"],
        ["Background=1"],
        ["a=1", "a=1"],
        ["a=1;b=2"],
        ["a=b=2"],
        ["a=16777217"],  # which float32 rounds
    ],
)
def test_structures_that_are_none(texts: list[str]) -> None:
    with pytest.raises(InputError, match=r"^--labels"):
        cli.parse_structures(texts, "--labels")
