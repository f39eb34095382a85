from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.tools.prepare.brats import find_cases, prepare_brats
from tests.helpers import make_brats, save


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def test_cases_are_found_at_any_depth(tmp_path: Path) -> None:
    make_brats(tmp_path / "MICCAI" / "HGG" / "A", "A")
    make_brats(tmp_path / "LGG" / "B", "B", ending="nii")
    make_brats(tmp_path, "C_1")
    (tmp_path / "._C_1_flair.nii.gz").touch()  # as macOS leaves them
    cases = sorted(find_cases(tmp_path), key=lambda case: case.name)
    assert [(case.name, case.group) for case in cases] == [("A", "HGG"), ("B", "LGG"), ("C_1", "")]
    assert [path.name for path in cases[1].images] == ["B_flair.nii", "B_t1.nii", "B_t1ce.nii", "B_t2.nii"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    make_brats(tmp_path / "disk" / "A", "A")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "HGG").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "src")
    assert [(case.name, case.group) for case in find_cases(tmp_path / "src")] == [("A", "HGG")]


def test_one_slice_equals_that_of_the_volume(out: Path, tmp_path: Path) -> None:
    make_brats(tmp_path / "src", "A")
    prepare_brats(tmp_path / "src", out, image_size=(16, 32))
    image = nib.load(out / "A" / "image.nii")
    assert image.shape == (16, 32, 128, 4)
    np.testing.assert_array_equal(image.dataobj[:, :, 40], image.get_fdata()[:, :, 40])


def test_label_codes_channels_and_the_whole_brain(out: Path, tmp_path: Path) -> None:
    make_brats(tmp_path / "src", "A")
    prepare_brats(tmp_path / "src", out, workers=1)
    image, label = read(out / "A" / "image.nii"), read(out / "A" / "label.nii")
    assert image.shape == (192, 192, 128, 4)
    assert np.unique(label).tolist() == [0, 1, 2, 3]
    brain = np.abs(image).max(axis=-1) > 1e-2
    # 18 x 20 voxels of brain in plane, not resampled, over the whole height
    assert brain.any(axis=(1, 2)).sum() == 18
    assert brain.any(axis=(0, 2)).sum() == 20
    assert brain.any(axis=(0, 1)).all()
    for channel in range(4):
        inside = image[..., channel][brain]
        assert abs(inside.mean()) < 0.05
        assert abs(inside.std() - 1) < 0.05


def test_brain_larger_than_the_grid_is_kept(out: Path, tmp_path: Path) -> None:
    brain = np.ones((200, 6, 6), np.int16)
    brain[0] = brain[-1] = 2
    for channel in ("flair", "t1", "t1ce", "t2"):
        save(tmp_path / "src" / f"A_{channel}.nii", brain)
    save(tmp_path / "src" / "A_seg.nii", 4 * (brain == 2).astype(np.uint8))
    prepare_brats(tmp_path / "src", out, workers=1)
    label = read(out / "A" / "label.nii")
    assert label[0].any()
    assert label[-1].any()


def test_missing_modality_is_an_error(out: Path, tmp_path: Path) -> None:
    make_brats(tmp_path / "src" / "HGG" / "A", "A")
    (tmp_path / "src" / "HGG" / "A" / "A_t1ce.nii.gz").unlink()
    with pytest.raises(InputError, match=r"A_t1ce\.nii\.gz: expected a NIfTI file, got no such file"):
        prepare_brats(tmp_path / "src", out)


def test_channels_of_different_shapes_are_an_error(out: Path, tmp_path: Path) -> None:
    make_brats(tmp_path / "src", "A")
    save(tmp_path / "src" / "A_t2.nii.gz", np.ones((22, 24, 8)))
    with pytest.raises(InputError, match=r"A_t2\.nii\.gz: expected shape .* as in .*A_flair.*, got \(22, 24, 8\)"):
        prepare_brats(tmp_path / "src", out)


def test_two_cases_of_one_name_are_an_error(out: Path, tmp_path: Path) -> None:
    make_brats(tmp_path / "src" / "HGG", "A")
    make_brats(tmp_path / "src" / "LGG", "A")
    with pytest.raises(InputError, match="expected one case A, got a second"):
        prepare_brats(tmp_path / "src", out)
