"""Prepared cases: written whole, checked by their headers, read slice by slice."""

from __future__ import annotations

import hashlib
import json
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

from calib_components.errors import InputError
from calib_workflows.data import CaseDataset, LoadSliced, SliceDataset, read_datalist
from calib_workflows.data.cases import load_sample, write_case
from tests.helpers import ACDC, HIPPOCAMPUS, SIZE, make_prepared, save

BOTH = ["image", "label"]
FLIPPED = np.diag([-1.5, 1.5, 8, 1])


class TestWriteCase:
    @pytest.mark.parametrize("channels", [1, 2])
    def test_written_case_is_read_back(self, channels: int, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        image = torch.from_numpy(rng.normal(size=(channels, 7, 5, 3)).astype(np.float32))
        label = torch.from_numpy(rng.integers(0, 4, (1, 7, 5, 3)).astype(np.float32))
        affine = np.diag([1.5, 2.0, 8.0, 1.0])
        write_case(tmp_path / "case", image, label, affine, {"files": []})
        assert [path.name for path in tmp_path.iterdir()] == ["case"]
        files = [tmp_path / "case" / name for name in ("image.nii", "label.nii")]
        opened = [nib.load(file) for file in files]
        assert [file.shape for file in opened] == [(7, 5, 3, 2)[: 2 + channels], (7, 5, 3)]
        assert [file.get_data_dtype() for file in opened] == [np.int16, np.uint8]
        for file in opened:
            np.testing.assert_array_equal(file.affine, affine)
        for index in range(3):
            read = [load_sample(file, index) for file in files]
            torch.testing.assert_close(read[0], image[..., index], rtol=0, atol=1e-3)
            assert read[1].dtype == torch.uint8
            assert torch.equal(read[1], label[..., index].byte())
        content = hashlib.sha256(files[0].read_bytes() + files[1].read_bytes()).hexdigest()
        assert json.loads((tmp_path / "case" / "source.json").read_text()) == {
            "files": [],
            "content": content,
        }

    def test_label_that_is_no_byte_and_image_that_is_not_finite(self, tmp_path: Path) -> None:
        image = torch.zeros(1, 4, 4, 2)
        with pytest.raises(
            InputError, match="case: label values 256 are none of the class indices 0 to 255"
        ):
            write_case(tmp_path / "case", image, image + 256, np.eye(4))
        with pytest.raises(InputError, match="NaN or infinite"):
            write_case(tmp_path / "case", image + np.inf, image, np.eye(4))
        assert list(tmp_path.iterdir()) == []


class TestReadDatalist:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """Two cases of each split."""
        return make_prepared(ACDC, tmp_path / "2024")

    def read(self, data: Path, split: str = "training", **options: Any) -> list[dict[str, Any]]:
        return read_datalist(
            data / "datalist.json", split, data, **{"image_size": SIZE, "in_channels": 1, **options}
        )

    def edit(self, data: Path, **changes: Any) -> None:
        content = json.loads((data / "datalist.json").read_text())
        (data / "datalist.json").write_text(json.dumps({**content, **changes}))

    def test_paths_are_absolute(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {name: str(data / f"training0/{name}.nii") for name in BOTH}
        assert self.read(data)[0] == {"case": "training0", "patient": "training0", **files}
        (data / "datalist.json").write_bytes(
            b"\xef\xbb\xbf" + (data / "datalist.json").read_bytes()
        )
        monkeypatch.chdir(data.parent)
        assert len(read_datalist("2024/datalist.json", "training", "2024", SIZE, 1)) == 2

    def test_empty_split(self, data: Path) -> None:
        self.edit(data, validation=[])
        assert self.read(data, "validation", may_be_empty=True) == []
        with pytest.raises(InputError, match=r"datalist\.json: no case for validation"):
            self.read(data, "validation")
        with pytest.raises(InputError, match=r"not that of slices of the image_size \[16, 32\]"):
            self.read(data, image_size=[16, 32])

    def test_broken_list(self, data: Path) -> None:
        self.edit(data, training=json.loads((data / "datalist.json").read_text())["training"] * 2)
        with pytest.raises(InputError, match="case training0 occurs twice for training"):
            self.read(data)
        for content in ("[]", '{"training": [{"case": "a"}]}'):
            (data / "datalist.json").write_text(content)
            with pytest.raises(InputError, match=r"datalist\.json: "):
                self.read(data)

    @pytest.mark.parametrize(
        ("name", "spoil"),
        [
            ("label.nii", lambda file: save(file, np.zeros((*SIZE, 3)), FLIPPED)),
            ("label.nii", lambda file: file.write_bytes(file.read_bytes()[:-1])),
            ("image.nii", lambda file: save(file, np.zeros((*SIZE, 3, 2)))),
            ("label.nii", lambda file: save(file, np.zeros((*SIZE, 4)))),
        ],
        ids=[
            "saved flipped",
            "truncated",
            "two channels",
            "label of another depth",
        ],
    )
    def test_volume_that_does_not_fit(
        self, name: str, spoil: Callable[[Path], Any], data: Path
    ) -> None:
        spoil(data / "training1" / name)
        with pytest.raises(InputError, match=f"training1/{name}"):
            self.read(data)

    def test_patients_that_are_trained_on_as_well(
        self, data: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = json.loads((data / "datalist.json").read_text())
        self.read(data, "testing")
        assert caplog.text == ""
        content["training"][0]["patient"] = content["testing"][1]["patient"] = "p7"
        content["validation"][1]["patient"] = " p7 "
        self.edit(data, **content)
        self.read(data, "training")
        assert caplog.text == ""
        self.read(data, "testing")
        assert (
            "1 of the cases for testing are trained on as well: patient p7 is on both sides"
            in caplog.text
        )
        assert (
            "1 of the cases for testing choose the epoch as well: patient p7 is on both sides"
            in caplog.text
        )

    def test_one_volume_under_two_names_and_a_fit_on_trained_cases(
        self, data: Path, caplog: Any
    ) -> None:
        shutil.copytree(data / "training1", data / "validation1", dirs_exist_ok=True)
        self.read(data, "validation")
        assert "the same volume is on both sides (validation1 and training1)" in caplog.text
        with pytest.raises(
            InputError,
            match=r"1 of the cases for validation are trained on as well: the same volume",
        ):
            self.read(data, "validation", refuse_trained=True)
        self.read(data, "training", refuse_trained=True)


class TestRawCases:
    """Cases as MONAI Label gives them."""

    def test_prepared_as_prepare_data_does(self, phantoms: Path, prepared: Path) -> None:
        config = ConfigParser(ConfigParser.load_config_file(ACDC / "configs" / "train.yaml"))
        config["image_size"] = [64, 64]
        prepare = config.get_parsed_content("prepare")
        name = "patient001_frame01"
        raw = phantoms / "training" / "patient001" / name
        data = [
            {
                "case": name,
                "image": str(prepared / name / "image.nii"),
                "label": str(prepared / name / "label.nii"),
            },
            {"image": f"{raw}.nii.gz", "label": f"{raw}_gt.nii.gz"},
        ]
        _, case = CaseDataset(data, prepare, LoadImaged(keys=BOTH, ensure_channel_first=True))
        for key in BOTH:
            assert (
                Path(case[key].meta["filename_or_obj"]).read_bytes()
                == Path(data[0][key]).read_bytes()
            )
        slices = SliceDataset(data, prepare, LoadSliced(BOTH))
        assert len(slices) == 2 * case["image"].shape[-1]
        assert slices[0]["image"].shape == (1, 64, 64)

    def test_label_of_another_grid(self, tmp_path: Path) -> None:
        item = {name: str(tmp_path / f"{name}.nii") for name in BOTH}
        save(tmp_path / "image.nii", np.zeros((4, 4, 2)), np.diag([-1.5, -1.5, 5, 1]))
        save(tmp_path / "label.nii", np.zeros((4, 4, 2)), np.diag([1.5, -1.5, 5, 1]))
        with pytest.raises(
            InputError, match=r"label\.nii: affine differs from that of .*image\.nii by up to 9 mm"
        ):
            CaseDataset([item], dict)


class TestSliceDataset:
    """Slices in memory and from files, with noise that is drawn in this process or in workers."""

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Callable[..., SliceDataset]:
        make_prepared(ACDC, tmp_path)
        cases = read_datalist(tmp_path / "datalist.json", "training", tmp_path, SIZE, 1)
        transform = Compose([LoadSliced(BOTH, num_classes=4), RandGaussianNoised("image", prob=1)])
        return lambda cache: SliceDataset(cases, dict, transform, cache)

    def test_every_slice_of_every_case(
        self, dataset: Callable[..., SliceDataset], tmp_path: Path
    ) -> None:
        cases = read_datalist(tmp_path / "datalist.json", "training", tmp_path, SIZE, 1)
        items = SliceDataset(cases, dict)
        places = [
            ("training0", 0),
            ("training0", 1),
            ("training1", 0),
            ("training1", 1),
            ("training1", 2),
        ]
        assert [(item["case"], item["slice"]) for item in items] == places
        for item, (case, index) in zip(items, places, strict=True):
            loaded = LoadSliced(BOTH)(item)
            for key in BOTH:
                volume = np.asanyarray(nib.load(tmp_path / case / f"{key}.nii").dataobj)
                np.testing.assert_array_equal(loaded[key][0], volume[..., index])
        with pytest.raises(
            InputError, match=r"label\.nii: label values 3 are none of the class indices"
        ):
            LoadSliced(BOTH, num_classes=3)(items[0])
        with pytest.raises(InputError, match="no case to train on"):
            SliceDataset([], dict)

    def test_whole_volumes(self, tmp_path: Path) -> None:
        make_prepared(HIPPOCAMPUS, tmp_path)
        cases = read_datalist(tmp_path / "datalist.json", "training", tmp_path, None, 1)
        items = SliceDataset(cases, dict, LoadSliced(BOTH, num_classes=3), cache=1, spatial_dims=3)
        # Of their own
        assert [item["image"].shape for item in items] == [(1, *SIZE, 7), (1, *SIZE, 8)]
        assert items[1]["label"].dtype == torch.uint8
        save(tmp_path / "training1" / "image.nii", np.zeros(SIZE))
        with pytest.raises(InputError, match=r"image\.nii"):
            read_datalist(tmp_path / "datalist.json", "training", tmp_path, None, 1)

    def test_as_many_as_fit_are_kept(
        self, dataset: Callable[..., SliceDataset], tmp_path: Path
    ) -> None:
        # Float32 and a byte
        kept, read_again = dataset(2.5 * SIZE[0] * SIZE[1] * (4 + 1) / 2**20), dataset(0)
        for each in (kept, read_again):
            each.seed_items(7)
        for index in range(len(kept)):
            assert torch.equal(kept[index]["image"], read_again[index]["image"])
        for folder in tmp_path.glob("training*"):
            shutil.rmtree(folder)
        assert [kept[index]["label"].shape for index in (0, 1)] == [(1, *SIZE)] * 2
        with pytest.raises(RuntimeError):
            kept[2]

    def test_draws_follow_from_seed_and_index(self, dataset: Callable[..., SliceDataset]) -> None:
        here = dataset(1)
        there = DataLoader(dataset(1), num_workers=2, persistent_workers=True)
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
        # Noise of its own for each item
        assert not torch.equal(first[0] - first[1], second[0] - second[1])
