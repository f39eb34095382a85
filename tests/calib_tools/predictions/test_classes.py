"""What the channels of predictions are, from the options of a command and the number of
channels.
"""

from __future__ import annotations

import numpy as np
import pytest

from calib_components.errors import InputError
from calib_tools.predictions.classes import (
    IGNORED,
    Classes,
    combine_masks,
    label_classes,
    name_classes,
)

BRATS = ["WT=1+2+4", "TC=1+4", "ET=4"]


@pytest.mark.parametrize(
    ("channels", "structures", "names", "codes", "expected"),
    [
        (
            3,
            None,
            ["background", "class1", "class2"],
            [[0], [1], [2]],
            {"class1": [1], "class2": [2]},
        ),
        (3, ["b=2", "a=1"], ["background", "a", "b"], [[0], [1], [2]], {"b": [2], "a": [1]}),
        (3, ["b=2"], ["background", "class1", "b"], [[0], [1], [2]], {"b": [2]}),
        (
            4,
            ["c=7", "a=2", "b=4"],
            ["background", "a", "b", "c"],
            [[0], [2], [4], [7]],
            {"c": [3], "a": [1], "b": [2]},
        ),
        (2, ["liver=1+2"], ["background", "liver"], [[0], [1, 2]], {"liver": [1]}),
        (
            4,
            ["kidney=1+2", "cyst=3"],
            ["background", "class1", "class2", "cyst"],
            [[0], [1], [2], [3]],
            {"kidney": [1, 2], "cyst": [3]},
        ),
        (
            4,
            BRATS,
            ["background", "class1", "class2", "ET"],
            [[0], [1], [2], [4]],
            {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]},
        ),
        (0, ["a=5", "b=3"], ["background", "b", "a"], [[0], [3], [5]], {"a": [2], "b": [1]}),
    ],
)
def test_classes_of_a_softmax_and_of_label_maps(
    channels: int,
    structures: list[str] | None,
    names: list[str],
    codes: list[list[int]],
    expected: dict,
) -> None:
    classes = name_classes(channels, structures)
    assert (list(classes.names), [sorted(code) for code in classes.codes]) == (names, codes)
    assert list(classes.structures.items()) == list(expected.items())  # in the order given
    assert (classes.sigmoid, classes.others_allowed, classes.skip) == (False, channels == 0, 0)


@pytest.mark.parametrize(
    ("channels", "structures", "sigmoid", "with_background", "names", "skip"),
    [
        (3, BRATS, True, False, ["WT", "TC", "ET"], 0),
        (4, BRATS, True, True, ["WT", "TC", "ET"], 1),
        (3, BRATS, True, True, ["WT", "TC", "ET"], 0),
        (2, None, True, False, ["class1", "class2"], 0),
        (1, ["tumour=2"], False, False, ["tumour"], 0),
        (1, None, False, False, ["class1"], 0),
    ],
)
def test_channels_with_a_sigmoid_each(
    channels: int,
    structures: list[str] | None,
    sigmoid: bool,
    with_background: bool,
    names: list[str],
    skip: int,
) -> None:
    classes = name_classes(channels, structures, sigmoid, with_background=with_background)
    assert (list(classes.names), classes.sigmoid, classes.skip) == (names, True, skip)
    assert classes.structures == {name: [index] for index, name in enumerate(names)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"channels": 0}, "--structures"),
        ({"channels": 3, "structures": BRATS}, "--sigmoid"),
        (
            {"channels": 2, "structures": ["a=1", "b=2"]},
            "2 channels are the background and 1 others; .* names 2",
        ),
        ({"channels": 1, "structures": ["a=1", "b=2"]}, "Label maps"),
        ({"channels": 4, "structures": BRATS, "sigmoid": True}, "3 names for 4 channels"),
        (
            {"channels": 5, "structures": BRATS, "sigmoid": True, "with_background": True},
            "5 channels",
        ),
        ({"channels": 3, "structures": []}, "--structures"),
        ({"channels": 3, "ignore_index": 2}, "--ignore_index"),
        ({"channels": 3, "sigmoid": True, "ignore_index": 0}, "--ignore_index"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        name_classes(**options)


LABEL = np.array([0, 1, 2, 4, 9])


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (name_classes(4, BRATS, ignore_index=9), [[0, 1, 2, 3, IGNORED]]),
        (
            name_classes(3, BRATS, True, 9),
            [[0, 1, 1, 1, IGNORED], [0, 1, 0, 1, IGNORED], [0, 0, 0, 1, IGNORED]],
        ),
        (name_classes(1, ["tumour=2+4"]), [[0, 0, 1, 1, 0]]),
        (name_classes(0, ["all=1+2+4+255+256"]), [[0, 1, 1, 1, 0]]),
    ],
)
def test_codes_of_labels_become_classes_or_masks(classes: Classes, expected: list) -> None:
    label = label_classes(LABEL, classes, "label")
    assert (label.tolist(), label.dtype) == (expected, np.uint8)


@pytest.mark.parametrize(
    "classes", [name_classes(4, BRATS), name_classes(1), name_classes(3, sigmoid=True)]
)
def test_unknown_label_codes_are_refused(classes: Classes) -> None:
    with pytest.raises(InputError, match=r"label codes .*9 are unknown"):
        label_classes(LABEL, classes, "label")


def test_small_structures_are_drawn_over_large_ones() -> None:
    classes = name_classes(3, ["ET=4", "WT=1+2+4", "TC=1+4"], sigmoid=True)
    masks = np.array([[0, 0, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)
    assert combine_masks(masks, classes).tolist() == [0, 2, 3, 1, 3]
