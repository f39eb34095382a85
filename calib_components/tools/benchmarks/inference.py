"""Time and memory of a bundle's inference on a large volume, by slabs and with whole volumes."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from calib_components.facts import Facts, write_facts
from calib_components.tools.benchmarks.timing import peak_resident_mib

__all__ = ["inference"]


def inference(bundle: Path, size: int = 512, slices: int = 600, num_classes: int = 5, threads: int = 2) -> None:
    """Print seconds, peak memory and bytes of an inference through the FLARE bundle, with random weights.

    The volume is smooth noise in a box of air. Memory is that of the process above what it holds after its imports,
    by the count of Linux.

    Args:
        bundle: Folder of the FLARE bundle.
        size: Rows and columns of a slice.
        slices: Number of slices.
        num_classes: Classes of the network.
        threads: CPU threads for PyTorch.
    """
    with TemporaryDirectory() as folder:
        place = Path(folder)
        _make_volume(place / "images" / "scan.nii.gz", (size, size, slices))
        copy = shutil.copytree(bundle, place / "bundle", ignore=shutil.ignore_patterns("*.pt", "*.ts"))
        _make_weights(copy, num_classes)
        # A process of its own: memory that was used before may be used again.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            seconds, mib = pool.submit(_run, copy, place, threads).result()
        written = {file.name: file.stat().st_size / 2**20 for file in sorted((place / "out").iterdir())}
    print(f"inference, {size}x{size}x{slices}, {num_classes} classes, {threads} threads")
    print(f"{seconds:.0f} s, peak {mib:.0f} MiB; " + ", ".join(f"{name} {mb:.1f} MiB" for name, mb in written.items()))


def _make_volume(file: Path, shape: tuple[int, int, int]) -> None:
    """Write blocks of noise in a box of air, with the axes as scanners have them (LPS)."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(40, 60, [-(-n // 16) for n in shape]).astype(np.int16)
    volume = blocks[np.ix_(*(np.arange(n) // 16 for n in shape))]
    for edge in (slice(16), slice(-16, None)):
        volume[edge] = volume[:, edge] = -1000
    file.parent.mkdir()
    nib.save(nib.Nifti1Image(volume, np.diag([-0.8, -0.8, 1, 1])), file)


def _make_weights(bundle: Path, num_classes: int) -> None:
    """Write random weights and the facts of so many classes."""
    names = ["background", *(f"class{k}" for k in range(1, num_classes))]
    facts = Facts(
        dataset="flare",
        num_classes=num_classes,
        in_channels=1,
        class_names=names,
        label_codes=list(range(num_classes)),
        structures={name: [k] for k, name in enumerate(names) if k},
        file_suffixes=[],
        image_size=[192, 192],
        crop_size=[192, 192],
        slice_axis=None,
        pixel_size=None,
        source="",
    )
    write_facts(facts, bundle / "models")
    workflow = _workflow(bundle, bundle)
    torch.manual_seed(0)
    torch.save(workflow.network_def.state_dict(), bundle / "models" / "model.pt")


def _workflow(bundle: Path, place: Path) -> Any:
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    options = {
        "bundle_root": str(bundle),
        "dataset_dir": str(place / "images"),
        "output_dir": str(place / "out"),
        "device": "cpu",
    }
    workflow = ConfigWorkflow(str(bundle / "configs" / "inference.yaml"), workflow_type="infer", **options)
    workflow.initialize()
    return workflow


def _run(bundle: Path, place: Path, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    mib = peak_resident_mib(lambda: _workflow(bundle, place).run())
    return time.perf_counter() - start, mib
