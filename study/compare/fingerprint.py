"""Fingerprint of a run: the settings of a bundle that reach its numbers, as plain data.

Two runs are comparable, and a finished run is still valid, if their fingerprints are equal. Not
covered: comments, the device, the number of workers, places and the names of helper ids; handlers,
`initialize` and `run`; and the content of files and the code of classes, of which the names are
shown. What prepared cases hold has a fingerprint of its own.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver

from calib_workflows.runs import LOADING, PLACES

BY_NAME = (*PLACES, "seed")  # which is shown once, under its own id
# Ids of a bundle, each with the arguments of its component that are left out.
Ids = Mapping[str, tuple[str, ...]]
DATA_AND_NETWORK: Ids = {
    **dict.fromkeys(
        (
            "num_classes",
            "in_channels",
            "label_codes",
            "structures",
            "image_size",
            "crop_size",
            "amp",
            "volume_transforms",
            "prepare",
            "network_def",
            "network",
            "validate::preprocessing",
            "validate::dataset",
            "validate::inferer",
            "validate::postprocessing",
            "validate::key_metric",
        ),
        (),
    ),
    "validate::dataloader": LOADING,
}
# Validation selects the weights that are kept; other metrics observe
TRAINING: Ids = {
    **dict.fromkeys(("seed", "max_epochs", "batch_size", "learning_rate", "val_interval"), ()),
    **DATA_AND_NETWORK,
    **dict.fromkeys(
        ("loss", "optimizer", "lr_scheduler", "train::preprocessing", "train::inferer"), ()
    ),
    "validate::evaluator": ("device", "val_handlers", "additional_metrics"),
    "train::dataset": ("cache",),
    "train::dataloader": LOADING,
    "train::trainer": (
        "device",
        "train_handlers",
        "key_train_metric",
        "additional_metrics",
        "metric_cmp_fn",
    ),
}
EVALUATION: Ids = {
    "split": (),
    "crop_center": (),
    **DATA_AND_NETWORK,
    "validate::additional_metrics": (),
    "validate::evaluator": ("device", "val_handlers"),
}


def fingerprint(config: Mapping[str, Any], ids: Ids = TRAINING) -> dict[str, Any]:
    """Return the settings of a run that reach its numbers, as JSON data.

    References and `$` expressions are replaced by their values. A reference to the seed, or to a
    component that the fingerprint has under its own id, stays, such as `network: "@network"` of a
    trainer. An expression that needs a component to be built, a place or the seed, or whose value
    is not plain data, stays as text, together with the values of what it refers to.

    Args:
        config: Configuration of a bundle after overrides, as `ConfigParser.get()` returns it.
        ids: Ids to include, as far as they are there, each with the arguments of its component that
            are left out.
    """
    parser = ConfigParser(copy.deepcopy(dict(config)))
    # Parses, and imports the modules that expressions use
    parser.get_parsed_content("imports", default=None)
    parser["device"] = "cuda"  # on which the default of `amp` depends
    if "facts" in parser:  # what is read from a file, not which
        parser["facts"] = parser.get_parsed_content("facts")
    settings = {
        name: _plain(parser[name], parser, ids, left_out)
        for name, left_out in ids.items()
        if name in parser
    }
    return json.loads(json.dumps(settings, default=str))


def _plain(value: Any, parser: ConfigParser, ids: Ids, left_out: tuple[str, ...] = ()) -> Any:
    """Return a part of a configuration with the values of references and expressions in their
    place.
    """
    if isinstance(value, Mapping):
        kept = [key for key in value if key not in ("_desc_", "_requires_", *left_out)]
        return {key: _plain(value[key], parser, ids) for key in kept}
    if isinstance(value, list | tuple):
        return [_plain(part, parser, ids) for part in value]
    if isinstance(value, str):
        return _plain_text(value, parser, ids)
    return value


def _plain_text(text: str, parser: ConfigParser, ids: Ids) -> Any:
    """Return the same of a text, which may be a reference or an expression."""
    references = [
        name
        for name in ReferenceResolver.match_refs_pattern(text)
        if name in parser and name not in BY_NAME
    ]
    values = {name: _plain(parser[name], parser, ids) for name in references}
    shown = {
        name: value for name, value in values.items() if name not in ids or not _is_built(value)
    }
    if not ConfigExpression.is_expression(text):
        return shown.get(text.removeprefix(ReferenceResolver.ref), text)
    try:  # with the settings of components in place of the components
        ready = ReferenceResolver.update_refs_pattern(text, dict(values))
        expression = ConfigExpression(ready, globals=parser.globals)
        evaluated = expression.evaluate({ReferenceResolver._vars: values})
        return json.loads(json.dumps(evaluated))
    except (KeyError, RuntimeError, SyntaxError, TypeError, ValueError):
        shown.pop("device", None)
        return {text: shown} if shown else text


def _is_built(value: Any) -> bool:
    """Whether a part of a configuration has a component or an expression without a plain value."""
    return re.search(r'"(_target_|\$)', json.dumps(value, default=str)) is not None


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ; if some are plain values, those alone, since others are
    derived from them.
    """
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    plain = [
        name for name in names if "_target_" not in json.dumps([one.get(name), other.get(name)])
    ]
    return plain or names
