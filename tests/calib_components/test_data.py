from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImaged

from calib_components.data import CaseDataset, LoadSliced, SliceDataset, list_slices, load_slice
from tests.helpers import ROOT


def save(path: Path, values: np.ndarray, dtype: type) -> str:
    image = nib.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(dtype)
    nib.save(image, path)
    return str(path)


def test_slice_of_scaled_volume_equals_the_volume(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
    path = save(tmp_path / "image.nii", volume, np.int16)
    read = load_slice(path, 2)
    assert read.shape == (1, 7, 5)
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read[0], nib.load(path).get_fdata(dtype=np.float32)[..., 2])
    np.testing.assert_allclose(read[0], volume[..., 2], atol=1e-3)


def test_channels_come_first(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(7, 5, 3, 4)).astype(np.float32)
    read = load_slice(save(tmp_path / "image.nii", volume, np.float32), 1)
    np.testing.assert_array_equal(read, np.moveaxis(volume[:, :, 1], -1, 0))


def test_labels_stay_bytes(tmp_path: Path) -> None:
    label = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    read = load_slice(save(tmp_path / "label.nii", label, np.uint8), 0)
    assert read.dtype == torch.uint8
    np.testing.assert_array_equal(read[0], label[..., 0])


def test_every_slice_of_every_case_is_listed_and_loaded(tmp_path: Path) -> None:
    cases = []
    for name, depth in (("a", 2), ("b", 3)):
        volume = np.random.default_rng(depth).normal(size=(4, 4, depth)).astype(np.float32)
        cases.append(
            {
                "case": name,
                "image": save(tmp_path / f"{name}.nii", volume, np.float32),
                "label": save(tmp_path / f"{name}_label.nii", (volume > 0).astype(np.uint8), np.uint8),
            }
        )
    slices = list_slices(cases, (4, 4))
    assert [(item["case"], item["slice"]) for item in slices] == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]
    item = LoadSliced(["image", "label"])(slices[3])
    assert item.keys() == {"image", "label"}
    torch.testing.assert_close(item["image"], load_slice(cases[1]["image"], 1))
    torch.testing.assert_close(item["label"], (item["image"] > 0).to(torch.uint8))


def test_other_size_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    case = {"image": save(tmp_path / "image.nii", np.zeros((4, 6, 2), np.float32), np.float32), "label": ""}
    with pytest.raises(ValueError, match=r"image.nii: slices of 4 x 6, but image_size is \[4, 4\]"):
        list_slices([case], [4, 4])


def test_cases_from_the_scanner_are_prepared_as_prepare_data_does(phantoms: Path, prepared: Path) -> None:
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "bundles/acdc_mri_nacl_segmentation/configs/train.yaml"))
    config["image_size"] = [64, 64]
    prepare = config.get_parsed_content("prepare")
    name = "patient001_frame01"
    raw = phantoms / "training" / "patient001" / name
    data = [
        {"case": name, "image": str(prepared / name / "image.nii"), "label": str(prepared / name / "label.nii")},
        {"image": f"{raw}.nii.gz", "label": f"{raw}_gt.nii.gz"},
    ]
    load = LoadImaged(keys=["image", "label"], ensure_channel_first=True)
    expected, case = CaseDataset(data, prepare, load)
    torch.testing.assert_close(case["image"], expected["image"], rtol=0, atol=1e-3)  # stored as int16 by prepare_data
    torch.testing.assert_close(case["label"], expected["label"], rtol=0, atol=0)

    slices = SliceDataset(data, prepare, [64, 64], LoadSliced(["image", "label"]))
    assert len(slices) == 2 * case["image"].shape[-1]
    assert slices[0]["image"].shape == (1, 64, 64)
