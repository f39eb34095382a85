"""Exported models give what the PyTorch model gives, calibrator included, and weights that hold code are refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export

from calib_components.errors import InputError, error_line
from tests.helpers import (
    BUNDLES,
    SHARED,
    SIZE,
    copy_with_weights,
    inference_config,
    make_images,
    make_prepared,
    run_bundle,
)

ACDC = next(path for path in BUNDLES if path.name.startswith("acdc"))
pytestmark = pytest.mark.slow
REAL = {  # used where the data are at hand
    "acdc": "acdc/training/patient001/patient001_frame01.nii.gz",
    "brats": "brats/BraTS2021_01476",
    "flare": "flare/TrainingImg/train_000_0000.nii.gz",
}
TEMPERATURE = 0.67


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each bundle with weights of a temperature, and its model exported beside them."""
    bundle = copy_with_weights(request.param, tmp_path_factory.mktemp("exported"))
    run_bundle(bundle, "train.yaml", "calibrate.yaml", temperature=1.0)
    shutil.copy(bundle / "models" / "model.pt", bundle / "models" / "uncalibrated.pt")
    run_bundle(bundle, "train.yaml", "calibrate.yaml", temperature=TEMPERATURE)
    facts = inference_config(bundle)
    files = {
        "net_id": "network_def",
        "ckpt_file": str(bundle / "models" / "model.pt"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.yaml"),
    }
    ckpt_export(filepath=str(bundle / "models" / "model.ts"), **files)
    axes = {"image": {0: "batch"}, "pred": {0: "batch"}}
    onnx_export(
        filepath=str(bundle / "models" / "model.onnx"),
        input_shape=[
            *map(facts.get_parsed_content, ("batch_size", "in_channels")),
            *facts.get_parsed_content("crop_size"),
        ],
        converter_kwargs={"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": axes},
        **files,
    )
    return bundle


def slices(bundle: Path, folder: Path) -> torch.Tensor:
    """Slices `(B, C, H, W)` from the middle of a case, as inference gives them to the network."""
    real = SHARED / "data" / REAL[bundle.name.split("_")[0]]
    config = inference_config(bundle)
    config["dataset_dir"] = str(real if real.exists() else make_images(bundle, folder))
    image = config.get_parsed_content("dataset")[0]["image"].as_tensor().movedim(-1, 0)
    middle = len(image) // 2
    return image[max(0, middle - 3) : middle + 3].contiguous()


def test_exports_agree_with_pytorch(exported: Path, tmp_path: Path) -> None:
    batch = slices(exported, tmp_path)
    weights = torch.load(exported / "models" / "model.pt", weights_only=True)
    network = inference_config(exported).get_parsed_content("network_def").eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        expected = network(batch)
        uncalibrated = torch.load(exported / "models" / "uncalibrated.pt", weights_only=True)
        plain = inference_config(exported).get_parsed_content("network_def").eval()
        plain.load_state_dict(uncalibrated)
        torch.testing.assert_close(expected, plain(batch) / TEMPERATURE)
        from_torchscript = torch.jit.load(exported / "models" / "model.ts")(batch)
    session = onnxruntime.InferenceSession(exported / "models" / "model.onnx", providers=["CPUExecutionProvider"])
    (from_onnx,) = session.run(None, {"image": batch.numpy()})
    for logits in (from_torchscript, torch.from_numpy(from_onnx)):
        torch.testing.assert_close(logits.softmax(1), expected.softmax(1), rtol=0, atol=1e-4)
        assert torch.equal(logits.argmax(1), expected.argmax(1))


def test_monai_loads_the_torchscript_file_with_its_metadata(exported: Path) -> None:
    network, metadata, files = monai.bundle.load(
        exported.name,
        load_ts_module=True,
        bundle_dir=str(exported.parent),
        device="cpu",
        config_files=["inference.json"],
    )
    assert isinstance(network, torch.jit.ScriptModule)
    assert metadata["version"] == json.loads((exported / "configs" / "metadata.json").read_text())["version"]
    assert b"network_def" in files["inference.json"]


def run(bundle: Path, *configs: str, **override: Any) -> None:
    monai.bundle.run(
        config_file=[str(bundle / "configs" / name) for name in configs],
        bundle_root=str(bundle),
        image_size=list(SIZE),
        **{"device": "cpu", **override},
    )


@pytest.fixture(scope="module")
def acdc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ACDC bundle with weights, data, images and what it predicts for them."""
    bundle = copy_with_weights(ACDC, tmp_path_factory.mktemp("acdc"))
    make_prepared(bundle, bundle / "data")
    make_images(bundle, bundle / "images")
    run(bundle, "inference.yaml")
    return bundle


def export(bundle: Path, filepath: Path) -> None:
    ckpt_export(filepath=str(filepath), config_file=str(bundle / "configs" / "inference.yaml"), bundle_root=str(bundle))


def assert_same_maps(one: Path, other: Path) -> None:
    for kind, tolerance in (("seg", 0), ("probability", 1e-4), ("uncertainty", 1e-4)):
        maps = (nib.load(folder / f"scan_{kind}.nii.gz").get_fdata() for folder in (one, other))
        np.testing.assert_allclose(*maps, rtol=0, atol=tolerance)


def test_inference_needs_the_torchscript_file_alone(acdc: Path, tmp_path: Path) -> None:
    export(acdc, tmp_path / "model.ts")
    run(acdc, "inference.yaml", "inference_ts.yaml", ckpt_dir=str(tmp_path), output_dir=str(tmp_path))
    assert_same_maps(tmp_path, acdc / "predictions")


def test_inference_with_tensorrt_where_it_is(acdc: Path, tmp_path: Path) -> None:
    # Without a GPU, MONAI warns and goes on with PyTorch.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run(acdc, "inference.yaml", "inference_trt.yaml", output_dir=str(tmp_path), device=device)
    assert_same_maps(tmp_path, acdc / "predictions")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "use",
    [
        lambda bundle: run(bundle, "inference.yaml", overwrite=True),
        lambda bundle: run(bundle, "train.yaml", "evaluate.yaml"),
        lambda bundle: run(bundle, "train.yaml", resume=True),
        lambda bundle: export(bundle, bundle / "models" / "model.ts"),
        lambda bundle: monai.bundle.load(bundle.name, bundle_dir=str(bundle.parent)),
    ],
    ids=["inference", "evaluate", "resume", "export", "load"],
)
def test_weights_that_hold_code_are_refused(use: Callable[[Path], None], acdc: Path, tmp_path: Path) -> None:
    bundle = tmp_path / acdc.name
    shutil.copytree(acdc, bundle)
    for name in ("model.pt", "last.ckpt"):
        torch.save({"network": Evil(tmp_path / "done")}, bundle / "models" / name)
    with pytest.raises((InputError, pickle.UnpicklingError, RuntimeError)) as error:
        use(bundle)
    assert re.search("file of tensors|Weights only load failed", f"{error_line(error.value)} {error.value}")
    assert not (tmp_path / "done").exists()
