"""What the channels of saved predictions are: classes of a softmax, or structures with a sigmoid
each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calib_components.errors import InputError
from calib_tools.cli import parse_structures
from calib_tools.predictions.formats import Prediction
from calib_workflows.data.facts import IGNORED

PROBABILITY = "_probability"  # ending of the maps of probabilities that a bundle writes

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


def classes_of(
    predictions: Sequence[Prediction],
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
) -> Classes:
    """Return what the channels of predictions are, see `name_classes`.

    Raises:
        InputError: The predictions have different numbers of channels, or options do not fit them.
    """
    first = predictions[0].first
    channels = first.header().channels
    for reader in [each for prediction in predictions for each in prediction.members.values()]:
        if (number := reader.header().channels) != channels:
            raise InputError(
                f"{reader.file} has {number} channels, {first.file} has {channels}."
                " Predictions need the same number; label maps have 0."
            )
    has_background = first.stem.endswith(PROBABILITY)
    return name_classes(channels, structures, sigmoid, ignore_index, has_background)


def check_probabilities(prediction: Prediction, purpose: str) -> None:
    """Raise `InputError` if a prediction is a label map; `purpose` is what probabilities are
    for.
    """
    if all(member.is_label_map for member in prediction.members.values()):
        raise InputError(
            f"{prediction.file} is a label map. {purpose} needs probabilities: save those."
        )


def check_volume(prediction: Prediction, sigmoid: bool) -> None:
    """Raise `InputError` unless a prediction without a label is of probabilities, and its grid or
    the option says that one channel is a volume.
    """
    check_probabilities(prediction, "An estimate of quality")
    header = prediction.first.header()
    if header.channels == 1 and header.affine is None and not sigmoid:
        raise InputError(
            f"{prediction.file}: {header.shape} may be a volume of one structure or classes in"
            " 2D. Pass --sigmoid for the first, save the second as (C, X, Y, 1)."
        )


def name_classes(
    channels: int,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    with_background: bool = False,
) -> Classes:
    """Return what the channels of predictions are.

    - With `sigmoid`, or of one channel: the structures in the order given.
    - Softmax: the background, code 0, and then the structures in ascending order of their codes, if
      they share no code and there is one for each channel. Otherwise the channels are label codes
      in ascending order: 0, 1, 2, ..., or if the structures name higher ones, 0 and all codes that
      they name.

    Label maps have 0 channels, and need structures. Without them, channels are called class1,
    class2, and so on.
    `with_background`, files of sigmoids may have the background before them, which is not read
    then.

    Examples:
        >>> name_classes(3, ["tumour=2", "organ=1+2"]).structures
        {'tumour': [2], 'organ': [1, 2]}
        >>> name_classes(3, ["WT=1+2+4", "TC=1+4", "ET=4"], sigmoid=True).names
        ('WT', 'TC', 'ET')
    """
    sigmoid = channels == 1 or (sigmoid and channels > 0)
    if channels == 0 and structures is None:
        raise InputError("--structures: label maps need the codes of structures, such as liver=1.")
    default = [f"class{code}={code}" for code in range(1, channels + sigmoid)]
    codes_by_name = parse_structures(default if structures is None else structures)
    if sigmoid:
        classes = _sigmoid_classes(channels, codes_by_name, with_background)
    else:
        classes = _softmax_classes(channels, codes_by_name)
    if ignore_index in Codes([0]).union(*classes.codes):
        raise InputError(f"--ignore_index: {ignore_index} is the label code of a class.")
    others_allowed = channels == 0 or (sigmoid and structures is not None)
    return replace(classes, ignore_code=ignore_index, others_allowed=others_allowed)


def _sigmoid_classes(
    channels: int, codes_by_name: Mapping[str, Codes], with_background: bool
) -> Classes:
    skip = channels - len(codes_by_name)
    if skip and (skip, with_background) != (1, True):
        raise InputError(
            f"--structures has {len(codes_by_name)} names for {channels} channels. Name each in"
            " order. Label maps are stored as integers."
        )
    structures = {name: [channel] for channel, name in enumerate(codes_by_name)}
    names, codes = tuple(codes_by_name), tuple(codes_by_name.values())
    return Classes(names, codes, structures, sigmoid=True, skip=skip)


def _softmax_classes(channels: int, codes_by_name: Mapping[str, Codes]) -> Classes:
    codes = _softmax_codes(channels, codes_by_name)
    # Of structures with the same codes, the first names the class
    names = {part: name for name, part in reversed([*codes_by_name.items()])}
    defaults = ["class" + "+".join(map(str, sorted(part))) for part in codes]
    class_names = [names.get(part, default) for part, default in zip(codes, defaults, strict=True)]
    structures = {
        name: [index for index, part in enumerate(codes) if part <= whole]
        for name, whole in codes_by_name.items()
    }
    return Classes(("background", *class_names[1:]), tuple(codes), structures)


def _softmax_codes(channels: int, codes_by_name: Mapping[str, Codes]) -> list[Codes]:
    """Return the label codes of each channel of a softmax, or of each class of label maps."""
    named = Codes().union(*codes_by_name.values())
    ascending = sorted(codes_by_name.values(), key=min)
    if len(named) == sum(map(len, ascending)) and channels in (0, 1 + len(ascending)):
        return [Codes([0]), *ascending]
    separate = range(channels) if max(named) < channels else sorted({0, *named})
    if channels not in (0, len(separate)):
        raise InputError(
            f"{channels} channels are the background and {channels - 1} others; --structures names"
            f" {len(separate) - 1}. Name each class with its label code, or pass --sigmoid if"
            " channels are structures with a sigmoid each."
        )
    return [Codes([code]) for code in separate]


def label_classes(label: np.ndarray, classes: Classes, name: object) -> np.ndarray:
    """Bring the codes `(*S)` of a label file, which is called `name` in messages, to the channels
    of predictions.

    Returns:
        uint8 class indices `(1, *S)`; with `classes.sigmoid`, 0 or 1, `(N, *S)`. Voxels to leave
        out are `IGNORED`.

    Raises:
        InputError: There are codes of no class. With `classes.others_allowed`, they are background.
    """
    masks = (np.isin(label, list(codes)) for codes in classes.codes)
    if classes.sigmoid:
        result = np.stack([*masks]).astype(np.uint8)
    else:
        result = np.zeros((1, *label.shape), np.uint8)
        for index, mask in enumerate(masks):
            result[0][mask] = index
    if classes.ignore_code is not None:
        result[:, label == classes.ignore_code] = IGNORED
    others = [] if classes.others_allowed else [*unnamed_codes(label, classes)]
    if others:
        raise InputError(
            f"{name}: label codes {', '.join(map(str, others[:5]))} are unknown; known:"
            f" {', '.join(map(str, sorted(_known(classes))))}. --structures names those of each"
            " structure, --ignore_index that of voxels to leave out."
        )
    return result


def unnamed_codes(label: np.ndarray, classes: Classes) -> dict[int, float]:
    """Return the codes of a label file that are of no class, and the share of its voxels that each
    has.
    """
    others = label[~np.isin(label, list(_known(classes)))]
    codes, counts = np.unique(others, return_counts=True)
    return dict(zip(codes.tolist(), (counts / label.size).tolist(), strict=True))


def _known(classes: Classes) -> Codes:
    ignored = [] if classes.ignore_code is None else [classes.ignore_code]
    return Codes([0, *ignored]).union(*classes.codes)


def combine_masks(masks: np.ndarray, classes: Classes) -> np.ndarray:
    """Draw masks `(N, *S)` of the channels of sigmoids into one map, those of fewer label codes
    over those of more.

    The map is uint8 `(*S)`: 0, or 1 plus the channel.
    """
    result = np.zeros(masks.shape[1:], np.uint8)
    fewest_codes_last = sorted(range(len(masks)), key=lambda channel: -len(classes.codes[channel]))
    for channel in fewest_codes_last:
        result[masks[channel]] = channel + 1
    return result
