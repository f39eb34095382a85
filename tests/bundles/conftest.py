"""The ACDC bundle trained for two epochs, and one thread as in several processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import ACDC, run_bundle


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What torchrun sets for each process: with more threads the network itself rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the ACDC bundle after two epochs."""
    out = tmp_path_factory.mktemp("trained")
    run_bundle(
        ACDC,
        "train.yaml",
        dataset_dir=str(prepared),
        max_epochs=2,
        ckpt_dir=str(out),
        output_dir=str(out),
    )
    return out
