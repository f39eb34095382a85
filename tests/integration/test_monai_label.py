"""A MONAI Label server with our bundles, asked over HTTP as a viewer does."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from monai.bundle import ConfigParser

from tests.helpers import BUNDLES, ROOT, copy_with_weights, run_bundle, save

pytestmark = pytest.mark.slow
SIZE = 64


@contextmanager
def server(bundle: Path, studies: Path, home: Path) -> Iterator[str]:
    """Serve the bundle with scripts/monai_label and yield the address of the server."""
    log = home.with_suffix(".log")
    # One start at a time: the first one installs MONAI Label, and tests may run in several processes.
    with open(Path(tempfile.gettempdir()) / "calib_components-monai_label.lock", "w") as lock, open(log, "w") as output:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = subprocess.Popen(
            [ROOT / "scripts" / "monai_label", bundle, studies, "--port", str(port)],
            env={**os.environ, "MONAI_LABEL_HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 1200
        try:
            while not _answers(address):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(1)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    try:
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/info/", timeout=60).ok
    except requests.ConnectionError:
        return False


def infer(address: str, model: str, image: str, folder: Path, **params: Any) -> np.ndarray:
    """The map that the server answers with for an image."""
    question = {"params": json.dumps({"device": "cpu", **params})}
    answer = requests.post(f"{address}/infer/{model}?image={image}&output=image", data=question, timeout=600)
    assert answer.ok, answer.text
    path = folder / f"answer{len(list(folder.iterdir()))}.nii.gz"
    path.write_bytes(answer.content)
    return nib.load(path).get_fdata()


def own_maps(bundle: Path, image: Path) -> dict[str, np.ndarray]:
    """The maps that the bundle itself makes of an image."""
    run_bundle(bundle, "inference.yaml", dataset_dir=str(image), overwrite=True)
    name = image.name.removesuffix(".nii.gz")
    return {
        kind: nib.load(bundle / "predictions" / f"{name}_{kind}.nii.gz").get_fdata() for kind in ("seg", "uncertainty")
    }


def dice(one: np.ndarray, other: np.ndarray) -> float:
    codes = np.unique(other[other > 0])
    return float(
        np.mean([2 * ((one == k) & (other == k)).sum() / ((one == k).sum() + (other == k).sum()) for k in codes])
    )


def make_hearts(studies: Path, labels: Path, phantoms: Path) -> None:
    """Phantom hearts, two phases of three patients."""
    for path in sorted(phantoms.glob("training/patient00[123]/*_gt.nii.gz")):
        name = path.name.replace("_gt", "")
        (studies / name).write_bytes((path.parent / name).read_bytes())
        (labels / name).write_bytes(path.read_bytes())


def make_brains(studies: Path, labels: Path, _: Path) -> None:
    """Brains of four channels with spacing of their own, and a tumour that each channel sees in its own way."""
    rng = np.random.default_rng(0)
    grid = np.moveaxis(np.indices((48, 44, 12)), 0, -1)
    for index in range(5):
        centre = np.array([24, 22, 6]) + rng.uniform(-4, 4, 3) * [1, 1, 0.3]
        distance = np.linalg.norm((grid - centre) * [1, 1, 2], axis=-1)
        label = np.select([distance < 4, distance < 7, distance < 10], [1, 4, 2], 0).astype(np.uint8)
        brain = (np.linalg.norm((grid - [24, 22, 6]) * [1, 1, 2.5], axis=-1) < 20)[..., None]
        grey = np.array(
            [[300, 300, 300, 300], [200, 700, 500, 300], [700, 300, 300, 800], [0] * 4, [400, 400, 900, 500]]
        )
        image = brain * (grey[label] + rng.normal(0, 30, (*label.shape, 4)).clip(-100, 100))
        spacing = np.diag([2.0, 2.5, 6.0, 1.0])
        save(studies / f"brain{index}.nii.gz", image.astype(np.int16), spacing)
        save(labels / f"brain{index}.nii.gz", label * brain[..., 0], spacing)


def make_abdomens(studies: Path, labels: Path, _: Path) -> None:
    """CT of a body in air, facing another way than the network's, with four organs."""
    rng = np.random.default_rng(0)
    grid = np.moveaxis(np.indices((56, 48, 10)), 0, -1)
    places = np.array([[18, 20, 5], [28, 34, 5], [40, 20, 5], [29, 18, 5]])
    for index in range(5):
        body = np.linalg.norm((grid - [28, 24, 5]) * [1, 1.2, 0], axis=-1) < 25
        distance = np.linalg.norm(grid[..., None, :] - (places + rng.uniform(-2, 2, (4, 3))), axis=-1)
        label = np.where(distance.min(-1) < 6, distance.argmin(-1) + 1, 0).astype(np.uint8) * body
        image = np.where(body, np.array([-20, 110, 200, 60, 20])[label] + rng.normal(0, 10, body.shape), -1000)
        affine = np.diag([-1.5, -1.5, 5.0, 1.0])
        save(studies / f"abdomen{index}.nii.gz", image.astype(np.int16), affine)
        save(labels / f"abdomen{index}.nii.gz", label, affine)


@pytest.mark.parametrize(
    ("dataset", "make", "epochs"),
    [("acdc", make_hearts, 12), ("brats", make_brains, 8), ("flare", make_abdomens, 12)],
)
def test_infer_label_train_and_infer_again(
    dataset: str, make: Callable[[Path, Path, Path], None], epochs: int, phantoms: Path, tmp_path: Path
) -> None:
    studies, labels, answers = (tmp_path / name for name in ("studies", "labels", "answers"))
    for folder in (studies, labels, answers):
        folder.mkdir()
    make(studies, labels, phantoms)
    (studies / "broken.nii.gz").write_bytes(b"not an image")  # must not keep the others from being scored
    *names, held_out = sorted(path.name.removesuffix(".nii.gz") for path in labels.iterdir())
    truth = nib.load(labels / f"{held_out}.nii.gz").get_fdata()

    bundle = copy_with_weights(next(path for path in BUNDLES if path.name.startswith(dataset)), tmp_path / "source")
    for config in ("train.yaml", "inference.yaml"):
        content = ConfigParser.load_config_file(bundle / "configs" / config)
        ConfigParser.export_config_file(
            content | {"image_size": [SIZE, SIZE]}, str(bundle / "configs" / config), "yaml"
        )
    facts = ConfigParser.load_config_file(bundle / "configs" / "inference.yaml")["facts"]
    model = bundle.name
    uncalibrated = own_maps(bundle, studies / f"{held_out}.nii.gz")
    run_bundle(bundle, "train.yaml", "calibrate.yaml", temperature=0.5)
    served = tmp_path / "home" / "monaibundle" / "model" / model / "models" / "model.pt"

    with server(bundle, studies, tmp_path / "home") as address:
        info = requests.get(f"{address}/info/", timeout=60).json()
        names_and_codes = dict(zip(facts["class_names"][1:], facts["label_codes"][1:], strict=True))
        assert info["models"][model]["labels"] == {name.lower(): code for name, code in names_and_codes.items()}
        assert model in info["trainers"]

        first = infer(address, model, held_out, answers)
        uncertainty = infer(address, model, held_out, answers, show_uncertainty=True)
        own = own_maps(bundle, studies / f"{held_out}.nii.gz")
        np.testing.assert_array_equal(first, own["seg"])
        # The server uses more threads: what is rounded to 16 bits may differ by a step.
        np.testing.assert_allclose(uncertainty, own["uncertainty"], rtol=0, atol=1.1 / 65535)
        assert uncertainty.mean() < 0.99 * uncalibrated["uncertainty"].mean()
        assert torch.load(served, weights_only=True)["temperature"] == 0.5

        for name in names[1:]:
            with open(labels / f"{name}.nii.gz", "rb") as label:
                answer = requests.put(
                    f"{address}/datastore/label?image={name}&tag=final",
                    files={"label": (f"{name}.nii.gz", label)},
                    data={"params": "{}"},
                    timeout=60,
                )
            assert answer.ok, answer.text
        question = {"device": "cpu", "max_epochs": epochs, "val_split": 0.2}
        answer = requests.post(f"{address}/train/{model}?run_sync=true", json=question, timeout=600)
        assert answer.ok, answer.text
        assert dice(infer(address, model, held_out, answers), truth) > dice(first, truth)
        assert torch.load(served, weights_only=True)["temperature"] == 1  # other weights, which need another one
        # When the server starts again, it takes the one with the shortest name for weights.
        assert [file.name for file in served.parent.glob("*.pt")] == ["model.pt"]

        busy = 429  # the server scores by itself as well, after the training
        while True:
            answer = requests.post(f"{address}/scoring/uncertainty?run_sync=true", json={"device": "cpu"}, timeout=600)
            if answer.status_code != busy:
                break
            time.sleep(0.5)
        assert answer.ok, answer.text
        unlabelled = {
            name: infer(address, model, name, answers, show_uncertainty=True).mean() for name in (names[0], held_out)
        }
        picked = requests.post(f"{address}/activelearning/uncertainty", json={}, timeout=60).json()
        assert picked["id"] == max(unlabelled, key=unlabelled.__getitem__)
        assert picked["uncertainty"] == pytest.approx(max(unlabelled.values()), abs=1e-5)
