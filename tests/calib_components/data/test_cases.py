from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.transforms import Compose, LoadImaged, RandGaussianNoised

from calib_components.data.cases import (
    CaseDataset,
    LoadSliced,
    SliceDataset,
    check_labels,
    list_slices,
    load_slice,
    read_datalist,
    write_case,
)
from calib_components.data.nifti import NiftiReader
from calib_components.data.transforms import ClassIndicesd
from calib_components.errors import InputError, error_line
from tests.helpers import ACDC, ROOT, SIZE, make_prepared


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
    with pytest.raises(FileExistsError, match=r"case: expected no such folder yet, got one$"):
        write_case(tmp_path / "case", image, image, np.eye(4))
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_case_may_be_replaced(tmp_path: Path) -> None:
    image = torch.zeros(1, 4, 4, 2)
    write_case(tmp_path / "case", image, image, np.eye(4))
    write_case(tmp_path / "case", image[..., :1], image[..., :1], np.eye(4), {"files": []}, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
    assert nib.load(tmp_path / "case" / "label.nii").shape == (4, 4, 1)
    files = [tmp_path / "case" / name for name in ("image.nii", "label.nii")]
    content = hashlib.sha256(files[0].read_bytes() + files[1].read_bytes()).hexdigest()
    assert json.loads((tmp_path / "case" / "source.json").read_text()) == {"files": [], "content": content}


def test_case_may_be_called_like_the_one_before_of_another(tmp_path: Path) -> None:
    """While `b` is replaced, `old-b` is being written beside it."""
    image = torch.zeros(1, 4, 4, 2)
    write_case(tmp_path / "b", image, image, np.eye(4))
    (tmp_path / ".unfinished-old-b").mkdir()
    write_case(tmp_path / "b", image + 1, image, np.eye(4), replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-old-b", "b"]


@pytest.mark.parametrize(
    ("value", "dtype"), [(257, torch.int32), (256, torch.float32), (1.5, torch.float32), (-1, torch.int16)]
)
def test_label_that_is_no_byte_is_an_error(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    image = torch.zeros(1, 4, 4, 2)
    label = torch.full((1, 4, 4, 2), 255, dtype=dtype)
    write_case(tmp_path / "largest", image, label, np.eye(4))
    write_case(tmp_path / "bytes", image, label.to(torch.uint8), np.eye(4))
    label[0, 1, 2, 0] = value
    with pytest.raises(InputError, match=rf"case: expected class indices from 0 to 255, .*, got {value}$"):
        write_case(tmp_path / "case", image, label, np.eye(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "largest"]


def test_full_disk_leaves_the_present_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(1, 4, 4, 2)
    write_case(tmp_path / "case", image, image, np.eye(4))
    before = {path.name: path.read_bytes() for path in (tmp_path / "case").iterdir()}

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(InputError, match="case: expected a folder that can be written, got No space left on device"):
        write_case(tmp_path / "case", image + 1, image, np.eye(4), {"files": []}, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "case").iterdir()} == before


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


def test_missing_slice_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "image.nii", np.zeros((4, 4, 2), np.float32), np.float32)
    with pytest.raises(InputError, match=r"image\.nii: expected a whole prepared volume, got"):
        load_slice(path, 2)
    Path(path).write_bytes(Path(path).read_bytes()[:-4])
    with pytest.raises(InputError, match=r"image\.nii: expected a whole prepared volume, got"):
        load_slice(path, 1)
    Path(path).unlink()
    with pytest.raises(InputError, match=r"image\.nii: expected a whole prepared volume, got"):
        load_slice(path, 0)


def test_labels_of_another_network_are_an_error_that_names_the_file() -> None:
    check_labels(torch.tensor([0, 3]), 4, "label.nii")
    for wrong in (torch.tensor([0, 4]), torch.tensor([-1.0]), torch.tensor([1, torch.nan])):
        with pytest.raises(
            InputError, match=r"label\.nii: expected class indices from 0 to 3, those of the network, got"
        ):
            check_labels(wrong, 4, "label.nii")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A folder with two cases, and a datalist that has both for training."""
    for name in ("a", "b"):
        image = torch.arange(32.0).reshape(1, 4, 4, 2)
        write_case(tmp_path / name, image, image > 5, np.eye(4))
    items = [{"case": name, "image": f"{name}/image.nii", "label": f"{name}/label.nii"} for name in ("a", "b")]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": items, "validation": [], "note": 1}))
    return tmp_path


def read(folder: Path, split: str = "training", **options: Any) -> list[dict[str, Any]]:
    given = {"image_size": [4, 4], "in_channels": 1, **options}
    return read_datalist(folder / "datalist.json", split, folder, **given)


class TestReadDatalist:
    def test_paths_are_absolute(self, listed: Path) -> None:
        first, second = read(listed)
        files = {name: str(listed / f"a/{name}.nii") for name in ("image", "label")}
        assert first == {"case": "a", "patient": "a", **files}
        assert second["case"] == "b"
        assert read(listed, "validation", may_be_empty=True) == []

    def test_folders_that_look_like_numbers(self, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """MONAI passes the folder 2024 as a number."""
        listed.rename(listed.with_name("2024"))
        monkeypatch.chdir(listed.parent)
        assert len(read_datalist("2024/datalist.json", "training", 2024, [4, 4], 1)) == 2  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "expected a list of prepared cases, got no such file; run prepare_data first"),
            ("", "expected a list of prepared cases, got Expecting value"),
            ("[]", "expected a list of prepared cases for training, got none"),
            ("{}", "expected a list of prepared cases for training, got none"),
            ('{"training": {}}', "expected a list of prepared cases for training, got none"),
            ('{"training": []}', "expected at least one case for training, got none"),
            ('{"training": ["a"]}', "expected case of training case 1 to be text, got None"),
            ('{"training": [{"case": "a", "image": 3}]}', "expected image of training case 1 to be text, got 3"),
            ('{"training": [{"case": "a", "image": "a/image.nii"}]}', "expected label of training case 1 to be text"),
            ('{"training": [{"case": "a\\n", "image": "a/image.nii"}]}', "expected case of training case 1 to be text"),
            ('{"training": [{"case": " ", "image": "a/image.nii"}]}', "expected case of training case 1 to be text"),
        ],
    )
    def test_broken_list_is_an_error_of_one_line(self, content: str | None, message: str, listed: Path) -> None:
        file = listed / "datalist.json"
        file.unlink() if content is None else file.write_text(content)
        with pytest.raises(InputError) as caught:
            read(listed)
        assert str(caught.value).startswith(f"{file}: {message}")
        assert "\n" not in str(caught.value)

    def test_case_twice(self, listed: Path) -> None:
        content = json.loads((listed / "datalist.json").read_text())
        (listed / "datalist.json").write_text(json.dumps({"training": content["training"] + content["training"][:1]}))
        with pytest.raises(InputError, match=r"datalist\.json: expected every case once, got a twice for training"):
            read(listed)

    @pytest.mark.parametrize(
        ("name", "spoil", "message"),
        [
            ("image.nii", Path.unlink, "expected a prepared volume, got no such file; prepare the data again"),
            ("label.nii", Path.unlink, "expected a prepared volume, got no such file; prepare the data again"),
            (
                "image.nii",
                lambda file: file.write_bytes(file.read_bytes()[:-1]),
                "expected 416 bytes, as its header dem",
            ),
            ("label.nii", lambda file: file.write_bytes(file.read_bytes() + b"0"), "expected 384 bytes, as its header"),
            ("label.nii", lambda file: file.write_bytes(b""), "expected a readable NIfTI file, got"),
            ("label.nii", lambda file: file.write_bytes(b"text" * 99), "expected a readable NIfTI file, got"),
            (
                "image.nii",
                lambda file: save(file, np.zeros((4, 4, 2, 3), "f4"), np.int16),
                "expected 1 channel(s), got",
            ),
            ("label.nii", lambda file: save(file, np.zeros((4, 4, 3), "u1"), np.uint8), "expected shape (4, 4, 2) as"),
            (
                "image.nii",
                lambda file: save(file, np.zeros((4, 4), "f4"), np.int16),
                "expected a volume, got shape (4, 4)",
            ),
        ],
    )
    def test_volume_that_is_not_whole(
        self, name: str, spoil: Callable[[Path], object], message: str, listed: Path
    ) -> None:
        spoil(listed / "b" / name)
        with pytest.raises(InputError) as caught:
            read(listed)
        assert str(caught.value).startswith(f"{listed / 'b' / name}: {message}")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_size": [16, 32]}, r"a/image\.nii: expected slices of the image_size \[16, 32\], got \[4, 4\]"),
            ({"in_channels": 4}, r"a/image\.nii: expected 4 channel\(s\), got shape \(4, 4, 2\)"),
        ],
    )
    def test_other_facts(self, options: dict[str, Any], message: str, listed: Path) -> None:
        with pytest.raises(InputError, match=message):
            read(listed, **options)


def test_raw_case_that_is_not_finite_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    def prepare(_: object) -> dict[str, torch.Tensor]:
        return {"image": torch.full((1, 4, 4, 2), torch.nan), "label": torch.zeros(1, 4, 4, 2)}

    item = {name: str(tmp_path / f"{name}.nii") for name in ("image", "label")}
    for file in item.values():
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 2)), np.eye(4)), file)
    with pytest.raises(InputError, match=r"image\.nii: expected finite values after preparation, got 32 that are"):
        CaseDataset([item], prepare)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4, 4, 3), np.eye(4), r"expected shape \(4, 4, 2\) as in .*image.nii, got \(4, 4, 3\)"),
        (
            (4, 4, 2),
            np.diag([-1.0, 1, 1, 1]),
            "expected the voxels of .*image.nii, in the same order, got others, up to 6 mm",
        ),
    ],
)
def test_raw_label_of_another_grid(shape: tuple[int, ...], affine: np.ndarray, message: str, tmp_path: Path) -> None:
    image, label = tmp_path / "image.nii", tmp_path / "label.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2)), np.eye(4)), image)
    nib.save(nib.Nifti1Image(np.zeros(shape), affine), label)
    with pytest.raises(InputError, match=f"^{label}: {message}"):
        CaseDataset([{"image": [str(image)], "label": str(label)}], lambda item: item)


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


def test_raw_cases_have_the_affine_that_nibabel_gives(tmp_path: Path) -> None:
    """Also where `pixdim` differs in a digit, for which MONAI's reader takes an affine without flips."""
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "bundles/flare_ct_nacl_segmentation/configs/train.yaml"))
    config["image_size"] = [32, 32]
    prepare = config.get_parsed_content("prepare")
    label = np.zeros((32, 32, 4), np.uint8)
    label[2:8, 3:9] = 1
    affine = np.diag([-1.5, -1.5, 5, 1])
    for name, array in (("image", label.astype(np.float32)), ("label", label)):
        volume = nib.Nifti1Image(array, affine)
        volume.set_qform(None, 0)
        volume.set_sform(affine, 1)
        if name == "image":
            volume.header["pixdim"][1:4] = 1.5003, 1.5003, 5
        nib.save(volume, tmp_path / f"{name}.nii")
    item = {"image": str(tmp_path / "image.nii"), "label": str(tmp_path / "label.nii")}
    (case,) = CaseDataset([item], prepare, LoadImaged(keys=["image", "label"], ensure_channel_first=True))
    lies_in_image = case["image"] > case["image"].mean()
    assert torch.equal(lies_in_image, case["label"] > 0)
    assert case["label"][0, 23:, 23:].any()  # turned to RAS, both


def test_raw_label_with_another_code(tmp_path: Path) -> None:
    """The codes of BraTS have a gap, 0, 1, 2 and 4: a 3 is none of the classes."""
    prepare = Compose(
        [LoadImaged(["image", "label"], NiftiReader(), ensure_channel_first=True), ClassIndicesd("label", [0, 1, 2, 4])]
    )
    item = {"image": str(tmp_path / "image.nii"), "label": str(tmp_path / "label.nii")}
    label = np.zeros((8, 8, 2), np.uint8)
    label[0, :4, 0] = 0, 1, 2, 4
    nib.save(nib.Nifti1Image(label.astype(np.float32), np.eye(4)), item["image"])
    nib.save(nib.Nifti1Image(label, np.eye(4)), item["label"])
    (case,) = CaseDataset([item], prepare, LoadImaged("label", ensure_channel_first=True))
    assert case["label"].unique().tolist() == [0, 1, 2, 3]
    label[1, 1, 1] = 3
    nib.save(nib.Nifti1Image(label, np.eye(4)), item["label"])
    with pytest.raises(RuntimeError) as raised:  # of Compose
        CaseDataset([item], prepare)
    assert error_line(raised.value) == f"{item['label']}: expected label values from [0, 1, 2, 4], got 3"


class TestSlices:
    """Slices in memory and from files, with noise that is drawn in this process or in workers."""

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Callable[..., SliceDataset]:
        make_prepared(ACDC, tmp_path)
        cases = read_datalist(tmp_path / "datalist.json", "training", tmp_path, SIZE, 1)
        transform = Compose([LoadSliced(["image", "label"]), RandGaussianNoised("image", prob=1)])
        return lambda cache: SliceDataset(cases, dict, SIZE, transform, cache)

    def test_as_many_as_fit_are_kept(self, dataset: Callable[..., SliceDataset], tmp_path: Path) -> None:
        size = SIZE[0] * SIZE[1] * (4 + 1)  # float32 and a byte
        kept = dataset(2.5 * size / 2**20)
        read_again = dataset(0)
        for each in (kept, read_again):
            each.seed_items(7)
        for index in range(len(kept)):
            assert torch.equal(kept[index]["image"], read_again[index]["image"])
        for folder in tmp_path.glob("training*"):
            shutil.rmtree(folder)
        assert [kept[index]["label"].shape for index in (0, 1)] == [(1, *SIZE)] * 2
        with pytest.raises(RuntimeError):
            kept[2]

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_draws_follow_from_seed_and_index(self, num_workers: int, dataset: Callable[..., SliceDataset]) -> None:
        here = dataset(1)
        there = DataLoader(dataset(1), num_workers=num_workers, persistent_workers=True)
        epochs = []
        for seed in (3, 4, 3):
            here.seed_items(seed)
            there.dataset.seed_items(seed)
            epochs.append([item["image"] for item in here])
            for own, (other,) in zip(epochs[-1], (item["image"] for item in there), strict=True):
                assert torch.equal(own, other)
        first, second, again = epochs
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
        assert not any(torch.equal(*pair) for pair in zip(first, second, strict=True))
        assert not torch.equal(first[0] - first[1], second[0] - second[1])  # noise of its own for each item

    def test_workers_that_are_not_forked_get_no_cache(self, dataset: Callable[..., SliceDataset]) -> None:
        kept = dataset(1)
        sent = pickle.loads(pickle.dumps(kept))
        assert (len(kept._cache), len(sent._cache)) == (len(kept), 0)
        for each in (kept, sent):
            each.seed_items(7)
        assert torch.equal(sent[-1]["image"], kept[len(kept) - 1]["image"])

    def test_no_case(self) -> None:
        with pytest.raises(InputError, match=r"^train::dataset: expected at least one case, got none"):
            SliceDataset([], dict, SIZE)

    def test_without_a_seed_draws_go_on(self, dataset: Callable[..., SliceDataset]) -> None:
        slices = dataset(1)
        assert not torch.equal(slices[0]["image"], slices[0]["image"])


def test_patients_that_are_trained_on_as_well_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make_prepared(ACDC, tmp_path)
    content = json.loads((data / "datalist.json").read_text())
    read_datalist(data / "datalist.json", "testing", data, SIZE, 1)
    assert caplog.text == ""
    content["training"][0]["patient"] = content["testing"][1]["patient"] = "p7"
    (data / "datalist.json").write_text(json.dumps(content))
    read_datalist(data / "datalist.json", "testing", data, SIZE, 1)
    assert "1 of the patients for testing are trained on as well, such as p7." in caplog.text
    caplog.clear()
    content["training"][0]["patient"] = content["validation"][0]["patient"] = None  # a patient of their own each
    content["validation"][1]["patient"] = " p7 "
    (data / "datalist.json").write_text(json.dumps(content))
    read_datalist(data / "datalist.json", "validation", data, SIZE, 1)
    assert caplog.text == ""
    read_datalist(data / "datalist.json", "testing", data, SIZE, 1)
    assert "1 of the patients for testing choose the epoch as well, such as p7." in caplog.text
