"""The facts of the data sets that have a bundle, and the transforms that bring their volumes to the
network's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from calib_components.data.facts import Facts, check_size
from calib_components.data.transforms import NamedCompose
from calib_components.errors import InputError, check_count


def facts_of_dataset(
    name: str,
    source: Path,
    image_size: Sequence[int] | None = None,
    slice_axis: int | None = None,
    spacing: Sequence[float] | None = None,
) -> Facts:
    """Return the facts of a data set that has a bundle, for the cases in a folder; see `Facts`.

    Without an `image_size` or a `spacing`, it is that of the bundle; without a `slice_axis`, slices
    are found by the spacing.
    """
    config = _config(name)
    content = {
        key: value for key, value in config["facts"].items() if key not in ("_target_", "file")
    }
    size = list(image_size) if image_size else content["image_size"]
    if content["image_size"] is None:
        if image_size:
            raise InputError(
                f"image_size is of no use for data like {name}: cases keep their size. See spacing."
            )
        content["spacing"] = list(spacing) if spacing else content["spacing"]
        if len(content["spacing"]) != 3 or min(content["spacing"]) <= 0:
            raise InputError(
                "spacing must be three sizes of voxels in mm, such as 1,1,1.5, got"
                f" {content['spacing']}."
            )
    else:
        if spacing:
            raise InputError(
                f"spacing is of no use for data like {name}: slices are brought to one image_size."
            )
        check_size("image_size", size)
        content["crop_size"] = [
            min(sides) for sides in zip(size, content["crop_size"], strict=True)
        ]
    if slice_axis is not None:
        check_count("slice_axis", slice_axis, 0, 2)
        if "@slice_axis" not in str(config["volume_transforms"]):
            raise InputError(
                f"slice_axis is of no use for data like {name}: their slices are axial."
            )
    content |= {"image_size": size, "slice_axis": slice_axis, "source": str(source.resolve())}
    return Facts.parse(content, f"{name}.yaml")


def volume_transforms(facts: Facts, ignore_intensity: bool = False) -> NamedCompose:
    """Build the transforms from loaded, channel-first volumes to the network's grid and
    intensities.

    The transforms are the package's own; of the facts, `image_size`, `slice_axis` and `spacing`
    enter, as values.
    """
    config: dict[str, Any] = {
        name: getattr(facts, name) for name in ("image_size", "slice_axis", "spacing")
    }
    config["ignore_intensity"] = ignore_intensity
    config["volume_transforms"] = _config(facts.dataset)["volume_transforms"]
    return NamedCompose(ConfigParser(config).get_parsed_content("volume_transforms"))


def _config(name: str) -> dict[str, Any]:
    return yaml.safe_load(resources.files(__package__).joinpath(f"{name}.yaml").read_text())
