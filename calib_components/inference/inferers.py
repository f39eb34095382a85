"""Inference slice by slice or patch by patch, which need not depend on how images are turned, and in bfloat16."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer

from calib_components.errors import check_count
from calib_components.inference.scratch import release, scratch
from calib_components.quality.estimates import PairwiseDice, Structures

log = logging.getLogger(__name__)


class Bfloat16Inferer(SimpleInferer):
    """Apply a network in mixed precision of bfloat16, on any device; unless `enabled`, as MONAI's `SimpleInferer` does.

    MONAI's engines use float16, on CUDA alone, whose gradients need to be scaled; those of bfloat16 do not.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:  # MONAI's own mixed precision stays as it is
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs)


class SlicesInferer(Inferer):
    """Run a 2D network over the slices of volumes; their logits may be larger than memory.

    Slices are those of the last axis. On request, the logits of a slice are the mean over its flips and quarter turns:
    square slices are seen in all eight orientations, others in the four that keep their size. For square slices the
    prediction then turns with the image, equal up to rounding, whatever the network has learnt.

    Args:
        batch_size: Number of slices that the network gets at once.
        average: Whether to average over orientations.
        structures: Structures whose segmentations in these orientations are compared.

    Attributes:
        agreement: What `PairwiseDice` of the orientations gives for the last volumes; empty if they are not compared.

    Raises:
        InputError: `batch_size` is below 1.
    """

    def __init__(self, batch_size: int, average: bool = False, structures: Structures | None = None) -> None:
        super().__init__()
        check_count("batch_size", batch_size, 1)
        self.batch_size = batch_size
        self.average = average
        self.structures: Structures = structures or {}
        self.agreement: dict[str, float] = {}

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`, on the CPU, in a file if they are many."""
        batch, _, _, _, depth = inputs.shape
        logits, pairs = None, PairwiseDice(self.structures)  # logits are (B, D, N, H, W)
        for case in range(batch):
            for start in range(0, depth, self.batch_size):
                stop = min(start + self.batch_size, depth)
                slices = torch.as_tensor(inputs[case, ..., start:stop]).movedim(-1, 0).contiguous()
                result = self._infer(slices, lambda seen: network(seen, *args, **kwargs), pairs)
                if logits is None:
                    dtype = torch.promote_types(result.dtype, torch.float32)
                    logits = scratch((batch, depth, *result.shape[1:]), dtype)
                logits[case, start:stop] = result
                release(logits)
        assert logits is not None
        self.agreement = pairs.compute() if self.average else {}
        return logits.permute(0, 2, 3, 4, 1)

    def _infer(
        self, slices: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor], pairs: PairwiseDice
    ) -> torch.Tensor:
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


class PatchesInferer(SlidingWindowInferer):
    """Run a 3D network over patches of volumes that overlap by half, weighted by a Gaussian, see MONAI's base class.

    A volume smaller than a patch is padded with 0; the first one is logged. On request, the logits of a patch are the
    mean over it and its mirror image along the first axis, left and right. Logits are on the CPU.

    Args:
        patch_size: Number of voxels of a patch along each axis.
        batch_size: Number of patches that the network gets at once.
        average: Whether to average over the mirror images.

    Raises:
        InputError: `batch_size` is below 1.
    """

    def __init__(self, patch_size: Sequence[int], batch_size: int, average: bool = False) -> None:
        check_count("batch_size", batch_size, 1)
        super().__init__(patch_size, batch_size, overlap=0.5, mode="gaussian", device=torch.device("cpu"))
        self.patch_size, self.average, self.is_logged = patch_size, average, False

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the logits `(B, N, H, W, D)` of `(B, C, H, W, D)`, on the CPU."""
        if not self.is_logged and any(map(operator.lt, inputs.shape[2:], self.patch_size)):
            self.is_logged = True
            sizes = (" x ".join(map(str, size)) for size in (inputs.shape[2:], self.patch_size))
            log.info("An image of %s voxels is smaller than a patch of %s: padded.", *sizes)
        return super().__call__(inputs, lambda patches: self._infer(patches, network), *args, **kwargs)

    def _infer(self, patches: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return (network(patches) + network(patches.flip(2)).flip(2)) / 2 if self.average else network(patches)


def volume_inferer(
    crop_size: Sequence[int], batch_size: int, average: bool = False, structures: Structures | None = None
) -> Inferer:
    """Return the inferer of what a network sees at once: `SlicesInferer`, or `PatchesInferer` for three sides."""
    if len(crop_size) == 2:
        return SlicesInferer(batch_size, average, structures)
    return PatchesInferer(crop_size, batch_size, average)
