"""Options of a bundle of which a wrong value would be understood as another or fail late, and what is expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calib_components.metrics.regions import Region
from calib_components.posthoc.network import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE

__all__ = ["OPTIONS", "PATH", "PATHS", "TYPED"]

TYPED: dict[str, bool | None] = {"true": True, "false": False, "null": None}  # as on a command line


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _is_temperature(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE)


def _is_region(value: Any) -> bool:
    try:
        Region.parse(value)
    except ValueError:
        return False
    return True


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int and v > 0 and v % 16 == 0 for v in value)


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _are_folders(value: Any) -> bool:
    return value is None or (isinstance(value, list) and value != [] and all(map(_is_path, value)))


def _is_path(value: Any) -> bool:
    # MONAI reads # as ::, and Fire as the beginning of a comment; a shell leaves the ~ of --output_dir=~/results as it
    # is. Files would go to another folder.
    return isinstance(value, str) and value != "" and "#" not in value and "::" not in value and value[0] != "~"


PATH = ("a path without # or ::, with no ~ in front; write ./NAME if it reads as a number", _is_path)
PATHS = (
    "bundle_root",
    "ckpt_dir",
    "dataset_dir",
    "datalist",
    "load_path",
    "output_dir",
    "calibrated_path",
    "facts_file",
)
OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(PATHS, PATH),
    **dict.fromkeys(("batch_size", "max_epochs", "val_interval"), ("a whole number of at least 1", _is_count(1))),
    "num_classes": ("a whole number of at least 2", _is_count(2)),
    "num_workers": ("a whole number of at least 0", _is_count(0)),
    "seed": ("a whole number from 0 to 4294967295", lambda value: _is_count(0)(value) and value < 2**32),
    "learning_rate": ("a number above 0", _is_rate),
    "cache": ("a number of MiB of at least 0", lambda value: value == 0 or _is_rate(value)),
    **dict.fromkeys(("image_size", "crop_size"), ("two multiples of 16, such as [128,128]", _is_size)),
    **dict.fromkeys(("amp", "bfloat16", "compile", "resume", "any_orientation", "tta"), ("true or false", _is_bool)),
    "temperature": (f"a number from {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}, or null to fit it", _is_temperature),
    "pool": ("a list of folders of earlier fits, or null", _are_folders),
    "region": ("a region such as all, predicted or plausible(0.1), or class indices", _is_region),
    "split": ("training, validation or testing", lambda value: value in ("training", "validation", "testing")),
}
