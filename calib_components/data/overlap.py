"""Whether two sets of cases share a patient or a volume: no fit, threshold or test may be on cases
seen before.

A case is an item: its name `case`, its `patient` and, where known, the file `image` or the
`content_of` its label.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

# Bytes before the voxels of an uncompressed NIfTI file, which may state another position
HEADER = 352
SAMPLE = 512  # bytes from the middle of a file that are compared first
SLAB = 16  # slices that are converted at once
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
        """Whether two cases, of which no patient is stated, have no more in common than their name."""
        return not self.is_volume and self.one["case"] == self.one["patient"] == self.other["case"]


def find_shared(one: Items, other: Items) -> list[Shared]:
    """Find the cases of one set that share a volume or a patient with the other; few files are read
    as a whole.
    """
    patients = {item["patient"]: item for item in reversed(other)}
    alike = defaultdict(list)
    for item in other:
        alike[_outline(item)].append(item)
    alike.pop(None, None)
    shared = []
    for item in one:
        candidates = alike.get(_outline(item), [])
        same = [each for each in candidates if _content(each) == _content(item)]
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
    axes = range(label.ndim - 1)
    slabs = [slab.long() * (slab.long() + 7) for slab in label[0].cpu().split(SLAB, -1)]
    profiles = []
    for axis in axes:
        parts = [slab.sum([other for other in axes if other != axis]) for slab in slabs]
        profile = torch.cat(parts) if axis == axes[-1] else torch.stack(parts).sum(0)
        profiles.append(profile.tolist())
    if not any(profiles[0]):
        return ""
    turned = sorted(min(profile, profile[::-1]) for profile in profiles)
    return hashlib.sha256(repr(turned).encode()).hexdigest()


def _outline(item: Mapping[str, Any]) -> Any:
    """Return what equal volumes have in common, and few others; None for one that is not known."""
    if "image" not in item:
        return item.get("content") or None
    try:
        with open(item["image"], "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if _is_compressed(item):  # ends with a checksum and the size of its content
                file.seek(max(size - 8, 0))
                return file.read()
            file.seek(size // 2)
            return size, file.read(SAMPLE)
    except OSError:
        return None


def _content(item: Mapping[str, Any]) -> Any:
    """Return what only equal volumes have in common, if their outlines are equal."""
    if "image" not in item or _is_compressed(item):
        return _outline(item)
    with open(item["image"], "rb") as file:
        file.seek(HEADER)
        return hashlib.sha256(file.read()).digest()


def _is_compressed(item: Mapping[str, Any]) -> bool:
    return str(item["image"]).lower().endswith(".gz")
