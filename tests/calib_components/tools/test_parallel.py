"""Work in several processes: its results, and what is said when it fails."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from calib_components.errors import InputError
from calib_components.tools.parallel import check_workers, parallel

PRELOAD = ["calib_components.tools.parallel"]
DIED = r"^workers: expected processes that finish, got one that died, perhaps for lack of memory; try fewer$"
UNSUITABLE = "case2.nii: expected probabilities from 0 to 1, got 2"


def first_last(item: int) -> tuple[int, int, int]:
    """The square of the item, the process and its threads; the first item takes longest."""
    time.sleep(0.3 if item == 0 else 0)
    return item**2, os.getpid(), torch.get_num_threads()


def fail_on_two(item: int) -> int:
    if item == 2:
        raise InputError(UNSUITABLE)
    return item


def die_on_two(item: int) -> int:
    if item == 2:
        os._exit(3)
    return item


def die(flag: Path) -> None:
    flag.touch()
    os._exit(3)


def test_results_come_in_the_order_of_the_items() -> None:
    with parallel(first_last, range(4), 2, "square", PRELOAD) as results:
        squares, processes, threads = zip(*results, strict=True)
    assert squares == (0, 1, 4, 9)
    assert os.getpid() not in processes
    assert threads == (1, 1, 1, 1)


@pytest.mark.parametrize(("items", "workers"), [(range(3), 1), (range(1, 2), 4), (range(0), 4)])
def test_one_worker_or_item_needs_no_other_process(items: range, workers: int) -> None:
    with parallel(first_last, items, workers, "square", PRELOAD) as results:
        assert [(square, process) for square, process, _ in results] == [(item**2, os.getpid()) for item in items]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_as_it_was(workers: int) -> None:
    seen = []
    with (
        pytest.raises(InputError) as error,
        parallel(fail_on_two, range(9), workers, "fail", PRELOAD) as results,
    ):
        seen.extend(results)
    assert type(error.value) is InputError
    assert str(error.value) == UNSUITABLE
    assert seen == [0, 1]


def test_a_process_that_died_is_said_so() -> None:
    with pytest.raises(InputError, match=DIED), parallel(die_on_two, range(9), 2, "die", PRELOAD) as results:
        list(results)


class Late(Sequence):
    """Two items, the second of which comes when the process that works on the first has died."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]
        return self.flag

    def __iter__(self) -> Iterator[Path]:
        yield self.flag
        while not self.flag.exists():
            time.sleep(0.01)
        time.sleep(0.5)
        yield self.flag


def test_a_process_that_died_before_all_items_were_given_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=DIED), parallel(die, Late(tmp_path / "flag"), 2, "die", PRELOAD) as results:
        list(results)


def test_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_workers(20) == 20
    for cores, expected in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert check_workers(None) == expected
    for wrong in (0, -2):
        with pytest.raises(InputError, match=f"^workers: expected a whole number of at least 1, got {wrong}$"):
            check_workers(wrong)


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_use_as_many_threads_as_they_are_given(workers: int) -> None:
    before = torch.get_num_threads()
    with parallel(first_last, range(2), workers, "square", PRELOAD, threads=3) as results:
        assert [threads for *_, threads in results] == [3, 3]
    assert torch.get_num_threads() == before
