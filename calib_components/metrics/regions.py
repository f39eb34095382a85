"""Regions: which voxels count for a calibration error, a scoring rule, or the fit of a temperature.

Regions chosen by the prediction alone:

- `all`: every voxel.
- `predicted`: the predicted class is not background (class 0).

Regions chosen by the ground truth:

- `foreground`: the ground truth is not background, as in Murugesan et al., "Trust Your Neighbours:
  Penalty-Based Constraints for Model Calibration", MICCAI 2023.
- `near(r)`: at most `r` (5) from a voxel whose ground truth is not background, these included. They
  are the same voxels for every network, so networks may be compared there.
- a structure: the ground truth is one of some classes.

Ignored voxels are in no region. Distances are those of the centers of voxels, in voxels, or in mm
where a spacing is given. A radius in voxels is the same along all axes, so where slices are thick,
whole slices at the ends of a structure are near it; give `spacing` for a radius in mm.

A region chosen by the ground truth does not measure calibration. Probabilities are calibrated if,
among all voxels with probability 0.6 of background, 60 % are background. None of those that are
foreground is, so even the true probabilities have an error in `foreground`, and less confident ones
have a smaller one. Report such an error next to its value if the probabilities were true, which is
0 for regions chosen by the prediction.

Voxels of one image are not independent: errors and their intervals computed as if they were vary
more from image to image than the number of voxels suggests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from calib_components.errors import InputError, check_choice, check_number
from calib_components.metrics.voxels import Voxels


class RegionKind(NamedTuple):
    """What chooses the voxels of a region.

    Attributes:
        mask: Finds the voxels that are in the region, from some voxels, their labels `(voxels,)`
            and the region.
        by_prediction: Whether the prediction alone decides.
        has_closed_form: Whether nothing but the prediction and the label of a voxel itself decide.
            Then `mask` is also given labels `(N, 1)`, every class for each voxel, and returns a
            mask that broadcasts to `(N, voxels)`: which class would put which voxel into the
            region. The closed form of the error follows from it.
        radius: Default of its radius, which is at least 0; None without one.
    """

    mask: Callable[[Voxels, torch.Tensor, Region], torch.Tensor]
    by_prediction: bool = False
    has_closed_form: bool = False
    radius: float | None = None


def _structure(voxels: Voxels, label: torch.Tensor, region: Region) -> torch.Tensor:
    if region.classes[-1] >= len(voxels.values):
        raise InputError(
            f"region has class indices {list(region.classes)}, y_pred has 0 to"
            f" {len(voxels.values) - 1}."
        )
    return torch.isin(label, torch.tensor(region.classes, device=label.device))


# A new region is a new entry.
REGIONS = {
    "foreground": RegionKind(lambda voxels, label, _: label != 0, has_closed_form=True),
    "all": RegionKind(
        lambda voxels, label, _: torch.ones_like(label, dtype=torch.bool), by_prediction=True
    ),
    "predicted": RegionKind(lambda voxels, *_: voxels.predicted != 0, by_prediction=True),
    "near": RegionKind(
        lambda voxels, _, region: voxels.near(region.radius or 0.0, region.spacing), radius=5.0
    ),
}
STRUCTURE = RegionKind(_structure, has_closed_form=True)


@dataclass(frozen=True)
class Region:
    """Which voxels of a case count, see the head of `calib_components.metrics.regions`.

    `Region.parse` makes one of a name or of class indices; the constructor is needed only for a
    radius in mm.

    Args:
        kind: A name of `REGIONS`, such as "predicted", or "structure".
        radius: That of "near" (default 5), in voxels or in the unit of `spacing`.
        classes: Class indices of a "structure".
        spacing: Size of a voxel along each spatial axis, such as in mm; None measures in voxels.
            Only for "near".

    Raises:
        InputError: An argument has an unsuitable value.

    Examples:
        >>> from calib_components.metrics import Region
        >>> Region.parse("near(3)").radius
        3.0
        >>> Region.parse([1, 3]).name
        'structure_1_3'
        >>> Region("near", 3, spacing=(1.5, 1.5, 10)).by_prediction
        False
    """

    kind: str
    radius: float | None = None
    classes: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind != "structure":
            check_choice("region", self.kind, REGIONS)
        radius = self._kind.radius if self.radius is None else self.radius
        if radius is not None:
            if self._kind.radius is None:
                raise InputError(f"region {self.kind!r} takes no radius, got {radius}.")
            check_number(f"radius of region {self.kind!r}", radius, 0)
            radius = float(radius)
        classes = tuple(sorted({int(k) for k in self.classes}))
        if bool(classes) != (self.kind == "structure"):
            raise InputError(
                "region 'structure' needs class indices, and no other takes them, got"
                f" {self.kind!r}."
            )
        if self.spacing is not None and self._kind.radius is None:
            raise InputError(f"region {self.kind!r} takes no spacing, got {self.spacing}.")
        spacing = None if self.spacing is None else tuple(map(float, self.spacing))
        for name, field in (("radius", radius), ("classes", classes), ("spacing", spacing)):
            object.__setattr__(self, name, field)

    @classmethod
    def parse(cls, value: Any) -> Region:
        """Return the region that a value describes, or raise `InputError`.

        Args:
            value: A `Region`; a name, which may have a radius, such as "near(3)"; or a class index
                or a sequence of them: that structure.
        """
        if isinstance(value, Region):
            return value
        if isinstance(value, str):
            if match := re.fullmatch(r"(\w+)(?:\((\d*\.?\d+(?:e[+-]?\d+)?)\))?", value):
                return cls(match[1], None if match[2] is None else float(match[2]))
        else:
            classes = value if isinstance(value, Sequence) else [value]
            if classes and all(
                hasattr(k, "__index__") and not isinstance(k, bool) and k >= 0 for k in classes
            ):
                return cls("structure", classes=tuple(classes))
        raise InputError(
            f"region must be one of {', '.join(REGIONS)}, or class indices, got {value!r}."
        )

    @property
    def name(self) -> str:
        """Name of the region, different for each: such as "foreground", "near(3)" or
        "structure_1_2".

        A default radius is left out. `Region.parse` reads it, except for structures and a spacing,
        such as "near(3 at 1.5x1.5x10)".
        """
        if self.kind == "structure":
            return "_".join(["structure", *map(str, self.classes)])
        if self.spacing is None and self.radius == self._kind.radius:
            return self.kind
        radius, *sizes = (
            repr(value).removesuffix(".0") for value in (self.radius, *(self.spacing or ()))
        )
        grid = f" at {'x'.join(sizes)}" if sizes else ""
        return f"{self.kind}({radius}{grid})"

    @property
    def by_prediction(self) -> bool:
        """Whether the prediction alone decides which voxels count; if so, true probabilities have
        no error.
        """
        return self._kind.by_prediction

    @property
    def has_closed_form(self) -> bool:
        """Whether the prediction and label of a voxel itself decide: the error of true
        probabilities follows then.
        """
        return self._kind.has_closed_form

    def mask(self, voxels: Voxels, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return which voxels are in the region with their own or other labels, see
        `RegionKind`.
        """
        return self._kind.mask(voxels, voxels.label if label is None else label, self)

    def select(self, voxels: Voxels) -> Voxels:
        """Return those of some voxels that are in the region."""
        return voxels.select(self.mask(voxels))

    @property
    def _kind(self) -> RegionKind:
        return STRUCTURE if self.kind == "structure" else REGIONS[self.kind]


def choose_region(
    region: Any, foreground_only: bool | None, default: str | None = "foreground"
) -> Region:
    """Return the region of a metric: `region`, or what `foreground_only` says, or the default if
    both are None.

    Raises:
        InputError: The two differ, or there is neither and no default.
    """
    if foreground_only is not None:
        same = Region("foreground" if foreground_only else "all")
        if region is not None and Region.parse(region) != same:
            raise InputError(
                f"foreground_only={foreground_only} differs from region={region!r}. Give one of"
                " them."
            )
        return same
    if region is None and default is None:
        raise InputError(
            f"region is required: {', '.join(REGIONS)}, or class indices. Take 'all' to test"
            " calibration, or 'predicted', which leaves out the easy background. 'foreground' is"
            " the paper's: even true probabilities have an error there."
        )
    return Region.parse(default if region is None else region)
