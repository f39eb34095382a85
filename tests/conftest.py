"""What the tests share: a phantom data set, prepared at a small size, and a network trained on
it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from calib_components.errors import warn_once
from tests.helpers import ACDC, run_bundle

# The same examples, however busy the cores are
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test and the files of slow ones, so that processes end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_nnunet.py", item.path not in slow))


@pytest.fixture(scope="session", autouse=True)
def without_mlflow_in_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave MLflow, which takes a second of every import of MONAI's handlers, out of processes that
    tests start.
    """
    folder = tmp_path_factory.mktemp("without")
    (folder / "mlflow.py").write_text("raise ImportError\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def operators_stay_alive() -> Iterator[None]:
    """Keep operators that PyTorch replaces, as its ONNX exporter does.

    ``torch.jit.script`` looks up builtins by ``id`` and takes an object at the address of a freed
    one for it.
    """
    register, kept = torch.jit._builtins._register_builtin, []

    def keep(function: object, name: str) -> None:
        kept.append(function)
        register(function, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.jit._builtins, "_register_builtin", keep)
        yield


@pytest.fixture(autouse=True)
def warns_again() -> None:
    """Let each test see the warnings that come once per process, whatever ran before it."""
    warn_once.cache_clear()


@pytest.fixture(autouse=True)
def leaves_no_log_handlers() -> Iterator[None]:
    """Remove what a test, or a library that it imported, added to the root logger: its stream
    closes with the test.
    """
    before = logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before and type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom hearts of 10 patients in the challenge's layout."""
    from tests.phantoms import make_phantoms

    out = tmp_path_factory.mktemp("phantoms")
    make_phantoms(out, patients=10, seed=1)
    return out


@pytest.fixture(scope="session")
def prepared(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms prepared at 64 x 64: 6 patients to train on, 2 to validate, 2 to test."""
    from calib_tools.prepare import prepare_data

    out = tmp_path_factory.mktemp("prepared")
    prepare_data("acdc", phantoms, out, image_size=(64, 64), fractions=(0.6, 0.2, 0.2), workers=1)
    return out


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the ACDC bundle after two epochs on them."""
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What torchrun sets for each process: with more threads the network itself rounds
    differently.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
