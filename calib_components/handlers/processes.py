"""Several processes that train or evaluate together."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

__all__ = ["join_process_group"]


def join_process_group(device: torch.device | str) -> None:
    """Join the process group that `torchrun` describes; all processes but the first log warnings and errors only.

    Args:
        device: Where this process computes. GPUs communicate through NCCL, CPUs through Gloo.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if dist.get_rank() > 0:
        logging.disable(logging.INFO)
