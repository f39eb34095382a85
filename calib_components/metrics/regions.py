"""Regions: which voxels count for a calibration error, a scoring rule, or the fit of a temperature.

Regions chosen by the prediction alone:

- `all`: every voxel.
- `predicted`: the predicted class is not background (class 0).
- `plausible(e)`: the probability of foreground, `1 - p_0`, is above `e` (0.05).
- `predicted_band(r)`: at most `r` (2) from a face between voxels of different predicted classes.

Regions chosen by the ground truth:

- `foreground`: the ground truth is not background, as in Murugesan et al., "Trust Your Neighbours: Penalty-Based
  Constraints for Model Calibration", MICCAI 2023.
- `union`: the ground truth or the predicted class is not background.
- `band(r)`: at most `r` (2) from a face between voxels of different ground-truth classes.
- a structure: the ground truth is one of some classes.

Ignored voxels are in no region. Distances are from the center of a voxel to the nearest point of a face, in voxels, or
in mm where a spacing is given: the two voxels at a face are 0.5 voxels from it. A face of an ignored voxel does not
count. A radius in voxels is the same along all axes, so where slices are thick, whole slices at the ends of a structure
are in the band; give `spacing` for a radius in mm.

A region chosen by the ground truth does not measure calibration. Probabilities are calibrated if, among all voxels with
probability 0.6 of background, 60 % are background. None of those that are foreground is, so even the true probabilities
have an error in `foreground`, and less confident ones have a smaller one. Report such an error next to its value if the
probabilities were true, which is 0 for regions chosen by the prediction.

Voxels of one image are not independent: errors and their intervals computed as if they were vary more from image to
image than the number of voxels suggests.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calib_components.arguments import check_flag, is_whole
from calib_components.errors import InputError

__all__ = ["IGNORED", "Region", "band_mask", "choose_region"]

BY_PREDICTION = ("all", "predicted", "plausible", "predicted_band")
BY_GROUND_TRUTH = ("foreground", "union", "band")
DEFAULTS = {"plausible": 0.05, "predicted_band": 2.0, "band": 2.0}
LARGEST_RADIUS = 1000  # in voxels; with the limits of a spacing, its square and those of distances are finite
SMALLEST_SPACING, LARGEST_SPACING = 1e-6, 1e6
IGNORED = -1  # stands for the class of an ignored voxel in a map of classes


@dataclass(frozen=True)
class Region:
    """Which voxels of a case count, see the head of `calib_components.metrics.regions`.

    `Region.parse` makes one of a name or of class indices; the constructor is needed only for bands in mm.

    Args:
        kind: "all", "predicted", "plausible", "predicted_band", "foreground", "union", "band" or "structure".
        parameter: Threshold of "plausible" (default 0.05), or radius of a band (default 2) in voxels or in the unit of
            `spacing`, at most 1000 voxels.
        classes: Class indices of a "structure".
        spacing: Size of a voxel along each spatial axis, such as in mm, from 1e-6 to 1e6; None measures in voxels. Only
            for bands.

    Raises:
        ValueError: An argument has an unsuitable value.

    Examples:
        >>> from calib_components.metrics import Region
        >>> Region.parse("plausible(0.1)").parameter
        0.1
        >>> Region.parse([1, 3]).name
        'structure_1_3'
        >>> Region("band", 3, spacing=(1.5, 1.5, 10)).by_prediction
        False
    """

    kind: str
    parameter: float | None = None
    classes: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*BY_PREDICTION, *BY_GROUND_TRUTH, "structure"):
            raise InputError(_message(self.kind))
        is_band, is_structure = self.kind.endswith("band"), self.kind == "structure"
        if self.spacing is not None:
            if not is_band:
                raise InputError(f"spacing: expected None for region {self.kind!r}, got {self.spacing!r}")
            object.__setattr__(self, "spacing", _sizes(self.spacing))
        if self.parameter is None:
            object.__setattr__(self, "parameter", DEFAULTS.get(self.kind))
        elif self.kind not in DEFAULTS:
            raise InputError(f"region: expected no parameter for {self.kind!r}, got {self.parameter!r}")
        else:
            is_number = isinstance(self.parameter, numbers.Real) and not isinstance(self.parameter, bool)
            largest = LARGEST_RADIUS * min(self.spacing or (1,))
            if not (is_number and (0 < self.parameter <= largest if is_band else 0 <= self.parameter < 1)):
                radius = f"a radius above 0 and at most {LARGEST_RADIUS} voxels"
                expected = radius if is_band else "a threshold of at least 0 and below 1"
                raise InputError(f"region: expected {expected} for {self.kind!r}, got {self.parameter!r}")
            object.__setattr__(self, "parameter", float(self.parameter))
        classes = _listed(self.classes)
        if classes is None or bool(classes) != is_structure or not all(is_whole(k) and k >= 0 for k in classes):
            expected = "class indices" if is_structure else f"no classes for {self.kind!r}"
            raise InputError(f"region: expected {expected}, got {self.classes if classes is None else classes}")
        object.__setattr__(self, "classes", tuple(sorted({int(k) for k in classes})))

    @classmethod
    def parse(cls, value: Any) -> Region:
        """Return the region that a value describes.

        Args:
            value: A `Region`; a name, which may have a parameter, such as "plausible(0.1)" or "band(3)"; or a class
                index or a sequence of them: that structure.

        Raises:
            ValueError: The value describes no region.
        """
        if isinstance(value, Region):
            return value
        classes = [value] if is_whole(value) else value
        if isinstance(value, str):
            found = re.fullmatch(r"(\w+)(?:\((\d*\.?\d+(?:e[+-]?\d+)?)\))?", value)
            if found and found[1] in (*BY_PREDICTION, *BY_GROUND_TRUTH):
                return cls(found[1], None if found[2] is None else float(found[2]))
        elif isinstance(classes, Sequence) and classes and all(is_whole(k) and k >= 0 for k in classes):
            return cls("structure", classes=tuple(classes))
        raise InputError(_message(value))

    @property
    def name(self) -> str:
        """Name of the region, different for each: such as "foreground", "band(3)" or "structure_1_2".

        A default parameter is left out. `Region.parse` reads it, except for structures and bands with a spacing, such
        as "band(3 at 1.5x1.5x10)".
        """
        if self.kind == "structure":
            return "_".join(["structure", *map(str, self.classes)])
        if self.spacing is not None:
            return f"{self.kind}({_number(self.limit)} at {'x'.join(map(_number, self.spacing))})"
        return self.kind if self.parameter == DEFAULTS.get(self.kind) else f"{self.kind}({_number(self.limit)})"

    @property
    def by_prediction(self) -> bool:
        """Whether the prediction alone decides which voxels count; if so, true probabilities have no error."""
        return self.kind in BY_PREDICTION

    @property
    def has_closed_form(self) -> bool:
        """Whether a voxel's prediction and own label decide: "foreground", "union" and structures.

        For these, the error that true probabilities would have is computed.
        """
        return self.kind in ("foreground", "union", "structure")

    @property
    def limit(self) -> float:
        """The parameter of a region that has one."""
        assert self.parameter is not None
        return self.parameter

    def true_classes(self, num_classes: int) -> list[int]:
        """Classes whose voxels are in the region whatever is predicted; none for regions without a closed form."""
        if self.kind == "structure":
            if self.classes[-1] >= num_classes:
                raise InputError(
                    f"region: expected class indices from 0 to {num_classes - 1}, got {list(self.classes)}"
                )
            return list(self.classes)
        return list(range(1, num_classes)) if self.has_closed_form else []


def _listed(values: Any) -> list[Any] | None:
    try:
        return list(values)
    except TypeError:
        return None


def _sizes(spacing: Any) -> tuple[float, ...]:
    sizes: list[float] | None = _listed(spacing)
    if not sizes or not all(isinstance(s, numbers.Real) and SMALLEST_SPACING <= s <= LARGEST_SPACING for s in sizes):
        expected = f"a number from {SMALLEST_SPACING:g} to {LARGEST_SPACING:g} for each spatial axis"
        raise InputError(f"spacing: expected {expected}, got {spacing!r}")
    return tuple(map(float, sizes))


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _message(value: Any) -> str:
    names = ", ".join(map(repr, (*BY_PREDICTION, *BY_GROUND_TRUTH)))
    return f"region: expected one of {names}, or class indices, got {value!r}"


def choose_region(region: Any, foreground_only: bool | None) -> Region:
    """Return the region of a metric: `region`, or what `foreground_only` says, or "foreground" if both are None.

    Raises:
        ValueError: `region` describes none, `foreground_only` is not True, False or None, or the two differ.
    """
    if foreground_only is None:
        return Region.parse("foreground" if region is None else region)
    check_flag("foreground_only", foreground_only)
    same = Region("foreground" if foreground_only else "all")
    if region is not None and Region.parse(region) != same:
        raise InputError(
            f"foreground_only: expected None if region is given, got {foreground_only} and region={region!r}"
        )
    return same


def band_mask(classes: torch.Tensor, radius: float, spacing: Sequence[float] | None = None) -> torch.Tensor:
    """Find the voxels at most `radius` from a face between voxels of different classes.

    Exact for any spacing: the distance is from the center of a voxel to the nearest point of the face. Takes a few
    bytes per voxel; its time grows with the number of voxels within the radius.

    Shape:
        - classes, output: `(*S)`.

    Args:
        classes: Class of each voxel; `IGNORED` where a voxel is ignored, whose faces do not count.
        radius: Largest distance, in the unit of `spacing`.
        spacing: Size of a voxel along each axis; None measures in voxels.

    Returns:
        Boolean mask.

    Raises:
        ValueError: `spacing` does not have one value for each axis.

    Examples:
        >>> import torch
        >>> from calib_components.metrics.regions import band_mask
        >>> band_mask(torch.tensor([0, 0, 0, 1, 1, 1]), radius=1.5).int()  # the face is between the third and fourth
        tensor([0, 1, 1, 1, 1, 0], dtype=torch.int32)
    """
    if spacing is None:
        spacing = (1.0,) * classes.ndim
    if len(spacing) != classes.ndim:
        raise InputError(f"spacing: expected one value for each of the {classes.ndim} spatial axes, got {spacing}")
    mask = torch.zeros(classes.shape, dtype=torch.bool, device=classes.device)
    counts = classes != IGNORED
    faces = [_faces(classes, counts, axis) for axis in range(classes.ndim)]
    box = _box_around_faces(faces, mask.shape, [int(radius / size + 0.5) for size in spacing])
    if box is None:
        return mask
    in_box = mask[box]  # a view
    limit = radius**2 * (1 + 1e-9)  # so that rounding leaves out no voxel at exactly this distance
    for axis, size in enumerate(spacing):
        within = list(box)
        within[axis] = slice(box[axis].start, box[axis].stop - 1)
        others = [(other, spacing[other]) for other in reversed(range(classes.ndim)) if other != axis]
        for steps in range(in_box.shape[axis] - 1):
            left = limit - ((steps + 0.5) * size) ** 2
            if left < 0:
                break
            near = _dilate(faces[axis][tuple(within)], left, others)
            length = near.shape[axis] - steps
            in_box.narrow(axis, 0, length).logical_or_(near.narrow(axis, steps, length))  # voxels i - steps
            in_box.narrow(axis, 1 + steps, length).logical_or_(near.narrow(axis, 0, length))  # voxels i + 1 + steps
    return mask


def _faces(classes: torch.Tensor, counts: torch.Tensor, axis: int) -> torch.Tensor:
    """Whether there is a face between voxels i and i + 1 along an axis."""
    length = classes.shape[axis] - 1
    differ = classes.narrow(axis, 0, length) != classes.narrow(axis, 1, length)
    return differ.logical_and_(counts.narrow(axis, 0, length)).logical_and_(counts.narrow(axis, 1, length))


def _dilate(faces: torch.Tensor, limit: float, axes: Sequence[tuple[int, float]]) -> torch.Tensor:
    """Spread faces along axes in which they extend half a voxel, to squared distances up to a limit."""
    if not axes:
        return faces
    (axis, size), *rest = axes
    spread = _dilate(faces, limit, rest).clone()
    for steps in range(1, faces.shape[axis]):
        left = limit - ((steps - 0.5) * size) ** 2
        if left < 0:
            break
        near = _dilate(faces, left, rest)
        length = faces.shape[axis] - steps
        spread.narrow(axis, steps, length).logical_or_(near.narrow(axis, 0, length))
        spread.narrow(axis, 0, length).logical_or_(near.narrow(axis, steps, length))
    return spread


def _box_around_faces(
    faces: Sequence[torch.Tensor], shape: Sequence[int], margins: Sequence[int]
) -> tuple[slice, ...] | None:
    """Smallest box that holds the voxels of the faces along each axis and a margin; None without faces."""
    at_face = torch.zeros(shape, dtype=torch.bool, device=faces[0].device)
    for axis, along in enumerate(faces):
        at_face.narrow(axis, 0, along.shape[axis]).logical_or_(along)
        at_face.narrow(axis, 1, along.shape[axis]).logical_or_(along)
    box = []
    for axis, margin in enumerate(margins):
        rest = [other for other in range(len(shape)) if other != axis]
        # The maximum of bytes takes a fraction of the time of `any`.
        where = (at_face.byte().amax(rest) if rest else at_face).nonzero()
        if len(where) == 0:
            return None
        box.append(slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + margin + 1, shape[axis])))
    return tuple(box)
