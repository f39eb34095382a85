"""Several processes that train or evaluate together."""

from __future__ import annotations

import atexit
import gc
import logging
import os

import torch
import torch.distributed as dist
from monai.data import DistributedSampler
from torch.utils.data import Dataset

from calib_components.errors import InputError
from calib_workflows.options import check_files


def join_process_group(device: torch.device | str) -> None:
    """Join the process group that `torchrun` describes, on the device of this process; the first
    alone logs infos.
    """
    check_files()
    if "RANK" not in os.environ:
        command = "torchrun --standalone --nproc_per_node=2 -m monai.bundle run"
        raise InputError(
            f"config_file: with a multi_gpu file, start {command}. Or leave that file out."
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if dist.get_rank() > 0:
        logging.disable(logging.INFO)


def leave_process_group() -> None:
    """Leave the process group, when all processes have come here."""
    dist.barrier()
    dist.destroy_process_group()
    # A process whose network still held the group as Python ended sometimes aborted
    atexit.register(gc.collect)


def share_cases(dataset: Dataset, repeat_few: bool = False) -> DistributedSampler | None:
    """Return a sampler that gives each case to one process; None where each process has all cases,
    or there are none.

    Args:
        dataset: The cases, with a length.
        repeat_few: Whether each process has all cases where there are fewer than processes.

    Raises:
        InputError: There are fewer cases than processes, which gather results from all, and
            `repeat_few` is False.
    """
    cases, processes = len(dataset), dist.get_world_size()  # type: ignore[arg-type]
    if cases == 0 or (repeat_few and cases < processes):
        return None
    if cases < processes:
        raise InputError(
            f"validate::dataset has {cases} cases for {processes} processes. Use fewer processes."
        )
    return DistributedSampler(dataset, even_divisible=False, shuffle=False)
