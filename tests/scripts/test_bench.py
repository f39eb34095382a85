"""Every command of scripts/bench.py, at a small size: it prints a table and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch

from calib_components.tools import benchmarks
from calib_components.tools.benchmarks.training import MODES
from tests.helpers import run_as_typed, run_script

SMALL = ((2, 4, 16, 16), (1, 3, 8, 8, 8))


@pytest.fixture(autouse=True)
def settings_are_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    logging.disable(logging.NOTSET)


def small_case() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(1, 4, 8, 8, 4).softmax(1), torch.randint(4, (1, 1, 8, 8, 4))


COMMANDS: dict[str, tuple[Callable[..., None], list[str]]] = {
    "losses": (partial(benchmarks.losses, rounds=1), ["forward + backward, 2x4x16x16", "NACLLoss median"]),
    "metrics": (partial(benchmarks.metrics, rounds=1), ["one batch, smooth", "hausdorff_distance_95"]),
    "posthoc": (partial(benchmarks.posthoc, rounds=1, cases=1), ["TemperatureScaling", "temperatures:"]),
    "train": (
        partial(benchmarks.train, rounds=1, slices=2, size=32),
        ["bare loop", "workflow, bfloat16, compile"],
    ),
    "evaluation": (
        partial(benchmarks.evaluation, rounds=1, sizes=[40], slices=4),
        ["evaluation of 4x40x40x4", "all metrics of evaluate.yaml"],
    ),
    "inference": (
        partial(benchmarks.inference, size=128, slices=4, num_classes=3, whole=True),
        ["inference, 128x128x4, 3 classes", "whole volumes", "slabs"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    modules = {name: import_module(f"calib_components.tools.benchmarks.{name}") for name in ("losses", "metrics")}
    for module in modules.values():
        monkeypatch.setattr(module, "SHAPES", SMALL)
    small = {"network_def::channels": [8, 16], "network_def::strides": [2]}  # to compile takes most of the time
    modes = {name: {**MODES[name], **small} for name in ("float32", "bfloat16, compile")}
    monkeypatch.setattr("calib_components.tools.benchmarks.training.MODES", modes)
    monkeypatch.setattr(modules["metrics"], "_smooth_case", small_case)
    monkeypatch.setattr(modules["metrics"], "STRUCTURES", {"ventricle": ((24, 24, 6), (5, 5, 2), (1.5, 1.5, 10.0))})
    run, expected = COMMANDS[command]
    run(threads=1)
    printed, errors = capfd.readouterr()
    assert all(text in printed for text in expected)
    assert not any(level in printed + errors for level in ("INFO", "WARNING", "Warning"))


def test_the_script_lists_its_commands() -> None:
    done = run_script("scripts/bench.py", "--help")
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout + done.stderr for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--rounds", "0"], "bench: rounds: expected a whole number of at least 1, got 0"),
        (["losses", "--threads", "0"], "bench: threads: expected a whole number of at least 1, got 0"),
        (
            ["inference", "--slice", "5"],
            "bench: --slice: expected an option, got no such option; did you mean --slices?",
        ),
        (["loses"], "bench: loses: expected a command, evaluation, inference, losses, metrics, posthoc, train, got no"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str) -> None:
    commands = {name: getattr(benchmarks, name) for name in benchmarks.__all__}
    outcome = run_as_typed("bench", commands, arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(line)
