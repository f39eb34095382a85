"""Whether two sets of cases share a patient or a volume: no fit, threshold or test may be on cases
seen before.

A case is an item: its name `case`, its `patient` and, where known, the file `image` or the
`content_of` its label and of what is `predicted`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

SAMPLE = 2**16  # bytes from the middle of an uncompressed file, which tell volumes apart
Items = Sequence[Mapping[str, Any]]


class Shared(NamedTuple):
    """A case of each set, with the same volume or else of the same patient."""

    one: Mapping[str, Any]
    other: Mapping[str, Any]
    is_volume: bool

    def __str__(self) -> str:
        names = " and ".join(dict.fromkeys((self.one["case"], self.other["case"])))
        shared = "the same volume" if self.is_volume else f"patient {self.one['patient']}"
        return f"{shared} is on both sides ({names})"

    @property
    def is_only_name(self) -> bool:
        """Whether two cases, of which no patient is stated, have no more in common than their
        name.
        """
        return not self.is_volume and self.one["case"] == self.one["patient"] == self.other["case"]


def find_shared(one: Items, other: Items) -> list[Shared]:
    """Find the cases of one set that share a volume or a patient with the other."""
    patients = {item["patient"]: item for item in reversed(other)}
    volumes = {content: item for item in reversed(other) for content in _contents(item)}
    shared = []
    for item in one:
        same = [volumes[content] for content in _contents(item) if content in volumes]
        if same:
            shared.append(Shared(item, same[0], True))
        elif item["patient"] in patients:
            shared.append(Shared(item, patients[item["patient"]], False))
    return shared


def content_of(label: torch.Tensor) -> str:
    """Return a hash of the structures along each axis of a label `(1, *S)`; an empty text for one
    without any.

    It is the same for copies whose axes are in another order or flipped.
    """
    values = label[0].cpu().int()
    values = values * (values + 7)
    axes = range(values.ndim)
    profiles = [
        values.sum([other for other in axes if other != axis], dtype=torch.int64).tolist()
        for axis in axes
    ]
    if not any(profiles[0]):
        return ""
    turned = sorted(min(profile, profile[::-1]) for profile in profiles)
    return hashlib.sha256(repr(turned).encode()).hexdigest()


def _contents(item: Mapping[str, Any]) -> list[Any]:
    """Return what only equal volumes have in common, as far as it is known, without reading all of
    a file.
    """
    if "image" not in item:
        return [item[name] for name in ("content", "predicted") if item.get(name)]
    try:
        with open(item["image"], "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if str(item["image"]).lower().endswith(".gz"):  # the checksum and size of its content
                file.seek(max(size - 8, 0))
                return [file.read()]
            file.seek(size // 2)
            return [(size, file.read(SAMPLE))]
    except OSError:
        return []
