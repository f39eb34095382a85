"""Every benchmark, at a small size, prints a table; what is timed gives the numbers of NumPy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from scripts.benchmarks import losses
from scripts.benchmarks.evaluation import (
    STRUCTURES,
    evaluation,
    heart,
    measure,
    measure_as_published,
)
from scripts.benchmarks.inference import inference
from scripts.benchmarks.objects import objects

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "losses": (partial(losses.losses, rounds=1), "NACLLoss median"),
    "evaluation": (partial(evaluation, rounds=1, sizes=[40], slices=4), "published"),
    "objects": (partial(objects, size=32, slices=32, number=3), "peak MiB"),
    "inference": (partial(inference, size=128, slices=4, num_classes=3), "peak MiB"),
}


@pytest.fixture(autouse=True)
def settings_are_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(losses, "SHAPES", ((2, 4, 16, 16), (1, 3, 8, 8, 8)))
    monkeypatch.setattr(losses, "MANY_CLASSES", (1, 105, 8, 8, 8))
    run, expected = COMMANDS[command]
    run(threads=1)
    assert expected in capsys.readouterr().out


def test_an_evaluation_has_the_numbers_of_published_code() -> None:
    """That is, of NumPy, from the definitions, in all regions."""
    case = heart(80, 6)
    found, expected = measure(*case), measure_as_published(*case)
    errors = {"ece", "ece_all", "ece_predicted", "cece", "nll_all", "nll_predicted", "nll_near"}
    assert {*expected} == errors | {
        f"{each}_{name}" for each in ("dsc", "hd95") for name in STRUCTURES
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6 * max(value, 1)), name
    assert all(0.001 < found[name] < 0.3 for name in ("ece", "ece_all", "ece_predicted"))
