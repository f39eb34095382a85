"""Time and memory of a bundle's inference on a large volume."""

from __future__ import annotations

import logging
import shutil
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from calib_workflows.data.facts import Facts, write_facts
from scripts.benchmarks.timing import BUNDLES, peak_resident_mib, set_up


def inference(
    size: int = 512,
    slices: int = 600,
    num_classes: int = 5,
    rounds: int = 1,
    threads: int = 2,
    patch: int | None = None,
) -> None:
    """See `scripts.helpers.commands.inference`."""
    set_up(rounds, threads)
    seconds, peak, written = [], 0.0, 0.0
    with TemporaryDirectory() as folder:
        place = Path(folder)
        _make_volume(place / "images" / "scan.nii.gz", (size, size, slices))
        bundle = BUNDLES / (
            "hippocampus_mri_nacl_segmentation" if patch else "flare_ct_nacl_segmentation"
        )
        copy = shutil.copytree(
            bundle, place / "bundle", ignore=shutil.ignore_patterns("*.pt", "*.ts")
        )
        _make_weights(copy, num_classes, patch)
        for _ in range(rounds):
            # A process of its own: memory that was used before may be used again.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                taken, peak = pool.submit(_measure, copy, place, threads).result()
            seconds.append(taken)
            written = sum(file.stat().st_size for file in (place / "out").iterdir()) / 2**20
            shutil.rmtree(place / "out")
    print(
        f"inference, {size}x{size}x{slices}, {num_classes} classes ({threads} threads, median of"
        f" {rounds} rounds)"
    )
    print(f"{'s':>6}  {'peak MiB':>8}  {'written MiB':>11}")
    print(f"{statistics.median(seconds):6.1f}  {peak:8.0f}  {written:11.1f}")


def _make_volume(file: Path, shape: tuple[int, int, int]) -> None:
    """Write blocks of noise in a box of air, with the axes as scanners have them (LPS)."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(40, 60, [-(-n // 16) for n in shape]).astype(np.int16)
    volume = blocks[np.ix_(*(np.arange(n) // 16 for n in shape))]
    for edge in (slice(16), slice(-16, None)):
        volume[edge] = volume[:, edge] = -1000
    file.parent.mkdir()
    nib.save(nib.Nifti1Image(volume, np.diag([-0.8, -0.8, 1, 1])), file)


def _make_weights(bundle: Path, num_classes: int, patch: int | None) -> None:
    """Write random weights and the facts of so many classes."""
    names = ["background", *(f"class{k}" for k in range(1, num_classes))]
    facts = Facts(
        "flare",
        num_classes,
        1,
        names,
        list(range(num_classes)),
        {name: [k] for k, name in enumerate(names) if k},
        file_suffixes=[],
        image_size=[192, 192],
        crop_size=[192, 192],
        window=[-125, 275],
    )
    if patch:
        facts = replace(
            facts,
            dataset="hippocampus",
            spatial_dims=3,
            image_size=None,
            crop_size=[patch] * 3,
            window=None,
        )
    write_facts(facts, bundle / "models")
    workflow = _workflow(bundle, bundle)
    torch.manual_seed(0)
    torch.save(workflow.network_def.state_dict(), bundle / "models" / "model.pt")


def _workflow(bundle: Path, place: Path) -> Any:
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    folders = {"bundle_root": bundle, "dataset_dir": place / "images", "output_dir": place / "out"}
    options = {"device": "cpu", **{name: str(folder) for name, folder in folders.items()}}
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.yaml"), workflow_type="infer", **options
    )
    workflow.initialize()
    return workflow


def _measure(bundle: Path, place: Path, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    mib = peak_resident_mib(_workflow(bundle, place).run)
    return time.perf_counter() - start, mib
