"""Inference slice by slice or patch by patch, which need not depend on how images are turned, and
in bfloat16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import convert_to_tensor

from calib_components.errors import InputError
from calib_components.posthoc.network import add_probabilities, members_of, unwrapped
from calib_components.quality.estimates import PairwiseDice, Structures
from calib_workflows.inference.crops import CROP, Crop, check_center, crop_at, cut, find_crop
from calib_workflows.inference.scratch import release, scratch

Network = Callable[..., Any]
# Logit of the background where the network is not asked, those of the other classes are 0
OUTSIDE = 20.0
AGREEMENT = "agreement"  # key of the metadata of logits, `(structures,)`


class Bfloat16Inferer(SimpleInferer):
    """Apply a network in mixed precision of bfloat16, on any device; unless `enabled`, as MONAI's
    `SimpleInferer` does.

    MONAI's engines use float16, on CUDA alone, whose gradients need to be scaled; those of bfloat16
    do not.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        bfloat16 = torch.autocast(inputs.device.type, torch.bfloat16)
        with bfloat16 if self.enabled else nullcontext():  # else MONAI's own stays as it is
            return super().__call__(inputs, network, *args, **kwargs)


class SlicesInferer(Inferer):
    """Run a 2D network over the slices of volumes; their logits may be larger than memory.

    Slices are those of the last axis. On request, the logits of a slice are the mean over its flips
    and quarter turns: square slices are seen in all eight orientations, others in the four that
    keep their size. For square slices the prediction then turns with the image, equal up to
    rounding, whatever the network has learnt.

    Args:
        batch_size: Number of slices that the network gets at once.
        average: Whether to average over orientations.
        structures: Structures whose segmentations in these orientations, and by the members of an
            ensemble, are compared; see `agreement_of`.
    """

    def __init__(
        self, batch_size: int, average: bool = False, structures: Structures | None = None
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.average = average
        self.structures: Structures = structures or {}

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`, on the CPU, in a file if they
        are many.

        Outside of a crop, the logit of the background is 20, those of the others 0. Crops and
        agreements are in the metadata, see `crop_of` and `agreement_of`.
        """
        volumes = convert_to_tensor(inputs, track_meta=False)
        members = members_of(network)
        compared = self.structures if self.average or members else {}
        crops, agreements = [], []
        logits = torch.empty(0)  # (B, D, N, H, W), of which slabs of slices lie together
        for case, volume in enumerate(volumes):
            crop, pairs = self.locate(volume, network), PairwiseDice(compared)
            for start, part in self.parts(cut(crop, volume), network, self.batch_size, pairs):
                if not len(logits):
                    shape = (len(volumes), volume.shape[-1], part.shape[1], *volume.shape[1:3])
                    logits = scratch(shape, torch.promote_types(part.dtype, torch.float32))
                slab = logits[case, start : start + len(part)]
                if crop is not None:
                    slab[:, 0], slab[:, 1:] = OUTSIDE, 0
                cut(crop, slab[..., None])[..., 0] = part
                release(logits)
            crops.append(crop)
            agreements.append([*pairs.compute().values()])
        known: dict[str, Sequence[Any]] = {CROP: crops, AGREEMENT: agreements}
        return _described(logits.permute(0, 2, 3, 4, 1), known)

    def locate(self, volume: torch.Tensor, network: Network) -> Crop | None:
        """Return where the network looks in the slices of `(C, H, W, D)`; None for all of them."""
        return None

    def parts(
        self, volume: torch.Tensor, network: Network, batch_size: int, pairs: PairwiseDice
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Give the logits `(n, N, H, W)` of a few slices of `(C, H, W, D)` at a time, and the first
        one's number.
        """
        for start in range(0, volume.shape[-1], batch_size):
            slices = volume[..., start : start + batch_size].movedim(-1, 0).contiguous()
            yield start, self._infer(slices, network, pairs)

    def _infer(self, slices: torch.Tensor, network: Network, pairs: PairwiseDice) -> torch.Tensor:
        views: Any = [([], 0)]
        if self.average:
            is_square = slices.shape[2] == slices.shape[3]
            views = itertools.product(([], [2]), range(4) if is_square else (0, 2))
        labels = []
        total: Any = 0
        for flip, quarter in views:
            seen = slices.flip(flip).rot90(quarter, (2, 3)).contiguous()
            logits, segmented = run_members(network, lambda part, seen=seen: part(seen))  # type: ignore[misc]
            labels.append(segmented.rot90(-quarter, (2, 3)).flip(flip))
            logits = logits.rot90(-quarter, (2, 3)).flip(flip)
            total = total + logits.to(torch.promote_types(logits.dtype, torch.float32))
        pairs.update(torch.cat(labels))
        return total / len(labels)


class CropsInferer(SlicesInferer):
    """Run a 2D network that was trained on crops over slices: find the structures, then segment the
    crop around them.

    A first pass over the whole slices finds where most of the foreground lies, see `find_crop`; the
    network sees the crop around it in a second one. If the first finds nothing, the crop is the
    centre of the slices.

    Args:
        size: Rows and columns of the crop, at most those of a slice.
        batch_size: Number of crops that the network gets at once.
        center: Centre of the crop as shares of the sides of a slice, in place of a first pass.
        average, structures: See `SlicesInferer`.

    Raises:
        InputError: `center` is not two shares, or `batch_size` is below 1; when called: slices are
            smaller than the crop.
    """

    def __init__(
        self,
        size: Sequence[int],
        batch_size: int,
        center: Sequence[float] | None = None,
        average: bool = False,
        structures: Structures | None = None,
    ) -> None:
        super().__init__(batch_size, average, structures)
        check_center(center)
        self.size, self.center = size, center

    def locate(self, volume: torch.Tensor, network: Network) -> Crop:
        sides = volume.shape[1:3]
        if self.center is not None:
            return crop_at(self.center, self.size, sides)
        # Whole slices are larger: fewer at once need no more memory, and take less time on a CPU.
        batch_size = max(1, self.batch_size // 4)
        foreground = torch.zeros(*sides, dtype=torch.int64)
        for _, logits in self.parts(volume, network, batch_size, PairwiseDice({})):
            foreground += (logits.argmax(1) > 0).sum(0).cpu()
        crop = find_crop(foreground, self.size)
        if crop is None:
            return crop_at((0.5, 0.5), self.size, sides)._replace(percent_found=0)
        return crop


def run_members(
    network: Network, run: Callable[[Network], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a network, or each member of the ensemble in it.

    Args:
        network: The network, scripted or not.
        run: Returns the logits `(B, N, *S)` of a network.

    Returns:
        The logits of the network, and the class indices that each member gives, `(M, B, *S)`.
    """
    members = members_of(network)
    if not members:
        logits = run(network)
        return logits, logits.argmax(1)[None]
    total, labels = torch.tensor(-math.inf), []  # logarithm of the sum of probabilities
    for member in members:
        logits = run(member)
        labels.append(logits.argmax(1).to(torch.int16))
        total = add_probabilities(total, logits)
    mean = total - math.log(len(members))
    calibrator = getattr(unwrapped(cast(Any, network)), "calibrator", None)
    return mean if calibrator is None else calibrator(mean), torch.stack(labels)


def _described(logits: torch.Tensor, known: Mapping[str, Sequence[Any]]) -> torch.Tensor:
    """Return logits of a batch with what is known of its cases, if there is any, as metadata."""
    meta = {key: torch.tensor(values) for key, values in known.items() if values[0]}
    if not meta:
        return logits
    described = MetaTensor(logits, meta=meta)
    described.is_batch = True
    return described


def agreement_of(logits: torch.Tensor, structures: Structures) -> dict[str, float]:
    """Return what `PairwiseDice` of orientations and members gives for the structures of an
    inferer, from the metadata of its logits `(N, H, W, D)`; empty if they were not compared.
    """
    values = logits.meta.get(AGREEMENT) if isinstance(logits, MetaTensor) else None
    return {} if values is None else dict(zip(structures, values.tolist(), strict=True))


class PatchesInferer(SlidingWindowInferer):
    """Run a 3D network over patches of volumes that overlap by half, weighted by a Gaussian, see
    MONAI's base class.

    A volume smaller than a patch is padded with 0. On request, the logits of a patch are the mean
    over it and its mirror image along the first axis, left and right. Each member of an ensemble
    runs over the whole volume. Logits are on the CPU.

    Args:
        patch_size: Number of voxels of a patch along each axis.
        batch_size: Number of patches that the network gets at once.
        average: Whether to average over the mirror images.
        structures: Structures whose segmentations by the members of an ensemble are compared; see
            `agreement_of`.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        batch_size: int,
        average: bool = False,
        structures: Structures | None = None,
    ) -> None:
        super().__init__(
            patch_size, batch_size, overlap=0.5, mode="gaussian", device=torch.device("cpu")
        )
        self.average = average
        self.structures: Structures = structures or {}

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`, on the CPU."""
        infer = super().__call__

        def run(part: Network) -> Any:
            return infer(inputs, lambda patches: self._infer(patches, part), *args, **kwargs)

        if not members_of(network):
            return run(network)
        logits, labels = run_members(network, run)
        agreements = []
        for case in labels.unbind(1):
            pairs = PairwiseDice(self.structures)
            pairs.update(case)
            agreements.append([*pairs.compute().values()])
        return _described(logits, {AGREEMENT: agreements})

    def _infer(self, patches: torch.Tensor, network: Network) -> torch.Tensor:
        if not self.average:
            return network(patches)
        return (network(patches) + network(patches.flip(2)).flip(2)) / 2


def volume_inferer(
    crop_size: Sequence[int],
    batch_size: int,
    average: bool = False,
    structures: Structures | None = None,
    image_size: Sequence[int] | None = None,
    crop_center: Sequence[float] | None = None,
) -> Inferer:
    """Return the inferer for what a network sees at once.

    Args:
        crop_size: Rows and columns of a slice, for `SlicesInferer`, or of a smaller crop, for
            `CropsInferer`; or the three sides of a patch, for `PatchesInferer`.
        batch_size, average, structures: See these.
        image_size: Rows and columns of a slice.
        crop_center: Where the crop lies, see `CropsInferer`; None to find it.
    """
    is_crop = len(crop_size) == 2 and image_size is not None and list(crop_size) != list(image_size)
    if crop_center is not None and not is_crop:
        raise InputError("crop_center: this network sees no crop of slices. Leave the option out.")
    if len(crop_size) == 3:
        return PatchesInferer(crop_size, batch_size, average, structures)
    if is_crop:
        return CropsInferer(crop_size, batch_size, crop_center, average, structures)
    return SlicesInferer(batch_size, average, structures)
