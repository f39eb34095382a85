from __future__ import annotations

from pathlib import Path

import pytest

from calib_components.errors import InputError
from calib_components.tools.compare.settings import PRESETS, choose_settings
from calib_components.tools.report.published import PUBLISHED
from tests.helpers import ACDC


def test_presets_are_the_papers_tables() -> None:
    names = {preset: [setting.name for setting in choose_settings([preset], ACDC)] for preset in PRESETS}
    assert {preset: len(found) for preset, found in names.items()} == {
        "table1": 7, "table2": 4, "table3": 6, "tuning": 7 + 2 * 5 + 3
    }  # fmt: skip
    assert set(names["table1"]) == set(PUBLISHED["flare"]) == set(PUBLISHED["brats"])
    assert {*names["table1"], *names["table2"], *names["table3"]} == set(PUBLISHED["acdc"])
    for preset in PRESETS.values():
        for setting in preset:
            assert (ACDC / "configs" / "losses" / f"{setting.loss}.yaml").is_file()


@pytest.mark.parametrize(("name", "label"), [("cross_entropy", "CE"), ("l1_ace", "CE+DSC+L1-ACE")])
def test_others_are_in_no_preset_but_can_be_asked_for(name: str, label: str) -> None:
    (setting,) = choose_settings([name], ACDC)
    assert (setting.label, setting.loss, setting.overrides) == (label, name, {})
    assert all(setting not in preset for preset in PRESETS.values())
    assert (ACDC / "configs" / "losses" / f"{name}.yaml").is_file()


def test_a_file_in_the_bundle_is_a_loss_too(tmp_path: Path) -> None:
    (tmp_path / "configs" / "losses").mkdir(parents=True)
    (tmp_path / "configs" / "losses" / "mine.yaml").touch()
    assert [setting.name for setting in choose_settings(["mine", "table2", "nacl"], tmp_path)] == [
        "mine", "nacl", "nacl_softmax", "nacl_l2", "nacl_5x5"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["nacl_gaussian", "table1"])
def test_a_file_called_as_a_setting_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "configs" / "losses").mkdir(parents=True)
    (tmp_path / "configs" / "losses" / f"{name}.yaml").touch()
    with pytest.raises(
        InputError, match=f"^--losses: expected one meaning of {name}, got a setting of the paper and .*yaml"
    ):
        choose_settings([name], tmp_path)


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(InputError, match=r"--losses: expected names among table1, table2, .*, got 'nalc'"):
        choose_settings(["nacl", "nalc"], ACDC)
