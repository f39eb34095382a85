"""Calibration: every mistake ends with one line that names it, and leaves data, weights and earlier results as they were."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bad_input.harness import snapshot
from tests.bad_input.test_evaluate import (
    FACTS,
    FIRST,
    LAST,
    LIST,
    OTHER,
    WEIGHTS,
    Code,
    Damage,
    Row,
    cut,
    edit_facts,
    facts_of_weights,
    file_in_place_of,
    folder_in_place_of,
    remove,
    text,
    torchscript,
    volume,
    weights,
)
from tests.helpers import ACDC, Ended, make_prepared, make_weights, run_bundle_as_typed


def edit_validation(change: Callable[[list[dict[str, Any]]], Any]) -> Damage:
    """Change the validation cases in the list; what the function returns, if anything, takes their place."""

    def damage(root: Path) -> None:
        content = json.loads((root / "data" / "datalist.json").read_text())
        result = change(content["validation"])
        content["validation"] = content["validation"] if result is None else result
        (root / "data" / "datalist.json").write_text(json.dumps(content))

    return damage


def temperature(value: Any) -> Damage:
    return weights(lambda w: {**w, "temperature": value})


def other_folder(root: Path) -> None:
    """Put weights of other data into the folder that is written to."""
    (root / "other").mkdir()
    shutil.copy(root / "eval" / "temperature.json", root / "other" / "model.pt")
    shutil.copy(root / "data" / "facts.yaml", root / "other")


def no_temperature(target: str = "UNet") -> dict[str, Any]:
    options = {"spatial_dims": 2, "in_channels": 1, "out_channels": 4, "channels": [4, 8], "strides": [2]}
    return {"network_def": {"_target_": target, **options}}


CASE, EVAL = "{root}/data/validation0/", "{root}/eval/"
NETWORK = (
    "network_def: expected a network with a temperature, calib_components.posthoc.TemperatureUNet or TemperatureScaled"
)
NO_CASES = (
    "{root}/data/datalist.json: expected cases for validation to fit the temperature on, got none; prepare the data with "
    "other --fractions, set --split testing (whose results are then no longer independent) or training"
)
FOLDERS = "pool: expected a list of folders of earlier fits, or null, got "
NUMBER = "temperature: expected a number from 0.001 to 1000, or null to fit it, got "
REGION = "region: expected a region such as all, predicted or plausible(0.1), or class indices, got "
ROWS = [
    # Options
    Row("misspelt id", "regoin: expected an id that the configuration uses, got one without effect; did you mean region?",
        options={"regoin": "all"}),
    Row("misspelt temperature", "temprature: expected an id that the configuration uses, got one without effect; did you mean temperature?", options={"temprature": 1}),
    Row("misspelt argument", "calibration::regions: expected an id that the configuration uses, got one without effect", options={"calibration::regions": ["all"]}),
    Row("unknown split", "split: expected training, validation or testing, got 'val'", options={"split": "val"}),
    Row("unknown region", REGION + "'foregrund'", options={"region": "foregrund"}),
    Row("region of half a class", REGION + "0.5", options={"region": 0.5}),
    Row("region without a radius", REGION + "'band()'", options={"region": "band()"}),
    Row("region of no class of the network", "region: expected class indices from 0 to 3, got [7]", options={"region": 7}),
    Row("region without voxels", "region: expected one with voxels of the validation cases, got foreground, which has none",
        lambda root: [volume(f"validation{i}/label.nii", 0, (32, 32, 2 + i))(root) for i in (0, 1)],
        {"region": "foreground"}),
    Row("temperature of zero", NUMBER + "0", options={"temperature": 0}),
    Row("negative temperature", NUMBER + "-1.5", options={"temperature": -1.5}),
    Row("temperature of NaN", NUMBER + "nan", options={"temperature": float("nan")}),
    Row("infinite temperature", NUMBER + "inf", options={"temperature": float("inf")}),
    Row("temperature of almost zero", NUMBER + "0.0009", options={"temperature": 0.0009}),
    Row("temperature that leaves no logits", NUMBER + "1001", options={"temperature": 1001}),
    Row("temperature of text", NUMBER + "'high'", options={"temperature": "high"}),
    Row("temperature of true", NUMBER + "True", options={"temperature": "true"}),
    Row("temperature of a list", NUMBER + "[1]", options={"temperature": [1]}),
    Row("pool of a name", FOLDERS + "'fold0'", options={"pool": "fold0"}),
    Row("pool of nothing", FOLDERS + "[]", options={"pool": []}),
    Row("pool of numbers", FOLDERS + "[0, 1]", options={"pool": [0, 1]}),
    Row("pool without a fit", "fold0/temperature_fit.json: expected what calibrate.yaml keeps of a fit, got No such",
        options={"pool": ["fold0"]}),
    Row("pool and temperature", "temperature: expected null beside a pool of fits, got 2",
        options={"pool": ["fold0"], "temperature": 2}),
    Row("no such device", "device: expected one that PyTorch finds, got 'gpu'", options={"device": "gpu"}),
    Row("weights that read as a number", "load_path: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got 20241125", options={"load_path": 20241125}),
    Row("result that reads as a number", "calibrated_path: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got 20241125", options={"calibrated_path": 20241125}),
    Row("empty place of the result", "calibrated_path: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got ''", options={"calibrated_path": ""}),
    # Weights
    Row("no weights", "{root}/none/model.pt: expected trained weights, got no such file; train first, or set --load_path",
        options={"ckpt_dir": "{root}/none"}),
    Row("no weights for a given temperature", "{root}/none/model.pt: expected trained weights, got no such file",
        options={"ckpt_dir": "{root}/none", "temperature": 1}),
    Row("empty weights", WEIGHTS + "a broken file", text("model.pt", ""), OTHER),
    Row("truncated weights", WEIGHTS + "a broken file", cut("model.pt", 100_000), OTHER),
    Row("truncated weights for a given temperature", WEIGHTS + "a broken file", cut("model.pt", 100_000),
        {**OTHER, "temperature": 1}),
    Row("code in weights", WEIGHTS + "pickled code (posix.mkdir), which is not run", weights(lambda w: {FIRST: Code()}), OTHER),
    Row("code in weights for a given temperature", WEIGHTS + "pickled code (posix.mkdir), which is not run",
        weights(lambda w: {FIRST: Code()}), {**OTHER, "temperature": 1}),
    Row("TorchScript file", WEIGHTS + "a TorchScript file; add configs/inference_ts.yaml", torchscript, OTHER),
    Row("state of a training", WEIGHTS + "the state of a training; use model.pt beside it",
        weights(lambda w: {"network": w, "optimizer": {}, "epoch": 3}), OTHER),
    Row("another network", WEIGHTS + f"those of another network, without {LAST}",
        weights(lambda w: {k: v for k, v in w.items() if k != LAST}), OTHER),
    Row("another network for a given temperature", WEIGHTS + f"those of another network, without {LAST}",
        weights(lambda w: {k: v for k, v in w.items() if k != LAST}), {**OTHER, "temperature": 1}),
    Row("weights of NaN", WEIGHTS + f"values that are NaN or infinite in {FIRST}",
        weights(lambda w: {**w, FIRST: w[FIRST] * np.nan}), OTHER),
    Row("weights that overflow", "validation0: expected finite logits, got some that are NaN or infinite",
        weights(lambda w: {**w, FIRST: w[FIRST] + 3e38}), OTHER),
    Row("weights with a negative temperature", WEIGHTS + "a temperature of -2, which is not from 0.001 to 1000",
        temperature(torch.tensor(-2.0)), OTHER),
    Row("weights with a temperature of NaN", WEIGHTS + "values that are NaN or infinite in temperature",
        temperature(torch.tensor(float("nan"))), OTHER),
    Row("weights with a temperature for each class", WEIGHTS + "those of another network: temperature has shape (4,), not ()",
        temperature(torch.ones(4)), OTHER),
    Row("network without a temperature", NETWORK, options=no_temperature()),
    Row("network without one for a given temperature", NETWORK, options={**no_temperature(), "temperature": 1}),
    # The cases
    Row("no data", "{root}/none/datalist.json: expected a list of prepared cases", options={"dataset_dir": "{root}/none"}),
    Row("no list", LIST + "a list of prepared cases, got no such file", remove("data/datalist.json")),
    Row("no validation case", NO_CASES, edit_validation(lambda cases: [])),
    Row("list without the split", LIST + "a list of prepared cases for validation", text("data/datalist.json", "{}")),
    Row("case without a label", LIST + "label of validation case 1", edit_validation(lambda cases: cases[0].pop("label") and None)),
    Row("same case twice", LIST + "every case once, got validation0",
        edit_validation(lambda cases: cases[1].update(case="validation0"))),
    Row("another size", CASE + "image.nii: expected slices of the image_size [64, 64]", options={"image_size": [64, 64]}),
    Row("no image", CASE + "image.nii: expected a prepared volume, got no such file", remove("data/validation0/image.nii")),
    Row("truncated image", CASE + "image.nii: expected 8544 bytes, as its header demands, got 2000; it is truncated",
        cut("data/validation0/image.nii", 2000)),
    Row("label is a folder", CASE + "label.nii: expected a prepared volume, got no such file; prepare the data again",
        folder_in_place_of("data/validation0/label.nii")),
    Row("image of NaN", CASE + "image.nii: expected finite values", volume("validation0/image.nii", np.nan)),
    Row("class beyond the network", CASE + "label.nii: expected class indices from 0 to 3, those of the network, got 4",
        volume("validation0/label.nii", 4, dtype=np.uint8)),
    Row("half a class", CASE + "label.nii: expected class indices from 0 to 3", volume("validation0/label.nii", 0.5)),
    Row("class beyond the network in a worker", CASE + "label.nii: expected class indices from 0 to 3",
        volume("validation0/label.nii", 9, dtype=np.uint8), {"num_workers": 1}),
    # The facts
    Row("broken facts", FACTS + "the facts of a data set, got", text("data/facts.yaml", "a: [")),
    Row("facts of another data set", FACTS + "data prepared like acdc", edit_facts(dataset="flare")),
    Row("weights of other classes", "{root}/facts.yaml: expected weights of the data's class_names, ['background', 'right",
        facts_of_weights(class_names=["background", "left ventricle", "myocardium", "right ventricle"]), OTHER),
    # Where the results go
    Row("weights of other data beside the result", "calibrated_path: expected a folder without weights of other data, got "
        "{root}/other; choose another one", other_folder, {**OTHER, "calibrated_path": "{root}/other/hospital.pt"}),
    Row("folder in place of the result", "{root}/data: expected a file or nothing, got a folder",
        options={"calibrated_path": "{root}/data"}),
    Row("result below a file", "calibrated_path: expected a folder that can be written",
        options={"calibrated_path": EVAL + "temperature.json/a/model.pt"}),
    Row("results into a file", "output_dir: expected a folder that can be written",
        options={"output_dir": EVAL + "temperature.json"}),
    Row("folder in place of the temperature", EVAL + "temperature.json: expected a file or nothing, got a folder",
        folder_in_place_of("eval/temperature.json")),
    Row("folder in place of the diagrams", EVAL + "reliability_temperature.png: expected a file or nothing, got a folder",
        folder_in_place_of("eval/reliability_temperature.png")),
    Row("folder in place of the hidden file", "{root}/model.pt: expected a file that can be written, got Is a directory",
        lambda root: (root / ".unfinished-model.pt").mkdir(), OTHER),
]  # fmt: skip


def calibrate(root: Path, ckpt: Path, **options: Any) -> Ended:
    places = {"dataset_dir": f"{root}/data", "ckpt_dir": str(ckpt), "output_dir": f"{root}/eval"}
    return run_bundle_as_typed(ACDC, "train.yaml", "calibrate.yaml", **{**places, **options})


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, which no row may change."""
    return make_weights(ACDC, tmp_path_factory.mktemp("ckpt"))


@pytest.fixture(scope="module")
def calibrated(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared cases, and what an earlier calibration has left in `eval`."""
    root = tmp_path_factory.mktemp("calibrated")
    make_prepared(ACDC, root / "data")
    (root / "eval").mkdir()
    for name in ("temperature.json", "reliability_temperature.png"):
        (root / "eval" / name).write_text("of an earlier calibration")
    return root


@pytest.fixture
def root(calibrated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(calibrated, tmp_path / "root")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.torch.load. received a zip file")
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_one_line_and_nothing_lost(row: Row, root: Path, ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # code from data or weights would leave something here
    options = {k: v.format(root=root) if isinstance(v, str) else v for k, v in row.options.items()}
    if options.get("ckpt_dir") == str(root):
        shutil.copy(ckpt / "model.pt", root)
    row.damage(root)
    before, weights_before = snapshot(root), snapshot(ckpt)
    ended = calibrate(root, ckpt, **options)
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith(row.line.format(root=root))
    assert snapshot(root) == before
    assert snapshot(ckpt) == weights_before


def run_process(root: Path, *options: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Calibrate as typed, in a process that may be allowed no file larger than a limit."""
    configs = [str(ACDC / "configs" / name) for name in ("train.yaml", "calibrate.yaml")]
    places = [f"--dataset_dir={root}/data", f"--ckpt_dir={root}", f"--output_dir={root}/eval", "--device=cpu"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), "--num_workers=0"]
    return subprocess.run(
        [*command, *places, *options],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )


def test_disk_that_takes_no_large_file(root: Path, ckpt: Path) -> None:
    shutil.copy(ckpt / "model.pt", root)
    before = snapshot(root)
    done = run_process(root, "--split=training", limit=10_000)
    assert done.returncode == 1
    line = f"{root}/model.pt: expected a file that can be written, got File too large"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stdout + done.stderr
    assert snapshot(root) == before


def test_options_as_typed_in_a_process_of_its_own(root: Path, ckpt: Path) -> None:
    """Fire reads [1,2] as a list, and 1 as a number."""
    shutil.copy(ckpt / "model.pt", root)
    assert run_process(root, "--region=[1,2]", "--split=testing").returncode == 0
    assert torch.load(root / "model.pt", weights_only=True)["temperature"] != 1
    assert run_process(root, "--temperature=1", "--dataset_dir=none").returncode == 0
    assert torch.load(root / "model.pt", weights_only=True)["temperature"] == 1


def test_file_in_place_of_the_folder_of_results(root: Path, ckpt: Path) -> None:
    file_in_place_of("eval")(root)
    before = snapshot(root)
    ended = calibrate(root, ckpt)
    assert ended.code == 1
    assert ended.err.startswith("output_dir: expected a folder that can be written, got ")
    assert snapshot(root) == before
