"""Fixtures of all tests, and the little of prepared data that planning needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import (  # noqa: F401
    leaves_no_log_handlers,
    operators_stay_alive,
    warns_again,
    without_mlflow_in_processes,
)


def write_list(folder: Path, name: str = "datalist.json", **patients: str) -> Path:
    """Write a list with a case for each letter of each split."""
    folder.mkdir(exist_ok=True)
    empty: dict[str, str] = dict.fromkeys(("training", "validation", "testing"), "")
    splits = {
        split: [
            {"case": f"{p}_1", "patient": p, "image": f"{p}_1.nii", "label": f"{p}_1_gt.nii"}
            for p in letters
        ]
        for split, letters in {**empty, **patients}.items()
    }
    (folder / name).write_text(json.dumps(splits))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prepared data with two folds, of which planning reads the lists."""
    folder = write_list(tmp_path / "data", training="a", validation="b", testing="c")
    write_list(folder, "datalist_fold0.json", training="a", validation="b", testing="c")
    return write_list(folder, "datalist_fold1.json", training="b", validation="c", testing="a")


@pytest.fixture
def scanner(tmp_path: Path) -> Path:
    """A further test set."""
    return write_list(tmp_path / "scanner", testing="xy")
