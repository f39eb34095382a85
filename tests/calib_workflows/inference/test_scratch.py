"""Tensors that may lie in a temporary file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from calib_components.errors import InputError
from calib_workflows.inference import scratch as module
from calib_workflows.inference.scratch import release, scratch


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16])
def test_values_stay_when_their_memory_goes(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    tensor = scratch((5, 1000, 7), dtype)
    expected = torch.arange(35000).view(5, 1000, 7).to(dtype)
    tensor.copy_(expected)
    view = tensor.permute(2, 0, 1)[3:]
    release(view)
    assert torch.equal(tensor, expected)


def resident() -> int:
    """Bytes of memory that the process holds, with those of files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_is_let_go() -> None:
    tensor = scratch((3, 2**20, 32))  # 384 MiB
    before = resident()
    for part in tensor:
        part.fill_(1)
        release(tensor)
    assert resident() - before < 2**27
    assert tensor[:, -1].sum() == 96


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    with pytest.raises(InputError, match=r"953674316 MiB.*TMPDIR"):
        scratch((10**9, 10**6), torch.uint8)
