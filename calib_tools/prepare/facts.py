"""The facts of the data sets, and the transforms that bring their volumes to the network's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from calib_components.errors import InputError, check_count
from calib_workflows.data.facts import Facts
from calib_workflows.data.transforms import NamedCompose


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
    facts = dict(config["facts"])
    for key in ("_target_", "file"):  # what reads them in a bundle
        facts.pop(key)
    for option, value in (
        ("image_size", image_size and list(image_size)),
        ("slice_axis", slice_axis),
        ("spacing", spacing and list(spacing)),
    ):
        if value is not None:
            if f"@{option}" not in str(config["volume_transforms"]):
                raise InputError(f"{option} is of no use for data like {name}. Leave it out.")
            facts[option] = value
    if image_size:
        sides = zip(image_size, facts["crop_size"], strict=False)
        facts["crop_size"] = [min(pair) for pair in sides]
    return Facts.parse({**facts, "source": str(source.resolve())}, f"data like {name}")


def with_structures(
    facts: Facts, structures: Mapping[str, frozenset[int]], in_channels: int
) -> Facts:
    """Return the facts of a data set of the user's own, like another one.

    Args:
        facts: Of the data set that it is like.
        structures: Values of each structure in the label files.
        in_channels: Number of channels of an image.
    """
    check_count("in_channels", in_channels, 1)
    codes = sorted({0}.union(*structures.values()))
    names = {values: name for name, values in structures.items()}
    class_names = [names.get(frozenset([code]), f"class{code}") for code in codes[1:]]
    return replace(
        facts,
        num_classes=len(codes),
        in_channels=in_channels,
        class_names=["background", *class_names],
        label_codes=codes,
        structures={
            name: [codes.index(code) for code in sorted(values)]
            for name, values in structures.items()
        },
        crop_size=facts.image_size or facts.crop_size,
    )


def volume_transforms(facts: Facts) -> NamedCompose:
    """Build the transforms from loaded, channel-first volumes to the network's grid and
    intensities.

    The transforms are the package's own; of the facts, `image_size`, `slice_axis`, `spacing` and
    `window` enter, as values.
    """
    config = {
        "facts": facts,
        "image_size": facts.image_size,
        "slice_axis": facts.slice_axis,
        "spacing": facts.spacing,
        "ignore_intensity": False,
        "volume_transforms": _config(facts.dataset)["volume_transforms"],
    }
    return NamedCompose(ConfigParser(config).get_parsed_content("volume_transforms"))


def _config(name: str) -> dict[str, Any]:
    return yaml.safe_load(resources.files(__package__).joinpath(f"{name}.yaml").read_text())
