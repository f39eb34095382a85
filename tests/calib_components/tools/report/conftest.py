"""Results folders and prepared data that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.calib_components.tools.compare.made_up import make_datalist, make_results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """CE+DSC with two seeds, NACL with one; SVLS is planned but not finished."""
    return make_results(tmp_path / "results")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of prepared data, of which planning reads the list of cases."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "datalist.json").write_text(json.dumps(make_datalist("a", "b", "c")))
    return folder
