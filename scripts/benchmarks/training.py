"""Time of a training epoch through a bundle over one of a bare loop."""

from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from scripts.benchmarks.timing import BUNDLES, Step, print_ratios, set_up

MODES: dict[str, dict[str, bool]] = {
    "float32": {},
    "bfloat16": {"bfloat16": True},
    "compile": {"compile": True},
    "bfloat16, compile": {"bfloat16": True, "compile": True},
}


def train(
    device: str = "cpu", rounds: int = 3, threads: int = 2, slices: int = 1024, size: int = 144
) -> None:
    """An epoch through the ACDC bundle's workflow over one of a bare PyTorch loop, same network and
    in-memory tensors.

    The bare loop is in float32 and not compiled. The workflow's epoch includes its handlers and its
    checkpoint, not its validation, which the bare loop lacks.

    Args:
        device: Where to run, "cpu" or "cuda".
        rounds: How many epochs of each are timed.
        threads: CPU threads for PyTorch.
        slices: Number of slices in the data set; the training patients of ACDC have about as many.
        size: Rows and columns of a slice.
    """
    set_up(rounds, threads)
    logging.disable(logging.WARNING)  # of the interval of validations, too
    images = torch.randn(slices, 1, size, size)
    labels = torch.randint(4, (slices, 1, size, size), dtype=torch.uint8)
    data = [{"image": i, "label": y} for i, y in zip(images, labels, strict=True)]
    with TemporaryDirectory() as folder:
        workflows = {
            name: _trainer(data, Path(folder, name), device, mode) for name, mode in MODES.items()
        }
        network = copy.deepcopy(workflows["float32"].network).to(
            memory_format=torch.contiguous_format
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        loss_function = workflows["float32"].loss_function
        batch_size = workflows["float32"].data_loader.batch_size

        def bare_epoch() -> None:
            network.train()
            for batch in torch.randperm(slices).split(batch_size):
                optimizer.zero_grad()
                loss = loss_function(network(images[batch].to(device)), labels[batch].to(device))
                loss.backward()
                optimizer.step()

        steps: dict[str, Step] = {"bare loop, float32": bare_epoch}
        for name, trainer in workflows.items():
            steps[f"workflow, {name}"] = partial(_epoch, trainer)
        print_ratios(f"training epoch, {slices} slices of {size} x {size}", steps, rounds, device)


def _trainer(data: list[dict[str, Any]], folder: Path, device: str, mode: dict[str, Any]) -> Any:
    options: dict[str, Any] = {
        "device": device,
        "amp": False,
        "num_workers": 0,
        "val_interval": 10**6,
        "ckpt_dir": str(folder),
        "output_dir": str(folder),
        "train::dataset": data,
        "validate::dataset": [],
        **mode,
    }
    workflow = ConfigWorkflow(
        str(BUNDLES / "acdc_mri_nacl_segmentation" / "configs" / "train.yaml"),
        workflow_type="train",
        **options,
    )
    workflow.initialize()
    return workflow.trainer


def _epoch(trainer: Any) -> None:
    trainer.state.max_epochs = trainer.state.epoch + 1
    trainer.run()
