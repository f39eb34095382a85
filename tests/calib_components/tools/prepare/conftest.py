"""A small data set in ACDC's layout, and its preparation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calib_components.tools.prepare import prepare_data
from tests.helpers import make_acdc


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Two patients with two cases each."""
    return make_acdc(tmp_path / "src")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for prepared cases, which does not exist yet."""
    return tmp_path / "out"


@pytest.fixture
def prepare(src: Path, out: Path) -> Callable[..., None]:
    """Prepares `src` into `out`, or other folders, at 16 x 32; takes options of the command."""

    def prepare(src: Path = src, out: Path = out, **options: Any) -> None:
        prepare_data("acdc", src, out, **{"image_size": (16, 32), "workers": 1, **options})

    return prepare
