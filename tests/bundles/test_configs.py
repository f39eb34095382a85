"""The files of every bundle: what MONAI expects of them, their source, and what their expressions may hold."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.fl.client.monai_algo import disable_ckpt_loaders

from scripts import sync_bundles
from scripts.sync_bundles import sync
from tests.helpers import ACDC, BUNDLES, ROOT, make_prepared

COMMON = ROOT / "bundles" / "common"
# Logic belongs in Python. What is left in an expression is a call or a look-up, and the choice of a device.
LOGIC = (ast.comprehension, ast.For, ast.While, ast.Lambda, ast.BoolOp, ast.NamedExpr)
CHOICE_OF_DEVICE = "torch.cuda.is_available()"


def expressions(value: Any) -> Iterator[str]:
    """All `$` expressions in a configuration."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from expressions(item)
    elif isinstance(value, str) and value.startswith("$"):
        yield value


def faults(expression: str) -> list[str]:
    """What an expression holds that belongs in Python."""
    found = [f"{len(expression)} characters"] if len(expression) > 100 else []
    for node in ast.walk(ast.parse(re.sub(r"@[\w:]+", "reference", expression[1:]))):
        if isinstance(node, LOGIC):
            found.append(type(node).__name__)
        if isinstance(node, ast.IfExp) and ast.unparse(node.test) != CHOICE_OF_DEVICE:
            found.append("condition")
        if isinstance(node, ast.Name | ast.Attribute) and "exit" in ast.unparse(node):
            found.append("exit")
    return found


@pytest.mark.parametrize("file", sorted(COMMON.rglob("*.yaml")), ids=lambda file: str(file.relative_to(COMMON)))
def test_expressions_hold_no_logic(file: Path) -> None:
    assert {text: found for text in expressions(yaml.safe_load(file.read_text())) if (found := faults(text))} == {}


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("$[f for f in @files]", "comprehension"),
        ("$@names or sys.exit('no image')", "exit"),
        ("$'a' if @rank > 0 else 'b'", "condition"),
        ("$lambda x: x + 1", "Lambda"),
        ("$torch.device('cuda' if torch.cuda.is_available() else 'cpu')", None),
        ("$@train::trainer::max_epochs // 2", None),
    ],
)
def test_logic_in_an_expression_is_found(expression: str, fault: str | None) -> None:
    assert faults(expression) == [] if fault is None else fault in faults(expression)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("workflow", "configs"),
    [
        ("train", ["train"]),
        ("train", ["train", "evaluate"]),
        ("train", ["train", "calibrate"]),
        ("infer", ["inference"]),
    ],
    ids=str,
)
def test_defines_the_properties_that_monai_expects(
    bundle: Path, workflow: str, configs: list[str], tmp_path: Path
) -> None:
    parsed = ConfigWorkflow(
        config_file=[str(bundle / "configs" / f"{config}.yaml") for config in configs],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=str(bundle / "configs" / "logging.conf"),
        workflow_type=workflow,
        dataset_dir=str(make_prepared(bundle, tmp_path / "data")),
        output_dir=str(tmp_path),
    )
    parsed.initialize()
    assert parsed.check_properties() == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_federated_learning_evaluates_its_own_weights(bundle: Path) -> None:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.yaml", "evaluate.yaml")])
    disable_ckpt_loaders(parser)
    disabled = [handler["_target_"] for handler in parser["validate::handlers"] if handler.get("_disabled_") is True]
    assert disabled == ["calib_components.handlers.WeightsCheckpointLoader"]


@pytest.mark.parametrize("turned", [True, False])
def test_slices_are_flipped_and_turned_as_any_orientation_says(turned: bool) -> None:
    parser = ConfigParser()
    parser.read_config(str(ACDC / "configs" / "train.yaml"))
    parser.update({"bundle_root": str(ACDC), "any_orientation": turned})
    used = [type(transform).__name__ for transform in parser.get_parsed_content("train::preprocessing").transforms]
    assert ("RandFlipd" in used, "RandRotate90d" in used) == (turned, turned)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_what_decides_the_weights_is_what_the_pages_say(bundle: Path) -> None:
    """The epoch of the best DSC is kept, the order of slices follows from the seed, and validation cases calibrate."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.yaml", "calibrate.yaml")])
    assert parser["split"] == "validation"
    parser.read_config(str(bundle / "configs" / "train.yaml"))
    assert parser["validate::evaluator::key_val_metric"] == "@validate::key_metric"
    (metric,) = parser["validate::key_metric"].values()
    assert metric["metric_fn"]["_target_"] == "calib_components.metrics.DSCMetric"
    seeds = []
    for seed in (0, 1):
        parser.update({"seed": seed})
        seeds.append(parser.get_parsed_content("train::sampler::seed"))
        parser.ref_resolver.reset()
    assert abs(seeds[0] - seeds[1]) > parser["max_epochs"]  # to which the epoch is added


def test_generated_files_are_in_step_with_their_source() -> None:
    sync(check=True)


def test_generated_files_that_differ_or_have_lost_their_source_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles", ignore=shutil.ignore_patterns("models"))
    monkeypatch.setattr(sync_bundles, "ROOT", tmp_path / "bundles")
    configs = tmp_path / "bundles" / ACDC.name / "configs"
    (configs / "train.yaml").write_text("changed")
    (configs / "losses" / "old.yaml").touch()
    with pytest.raises(SystemExit) as error:
        sync(check=True)
    assert error.value.code == 1
    assert capsys.readouterr().out == (
        f"{configs}/losses/old.yaml: has no source: delete it\n"
        f"{configs}/train.yaml: differs from its source: run scripts/sync_bundles.py\n"
    )
