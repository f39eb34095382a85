from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.data.facts import read_facts
from calib_components.errors import InputError
from calib_components.tools.prepare.facts import facts_of_dataset
from calib_components.tools.prepare.generic import find_cases, prepare_generic
from tests.helpers import blocks, save


def test_patients_are_identified_by_a_pattern(tmp_path: Path) -> None:
    for name in ("p1_a", "p1_b", "p2_a"):
        save(tmp_path / "images" / f"{name}.nii", np.zeros((4, 4, 4)))
    assert {case.patient for case in find_cases(tmp_path)} == {"p1_a", "p1_b", "p2_a"}
    assert {case.patient for case in find_cases(tmp_path, "[^_]+")} == {"p1", "p2"}
    with pytest.raises(InputError, match=r"p\d_\w\.nii.*: expected a name that starts with the patient pattern"):
        find_cases(tmp_path, r"\d+")
    with pytest.raises(InputError, match=r"patient: expected a regular expression, got '\('"):
        find_cases(tmp_path, "(")


def test_facts_configure_a_bundle(out: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "src" / "images" / f"{name}.nii.gz", np.random.default_rng(0).random((18, 16, 4, 2)))
        save(tmp_path / "src" / "labels" / f"{name}.nii.gz", blocks((18, 16, 4), [1, 2]))
    prepare_generic(tmp_path / "src", out, ["liver", "tumour"], in_channels=2, workers=1)
    assert nib.load(out / "a" / "image.nii").shape == (224, 224, 4, 2)
    own = asdict(facts_of_dataset("acdc", tmp_path))
    facts = read_facts(out / "facts.yaml", **own)
    assert (facts.dataset, facts.num_classes, facts.in_channels) == ("acdc", 3, 2)
    assert facts.class_names == ["background", "liver", "tumour"]
    assert facts.structures == {"liver": [1], "tumour": [2]}
    assert facts.label_codes == [0, 1, 2]
    assert facts.crop_size == facts.image_size == [224, 224]


def test_unknown_data_set_to_follow_is_an_error(src: Path, out: Path) -> None:
    with pytest.raises(InputError, match="like: expected one of acdc, flare, brats, got flair"):
        prepare_generic(src, out, ["liver"], like="flair")


@pytest.mark.parametrize(
    "labels", [["liver", "liver"], ["liver", ""], [""], ["Background"], ["$1"], ["@image_size"], ["%a"], ["a\nb"]]
)
def test_unsuitable_names_of_labels(labels: list[str], src: Path, out: Path) -> None:
    with pytest.raises(InputError, match=r"labels: expected .*names"):
        prepare_generic(src, out, labels)
    assert not out.exists()


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (
            "p0",
            "p0_label",
            r"labels/p0\.nii\.gz: expected a NIfTI file, got no such file but one of p0_label; images and",
        ),
        (
            "p0_0000",
            "p0",
            r"images/p0\.nii\.gz: expected a NIfTI file, got no such file but one of p0_0000; images and",
        ),
        ("p0", "p01", r"labels/p0\.nii\.gz: expected a NIfTI file, got no such file$"),
    ],
)
def test_similar_name_is_hinted_at(image: str, label: str, message: str, out: Path, tmp_path: Path) -> None:
    save(tmp_path / "src" / "images" / f"{image}.nii.gz", np.zeros((4, 4, 4)))
    save(tmp_path / "src" / "labels" / f"{label}.nii.gz", np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match=message):
        prepare_generic(tmp_path / "src", out, ["liver"], workers=1)


def test_capitals_in_the_ending(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.NII.GZ", np.zeros((4, 4, 4)))
    save(tmp_path / "labels" / "a.nii", np.zeros((4, 4, 4)))
    (case,) = find_cases(tmp_path)
    assert (case.images[0].name, case.label.name) == ("a.NII.GZ", "a.nii")
