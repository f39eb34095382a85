"""Prepared images, changed as another scanner might change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.transforms import Compose
from monai.utils import convert_to_tensor


class Perturbation:
    """Change images by random transforms, and restore the mean and standard deviation that
    preparation gave them.

    The transforms get an image whose lowest value is 0, as that of a scanner. For a 2D network,
    slices are channels, so that all slices of a volume get the same changes, and nothing happens
    across them.

    Args:
        transforms: Transforms of arrays `(C, *S)` that keep their shape, such as MONAI's
            `RandBiasField`.
        spatial_dims: Dimensions of the network, 2 or 3.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        transforms: Sequence[Callable[..., torch.Tensor]],
        spatial_dims: int = 3,
        seed: int = 0,
    ) -> None:
        self.transforms, self.spatial_dims, self.seed = Compose(transforms), spatial_dims, seed
        self.restart()

    def restart(self) -> None:
        """Draw the same changes again from here on."""
        self.transforms.set_random_state(self.seed)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the changed image, `(C, H, W, D)`."""
        image = convert_to_tensor(image, track_meta=False)
        spatial = tuple(range(1, image.ndim))
        std, mean = torch.std_mean(image, spatial, keepdim=True)
        changed = image - image.amin(spatial, keepdim=True)
        if self.spatial_dims == 2:
            slices = changed.movedim(-1, 1)
            changed = self.transforms(slices.flatten(0, 1)).view_as(slices).movedim(1, -1)
        else:
            changed = self.transforms(changed)
        new_std, new_mean = torch.std_mean(changed, spatial, keepdim=True)
        return (changed - new_mean) / new_std.clamp_min(1e-6) * std + mean
