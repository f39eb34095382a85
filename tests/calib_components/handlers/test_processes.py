from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch.distributed as dist

from calib_components.handlers import join_process_group

SCRIPT = """
import logging, sys, torch.distributed as dist
from calib_components.handlers import join_process_group
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
join_process_group("cpu")
join_process_group("cpu")  # a second call changes nothing
logging.info(f"rank {dist.get_rank()} of {dist.get_world_size()} through {dist.get_backend()}")
logging.warning(f"warning of {dist.get_rank()}")
dist.destroy_process_group()
"""


def test_the_first_of_two_processes_logs() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    done = subprocess.run([*launcher, sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2 through gloo", "warning of 0", "warning of 1"]


def test_without_a_launcher_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="environment variable RANK expected"):
        join_process_group("cpu")
    assert not dist.is_initialized()
    assert logging.root.manager.disable == logging.NOTSET
