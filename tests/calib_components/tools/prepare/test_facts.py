from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from calib_components.data.facts import FACTS, Facts, facts_text
from calib_components.errors import InputError
from calib_components.tools.prepare.facts import facts_of_dataset, volume_transforms
from tests.helpers import ROOT

DATASETS = ("acdc", "flare", "brats")


@pytest.mark.parametrize("dataset", DATASETS)
def test_facts_are_those_of_the_bundle(dataset: str, tmp_path: Path) -> None:
    facts = facts_of_dataset(dataset, tmp_path)
    source = yaml.safe_load((ROOT / "bundles" / "common" / f"{dataset}.yaml").read_text())["facts"]
    assert {name: getattr(facts, name) for name in source if name not in ("_target_", "file")} == {
        name: value for name, value in source.items() if name not in ("_target_", "file")
    }
    assert (facts.dataset, facts.source) == (dataset, str(tmp_path.resolve()))


def test_network_sees_no_more_than_the_slice(tmp_path: Path) -> None:
    facts = facts_of_dataset("acdc", tmp_path, (96, 160), slice_axis=1)
    assert (facts.image_size, facts.crop_size, facts.slice_axis) == ([96, 160], [96, 144], 1)


def test_transforms_use_the_size_and_the_axis() -> None:
    first, second, *_ = volume_transforms(facts_of_dataset("acdc", Path(), (32, 48), slice_axis=1)).transforms
    assert first.slice_axis == 1
    assert second.resizer.spatial_size == [32, 48, -1]


@pytest.mark.parametrize("dataset", ["flare", "brats"])
def test_axis_where_the_header_decides_is_an_error(dataset: str) -> None:
    with pytest.raises(InputError, match=f"slice_axis: expected none for data like {dataset}, whose slices are axial"):
        facts_of_dataset(dataset, Path(), slice_axis=2)


@pytest.mark.parametrize("side", ["$__import__('os').mkdir('ran')", "@image_size", True, 16.5, 17, -16])
def test_size_is_never_evaluated(side: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="image_size: expected two whole numbers, multiples of 16"):
        facts_of_dataset("acdc", tmp_path, [side, 16])
    assert list(tmp_path.iterdir()) == []


class TestPresentFile:
    """`facts.yaml` beside cases that an earlier run has prepared."""

    def test_it_is_written_at_the_end_with_the_sizes_of_pixels(self, out: Path, prepare: Any) -> None:
        prepare(fractions=(1, 0, 0))
        facts = Facts.parse(yaml.safe_load((out / FACTS).read_text()), FACTS)
        assert facts.pixel_size == [0.625, 1.6875]  # 16 x 1.25 mm over 32 pixels, 18 x 1.5 mm over 16
        before = (out / FACTS).stat().st_mtime_ns
        prepare(fractions=(1, 0, 0))
        assert (out / FACTS).stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "expected the facts of a data set, got None"),
            ("a: [", "expected the facts of a data set, got while parsing"),
            ("- 3", "expected the facts of a data set, got"),
            ("num_classes: 3", "expected the facts of a data set, got none called dataset"),
            ({"crop_size": "$__import__('os').mkdir('ran')"}, "expected crop_size to be two positive whole numbers"),
            ({"volume_transforms": []}, "got 'volume_transforms'; choose another folder"),
        ],
        ids=str,
    )
    def test_what_is_none_is_refused_and_kept(
        self, content: Any, message: str, out: Path, prepare: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepare()
        facts = yaml.safe_load((out / FACTS).read_text())
        text = yaml.safe_dump({**facts, **content}) if isinstance(content, dict) else content
        (out / FACTS).write_text(text)
        monkeypatch.chdir(out)
        with pytest.raises(InputError) as caught:
            prepare()
        assert str(caught.value).startswith(f"{out / FACTS}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (out / FACTS).read_text() == text
        assert not (out / "ran").exists()

    def test_cases_without_it_are_refused(self, out: Path, prepare: Any) -> None:
        prepare()
        (out / FACTS).unlink()
        with pytest.raises(InputError, match=r"facts\.yaml: expected the facts of the cases there, got no such file"):
            prepare()
        for case in out.glob("patient*"):
            shutil.rmtree(case)
        prepare()
        assert facts_text(Facts.parse(yaml.safe_load((out / FACTS).read_text()), FACTS)) == (out / FACTS).read_text()
