"""Inference slice by slice or patch by patch, which need not depend on how images are turned, and
in bfloat16.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import convert_to_tensor

from calib_components.errors import InputError, check_count
from calib_components.inference.crops import CROP, Crop, check_center, crop_at, find_crop
from calib_components.inference.scratch import release, scratch
from calib_components.quality.estimates import PairwiseDice, Structures

log = logging.getLogger(__name__)
Network = Callable[[torch.Tensor], torch.Tensor]
# Logit of the background where the network is not asked, those of the other classes are 0
OUTSIDE = 20.0


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
        if not self.enabled:  # MONAI's own mixed precision stays as it is
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, torch.bfloat16):
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
        structures: Structures whose segmentations in these orientations are compared.

    Attributes:
        agreement: What `PairwiseDice` of the orientations gives for the last volumes; empty if they
            are not compared.

    Raises:
        InputError: `batch_size` is below 1.
    """

    def __init__(
        self, batch_size: int, average: bool = False, structures: Structures | None = None
    ) -> None:
        super().__init__()
        check_count("batch_size", batch_size, 1)
        self.batch_size = batch_size
        self.average = average
        self.structures: Structures = structures or {}
        self.agreement: dict[str, float] = {}

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`, on the CPU, in a file if they
        are many.
        """
        logits, pairs = None, PairwiseDice(self.structures)  # logits are (B, D, N, H, W)
        for case, volume in enumerate(inputs):
            parts = self.parts(
                volume, lambda seen: network(seen, *args, **kwargs), self.batch_size, pairs
            )
            for start, part in parts:
                if logits is None:
                    dtype = torch.promote_types(part.dtype, torch.float32)
                    logits = scratch((len(inputs), volume.shape[-1], *part.shape[1:]), dtype)
                logits[case, start : start + len(part)] = part
                release(logits)
        assert logits is not None
        self.agreement = pairs.compute() if self.average else {}
        return logits.permute(0, 2, 3, 4, 1)

    def parts(
        self, volume: torch.Tensor, network: Network, batch_size: int, pairs: PairwiseDice
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Give the logits `(n, N, H, W)` of a few slices of `(C, H, W, D)` at a time, and the first
        one's number.
        """
        for start in range(0, volume.shape[-1], batch_size):
            slices = (
                torch.as_tensor(volume[..., start : start + batch_size]).movedim(-1, 0).contiguous()
            )
            yield start, self._infer(slices, network, pairs)

    def _infer(self, slices: torch.Tensor, network: Network, pairs: PairwiseDice) -> torch.Tensor:
        if not self.average:
            return network(slices)
        turns, labels = range(4) if slices.shape[2] == slices.shape[3] else (0, 2), []
        total: Any = 0
        for flip in ([], [2]):
            for quarter in turns:
                seen = slices.flip(flip).rot90(quarter, (2, 3)).contiguous()
                logits = network(seen).rot90(-quarter, (2, 3)).flip(flip)
                labels.append(logits.argmax(1))
                total = total + logits.to(torch.promote_types(logits.dtype, torch.float32))
        pairs.update(torch.stack(labels))
        return total / (2 * len(turns))


class CropsInferer(Inferer):
    """Run a 2D network that was trained on crops over slices: find the structures, then segment the
    crop around them.

    A first pass over the whole slices finds where most of the foreground lies, see `find_crop`; the
    network sees the crop around it in a second one. If the first finds nothing, the crop is the
    centre of the slices.

    Args:
        slices_inferer: Runs the network over slices.
        size: Rows and columns of the crop, at most those of a slice.
        center: Centre of the crop as shares of the sides of a slice, in place of a first pass.

    Raises:
        InputError: `center` is not two shares; when called: slices are smaller than the crop.
    """

    def __init__(
        self,
        slices_inferer: SlicesInferer,
        size: Sequence[int],
        center: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_center(center)
        self.slices_inferer, self.size, self.center = slices_inferer, size, center

    @property
    def agreement(self) -> dict[str, float]:
        """That of `SlicesInferer`, in the crop of the last volume."""
        return self.slices_inferer.agreement

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`, on the CPU, in a file if they
        are many.

        Outside of the crop, the logit of the background is 20, those of the others 0. The metadata
        have the crops.
        """
        volumes = convert_to_tensor(inputs, track_meta=False)
        # Logits are (B, D, H, W, N), of which slabs of slices lie together
        crops, logits = [], None
        for case, volume in enumerate(volumes):
            crop = self._locate(volume, lambda seen: network(seen, *args, **kwargs))
            seen = self.slices_inferer(crop.cut(volume)[None], network, *args, **kwargs)[0].movedim(
                -1, 0
            )
            if logits is None:
                logits = scratch(
                    (len(volumes), len(seen), seen.shape[1], *volume.shape[1:3]), seen.dtype
                )
            for number, part in enumerate(seen):
                logits[case, number, 0], logits[case, number, 1:] = OUTSIDE, 0
                crop.cut(logits[case, number, ..., None])[..., 0] = part
                release(logits)
            crops.append(crop)
        assert logits is not None
        result = MetaTensor(logits.permute(0, 2, 3, 4, 1), meta={CROP: torch.tensor(crops)})
        result.is_batch = True
        return result

    def _locate(self, volume: torch.Tensor, network: Network) -> Crop:
        """Return where the network looks in the slices of `(C, H, W, D)`."""
        sides = volume.shape[1:3]
        if self.center is not None:
            return crop_at(self.center, self.size, sides)
        # Whole slices are larger: fewer at once need no more memory, and take less time on a CPU.
        batch_size = max(1, self.slices_inferer.batch_size // 4)
        foreground = torch.zeros(*sides, dtype=torch.int64)
        for _, logits in self.slices_inferer.parts(volume, network, batch_size, PairwiseDice({})):
            foreground += (logits.argmax(1) > 0).sum(0).cpu()
        return find_crop(foreground, self.size) or crop_at((0.5, 0.5), self.size, sides)._replace(
            is_found=False
        )


class PatchesInferer(SlidingWindowInferer):
    """Run a 3D network over patches of volumes that overlap by half, weighted by a Gaussian, see
    MONAI's base class.

    A volume smaller than a patch is padded with 0; the first one is logged. On request, the logits
    of a patch are the mean over it and its mirror image along the first axis, left and right.
    Logits are on the CPU.

    Args:
        patch_size: Number of voxels of a patch along each axis.
        batch_size: Number of patches that the network gets at once.
        average: Whether to average over the mirror images.

    Raises:
        InputError: `batch_size` is below 1.
    """

    def __init__(self, patch_size: Sequence[int], batch_size: int, average: bool = False) -> None:
        check_count("batch_size", batch_size, 1)
        super().__init__(
            patch_size, batch_size, overlap=0.5, mode="gaussian", device=torch.device("cpu")
        )
        self.patch_size, self.average, self.is_logged = patch_size, average, False

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`, on the CPU."""
        if not self.is_logged and any(map(operator.lt, inputs.shape[2:], self.patch_size)):
            self.is_logged = True
            sizes = (" x ".join(map(str, size)) for size in (inputs.shape[2:], self.patch_size))
            log.info("An image of %s voxels is smaller than a patch of %s: padded.", *sizes)
        return super().__call__(
            inputs, lambda patches: self._infer(patches, network), *args, **kwargs
        )

    def _infer(
        self, patches: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        return (
            (network(patches) + network(patches.flip(2)).flip(2)) / 2
            if self.average
            else network(patches)
        )


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
        raise InputError("crop_center: the network sees the whole image. Leave the option out.")
    if len(crop_size) == 3:
        return PatchesInferer(crop_size, batch_size, average)
    slices = SlicesInferer(batch_size, average, structures)
    return CropsInferer(slices, crop_size, crop_center) if is_crop else slices
