"""What tells one training from another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from calib_workflows.data.facts import Facts
from calib_workflows.runs import changes, settings_of
from tests.helpers import ACDC, BUNDLES


def parse(bundle: Path, *files: str, **overrides: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.yaml", *files)])
    parser.update(overrides)
    return parser


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_settings_are_plain_and_the_same_wherever_a_training_runs(bundle: Path) -> None:
    here, there = parse(bundle), parse(bundle, ckpt_dir="there", num_workers=8, max_epochs=3)
    settings = settings_of(here.get())
    assert all(isinstance(name, str) for name in settings)
    assert changes(settings, settings_of(there.get())) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"learning_rate": 0.2}, r"learning_rate 0\.001, not 0\.2"),
        ({"seed": 1}, "seed "),
        ({"network_def::num_res_units": 3}, "network_def::num_res_units "),
        ({"loss": {"_target_": "calib_components.losses.FocalLoss"}}, "loss::"),
        ({"train::dataloader::sampler": None}, "train::dataloader::sampler"),
        ({"validate::key_metric": None}, "validate::key_metric"),
    ],
    ids=str,
)
def test_what_reaches_a_number_is_a_change(overrides: dict[str, Any], line: str) -> None:
    before, now = parse(ACDC), parse(ACDC, **overrides)
    lines = changes(settings_of(before.get()), settings_of(now.get()))
    assert any(re.match(line, each) for each in lines), lines


def test_facts_are_settings() -> None:
    facts = parse(ACDC).get_parsed_content("facts")
    assert isinstance(facts, Facts)
    other = {**vars(facts), "label_codes": [0, 3, 2, 1]}
    before, now = (settings_of({}, each) for each in (facts, Facts(**other)))
    assert changes(before, now) == ["facts::label_codes [0, 1, 2, 3], not [0, 3, 2, 1]"]
