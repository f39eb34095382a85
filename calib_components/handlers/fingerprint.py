"""Fingerprint of a run: the settings of a bundle that reach its numbers, as plain data.

Two runs are comparable, and a finished run is still valid, if their fingerprints are equal. Not covered: comments, the
device, the number of workers, places and the names of helper ids, which reach no number (rounding depends on the
device, but no more than numbers do on a seed); handlers, `initialize` and `run`; and the content of files and the code
of classes, of which the names are shown. What prepared cases hold has a fingerprint of its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import textwrap
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver

from calib_components.data.cases import CONTENT, SOURCE

__all__ = [
    "EVALUATION",
    "LOADING",
    "TRAINING",
    "changes",
    "differing",
    "fingerprint",
    "fingerprint_of_cases",
    "fingerprint_of_list",
]

INERT = ("_desc_", "_requires_")
LOADING = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context")
PLACES = ("bundle_root", "ckpt_dir", "datalist", "dataset_dir", "load_path", "output_dir", "facts_file")
SEED = "seed"
# Networks that give the same numbers: the temperature of the first is 1 until it is fitted, which changes its weights.
ALIKE = {"calib_components.posthoc.TemperatureUNet": "UNet"}
# Ids of a bundle, each with the arguments of its components that are left out.
DATA_AND_NETWORK: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("num_classes", "in_channels", "label_codes", "structures", "image_size", "crop_size", "amp"), ()),
    **dict.fromkeys(("volume_transforms", "prepare", "network_def", "network"), ()),
    **dict.fromkeys(("validate::preprocessing", "validate::dataset", "validate::inferer"), ()),
    **dict.fromkeys(("validate::postprocessing", "validate::key_metric"), ()),
    "validate::dataloader": LOADING,
}
TRAINING: Mapping[str, tuple[str, ...]] = {  # validation selects the weights that are kept; other metrics observe
    **dict.fromkeys(("seed", "max_epochs", "batch_size", "learning_rate", "val_interval"), ()),
    **DATA_AND_NETWORK,
    **dict.fromkeys(("loss", "optimizer", "lr_scheduler", "train::preprocessing", "train::inferer"), ()),
    "validate::evaluator": ("device", "val_handlers", "additional_metrics"),
    "train::dataset": ("cache",),
    "train::dataloader": LOADING,
    "train::trainer": ("device", "train_handlers", "key_train_metric", "additional_metrics", "metric_cmp_fn"),
}
EVALUATION: Mapping[str, tuple[str, ...]] = {
    "split": (),
    **DATA_AND_NETWORK,
    "validate::additional_metrics": (),
    "validate::evaluator": ("device", "val_handlers"),
}


def fingerprint(config: Mapping[str, Any], ids: Mapping[str, tuple[str, ...]] = TRAINING) -> dict[str, Any]:
    """Return the settings of a run that reach its numbers, as JSON data.

    References and `$` expressions are replaced by their values. A reference to the seed, or to a component that the
    fingerprint has under its own id, stays, such as `network: "@network"` of a trainer. An expression that needs a
    component to be built, a place or the seed, or whose value is not plain data, stays as text, together with the
    values of what it refers to.

    Args:
        config: Configuration of a bundle after overrides, as `ConfigParser.get()` returns it. It is not changed.
        ids: Ids to include, as far as they are there, each with the arguments of its components that are left out:
            `TRAINING` or `EVALUATION`.
    """
    parser = ConfigParser(copy.deepcopy(dict(config)))
    parser.get_parsed_content("imports", default=None)  # parses, and imports the modules that expressions use
    parser["device"] = "cpu"
    if "facts" in parser:  # what is read from a file, not which
        parser["facts"] = parser.get_parsed_content("facts")
    settings: dict[str, Any] = {}
    for name, left_out in ids.items():
        resolver = _Resolver(parser, ids, left_out)
        if name == "amp" and name in parser:  # its default depends on the device
            settings[name] = {}
            for device in ("cuda", "cpu"):  # ends with that of all other settings
                parser["device"] = device
                settings[name][device] = resolver.resolve(parser[name])
        elif name in parser:
            settings[name] = resolver.resolve(parser[name])
    return json.loads(json.dumps(settings, default=str))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ; if some are plain values, those alone, since others are derived from them."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    plain = [name for name in names if "_target_" not in json.dumps([one.get(name), other.get(name)])]
    return plain or names


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe what differs between two runs, such as `learning_rate (0.001, now 0.01)`."""
    described = []
    for name in differing(before, now):
        old, new = _first_difference(before.get(name), now.get(name))
        described.append(f"{name} ({textwrap.shorten(old, 80)}, now {textwrap.shorten(new, 80)})")
    return described


def _first_difference(one: Any, other: Any) -> tuple[str, str]:
    """Return the innermost values that differ, as text."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        name = next(key for key in {**one, **other} if one.get(key) != other.get(key))
        return _first_difference(one.get(name), other.get(name))
    return json.dumps(one), json.dumps(other)


@dataclass(frozen=True)
class _Resolver:
    """Turns parts of a configuration into plain data; `ids` are those of the fingerprint."""

    parser: ConfigParser
    ids: Container[str]
    left_out: tuple[str, ...] = ()

    def resolve(self, value: Any) -> Any:
        """Return a part of the configuration as plain data; as in MONAI, a disabled component is None."""
        if isinstance(value, Mapping):
            if self._is_disabled(value):
                return None
            left_out = (*INERT, *(self.left_out if "_target_" in value else ()))
            parts = {key: part for key, part in value.items() if key not in left_out and not self._is_disabled(part)}
            parts = {key: self.resolve(part) for key, part in parts.items()}
            if parts.get("_disabled_") is False:
                del parts["_disabled_"]
            if "_target_" in parts:
                target = re.sub(r"^monai\.(\w+\.)*", "", str(parts["_target_"]))  # MONAI allows short names
                parts["_target_"] = ALIKE.get(target, target)
            return parts
        if isinstance(value, list | tuple):
            return [self.resolve(part) for part in value if not self._is_disabled(part)]
        if not isinstance(value, str):
            return value
        names = ReferenceResolver.match_refs_pattern(value)
        within = replace(self, left_out=())
        referred = {name: within.resolve(self.parser[name]) for name in names if name in self.parser}
        if ConfigExpression.is_expression(value):
            return self._evaluate(value, {name: part for name, part in referred.items() if not self._stays(name)})
        name = value.removeprefix(ReferenceResolver.ref)
        return value if self._stays(name) or self._has(name, referred) else referred.get(name, value)

    def _stays(self, name: str) -> bool:
        """Whether a reference stays: a place reaches no number, and a seed is shown once, as the id that it is."""
        return name in PLACES or (name == SEED and SEED in self.ids)

    def _has(self, name: str, referred: Mapping[str, Any]) -> bool:
        """Whether the fingerprint has the id, and its value is not plain data; that of `amp` depends on the device."""
        built = re.search(r'"(_target_"|\$)', json.dumps(referred.get(name), default=str))
        return name in self.ids and (name == "amp" or built is not None)

    def _is_disabled(self, value: Any) -> bool:
        disabled = self.resolve(value.get("_disabled_")) if isinstance(value, Mapping) else None
        return str(disabled).strip().lower() == "true"

    def _evaluate(self, expression: str, referred: Mapping[str, Any]) -> Any:
        """Evaluate an expression with the settings of components in place of the components."""
        try:
            ready = ReferenceResolver.update_refs_pattern(expression, dict(referred))
            value = ConfigExpression(ready, globals=self.parser.globals).evaluate({ReferenceResolver._vars: referred})
            return json.loads(json.dumps(value))
        except (KeyError, RuntimeError, SyntaxError, TypeError, ValueError):
            shown = {name: v for name, v in referred.items() if name != "device" and not self._has(name, referred)}
            return {expression: shown} if shown else expression


def fingerprint_of_cases(datalist: Path, folder: Path) -> str | None:
    """Return the SHA-256 of what the prepared cases of a list hold, as `source.json` of each records it.

    Args:
        datalist: List of the prepared cases of all splits.
        folder: Folder that the paths in it are relative to.

    Returns:
        The same for cases that were prepared again to the same voxels; None without a list, or where a case has no such
        record.
    """
    try:
        splits = json.loads(datalist.read_text())
        images = {item["image"] for name in ("training", "validation", "testing") for item in splits.get(name, ())}
        sources = [json.loads((folder / image).with_name(SOURCE).read_text()) for image in sorted(images)]
        return hashlib.sha256("".join(source[CONTENT] for source in sources).encode()).hexdigest()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def fingerprint_of_list(datalist: Path) -> str:
    """Return the SHA-256 of a list of prepared cases, or of nothing where there is none."""
    return hashlib.sha256(datalist.read_bytes() if datalist.is_file() else b"").hexdigest()
