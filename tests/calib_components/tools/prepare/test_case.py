"""A prepared case: its files, what is refused, and real labels carried through the network's grid and back."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged

from calib_components.errors import InputError
from calib_components.tools.prepare import acdc, brats, flare
from calib_components.tools.prepare.case import transform_case
from calib_components.tools.prepare.facts import facts_of_dataset, volume_transforms
from tests.helpers import SHARED, SPACING, save

Prepare = Callable[..., None]


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


class TestFiles:
    def test_types_shapes_and_affine(self, out: Path, prepare: Prepare) -> None:
        prepare()
        image, label = (nib.load(out / "patient001_frame01" / name) for name in ("image.nii", "label.nii"))
        assert image.shape == label.shape == (16, 32, 4)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        np.testing.assert_allclose(image.header.get_zooms(), [1.5 * 18 / 16, 1.25 * 16 / 32, 10])
        np.testing.assert_allclose(image.affine, label.affine)
        assert np.unique(read(out / "patient001_frame01" / "label.nii")).tolist() == [0, 1, 2, 3]

    def test_image_is_what_inference_computes(self, src: Path, out: Path, prepare: Prepare) -> None:
        prepare()
        facts = facts_of_dataset("acdc", src, (16, 32))
        transforms = Compose([LoadImaged("image", ensure_channel_first=True), volume_transforms(facts)])
        file = src / "training" / "patient002" / "patient002_frame09.nii.gz"
        expected = transforms({"image": str(file)})["image"]
        prepared = nib.load(out / "patient002_frame09" / "image.nii")
        np.testing.assert_allclose(prepared.get_fdata(), expected[0], atol=1e-3 * float(expected.std()))
        np.testing.assert_allclose(prepared.affine, expected.affine, atol=1e-5)

    def test_labels_may_be_floats_and_headers_ignored(
        self, src: Path, out: Path, tmp_path: Path, prepare: Prepare
    ) -> None:
        prepare(out=tmp_path / "plain")
        for file in src.rglob("*_gt.nii.gz"):
            save(file, read(file).astype(np.float64), np.diag([-1.0, -1.0, 1.0, 1.0]))
        prepare(ignore_headers=True)
        labels = list(out.rglob("label.nii"))
        assert len(labels) == 4
        for file in labels:
            assert file.read_bytes() == (tmp_path / "plain" / file.relative_to(out)).read_bytes()

    @pytest.mark.parametrize("spoil", ["nan_in_affine", "singular_affine"])
    def test_headers_may_be_worthless_where_they_are_ignored(
        self, spoil: str, src: Path, out: Path, tmp_path: Path, prepare: Prepare
    ) -> None:
        prepare(out=tmp_path / "plain")
        for file in src.rglob("*_gt.nii.gz"):
            globals()[spoil](file)
        with pytest.raises(InputError, match=r"_gt\.nii\.gz: expected an affine"):
            prepare(out=tmp_path / "refused")
        prepare(ignore_headers=True)
        for file in (tmp_path / "plain").rglob("*.nii"):
            assert file.read_bytes() == (out / file.relative_to(tmp_path / "plain")).read_bytes()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncate_inside(file: Path) -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-100]))


def not_a_number(file: Path) -> None:
    volume = read(file).astype(np.float32)
    volume[3, 4, 1:3] = np.nan, np.inf
    save(file, volume)


def singular_affine(file: Path) -> None:
    header = nib.load(file).header
    header["srow_x"] = header["pixdim"][1] = 0
    nib.Nifti1Image(read(file), None, header).to_filename(file)


def nan_in_affine(file: Path) -> None:
    image = nib.load(file)
    header, values = image.header, np.asanyarray(image.dataobj)
    header["srow_y"][3] = np.nan
    nib.Nifti1Image(values, None, header).to_filename(file)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_broken_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def outlier(file: Path) -> None:
    volume = read(file).astype(np.float32)
    volume[3, 4, 1], volume[0, 0, 0] = 3e38, 0
    save(file, volume)


SHIFT = np.array([[0, 0, 0, 3.0], *[[0, 0, 0, 0]] * 3])
MIRROR = np.diag([-1.0, 1, 1, 1])
IMAGE, LABEL, INFO = "patient001_frame09.nii.gz", "patient001_frame09_gt.nii.gz", "Info.cfg"
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no image": (IMAGE, Path.unlink, "expected a NIfTI file, got no such file"),
    "no label": (LABEL, Path.unlink, "expected a NIfTI file, got no such file"),
    "no Info.cfg": (INFO, Path.unlink, "expected a readable file, got No such file"),
    "Info.cfg without ES": (INFO, lambda file: file.write_text("ED: 1\n"), "expected the lines 'ED"),
    "Info.cfg of bytes": (INFO, lambda file: file.write_bytes(b"\xff\xfe"), "expected the lines 'ED"),
    "truncated gzip": (IMAGE, truncate, "expected a complete NIfTI file, got"),
    "truncated volume": (LABEL, truncate_inside, "expected a complete NIfTI file, got"),
    "not gzip": (IMAGE, lambda file: file.write_bytes(b"<html>404</html>"), "expected a readable NIfTI file, got"),
    "empty file": (LABEL, lambda file: file.write_bytes(b""), "expected a readable NIfTI file, got"),
    "other shape": (LABEL, lambda file: save(file, np.zeros((18, 16, 5))), "shape (18, 16, 4) as in"),
    "a time series": (IMAGE, lambda file: save(file, np.zeros((18, 16, 4, 3))), "expected 1 channel(s), got 3"),
    "one slice": (IMAGE, lambda file: save(file, np.zeros((18, 16))), "expected a 3D volume, got shape (18, 16)"),
    "singular affine": (IMAGE, singular_affine, "expected an affine whose three axes differ"),
    "affine not finite": (LABEL, nan_in_affine, "affine of finite numbers"),
    "label shifted": (LABEL, lambda file: save(file, read(file), SPACING + SHIFT), "got voxels that lie 3 mm off"),
    "label mirrored": (LABEL, lambda file: save(file, read(file), SPACING @ MIRROR), "got voxels that lie"),
    "label of another spacing": (LABEL, lambda file: save(file, read(file), np.eye(4)), "got voxels of 1 x 1 x 1 inst"),
    "complex": (IMAGE, lambda file: save(file, read(file).astype(np.complex64)), "expected one real number per voxel"),
    "folder": (IMAGE, replace_by_folder, "expected a NIfTI file, got a folder"),
    "broken link": (LABEL, replace_by_broken_link, "expected a NIfTI file, got a broken link"),
    "constant": (
        IMAGE,
        lambda file: save(file, np.full((18, 16, 4), 7.0)),
        "image with contrast, got",
    ),
    "outlier": (IMAGE, outlier, "got a few voxels between 0 and 3e+38, beside which the others"),
    "negative label": (LABEL, lambda file: save(file, -read(file).astype(np.int16)), "values from [0, 1, 2, 3], got -"),
    "unknown label": (LABEL, lambda file: save(file, read(file) * 2), "values from [0, 1, 2, 3], got 4, 6"),
    "fractional label": (LABEL, lambda file: save(file, read(file) / 2), "values from [0, 1, 2, 3], got 0.5, 1.5"),
    "not finite": (IMAGE, not_a_number, "expected finite values, got 2 that are NaN"),
    "label not finite": (LABEL, not_a_number, "values from [0, 1, 2, 3], got inf, nan"),
}


class TestBadCases:
    @pytest.mark.parametrize(("name", "spoil", "reason"), BAD.values(), ids=BAD.keys())
    def test_bad_case_is_named_and_not_written(
        self,
        src: Path,
        out: Path,
        prepare: Prepare,
        name: str,
        spoil: Callable[[Path], object],
        reason: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def written() -> set[str]:
            return {path.name for path in out.iterdir()} - {".lock", "facts.yaml"}

        file = src / "training" / "patient001" / name
        spoil(file)
        with pytest.raises(InputError) as caught:
            prepare()
        assert str(caught.value).startswith(f"{file}: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert written() <= {"patient001_frame01"}

        prepare(skip_bad=True)
        assert capsys.readouterr().err == f"skipped: {caught.value}\n"
        good = {"patient001_frame01", "patient002_frame01", "patient002_frame09", "datalist.json"}
        assert written() == (good if name != INFO else good - {"patient001_frame01"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real images beside this checkout")
class TestRealCases:
    @pytest.mark.parametrize(
        ("dataset", "name"),
        [
            ("acdc", "patient001_frame01"),
            ("flare", "train_000"),
            ("flare", "train_001"),
            ("brats", "BraTS2021_01479"),
            ("brats", "BraTS2021_01485"),
        ],
    )
    def test_labels_survive_the_way_to_the_grid_and_back(self, dataset: str, name: str) -> None:
        """A prepared label, taken for the network's certain output, is brought back as inference does."""
        facts = facts_of_dataset(dataset, SHARED / "data" / dataset)
        find_cases = {"acdc": acdc, "flare": flare, "brats": brats}[dataset].find_cases
        (case,) = (case for case in find_cases(SHARED / "data" / dataset) if case.name == name)
        prepared = transform_case(case, facts)

        transforms = Compose([LoadImaged("image", ensure_channel_first=True), *volume_transforms(facts).transforms])
        data = transforms({"image": [str(path) for path in case.images]})
        label = prepared["label"][0].as_tensor().long()
        assert data["image"].shape[1:] == label.shape
        data["pred"] = MetaTensor(torch.nn.functional.one_hot(label, facts.num_classes).permute(3, 0, 1, 2).float())
        data["pred"] = Invertd("pred", transforms, orig_keys="image", nearest_interp=False)(data)["pred"]
        returned = np.array(facts.label_codes)[data["pred"].numpy().argmax(0)]

        truth = read(case.label)
        for structure, indices in facts.structures.items():
            codes = [facts.label_codes[index] for index in indices]
            a, b = np.isin(returned, codes), np.isin(truth, codes)
            dsc = 2 * (a & b).sum() / (a.sum() + b.sum())
            assert dsc >= 0.95, f"{structure}: {dsc:.4f}"
