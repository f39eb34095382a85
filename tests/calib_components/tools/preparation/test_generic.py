from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from calib_components.errors import InputError
from calib_components.tools.preparation.generic import find_cases, prepare_generic
from tests.helpers import ROOT, blocks, save


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
    facts = ConfigParser.load_config_files([str(ROOT / "bundles/common/acdc.yaml"), str(out / "facts.yaml")])
    assert facts["num_classes"] == 3
    assert facts["class_names"] == ["background", "liver", "tumour"]
    assert facts["structures"] == {"liver": [1], "tumour": [2]}
    assert facts["label_codes"] == [0, 1, 2]
    assert facts["crop_size"] == "@image_size"
    assert len(ConfigParser(facts).get_parsed_content("volume_transforms")) == 3


def test_unknown_data_set_to_follow_is_an_error(src: Path, out: Path) -> None:
    with pytest.raises(InputError, match="like: expected one of acdc, flare, brats, got flair"):
        prepare_generic(src, out, ["liver"], like="flair")


@pytest.mark.parametrize("labels", [["liver", "liver"], ["liver", ""], [""]])
def test_names_of_labels_differ_and_are_not_empty(labels: list[str], src: Path, out: Path) -> None:
    with pytest.raises(InputError, match="labels: expected different names, got"):
        prepare_generic(src, out, labels)
    assert not out.exists()
