"""Images that are changed as another scanner might change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from calib_workflows.data import Perturbation

OVERLAY = Path(__file__).resolve().parents[3] / "bundles" / "common" / "perturb.yaml"


def perturbation(spatial_dims: int, **changes: Any) -> Perturbation:
    """Those of the bundles."""
    config = yaml.safe_load(OVERLAY.read_text())
    interpolation = "bilinear" if spatial_dims == 2 else "trilinear"
    parser = ConfigParser(
        {
            **config,
            "seed": 0,
            "spatial_dims": spatial_dims,
            "interpolation": interpolation,
            **changes,
        }
    )
    return parser.get_parsed_content("calibration::perturbation")


def scan(channels: int = 1) -> torch.Tensor:
    """Smooth noise, normalized."""
    image = torch.randn(channels, 26, 30, 12, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.avg_pool3d(image, 3, 1, 1)
    return (image - image.mean()) / image.std()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_strength_is_that_of_the_change(spatial_dims: int) -> None:
    changes = []
    for strength in (0.0, 0.5, 2.0):
        change = perturbation(spatial_dims, strength=strength)
        changes.append(
            torch.stack([(change(scan()) - scan()).abs().mean() for _ in range(8)]).mean().item()
        )
    assert changes[0] == pytest.approx(0, abs=1e-5)
    assert 0.02 < changes[1] < changes[2] / 1.5


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_normalized_images_stay_so_and_draws_can_be_repeated(
    spatial_dims: int, channels: int
) -> None:
    change, image = perturbation(spatial_dims), MetaTensor(3 * scan(channels) + 7)
    first = [change(image) for _ in range(3)]
    for found in first:
        assert found.shape == image.shape
        for channel, before in zip(found, image, strict=True):
            torch.testing.assert_close(
                torch.stack(torch.std_mean(channel)), torch.stack(torch.std_mean(before))
            )
    assert not torch.allclose(first[0], first[1])
    change.restart()
    for found in first:
        torch.testing.assert_close(change(image), found)


def test_of_a_2d_network_nothing_happens_across_slices() -> None:
    seen = []
    change = Perturbation(
        [lambda image: seen.append(image.shape) or image[:, ::1] * 2], spatial_dims=2
    )
    image = scan(2)
    torch.testing.assert_close(change(image), image)  # a factor is undone
    assert seen == [(24, 26, 30)]
