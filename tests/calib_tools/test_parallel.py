"""Work on cases in several processes."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch

from calib_components.errors import InputError
from calib_tools import parallel
from calib_tools.parallel import map_cases


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in other processes from the first case on."""
    monkeypatch.setattr(parallel, "SERVER_START", 0)


def process_of(case: int, offset: int = 0) -> tuple[int, int, int]:
    return case + offset, os.getpid(), torch.get_num_threads()


def die(_: int) -> None:
    os._exit(1)


def fail(case: int) -> None:
    if case:
        raise InputError("case: is wrong")


def test_one_worker_is_this_process() -> None:
    results = map_cases(partial(process_of, offset=10), [1, 2, 3], workers=1)
    assert [result for result, *_ in results] == [11, 12, 13]
    assert {pid for _, pid, _ in results} == {os.getpid()}
    assert map_cases(process_of, [], workers=4) == []


def test_few_cases_are_done_before_other_processes_would_start() -> None:
    results = map_cases(process_of, [1, 2], workers=2)
    assert {pid for _, pid, _ in results} == {os.getpid()}


@pytest.mark.usefixtures("at_once")
def test_several_workers_keep_the_order_and_use_a_thread_each() -> None:
    results = map_cases(partial(process_of, offset=10), [3, 1, 2], workers=2)
    assert [result for result, *_ in results] == [13, 11, 12]
    assert os.getpid() not in {pid for _, pid, _ in results}
    assert {threads for *_, threads in results} == {1}


@pytest.mark.usefixtures("at_once")
def test_errors_of_workers_and_workers_that_die() -> None:
    with pytest.raises(InputError, match="is wrong"):
        map_cases(fail, [0, 1], workers=2)
    with pytest.raises(InputError, match="memory"):
        map_cases(die, [1, 2], workers=2)
    with pytest.raises(InputError, match="--workers"):
        map_cases(process_of, [1], workers=0)
