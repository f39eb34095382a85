"""Fingerprint of a run: the settings of a bundle that reach its numbers, as plain data.

Two runs are comparable, and a finished run is still valid, if their fingerprints are equal. Comments, handlers, paths,
the device, the number of workers and the names of helper ids are not part of it: random draws depend on the number of
workers, and rounding on the device, but only as they do on a seed.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver

from calib_components.errors import InputError

__all__ = ["EVALUATION", "TRAINING", "fingerprint"]

INERT = ("_desc_", "_disabled_", "_requires_")
LOADING = ("dataset", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context")
PASSED_ON = (  # to the trainer: in the fingerprint by their own ids, or of no influence on the weights
    "device",
    "train_data_loader",
    "network",
    "optimizer",
    "loss_function",
    "inferer",
    "amp",
    "train_handlers",
    "key_train_metric",
    "additional_metrics",
    "metric_cmp_fn",
)
# Ids of a bundle, each with the arguments of its components that are left out. Metrics are left out as a whole: they
# observe. Of the postprocessing, so are functions, which convert predictions to what the metrics expect.
DATA_AND_NETWORK: Mapping[str, tuple[str, ...]] = {
    "num_classes": (),
    "in_channels": (),
    "label_codes": (),
    "structures": (),
    "image_size": (),
    "crop_size": (),
    "amp": (),
    "volume_transforms": (),
    "network_def": (),
    "validate::preprocessing": (),
    "validate::inferer": (),
    "validate::postprocessing": ("func",),
}
TRAINING: Mapping[str, tuple[str, ...]] = {
    "seed": (),
    "max_epochs": (),
    "batch_size": (),
    "learning_rate": (),
    "val_interval": (),  # validation selects the weights that are kept
    **DATA_AND_NETWORK,
    "loss": (),
    "optimizer": ("params",),
    "lr_scheduler": ("optimizer",),
    "train::preprocessing": (),
    "train::dataloader": LOADING,
    "train::inferer": (),
    "train::trainer": PASSED_ON,
}
EVALUATION: Mapping[str, tuple[str, ...]] = {"split": (), **DATA_AND_NETWORK}


def fingerprint(config: Mapping[str, Any], ids: Mapping[str, tuple[str, ...]] = TRAINING) -> dict[str, Any]:
    """Return the settings of a run that reach its numbers.

    References and `$` expressions are replaced by their values. An expression that needs a component to be built, or
    whose value is not plain data, stays as text, together with the values of what it refers to.

    Args:
        config: Configuration of a bundle after overrides, as `ConfigParser.get()` returns it. It is not changed.
        ids: Ids to include, each with the arguments of its components that are left out: `TRAINING` or `EVALUATION`.

    Returns:
        The value of each id that the configuration has, as JSON data. `amp` has a value for each type of device.

    Raises:
        InputError: References form a circle.

    Examples:
        >>> from calib_components.fingerprint import fingerprint
        >>> config = {"learning_rate": 0.01, "optimizer": {"_target_": "torch.optim.SGD", "lr": "@learning_rate"}}
        >>> fingerprint(config)["optimizer"]
        {'_target_': 'torch.optim.SGD', 'lr': 0.01}
    """
    parser = ConfigParser(copy.deepcopy(dict(config)))
    parser.get_parsed_content("imports", default=None)  # parses, and imports the modules that expressions use
    parser["device"] = "cpu"
    settings: dict[str, Any] = {}
    for name, left_out in ids.items():
        try:
            if name == "amp" and name in parser:  # its default depends on the device
                settings[name] = {}
                for device in ("cuda", "cpu"):  # ends with that of all other settings
                    parser["device"] = device
                    settings[name][device] = _resolve(parser, parser[name], left_out)
            elif name in parser:
                settings[name] = _resolve(parser, parser[name], left_out)
        except RecursionError:
            raise InputError(f"{name}: expected a value, got references that form a circle") from None
    return json.loads(json.dumps(settings, default=str))


def _resolve(parser: ConfigParser, value: Any, left_out: tuple[str, ...]) -> Any:
    """Return a part of the configuration as plain data; as in MONAI, a disabled component is None."""
    if isinstance(value, Mapping):
        if _is_disabled(parser, value):
            return None
        parts = {key: part for key, part in value.items() if key not in INERT and not _is_disabled(parser, part)}
        if "_target_" in value:
            parts = {key: part for key, part in parts.items() if key not in left_out}
            parts["_target_"] = re.sub(r"^monai\.(\w+\.)*", "", str(value["_target_"]))  # MONAI's names are short forms
        return {key: _resolve(parser, part, left_out) for key, part in parts.items()}
    if isinstance(value, list | tuple):
        return [_resolve(parser, part, left_out) for part in value if not _is_disabled(parser, part)]
    if not isinstance(value, str):
        return value
    ids = ReferenceResolver.match_refs_pattern(value)
    referred = {name: _resolve(parser, parser[name], left_out) for name in ids if name in parser}
    if ConfigExpression.is_expression(value):
        return _evaluate(parser, value, referred)
    return referred.get(value.removeprefix(ReferenceResolver.ref), value) if ids else value


def _is_disabled(parser: ConfigParser, value: Any) -> bool:
    disabled = _resolve(parser, value.get("_disabled_"), ()) if isinstance(value, Mapping) else None
    return disabled.strip().lower() == "true" if isinstance(disabled, str) else bool(disabled)


def _evaluate(parser: ConfigParser, expression: str, referred: Mapping[str, Any]) -> Any:
    """Evaluate an expression with the settings of components in place of the components."""
    try:
        ready = ReferenceResolver.update_refs_pattern(expression, dict(referred))
        value = ConfigExpression(ready, globals=parser.globals).evaluate({ReferenceResolver._vars: referred})
        return json.loads(json.dumps(value))
    except (KeyError, RuntimeError, SyntaxError, TypeError, ValueError):
        return {expression: referred} if referred else expression
