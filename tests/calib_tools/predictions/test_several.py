"""Predictions of several networks and labels of several raters, against numpy."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from calib_components.errors import InputError
from calib_tools.predictions import calibrate_predictions, evaluate_predictions
from calib_workflows.calibrate import read_estimate
from calib_workflows.evaluation_files import Evaluation
from tests.calib_components.metrics.by_definition import bin_index
from tests.calib_tools.predictions.made_up import (
    SHAPE,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
    softmax_of,
)
from tests.helpers import SHARED

NAMES = ["p1", "p2", "p3"]
RATERS, MEMBERS = ("anna", "ben", "cleo"), tuple(f"fold_{number}" for number in range(5))
STRUCTURES = {"a": [1], "both": [1, 2]}
OPTIONS = {"structures": ["a=1", "both=1+2"], "workers": 1}


def p_of(member: int, case: int) -> np.ndarray:
    return softmax_of(10 * member + case)


def y_of(rater: int, case: int) -> np.ndarray:
    """Raters agree in most voxels."""
    own, common = label_of(100 * rater + case), p_of(0, case).argmax(0)
    return np.where(np.random.default_rng(rater).uniform(size=SHAPE) < 0.3, own, common).astype(
        "u1"
    )


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for (number, rater), (case, name) in itertools.product(enumerate(RATERS), enumerate(NAMES)):
        if (rater, name) != ("cleo", "p2"):  # who lacks one
            save_nifti(tmp_path / rater / f"{name}_gt.nii.gz", y_of(number, case))
    for (number, member), (case, name) in itertools.product(enumerate(MEMBERS), enumerate(NAMES)):
        save_channels_last(tmp_path / member / f"{name}.nii.gz", p_of(number, case))
    return tmp_path


def masks_of(classes: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.isin(classes, indices) for name, indices in STRUCTURES.items()}


def dsc(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def raters_of(case: int) -> list[int]:
    return [number for number in range(3) if (number, case) != (2, 1)]


def sums(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Number of voxels, sum of confidences and number correct of 15 bins, where p predicts."""
    confidence, predicted = p.max(0), p.argmax(0)
    inside = predicted > 0
    index = np.ceil(confidence[inside].astype(float) * 15).astype(int) - 1
    return np.stack(
        [
            np.bincount(index, weights, 15)
            for weights in (None, confidence[inside], (predicted == y)[inside])
        ]
    )


def ece(of_bins: np.ndarray) -> float:
    count, confidence, correct = of_bins
    return float(np.abs(confidence - correct).sum() / count.sum())


def nll(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(np.take_along_axis(p, y[None].astype(int), 0)).mean())


def test_raters_csv_has_the_numbers_of_numpy(folders: Path) -> None:
    raters = [folders / name for name in RATERS]
    evaluate_predictions(folders / "fold_0", raters=raters, out=folders / "out", **OPTIONS)
    table = pd.read_csv(folders / "out" / "raters.csv").set_index(["rater", "structure"])
    assert [*table.index.unique(0)] == [*RATERS, "all"]
    for number, rater in enumerate(RATERS):
        cases = [case for case in range(3) if number in raters_of(case)]
        for name in STRUCTURES:
            row = table.loc[rater, name]
            masks = [(masks_of(p_of(0, k).argmax(0)), masks_of(y_of(number, k))) for k in cases]
            assert row["scans"] == len(cases)
            assert row["dsc"] == pytest.approx(np.mean([dsc(a[name], b[name]) for a, b in masks]))
            assert row["ece_predicted"] == pytest.approx(
                np.mean([ece(sums(p_of(0, k), y_of(number, k))) for k in cases]), abs=1e-6
            )
            assert row["nll_all"] == pytest.approx(
                np.mean([nll(p_of(0, k), y_of(number, k)) for k in cases]), abs=1e-6
            )
            others = [
                np.mean(
                    [dsc(m[name], masks_of(y_of(o, k))[name]) for o in raters_of(k) if o != number]
                )
                for k, (_, m) in zip(cases, masks, strict=True)
            ]
            assert row["raters_dsc"] == pytest.approx(np.mean(others))
    for name in STRUCTURES:
        row = table.loc["all", name]
        mean_sums = [
            np.mean([sums(p_of(0, k), y_of(r, k)) for r in raters_of(k)], 0) for k in range(3)
        ]
        assert row["ece_predicted"] == pytest.approx(np.mean([*map(ece, mean_sums)]), abs=1e-6)
        pairs = [
            np.mean(
                [
                    dsc(masks_of(y_of(r, k))[name], masks_of(y_of(s, k))[name])
                    for r, s in itertools.combinations(raters_of(k), 2)
                ]
            )
            for k in range(3)
        ]
        assert row["raters_dsc"] == pytest.approx(np.mean(pairs))
    cases = Evaluation.read(folders / "out").cases
    assert table.loc["all", "both"]["dsc"] == pytest.approx(cases["dsc_both"].mean())
    for name, structure in itertools.product(RATERS, STRUCTURES):
        inside = []
        for case in (case for case in range(3) if RATERS.index(name) in raters_of(case)):
            p = p_of(0, case)[STRUCTURES[structure]].sum(0)
            volume = masks_of(y_of(RATERS.index(name), case))[structure].sum()
            inside.append((p > 0.95).sum() <= volume <= (p > 0.05).sum())
        assert table.loc[name, structure]["volume_in_range"] == pytest.approx(np.mean(inside))


def test_members_are_averaged_and_compared(folders: Path) -> None:
    members = [folders / name for name in MEMBERS]
    evaluate_predictions(folders / "anna", members=members, out=folders / "out", **OPTIONS)
    cases = Evaluation.read(folders / "out").cases
    for case in range(3):
        mean = np.mean([p_of(number, case) for number in range(5)], 0)
        assert cases["nll_all"][case] == pytest.approx(nll(mean, y_of(0, case)), abs=1e-6)
        for name in STRUCTURES:
            masks = [masks_of(p_of(number, case).argmax(0))[name] for number in range(5)]
            expected = np.mean([dsc(*pair) for pair in itertools.combinations(masks, 2)])
            assert cases[f"pairwise_dsc_{name}"][case] == pytest.approx(expected, abs=1e-6)
    table = pd.read_csv(folders / "out" / "members.csv").set_index(["member", "structure"])
    for number, member in enumerate(MEMBERS):
        expected = np.mean([nll(p_of(number, k), y_of(0, k)) for k in range(3)])
        assert table.loc[member, "a"]["nll_all"] == pytest.approx(expected, abs=1e-6)
    assert table.loc["average", "a"]["nll_all"] == pytest.approx(cases["nll_all"].mean())

    evaluate_predictions(members=members, out=folders / "estimates", **OPTIONS)
    quality = pd.read_csv(folders / "estimates" / "quality.csv").set_index(["scan", "structure"])
    for case, name in itertools.product(range(3), STRUCTURES):
        expected = cases[f"pairwise_dsc_{name}"][case]
        assert quality.loc[NAMES[case], name]["pairwise_dsc"] == pytest.approx(expected, abs=1e-6)


def test_folds_of_nnunet_and_label_maps_are_members(folders: Path) -> None:
    """nnU-Net writes a label map beside the probabilities; label maps alone are votes."""
    for (number, member), (case, name) in itertools.product(enumerate(MEMBERS), enumerate(NAMES)):
        p, place = p_of(number, case), folders / "nnunet" / member
        save_nnunet(place, name, p, dtype=np.float32)
        save_nifti(place / f"{name}.nii.gz", p.argmax(0).astype("u1"))
        save_nifti(folders / "maps" / member / f"{name}.nii.gz", p.argmax(0).astype("u1"))
    for kind in ("nnunet", "maps"):
        members = [folders / kind / member for member in MEMBERS]
        evaluate_predictions(
            folders / "anna", members=members, out=folders / kind / "out", **OPTIONS
        )
    evaluate_predictions(
        folders / "anna", members=[folders / m for m in MEMBERS], out=folders / "out", **OPTIONS
    )
    expected, nnunet, votes = (
        Evaluation.read(each / "out").cases
        for each in (folders, folders / "nnunet", folders / "maps")
    )
    pd.testing.assert_frame_equal(nnunet, expected, rtol=1e-5)
    columns = ["pairwise_dsc_a", "pairwise_dsc_both"]
    pd.testing.assert_frame_equal(votes[columns], expected[columns])
    for case in range(3):  # half a vote takes the place of none
        maps = np.stack([p_of(number, case).argmax(0) for number in range(5)])
        share = (maps == y_of(0, case)).mean(0).clip(1 / 10)
        assert votes["nll_all"][case] == pytest.approx(-np.log(share).mean(), abs=1e-6)


def test_a_temperature_is_fitted_to_all_raters(folders: Path) -> None:
    raters = [folders / name for name in RATERS]
    options = {"apply_to": [folders / "fold_1"], "structures": OPTIONS["structures"]}
    options |= {"calibrator": "temperature", "workers": 1}
    calibrate_predictions(folders / "fold_0", raters=raters, out=folders / "scaled", **options)
    t = read_estimate(folders / "scaled").temperature

    def cost(t: float) -> float:
        p = [p_of(0, k).astype(float) ** (1 / t) for k in range(3)]
        return sum(
            np.mean([nll(each / each.sum(0), y_of(r, k)) for r in raters_of(k)])
            for k, each in enumerate(p)
        )

    best = optimize.minimize_scalar(
        cost, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-7}
    )
    assert t == pytest.approx(best.x, rel=1e-4)


def test_the_average_of_members_is_fitted_and_scaled(folders: Path) -> None:
    members = [folders / name for name in MEMBERS]
    calibrate_predictions(
        folders / "anna",
        members=members,
        apply_to=members,
        out=folders / "scaled",
        structures=OPTIONS["structures"],
        calibrator="temperature",
        workers=1,
    )
    t = read_estimate(folders / "scaled").temperature
    means = [np.mean([p_of(number, k) for number in range(5)], 0).astype(float) for k in range(3)]

    def scaled(p: np.ndarray, t: float) -> np.ndarray:
        powers = p ** (1 / t)
        return powers / powers.sum(0)

    best = optimize.minimize_scalar(
        lambda t: sum(nll(scaled(p, t), y_of(0, k)) for k, p in enumerate(means)),
        bounds=(0.1, 8),
        method="bounded",
    )
    assert t == pytest.approx(best.x, rel=1e-4)
    for name, p in zip(NAMES, means, strict=True):
        found = load(folders / "scaled" / f"{name}_probability.nii.gz")
        np.testing.assert_allclose(np.moveaxis(found, -1, 0), scaled(p, t), atol=1e-5)


RETINA = SHARED / "data" / "retina" / "drive"


@pytest.mark.skipif(not RETINA.is_dir(), reason="needs ../shared/data/retina")
def test_two_raters_of_photographs_and_a_strangers_network(tmp_path: Path) -> None:
    """A channel of sigmoids in 8 bits, and 255 outside of what was photographed."""
    names, raters = ("drive01", "drive04"), ("rater1", "rater2")
    for folder, name in itertools.product(("predictions/wnet", *raters), names):
        for file in (RETINA / folder).glob(f"{name}*"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / folder)
    evaluate_predictions(
        tmp_path / "predictions/wnet",
        raters=[tmp_path / rater for rater in raters],
        out=tmp_path / "out",
        structures=["vessel=1"],
        ignore_index=255,
        workers=1,
    )
    found = pd.read_csv(tmp_path / "out" / "raters.csv").set_index("rater")
    rows = []
    for name in names:
        p = load(tmp_path / "predictions/wnet" / f"{name}_probability.nii.gz")
        labels = [load(tmp_path / rater / f"{name}.nii.gz") for rater in raters]
        between = dsc(*(label == 1 for label in labels))
        of_raters = [by_numpy(p, [label]) for label in labels]
        rows.append([{**row, "raters_dsc": between} for row in [*of_raters, by_numpy(p, labels)]])
    for number, rater in enumerate((*raters, "all")):
        expected = pd.DataFrame([of_case[number] for of_case in rows]).mean()
        for column, value in expected.items():
            assert found.loc[rater, column] == pytest.approx(value, abs=1e-5), (rater, column)


def load(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def by_numpy(p: np.ndarray, labels: list[np.ndarray]) -> dict[str, float]:
    """Measures of a channel of sigmoids over all raters: a voxel and one of them is one
    observation.
    """
    p = np.concatenate([p[label < 255] for label in labels])
    y = np.concatenate([label[label < 255] for label in labels])
    of_label = np.where(y == 1, p, 1 - p).clip(0.5 / 255)  # half a step in place of 0
    confidence, right, inside = np.maximum(p, 1 - p), (p > 0.5) == y, p > 0.5
    row = {"nll_all": -np.log(of_label).mean()}
    for region, mask in {"all": inside | True, "predicted": inside}.items():
        index = bin_index(confidence[mask])
        weights = (None, confidence[mask], right[mask])
        count, sure, correct = (np.bincount(index, each, 15) for each in weights)
        row[f"ece_{region}"] = np.abs(sure - correct).sum() / count.sum()
    size = len(p) // len(labels)
    pairs = [
        (p[start : start + size] > 0.5, y[start : start + size] == 1)
        for start in range(0, len(p), size)
    ]
    return {**row, "dsc": np.mean([dsc(*pair) for pair in pairs])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": ["fold_0"]}, "--members: give two folders or more"),
        ({"members": ["fold_0", "anna/../fold_0"]}, "--members: give two folders or more"),
        ({"raters": ["anna"], "predictions": "fold_0"}, "--raters: give two folders or more"),
        ({"members": ["fold_0", "other"]}, "other cases, such as"),
        ({"members": ["fold_0", "four"]}, "has 4 channels"),
        ({"raters": ["anna", "other"], "predictions": "fold_0"}, "no label has the name"),
        (
            {"raters": ["anna", "ben"], "labels": "anna", "predictions": "fold_0"},
            "labels: give one",
        ),
        (
            {"members": ["fold_0", "fold_1"], "predictions": "fold_0", "labels": "anna"},
            "predictions:",
        ),
        ({}, "predictions: give a folder"),
    ],
)
def test_folders_that_do_not_go_together_are_refused(
    folders: Path, options: dict, message: str
) -> None:
    save_channels_last(folders / "other" / "x.nii.gz", p_of(0, 0))
    for case, name in enumerate(NAMES):
        save_channels_last(folders / "four" / f"{name}.nii.gz", softmax_of(case, 4))
    given = {
        name: [folders / each for each in value] if isinstance(value, list) else folders / value
        for name, value in options.items()
    }
    with pytest.raises(InputError, match=message):
        evaluate_predictions(**given, out=folders / "out", **OPTIONS)
