"""What the channels of saved predictions are: classes of a softmax, or structures with a sigmoid
each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib_components.errors import InputError
from calib_components.tools.cli import parse_structures

IGNORED = 255  # what voxels to leave out become in a label of bytes

Codes = frozenset[int]


@dataclass(frozen=True)
class Classes:
    """What the channels of predictions are, and which values of label files belong to them.

    Attributes:
        names: Name of each channel; with softmax, the first is the background.
        codes: Label codes of each channel, that is, its values in label files.
        structures: Channels of each structure that is scored, by its name: class indices whose
            probabilities add up, or with `sigmoid`, one channel each.
        sigmoid: Whether each channel is a binary problem of its own, as one channel alone always
            is.
        ignore_code: Value in label files of voxels to leave out, which become `IGNORED`.
        others_allowed: Whether label files may hold further values, which are background then.
        skip: Number of channels at the start of a file that are not read.
    """

    names: tuple[str, ...]
    codes: tuple[Codes, ...]
    structures: Mapping[str, list[int]]
    sigmoid: bool = False
    ignore_code: int | None = None
    others_allowed: bool = False
    skip: int = 0


def name_classes(
    channels: int,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    with_background: bool = False,
) -> Classes:
    """Find what the channels of predictions are.

    - With `sigmoid`, or of one channel: the structures in the order given.
    - Softmax: the background, code 0, and then the structures in ascending order of their codes, if
      they share no code and there is one for each channel. Otherwise the channels are label codes
      in ascending order: 0, 1, 2, ..., or if the structures name higher ones, 0 and all codes that
      they name.

    Label maps have 0 channels. Without structures, channels are called class1, class2, and so on.
    `with_background`, files of sigmoids may have the background before them, which is not read
    then.

    Examples:
        >>> name_classes(3, ["tumour=2", "organ=1+2"]).structures
        {'tumour': [2], 'organ': [1, 2]}
        >>> name_classes(3, ["WT=1+2+4", "TC=1+4", "ET=4"], sigmoid=True).names
        ('WT', 'TC', 'ET')
    """
    if structures is None and channels == 0:
        raise InputError("Label maps need --structures, such as liver=1,tumour=2.")
    sigmoid = channels == 1 or (sigmoid and channels > 0)
    by_default = [f"class{code}={code}" for code in range(1, channels + sigmoid)]
    given = parse_structures(by_default if structures is None else structures)
    skip = channels - len(given) if sigmoid else 0
    if skip and (skip, with_background) != (1, True):
        hint = " If these are label maps, store them as integers." if channels == 1 else ""
        raise InputError(
            f"--structures has {len(given)} names for {channels} channels. Name each in"
            f" order.{hint}"
        )
    codes = [*given.values()] if sigmoid else _softmax_codes(channels, given)
    if ignore_index == 0 or any(ignore_index in of_class for of_class in codes):
        raise InputError(f"--ignore_index: {ignore_index} is the label code of a class.")
    if sigmoid:
        names = [*given]
        indices = {name: [index] for index, name in enumerate(given)}
    else:
        own = {of_class: name for name, of_class in reversed([*given.items()])}
        names = [
            "background",
            *(own.get(part, f"class{'+'.join(map(str, sorted(part)))}") for part in codes[1:]),
        ]
        indices = {
            name: [i for i, part in enumerate(codes) if part <= whole]
            for name, whole in given.items()
        }
    others_allowed = channels == 0 or (sigmoid and structures is not None)
    return Classes(tuple(names), tuple(codes), indices, sigmoid, ignore_index, others_allowed, skip)


def _softmax_codes(channels: int, given: Mapping[str, Codes]) -> list[Codes]:
    """Return the label codes of each channel of a softmax, or of each class of label maps."""
    named, ascending = Codes().union(*given.values()), sorted(given.values(), key=min)
    if len(named) == sum(map(len, ascending)) and channels in (0, 1 + len(given)):
        return [frozenset([0]), *ascending]
    separate = range(channels) if max(named) < channels else sorted({0, *named})
    if channels not in (0, len(separate)):
        classes = f"{channels - 1} class{'es' * (channels > 2)}"
        raise InputError(
            f"{channels} channels are the background and {classes}; --structures names"
            f" {len(separate) - 1}. Name each class with its label code, or pass --sigmoid if"
            " channels are structures with a sigmoid each."
        )
    return [frozenset([code]) for code in separate]


def label_classes(
    label: np.ndarray, classes: Classes, name: object
) -> tuple[np.ndarray, list[int]]:
    """Bring the codes `(*S)` of a label file, which is called `name` in messages, to the channels
    of predictions.

    Returns:
        uint8 class indices `(1, *S)`; with `classes.sigmoid`, 0 or 1, `(N, *S)`. Voxels to leave
        out are `IGNORED`. And the codes of no class, which count as background; without
        `classes.others_allowed`, they are an error.
    """
    ignored = (
        np.zeros(label.shape, bool) if classes.ignore_code is None else label == classes.ignore_code
    )
    masks = (np.isin(label, list(codes)) for codes in classes.codes)
    known = ignored.copy()
    if classes.sigmoid:
        result = np.stack([mask.astype(np.uint8) for mask in masks])
        known |= (label == 0) | result.any(0)
    else:
        result = np.zeros((1, *label.shape), np.uint8)
        for index, mask in enumerate(masks):
            result[0][mask] = index
            known |= mask
    others = np.unique(label[~known]).tolist()
    if others and not classes.others_allowed:
        unknown = ", ".join(map(str, others[:5]))
        codes = ", ".join(map(str, sorted({0}.union(*classes.codes))))
        raise InputError(
            f"{name}: label codes {unknown} are unknown; known: {codes}. --structures names those"
            " of each structure, --ignore_index that of voxels to leave out."
        )
    result[:, ignored] = IGNORED
    return result, others


def paint(masks: np.ndarray, classes: Classes) -> np.ndarray:
    """Draw masks `(N, *S)` of the channels of sigmoids into one map, those of fewer label codes
    over those of more.

    The map is uint8 `(*S)`: 0, or 1 plus the channel.
    """
    result = np.zeros(masks.shape[1:], np.uint8)
    for channel in sorted(range(len(masks)), key=lambda channel: -len(classes.codes[channel])):
        result[masks[channel]] = channel + 1
    return result
