"""The signatures and docstrings of the commands of the scripts, which are their options and help.

A command imports the function that it calls, so that help needs no PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def new_bundle(
    trained: Path,
    out: Path,
    *,
    name: str = "",
    bundle_version: str = "",
    authors: str = "",
    modality: str = "",
    data_source: str = "",
    weights_license: str = "",
    terms: Path | None = None,
    weights: Path | None = None,
    evaluation: Path | None = None,
) -> None:
    """Make a bundle of your own training: weights, configs, metadata, a page and licences.

    Classes and sizes are those of `facts.yaml` beside the weights, measured results those of the
    evaluation. `scripts/package_bundle.py` packs the bundle, `scripts/monai_label` serves it.

    Args:
        trained: Folder of the training, its `--bundle_root`.
        out: Folder of the new bundle, whose last part is the bundle's name.
        name: Title of the bundle, such as "Left atrium MR segmentation".
        bundle_version: Version of the bundle, such as 0.1.0.
        authors: Who trained the weights.
        modality: Modality of the images, such as MR or CT.
        data_source: Which data the weights were trained on, and whose they are.
        weights_license: Licence of the weights, such as cc-by-4.0, or the terms of the data.
        terms: Text file with the terms of that licence. Default: a sentence that names it.
        weights: Weights of the bundle. Default: `models/model.pt` of the training.
        evaluation: Folder with the evaluation of these weights. Default: `eval` of the training.

    Raises:
        InputError: An option is missing, `out` exists, the weights do not fit the bundle's network,
            or the evaluation is of other weights.
    """
    call("scripts.helpers.new_bundle", "new_bundle", locals())


def package_bundle(
    bundle: Path,
    out: Path = Path("dist"),
    *,
    required: bool = False,
    zoo: Path | None = None,
    huggingface: str | None = None,
    any_weights: bool = False,
    overwrite: bool = False,
) -> None:
    """Pack a bundle into one zip that is complete by itself, or into a clone of the Model Zoo.

    The metadata must describe the weights: their classes, and the measured results, by the checksum
    `weights_sha256`.

    Args:
        bundle: Folder of the bundle.
        out: Folder to write `NAME_vVERSION.zip` to, with the version from the bundle's metadata.
        required: Whether the metadata require `calib-components`, in this version, in place of a
            copy in the package.
        zoo: Clone of the Model Zoo to write the files of a request to, in place of a zip: the
            folder of the bundle in `models`, and its test in `ci/unit_tests`.
        huggingface: Repository for the package at Hugging Face, such as YOU/NAME. The metadata have
            its address, and the package a model card and the licence of the weights.
        any_weights: Whether the results in the metadata may be those of other weights of the same
            classes, such as where a server of your own runs a bundle that you trained further.
        overwrite: Whether to replace an archive of this version, or the bundle in the Zoo.
    """
    call("scripts.helpers.packages", "package_bundle", locals())


def demo(out: Path = Path("demo_output"), *, train: bool = False, overwrite: bool = False) -> None:
    """Calibrate and evaluate two networks, segment with one; print a table and draw a picture.

    Args:
        out: Folder for all that is made.
        train: Also train a network with CE + Dice, on the few patients that temperatures are fitted
            on.
        overwrite: Whether files in `out` that are not of an earlier demo are replaced.
    """
    call("scripts.helpers.demo", "demo", locals())


def evaluation(
    device: str = "cpu",
    rounds: int = 5,
    threads: int = 2,
    sizes: Sequence[int] = (144, 224),
    slices: int = 10,
) -> None:
    """All measures of an evaluation of one ACDC volume, over published code for those that it
    reports.

    Published code reports the DSC, HD95 (as medpy computes it), and ECE, CECE and NLL, here in the
    same regions; ratios are over its time for these. An evaluation also has volumes, estimates of
    quality, and the errors if the probabilities were true, which it lacks.

    Memory is the peak of a fresh process by the count of Linux, above what it holds with the case
    in memory.

    Args:
        device: Where the measures run, "cpu" or "cuda"; published code runs on the CPU.
        rounds: How many times each is timed.
        threads: CPU threads for PyTorch.
        sizes: Rows and columns of the volumes: those that the bundle's network sees, and those of
            whole slices.
        slices: Number of slices.
    """
    call("scripts.benchmarks.evaluation", "evaluation", locals())


def inference(
    size: int = 512,
    slices: int = 600,
    num_classes: int = 5,
    rounds: int = 1,
    threads: int = 2,
    patch: int | None = None,
) -> None:
    """Seconds, peak memory and bytes of an inference through the FLARE bundle, with random weights.

    The volume is blocks of noise in a box of air. Memory is that of the process above what it holds
    after its imports, by the count of Linux.

    Args:
        size: Rows and columns of a slice.
        slices: Number of slices.
        num_classes: Classes of the network.
        rounds: How many inferences are timed.
        threads: CPU threads for PyTorch.
        patch: Side of the patches of a 3D network, through the hippocampus bundle in place of that
            of FLARE.
    """
    call("scripts.benchmarks.inference", "inference", locals())


def losses(device: str = "cpu", rounds: int = 15, threads: int = 2) -> None:
    """Forward and backward of every loss over plain cross-entropy, in 2D, 3D and with many classes,
    next to MONAI's.

    Args:
        device: Where to run, "cpu" or "cuda".
        rounds: How many times each loss is timed.
        threads: CPU threads for PyTorch.
    """
    call("scripts.benchmarks.losses", "losses", locals())


def objects(
    size: int = 512, slices: int = 300, number: int = 2000, rounds: int = 1, threads: int = 1
) -> None:
    """Seconds and peak memory of the candidates and true objects of a volume, matched.

    Memory is that of the process above what it holds with the case, by the count of Linux.

    Args:
        size: Rows and columns of a slice.
        slices: Number of slices.
        number: Of candidates, and of true objects, before some touch each other.
        rounds: How many times it is timed; the shortest is printed.
        threads: CPU threads for PyTorch.
    """
    call("scripts.benchmarks.objects", "objects", locals())


def call(module: str, name: str, given: Mapping[str, Any]) -> None:
    """Call the function of a command with what was given to it."""
    getattr(importlib.import_module(module), name)(**given)
