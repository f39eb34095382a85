"""A MONAI Label server with the bundles of ACDC and, in 3D, the hippocampus, asked over HTTP as a
viewer does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from monai.bundle import ConfigParser

from calib_components.posthoc import VectorScaling
from calib_components.posthoc.network import calibrator_in
from calib_workflows.weights import with_calibrator
from tests.helpers import ACDC, HIPPOCAMPUS, ROOT, copy_with_weights, made_up, run_bundle

SIZE = 64


@contextmanager
def server(bundle: Path, studies: Path, home: Path) -> Iterator[str]:
    """Serve the bundle with scripts/monai_label and yield the address of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [ROOT / "scripts" / "monai_label", bundle, studies, "--port", str(port)]
    address, log = f"http://127.0.0.1:{port}", home.with_suffix(".log")
    environment = {**os.environ, "MONAI_LABEL_HOME": str(home)}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 1200  # the first start installs MONAI Label
        while not answers(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # SIGTERM waits for what it scores
        process.wait()


def answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/info/", timeout=60).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def infer(address: str, model: str, image: str, folder: Path, **params: Any) -> np.ndarray:
    """The map that the server answers with for an image."""
    question = {"params": json.dumps({"device": "cpu", **params})}
    answer = requests.post(
        f"{address}/infer/{model}?image={image}&output=image", data=question, timeout=600
    )
    assert answer.ok, answer.text
    path = folder / f"answer{len(list(folder.iterdir()))}.nii.gz"
    path.write_bytes(answer.content)
    return nib.load(path).get_fdata()


def put_label(address: str, file: Path) -> None:
    """Send a label for the image of the same name."""
    with open(file, "rb") as label:
        answer = requests.put(
            f"{address}/datastore/label?image={file.name.removesuffix('.nii.gz')}&tag=final",
            files={"label": (file.name, label)},
            data={"params": "{}"},
            timeout=60,
        )
    assert answer.ok, answer.text


def train(address: str, model: str, **options: Any) -> None:
    """Train on the labels of the server, until the end."""
    answer = requests.post(
        f"{address}/train/{model}?run_sync=true", json={"device": "cpu", **options}, timeout=600
    )
    assert answer.ok, answer.text


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Mean DSC of the structures that the other one has."""
    pairs = [(one == k, other == k) for k in np.unique(other[other > 0])]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


@pytest.mark.slow
def test_infer_label_train_and_infer_again(phantoms: Path, tmp_path: Path) -> None:
    studies, labels, maps = (tmp_path / name for name in ("studies", "labels", "maps"))
    for folder in (studies, labels, maps):
        folder.mkdir()
    for label in sorted(phantoms.glob("training/patient00[123]/*_gt.nii.gz")):
        name = label.name.replace("_gt", "")
        shutil.copy(label.parent / name, studies)
        shutil.copy(label, labels / name)
    # Must not keep the others from being scored
    (studies / "broken.nii.gz").write_bytes(b"not an image")
    *names, held_out = sorted(path.name.removesuffix(".nii.gz") for path in labels.iterdir())
    truth = nib.load(labels / f"{held_out}.nii.gz").get_fdata()

    bundle = copy_with_weights(ACDC, tmp_path / "source")
    for config in ("train.yaml", "inference.yaml"):
        content = ConfigParser.load_config_file(bundle / "configs" / config) | {
            "image_size": [SIZE, SIZE]
        }
        ConfigParser.export_config_file(content, str(bundle / "configs" / config), "yaml")
    facts = content["facts"]
    model = bundle.name
    file, fitted = bundle / "models" / "model.pt", made_up(VectorScaling, 4)
    file.write_bytes(with_calibrator(file, fitted))
    weights = torch.load(file, weights_only=True)
    weights["reference"] = torch.rand(12, 3, 5)  # as if of validation scans
    torch.save(weights, file)
    run_bundle(bundle, "inference.yaml", dataset_dir=str(studies / f"{held_out}.nii.gz"))
    served = tmp_path / "home" / "monaibundle" / "model" / model / "models" / "model.pt"

    with server(bundle, studies, tmp_path / "home") as address:
        info = requests.get(f"{address}/info/", timeout=60).json()
        codes = {
            name.lower(): code
            for name, code in zip(facts["class_names"], facts["label_codes"], strict=True)
        }
        assert info["models"][model]["labels"] | {"background": 0} == codes
        assert model in info["trainers"]

        first = infer(address, model, held_out, maps)
        uncertainty = infer(address, model, held_out, maps, show_uncertainty=True)
        own = (
            nib.load(bundle / "predictions" / f"{held_out}_{kind}.nii.gz")
            for kind in ("seg", "uncertainty")
        )
        np.testing.assert_array_equal(first, next(own).get_fdata())
        # The server uses more threads: what is rounded to 16 bits may differ by a step.
        np.testing.assert_allclose(uncertainty, next(own).get_fdata(), rtol=0, atol=1.1 / 65535)
        torch.testing.assert_close(
            calibrator_in(torch.load(served, weights_only=True)).state(), fitted.state()
        )

        question = {"params": json.dumps({"device": "cpu"})}
        answer = requests.post(
            f"{address}/infer/{model}?image={held_out}&output=json", data=question, timeout=600
        ).json()
        record = json.loads((bundle / "predictions" / "quality" / f"{held_out}.json").read_text())
        assert answer["estimate"] == pytest.approx(record["estimate"], rel=1e-4)
        assert answer["place"] == record["place"]
        assert "there are 1 and 12" in answer["folder"][0]
        assert answer["scan"] == f"{held_out}.nii.gz"
        np.testing.assert_array_equal(
            infer(address, model, held_out, maps, show_uncertainty="false"), first
        )
        refused = requests.post(f"{address}/infer/{model}?image=broken", data=question, timeout=600)
        assert refused.status_code == 422
        assert refused.json()["detail"].startswith("broken.nii.gz: cannot read the file")

        for name in names[1:]:
            put_label(address, labels / f"{name}.nii.gz")
        train(address, model, max_epochs=12, val_split=0.2)
        assert dice(infer(address, model, held_out, maps), truth) > dice(first, truth)
        retrained = calibrator_in(torch.load(served, weights_only=True))
        # Other weights, which need another one
        torch.testing.assert_close(retrained.state(), VectorScaling().state())
        # When the server starts again, it takes the one with the shortest name for weights.
        assert [file.name for file in served.parent.glob("*.pt")] == ["model.pt"]

        busy = 429  # the server scores by itself as well, after the training
        while True:
            answer = requests.post(
                f"{address}/scoring/uncertainty?run_sync=true", json={"device": "cpu"}, timeout=600
            )
            if answer.status_code != busy:
                break
            time.sleep(0.5)
        assert answer.ok, answer.text
        unlabelled = {
            name: infer(address, model, name, maps, show_uncertainty=True).mean()
            for name in (names[0], held_out)
        }
        lowest = requests.post(f"{address}/activelearning/quality", json={}, timeout=60).json()
        assert lowest["id"] in unlabelled
        assert 0 <= lowest["expected_dsc"] < 1
        picked = requests.post(f"{address}/activelearning/uncertainty", json={}, timeout=60).json()
        assert picked["id"] == max(unlabelled, key=unlabelled.__getitem__)
        assert picked["uncertainty"] == pytest.approx(max(unlabelled.values()), abs=1e-5)


@pytest.mark.slow
def test_volumes_of_real_patients(tmp_path: Path) -> None:
    source, maps = ROOT / "demo" / "data" / "testing", tmp_path / "maps"
    maps.mkdir()
    *labelled, held_out = sorted((source / "labelsTr").iterdir())[:4]
    for label in (*labelled, held_out):
        (tmp_path / "studies").mkdir(exist_ok=True)
        shutil.copy(source / "imagesTr" / label.name, tmp_path / "studies")
    scan = nib.load(source / "imagesTr" / held_out.name)
    phases = np.stack([scan.get_fdata()] * 2, -1)
    nib.save(nib.Nifti1Image(phases, scan.affine), tmp_path / "studies" / "cine.nii.gz")
    model, name = HIPPOCAMPUS.name, held_out.name.removesuffix(".nii.gz")
    options = {
        "dataset_dir": str(source / "imagesTr" / held_out.name),
        "output_dir": str(tmp_path / "own"),
    }
    run_bundle(HIPPOCAMPUS, "inference.yaml", **options)
    truth, own = (
        nib.load(file).get_fdata() for file in (held_out, tmp_path / "own" / f"{name}_seg.nii.gz")
    )

    served = tmp_path / "home" / "monaibundle" / "model" / model / "models" / "model.pt"
    with server(HIPPOCAMPUS, tmp_path / "studies", tmp_path / "home") as address:
        picked = requests.post(f"{address}/activelearning/quality", json={}, timeout=60).json()
        assert picked["expected_dsc"] is not None or "images are scored" in picked["note"]
        first = infer(address, model, name, maps)
        np.testing.assert_array_equal(first, own)
        assert dice(first, truth) > 0.8
        for image, reason in (
            ("cine", "has 2 channels"),
            ("unknown", "There is no image called unknown."),
        ):
            refused = requests.post(f"{address}/infer/{model}?image={image}", timeout=600)
            assert refused.status_code == 422
            assert reason in refused.json()["detail"]
        calibrate = f"{address}/train/calibrate?run_sync=true"
        refused = requests.post(calibrate, json={}, timeout=600)
        assert "No labels have been submitted" in refused.json()["detail"]
        for label in labelled:
            put_label(address, label)
        answer = requests.post(calibrate, json={"calibrator": "bias"}, timeout=600)
        assert answer.json()["labels"] == len(labelled)
        assert "\nbias," in answer.json()["calibrators"]
        found = torch.load(served, weights_only=True)
        assert found["bias_shift"].shape == (3,)
        assert len(found["reference"]) == len(labelled)
        calibrated = infer(address, model, name, maps)
        assert (calibrated != first).any()
        assert dice(calibrated, truth) > 0.8
        answer = requests.post(calibrate, json={"calibrator": "none"}, timeout=600)
        assert answer.ok
        torch.testing.assert_close(
            calibrator_in(torch.load(served, weights_only=True)).state(),
            calibrator_in(
                torch.load(HIPPOCAMPUS / "models" / "model.pt", weights_only=True)
            ).state(),
        )  # as shipped, also after a bias
        train(address, model, max_epochs=2, val_split=0.34)
        assert dice(infer(address, model, name, maps), truth) > 0.6
        refused = requests.post(calibrate, json={}, timeout=600)
        assert "was trained on labels submitted here" in refused.json()["detail"]
    # Other weights, which need another one
    assert torch.load(served, weights_only=True)["temperature"] == 1
    assert "Checkpoint keys" not in (tmp_path / "home.log").read_text()
