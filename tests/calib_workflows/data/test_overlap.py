"""Whether two sets of cases share a patient or a volume."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from calib_workflows.data.overlap import content_of, find_shared
from tests.helpers import save


def item(case: str, patient: str | None = None, **volume: object) -> dict[str, object]:
    return {"case": case, "patient": patient or case, **volume}


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_volumes_are_found_under_any_name(ending: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((6, 5, 4, 4), np.float32)
    for index, name in enumerate(["a", "b", "c"]):
        save(tmp_path / f"{name}.{ending}", values[index])
    # Its name is in a .gz, too
    nib.load(tmp_path / f"b.{ending}").to_filename(tmp_path / f"renamed.{ending}")
    shutil.copy(tmp_path / f"b.{ending}", tmp_path / f"twin.{ending}")
    if ending == "nii":
        save(tmp_path / "renamed.nii", values[1], np.diag([1, 1, 3.001, 1]))
    items = {
        name: item(name, image=tmp_path / f"{name}.{ending}")
        for name in ("a", "b", "c", "renamed", "twin", "no")
    }
    others = [items["c"], item("d", image=tmp_path / "gone")]
    assert find_shared([items["a"], items["b"], items["no"]], others) == []
    for other in ("renamed", "twin"):
        (found,) = find_shared([items["a"], items["b"]], [items["c"], items[other]])
        assert str(found) == f"the same volume is on both sides (b and {other})"


def test_patients_and_names() -> None:
    (found,) = find_shared(
        [item("a_1", "a"), item("b_1", "b")], [item("a_2", "a"), item("c_1", "c")]
    )
    assert (str(found), found.is_only_name) == ("patient a is on both sides (a_1 and a_2)", False)
    # Two hospitals may number from 1
    (found,) = find_shared([item("1", content="x")], [item("1", content="y")])
    assert (str(found), found.is_only_name) == ("patient 1 is on both sides (1)", True)
    (found,) = find_shared([item("1", content="x")], [item("1", content="x")])
    assert (found.is_volume, found.is_only_name) == (True, False)


def test_labels_tell_cases_apart_unless_they_are_empty() -> None:
    label = torch.zeros(1, 4, 4, 2)
    assert content_of(label) == ""
    assert find_shared([item("a", content="")], [item("b", content="")]) == []
    label[0, 1] = 2
    assert content_of(label) == content_of(label.byte()) == content_of(label.movedim(3, 1))
    label = torch.randint(4, (1, 9, 7, 40))
    other = label.clone()
    other[0, 2, 3, 4] = 3 - other[0, 2, 3, 4]
    assert content_of(label) == content_of(label.flip(1, 3).transpose(1, 2)) != content_of(other)
