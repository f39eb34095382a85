"""The facts of a data set.

`facts.yaml` records them beside prepared cases and weights; it is never evaluated.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from calib_components.errors import InputError, check_choice, reading, writing

FACTS, DATALIST = "facts.yaml", "datalist.json"  # in a folder of prepared cases
IGNORED = 255  # what voxels that do not count have in a prepared label, which is stored as bytes
# Of the sides that a network sees, which it halves four times, or three times in 3D
MULTIPLES = {2: 16, 3: 8}
EXAMPLES = {2: "two multiples of 16, such as 192,192", 3: "three multiples of 8, such as 96,96,48"}


@dataclass(frozen=True)
class Facts:
    """What a data set is.

    Attributes:
        name: Name of the data set, for readers; empty for that of a bundle.
        dataset: Data set whose geometry and intensities the cases follow: `acdc`, `flare`, `brats`
            or `hippocampus`.
        num_classes: Number of classes, with the background.
        in_channels: Number of channels of an image.
        class_names: Name of each class.
        label_codes: Value of each class in the data set's own label files.
        ignored_code: Value of voxels that do not count in the data set's own label files; None if
            all count.
        structures: Class indices of each structure that is scored, by its name.
        file_suffixes: Suffixes of the files of one image, in the order of its channels; empty if it
            is a single file.
        image_size: In-plane size of every slice, in pixels; None if cases keep their own size, for
            a 3D network.
        crop_size: What the network sees at once, in pixels: a part of a slice, its centre in
            training; in 3D, a patch.
        slice_axis: Axis of the stored image along which the slices lie, 0 to 2; None to find it by
            the spacing.
        pixel_size: Smallest and largest in-plane size of a pixel of the training images on the
            network's grid, in millimetres; None if it is not known.
        any_orientation: Whether weights were trained on slices in all orientations, or on volumes
            mirrored left-right; None if it is not known.
        spatial_dims: 2 for a network of slices, 3 for one of volumes.
        spacing: Size of voxels that volumes are resampled to, in millimetres; None to leave them as
            acquired.
        window: Hounsfield units that become 0 and 1; None of images that are not CT.
        source: Folder that the prepared cases were made from.
        schema_version: Version of this list of facts.
    """

    name: str = field(default="", kw_only=True, compare=False)
    dataset: str
    num_classes: int
    in_channels: int
    class_names: list[str]
    label_codes: list[int]
    structures: dict[str, list[int]]
    file_suffixes: list[str]
    image_size: list[int] | None
    crop_size: list[int]
    slice_axis: int | None = None
    pixel_size: list[int | float] | None = None
    any_orientation: bool | None = None
    spatial_dims: int = 2
    spacing: list[int | float] | None = None
    window: list[int | float] | None = None
    source: str = ""
    ignored_code: int | None = None
    schema_version: int = 1

    @classmethod
    def parse(cls, content: Mapping[str, Any], name: str) -> Facts:
        """Make facts of values, which are from `name`: the content of a file, or the arguments of a
        bundle.

        Raises:
            InputError: A fact is unknown or missing, or facts contradict each other.
        """
        with reading(name, "the facts of a data set, as prepare_data writes them"):
            facts = cls(**content)
        if facts.schema_version > cls.schema_version:
            raise InputError(
                f"{name}: written by a newer version of calib_components. Update the package."
            )
        for key, value in vars(facts).items():
            check_fact(key, value, name)
        facts._check(name)
        return facts

    @property
    def ignore_index(self) -> int | None:
        """Value of voxels that do not count in prepared labels, for losses; None if all count."""
        return None if self.ignored_code is None else IGNORED

    def crop_within(self, image_size: Sequence[int]) -> list[int]:
        """Return the size of a crop of slices of some size, which is not larger than these."""
        return [*map(min, image_size, self.crop_size)]

    def _check(self, name: str) -> None:
        self._check_labels(name)
        classes = range(self.num_classes)
        for key in ("class_names", "label_codes"):
            values = getattr(self, key)
            if not len(set(values)) == len(values) == len(classes):
                raise InputError(
                    f"{name}: {key} must hold {len(classes)} different values, got {values}."
                )
        parts = [*self.structures.values()]
        indices = {*itertools.chain.from_iterable(parts)}
        if not (parts and all(parts) and indices <= {*classes[1:]}):
            raise InputError(
                f"{name}: structures must have class indices from 1 to {len(classes) - 1}, got"
                f" {self.structures}."
            )
        for key, sides in (("spacing", 3), ("pixel_size", 2)):
            sizes = getattr(self, key)
            if sizes is not None and not (
                len(sizes) == sides and all(0 < size < math.inf for size in sizes)
            ):
                raise InputError(f"{name}: {key} must be {sides} sizes in mm, got {sizes}.")
        check_choice(f"{name}: slice_axis", self.slice_axis, (None, 0, 1, 2))
        check_choice(f"{name}: spatial_dims", self.spatial_dims, MULTIPLES)
        self._check_sizes(name)

    def _check_labels(self, name: str) -> None:
        if self.num_classes > IGNORED:  # labels are stored as bytes
            raise InputError(
                f"{name}: num_classes must be at most {IGNORED}, got {self.num_classes}."
            )
        if self.ignored_code in self.label_codes:
            raise InputError(f"{name}: ignored_code {self.ignored_code} is that of a class.")

    def _check_sizes(self, name: str) -> None:
        if self.image_size is not None or self.spatial_dims == 2:
            _check_size(f"{name}: image_size", self.image_size, 2)
        _check_size(f"{name}: crop_size", self.crop_size, self.spatial_dims)
        if self.spatial_dims == 2 and any(map(operator.gt, self.crop_size, self.image_size or ())):
            raise InputError(
                f"{name}: crop_size {self.crop_size} is larger than image_size {self.image_size}."
            )


def check_fact(key: str, value: Any, name: str) -> None:
    """Raise `InputError` unless a value, which is from `name`, is of the type of a fact."""
    if not _is_kind(value, get_type_hints(Facts)[key]):
        # repr of nested aliases has no end
        shown = reprlib.repr(value)
        raise InputError(f"{name}: {key} must be {Facts.__annotations__[key]}, got {shown}.")


def _is_kind(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_is_kind(value, part) for part in parts)
    if not parts:
        return type(value) is kind
    values = value.values() if isinstance(value, dict) else value
    return type(value) is get_origin(kind) and all(_is_kind(each, parts[-1]) for each in values)


def _check_size(name: str, size: Any, dims: int) -> None:
    """Raise `InputError` unless a size suits networks of so many dimensions."""
    if len(size or ()) != dims or any(side <= 0 or side % MULTIPLES[dims] for side in size):
        raise InputError(f"{name} must be {EXAMPLES[dims]}, got {size}.")


def read_facts(file: str | os.PathLike, **bundle: Any) -> Facts:
    """Read the facts of a folder of prepared cases or of weights; those of the bundle if there is
    no `facts.yaml`.

    Args:
        file: `facts.yaml`, or a file beside it, such as the weights.
        **bundle: The facts of the bundle.

    Raises:
        InputError: The file is broken, or of a data set with another geometry or window than the
            bundle's.
    """
    default, facts = Facts.parse(bundle, "facts"), facts_beside(file)
    if facts is None:
        return default
    if facts.dataset != default.dataset:
        place = Path(file).with_name(FACTS)
        raise InputError(
            f"{place}: prepared like {facts.dataset}, the bundle is for {default.dataset}. Use the"
            f" bundle of {facts.dataset}, or prepare the data again."
        )
    if facts.window != default.window:
        raise InputError(
            f"{Path(file).with_name(FACTS)}: made with the window {facts.window},"
            f" not {default.window} of the bundle. Prepare the data again, or take other weights."
        )
    return facts


def facts_beside(file: str | os.PathLike) -> Facts | None:
    """Read `facts.yaml`, given as that file or as one beside it; None if there is none."""
    file = Path(file).with_name(FACTS)
    if not file.exists():
        return None
    with reading(file):
        return Facts.parse(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))


def write_facts(facts: Facts, folder: str | os.PathLike) -> None:
    """Write `facts.yaml` into a folder, unless it is there with the same content."""
    if facts_beside(Path(folder) / FACTS) != facts:
        with writing(Path(folder) / FACTS) as unfinished:
            content = yaml.safe_dump(asdict(facts), sort_keys=False, allow_unicode=True)
            unfinished.write_text(content, encoding="utf-8")
