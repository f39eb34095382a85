"""Pictures of an evaluation: slices of cases, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import NDArray

from calib_components.errors import printable
from calib_components.metrics import CalibrationBins, dice

__all__ = ["DrawnSlice", "draw_cases", "draw_reliability", "draw_slice", "largest_slice"]

# Regions that are drawn, if they are measured: what calibration means first, the paper's last.
TITLES = {"all": "all voxels", "predicted": "predicted foreground", "foreground": "ground-truth foreground"}


@dataclass(frozen=True, eq=False)
class DrawnSlice:
    """The slice of a case that is drawn.

    Attributes:
        image: Grey values `(H, W)`; None if there is no image.
        label: Class index of the ground truth, `(H, W)`.
        prediction: Predicted class index, `(H, W)`.
        uncertainty: From 0 (certain) to 1, `(H, W)`; None if it is not known.
        dsc: Mean DSC of the structures in this slice.
        missed: Structures that only the ground truth has in this slice.
    """

    image: NDArray | None
    label: NDArray
    prediction: NDArray
    uncertainty: NDArray | None
    dsc: float
    missed: tuple[str, ...]


def largest_slice(prediction: torch.Tensor, label: torch.Tensor) -> int:
    """Return the index along the last axis of the slice with the most foreground, of two maps of classes `(*S)`."""
    foreground = label > 0 if (label > 0).any() else prediction > 0
    return int(foreground.flatten(0, -2).sum(0).argmax())


def draw_slice(
    image: torch.Tensor | None,
    prediction: torch.Tensor,
    label: torch.Tensor,
    uncertainty: torch.Tensor | None,
    masks: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> DrawnSlice:
    """Keep what is drawn of a slice.

    Args:
        image: Grey values, `(H, W)`.
        prediction: Predicted class index, `(H, W)`.
        label: Class index of the ground truth, `(H, W)`.
        uncertainty: From 0 (certain) to 1, `(H, W)`.
        masks: Of each structure, its masks in the prediction and in the ground truth, `(H, W)`.
    """

    def drawn(values: torch.Tensor) -> NDArray:
        return values.cpu().numpy().copy()  # a copy, so that the volume can go

    scores = [dice(predicted[None, None], true[None, None]) for predicted, true in masks.values()]
    found = [(name, bool(predicted.any()), bool(true.any())) for name, (predicted, true) in masks.items()]
    return DrawnSlice(
        None if image is None else drawn(image),
        drawn(label.int()),
        drawn(prediction.int()),
        None if uncertainty is None else drawn(uncertainty),
        torch.cat(scores).nanmean().item(),
        tuple(name for name, predicted, true in found if true and not predicted),
    )


def draw_cases(
    folder: Path,
    cases: Sequence[str],
    dsc: torch.Tensor,
    slice_of: Callable[[str], DrawnSlice | None],
    class_names: Sequence[str],
) -> None:
    """Draw the best, the median and the worst case by DSC `(cases,)`.

    Args:
        folder: Where the pictures are written.
        cases: Names of the cases.
        dsc: Mean DSC of each.
        slice_of: Gives the slice of a case; None for cases of other processes.
        class_names: Names of the classes in the slices, the background first.
    """
    from calib_components.figures import uncertainty_overlay  # training must not need matplotlib

    ordered = [i for i in dsc.argsort(stable=True).tolist() if not dsc[i].isnan()]
    # Two cases have no median, and one is the best alone: later names win.
    names = {len(ordered) // 2: "median", 0: "worst", len(ordered) - 1: "best"}
    for place, i in enumerate(ordered):
        if place in names and (drawn := slice_of(cases[i])) is not None:
            lines = [printable(cases[i]), f"DSC {dsc[i]:.3f} of the volume, {drawn.dsc:.3f} of this slice"]
            if drawn.missed:
                lines.append(f"missed in this slice: {', '.join(drawn.missed)}")
            maps = (drawn.image, drawn.label, drawn.prediction, drawn.uncertainty)
            figure = uncertainty_overlay(*maps, class_names=class_names, title="\n".join(lines))
            figure.savefig(folder / f"{names[place]}.png")


def draw_reliability(
    folder: Path, class_names: Sequence[str], regions: Mapping[str, Mapping[str, CalibrationBins]]
) -> None:
    """Draw reliability diagrams of the regions that have a title, and of each class over all voxels.

    Args:
        folder: Where the pictures are written.
        class_names: Names of the classes.
        regions: Pooled bins, as `calib_components.handlers.evaluation_files.read_regions` returns them.
    """
    from calib_components.figures import reliability_diagram  # training must not need matplotlib

    drawn = {title: regions[name] for name, title in TITLES.items() if name in regions}
    bins = {title: kinds["top_label"] for title, kinds in drawn.items()}
    if_true = {title: kinds["top_label_if_true"] for title, kinds in drawn.items() if "top_label_if_true" in kinds}
    if drawn:
        reliability_diagram(bins, if_true=if_true, bands=True).savefig(folder / "reliability.png")
    if "all" in regions:
        figure = reliability_diagram(regions["all"]["classwise"], class_names, bands=True)
        figure.savefig(folder / "reliability_classes.png")
