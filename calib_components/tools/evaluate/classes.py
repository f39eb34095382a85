"""What the channels of saved predictions are: classes of a softmax, or structures with a sigmoid each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from calib_components.data.facts import check_class_names
from calib_components.errors import InputError

__all__ = ["IGNORED", "Classes", "label_classes", "name_classes", "paint", "parse_structures"]

IGNORED = 255  # what voxels to leave out become in a label of bytes
MOST = 254  # classes, so that bytes hold all class indices and IGNORED

Codes = frozenset[int]


@dataclass(frozen=True)
class Classes:
    """What the channels of predictions are, and which values of label files belong to them.

    Attributes:
        names: Name of each channel; with softmax, the first is the background.
        codes: Label codes of each channel, that is, its values in label files.
        structures: Channels of each structure that is scored, by its name: class indices whose probabilities add up,
            or with `sigmoid`, one channel each.
        sigmoid: Whether each channel is a binary problem of its own, as one channel alone always is.
        ignore_code: Value in label files of voxels to leave out.
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

    @property
    def ignore_index(self) -> int | None:
        """Value of voxels to leave out in what `label_classes` returns; None if there are none."""
        return None if self.ignore_code is None else IGNORED


def parse_structures(texts: Sequence[str]) -> dict[str, Codes]:
    """Read `name=code`, or `name=code+code` for a structure that several label codes make up.

    Raises:
        InputError: There is no text, a text is something else, or two have one name.

    Examples:
        >>> {name: sorted(codes) for name, codes in parse_structures(["WT=1+2+4", "ET=4"]).items()}
        {'WT': [1, 2, 4], 'ET': [4]}
    """
    if not texts:
        raise InputError("--structures names no structure. Pass structures such as liver=1.")
    structures, names = {}, []
    for text in texts:
        if not (match := re.fullmatch(r"(.+)=(\d+(?:\+\d+)*)", text)):
            raise InputError(f"--structures: {text!r} is not name=code or name=code+code, such as WT=1+2+4.")
        names.append(match[1])
        structures[match[1]] = frozenset(map(int, match[2].split("+")))
        if 0 in structures[match[1]]:
            raise InputError(f"--structures: {text!r} has the code of the background, 0.")
    check_class_names(names, "--structures")
    return structures


def name_classes(
    channels: int,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    with_background: bool = False,
) -> Classes:
    """Find what the channels of predictions are.

    - With `sigmoid`, or of one channel: the structures in the order given.
    - Softmax: the background, code 0, and then the structures in ascending order of their codes, if they share no code
      and there is one for each channel. Otherwise the channels are label codes in ascending order: 0, 1, 2, ..., or if
      the structures name higher ones, 0 and all codes that they name.

    Args:
        channels: Number of channels in the files; 0 if they are label maps, of which `sigmoid` makes nothing else.
        structures: Texts that `parse_structures` reads; None to call the channels class1, class2, ...
        sigmoid: Whether each channel is a structure with a sigmoid of its own.
        ignore_index: Value in label files of voxels to leave out.
        with_background: Whether files whose channels are structures may have the background before them, which is not
            read then.

    Raises:
        InputError: The structures are not those of so many channels.

    Examples:
        >>> name_classes(3, ["tumour=2", "organ=1+2"]).structures
        {'tumour': [2], 'organ': [1, 2]}
        >>> name_classes(3, ["WT=1+2+4", "TC=1+4", "ET=4"], sigmoid=True).names
        ('WT', 'TC', 'ET')
    """
    if structures is None and channels == 0:
        raise InputError("Label maps need --structures, such as liver=1,tumour=2.")
    given = parse_structures(structures if structures is not None else _default(channels, sigmoid))
    if channels == 1 or (channels and sigmoid):
        classes = _sigmoid_classes(channels, given, with_background)
        classes = replace(classes, others_allowed=structures is not None)
    else:
        classes = replace(_softmax_classes(channels, given), others_allowed=channels == 0)
    if len(classes.codes) > MOST:
        raise InputError(f"{len(classes.codes)} classes are more than {MOST}. Check --structures and the axes.")
    if ignore_index == 0 or any(ignore_index in codes for codes in classes.codes):
        raise InputError(f"--ignore_index: {ignore_index} is the label code of a class.")
    return replace(classes, ignore_code=ignore_index)


def _default(channels: int, sigmoid: bool) -> list[str]:
    number = channels if sigmoid or channels == 1 else channels - 1
    return [f"class{code}={code}" for code in range(1, number + 1)]


def _sigmoid_classes(channels: int, given: Mapping[str, Codes], with_background: bool) -> Classes:
    skip = channels - len(given)
    if skip and (skip, with_background) != (1, True):
        hint = " If these are label maps, store them as integers." if channels == 1 else ""
        raise InputError(f"--structures has {len(given)} names for {channels} channels. Name each in order.{hint}")
    structures = {name: [index] for index, name in enumerate(given)}
    return Classes(tuple(given), tuple(given.values()), structures, sigmoid=True, skip=skip)


def _softmax_classes(channels: int, given: Mapping[str, Codes]) -> Classes:
    named: Codes = reduce(Codes.union, given.values(), frozenset())
    ascending = sorted(given.values(), key=min)
    if len(named) == sum(map(len, ascending)) and channels in (0, 1 + len(given)):
        codes = [frozenset([0]), *ascending]
    else:
        separate = range(channels) if max(named) < channels else sorted({0, *named})
        codes = [frozenset([code]) for code in separate]
    if channels not in (0, len(codes)):
        raise InputError(
            f"--structures: {', '.join(given)} are not the classes of {channels} channels, the background first. Name "
            "each class with its label code, or pass --sigmoid if channels are structures with a sigmoid each."
        )
    own = {codes: name for name, codes in reversed([*given.items()])}
    names = ["background", *(own.get(code, f"class{'+'.join(map(str, sorted(code)))}") for code in codes[1:])]
    structures = {name: [index for index, code in enumerate(codes) if code <= whole] for name, whole in given.items()}
    return Classes(tuple(names), tuple(codes), structures)


def label_classes(label: np.ndarray, classes: Classes, name: object) -> tuple[np.ndarray, list[int]]:
    """Bring the values of a label file to the channels of the predictions.

    Args:
        label: Label codes, of shape `(*S)`.
        classes: What the channels are.
        name: Its file, for messages.

    Returns:
        uint8 of shape `(1, *S)`, class indices; with `classes.sigmoid`, of shape `(N, *S)`, 0 or 1. Voxels to leave out
        are `IGNORED` in all channels. And the codes of no class, in ascending order, which count as background; only
        with `classes.others_allowed`.

    Raises:
        InputError: The label has a value of no class.
    """
    ignored = np.zeros(label.shape, bool) if classes.ignore_code is None else label == classes.ignore_code
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
        unknown = ", ".join(f"{value:.9g}" for value in others[:5])
        codes = ", ".join(map(str, sorted({0}.union(*classes.codes))))
        raise InputError(
            f"{name}: label codes {unknown} are unknown; known: {codes}. --structures names those of each structure, "
            "--ignore_index that of voxels to leave out."
        )
    result[:, ignored] = IGNORED
    return result, others


def paint(masks: np.ndarray, classes: Classes) -> np.ndarray:
    """Draw structures that may overlap into one map to look at, those of fewer label codes over those of more.

    Args:
        masks: `(N, *S)`, one for each channel of sigmoids.
        classes: What the channels are.

    Returns:
        uint8 `(*S)`: 0, or 1 plus the channel.
    """
    result = np.zeros(masks.shape[1:], np.uint8)
    for channel in sorted(range(len(masks)), key=lambda channel: -len(classes.codes[channel])):
        result[masks[channel]] = channel + 1
    return result
