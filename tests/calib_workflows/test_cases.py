"""One loop over labelled cases, of networks and saved: the same fits and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from calib_components.errors import InputError
from calib_tools.predictions.cases import SavedCases
from calib_tools.predictions.classes import classes_of
from calib_tools.predictions.pairing import find_pairs
from calib_workflows.cases import NetworkCases
from calib_workflows.evaluate import evaluate
from calib_workflows.evaluation_files import Evaluation
from calib_workflows.fit import Fit, fit_calibrator
from calib_workflows.inference.crops import CROP, Crop
from tests.calib_tools.predictions.made_up import AFFINE, save_channels_last, save_nifti
from tests.calib_workflows.made_up import NAMES, STRUCTURES, Replay, examples

ITEMS = examples(8, first=2)  # two of each of three patients


def of_network(items: list[dict[str, Any]]) -> NetworkCases:
    return NetworkCases(Replay(items), STRUCTURES)  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> SavedCases:
    """The cases as files of probabilities and labels."""
    for item in ITEMS:
        name = f"{item['case']}.nii.gz"
        save_channels_last(tmp_path / "predictions" / name, item["pred"].softmax(0).numpy())
        save_nifti(tmp_path / "labels" / name, item["label"][0].numpy().astype(np.uint8))
        save_nifti(tmp_path / "images" / name, item["image"][0].numpy())
    pairs = find_pairs({"": tmp_path / "predictions"}, {"": tmp_path / "labels"})
    classes = classes_of([pair.prediction for pair in pairs], ["core=1", "whole=1+2"])
    patients = {item["case"]: item["patient"] for item in ITEMS}
    return SavedCases(pairs, classes, patients, workers=1)


def assert_same_fit(found: Fit, expected: Fit, rtol: float) -> None:
    states = [fit.calibrator.state() for fit in (found, expected)]
    torch.testing.assert_close(*states, rtol=rtol, atol=rtol)
    values = [fit.reference.values for fit in (found, expected)]
    np.testing.assert_allclose(*values, rtol=rtol)
    # Scales of classes tell logits from logarithms of their softmax, which differ by one number
    names = {*expected.compared.table()} - {"vector"}
    for name in names:
        row = expected.compared.table()[name]
        assert found.compared.table()[name] == pytest.approx(row, rel=rtol, abs=rtol)
    for key, bins in expected.bins.items():
        if key[0] not in names:
            continue
        errors = [each.expected_error().item() for each in (found.bins[key], bins)]
        assert errors[0] == pytest.approx(errors[1], rel=rtol)


@pytest.mark.parametrize("choice", ["temperature", "bias"])
def test_saved_cases_give_the_fit_of_the_network(choice: str, saved: SavedCases) -> None:
    expected = fit_calibrator(of_network(ITEMS), STRUCTURES, choice)
    assert_same_fit(fit_calibrator(saved, STRUCTURES, choice), expected, rtol=1e-4)
    assert expected.estimate is not None
    assert expected.estimate.patients == 3
    assert len(expected.reference.values) == len(ITEMS)


def test_saved_cases_give_the_evaluation_of_the_network(saved: SavedCases, tmp_path: Path) -> None:
    sized = [{**item, "label": MetaTensor(item["label"], torch.tensor(AFFINE))} for item in ITEMS]
    tables = []
    for name, cases in {"network": of_network(sized), "saved": saved}.items():
        (tmp_path / name).mkdir()
        evaluate(cases, tmp_path / name, [*STRUCTURES], NAMES, {})
        found = Evaluation.read(tmp_path / name)
        assert (found.summary["unit"], found.summary["volume_unit"]) == ("mm", "ml")
        tables.append(found.cases)
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


def test_what_the_network_did_not_see_does_not_count_in_a_fit() -> None:
    crop = Crop(1, 7, 2, 6)
    seen, whole = [], []
    for item in ITEMS:
        parts = {name: crop.cut(item[name]) for name in ("image", "label", "pred")}
        seen.append({**item, **parts})
        label, logits = torch.zeros_like(item["label"]), torch.zeros_like(item["pred"])
        logits[1] = 1  # no calibrator sees that this is wrong
        crop.cut(label)[:], crop.cut(logits)[:] = parts["label"], parts["pred"]
        cropped = MetaTensor(logits, meta={CROP: torch.tensor(crop)})
        whole.append({**item, "label": label, "pred": cropped})
    found, expected = (
        fit_calibrator(of_network(items), STRUCTURES, "temperature") for items in (whole, seen)
    )
    assert found.estimate == expected.estimate
    assert_same_fit(found, expected, rtol=1e-12)


def test_cases_of_several_processes_are_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two processes has each second case."""
    names = [item["case"] for item in ITEMS[:5]]
    monkeypatch.setattr("calib_workflows.cases.gathered", lambda own: [own, names[1::2]])
    assert of_network(ITEMS[0:5:2]).map(lambda case: case.name) == names


def test_a_fit_with_the_background_as_the_last_channel_is_refused() -> None:
    moved = [{**item, "pred": item["pred"].roll(-1, 0)} for item in ITEMS]
    with pytest.raises(InputError, match="case2: the background seems to be the last channel"):
        fit_calibrator(of_network(moved), STRUCTURES)


def test_a_fit_to_exchanged_classes_is_refused() -> None:
    swapped = [
        {**item, "pred": item["pred"][[0, 2, 1, *range(3, 9)][: len(item["pred"])]]}
        for item in ITEMS
    ]
    with pytest.raises(InputError, match="classes seem to be exchanged, 1 as 2, 2 as 1: "):
        fit_calibrator(of_network(swapped), STRUCTURES)


def test_a_fit_to_labels_without_a_predicted_structure_is_refused() -> None:
    name, (*_, last) = [*STRUCTURES.items()][-1]
    lacking = [{**item, "label": item["label"] * (item["label"] != last)} for item in ITEMS]
    with pytest.raises(
        InputError, match=rf"No label has {name}, which is predicted in \d+ of {len(ITEMS)} cases"
    ):
        fit_calibrator(of_network(lacking), {name: [last]})
    fit_calibrator(of_network([*ITEMS[:1], *lacking[1:]]), {name: [last]})
