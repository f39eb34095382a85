"""A bundle run in this process, and the ACDC bundle trained for two epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ACDC, run_bundle


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
