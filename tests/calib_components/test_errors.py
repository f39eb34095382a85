"""Files are written whole or not at all, and what keeps them from being written is one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from calib_components.errors import InputError, check_writable, error_line, writing


def write_half(target: Path, error: Exception) -> None:
    with writing(target) as file:
        file.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "memory: expected enough on the device, got none left; try a",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."),
            "num_workers: expected memory for each, got a worker that was killed; try 0: DataLoader worker (pid 7) is",
        ),
    ],
)
def test_what_to_do_if_memory_is_short(error: Exception, line: str) -> None:
    wrapped = RuntimeError("failed to run")
    wrapped.__cause__ = error
    shown = error_line(wrapped)
    assert shown is not None
    assert shown.startswith(line)
    assert error_line(RuntimeError("another")) is None


class TestWriting:
    def test_earlier_file_stays_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")
        with writing(target) as file:
            file.write_text("new")
            assert target.read_text() == "old"
        assert target.read_text() == "new"
        assert list(tmp_path.iterdir()) == [target]

    def test_full_disk(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")
        with pytest.raises(InputError, match=f"^{target}: expected a file that can be written, got No space left"):
            write_half(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), InputError("b: expected c, got d")])
    def test_what_is_no_failed_write_stays_as_it_is(self, error: Exception, tmp_path: Path) -> None:
        with pytest.raises(type(error)) as raised:
            write_half(tmp_path / "a.txt", error)
        assert raised.value is error
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("file/a", "Not a directory"), ("a" * 250, "File name too long"), ("absent/a", "No such file or directory")],
    )
    def test_place_where_nothing_can_be_is_named(self, name: str, reason: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        message = f"{tmp_path / name}: expected a file that can be written, got {reason}"
        with pytest.raises(InputError, match=f"^{message}$"), writing(tmp_path / name) as file:
            file.write_text("a")

    def test_leftover_of_a_killed_process_goes_with_the_next_write(self, tmp_path: Path) -> None:
        (tmp_path / ".unfinished-a.txt").write_text("half")
        with writing(tmp_path / "a.txt") as file:
            file.write_text("a")
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("file", "Not a directory"), ("file/a/b", "Not a directory"), ("link/a", "No such file or directory")],
)
def test_folder_that_cannot_be_written(folder: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(InputError) as error:
        check_writable("out", tmp_path / folder)
    assert str(error.value) == f"out: expected a folder that can be written, got {tmp_path / folder}: {reason}"


def test_folder_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    check_writable("out", tmp_path / "a" / "b")
    check_writable("out", tmp_path)
    assert list(tmp_path.iterdir()) == []
