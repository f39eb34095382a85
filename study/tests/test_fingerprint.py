"""The settings that make two runs comparable: which changes of a bundle reach the fingerprint, and
which do not.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from monai.bundle import ConfigParser

from study.compare.fingerprint import EVALUATION, TRAINING, differing, fingerprint
from tests.helpers import ACDC


def parse(*files: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(ACDC / "configs" / file) for file in files])
    return parser


def changed(parser: ConfigParser, name: str, value: Any) -> dict[str, Any]:
    other = ConfigParser(copy.deepcopy(parser.get()))
    other.set(value, name)
    return other.get()


def test_is_plain_data_that_the_seed_changes_in_one_place() -> None:
    config = parse("train.yaml").get()
    before = copy.deepcopy(config)
    training = fingerprint(config)
    assert config == before
    assert training.keys() == TRAINING.keys()
    assert json.loads(json.dumps(training)) == training
    assert (training["optimizer"]["lr"], training["lr_scheduler"]["milestones"]) == (0.001, [50])
    assert fingerprint({**config, "seed": 1}) == {**training, "seed": 1}


TRANSFORMS = "train::preprocessing::transforms::2::transforms::0"
TESTING = "$monai.data.load_decathlon_datalist(@datalist, True, 'testing', @dataset_dir)"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("network_def::num_res_units", 3),
        ("loss", {"_target_": "calib_components.losses.FocalLoss"}),
        (f"{TRANSFORMS}::prob", 0.25),
        (f"{TRANSFORMS}::_disabled_", "$@network.training"),
        (
            "train::dataloader::sampler",
            {"_target_": "DistributedSampler", "dataset": "@train::dataset"},
        ),
        ("train::dataset::data", TESTING),
        ("validate::evaluator::network", "$@network_def.half()"),
        (
            "validate::key_metric::val_dsc::metric_fn::_target_",
            "calib_components.metrics.HD95Metric",
        ),
        (
            "validate::postprocessing::transforms::0",
            {"_target_": "Lambdad", "func": "$lambda x: x / 2"},
        ),
    ],
)
def test_shows_each_setting_that_matters(name: str, value: Any) -> None:
    parser = parse("train.yaml")
    before, after = fingerprint(parser.get()), fingerprint(changed(parser, name, value))
    first = next(id for id in TRAINING if f"{name}::".startswith(f"{id}::"))
    assert before[first] != after[first]


def test_of_an_evaluation_has_its_split_and_no_training() -> None:
    parser = parse("train.yaml", "evaluate.yaml")
    evaluation = fingerprint(parser.get(), EVALUATION)
    assert evaluation.keys() == EVALUATION.keys()
    assert (evaluation["split"], evaluation["validate::inferer"]["crop_size"]) == (
        "testing",
        [144, 144],
    )
    for name, value in (
        ("split", "validation"),
        ("network", "$@network_def.half()"),
        ("crop_size", [64, 64]),
    ):
        assert fingerprint(changed(parser, name, value), EVALUATION) != evaluation


def reword_expressions(parser: ConfigParser) -> None:
    parser["crop_size"] = "$[min(144, side) for side in @image_size]"
    parser["optimizer"]["lr"] = "$float(@learning_rate)"
    parser["lr_scheduler"]["milestones"] = [50]
    parser["amp"] = "$str(@device).startswith('cuda')"


def rename_helpers(parser: ConfigParser) -> None:
    parser["side"] = 144
    parser["crop_size"] = ["@side", "$@side"]
    parser["augmentation"] = parser["train"]["preprocessing"]
    parser["train"]["preprocessing"] = "@augmentation"
    parser["model"] = parser["network_def"]
    parser["network_def"] = "@model"


def change_what_only_observes(parser: ConfigParser) -> None:
    parser["train"]["handlers"].append({"_target_": "GarbageCollector"})
    parser["validate"]["handlers"] = []
    parser["train"]["key_metric"] = {}
    parser["train"]["trainer"]["metric_cmp_fn"] = "$lambda current, best: current < best"


def move_it(parser: ConfigParser) -> None:
    for name in ("bundle_root", "ckpt_dir", "dataset_dir", "datalist", "output_dir"):
        parser[name] = "/elsewhere"
    parser["device"] = "cuda:1"
    parser["num_workers"] = 7
    parser["resume"] = True
    parser["network_def"]["_desc_"] = "2D"
    parser["train"]["dataloader"]["persistent_workers"] = "$@num_workers > 0"


@pytest.mark.parametrize(
    "change", [reword_expressions, rename_helpers, change_what_only_observes, move_it]
)
def test_does_not_show_what_leaves_the_numbers_alone(
    change: Callable[[ConfigParser], None],
) -> None:
    parser = parse("train.yaml")
    before, evaluation_before = fingerprint(parser.get()), fingerprint(parser.get(), EVALUATION)
    change(parser)
    assert fingerprint(parser.get()) == before
    assert fingerprint(parser.get(), EVALUATION) == evaluation_before


def test_differences_are_the_plain_settings_that_others_follow_from() -> None:
    one = {"learning_rate": 0.1, "optimizer": {"_target_": "SGD", "lr": 0.1}, "seed": 0}
    other = {"learning_rate": 0.2, "optimizer": {"_target_": "SGD", "lr": 0.2}, "seed": 0}
    assert differing(one, other) == ["learning_rate"]
    assert differing(one, one) == []
