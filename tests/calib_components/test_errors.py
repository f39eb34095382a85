"""Files are written whole or not at all, and what keeps them from being read or written is one
line.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from calib_components.errors import (
    InputError,
    check_choice,
    check_count,
    check_number,
    check_writable,
    error_line,
    make_folder,
    nearest,
    printable,
    reading,
    writing,
    writing_folder,
)


def write_half(target: Path, error: Exception) -> None:
    with writing(target) as file:
        file.write_text("half")
        raise error


class TestWriting:
    def test_earlier_file_stays_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        (tmp_path / ".unfinished-a.txt").write_text("half")  # of a process that was killed
        target.write_text("old")
        with writing(target) as file:
            file.write_text("new")
            assert target.read_text() == "old"
        assert target.read_text() == "new"
        assert list(tmp_path.iterdir()) == [target]

    def test_full_disk(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")
        with pytest.raises(InputError, match=f"^{target}: .*No space left"):
            write_half(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    def test_folder_appears_when_it_is_complete_and_replaces_one(self, tmp_path: Path) -> None:
        for content in ("old", "new"):
            with writing_folder(tmp_path / "case") as folder:
                (folder / content).touch()
        with (
            pytest.raises(InputError, match="case: cannot write"),
            writing_folder(tmp_path / "case") as folder,
        ):
            (folder / "absent" / "half").touch()
        assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
            "case",
            "case/new",
        ]

    @pytest.mark.parametrize("error", [RuntimeError("a bug"), InputError("b is wrong")])
    def test_what_is_no_failed_write_stays_as_it_is(self, error: Exception, tmp_path: Path) -> None:
        with pytest.raises(type(error)) as raised:
            write_half(tmp_path / "a.txt", error)
        assert raised.value is error
        assert list(tmp_path.iterdir()) == []

    def test_places_where_nothing_can_be_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for name in ("file/a", "a" * 250, "absent/a"):
            with (
                pytest.raises(InputError, match=f"{tmp_path / name}: cannot write"),
                writing(tmp_path / name) as file,
            ):
                file.write_text("a")
        with pytest.raises(InputError, match="file/a: cannot make"):
            make_folder(tmp_path / "file" / "a")
        for name in ("file", "file/a/b"):
            with pytest.raises(InputError, match="out: cannot write"):
                check_writable("out", tmp_path / name)
        check_writable("out", tmp_path / "a" / "b")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing was made


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("", "Expecting value"), ("{}", "'a' is missing")],
)
def test_what_goes_wrong_in_reading_names_the_file(
    content: str | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    expected = f"a.json: cannot read numbers: {reason}"
    with pytest.raises(InputError, match=expected), reading(tmp_path / "a.json", "numbers") as file:
        json.loads(file.read_text())["a"]


def test_arguments() -> None:
    check_number("a", 0, 0)
    check_count("a", 3, 1, 3)
    check_choice("a", "x", ["x", "y"])
    for value in (-1, float("nan"), float("inf"), "1", True):
        with pytest.raises(InputError, match="a must be a number of at least 0"):
            check_number("a", value, 0)
    for value in (4, 1.0, "2", True):
        with pytest.raises(InputError, match="a must be an integer from 1 to 3"):
            check_count("a", value, 1, 3)
    with pytest.raises(InputError, match="a must be one of 'x', 'y'"):
        check_choice("a", "z", ["x", "y"])


def test_line_of_the_first_input_error_among_causes() -> None:
    wrapped = RuntimeError("failed to run")
    wrapped.__cause__ = InputError("two\nlines")
    assert error_line(wrapped) == "two"
    worker = RuntimeError(
        "Traceback:\n  File\ncalib_components.errors.InputError: a.nii is"
        " broken.\n\nRuntimeError: x"
    )
    assert error_line(worker) == "a.nii is broken."
    assert error_line(RuntimeError("another")) is error_line(None) is None
    assert printable("two\nlines") == "two\\nlines"
    assert nearest("sed", ["seed", "device"], "--") == "; did you mean --seed?"
    assert nearest("xyz", ["seed"]) == ""
