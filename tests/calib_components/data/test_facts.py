"""Facts are data: only known keys with plain values are read, and none is ever evaluated."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from calib_components.data.facts import FACTS, Facts, check_class_names, read_facts, write_facts
from calib_components.errors import InputError

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
CODE = "$__import__('os').mkdir('ran')"


def test_written_facts_are_read_back(tmp_path: Path) -> None:
    facts = Facts(**OWN, slice_axis=1, pixel_size=[1.25, 2.0], source="/data/1e3")
    write_facts(facts, tmp_path)
    assert read_facts(tmp_path / FACTS, **OWN) == facts
    before = (tmp_path / FACTS).stat().st_mtime_ns
    write_facts(facts, tmp_path)
    assert (tmp_path / FACTS).stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [FACTS]


def test_without_a_file_the_facts_are_those_given(tmp_path: Path) -> None:
    assert read_facts(tmp_path / FACTS, **OWN) == Facts(**OWN)
    assert asdict(Facts(**OWN))["pixel_size"] is None


def test_cases_of_other_classes_without_a_file_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text('{"labels": {"0": "background", "1": "tumour"}}')
    with pytest.raises(
        InputError, match=r"facts\.yaml: expected the facts of the cases in datalist\.json, whose classes"
    ):
        read_facts(tmp_path / FACTS, **OWN)
    own = dict(enumerate(OWN["class_names"]))
    for unknown in (json.dumps({"labels": own}), "{}", "[]", '{"labels": {}}', '{"labels": {"background": 0}}', "{"):
        (tmp_path / "datalist.json").write_text(unknown)
        assert read_facts(tmp_path / FACTS, **OWN) == Facts(**OWN)


def test_facts_of_other_geometry_are_an_error(tmp_path: Path) -> None:
    write_facts(Facts(**{**OWN, "dataset": "flare"}), tmp_path)
    with pytest.raises(
        InputError, match=r"facts\.yaml: expected data prepared like acdc, the bundle's, got like flare;"
    ):
        read_facts(tmp_path / FACTS, **OWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_size": CODE}, "expected crop_size to be two positive whole numbers, got"),
        ({"crop_size": [CODE, 16]}, "expected crop_size to be two positive whole numbers, got"),
        ({"num_classes": CODE}, "expected num_classes to be a whole number from 2 to 256, got"),
        ({"num_classes": 3.0}, "expected num_classes to be a whole number from 2 to 256, got 3.0"),
        ({"num_classes": True}, "expected num_classes to be a whole number from 2 to 256, got True"),
        ({"num_classes": 1}, "expected num_classes to be a whole number from 2 to 256, got 1"),
        ({"num_classes": 257}, "expected num_classes to be a whole number from 2 to 256, got 257"),
        ({"num_classes": 4}, "expected 4 class_names, one per class, got"),
        ({"in_channels": 0}, "expected in_channels to be a whole number of at least 1, got 0"),
        ({"image_size": [64]}, "expected image_size to be two positive whole numbers, got [64]"),
        ({"image_size": [64, -1]}, "expected image_size to be two positive whole numbers, got"),
        ({"class_names": ["background", "wall", CODE]}, "expected class_names to be a list of names, got"),
        ({"class_names": ["background", "wall", "@device"]}, "expected class_names to be a list of names, got"),
        ({"class_names": ["background", "wall", "wall"]}, "expected different names, got wall twice"),
        ({"class_names": ["background", "wall", "a\nb"]}, "expected names of one line, got"),
        ({"label_codes": [0, 1]}, "expected 3 label_codes, one per class, got [0, 1]"),
        ({"label_codes": [0, 1, 2.5]}, "expected label_codes to be a list of different whole numbers of 32 bits, got"),
        ({"label_codes": [0, 1, 1]}, "expected label_codes to be a list of different whole numbers of 32 bits, got"),
        (
            {"label_codes": [0, 1, 2**31]},
            "expected label_codes to be a list of different whole numbers of 32 bits, got",
        ),
        ({"structures": {}}, "expected structures to be names and their lists of different class indices, got {}"),
        (
            {"structures": {CODE: [1]}},
            "expected structures to be names and their lists of different class indices, got",
        ),
        ({"structures": {"wall": [1, 1]}}, "expected structures to be names and their lists of different class"),
        ({"structures": {"wall": [3]}}, "expected structures of class indices from 0 to 2, got"),
        ({"file_suffixes": [CODE]}, "expected file_suffixes to be a list of texts, got"),
        ({"slice_axis": 3}, "expected slice_axis to be 0, 1, 2 or null, got 3"),
        ({"pixel_size": [0, 1.0]}, "expected pixel_size to be two positive numbers or null, got"),
        ({"source": 3}, "expected source to be text, got 3"),
        ({"network_def": {"_target_": "os.mkdir", "path": "ran"}}, "source, got 'network_def'"),
        ({"volume_transforms": []}, "source, got 'volume_transforms'"),
    ],
    ids=str,
)
def test_value_that_is_none_is_refused_and_not_evaluated(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FACTS).write_text(yaml.safe_dump({**OWN, **change}))
    with pytest.raises(InputError) as caught:
        read_facts(FACTS, **OWN)
    assert str(caught.value).startswith(f"{FACTS}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [FACTS]


@pytest.mark.parametrize("key", OWN)
def test_missing_value_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text(yaml.safe_dump({name: value for name, value in OWN.items() if name != key}))
    with pytest.raises(InputError, match=rf"facts\.yaml: expected the facts of a data set, got none called {key}"):
        read_facts(tmp_path / FACTS, **OWN)


@pytest.mark.parametrize(
    "text", ["", "- 3\n", "a: [", "text", "\x00", "source: !!python/object/apply:os.mkdir [ran]\n"], ids=repr
)
def test_broken_file_is_an_error_of_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FACTS).write_text(text)
    with pytest.raises(InputError, match=r"facts\.yaml: expected the facts of a data set, got") as caught:
        read_facts(FACTS, **OWN)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [FACTS]


@pytest.mark.parametrize("names", [["left kidney", "GTV+", "2nd"], ["Ödem", "a.b", "100%"]])
def test_names_as_people_write_them(names: list[str]) -> None:
    check_class_names(names, "labels")


def test_names_beyond_what_a_byte_can_tell_apart_are_an_error() -> None:
    check_class_names([str(index) for index in range(255)], "labels")
    with pytest.raises(InputError, match="labels: expected at most 255 names, got 256"):
        check_class_names([str(index) for index in range(256)], "labels")
