from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from calib_components.errors import InputError
from calib_components.tools.preparation.facts import Facts
from tests.helpers import ROOT

DATASETS = ("acdc", "flare", "brats")


@pytest.mark.parametrize("dataset", DATASETS)
def test_facts_are_those_of_the_bundle(dataset: str) -> None:
    facts = Facts.of_dataset(dataset)
    assert yaml.safe_load(yaml.safe_dump(asdict(facts))) == asdict(facts)
    source = yaml.safe_load((ROOT / "bundles" / "common" / f"{dataset}.yaml").read_text())
    assert asdict(facts) == {**source, "source": ""}
    assert len(facts.class_names) == len(facts.label_codes) == facts.num_classes


def test_written_facts_are_read_back(tmp_path: Path) -> None:
    facts = Facts.of_dataset("brats").for_source(tmp_path, (32, 40))
    facts.write(tmp_path)
    assert Facts.read(tmp_path) == facts
    assert (facts.image_size, facts.source) == ([32, 40], str(tmp_path.resolve()))
    assert list(yaml.safe_load((tmp_path / "facts.yaml").read_text()))[-1] == "source"


def test_writing_the_same_facts_leaves_the_file_untouched(tmp_path: Path) -> None:
    Facts.of_dataset("acdc").write(tmp_path)
    before = (tmp_path / "facts.yaml").stat().st_mtime_ns
    Facts.of_dataset("acdc").write(tmp_path)
    assert (tmp_path / "facts.yaml").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["facts.yaml"]


def test_transforms_use_the_image_size() -> None:
    transforms = Facts.of_dataset("acdc").for_source(Path(), (32, 40)).transforms()
    assert transforms.transforms[0].resizer.spatial_size == [32, 40, -1]


@pytest.mark.parametrize("text", ["", "- 3\n", "num_classes: 3\n", "a: ["])
def test_broken_file_is_an_error_of_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "facts.yaml").write_text(text)
    with pytest.raises(InputError, match=r"facts\.yaml: expected the facts of a data set, got") as caught:
        Facts.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image_size", [128, (128,), (0, 128)])
def test_image_size_is_two_positive_numbers(image_size: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image_size: expected two positive numbers, got"):
        Facts.of_dataset("acdc").for_source(tmp_path, image_size)
