"""Labelled cases, of which one at a time is in memory: `Cases.map` is the loop of every fit and
evaluation.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, TypeVar

import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.utils import convert_to_tensor
from scipy.optimize import linear_sum_assignment

from calib_components.errors import InputError, printable
from calib_components.metrics.case import Case
from calib_components.posthoc.base import gathered
from calib_workflows.data.facts import IGNORED
from calib_workflows.data.nifti import voxel_volume
from calib_workflows.inference.crops import Crop, crop_of
from calib_workflows.inference.inferers import agreement_of

Result = TypeVar("Result")
MISSING: Any = object()  # where other processes have one more case


class LabelledCase(ABC):
    """A case in memory, while a function of `Cases.map` uses it.

    Attributes:
        name: Its name.
        patient: Whose case it is.
        image: Grey values `(*S)`, for pictures; None without.
        crop: What the network saw of the slices; None for all.
    """

    name: str
    patient: str
    image: torch.Tensor | None = None
    crop: Crop | None = None

    @property
    @abstractmethod
    def logits(self) -> torch.Tensor:
        """Logits of the network, or logarithms of saved probabilities, `(N, *S)`."""

    @property
    @abstractmethod
    def labels(self) -> Sequence[torch.Tensor]:
        """The label of each rater, `(1, *S)`; for sigmoids `(N, *S)`."""

    @property
    @abstractmethod
    def scan(self) -> Case:
        """What is measured; the logits of a network become its probabilities."""

    @property
    @abstractmethod
    def label_map(self) -> torch.Tensor:
        """Classes to draw, `(*S)`."""

    def members(self) -> Mapping[str, Case]:
        """Return what is measured with the prediction of each of several networks, by name."""
        return {}


class Cases(ABC):
    """Labelled cases."""

    @abstractmethod
    def map(self, function: Callable[[LabelledCase], Result]) -> list[Result]:
        """Return the result of a function for each case, in their order."""


@dataclass(eq=False)
class NetworkCase(LabelledCase):
    """A case that a network has run on."""

    name: str
    patient: str
    output: dict[str, Any]  # `image` `(C, *S)`, `label` `(1, *S)` and logits `pred` `(N, *S)`
    structures: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        self.image = convert_to_tensor(self.output["image"], track_meta=False)[0]
        self.crop = crop_of(self.output["pred"])
        self._label = convert_to_tensor(self.output["label"], track_meta=False)

    @property
    def logits(self) -> torch.Tensor:
        return convert_to_tensor(self.output["pred"], track_meta=False).float()

    @property
    def labels(self) -> list[torch.Tensor]:
        return [self._label]

    @functools.cached_property
    def scan(self) -> Case:
        agreement = agreement_of(self.output["pred"], self.structures)
        probabilities = self.logits.softmax(0)
        del self.output["pred"]
        return Case(
            self._label,
            self.structures,
            probabilities,
            probabilities.max(0).indices,  # what argmax(0) gives, in a fraction of its time
            ignore_index=IGNORED,
            pairwise_dsc=agreement,
            **_voxel_size(self.output["label"]),
        )

    @property
    def label_map(self) -> torch.Tensor:
        return self._label[0].masked_fill(self._label[0] == IGNORED, 0)


def _voxel_size(label: torch.Tensor) -> dict[str, Any]:
    """Return the spacing in mm, and the volume in ml, of the voxels of a label with metadata."""
    if not isinstance(label, MetaTensor):
        return {}
    volume = voxel_volume(np.asarray(label.affine))
    return {"spacing": label.pixdim.tolist(), "voxel_volume": volume}


@dataclass(eq=False)
class NetworkCases(Cases):
    """The cases of an evaluator, whose network runs on each; in several processes, on its share.

    Args:
        evaluator: Items of its batches have the name of the `case` and of its `patient`, those of
            its output an `image` `(C, *S)`, a `label` `(1, *S)` and the logits `pred` `(N, *S)`.
        structures: Class indices of the structures, by name.
    """

    evaluator: Evaluator
    structures: Mapping[str, Sequence[int]]

    def map(self, function: Callable[[LabelledCase], Result]) -> list[Result]:
        results: list[Result] = []

        def use(engine: Evaluator) -> None:
            for item, output in zip(engine.state.batch, engine.state.output, strict=True):
                case = NetworkCase(
                    item["case"], item.get("patient", item["case"]), output, self.structures
                )
                results.append(function(case))

        with self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, use):
            self.evaluator.run()
        # Each process has every n-th case
        in_order = chain.from_iterable(zip_longest(*gathered(results), fillvalue=MISSING))
        return [result for result in in_order if result is not MISSING]


def count_classes(label: torch.Tensor, scores: torch.Tensor) -> dict[tuple[int, int], int]:
    """Count voxels by their true and predicted class, where there are any.

    Args:
        label: Class indices `(*S)`; negative ones, and those beyond the channels, do not count.
        scores: Logits or probabilities, `(N, *S)`.
    """
    known = (label >= 0) & (label < len(scores))
    pairs = (label.long() * len(scores) + scores.argmax(0))[known]
    codes, counts = pairs.unique(return_counts=True)
    return {
        divmod(code, len(scores)): count
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    }


def check_classes(counts: Mapping[str, Mapping[tuple[int, int], int]]) -> None:
    """Raise `InputError` if the classes are in another order than the channels: a network that is
    merely bad never looks like this.

    Args:
        counts: What `count_classes` returned for each case, by name.
    """
    classes = 1 + max((max(pair) for each in counts.values() for pair in each), default=0)
    total = np.zeros((classes, classes))
    for each in counts.values():
        for pair, count in each.items():
            total[pair] += count
    voxels = total.sum(1)
    _, match = linear_sum_assignment(-total / np.maximum(voxels, 1)[:, None])
    moved = (match != np.arange(classes)) & (voxels > 0)
    right, matched = np.diag(total), total[np.arange(classes), match]
    background = np.arange(classes) == 0
    parts = [part for part in (moved & background, moved & ~background) if part.any()]
    # One class that is taken for another that no label has may be a mistake of the network
    if moved.sum() < 2 or any(
        right[part].sum() >= voxels[part].sum() / 4
        or matched[part].sum() <= voxels[part].sum() * (0.75 if part[0] else 0.5)
        for part in parts
    ):
        return
    if moved[0] and match[0] == classes - 1:
        text, remedy = "the background seems to be the last channel", "Save the background first."
    else:
        pairs = ", ".join(f"{true} as {match[true]}" for true in np.flatnonzero(moved))
        text = f"classes seem to be exchanged, {pairs}"
        remedy = "Check the order of channels and the codes of labels."
    raise InputError(
        f"{printable(next(iter(counts)))}: {text}: {right.sum() / voxels.sum():.0%} of all voxels"
        f" are right, but {matched.sum() / voxels.sum():.0%} would be. {remedy}"
    )


def check_labelled(
    counts: Mapping[str, Mapping[tuple[int, int], int]], structures: Mapping[str, Sequence[int]]
) -> None:
    """Raise `InputError` if no label has a structure that is predicted in most cases.

    Args:
        counts: What `count_classes` returned for each case, by name.
        structures: Class indices of each structure.
    """
    for name, classes in structures.items():
        true, predicted = (
            sum(any(pair[side] in classes for pair in each) for each in counts.values())
            for side in (0, 1)
        )
        if not true and predicted > len(counts) / 2:
            raise InputError(
                f"No label has {printable(name)}, which is predicted in {predicted} of"
                f" {len(counts)} cases. Fit to labels of all structures."
            )
