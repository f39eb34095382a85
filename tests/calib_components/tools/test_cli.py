"""Command lines: options as typed, no work before all of them are known, one line for an
InputError.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from calib_components.errors import InputError
from calib_components.tools import cli

calls: list[dict[str, Any]] = []


def work(
    folder: Path,
    labels: Sequence[str] = (),
    sizes: Sequence[int] | None = None,
    name: str | None = None,
    rate: float = 0.5,
    fast: bool = False,
    limit: int | None = None,
) -> None:
    """Do the work."""
    calls.append(dict(locals()))


def accept(folder: Path, **options: Any) -> None:
    """Accept any option."""
    if folder == Path("broken"):
        raise InputError("broken: two\nlines")
    if folder == Path("full"):
        raise OSError(28, "No space left on device", "table.csv")
    calls.append({"folder": folder, **options})


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
    "text", ["2024_11_25", "1e3", "None", "[a]", "True", "a,b", "~", "'quoted'", "x y", "a#b"]
)
def test_paths_and_text_are_taken_as_typed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = run(monkeypatch, "work", text, "--name", text)
    assert (call["folder"], call["name"]) == (Path(text), text)
    assert run(monkeypatch, "join", text, "b")["folders"] == (Path(text), Path("b"))


OPTIONS = [
    ("--labels=left kidney,2nd", ["left kidney", "2nd"]), ("--labels=['1', 'GTV+']", ["1", "GTV+"]),
    ('--labels="left kidney","GTV+"', ["left kidney", "GTV+"]),
    ("--sizes=16,20", [16, 20]), ("--rate=1", 1), ("--rate=1e-3", 0.001), ("--fast", True), ("--fast=false", False),
    ("--limit=-3", -3),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_options_are_read_by_annotation(
    option: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "work", "a", option)[option[2:].partition("=")[0]] == value


def test_free_options_are_literals(monkeypatch: pytest.MonkeyPatch) -> None:
    call = run(
        monkeypatch, "group", "accept", "1e3", "--size=64,64", "--a::b=x.y", "--slurm={time: 5}"
    )
    assert call == {"folder": Path("1e3"), "size": (64, 64), "a::b": "x.y", "slurm": {"time": 5}}


WRONG = [
    "work a --fats",
    "work a b c d e f g h",
    "work",
    "join",
    "group x",
    "work a --limit=x",
    "group accept broken",
]


@pytest.mark.parametrize("typed", WRONG)
def test_mistake_ends_with_2_before_any_work(
    typed: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *typed.split())
    assert (caught.value.code, calls) == (2, [])
    assert "Traceback" not in capfd.readouterr().err


def test_empty_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "work", "")


def test_structures() -> None:
    codes = cli.parse_structures(["left kidney=1", "GTV+=2+4", "Ödem=3", "a=b=5"])
    assert codes == {"left kidney": {1}, "GTV+": {2, 4}, "Ödem": {3}, "a=b": {5}}
    for texts in ([], ["a"], ["a=one"], [" =1"], ["a=0+1"], ["Background=1"], ["a=1", "a=1"]):
        with pytest.raises(InputError, match=r"^--labels"):
            cli.parse_structures(texts, "--labels")


def test_patients_by_their_names() -> None:
    names = ["a_patient001_frame01", "b_patient001_frame12", "patient002"]
    assert list(cli.patients_of(names, r"patient\d+").values()) == [
        "patient001",
        "patient001",
        "patient002",
    ]
    assert cli.patients_of(names, None) == {name: name for name in names}
    for pattern in (r"frame\d+", "("):
        with pytest.raises(InputError, match="--patient_pattern"):
            cli.patients_of(names, pattern)
