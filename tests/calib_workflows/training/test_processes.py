from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import cast

import pytest
import torch.distributed as dist
from torch.utils.data import Dataset

from calib_components.errors import InputError
from calib_workflows.training import join_process_group, leave_process_group, share_cases


def test_joins_the_group_of_torchrun_in_which_the_first_logs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 0,
    }.items():
        monkeypatch.setenv(name, str(value))
    for _ in range(2):  # a second call changes nothing
        join_process_group("cpu")
    assert (dist.get_world_size(), dist.get_backend()) == (1, "gloo")
    assert logging.root.manager.disable == logging.NOTSET
    with monkeypatch.context() as patched:
        patched.setattr(dist, "get_rank", lambda: 1)
        join_process_group("cpu")
    assert logging.root.manager.disable == logging.INFO
    logging.disable(logging.NOTSET)
    leave_process_group()
    assert not dist.is_initialized()


def test_each_case_goes_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, few = cast(Dataset, [f"case{number}" for number in range(5)]), cast(Dataset, ["case0"])
    monkeypatch.setattr(dist, "is_available", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    shared = []
    for rank in range(2):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shared.append(list(cast(Iterable[int], share_cases(cases))))
    assert shared == [[0, 2, 4], [1, 3]]
    with pytest.raises(InputError, match="1 cases for 2 processes"):
        share_cases(few)
    assert share_cases(few, repeat_few=True) is share_cases(cast(Dataset, [])) is None
