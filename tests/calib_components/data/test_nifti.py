"""NIfTI files are opened with checks of their headers, and their voxels are compared in space."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from calib_components.data.nifti import NiftiReader, grid_distance, open_nifti
from calib_components.data.transforms import LoadVolumed
from calib_components.errors import InputError


def save(file: Path, array: np.ndarray, affine: Any = None, **header: Any) -> Path:
    image = nib.Nifti1Image(array, np.eye(4))
    image.to_filename(file)
    if affine is not None:  # nibabel itself refuses some of these
        raw = bytearray(file.read_bytes())
        loaded = nib.Nifti1Header.from_fileobj(file.open("rb"))
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            loaded[name] = affine[row]
        loaded["sform_code"] = 1
        raw[:348] = loaded.binaryblock
        file.write_bytes(raw)
    return file


class TestOpenNifti:
    def test_suitable_file(self, tmp_path: Path) -> None:
        affine = np.diag([1e-4, 2e3, 1, 1])
        file = save(tmp_path / "a.nii", np.ones((4, 3, 2), np.int16), affine)
        np.testing.assert_allclose(open_nifti(file).affine, affine)

    @pytest.mark.parametrize(
        ("affine", "message"),
        [
            (np.diag([1, 1, math.nan, 1]), "expected an affine of finite numbers, got "),
            (np.diag([1, math.inf, 1, 1]), "expected an affine of finite numbers, got "),
            (np.zeros((4, 4)), "expected an affine whose three axes differ in direction, got "),
            (np.diag([1, 1, 0, 1]), "expected an affine whose three axes differ in direction, got "),
            (np.ones((4, 4)), "expected an affine whose three axes differ in direction, got "),
        ],
    )
    def test_affine_without_meaning(self, affine: np.ndarray, message: str, tmp_path: Path) -> None:
        file = save(tmp_path / "a.nii", np.ones((4, 3, 2), np.int16), affine)
        with pytest.raises(InputError) as error:
            open_nifti(file)
        assert str(error.value).startswith(f"{file}: {message}")

    @pytest.mark.parametrize(
        "dtype", [np.complex64, np.complex128, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])], ids=str
    )
    def test_no_real_numbers(self, dtype: Any, tmp_path: Path) -> None:
        file = save(tmp_path / "a.nii", np.zeros((4, 3, 2), dtype))
        with pytest.raises(InputError, match=f"^{file}: expected one real number per voxel, got "):
            open_nifti(file)

    @pytest.mark.parametrize(("unit", "name"), [("meter", "metres"), ("micron", "micrometres")])
    def test_lengths_in_another_unit(self, unit: str, name: str, tmp_path: Path) -> None:
        image = nib.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.eye(4))
        image.header.set_xyzt_units(unit, "sec")
        image.to_filename(tmp_path / "a.nii")
        with pytest.raises(
            InputError, match=f"^{tmp_path}/a.nii: expected lengths in millimetres, got {name}, as xyzt"
        ):
            open_nifti(tmp_path / "a.nii")
        assert open_nifti(tmp_path / "a.nii", any_affine=True).shape == (4, 3, 2)

    def test_truncated(self, tmp_path: Path) -> None:
        file = save(tmp_path / "a.nii", np.zeros((4, 3, 2), np.int16))
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(InputError, match=f"^{file}: expected 400 bytes, as its header demands, got 399; "):
            open_nifti(file)

    @pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"text")], ids=["empty", "text", "packed text"])
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_no_nifti(self, content: bytes, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"^{tmp_path / name}: expected a readable NIfTI file, got .+"):
            open_nifti(tmp_path / name)


class TestGridDistance:
    OBLIQUE = np.array([[0, -1.5, 0, 3], [1.25, 0, 0, -2], [0, 0, 10, 7], [0, 0, 0, 1]])

    def test_rounding_is_none(self) -> None:
        assert grid_distance(self.OBLIQUE, self.OBLIQUE, (5, 6, 3)) == 0
        off = np.eye(4, k=3)[0, 3] * np.eye(4, k=3)  # along x
        assert grid_distance(self.OBLIQUE + 0.124 * off, self.OBLIQUE, (5, 6, 3)) == 0  # of 1.25 mm, the smallest side
        assert grid_distance(self.OBLIQUE + 0.126 * off, self.OBLIQUE, (5, 6, 3)) == pytest.approx(0.126)

    def test_largest_of_the_corners(self) -> None:
        mirrored = self.OBLIQUE @ np.diag([-1, 1, 1, 1])
        assert grid_distance(mirrored, self.OBLIQUE, (5, 6, 3)) == pytest.approx(4 * 2 * 1.25)
        assert grid_distance(mirrored, self.OBLIQUE, (5, 6, 3, 2)) == pytest.approx(10)  # of several channels


class TestNiftiReader:
    @pytest.mark.parametrize(("dtype", "slope", "inter"), [
        ("<i2", None, None), (">i2", 1, -1024), ("<u2", 0.37, 5.5), ("<f4", None, None), ("<f8", 2, 0.1), ("u1", 0.1, 0)
    ])  # fmt: skip
    @pytest.mark.parametrize("shape", [(5, 4), (5, 4, 35), (4, 35, 3, 2)], ids=str)
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_values_are_those_of_nibabel_in_float32(
        self, dtype: str, slope: float | None, inter: float | None, shape: tuple[int, ...], ending: str, tmp_path: Path
    ) -> None:
        stored = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
        image = nib.Nifti1Image(stored, np.eye(4), nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<"))
        image.header.set_data_dtype(dtype)
        image.header.set_slope_inter(slope, inter)
        image.to_filename(file := tmp_path / f"scan{ending}")
        reader = NiftiReader()
        values, _ = reader.get_data(reader.read(file))
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        expected = np.asanyarray(nib.load(file).dataobj).astype(np.float32)
        assert slope is None or not np.array_equal(expected, stored)
        np.testing.assert_array_equal(values, expected)

    def test_changed_byte_of_a_compressed_file(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 2000, (20, 20, 20)).astype(np.int16)
        file = save(tmp_path / "scan.nii.gz", values)
        content = bytearray(file.read_bytes())
        content[-4000] ^= 1
        file.write_bytes(content)
        reader = NiftiReader()
        with pytest.raises(InputError, match=f"^{file}: expected a complete NIfTI file, got "):
            reader.get_data(reader.read(file))

    def test_affine_is_that_of_the_sform_whatever_pixdim_says(self, tmp_path: Path) -> None:
        """MONAI's reader takes the qform's, which is not set, so that image and maps would lie at two places."""
        affine = np.array([[-1.5, 0, 0, 90], [0, -1.5, 0, 120], [0, 0, 10, 0], [0, 0, 0, 1.0]])
        file = save(tmp_path / "scan.nii", np.ones((4, 3, 2), np.int16), affine)
        reader = NiftiReader()
        _, meta = reader.get_data(reader.read(file))
        np.testing.assert_array_equal(meta["affine"], affine)
        np.testing.assert_array_equal(meta["original_affine"], open_nifti(file).affine)
        item = LoadVolumed("image")({"image": save(tmp_path / "b.nii", ramp(), affine)})
        np.testing.assert_array_equal(item["image"].affine, affine)

    def test_channels_whose_headers_differ_by_rounding_have_the_first_ones_affine(self, tmp_path: Path) -> None:
        affine = np.diag([1.5, 1.5, 2, 1])
        rounded = affine.copy()
        rounded[0, 1] = 1e-7
        files = [save(tmp_path / f"{name}.nii", ramp(), at) for name, at in (("a", affine), ("b", rounded))]
        item = LoadVolumed("image")({"image": files})
        assert item["image"].shape == (2, 6, 5, 4)
        np.testing.assert_array_equal(item["image"].affine, affine)
        files[1] = save(tmp_path / "c.nii", ramp(), np.diag([-1.5, 1.5, 2, 1]))
        with pytest.raises(InputError, match=f"{files[1]}: expected the voxels of {files[0]}, in the same order"):
            NiftiReader().read(files)


def ramp() -> np.ndarray:
    return np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
