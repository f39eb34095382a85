"""The facts of a data set, and the file `facts.yaml` that records them beside prepared cases and beside weights.

The file is data: only known keys with plain values are read from it, and none of them is ever evaluated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from calib_components.errors import InputError, reading, writing

__all__ = [
    "FACTS",
    "Facts",
    "check_class_names",
    "facts_beside",
    "facts_text",
    "has_other_facts",
    "read_facts",
    "write_facts",
]

FACTS, DATALIST = "facts.yaml", "datalist.json"  # of a folder of prepared cases
EVALUATED = ("$", "@", "%")  # first characters that MONAI's configurations give a meaning
MULTIPLE = 16  # what the network's four halvings divide a slice by
LARGEST_CODE = 2**31 - 1  # label maps have 32 bits where 8 do not suffice
MOST_CLASSES = 256  # a prepared label has one byte per voxel


@dataclass(frozen=True)
class Facts:
    """What a data set is.

    Attributes:
        dataset: Data set whose geometry and intensities the cases follow: `acdc`, `flare` or `brats`.
        num_classes: Number of classes, with the background.
        in_channels: Number of channels of an image.
        class_names: Name of each class.
        label_codes: Value of each class in the data set's own label files.
        structures: Class indices of each structure that is scored, by its name.
        file_suffixes: Suffixes of the files of one image, in the order of its channels; empty if it is a single file.
        image_size: In-plane size of every slice, in pixels.
        crop_size: Size of the centre that the network sees, in pixels.
        slice_axis: Axis of the stored image along which the slices lie, 0 to 2; None to find it by the spacing.
        pixel_size: Smallest and largest in-plane size of a pixel of the training images on the network's grid, in
            millimetres; None if it is not known.
        source: Folder that the prepared cases were made from.
    """

    dataset: str
    num_classes: int
    in_channels: int
    class_names: list[str]
    label_codes: list[int]
    structures: dict[str, list[int]]
    file_suffixes: list[str]
    image_size: list[int]
    crop_size: list[int]
    slice_axis: int | None = None
    pixel_size: list[float] | None = None
    source: str = ""

    @classmethod
    def parse(cls, content: Any, name: str) -> Facts:
        """Check the content of a file, or the arguments of a bundle.

        Args:
            content: Values by the names above; the last three may be missing.
            name: Where they are from, for messages.

        Raises:
            InputError: A value is unknown, missing, or not as described above.
        """
        if not isinstance(content, Mapping):
            raise InputError(f"{name}: expected the facts of a data set, got {_shown(content)}")
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in content if key not in known]:
            raise InputError(f"{name}: expected only {', '.join(known)}, got {_shown(unknown[0])}")
        if missing := [key for key in known[:-3] if key not in content]:
            raise InputError(f"{name}: expected the facts of a data set, got none called {missing[0]}")
        for key, value in content.items():
            expected, is_right = CHECKS[key]
            if not is_right(value):
                raise InputError(f"{name}: expected {key} to be {expected}, got {_shown(value)}")
        facts = cls(**content)
        for key in ("class_names", "label_codes"):
            if len(content[key]) != facts.num_classes:
                raise InputError(
                    f"{name}: expected {facts.num_classes} {key}, one per class, got {_shown(content[key])}"
                )
        check_class_names([*facts.class_names[1:]], name)
        if any(crop > size for crop, size in zip(facts.crop_size, facts.image_size, strict=True)):
            raise InputError(
                f"{name}: expected crop_size of at most the image_size {facts.image_size}, got {facts.crop_size}"
            )
        if any(not 0 <= index < facts.num_classes for classes in facts.structures.values() for index in classes):
            raise InputError(
                f"{name}: expected structures of class indices from 0 to {facts.num_classes - 1}, got "
                f"{_shown(facts.structures)}"
            )
        return facts


def _is_int(value: Any) -> bool:
    return type(value) is int


def _list_of(is_right: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(is_right, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith(EVALUATED)


is_size = _list_of(lambda value: _is_int(value) and value > 0, 2)
_is_indices = _list_of(_is_int)
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "dataset": ("text", _is_text),
    "num_classes": (
        f"a whole number from 2 to {MOST_CLASSES}", lambda value: _is_int(value) and 2 <= value <= MOST_CLASSES
    ),
    "in_channels": ("a whole number of at least 1", lambda value: _is_int(value) and value >= 1),
    "class_names": ("a list of names", _list_of(_is_text)),
    "label_codes": (
        "a list of different whole numbers of 32 bits",
        lambda codes: _is_indices(codes) and len({*codes}) == len(codes) and all(
            abs(code) <= LARGEST_CODE for code in codes
        ),
    ),
    "structures": (
        "names and their lists of different class indices",
        lambda value: isinstance(value, dict) and value != {} and all(map(_is_text, value)) and all(
            _is_indices(classes) and len({*classes}) == len(classes) for classes in value.values()
        ),
    ),
    "file_suffixes": ("a list of texts", _list_of(_is_text)),
    "image_size": ("two positive whole numbers", is_size),
    "crop_size": ("two positive whole numbers", is_size),
    "slice_axis": ("0, 1, 2 or null", lambda value: value is None or (_is_int(value) and 0 <= value <= 2)),
    "pixel_size": (
        "two positive numbers or null",
        lambda value: value is None or _list_of(lambda size: type(size) in (int, float) and size > 0, 2)(value),
    ),
    "source": ("text", lambda value: isinstance(value, str)),
}  # fmt: skip


def check_class_names(names: list[str], name: str) -> None:
    """Check names of structures: one line of text each, all different, none of which a configuration would evaluate.

    There are at most 255, since labels are stored as bytes.

    Args:
        names: The names, without the background.
        name: Argument or file that they are from, for messages.

    Raises:
        InputError: A name is not suitable.
    """
    if len(names) >= MOST_CLASSES:
        raise InputError(f"{name}: expected at most {MOST_CLASSES - 1} names, got {len(names)}")
    for structure in names:
        if not structure.strip() or not structure.isprintable():
            raise InputError(f"{name}: expected names of one line, got {structure!r}")
        if structure.startswith(EVALUATED):
            raise InputError(f"{name}: expected names that do not start with $, @ or %, got {structure}")
        if structure.lower() == "background":
            raise InputError(f"{name}: expected names of structures, got {structure}, which is always class 0")
    if repeated := [structure for index, structure in enumerate(names) if structure in names[:index]]:
        raise InputError(f"{name}: expected different names, got {repeated[0]} twice")


def read_facts(file: str | os.PathLike, **own: Any) -> Facts:
    """Read the facts of a folder of prepared cases, or of weights.

    Args:
        file: `facts.yaml`, or a file beside it, such as the weights. If there is none, the facts are the bundle's own.
        **own: The facts of the bundle that reads it, see `Facts`.

    Raises:
        InputError: The file is broken, or is that of a data set with another geometry than the bundle's; or there is
            none beside a list of cases with other classes.
    """
    default = Facts.parse(own, "facts")
    facts = facts_beside(file)
    if facts is None:
        _check_listed_classes(Path(str(file)).with_name(DATALIST), default.class_names)
        return default
    if facts.dataset != default.dataset:
        raise InputError(
            f"{Path(str(file)).with_name(FACTS)}: expected data prepared like {default.dataset}, the bundle's, got "
            f"like {facts.dataset}; use the bundle of {facts.dataset}, or prepare the data again"
        )
    return facts


def facts_beside(file: str | os.PathLike) -> Facts | None:
    """Read `facts.yaml`, given as that file or as one beside it; None if there is none.

    Raises:
        InputError: The file is broken.
    """
    file = Path(str(file)).with_name(FACTS)  # a folder called 2024 is a number for MONAI
    if not file.exists():
        return None
    with reading(file, "the facts of a data set"):
        return Facts.parse(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))


def facts_text(facts: Facts) -> str:
    """Return the content of `facts.yaml`."""
    return yaml.safe_dump(asdict(facts), sort_keys=False, allow_unicode=True)


def _check_listed_classes(datalist: Path, class_names: Sequence[str]) -> None:
    """Refuse prepared cases of other classes that have lost their facts."""
    try:
        listed = [name for name in json.loads(datalist.read_text())["labels"].values() if isinstance(name, str)]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # no list, or one that says nothing of classes; a broken one is named when its cases are read
    if listed and listed != [*class_names]:
        raise InputError(
            f"{datalist.with_name(FACTS)}: expected the facts of the cases in {datalist.name}, whose classes are "
            f"{', '.join(listed)}, got no such file; copy it as well, or prepare the data again"
        )


def has_other_facts(facts: Facts, folder: str | os.PathLike) -> bool:
    """Whether a folder has no `facts.yaml` with these facts."""
    file = Path(folder) / FACTS
    return not file.is_file() or file.read_text(encoding="utf-8") != facts_text(facts)


def write_facts(facts: Facts, folder: str | os.PathLike) -> None:
    """Write `facts.yaml` into a folder, unless it is there with the same content.

    Raises:
        InputError: It cannot be written.
    """
    if has_other_facts(facts, folder):
        with writing(Path(folder) / FACTS) as unfinished:
            unfinished.write_text(facts_text(facts), encoding="utf-8")


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
