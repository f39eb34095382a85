from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImaged

from calib_components.data import CaseDataset, LoadSliced, SliceDataset, list_slices, load_slice, write_case
from calib_components.errors import InputError
from tests.helpers import ROOT


def save(path: Path, values: np.ndarray, dtype: type) -> str:
    image = nib.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(dtype)
    nib.save(image, path)
    return str(path)


@pytest.mark.parametrize("channels", [1, 2])
def test_written_case_is_read_back(channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(channels, 7, 5, 3)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 4, (1, 7, 5, 3)).astype(np.float32))
    affine = np.diag([1.5, 2.0, 8.0, 1.0])
    write_case(tmp_path / "case", image, label, affine)
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
    files = {name: nib.load(tmp_path / "case" / f"{name}.nii") for name in ("image", "label")}
    assert files["image"].shape == ((7, 5, 3) if channels == 1 else (7, 5, 3, 2))
    assert (files["image"].get_data_dtype(), files["label"].get_data_dtype()) == (np.int16, np.uint8)
    for file in files.values():
        np.testing.assert_array_equal(file.affine, affine)
        assert file.header.get_xyzt_units()[0] == "mm"
    for index in range(3):
        read = {name: load_slice(tmp_path / "case" / f"{name}.nii", index) for name in files}
        torch.testing.assert_close(read["image"], image[..., index], rtol=0, atol=1e-3)
        torch.testing.assert_close(read["label"], label[..., index].to(torch.uint8), rtol=0, atol=0)


def test_case_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    image = torch.zeros(1, 4, 4, 2)
    with pytest.raises(ValueError, match="Affine"):
        write_case(tmp_path / "case", image, image, np.eye(3))
    assert list(tmp_path.iterdir()) == []
    write_case(tmp_path / "case", image, image, np.eye(4))
    with pytest.raises(OSError, match="case"):
        write_case(tmp_path / "case", image, image, np.eye(4))
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


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
    with pytest.raises(InputError, match=r"image.nii: expected slices of the image_size \[4, 4\], got \[4, 6\]"):
        list_slices([case], [4, 4])


def test_raw_case_that_is_not_finite_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    def prepare(_: object) -> dict[str, torch.Tensor]:
        return {"image": torch.full((1, 4, 4, 2), torch.nan), "label": torch.zeros(1, 4, 4, 2)}

    with pytest.raises(InputError, match=r"scan\.nii: expected finite values after preparation, got 32 that are"):
        CaseDataset([{"image": "scan.nii", "label": "scan_gt.nii"}], prepare)


def test_raw_cases_are_prepared_as_prepare_data_does(phantoms: Path, prepared: Path) -> None:
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
    torch.testing.assert_close(case["image"], expected["image"], rtol=0, atol=0)
    torch.testing.assert_close(case["label"], expected["label"], rtol=0, atol=0)

    for key in ("image", "label"):
        assert Path(case[key].meta["filename_or_obj"]).read_bytes() == Path(data[0][key]).read_bytes()

    slices = SliceDataset(data, prepare, [64, 64], LoadSliced(["image", "label"]))
    assert len(slices) == 2 * case["image"].shape[-1]
    assert slices[0]["image"].shape == (1, 64, 64)
