"""The cases and the facts of each data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_tools.prepare import acdc, brats, flare, hippocampus, prepare_data
from calib_tools.prepare.case import transform_case
from calib_tools.prepare.facts import facts_of_dataset
from calib_workflows.data.facts import facts_beside
from tests.calib_tools.prepare.conftest import read
from tests.helpers import ACDC, blocks, make_brats, make_flare, save


class TestAcdc:
    def test_cases_below_training_or_in_the_folder_itself(self, src: Path) -> None:
        shutil.copytree(src / "training" / "patient001", src / "testing" / "patient101")
        cases = acdc.find_cases(src)
        assert sorted(cases, key=str) == sorted(acdc.find_cases(src / "training"), key=str)
        # Not those of the challenge's test
        assert {case.patient for case in cases} == {"patient001", "patient002"}
        assert {case.group for case in cases if case.patient == "patient001"} == {"NOR"}
        with pytest.raises(InputError, match=r"no cases found.*Info\.cfg"):
            prepare_data("acdc", src.parent, src.parent / "out")

    def test_frames_of_info(self, src: Path) -> None:
        file = src / "training" / "patient001" / "Info.cfg"
        file.write_bytes(b"\xef\xbb\xbfED: 1\nES: 12\nNurse: M\xfcller\n")
        names = {case.name for case in acdc.find_cases(src) if case.patient == "patient001"}
        assert names == {"patient001_frame01", "patient001_frame12"}
        for content in ("ED: 1", "ED: a\nES: b"):
            file.write_text(content)
            assert any(
                "patient001/Info.cfg: cannot read the lines" in case.problem
                for case in acdc.find_cases(src)
            )


class TestBrats:
    def test_cases_at_any_depth(self, tmp_path: Path) -> None:
        make_brats(tmp_path / "MICCAI" / "HGG" / "A", "A")
        make_brats(tmp_path / "LGG" / "B", "B", ending="nii")
        make_brats(tmp_path, "C_1")
        (tmp_path / "._C_1_flair.nii.gz").touch()  # as macOS leaves them
        cases = sorted(brats.find_cases(tmp_path), key=lambda case: case.name)
        assert {case.name: case.group for case in cases} == {"A": "HGG", "B": "LGG", "C_1": ""}
        files = "B_flair.nii B_t1.nii B_t1ce.nii B_t2.nii"
        assert [path.name for path in cases[1].images] == files.split()

    def test_codes_channels_and_the_whole_brain(self, out: Path, tmp_path: Path) -> None:
        make_brats(tmp_path / "src", "A")
        prepare_data("brats", tmp_path / "src", out, workers=1)
        image, label = read(out / "A" / "image.nii"), read(out / "A" / "label.nii")
        assert image.shape == (192, 192, 128, 4)
        assert np.unique(label).tolist() == [0, 1, 2, 3]
        # 18 x 20 voxels in plane, not resampled, over the whole height
        brain = np.abs(image).max(axis=-1) > 1e-2
        assert [brain.any(axis=axes).sum() for axes in ((1, 2), (0, 2), (0, 1))] == [18, 20, 128]
        for channel in range(4):
            assert abs(image[..., channel][brain].mean()) < 0.05
            assert abs(image[..., channel][brain].std() - 1) < 0.05
        make_brats(tmp_path / "src" / "LGG", "A")
        with pytest.raises(InputError, match="two cases are called A"):
            prepare_data("brats", tmp_path / "src", out)


class TestFlare:
    def test_orientation_and_spacing_are_taken_from_the_header(
        self, out: Path, tmp_path: Path
    ) -> None:
        """The same body stored in three ways is prepared to the same volume."""
        body = np.full((24, 20, 5), -1000, np.int16)
        body[4:-4, 2:-2] = np.indices((16, 16, 5)).sum(axis=0) * 10 - 100
        label = blocks(body.shape, [1, 2, 3, 4])
        # Its axes point to inferior, left, anterior, from the corner that is voxel (23, 0, 4) of a
        turned = np.array([[0, -2, 0, 46], [0, 0, 2, 0], [-5, 0, 0, 20], [0, 0, 0, 1.0]])
        for name, store, affine in (
            ("a", np.array, np.diag([2.0, 2.0, 5.0, 1.0])),
            ("b", lambda v: v[::-1, :, ::-1].transpose(2, 0, 1), turned),
            ("c", lambda v: v.repeat(2, 0).repeat(2, 1), np.diag([1.0, 1.0, 5.0, 1.0])),
        ):
            make_flare(tmp_path / "src", name, store(body), store(label), affine)
        prepare_data(
            "flare", tmp_path / "src", out, image_size=(32, 32), workers=1, fractions=(0, 0, 1)
        )
        a, b, c = (nib.load(out / name / "image.nii") for name in "abc")
        np.testing.assert_allclose(a.get_fdata(), b.get_fdata(), atol=1e-4)
        np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
        # Half a step of 10 HU in 400
        np.testing.assert_allclose(a.get_fdata(), c.get_fdata(), atol=0.03)
        for name in "bc":
            np.testing.assert_array_equal(
                read(out / name / "label.nii"), read(out / "a" / "label.nii")
            )
        np.testing.assert_allclose(a.header.get_zooms(), [1, 1, 5])

    def test_window_of_hounsfield_units(self, out: Path, tmp_path: Path) -> None:
        body = np.full((24, 20, 5), -1000, np.int16)
        # Inside, all of it above -125
        body[4:-4, 2:-2] = np.linspace(-120, 400, 16 * 16 * 5).reshape(16, 16, 5)
        label, affine = blocks(body.shape, [1, 2, 3, 4]), np.diag([2.0, 2, 5, 1])
        for name, shift in (("a", 0), ("b", 1024)):
            make_flare(tmp_path / "src", name, body + shift, label, affine)
        options: dict[str, Any] = {"image_size": (16, 16), "workers": 1}
        with pytest.raises(InputError, match=r"b_0000\.nii\.gz: .* not Hounsfield units "):
            prepare_data("flare", tmp_path / "src", out, **options)
        prepare_data("flare", tmp_path / "src", out, **options, skip_bad=True)
        expected = ((body[4:-4, 2:-2] + 125.0) / 400).clip(0, 1)
        np.testing.assert_allclose(
            nib.load(out / "a" / "image.nii").get_fdata(), expected, atol=1e-4
        )

    def test_image_or_label_without_the_other(self, tmp_path: Path) -> None:
        save(tmp_path / "TrainingImg" / "a_0000.NII.GZ", np.zeros((4, 4, 4)))
        save(tmp_path / "TrainingMask" / "b.nii", np.zeros((4, 4, 4)))
        a, b = flare.find_cases(tmp_path)
        assert (a.images[0].name, b.label.name) == ("a_0000.NII.GZ", "b.nii")
        for case, missing in ((a, a.label), (b, b.images[0])):
            with pytest.raises(InputError, match=f"{missing}: no such file"):
                transform_case(case, facts_of_dataset("flare", tmp_path))
        save(tmp_path / "TrainingImg" / "a_0000.nii", np.zeros((4, 4, 4)))
        with pytest.raises(InputError, match=r"a_0000\.nii: a_0000\.NII\.GZ is there as well"):
            flare.find_cases(tmp_path)


NAMES = ("p1_a", "p1_b", "p2_a", "p2_b")


class TestGeneric:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Path:
        """Two patients of two files each, with two channels."""
        rng = np.random.default_rng(0)
        for name in NAMES:
            save(tmp_path / "own" / "images" / f"{name}.nii.gz", rng.random((18, 16, 4, 2)))
            save(tmp_path / "own" / "labels" / f"{name}.nii.gz", blocks((18, 16, 4), [1, 2]))
        return tmp_path / "own"

    def test_facts_configure_a_bundle(
        self, own: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        labels, fractions = ["liver", "tumour"], (0.5, 0, 0.5)
        prepare_data(
            "generic", own, out, labels, in_channels=2, patient="[^_]+", fractions=fractions
        )
        assert "a patient of its own" not in (shown := capsys.readouterr().out)
        assert (
            "patients for training 1 (2 cases), validation 0 (0 cases), testing 1 (2 cases)"
            in shown
        )
        assert nib.load(out / "p1_a" / "image.nii").shape == (224, 224, 4, 2)
        facts = facts_beside(out / "facts.yaml")
        assert (facts.dataset, facts.num_classes, facts.in_channels) == ("acdc", 3, 2)
        assert facts.class_names == ["background", "liver", "tumour"]
        assert facts.structures == {"liver": [1], "tumour": [2]}
        assert facts.label_codes == [0, 1, 2]
        assert facts.crop_size == facts.image_size == [224, 224]

    def test_usual_suffixes_and_label_maps_among_the_images(self, own: Path, out: Path) -> None:
        for file in (own / "images").glob("*"):
            file.rename(file.with_name(file.name.replace(".nii", "_0000.nii")))
        for end, name in zip(("_gt", "_seg", "_label", ""), NAMES, strict=True):
            (own / "labels" / f"{name}.nii.gz").rename(own / "labels" / f"{name}{end}.nii.gz")
        prepare_data("generic", own, out, ["liver", "tumour"], in_channels=2, fractions=(0, 0, 1))
        assert {path.parent.name for path in out.glob("*/image.nii")} == {*NAMES}
        shutil.copy(own / "labels" / "p2_b.nii.gz", own / "images" / "p1_a_0000.nii.gz")
        with pytest.raises(
            InputError, match=r"p1_a_0000\.nii\.gz: channel 0 looks like a label map"
        ):
            prepare_data(
                "generic", own, out.with_name("other"), ["liver", "tumour"], fractions=(0, 0, 1)
            )

    @pytest.mark.parametrize(
        ("structures", "codes", "names", "classes"),
        [
            (["tumour=255"], [0, 255], ["tumour"], {"tumour": [1]}),
            (
                ["WT=1+2+4", "TC=1+4", "ET=4"],
                [0, 1, 2, 4],
                ["class1", "class2", "ET"],
                {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]},
            ),
        ],
    )
    def test_structures_with_their_values(
        self,
        structures: list[str],
        codes: list[int],
        names: list[str],
        classes: dict[str, Any],
        own: Path,
        out: Path,
    ) -> None:
        for file in (own / "labels").glob("*"):
            save(file, blocks((18, 16, 4), codes[1:]))
        prepare_data("generic", own, out, structures=structures, in_channels=2, fractions=(0, 0, 1))
        facts = facts_beside(out / "facts.yaml")
        assert (facts.label_codes, facts.class_names) == (codes, ["background", *names])
        assert facts.structures == classes
        assert np.unique(read(out / "p1_a" / "label.nii")).tolist() == list(range(len(codes)))

    def test_cases_for_trained_weights_follow_their_facts(
        self, own: Path, out: Path, tmp_path: Path
    ) -> None:
        """But for the values in their label files."""
        for name in NAMES:
            save(tmp_path / "own" / "images" / f"{name}.nii.gz", np.random.rand(18, 16, 4))
            label = np.array([0, 600, 200, 500])[blocks((18, 16, 4), [1, 2, 3])].astype(np.int16)
            save(tmp_path / "own" / "labels" / f"{name}.nii.gz", label)
        codes = {"right ventricle": 600, "myocardium": 200, "left ventricle": 500}
        given = [f"{name}={code}" for name, code in reversed(codes.items())]
        like = {"like": str(ACDC / "models"), "fractions": (0, 1, 0)}
        prepare_data("generic", own, out, structures=given, **like)
        facts, of_weights = (
            facts_beside(folder / "facts.yaml") for folder in (out, ACDC / "models")
        )
        assert facts.label_codes == [0, *codes.values()]
        for name in ("dataset", "class_names", "structures", "image_size", "crop_size"):
            assert getattr(facts, name) == getattr(of_weights, name)
        first, second = (np.unique(read(out / f"{name}" / "label.nii")) for name in NAMES[:2])
        assert [*first] == [*second] == [0, 1, 2, 3]
        for wrong in (given[:2], [*given[:2], "right ventricle=1+2"], ["a=1", "b=2", "c=3"]):
            with pytest.raises(InputError, match="one value for each structure of the weights"):
                prepare_data("generic", own, out, structures=wrong, **like)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"structures": ["a=1"]}, "labels: give the names"),
            ({"like": str(ACDC / "models")}, "in_channels is that of the weights"),
            ({"like": "flair"}, "like must be one of .*, or a folder of weights .*, got flair"),
            ({"patient": "x*"}, "--patient: 'x[*]' matches no part of the name p1_a"),
            ({"dataset": "acdc"}, "labels, structures, like and in_channels are options of"),
            ({"src": Path("absent")}, "absent: no such folder"),
            ({"image_size": (120, 128)}, "image_size"),
            ({"slice_axis": 3}, "slice_axis must be"),
            ({"like": "flare", "slice_axis": 2}, "slice_axis is of no use for data like flare"),
        ],
        ids=str,
    )
    def test_unsuitable_options(
        self, options: dict[str, Any], message: str, own: Path, out: Path
    ) -> None:
        given = {"dataset": "generic", "src": own, "labels": ["a", "b"], "in_channels": 2}
        with pytest.raises(InputError, match=message):
            prepare_data(**{**given, **options}, out=out)
        assert not out.exists()


def test_network_sees_no_more_than_the_slice(tmp_path: Path) -> None:
    facts = facts_of_dataset("acdc", tmp_path, (96, 160), slice_axis=1)
    assert (facts.image_size, facts.crop_size, facts.slice_axis) == ([96, 160], [96, 144], 1)


def make_msd(
    root: Path,
    names: Sequence[str],
    shape: tuple[int, int, int],
    affine: np.ndarray,
    channels: int = 1,
) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        save(root / "imagesTr" / f"{name}.nii.gz", rng.random((*shape, channels)).squeeze(), affine)
        save(root / "labelsTr" / f"{name}.nii.gz", blocks(shape, [1, 2]), affine)
    save(root / "imagesTr" / "._hidden.nii.gz", np.zeros(shape))
    return root


def make_nnunet(root: Path, labels: dict[str, Any]) -> Path:
    """Cases of two channels, a file for each, of patients p1 and p2."""
    rng = np.random.default_rng(0)
    for name in NAMES[:3]:
        for channel in (0, 1):
            save(root / "imagesTr" / f"{name}_000{channel}.nii.gz", rng.random((16, 16, 8)))
        save(root / "labelsTr" / f"{name}.nii.gz", blocks((16, 16, 8), [1, 2]))
    task = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(task))
    return root


class TestNnunet:
    LABELS: ClassVar = {"background": 0, "PZ": 1, "TZ": 2}
    OPTIONS: ClassVar[dict[str, Any]] = {"patient": "[^_]+", "fractions": (0.5, 0, 0.5)}

    def test_channels_are_those_of_the_files_and_structures_of_the_description(
        self, tmp_path: Path
    ) -> None:
        src = make_nnunet(tmp_path / "raw", self.LABELS)
        prepare_data("nnunet", src, tmp_path / "out", **self.OPTIONS)
        facts = facts_beside(tmp_path / "out" / "facts.yaml")
        assert (facts.structures, facts.in_channels) == ({"PZ": [1], "TZ": [2]}, 2)
        assert (facts.spatial_dims, facts.file_suffixes) == (3, ["_0000", "_0001"])
        assert nib.load(tmp_path / "out" / "p1_a" / "image.nii").shape == (16, 16, 8, 2)
        prepare_data("nnunet", src, tmp_path / "own", structures=["both=1+2"], **self.OPTIONS)
        assert facts_beside(tmp_path / "own" / "facts.yaml").structures == {"both": [1, 2]}

    def test_without_a_description_names_of_files_tell_the_channels(self, tmp_path: Path) -> None:
        src = make_nnunet(tmp_path / "raw", self.LABELS)
        (src / "dataset.json").unlink()
        with pytest.raises(InputError, match="give the names of the structures"):
            prepare_data("nnunet", src, tmp_path / "out", **self.OPTIONS)
        prepare_data("nnunet", src, tmp_path / "out", labels=["PZ", "TZ"], **self.OPTIONS)
        facts = facts_beside(tmp_path / "out" / "facts.yaml")
        assert (facts.in_channels, facts.file_suffixes) == (2, ["_0000", "_0001"])
        assert nib.load(tmp_path / "out" / "p1_a" / "image.nii").shape == (16, 16, 8, 2)
        (src / "imagesTr" / f"{NAMES[0]}_0001.nii.gz").unlink()
        with pytest.raises(InputError, match=f"{NAMES[0]}_0001.nii.gz"):
            prepare_data("nnunet", src, tmp_path / "again", labels=["PZ", "TZ"], **self.OPTIONS)

    def test_regions_are_structures_of_several_codes(self, tmp_path: Path) -> None:
        src = make_nnunet(tmp_path / "raw", {"background": 0, "whole": [1, 2], "TZ": [2]})
        prepare_data("nnunet", src, tmp_path / "out", **self.OPTIONS)
        facts = facts_beside(tmp_path / "out" / "facts.yaml")
        assert facts.structures == {"whole": [1, 2], "TZ": [2]}

    def test_voxels_of_the_ignore_label_have_a_value_of_their_own(self, tmp_path: Path) -> None:
        src = make_nnunet(tmp_path / "raw", {"background": 0, "PZ": 1, "ignore": 2})
        prepare_data("nnunet", src, tmp_path / "out", **self.OPTIONS)
        facts = facts_beside(tmp_path / "out" / "facts.yaml")
        assert (facts.structures, facts.label_codes, facts.ignored_code) == ({"PZ": [1]}, [0, 1], 2)
        raw = read(src / "labelsTr" / f"{NAMES[0]}.nii.gz")
        made = read(tmp_path / "out" / NAMES[0] / "label.nii")
        np.testing.assert_array_equal(made, np.where(raw == 2, 255, raw))
        recorded = json.loads((tmp_path / "out" / NAMES[0] / "source.json").read_bytes())
        assert recorded["classes"] == [0, 1]
        (src / "dataset.json").unlink()
        with pytest.raises(InputError, match="prepared with ignored_code 2, not None"):
            prepare_data("nnunet", src, tmp_path / "out", ["PZ"], in_channels=2, **self.OPTIONS)

    def test_facts_have_the_name_of_the_description_or_else_of_the_folder(
        self, tmp_path: Path
    ) -> None:
        src = make_nnunet(tmp_path / "raw", self.LABELS)
        prepare_data("nnunet", src, tmp_path / "out", **self.OPTIONS)
        assert (tmp_path / "out" / "facts.yaml").read_text().startswith("name: raw\ndataset: hippo")
        task = json.loads((src / "dataset.json").read_text())
        (src / "dataset.json").write_text(json.dumps({**task, "name": "Prostate"}))
        prepare_data("nnunet", src, tmp_path / "own", **self.OPTIONS)
        assert facts_beside(tmp_path / "own" / "facts.yaml").name == "Prostate"

    @pytest.mark.parametrize(
        ("dataset", "labels", "lost", "message"),
        [
            ("nnunet", LABELS, "imagesTr/p1_b_0001.nii.gz", r"p1_b_0001\.nii\.gz: no such file"),
            ("nnunet", LABELS, "dataset.json", "labels: give the names"),
            ("msd", {**LABELS, "both": "x"}, "", r"dataset\.json, .*'both=x' is not"),
            ("generic", LABELS, "", "with imagesTr it is nnunet"),
        ],
    )
    def test_what_is_refused(
        self, dataset: str, labels: dict[str, Any], lost: str, message: str, tmp_path: Path
    ) -> None:
        src = make_nnunet(tmp_path / "raw", labels)
        if lost:
            (src / lost).unlink()
        names = ["a"] if dataset == "generic" else None
        with pytest.raises(InputError, match=message):
            prepare_data(dataset, src, tmp_path / "out", names, **self.OPTIONS)


class TestDecathlon:
    def test_sides_of_a_patient_stay_together(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = [f"hippocampus_{number:03d}" for number in (1, 2, 3, 4, 6, 367, 394)]
        src = make_msd(tmp_path / "task", names, (10, 18, 9), np.diag([-1.0, 1.0, 1.0, 1.0]))
        prepare_data("hippocampus", src, tmp_path / "out", fractions=(0.6, 0, 0.4))
        patients = [case.patient for case in hippocampus.find_cases(src)]
        assert patients == [f"patient{number:03d}" for number in (1, 1, 2, 2, 3, 184, 197)]
        shown = capsys.readouterr().out
        assert "patients for training 3" in shown
        assert "patches of 48 x 64 x 48 voxels (crop_size)" in shown
        facts = facts_beside(tmp_path / "out" / "facts.yaml")
        assert (facts.spatial_dims, facts.image_size, facts.crop_size) == (3, None, [48, 64, 48])
        turned = read(tmp_path / "out" / names[0] / "label.nii")
        # RAS
        np.testing.assert_array_equal(turned, read(src / "labelsTr" / f"{names[0]}.nii.gz")[::-1])
        save(src / "labelsTr" / "other.nii.gz", np.zeros((4, 4, 4)))
        with pytest.raises(InputError, match=r"other\.nii\.gz: not called hippocampus_NNN"):
            prepare_data("hippocampus", src, tmp_path / "again")

    def test_a_task_of_other_names_channels_and_spacings(self, tmp_path: Path) -> None:
        affine = np.diag([0.5, 1.0, 2.0, 1.0])
        src = make_msd(tmp_path / "task", NAMES[:3], (20, 18, 9), affine, channels=2)
        task = {
            "labels": {"0": "background", "1": "PZ", "2": "TZ"},
            "modality": {"0": "T2", "1": "ADC"},
        }
        (src / "dataset.json").write_text(json.dumps(task))
        options: dict[str, Any] = {"patient": "[^_]+", "fractions": (0.5, 0, 0.5)}
        prepare_data("msd", src, tmp_path / "out", spacing=(1, 1, 1), **options)
        facts = facts_beside(tmp_path / "out" / "facts.yaml")
        assert (facts.class_names, facts.in_channels) == (["background", "PZ", "TZ"], 2)
        assert (facts.spacing, facts.crop_size) == ([1, 1, 1], [16, 24, 24])
        assert nib.load(tmp_path / "out" / "p1_a" / "image.nii").shape == (10, 18, 17, 2)
        prepare_data("msd", src, tmp_path / "acquired", ["inner", "outer"], **options)
        facts = facts_beside(tmp_path / "acquired" / "facts.yaml")
        assert (facts.structures, facts.spacing) == ({"inner": [1], "outer": [2]}, None)
        assert nib.load(tmp_path / "acquired" / "p1_a" / "image.nii").shape == (20, 18, 9, 2)
        prepare_data("msd", src, tmp_path / "slices", like="acdc", image_size=(32, 32), **options)
        assert nib.load(tmp_path / "slices" / "p1_a" / "image.nii").shape == (32, 32, 9, 2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "labels: give the names"),
            ({"labels": ["a", "b"], "image_size": (32, 32)}, "image_size is of no use"),
            ({"labels": ["a", "b"], "spacing": (1, 1)}, "spacing must be 3"),
            ({"labels": ["a"]}, r"x\.nii\.gz: label values 2 are none of \[0, 1\]"),
        ],
    )
    def test_unsuitable_options(
        self, options: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        src = make_msd(tmp_path / "task", ["x"], (16, 16, 8), np.eye(4))
        with pytest.raises(InputError, match=message):
            prepare_data("msd", src, tmp_path / "out", fractions=(1, 0, 0), **options)
