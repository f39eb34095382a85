"""What the fifth round measures of the networks of the heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from calib_components.posthoc import TemperatureScaling
from calib_workflows.inference.crops import Crop
from study.heart.measure import (
    BUNDLE,
    FLOOR,
    Scan,
    apply_calibrator,
    describe_probabilities,
    load_network,
    load_networks,
    move,
    near_mask,
    predict,
    shifted,
    validation_half,
)
from tests.phantoms import GROUPS, draw


def make_scan() -> Scan:
    label = torch.zeros(1, 12, 10, 2, dtype=torch.uint8)
    label[0, 5:8, 4:7, 0] = torch.tensor([[1, 2, 2], [2, 3, 2], [1, 2, 3]])
    return Scan("set", "case", "patient", torch.randn(1, 12, 10, 2), label)


def test_halves_are_odd_and_even_patients_of_each_set(tmp_path: Path) -> None:
    (tmp_path / "cardiac").mkdir()
    items = [
        {
            "case": f"{name}_{patient}_{frame}",
            "patient": f"{name}_{patient}",
            "image": "i",
            "label": "l",
        }
        for name in ("acdc", "vendor_a")
        for patient in range(3)
        for frame in range(2)
    ]
    datalist = {"training": [], "validation": items, "testing": []}
    (tmp_path / "cardiac" / "datalist.json").write_text(json.dumps(datalist))
    odd, even = ({item["patient"] for item in validation_half(tmp_path, i)} for i in (0, 1))
    assert odd == {"acdc_0", "acdc_2", "vendor_a_0", "vendor_a_2"}
    assert even == {"acdc_1", "vendor_a_1"}


def test_a_scan_is_shifted_and_left_out_if_its_heart_leaves() -> None:
    scan = make_scan()
    moved = shifted(scan, (-5, 3))
    assert moved is not None
    assert torch.equal(moved.label[0, 0:3, 7:10], scan.label[0, 5:8, 4:7])
    assert (moved.image[0, 7:] == scan.image.min()).all()
    assert (moved.image[0, :, :3] == scan.image.min()).all()
    assert shifted(scan, (-6, 0)) is None
    assert torch.equal(move(scan.image, (0, 0)), scan.image)


def test_near_is_within_a_slice() -> None:
    label = np.zeros((9, 9, 2))
    label[4, 4, 0] = 1
    near = near_mask(label, 2)
    assert near[..., 0].sum() == 13  # pixels at most 2 from one
    assert not near[..., 1].any()


def test_a_calibrator_changes_what_was_seen_alone() -> None:
    logits = torch.randn(4, 12, 10, 2)
    crop = Crop(2, 10, 1, 9)
    p = apply_calibrator(logits, crop, TemperatureScaling().with_state({"temperature": 2.0}))
    torch.testing.assert_close(crop.cut(p), crop.cut(logits / 2).softmax(0))
    torch.testing.assert_close(p[:, :2], logits[:, :2].softmax(0))


def test_several_networks_are_an_ensemble_whose_members_are_compared(tmp_path: Path) -> None:
    """Of the shipped network and a noisy copy, in the crop that the average finds."""
    shipped = BUNDLE / "models" / "model.pt"
    torch.manual_seed(0)
    weights = torch.load(shipped, weights_only=True)
    noisy = {
        name: values + 0.02 * torch.randn_like(values) if values.is_floating_point() else values
        for name, values in weights.items()
    }
    torch.save(noisy, tmp_path / "noisy.pt")
    files = [shipped, tmp_path / "noisy.pt"]
    rng = np.random.default_rng(0)
    values = draw(np.array(GROUPS["DCM"]), (224, 224, 1), np.array([112, 112, 0.5]), rng)[0]
    image = torch.from_numpy((values - values.mean()) / values.std()).float()[None]
    logits, crop, agreement = predict(load_networks(files), image)
    members = []
    for file in files:
        with torch.inference_mode():
            seen = crop.cut(image)[..., 0][None]
            members.append(load_network(file)(seen).softmax(1)[0])
    mean = torch.stack(members).mean(0)
    torch.testing.assert_close(crop.cut(logits)[..., 0].softmax(0), mean)
    masks = [each.argmax(0) == 3 for each in members]
    dsc = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert agreement["LV"] == pytest.approx(float(dsc), abs=1e-6)  # not NaN
    assert not predict(load_network(shipped), image)[2]


def test_errors_of_probabilities() -> None:
    scan = make_scan()
    p = torch.rand(4, 12, 10, 2).softmax(0)
    p[:, 6, 5, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # a voxel of a structure, given up
    row = describe_probabilities(scan, p)
    true = np.take_along_axis(p.numpy(), scan.label.numpy().astype(int), 0)[0]
    nll = -np.maximum(np.log(np.maximum(true, 1e-30)), FLOOR)
    assert row["nll_all"] == pytest.approx(nll.mean(), rel=1e-5)
    assert row["nll_near"] == pytest.approx(
        nll[near_mask(scan.label[0].numpy(), 5)].mean(), rel=1e-5
    )
    predicted = p.argmax(0).numpy() == 2
    assert row["predicted_MYO"] == predicted.sum()
    assert row["confidence_MYO"] == pytest.approx(p[2].numpy()[predicted].mean(), rel=1e-5)
    assert row["accuracy_MYO"] == pytest.approx((scan.label[0].numpy()[predicted] == 2).mean())
    assert row["true_volume_MYO"] == 5
