"""Volumes are read with checks, and slices come last wherever a file has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad, ScaleIntensityRange

from calib_components.errors import InputError
from calib_workflows.data.transforms import (
    CheckHounsfieldd,
    CheckVolumed,
    ClassIndicesd,
    InSlabsd,
    LoadVolumed,
    NamedCompose,
    SlicesLastd,
    check_image,
    check_labels,
    slice_axis,
)
from tests.helpers import save


@pytest.mark.parametrize(
    ("spacing", "shape", "axis"),
    [
        ([1.5, 1.5, 10], [200, 220, 9], 2),
        ([10, 1.5, 1.5], [9, 200, 220], 0),
        ([1, 1, 1.2], [20, 30, 300], 2),  # the spacing decides, not the length
        ([1, 1, 1], [240, 155, 240], 1),  # equal: the shortest
        ([1, 1, 1], [64, 64, 64], 2),  # still equal: the last
        ([1.0004, 1, 1], [90, 90, 60], 2),  # equal up to rounding
        ([1.002, 1, 1], [90, 90, 60], 0),
        ([1.5, 1.5, 1], [200, 220, 1], 2),  # one slice, whose header does not know its thickness
    ],
)
def test_slices_lie_along_the_largest_spacing_then_the_fewest_voxels(
    spacing: list[float], shape: list[int], axis: int
) -> None:
    assert slice_axis(spacing, shape) == axis


OBLIQUE = np.array([[0.9, -0.8, 4.0, 10], [1.1, 0.7, 3.0, -20], [-0.4, 0.9, 8.0, 5], [0, 0, 0, 1]])


def volume(array: torch.Tensor, affine: np.ndarray = OBLIQUE) -> MetaTensor:
    return MetaTensor(array, affine=torch.from_numpy(affine))


def at_axis(axis: int) -> MetaTensor:
    """The volume 0, 1, 2, ... of shape (2, 5, 6, 3) with its slices along another axis."""
    order = [0, 1]
    order.insert(axis, 2)
    array = torch.arange(2 * 5 * 6 * 3.0).view(2, 5, 6, 3).permute(0, *(i + 1 for i in order))
    return volume(array, OBLIQUE[:, [*order, 3]])


class TestSlicesLastd:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_the_position_of_the_slices_in_the_file_changes_nothing(self, axis: int) -> None:
        stored = at_axis(axis)
        moved = SlicesLastd("image")({"image": stored})
        assert torch.equal(moved["image"].as_tensor(), torch.arange(180.0).view(2, 5, 6, 3))
        # The same order in memory, so that rounding is the same, too
        assert moved["image"].stride() == (90, 18, 3, 1)
        np.testing.assert_array_equal(moved["image"].affine, OBLIQUE)

    def test_the_first_key_decides_for_all_unless_the_axis_is_given(self) -> None:
        stored = at_axis(0)
        label = volume(stored.as_tensor()[:1], np.diag([1, 1, 9, 1.0]))  # a header of its own
        item = SlicesLastd(["image", "label"])({"image": stored, "label": label})
        assert item["image"].shape[1:] == item["label"].shape[1:] == (5, 6, 3)
        moved = SlicesLastd("image", slice_axis=1)({"image": stored})["image"]
        assert torch.equal(moved.as_tensor(), stored.as_tensor().permute(0, 1, 3, 2))

    def test_an_axis_with_more_voxels_than_another_is_warned_of(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Ten slices, whose distance the header has lost."""
        stack, right = (
            volume(torch.rand(1, 12, 11, 10), np.diag([1.4, 1.4, side, 1])) for side in (1, 10)
        )
        transform = SlicesLastd("image")
        assert transform({"image": right})["image"].shape == (1, 12, 11, 10)
        assert caplog.messages == []
        assert transform({"image": stack})["image"].shape == (1, 12, 10, 11)
        (line,) = caplog.messages
        assert "along axis 1 of the file" in line


class TestLoadVolumed:
    @pytest.mark.parametrize("codes", [[0, 1, 2, 4], range(16)], ids=str)
    def test_label_map_among_the_images(self, codes: Sequence[int], tmp_path: Path) -> None:
        array = np.random.default_rng(0).choice(list(codes), (9, 8, 7)).astype(np.int16)
        with pytest.raises(
            InputError, match=r"scan_mask\.nii\.gz: channel 0 looks like a label map"
        ):
            LoadVolumed("image")({"image": str(save(tmp_path / "scan_mask.nii.gz", array))})
        for image in (array * 0.3, np.arange(17 * 8 * 7).reshape(17, 8, 7).astype(np.int16) // 56):
            LoadVolumed("image")({"image": str(save(tmp_path / "image.nii.gz", image))})

    def test_nan_is_0_on_request(self, tmp_path: Path) -> None:
        array = np.random.default_rng(0).normal(size=(8, 8, 35)).astype(np.float32)
        array[0, :, 20:] = np.nan
        file = str(save(tmp_path / "image.nii", array))
        with pytest.raises(
            InputError, match=r"image\.nii: 120 values are NaN .* --nan_to_num true"
        ):
            LoadVolumed("image")({"image": file})
        image = LoadVolumed("image", nan_to_num=True)({"image": file})["image"]
        np.testing.assert_array_equal(image[0], np.nan_to_num(array))
        array[1, 1, 1] = np.inf
        with pytest.raises(InputError, match=r"1 values are NaN or infinite\.$"):
            LoadVolumed("image", nan_to_num=True)(
                {"image": str(save(tmp_path / "image.nii", array))}
            )

    def test_channels_of_one_file_and_of_several(self, tmp_path: Path) -> None:
        array = np.arange(48, dtype=np.int16).reshape(4, 3, 2, 2)
        whole = save(tmp_path / "a.nii.gz", array)
        parts = [str(save(tmp_path / f"a_{i}.nii", array[..., i])) for i in range(2)]
        for files in (str(whole), [str(whole)], parts):
            image = LoadVolumed("image")({"image": files})["image"]
            assert image.dtype == torch.float32
            np.testing.assert_array_equal(image, np.moveaxis(array, -1, 0))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (math.nan, "1 values are NaN"),
            (1e39, "1 values are NaN or infinite"),
            (0, "no contrast"),
        ],
    )
    def test_bad_channel_of_several_is_named(
        self, value: float, message: str, tmp_path: Path
    ) -> None:
        arrays = np.random.default_rng(0).normal(size=(3, 12, 12, 12))
        arrays[1] = 0
        arrays[1, 0, 0, 0] = value  # 1e39 is infinite as float32
        files = [str(save(tmp_path / f"{i}.nii", array)) for i, array in enumerate(arrays)]
        with pytest.raises(InputError, match=rf"1\.nii: .*{message}"):
            LoadVolumed("image")({"image": files})


class TestClassIndices:
    """The codes of BraTS have a gap: a 3 is none of the classes."""

    def test_codes_become_indices(self) -> None:
        label = torch.tensor([[[[0.0, 1, 2, 4]]]])
        assert ClassIndicesd("label", [0, 1, 2, 4])({"label": label})[
            "label"
        ].flatten().tolist() == [0, 1, 2, 3]

    def test_codes_with_a_scale_factor_are_whole(self) -> None:
        # Automatic scaling of int16 and of bytes
        label = torch.tensor([[[[0.0, 1.000015, 0.99999994, 2.00784, 4]]]])
        assert ClassIndicesd("label", [0, 1, 2, 4])({"label": label})[
            "label"
        ].flatten().tolist() == [0, 1, 1, 2, 3]

    @pytest.mark.parametrize("value", [3, 0.5, 1.02, math.nan])
    def test_other_code(self, value: float) -> None:
        label = MetaTensor(torch.tensor([[[[0.0, value]]]]), meta={"filename_or_obj": "a_gt.nii"})
        with pytest.raises(
            InputError, match=r"a_gt\.nii: label values .* are none of \[0, 1, 2, 4\]"
        ):
            ClassIndicesd("label", [0, 1, 2, 4])({"label": label})
        with pytest.raises(InputError, match=r"a_gt\.nii: .* are none of the class indices 0 to 2"):
            check_labels(label, range(3), "a_gt.nii")


def body(shape: tuple[int, int, int] = (40, 40, 24)) -> np.ndarray:
    """Air, and in it fat, soft tissue and bone."""
    rng = np.random.default_rng(0)
    part = np.select(
        [np.indices(shape)[0] >= shape[0] * share for share in (0.9, 0.5, 0.3)],
        [600, 50, -100],
        -1000,
    )
    return part + rng.normal(0, 15, shape)


GOOD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda v: v,
    "clipped to the window": lambda v: v.clip(-125, 275),
    "padded": lambda v: np.pad(v, 6, constant_values=-3024),
    "metal": lambda v: np.where(np.indices(v.shape).sum(0) < 9, 30000, v),
    "without air": lambda v: v[12:],
    "outside set to 0": lambda v: np.where(v < -500, 0, v),
    "outside set to air, no fat": lambda v: np.where(v < 0, -1024, v.clip(0, 90)),
}
BAD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "without intercept": lambda v: (v + 1024).clip(0, 4095),
    "intercept twice": lambda v: v - 1024,
    "without intercept, clipped to the window": lambda v: (v + 1024).clip(-125, 275),
    "8 bits": lambda v: ((v.clip(-160, 240) + 160) / 400 * 255).round(),
    "MR": lambda v: np.random.default_rng(1).rayleigh(300, v.shape) - 5,
}


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD.keys())
def test_hounsfield_units(change: Callable[[np.ndarray], np.ndarray]) -> None:
    item = {"image": torch.from_numpy(change(body())[None]).float()}
    assert CheckHounsfieldd("image")(item)["image"] is item["image"]


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_values_that_are_no_hounsfield_units(change: Callable[[np.ndarray], np.ndarray]) -> None:
    channels = np.stack([body(), np.resize(change(body()), body().shape)])
    scan = MetaTensor(torch.from_numpy(channels).float(), meta={"filename_or_obj": "scan.nii.gz"})
    with pytest.raises(
        InputError, match=r"^scan\.nii\.gz: .* not Hounsfield units .*--ignore_intensity true"
    ):
        CheckHounsfieldd("image")({"image": scan})


def test_slabs_equal_the_transform_of_the_whole_volume() -> None:
    image = volume(300 * torch.randn(2, 6, 5, 35))
    transform = ScaleIntensityRange(-160, 240, 0, 1, clip=True)
    expected = transform(image.clone())
    item = InSlabsd("image", transform)({"image": image})
    assert torch.equal(item["image"], expected)
    assert item["image"] is image  # with its affine and MONAI's record of what was done


def test_contrast() -> None:
    noise = torch.rand(2, 20, 20, 20)
    for image in (noise, noise * 1e-30, noise[:1] - 1e4):
        assert check_image(image) is image
    scan = MetaTensor(noise, meta={"filename_or_obj": "scan.nii.gz"})
    scan[1] = -1000
    with pytest.raises(
        InputError, match=r"scan\.nii\.gz: channel 1 has no contrast: all values are -1000"
    ):
        check_image(scan)


@pytest.mark.parametrize(
    ("size", "warned"), [(0.39, True), (0.41, False), (5.9, False), (6.1, True)]
)
def test_pixels_unlike_those_of_the_training_are_warned_of(
    size: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    image = MetaTensor(
        torch.rand(1, 4, 4, 3),
        affine=torch.tensor([size, 1.5, 20, 1]).diag(),
        meta={"filename_or_obj": "a.nii"},
    )
    CheckVolumed("image", [1.2, 2.0])({"image": image})
    assert ["a.nii: pixels of" in message for message in caplog.messages] == [True] * warned


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ValueError("two\nlines"),
            InputError,
            "^scan.nii.gz: image cannot be preprocessed: two lines$",
        ),
        (InputError("scan.nii.gz: no contrast"), InputError, "^scan.nii.gz: no contrast$"),
        (TypeError("a bug"), RuntimeError, "applying transform"),  # by MONAI
    ],
)
def test_file_is_named_if_a_transform_refuses_it(
    error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise error

    image = MetaTensor(torch.rand(1, 2, 2, 2), meta={"filename_or_obj": "scan.nii.gz"})
    with pytest.raises(kind, match=message):
        NamedCompose([NamedCompose([Compose([Lambdad("image", fail)])])])({"image": image})
