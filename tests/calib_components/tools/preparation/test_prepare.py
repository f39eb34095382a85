"""Preparation of every layout, from small files made here; at the end, of real cases where they are at hand."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor, load_decathlon_datalist
from monai.transforms import Compose, Invertd, LoadImaged

from scripts import prepare_data
from scripts.prepare_data import PrepareError, split_patients
from tests.helpers import ROOT, SHARED, blocks, make_acdc, make_brats, make_flare, save

SHARED = SHARED / "data"
SIZE = (16, 20)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return make_acdc(tmp_path / "src")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(src: Path, out: Path, **options: Any) -> None:
    prepare_data.acdc(str(src), str(out), image_size=SIZE, **{"workers": 1, **options})


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/prepare_data.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def names(out: Path) -> list[str]:
    """The prepared cases, and whatever was left beside them."""
    return sorted(path.name for path in out.iterdir() if path.name not in (".lock", "facts.yaml"))


class TestFinding:
    def test_acdc_from_above_and_from_inside(self, src: Path) -> None:
        cases = prepare_data.list_acdc(src)
        assert sorted(cases, key=str) == sorted(prepare_data.list_acdc(src / "training"), key=str)
        first = min(cases, key=lambda case: case.name)
        assert (first.name, first.patient, first.group) == ("patient001_frame01", "patient001", "NOR")
        assert first.label.name == "patient001_frame01_gt.nii.gz"

    def test_acdc_leaves_the_test_set_out_unless_asked(self, src: Path) -> None:
        shutil.copytree(src / "training" / "patient001", src / "testing" / "patient101")
        assert {case.patient for case in prepare_data.list_acdc(src)} == {"patient001", "patient002"}
        assert {case.patient for case in prepare_data.list_acdc(src / "testing")} == {"patient101"}

    def test_brats_in_any_folders(self, tmp_path: Path) -> None:
        make_brats(tmp_path / "MICCAI" / "HGG" / "A", "A")
        make_brats(tmp_path / "LGG" / "B", "B", ending="nii")
        make_brats(tmp_path, "C_1")
        (tmp_path / "._C_1_flair.nii.gz").touch()  # as macOS leaves them
        cases = sorted(prepare_data.list_brats(tmp_path), key=lambda case: case.name)
        assert [(case.name, case.group) for case in cases] == [("A", "HGG"), ("B", "LGG"), ("C_1", "")]
        assert [path.name for path in cases[1].images] == ["B_flair.nii", "B_t1.nii", "B_t1ce.nii", "B_t2.nii"]

    def test_flare_sees_images_and_labels_without_the_other(self, tmp_path: Path) -> None:
        save(tmp_path / "TrainingImg" / "train_000_0000.nii.gz", np.zeros((4, 4, 4)))
        save(tmp_path / "TrainingMask" / "train_001.nii.gz", np.zeros((4, 4, 4)))
        assert {case.name for case in prepare_data.list_flare(tmp_path)} == {"train_000", "train_001"}

    def test_generic_patients(self, tmp_path: Path) -> None:
        for name in ("p1_a", "p1_b", "p2_a"):
            save(tmp_path / "images" / f"{name}.nii", np.zeros((4, 4, 4)))
        assert {case.patient for case in prepare_data.list_generic(tmp_path)} == {"p1_a", "p1_b", "p2_a"}
        assert {case.patient for case in prepare_data.list_generic(tmp_path, "[^_]+")} == {"p1", "p2"}
        with pytest.raises(PrepareError, match=r"p\d_\w\.nii.*does not start with"):
            prepare_data.list_generic(tmp_path, r"\d+")


class TestPreparedCase:
    def test_files(self, src: Path, out: Path) -> None:
        run(src, out)
        image, label = (nib.load(out / "patient001_frame01" / name) for name in ("image.nii", "label.nii"))
        assert image.shape == label.shape == (*SIZE, 4)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        np.testing.assert_allclose(image.header.get_zooms(), [1.5 * 18 / 16, 1.25 * 16 / 20, 10])
        np.testing.assert_allclose(image.affine, label.affine)
        assert np.unique(read(out / "patient001_frame01" / "label.nii")).tolist() == [0, 1, 2, 3]

    def test_holds_what_inference_computes(self, src: Path, out: Path) -> None:
        run(src, out)
        facts = {**prepare_data.load_facts("acdc"), "image_size": list(SIZE)}
        transforms = Compose(
            [
                LoadImaged("image", ensure_channel_first=True),
                *ConfigParser(facts).get_parsed_content("volume_transforms"),
            ]
        )
        file = src / "training" / "patient002" / "patient002_frame09.nii.gz"
        expected = transforms({"image": str(file)})["image"]
        prepared = nib.load(out / "patient002_frame09" / "image.nii")
        np.testing.assert_allclose(prepared.get_fdata(), expected[0], atol=1e-3 * float(expected.std()))
        np.testing.assert_allclose(prepared.affine, expected.affine, atol=1e-5)

    def test_one_slice_is_that_of_the_volume(self, out: Path, tmp_path: Path) -> None:
        make_brats(tmp_path / "src", "A")
        prepare_data.brats(str(tmp_path / "src"), str(out), image_size=SIZE)
        image = nib.load(out / "A" / "image.nii")
        assert image.shape == (*SIZE, 128, 4)
        np.testing.assert_array_equal(image.dataobj[:, :, 40], image.get_fdata()[:, :, 40])

    def test_labels_may_be_floats_with_a_header_of_their_own(self, src: Path, out: Path, tmp_path: Path) -> None:
        run(src, tmp_path / "plain")
        for file in src.rglob("*_gt.nii.gz"):
            save(file, read(file).astype(np.float64), np.diag([-1.0, -1.0, 1.0, 1.0]))
        run(src, out)
        for file in out.rglob("label.nii"):
            assert file.read_bytes() == (tmp_path / "plain" / file.relative_to(out)).read_bytes()

    def test_brats_codes_channels_and_all_of_the_brain(self, out: Path, tmp_path: Path) -> None:
        make_brats(tmp_path / "src", "A")
        prepare_data.brats(str(tmp_path / "src"), str(out), workers=1)
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

    def test_brats_keeps_a_brain_that_is_larger_than_the_grid(self, out: Path, tmp_path: Path) -> None:
        brain = np.ones((200, 6, 6), np.int16)
        brain[0] = brain[-1] = 2
        for channel in ("flair", "t1", "t1ce", "t2"):
            save(tmp_path / "src" / f"A_{channel}.nii", brain)
        save(tmp_path / "src" / "A_seg.nii", 4 * (brain == 2).astype(np.uint8))
        prepare_data.brats(str(tmp_path / "src"), str(out), workers=1)
        label = read(out / "A" / "label.nii")
        assert label[0].any()
        assert label[-1].any()

    def test_flare_honours_orientation_and_spacing(self, out: Path, tmp_path: Path) -> None:
        """The same body stored three ways comes out the same."""
        body = np.full((24, 20, 5), -1000, np.int16)
        body[3:-2, 4:-4] = np.indices((19, 12, 5)).sum(axis=0) * 10 - 100
        label = blocks(body.shape, [1, 2, 3, 4])
        affine = np.diag([2.0, 2.0, 5.0, 1.0])
        make_flare(tmp_path / "src", "a", body, label, affine)

        # Its axes point to inferior, left, anterior, from the corner that is voxel (23, 0, 4) above.
        turned = np.array([[0, -2, 0, 46], [0, 0, 2, 0], [-5, 0, 0, 20], [0, 0, 0, 1.0]])
        make_flare(tmp_path / "src", "b", *(v[::-1, :, ::-1].transpose(2, 0, 1) for v in (body, label)), turned)
        finer = np.diag([1.0, 1.0, 5.0, 1.0])
        make_flare(tmp_path / "src", "c", *(v.repeat(2, axis=0).repeat(2, axis=1) for v in (body, label)), finer)

        prepare_data.flare(str(tmp_path / "src"), str(out), image_size=(38, 24), workers=1)
        a, b, c = (nib.load(out / name / "image.nii") for name in "abc")
        np.testing.assert_allclose(a.get_fdata(), b.get_fdata(), atol=1e-4)
        np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
        np.testing.assert_allclose(a.get_fdata(), c.get_fdata(), atol=0.03)  # half a step of 10 HU in 400
        for name in "bc":
            np.testing.assert_array_equal(read(out / "a" / "label.nii"), read(out / name / "label.nii"))
        np.testing.assert_allclose(a.header.get_zooms(), [19 * 2 / 38, 12 * 2 / 24, 5])

    def test_generic_facts_configure_a_bundle(self, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a", "b"):
            save(tmp_path / "src" / "images" / f"{name}.nii.gz", np.random.default_rng(0).random((18, 16, 4, 2)))
            save(tmp_path / "src" / "labels" / f"{name}.nii.gz", blocks((18, 16, 4), [1, 2]))
        arguments = ["generic", tmp_path / "src", out, "--labels", "liver,tumour", "--in-channels", 2, "--workers", 1]
        monkeypatch.setattr(sys, "argv", ["prepare_data", *map(str, arguments)])
        prepare_data.main()
        assert read(out / "a" / "image.nii").shape == (224, 224, 4, 2)
        facts = ConfigParser.load_config_files([str(ROOT / "bundles/common/acdc.yaml"), str(out / "facts.yaml")])
        assert facts["num_classes"] == 3
        assert facts["class_names"] == ["background", "liver", "tumour"]
        assert facts["structures"] == {"liver": [1], "tumour": [2]}
        assert facts["label_codes"] == [0, 1, 2]
        assert len(ConfigParser(facts).get_parsed_content("volume_transforms")) == 3


class TestSplit:
    groups = st.dictionaries(st.text(min_size=1, max_size=3), st.sampled_from("ABC"), min_size=1, max_size=60)
    parts = st.tuples(*[st.integers(0, 10)] * 3).filter(any)

    @given(groups=groups, parts=parts, seed=st.integers(0, 5))
    def test_properties(self, groups: dict[str, str], parts: tuple[int, ...], seed: int) -> None:
        fractions = [part / sum(parts) for part in parts]
        splits = split_patients(groups, fractions, seed)
        assert splits.keys() == groups.keys()
        assert splits == split_patients(dict(reversed(groups.items())), fractions, seed)
        for split, fraction in zip(prepare_data.SPLITS, fractions, strict=True):
            members = [patient for patient in splits if splits[patient] == split]
            assert abs(len(members) - fraction * len(groups)) < 1
            for group, size in Counter(groups.values()).items():
                assert abs(sum(groups[patient] == group for patient in members) - fraction * size) < 2

    def test_eighty_patients_of_five_groups(self) -> None:
        groups = {f"patient{i:03d}": "ABCDE"[i % 5] for i in range(80)}
        splits = split_patients(groups, (0.7, 0.1, 0.2), 0)
        assert Counter(splits.values()) == {"training": 56, "validation": 8, "testing": 16}
        for split, sizes in (("training", {11, 12}), ("validation", {1, 2}), ("testing", {3, 4})):
            assert set(Counter(groups[patient] for patient in splits if splits[patient] == split).values()) <= sizes
        assert splits != split_patients(groups, (0.7, 0.1, 0.2), 1)

    def test_fractions_that_are_zero(self) -> None:
        groups = dict.fromkeys("abcdefg", "")
        assert set(split_patients(groups, (0, 0, 1), 0).values()) == {"testing"}
        assert set(split_patients(groups, (0.5, 0, 0.5), 0).values()) == {"training", "testing"}


class TestDatalist:
    def test_monai_reads_it(self, tmp_path: Path, out: Path) -> None:
        run(make_acdc(tmp_path / "src", patients=10), out)
        datalist = json.loads((out / "datalist.json").read_text())
        assert datalist["labels"]["3"] == "left ventricle"
        assert datalist["image_size"] == list(SIZE)
        patients = {}
        for split, size in (("training", 14), ("validation", 2), ("testing", 4)):
            items = load_decathlon_datalist(out / "datalist.json", True, split, base_dir=out)
            assert len(items) == size
            assert all(Path(item[key]).is_file() for item in items for key in ("image", "label"))
            patients[split] = {item["patient"] for item in items}
        assert not patients["training"] & patients["testing"]

    def test_says_when_there_is_nothing_to_validate_on(
        self, src: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(src, out, fractions=(0.5, 0, 0.5))
        assert "No patient for validation" in capsys.readouterr().out

    def test_workers_change_nothing(self, src: Path, out: Path, tmp_path: Path) -> None:
        run(src, out)
        run(src, tmp_path / "other", workers=2)
        for file in (path for path in out.rglob("*") if path.suffix == ".nii"):
            assert file.read_bytes() == (tmp_path / "other" / file.relative_to(out)).read_bytes()
        listed = [json.loads((folder / "datalist.json").read_text()) for folder in (out, tmp_path / "other")]
        assert [item["training"] for item in listed[:1]] == [item["training"] for item in listed[1:]]


class TestAgain:
    def test_a_second_run_changes_nothing(self, src: Path, out: Path) -> None:
        run(src, out)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
        run(src, out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"} == before

    def test_only_what_is_missing(self, src: Path, out: Path) -> None:
        run(src, out)
        kept = (out / "patient001_frame01" / "image.nii").stat().st_mtime_ns
        shutil.rmtree(out / "patient002_frame09")
        (out / ".unfinished-patient002_frame09").mkdir()  # as a killed run leaves it
        run(src, out)
        assert (out / "patient001_frame01" / "image.nii").stat().st_mtime_ns == kept
        assert (out / "patient002_frame09" / "label.nii").is_file()
        assert not list(out.glob(".unfinished*"))

    def test_no_patient_changes_its_split_unnoticed(self, src: Path, out: Path) -> None:
        run(src, out, fractions=(1, 0, 0))
        before = (out / "datalist.json").read_bytes()
        message = "2 patients would change their split, such as patient001 from training to testing; choose another"
        with pytest.raises(PrepareError, match=message):
            run(src, out, fractions=(0, 0, 1))
        assert (out / "datalist.json").read_bytes() == before
        (out / "datalist.json").unlink()
        run(src, out, fractions=(0, 0, 1))
        assert len(json.loads((out / "datalist.json").read_text())["testing"]) == 4

    def test_a_new_patient_may_come(self, src: Path, out: Path) -> None:
        run(src, out, fractions=(0, 0, 1))
        make_acdc(src, patients=3)
        run(src, out, fractions=(0, 0, 1))
        assert len(json.loads((out / "datalist.json").read_text())["testing"]) == 6

    def test_other_settings_do_not_mix(self, src: Path, out: Path, tmp_path: Path) -> None:
        run(src, out)
        with pytest.raises(PrepareError, match=r"image_size \[16, 20\], not \[32, 32\]; choose another folder"):
            prepare_data.acdc(str(src), str(out), image_size=(32, 32))
        with pytest.raises(PrepareError, match="was prepared with source"):
            run(make_acdc(tmp_path / "other"), out)

    def test_two_runs_at_once(self, src: Path, out: Path) -> None:
        out.mkdir()
        with open(out / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(PrepareError, match="another run"):
                run(src, out)

    def test_kill_and_go_on(self, tmp_path: Path, out: Path) -> None:
        src = make_acdc(tmp_path / "src", patients=15, shape=(128, 128, 12))
        arguments = [sys.executable, "scripts/prepare_data.py", "acdc", src, out, "--workers", "2"]
        process = subprocess.Popen(arguments, cwd=ROOT)
        while len(list(out.glob("patient*"))) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = sorted(out.glob("patient*"))
        assert len(done) < 30
        assert not (out / "datalist.json").exists()
        for case in done:
            assert nib.load(case / "image.nii").get_fdata().shape == nib.load(case / "label.nii").get_fdata().shape
        before = {case: case.stat().st_mtime_ns for case in done}
        time.sleep(0.5)  # workers end with their parent

        assert run_script("acdc", src, out).returncode == 0
        assert len(list(out.glob("patient*"))) == 30
        assert not list(out.glob(".unfinished*"))
        assert {case: case.stat().st_mtime_ns for case in done} == before


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncate_inside(file: Path) -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-100]))


def not_a_number(file: Path) -> None:
    volume = read(file).astype(np.float32)
    volume[3, 4, 1:3] = np.nan, np.inf
    save(file, volume)


IMAGE, LABEL, INFO = "patient001_frame09.nii.gz", "patient001_frame09_gt.nii.gz", "Info.cfg"
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no image": (IMAGE, Path.unlink, "no such file"),
    "no label": (LABEL, Path.unlink, "no such file"),
    "no Info.cfg": (INFO, Path.unlink, "No such file"),
    "Info.cfg without ES": (INFO, lambda file: file.write_text("ED: 1\n"), "expected 'ED"),
    "Info.cfg of bytes": (INFO, lambda file: file.write_bytes(b"\xff\xfe"), "expected 'ED"),
    "truncated gzip": (IMAGE, truncate, "cannot be read"),
    "truncated volume": (LABEL, truncate_inside, "cannot be read"),
    "not gzip": (IMAGE, lambda file: file.write_bytes(b"<html>404</html>"), "cannot be read"),
    "empty file": (LABEL, lambda file: file.write_bytes(b""), "cannot be read"),
    "other shape": (LABEL, lambda file: save(file, np.zeros((18, 16, 5))), "(18, 16, 5) differs from (18, 16, 4)"),
    "a time series": (IMAGE, lambda file: save(file, np.zeros((18, 16, 4, 3))), "3 channels, expected 1"),
    "one slice": (IMAGE, lambda file: save(file, np.zeros((18, 16))), "expected a 3D volume"),
    "unknown label": (LABEL, lambda file: save(file, read(file) * 2), "unknown label values 4, 6;"),
    "fractional label": (LABEL, lambda file: save(file, read(file) / 2), "unknown label values 0.5, 1.5;"),
    "not finite": (IMAGE, not_a_number, "2 voxels are not finite"),
    "label not finite": (LABEL, not_a_number, "unknown label values inf, nan;"),
}


class TestBadCases:
    @pytest.mark.parametrize(("name", "spoil", "reason"), BAD.values(), ids=BAD.keys())
    def test_is_named_and_not_written(
        self, src: Path, out: Path, name: str, spoil: Callable[[Path], object], reason: str, capsys: Any
    ) -> None:
        file = src / "training" / "patient001" / name
        spoil(file)
        with pytest.raises(PrepareError) as caught:
            run(src, out)
        assert str(caught.value).startswith(f"{file}: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert set(names(out)) <= {"patient001_frame01"}

        run(src, out, skip_bad=True)
        assert capsys.readouterr().err == f"skipped: {caught.value}\n"
        good = {"patient001_frame01", "patient002_frame01", "patient002_frame09", "datalist.json"}
        assert set(names(out)) == (good if name != INFO else good - {"patient001_frame01"})

    def test_all_bad(self, src: Path, out: Path) -> None:
        for file in src.rglob("*_gt.nii.gz"):
            file.unlink()
        with pytest.raises(PrepareError, match="no case was prepared"):
            run(src, out, skip_bad=True)
        assert names(out) == []

    def test_brats_without_a_modality(self, out: Path, tmp_path: Path) -> None:
        make_brats(tmp_path / "src" / "HGG" / "A", "A")
        (tmp_path / "src" / "HGG" / "A" / "A_t1ce.nii.gz").unlink()
        with pytest.raises(PrepareError, match=r"A_t1ce\.nii\.gz: no such file"):
            prepare_data.brats(str(tmp_path / "src"), str(out))

    def test_brats_channels_of_different_shape(self, out: Path, tmp_path: Path) -> None:
        make_brats(tmp_path / "src", "A")
        save(tmp_path / "src" / "A_t2.nii.gz", np.ones((22, 24, 8)))
        with pytest.raises(PrepareError, match=r"A_t2\.nii\.gz: shape .* differs from .* of .*A_flair"):
            prepare_data.brats(str(tmp_path / "src"), str(out))

    def test_nothing_but_air(self, out: Path, tmp_path: Path) -> None:
        air = np.full((9, 9, 4), -1000, np.int16)
        make_flare(tmp_path / "src", "a", air, np.zeros(air.shape, np.uint8), np.eye(4))
        with pytest.raises(PrepareError, match=r"a_0000\.nii\.gz: cannot be transformed"):
            prepare_data.flare(str(tmp_path / "src"), str(out))

    def test_same_name_twice(self, out: Path, tmp_path: Path) -> None:
        make_brats(tmp_path / "src" / "HGG", "A")
        make_brats(tmp_path / "src" / "LGG", "A")
        with pytest.raises(PrepareError, match="a second case A"):
            prepare_data.brats(str(tmp_path / "src"), str(out))

    def test_sources_without_cases(self, tmp_path: Path, out: Path) -> None:
        for command in (prepare_data.acdc, prepare_data.flare, prepare_data.brats):
            with pytest.raises(PrepareError, match="no cases in it; expected"):
                command(str(tmp_path), str(out))
            with pytest.raises(PrepareError, match="absent: no such folder"):
                command(str(tmp_path / "absent"), str(out))
        assert not out.exists()

    @pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (1, 0), (1.2, -0.2, 0), 1, (float("nan"), 0, 1)])
    def test_fractions(self, src: Path, out: Path, fractions: Any) -> None:
        with pytest.raises(PrepareError, match="fractions: expected"):
            run(src, out, fractions=fractions)

    @pytest.mark.parametrize("image_size", [128, (128,), (0, 128)])
    def test_image_size(self, src: Path, out: Path, image_size: Any) -> None:
        with pytest.raises(PrepareError, match="image_size: expected"):
            prepare_data.acdc(str(src), str(out), image_size=image_size)

    def test_like(self, src: Path, out: Path) -> None:
        with pytest.raises(PrepareError, match="like: expected one of acdc, flare, brats, got flair"):
            prepare_data.generic(str(src), str(out), "liver", like="flair")

    def test_a_folder_above_training_and_testing(self, src: Path, out: Path, tmp_path: Path) -> None:
        """ACDC's own test patients must not come into the split."""
        (tmp_path / "download").mkdir()
        src.rename(tmp_path / "download" / "database")
        with pytest.raises(PrepareError, match=r"download: no cases in it; expected training/patientNNN/Info\.cfg"):
            run(tmp_path / "download", out)

    def test_command_line(self, src: Path, out: Path) -> None:
        bad = src / "training" / "patient001" / IMAGE
        truncate(bad)
        arguments = ("acdc", src, out, "--image-size", "16,20", "--fractions", "0,0,1")
        failed = run_script(*arguments)
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"prepare_data: {bad}: cannot be read: ")
        assert failed.stderr.count("\n") == 1
        assert not (out / "datalist.json").exists()

        misspelt = run_script(*arguments, "--skip-bat")
        assert misspelt.returncode == 2
        assert misspelt.stderr.startswith("ERROR: Could not consume arg: --skip-bat\n")
        assert str(bad) not in misspelt.stderr  # nothing was begun

        skipped = run_script(*arguments, "--skip-bad")
        assert skipped.returncode == 0
        assert skipped.stderr.startswith(f"skipped: {bad}: cannot be read: ")
        assert "testing 2 (3 cases)" in skipped.stdout


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
    def test_labels_survive_the_way_through_the_networks_grid(self, dataset: str, name: str, out: Path) -> None:
        """A prepared label, taken for the network's certain output, goes back as inference takes it."""
        facts = prepare_data.load_facts(dataset)
        cases = getattr(prepare_data, f"list_{dataset}")(SHARED / dataset)
        (case,) = (case for case in cases if case.name == name)
        out.mkdir()
        prepare_data.prepare_case(case, facts, out)

        load = LoadImaged("image", ensure_channel_first=True)
        transforms = Compose([load, *ConfigParser(facts).get_parsed_content("volume_transforms")])
        data = transforms({"image": [str(path) for path in case.images]})
        label = torch.from_numpy(read(out / name / "label.nii").astype(np.int64))
        assert data["image"].shape[1:] == label.shape
        data["pred"] = MetaTensor(torch.nn.functional.one_hot(label, facts["num_classes"]).permute(3, 0, 1, 2).float())
        data["pred"] = Invertd("pred", transforms, orig_keys="image", nearest_interp=False)(data)["pred"]
        returned = np.array(facts["label_codes"])[data["pred"].numpy().argmax(0)]

        truth = read(case.label)
        for structure, indices in facts["structures"].items():
            codes = [facts["label_codes"][index] for index in indices]
            a, b = np.isin(returned, codes), np.isin(truth, codes)
            dsc = 2 * (a & b).sum() / (a.sum() + b.sum())
            assert dsc >= 0.95, f"{structure}: {dsc:.4f}"

    def test_facts_are_whole(self) -> None:
        for dataset in ("acdc", "flare", "brats"):
            facts = prepare_data.load_facts(dataset)
            assert yaml.safe_load(yaml.safe_dump(facts)) == facts
            assert len(facts["class_names"]) == len(facts["label_codes"]) == facts["num_classes"]
