"""Slices and patches, and averages over their orientations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

from calib_components.inference.inferers import Bfloat16Inferer, PatchesInferer, SlicesInferer, volume_inferer
from calib_components.quality import PairwiseDice

torch.manual_seed(0)
NETWORK = torch.nn.Conv2d(2, 3, 3, padding=1).double()  # sees how a slice is turned
SLICES = SliceInferer(roi_size=(16, 16), sw_batch_size=3, spatial_dim=2)
TURNS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x.flip(2),
    lambda x: x.transpose(2, 3),
    lambda x: x.rot90(1, (2, 3)),
]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_slices_are_those_of_monai(batch_size: int) -> None:
    volume = torch.rand(2, 2, 16, 16, 4, dtype=torch.float64)
    torch.testing.assert_close(SlicesInferer(batch_size)(volume, NETWORK), SLICES(volume, NETWORK))


@pytest.mark.parametrize("turn", TURNS)
def test_prediction_turns_with_a_square_slice(turn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    volume = torch.rand(1, 2, 16, 16, 4, dtype=torch.float64)
    inferer = SlicesInferer(3, average=True)
    torch.testing.assert_close(inferer(turn(volume), NETWORK), turn(inferer(volume, NETWORK)))
    assert (SLICES(turn(volume), NETWORK) - turn(SLICES(volume, NETWORK))).abs().max() > 0.01


def test_orientations_are_compared() -> None:
    volume, structures = torch.rand(1, 2, 16, 16, 4, dtype=torch.float64), {"a": [1], "b": [1, 2]}
    inferer, pairs = SlicesInferer(3, average=True, structures=structures), PairwiseDice(structures)
    inferer(volume, NETWORK)
    views = [(flip, quarter) for flip in ([], [2]) for quarter in range(4)]
    turned = [SLICES(volume.flip(flip).rot90(quarter, (2, 3)), NETWORK) for flip, quarter in views]
    back = [x.rot90(-quarter, (2, 3)).flip(flip) for x, (flip, quarter) in zip(turned, views, strict=True)]
    pairs.update(torch.cat(back).argmax(1))
    assert 0 < inferer.agreement["a"] < 1
    assert inferer.agreement == pytest.approx(pairs.compute())
    assert volume_inferer((16, 16), 3, structures=structures)(volume, NETWORK).shape == (1, 3, 16, 16, 4)


def test_other_slices_are_flipped_only() -> None:
    network_saw = []

    def network(x: torch.Tensor) -> torch.Tensor:
        network_saw.append(tuple(x.shape[2:]))
        return x

    inferer = SlicesInferer(3, average=True)
    volume = torch.rand(1, 1, 16, 24, 3)
    torch.testing.assert_close(inferer(volume, network), volume)
    assert network_saw == [(16, 24)] * 4


def test_orientations_in_half_precision_are_added_up_in_single() -> None:
    """Eight times 1000.5 is no number of half precision."""
    logits = SlicesInferer(3, average=True)(torch.zeros(1, 1, 16, 16, 2), lambda x: torch.full_like(x, 1000.5).half())
    torch.testing.assert_close(logits, torch.full((1, 1, 16, 16, 2), 1000.5))


@pytest.mark.parametrize("shape", [(16, 24, 16), (5, 9, 30)])
def test_patches_are_those_of_monai_and_mirrored_on_request(
    shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A smaller volume is padded, which is said once, and what is returned has its size."""
    caplog.set_level("INFO")
    network, volume, inferer = (
        torch.nn.Conv3d(1, 3, 3, padding=1),
        torch.rand(1, 1, *shape),
        PatchesInferer((8, 16, 16), 2),
    )
    logits = inferer(volume, network)
    inferer(volume, network)
    told = "An image of 5 x 9 x 30 voxels is smaller than a patch of 8 x 16 x 16: padded."
    assert caplog.messages == ([told] if shape[0] == 5 else [])
    assert logits.shape == (1, 3, *shape)
    torch.testing.assert_close(logits, SlidingWindowInferer((8, 16, 16), 2, 0.5, "gaussian")(volume, network))
    inferer = volume_inferer((8, 16, 16), 2, average=True)
    even = torch.rand(1, 1, 16, 9, 9)  # whose patches mirror each other
    torch.testing.assert_close(inferer(even.flip(2), network), inferer(even, network).flip(2))
    assert isinstance(volume_inferer((8, 16), 2), SlicesInferer)


def test_bfloat16_is_that_of_autocast() -> None:
    network, inputs = torch.nn.Conv2d(2, 3, 3), torch.randn(4, 2, 8, 8)
    result = Bfloat16Inferer(enabled=True)(inputs, network)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, network.bfloat16()(inputs.bfloat16()))
    assert torch.equal(Bfloat16Inferer(enabled=False)(inputs, network.float()), network(inputs))
