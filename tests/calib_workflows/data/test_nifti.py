"""NIfTI files are opened with checks of their headers, and their voxels are compared in space."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from calib_components.errors import InputError
from calib_workflows.data.nifti import (
    NiftiReader,
    grid_distance,
    open_channels,
    open_nifti,
    open_together,
)

OBLIQUE = np.array([[0, -1.5, 0, 3], [1.25, 0, 0, -2], [0, 0, 10, 7], [0, 0, 0, 1]])
RAMP = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


def save(file: Path, array: np.ndarray = RAMP, affine: np.ndarray = OBLIQUE, **header: Any) -> Path:
    """Write a file whose sform and other fields of the header are set as given, where nibabel
    refuses some.
    """
    nib.Nifti1Image(array, np.eye(4)).to_filename(file)
    with nib.openers.ImageOpener(file) as opened:
        content = opened.read()
    raw = nib.Nifti1Header(content[:348], check=False)
    for name, value in {
        "srow_x": affine[0],
        "srow_y": affine[1],
        "srow_z": affine[2],
        **header,
    }.items():
        raw[name] = value
    content = raw.binaryblock + content[348:]
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def changed(row: int, column: int, value: float) -> np.ndarray:
    affine = OBLIQUE.copy()
    affine[row, column] = value
    return affine


class TestOpenNifti:
    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ({"affine": changed(1, 0, np.nan)}, "not finite"),
            ({"affine": OBLIQUE[:, [0, 1, 1, 3]]}, "singular"),
            ({"xyzt_units": 1}, "metres"),
            ({"xyzt_units": 3 + 8}, "micrometres"),  # with a unit of time
        ],
        ids=str,
    )
    def test_affine_without_meaning(
        self, header: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        file = save(tmp_path / "a.nii", **header)
        with pytest.raises(InputError, match=rf"a\.nii: .*{message}"):
            open_nifti(file)

    def test_no_real_numbers(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"a\.nii: values are of type"):
            open_nifti(save(tmp_path / "a.nii", np.zeros((4, 3, 2), np.complex64)))

    def test_truncated(self, tmp_path: Path) -> None:
        file = save(tmp_path / "a.nii")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(InputError, match=r"a\.nii: file is truncated, 591 of 592 bytes"):
            open_nifti(file)

    def test_no_nifti(self, tmp_path: Path) -> None:
        for name, content in {"a.nii": b"", "b.nii.gz": gzip.compress(b"text")}.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=f"{name}: "):
                open_nifti(tmp_path / name)

    def test_axes_of_length_1_after_the_third_are_dropped_of_five(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 9, (6, 5, 4, 1, 2)).astype("i2")
        for shape, kept in (
            (values.shape, (6, 5, 4, 2)),
            ((6, 5, 8, 1, 1), (6, 5, 8)),
            ((6, 5, 8, 1), (6, 5, 8, 1)),
        ):
            file = save(tmp_path / "a.nii.gz", values.reshape(shape))
            assert open_nifti(file).shape == kept
            reader = NiftiReader()
            array, meta = reader.get_data(reader.read(file))
            np.testing.assert_array_equal(array, values.reshape(kept))
            # Of the sform; MONAI's reader takes the qform, which is not set
            for name in ("affine", "original_affine"):
                np.testing.assert_array_equal(meta[name], OBLIQUE)

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_a_phase_has_its_part_of_the_values(self, ending: str, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 2000, (6, 5, 4, 3)).astype("i2")
        file = save(tmp_path / f"cine{ending}", values, scl_slope=0.5, scl_inter=2)
        reader = NiftiReader()
        for phase in range(3):
            name = tmp_path / f"cine_phase{phase:02d}{ending}"
            array, meta = reader.get_data(reader.read(name))
            np.testing.assert_array_equal(array, values[..., phase] / 2 + 2)
            np.testing.assert_array_equal(meta["affine"], OBLIQUE)
        with pytest.raises(InputError, match=r"cine_phase03.*: cannot read phase 3.*it has 3"):
            open_nifti(tmp_path / f"cine_phase03{ending}")
        save(file)  # of three axes
        with pytest.raises(InputError, match=r"cine_phase00.*: cannot read phase 0"):
            open_nifti(tmp_path / f"cine_phase00{ending}")


class TestGrid:
    def test_rounding_is_no_difference(self) -> None:
        # A tenth of 1.25 mm, the smallest side
        assert grid_distance(changed(0, 3, 3.124), OBLIQUE, (5, 6, 3)) == 0
        assert grid_distance(changed(0, 3, 3.126), OBLIQUE, (5, 6, 3)) == pytest.approx(0.126)

    @pytest.mark.parametrize(
        ("shape", "affine", "message"),
        [
            ((6, 5, 3), OBLIQUE, r"shape \(6, 5, 3\) differs from \(6, 5, 4\)"),
            ((6, 5, 4), from_matvec(np.eye(3), [0, 0, 3]) @ OBLIQUE, "up to 3 mm"),
            ((6, 5, 4), from_matvec(euler2mat(z=0.1)) @ OBLIQUE, "affine differs"),
        ],
    )
    def test_other_grid_is_refused(
        self, shape: tuple[int, ...], affine: Any, message: str, tmp_path: Path
    ) -> None:
        image, label = (
            save(tmp_path / "image.nii"),
            save(tmp_path / "label.nii", np.zeros(shape, "u1"), affine),
        )
        with pytest.raises(
            InputError, match=rf"label\.nii: .*{message}.*image\.nii|label\.nii: .*image.*{message}"
        ):
            open_together([image, label])
        open_together([image, image])


def test_channels_are_turned_onto_the_first(tmp_path: Path) -> None:
    first = nib.load(save(tmp_path / "first.nii"))
    other = first.as_reoriented([[1, -1], [0, 1], [2, -1]])
    assert other.shape != first.shape
    other.to_filename(tmp_path / "other.nii")
    files = [tmp_path / "first.nii", tmp_path / "other.nii"]
    one, two = open_channels(files)
    np.testing.assert_array_equal(one.get_fdata(), two.get_fdata())
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-6)
    reader = NiftiReader()
    values, _ = reader.get_data(reader.read(files))
    np.testing.assert_array_equal(values[0], values[1])


class TestNiftiReader:
    @pytest.mark.parametrize(
        ("dtype", "slope", "inter"),
        [("<i2", None, None), (">i2", 1, -1024), ("<u2", 0.37, 5.5), ("<f8", 2, 0.1)],
    )
    @pytest.mark.parametrize("shape", [(5, 4, 35), (4, 35, 3, 2)], ids=str)
    def test_values_are_those_of_nibabel_in_float32(
        self,
        dtype: str,
        slope: float | None,
        inter: float | None,
        shape: tuple[int, ...],
        tmp_path: Path,
    ) -> None:
        stored = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
        image = nib.Nifti1Image(
            stored, np.eye(4), nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
        )
        image.header.set_data_dtype(dtype)
        image.header.set_slope_inter(slope, inter)
        image.to_filename(file := tmp_path / f"scan{'.nii.gz' if inter else '.nii'}")
        reader = NiftiReader()
        values, _ = reader.get_data(reader.read(file))
        assert (values.dtype, values.flags.c_contiguous) == (np.float32, True)
        expected = np.asanyarray(nib.load(file).dataobj).astype(np.float32)
        assert slope is None or not np.array_equal(expected, stored)
        np.testing.assert_array_equal(values, expected)

    @pytest.mark.parametrize("spoil", ["cut", "cut inside", "checksum"])
    def test_broken_compressed_file(self, spoil: str, tmp_path: Path) -> None:
        file = save(
            tmp_path / "scan.nii.gz",
            np.random.default_rng(0).integers(0, 2000, (20, 20, 20)).astype("i2"),
        )
        content = bytearray(file.read_bytes())
        if spoil == "cut":
            del content[-4000:]
        elif spoil == "cut inside":
            content = bytearray(gzip.compress(gzip.decompress(content)[:-100]))
        else:
            content[-6] ^= 1
        file.write_bytes(content)
        reader = NiftiReader()
        with pytest.raises(InputError, match=r"scan\.nii\.gz: "):
            reader.get_data(reader.read(file))

    def test_channels_must_lie_on_one_grid_up_to_rounding(self, tmp_path: Path) -> None:
        first, rounded = (
            save(tmp_path / "a.nii"),
            save(tmp_path / "b.nii", affine=changed(0, 0, 1e-7)),
        )
        reader = NiftiReader()
        values, meta = reader.get_data(reader.read([first, rounded]))
        assert values.shape == (2, 6, 5, 4)
        np.testing.assert_array_equal(meta["affine"], OBLIQUE)
        with pytest.raises(InputError, match=r"c\.nii: affine differs"):
            reader.read([first, save(tmp_path / "c.nii", affine=OBLIQUE @ np.diag([-1, 1, 1, 1]))])
