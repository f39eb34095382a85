"""A small data set in ACDC's layout, and its preparation."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from calib_tools.prepare import prepare_data
from tests.helpers import make_acdc

Prepare = Callable[..., str]


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Two patients with two cases each."""
    return make_acdc(tmp_path / "src")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for prepared cases, which does not exist yet."""
    return tmp_path / "out"


@pytest.fixture
def prepare(src: Path, out: Path) -> Prepare:
    """Prepares `src` into `out`, or other folders, at 16 x 32; takes options of the command, and
    returns its text.
    """

    def prepare(src: Path = src, out: Path = out, **options: Any) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
            prepare_data("acdc", src, out, **{"image_size": (16, 32), "workers": 1, **options})
        return text.getvalue()

    return prepare
