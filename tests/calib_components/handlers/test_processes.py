from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import cast

import pytest
import torch.distributed as dist
from torch.utils.data import Dataset

from calib_components.errors import InputError
from calib_components.handlers import share_cases

SCRIPT = """
import logging, sys, torch.distributed as dist
from calib_components.handlers import join_process_group, leave_process_group
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
join_process_group("cpu")
join_process_group("cpu")  # a second call changes nothing
logging.info(f"rank {dist.get_rank()} of {dist.get_world_size()} through {dist.get_backend()}")
logging.warning(f"warning of {dist.get_rank()}")
leave_process_group()
assert not dist.is_initialized()
"""


@pytest.mark.slow
def test_the_first_of_two_processes_logs() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    done = subprocess.run([*launcher, sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2 through gloo", "warning of 0", "warning of 1"]


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
