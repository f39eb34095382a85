"""Every benchmark, at a small size, prints a table and nothing else; what is timed gives the
numbers of NumPy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch

from scripts import benchmarks
from scripts.benchmarks.evaluation import heart, measure, measure_as_published
from scripts.benchmarks.training import MODES

COMMANDS: dict[str, tuple[Callable[..., None], list[str]]] = {
    "losses": (
        partial(benchmarks.losses, rounds=1),
        ["forward + backward, 2x4x16x16", "NACLLoss median"],
    ),
    "metrics": (
        partial(benchmarks.metrics, rounds=1),
        ["one batch, 2x4x16x16", "hausdorff_distance_95"],
    ),
    "posthoc": (
        partial(benchmarks.posthoc, rounds=1, cases=1),
        ["TemperatureScaling", "temperatures:"],
    ),
    "train": (
        partial(benchmarks.train, rounds=1, slices=2, size=32),
        ["bare loop", "workflow, bfloat16, compile"],
    ),
    "evaluation": (
        partial(benchmarks.evaluation, rounds=1, sizes=[40], slices=4),
        ["of 4x40x40x4", "published"],
    ),
    "inference": (
        partial(benchmarks.inference, size=128, slices=4, num_classes=3, whole=True),
        ["inference, 128x128x4, 3 classes", "whole volumes", "slabs"],
    ),
}


@pytest.fixture(autouse=True)
def settings_are_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in ("losses", "metrics"):
        # The package has a function of this name
        module = import_module(f"scripts.benchmarks.{name}")
        monkeypatch.setattr(module, "SHAPES", ((2, 4, 16, 16), (1, 3, 8, 8, 8)))
    monkeypatch.setattr(
        import_module("scripts.benchmarks.losses"), "MANY_CLASSES", (1, 105, 8, 8, 8)
    )
    # To compile takes most of the time
    small = {"network_def::channels": [8, 16], "network_def::strides": [2]}
    modes = {name: {**MODES[name], **small} for name in ("float32", "bfloat16, compile")}
    monkeypatch.setattr("scripts.benchmarks.training.MODES", modes)
    ventricle = {"ventricle": ((24, 24, 6), (5, 5, 2), (1.5, 1.5, 10.0))}
    monkeypatch.setattr(import_module("scripts.benchmarks.metrics"), "STRUCTURES", ventricle)
    run, expected = COMMANDS[command]
    run(threads=1)
    printed, errors = capfd.readouterr()
    assert all(text in printed for text in expected)
    assert not any(level in printed + errors for level in ("INFO", "WARNING", "Warning"))


def test_an_evaluation_has_the_numbers_of_published_code() -> None:
    """That is, of NumPy, from the definitions, in all regions."""
    case = heart(80, 6)
    found, expected = measure(*case), measure_as_published(*case)
    assert len(expected) > 60
    for name, value in expected.items():
        # The grid of the smooth ECE differs. Equal confidences are in the order of the voxels
        # there, for the AURC.
        tolerance = (
            5e-4
            if name.startswith("smooth")
            else 0.05 * value
            if name == "aurc"
            else 1e-6 * max(value, 1)
        )
        assert found[name] == pytest.approx(value, abs=tolerance), name
    assert all(
        0.001 < found[f"ece{region}"] < 0.3
        for region in ("", "_all", "_predicted", "_structure_LV")
    )
