"""Slices and patches, and averages over their orientations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.data import decollate_batch
from monai.inferers import SliceInferer, SlidingWindowInferer

from calib_components.errors import InputError
from calib_components.posthoc import Ensemble, TemperatureScaled
from calib_components.quality import PairwiseDice
from calib_workflows.inference.crops import crop_of
from calib_workflows.inference.inferers import (
    Bfloat16Inferer,
    PatchesInferer,
    SlicesInferer,
    agreement_of,
    volume_inferer,
)

torch.manual_seed(0)
NETWORK = torch.nn.Conv2d(2, 3, 3, padding=1).double()  # sees how a slice is turned
SLICES = SliceInferer(roi_size=(16, 16), sw_batch_size=3, spatial_dim=2)
TURNS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x.flip(2),
    lambda x: x.transpose(2, 3),
    lambda x: x.rot90(1, (2, 3)),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    """Whatever ran before: crops may tie."""
    torch.manual_seed(0)


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
    pairs = PairwiseDice(structures)
    logits = SlicesInferer(3, average=True, structures=structures)(volume, NETWORK)
    views = [(flip, quarter) for flip in ([], [2]) for quarter in range(4)]
    turned = [SLICES(volume.flip(flip).rot90(quarter, (2, 3)), NETWORK) for flip, quarter in views]
    back = [
        x.rot90(-quarter, (2, 3)).flip(flip)
        for x, (flip, quarter) in zip(turned, views, strict=True)
    ]
    pairs.update(torch.cat(back).argmax(1))
    (case,) = decollate_batch(logits)
    agreement = agreement_of(case, structures)
    assert 0 < agreement["a"] < 1
    assert agreement == pytest.approx(pairs.compute())
    single = volume_inferer((16, 16), 3, structures=structures)(volume, NETWORK)
    assert agreement_of(single[0], structures) == {}


def test_each_case_has_its_own_agreement_and_crop() -> None:
    volumes, structures = torch.rand(2, 2, 48, 48, 3, dtype=torch.float64), {"a": [1]}
    inferer = volume_inferer((16, 16), 3, average=True, structures=structures, image_size=(48, 48))
    cases = decollate_batch(inferer(volumes, NETWORK))
    for volume, case in zip(volumes, cases, strict=True):
        (alone,) = decollate_batch(inferer(volume[None], NETWORK))
        assert 0 < agreement_of(case, structures)["a"] < 1
        assert agreement_of(case, structures) == agreement_of(alone, structures)
        assert crop_of(case) == crop_of(alone)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_members_of_an_ensemble_are_compared(dims: int, average: bool) -> None:
    """The logits are those of the ensemble, where patches do not overlap."""
    convolution = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
    members = [convolution(2, 3, 3, padding=1).double() for _ in range(3)]
    ensemble = TemperatureScaled(Ensemble(members), 2.0).eval()
    volume, structures = torch.rand(1, 2, 16, 16, 4, dtype=torch.float64), {"a": [1], "b": [1, 2]}
    size = (16, 16, 4)[:dims]
    inferer = volume_inferer(size, 3, average, structures)
    plain = volume_inferer(size, 3, average)
    by_member = torch.cat([plain(volume, member) for member in members])
    for network in (ensemble, torch.jit.script(ensemble)):
        logits = inferer(volume, network)
        (case,) = decollate_batch(logits)
        agreement = agreement_of(case, structures)
        assert 0 < agreement["a"] < 1
        if not average:
            torch.testing.assert_close(logits.as_tensor(), plain(volume, ensemble))
            p = by_member.softmax(1).mean(0, keepdim=True)
            torch.testing.assert_close(logits.softmax(1).as_tensor(), (p.log() / 2).softmax(1))
        if not average or dims == 3:
            pairs = PairwiseDice(structures)
            pairs.update(by_member.argmax(1))
            assert agreement == pytest.approx(pairs.compute())


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
    logits = SlicesInferer(3, average=True)(
        torch.zeros(1, 1, 16, 16, 2), lambda x: torch.full_like(x, 1000.5).half()
    )
    torch.testing.assert_close(logits, torch.full((1, 1, 16, 16, 2), 1000.5))


def bright(slices: torch.Tensor) -> torch.Tensor:
    """A network that finds what is bright, and is less sure of it if it sees more."""
    return torch.stack([torch.zeros_like(slices[:, 0]), slices[:, 0] * 100 / slices[0].numel()], 1)


class TestCrops:
    SIZE = (32, 48)

    def make_volume(self, row: int, column: int, side: int = 12) -> torch.Tensor:
        volume = torch.full((1, 1, 100, 90, 3), -1.0)
        volume[..., row : row + side, column : column + side, :] = 1.0
        return volume

    def infer(self, volume: torch.Tensor, network: Any = bright, **options: Any) -> Any:
        return volume_inferer(self.SIZE, 4, image_size=volume.shape[2:4], **options)(
            volume, network
        )

    def test_a_shifted_volume_gives_the_shifted_logits(self) -> None:
        logits = self.infer(self.make_volume(50, 40))
        shifted = self.infer(self.make_volume(30, 60))
        assert torch.equal(logits.roll((-20, 20), (2, 3)), shifted)
        assert (logits.argmax(1) > 0).sum() == 12 * 12 * 3
        crop = crop_of(logits[0])
        assert crop == (40, 72, 22, 70, 100)
        outside = torch.ones(100, 90, dtype=torch.bool)
        outside[40:72, 22:70] = False
        expected = torch.tensor([20.0, 0.0])[:, None, None].expand(2, int(outside.sum()), 3)
        assert torch.equal(logits.as_tensor()[0][:, outside], expected)
        assert torch.equal(
            crop.cut(logits.as_tensor()), bright_volume(crop.cut(self.make_volume(50, 40)))
        )

    def test_where_nothing_is_found_the_centre_is_segmented(self) -> None:
        logits = self.infer(self.make_volume(50, 40, 0))
        assert crop_of(logits[0]) == (34, 66, 21, 69, 0)
        assert (logits.argmax(1) == 0).all()

    def test_a_given_centre_needs_one_pass(self) -> None:
        sizes = []

        def network(slices: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(slices.shape[2:]))
            return bright(slices)

        logits = self.infer(self.make_volume(50, 40), network, crop_center=(0.5, 0.5))
        assert crop_of(logits[0]) == (34, 66, 21, 69, 100)
        assert set(sizes) == {self.SIZE}
        sizes.clear()
        self.infer(self.make_volume(50, 40), network)
        assert set(sizes) == {(100, 90), self.SIZE}

    @pytest.mark.parametrize(
        "options", [{"crop_size": (8, 16, 16)}, {"crop_size": (16, 16), "image_size": (16, 16)}]
    )
    def test_a_centre_without_a_crop_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="crop_center: this network sees no crop of slices"):
            volume_inferer(batch_size=2, crop_center=(0.5, 0.5), **options)


def bright_volume(volume: torch.Tensor) -> torch.Tensor:
    return SlicesInferer(4)(volume, bright)


@pytest.mark.parametrize("shape", [(16, 24, 16), (5, 9, 30)])
def test_patches_are_those_of_monai_and_mirrored_on_request(shape: tuple[int, ...]) -> None:
    """A smaller volume is padded, and what is returned has its size."""
    network, volume, inferer = (
        torch.nn.Conv3d(1, 3, 3, padding=1),
        torch.rand(1, 1, *shape),
        PatchesInferer((8, 16, 16), 2),
    )
    logits = inferer(volume, network)
    assert logits.shape == (1, 3, *shape)
    torch.testing.assert_close(
        logits, SlidingWindowInferer((8, 16, 16), 2, 0.5, "gaussian")(volume, network)
    )
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
