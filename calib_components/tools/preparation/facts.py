"""The facts of a data set, and the file `facts.yaml` that records them beside prepared cases."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from monai.bundle import ConfigParser
from monai.transforms import Compose

from calib_components.errors import InputError

FACTS = "facts.yaml"

# The facts that decide what a prepared case holds: cases prepared with different ones must not mix.
RECIPE = ("source", "in_channels", "label_codes", "image_size", "volume_transforms")


@dataclass(frozen=True)
class Facts:
    """What a data set is, and how its volumes are brought to the network's grid, as in `bundles/common`.

    Values are kept as they are written: expressions and references of MONAI's configurations are not resolved.

    Attributes:
        num_classes: Number of classes, with the background.
        in_channels: Number of channels of an image.
        class_names: Name of each class.
        label_codes: Value of each class in the data set's own label files.
        structures: Class indices of each structure that is scored, by its name.
        file_suffixes: Suffixes of the files of one image, in the order of its channels; empty if it is a single file.
        image_size: In-plane size of every slice.
        crop_size: Size of the centre that the network sees.
        volume_transforms: Transforms from a loaded, channel-first volume to the network's grid and intensities.
        source: Folder that the prepared cases were made from.
    """

    num_classes: int
    in_channels: int
    class_names: list[str]
    label_codes: list[int]
    structures: dict[str, list[int]]
    file_suffixes: list[str]
    image_size: list[int]
    crop_size: str | list[int]
    volume_transforms: list[dict[str, Any]]
    source: str = ""

    @classmethod
    def of_dataset(cls, name: str) -> Facts:
        """Read the facts of one of the data sets that have a bundle: `acdc`, `flare` or `brats`."""
        return cls._parse(f"{name}.yaml", resources.files(__package__).joinpath(f"{name}.yaml").read_text())

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Read `facts.yaml` in a folder of prepared cases.

        Raises:
            InputError: The file is not YAML or lacks a fact.
            OSError: The file cannot be read.
        """
        return cls._parse(str(folder / FACTS), (folder / FACTS).read_text())

    @classmethod
    def _parse(cls, name: str, text: str) -> Facts:
        try:
            content = yaml.safe_load(text)
            return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
        except (TypeError, yaml.YAMLError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise InputError(f"{name}: expected the facts of a data set, got a file without them: {reason}") from error

    def write(self, folder: Path) -> None:
        """Write `facts.yaml` into a folder of prepared cases."""
        write_text(folder / FACTS, yaml.safe_dump(asdict(self), sort_keys=False))

    def for_source(self, source: Path, image_size: Sequence[int] | None = None) -> Facts:
        """Return these facts for the cases in a folder, prepared at another in-plane size if one is given.

        Raises:
            InputError: The size is not two positive numbers.
        """
        size = self.image_size if image_size is None else image_size
        if np.shape(size) != (2,) or min(size) < 1:
            raise InputError(f"image_size: expected two positive numbers, got {size}")
        return replace(self, image_size=list(size), source=str(source.resolve()))

    def transforms(self) -> Compose:
        """Build `volume_transforms`."""
        return Compose(ConfigParser(asdict(self)).get_parsed_content("volume_transforms"))


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all, and leave it untouched if it holds the text already."""
    if not path.is_file() or path.read_text() != text:
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(text)
        unfinished.replace(path)
