"""NIfTI maps of saved probabilities, against numpy."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_tools.commands import probability_maps
from tests.calib_tools.predictions.made_up import AFFINE, SHAPE, save_nnunet, softmax_of

STEP = 1 / 65535


def values_of(file: Path) -> np.ndarray:
    image = nib.load(file)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    return np.asarray(image.dataobj)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-30))).sum(0) / np.log(len(p))


def test_probabilities_of_nnunet_become_maps_on_the_grid_of_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in range(2):
        save_nnunet(tmp_path / "in", f"c{case}", softmax_of(case), AFFINE, np.float32)
    probability_maps(tmp_path / "in", out=tmp_path / "out", workers=1)
    for case in range(2):
        found = values_of(tmp_path / "out" / f"c{case}_probability.nii.gz")
        np.testing.assert_allclose(np.moveaxis(found, -1, 0), softmax_of(case), atol=STEP)
        found = values_of(tmp_path / "out" / f"c{case}_uncertainty.nii.gz")
        np.testing.assert_allclose(found, entropy(softmax_of(case)), atol=STEP)
    assert len([*(tmp_path / "out").glob("[!.]*")]) == 4
    assert capsys.readouterr().out.endswith("out: maps of 2 cases\n")


def test_folds_become_their_mean_with_its_labels_and_their_agreement(tmp_path: Path) -> None:
    folds = [tmp_path / f"fold_{fold}" for fold in range(3)]
    for number, fold in enumerate(folds):
        save_nnunet(fold, "c0", softmax_of(number), AFFINE, np.float32)
    out = tmp_path / "out"
    probability_maps(*folds, out=out, structures=["a=2", "b=7"], workers=1)
    mean = np.mean([softmax_of(number) for number in range(3)], 0)
    found = values_of(out / "c0_probability.nii.gz")
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), mean, atol=STEP)
    np.testing.assert_allclose(values_of(out / "c0_uncertainty.nii.gz"), entropy(mean), atol=STEP)
    assert (values_of(out / "c0_seg.nii.gz") == np.array([0, 2, 7])[mean.argmax(0)]).all()
    labels = [softmax_of(number).argmax(0) for number in range(3)]
    (row,) = pd.read_csv(out / "agreement.csv").to_dict("records")
    for name, index in (("a", 1), ("b", 2)):
        masks = [label == index for label in labels]
        pairs = [(masks[i], masks[j]) for i in range(3) for j in range(i)]
        dsc = np.mean([2 * (x & y).sum() / (x.sum() + y.sum()) for x, y in pairs])
        assert row[name] == pytest.approx(dsc, abs=1e-4)


def test_folds_that_find_no_structure_agree_on_none(tmp_path: Path) -> None:
    p = softmax_of(0)
    p[1] += p[2]  # no voxel is the second structure
    p[2] = 0
    folds = [tmp_path / f"fold_{fold}" for fold in range(2)]
    for fold in folds:
        save_nnunet(fold, "c0", p, AFFINE, np.float32)
    probability_maps(*folds, out=tmp_path / "out", structures=["a=1", "b=2"], workers=1)
    (row,) = pd.read_csv(tmp_path / "out" / "agreement.csv").to_dict("records")
    assert row["a"] == 1
    assert np.isnan(row["b"])


def test_channels_of_sigmoids_have_the_mean_of_their_entropies(tmp_path: Path) -> None:
    p = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)
    save_nnunet(tmp_path / "in", "c0", p, AFFINE, np.float32)
    probability_maps(
        tmp_path / "in", out=tmp_path / "out", structures=["WT=1+2", "TC=2"], sigmoid=True
    )
    each = [entropy(np.stack([q, 1 - q])) for q in p]
    found = values_of(tmp_path / "out" / "c0_uncertainty.nii.gz")
    np.testing.assert_allclose(found, np.mean(each, 0), atol=STEP)


def test_unsuitable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="predictions: give a folder"):
        probability_maps(out=tmp_path / "out")
    save_nnunet(tmp_path / "in", "c0", softmax_of(0))
    with pytest.raises(
        InputError, match=r"c0\.npz: no file says where its voxels lie.*c0\.nii\.gz"
    ):
        probability_maps(tmp_path / "in", out=tmp_path / "out")
    with pytest.raises(InputError, match=r"--out: .*in/maps is in"):
        probability_maps(tmp_path / "in", out=tmp_path / "in" / "maps")
