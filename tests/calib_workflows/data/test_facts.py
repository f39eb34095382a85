"""Facts are data that must not contradict each other; nothing in them is evaluated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from calib_components.errors import InputError
from calib_workflows.data.facts import FACTS, Facts, facts_beside, read_facts, write_facts

OWN: dict[str, Any] = {
    "dataset": "acdc",
    "num_classes": 3,
    "in_channels": 1,
    "class_names": ["background", "wall", "cavity"],
    "label_codes": [0, 1, 2],
    "structures": {"wall": [1], "heart": [1, 2]},
    "file_suffixes": [],
    "image_size": [64, 96],
    "crop_size": [48, 48],
}


def test_written_facts_are_read_back(tmp_path: Path) -> None:
    facts = Facts(**OWN, slice_axis=1, pixel_size=[1.25, 2.0], source="/data/1e3")
    write_facts(facts, tmp_path)
    assert read_facts(tmp_path / FACTS, **OWN) == facts_beside(tmp_path / "model.pt") == facts
    # By an editor on Windows
    (tmp_path / FACTS).write_bytes(b"\xef\xbb\xbf" + (tmp_path / FACTS).read_bytes())
    assert facts_beside(tmp_path / FACTS) == facts
    # As version 0.2 wrote it, without a schema_version
    (tmp_path / FACTS).write_text(yaml.safe_dump(OWN))
    assert read_facts(tmp_path / FACTS, **OWN) == Facts(**OWN)


def test_without_a_file_the_facts_are_those_of_the_bundle(tmp_path: Path) -> None:
    assert read_facts(tmp_path / FACTS, **OWN) == Facts(**OWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "flare"}, "prepared like flare, the bundle is for acdc"),
        ({"window": [-160, 240]}, r"made with the window \[-160, 240\], not None of the bundle"),
        ({"num_classes": 4}, "class_names must hold 4 different values"),
        ({"num_classes": 256}, "num_classes must be at most 255"),
        ({"ignored_code": 1}, "ignored_code 1 is that of a class"),
        ({"label_codes": [0, 1, 1]}, "label_codes must hold 3 different values"),
        ({"spacing": [1, 1]}, "spacing must be 3 sizes in mm"),
        ({"spacing": [1, math.nan, 1]}, "spacing must be 3 sizes in mm"),
        ({"slice_axis": 7}, "slice_axis must be one of None, 0, 1, 2, got 7"),
        ({"structures": {"wall": [3]}}, "structures must have class indices"),
        ({"structures": {"all": [0, 1]}}, "structures must have class indices from 1"),
        ({"structures": {"wall": 1}}, r"structures must be dict\[str, list\[int\]\], got"),
        ({"pixel_size": "abc"}, "pixel_size must be .*, got 'abc'"),
        ({"in_channels": True}, "in_channels must be int, got True"),
        ({"crop_size": [48, 112]}, r"crop_size \[48, 112\] is larger than image_size"),
        ({"image_size": [64]}, "image_size must be two multiples of 16"),
        ({"crop_size": [48, 40]}, "crop_size must be two multiples of 16"),
        ({"spatial_dims": 3}, "crop_size must be three multiples of 8"),
        ({"spatial_dims": 4}, "spatial_dims must be one of 2, 3"),
        ({"pixel_sise": [1, 2]}, "unexpected keyword argument 'pixel_sise'"),
        ({"schema_version": 2}, "newer version"),
    ],
    ids=str,
)
def test_facts_that_contradict_each_other(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / FACTS).write_text(yaml.safe_dump({**OWN, **change}))
    with pytest.raises(InputError, match=rf"facts\.yaml: .*{message}"):
        read_facts(tmp_path / FACTS, **OWN)


def test_patches_may_be_larger_than_cases_that_keep_their_size() -> None:
    for image_size in (None, [32, 32]):
        volumes = {
            "spatial_dims": 3,
            "image_size": image_size,
            "crop_size": [40, 48, 96],
            "spacing": [1, 1, 1.5],
        }
        assert Facts.parse({**OWN, **volumes}, "facts").crop_size == [40, 48, 96]


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: [", "dataset: acdc\n", "a: !!python/object/apply:os.getcwd []"]
)
def test_broken_file(text: str, tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text(text)
    with pytest.raises(InputError, match=r"facts\.yaml: "):
        read_facts(tmp_path / FACTS, **OWN)
