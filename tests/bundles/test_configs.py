"""The files of every bundle: what MONAI expects of them, their source, and what their expressions
may hold.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.sync_bundles import sync
from tests.helpers import ACDC, BUNDLES, HIPPOCAMPUS, ROOT, make_prepared

COMMON = ROOT / "bundles" / "common"
LOGIC = re.compile(r"\b(for|while|lambda|and|or|exit)\b|:=| if (?!torch\.cuda\.is_available\(\))")


def parser(bundle: Path, *configs: str) -> ConfigParser:
    parsed = ConfigParser()
    parsed.read_config([str(bundle / "configs" / name) for name in configs])
    return parsed


@pytest.mark.parametrize(
    "file", sorted(COMMON.rglob("*.yaml")), ids=lambda file: str(file.relative_to(COMMON))
)
def test_expressions_hold_no_logic(file: Path) -> None:
    """Logic belongs in Python: an expression is a call or a look-up, or the choice of a device."""
    expressions = re.findall(r'"(\$(?:[^"\\]|\\.)*)"', json.dumps(yaml.safe_load(file.read_text())))
    assert [text for text in expressions if len(text) > 100 or LOGIC.search(text)] == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_defines_the_properties_that_monai_expects(bundle: Path, tmp_path: Path) -> None:
    make_prepared(bundle, tmp_path / "data")
    for workflow, *configs in (
        ("train", "train"),
        ("train", "train", "evaluate"),
        ("train", "train", "calibrate"),
        ("infer", "inference"),
    ):
        parsed = ConfigWorkflow(
            config_file=[str(bundle / "configs" / f"{config}.yaml") for config in configs],
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=str(bundle / "configs" / "logging.conf"),
            workflow_type=workflow,
            dataset_dir=str(tmp_path / "data"),
            output_dir=str(tmp_path),
        )
        parsed.initialize()
        assert parsed.check_properties() == []


def test_federated_learning_evaluates_its_own_weights() -> None:
    """MONAI sets them, and runs the evaluator alone."""
    handlers = parser(ACDC, "train.yaml", "evaluate.yaml")["validate::handlers"]
    assert not any("Checkpoint" in handler["_target_"] for handler in handlers)


def test_default_is_the_loss_of_the_weights_and_the_overlay_that_of_the_paper() -> None:
    for bundle, default in ((ACDC, ("logits", 0.1)), (HIPPOCAMPUS, ("logits", 0.03))):
        losses = (
            parser(bundle, "train.yaml", *more).get_parsed_content("loss")
            for more in ((), ("losses/nacl.yaml",))
        )
        assert [(loss.constraint, loss.penalty_weight) for loss in losses] == [
            default,
            ("logits", 0.1),
        ]


@pytest.mark.parametrize(
    "overlay", sorted((COMMON / "losses").iterdir()), ids=lambda file: file.stem
)
def test_overlays_set_a_loss_of_logits_and_labels(overlay: Path) -> None:
    loss = parser(ACDC, "train.yaml", f"losses/{overlay.name}").get_parsed_content("loss")
    assert loss(torch.randn(1, 3, 8, 8), torch.randint(3, (1, 1, 8, 8))).isfinite()


@pytest.mark.parametrize("turned", [True, False])
def test_slices_are_flipped_and_turned_as_any_orientation_says(turned: bool) -> None:
    parsed = parser(ACDC, "train.yaml")
    parsed.update({"bundle_root": str(ACDC), "any_orientation": turned})
    _, spatial, *_ = parsed.get_parsed_content("train::preprocessing").transforms
    used = [type(transform).__name__ for transform in spatial.transforms]
    assert ("RandFlipd" in used, "RandRotate90d" in used) == (turned, turned)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_what_decides_the_weights_is_what_the_pages_say(bundle: Path) -> None:
    """The epoch of the best DSC is kept, the order of slices follows from the seed, and validation
    cases calibrate.
    """
    assert parser(bundle, "train.yaml", "calibrate.yaml")["split"] == "validation"
    assert parser(bundle, "train.yaml", "evaluate.yaml")["split"] == "testing"
    parsed = parser(bundle, "train.yaml")
    assert parsed["validate::evaluator::key_val_metric"] == "@validate::key_metric"
    (metric,) = parsed["validate::key_metric"].values()
    assert metric["metric_fn"]["_target_"] == "calib_components.metrics.DSCMetric"
    seeds = []
    for seed in (0, 1):
        parsed.update({"seed": seed})
        seeds.append(parsed.get_parsed_content("train::sampler::seed"))
        parsed.ref_resolver.reset()
    assert abs(seeds[0] - seeds[1]) > parsed["max_epochs"]  # to which the epoch is added


def test_generated_files_are_in_step_with_their_source() -> None:
    sync(check=True)
