"""A bundle of one's own training: it says what was trained and measured, and runs as any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.posthoc import TemperatureScaling
from calib_workflows.data.facts import facts_beside, write_facts
from calib_workflows.weights import with_calibrator
from scripts.helpers.new_bundle import new_bundle
from scripts.helpers.packages import contents, package_bundle
from tests.helpers import (
    FLARE,
    HIPPOCAMPUS,
    inference_config,
    make_images,
    make_prepared,
    make_weights,
    run_bundle,
    small_facts,
)

TOLD: dict[str, Any] = {
    "name": "Heart MR segmentation",
    "bundle_version": "0.1.0",
    "authors": "A. Author",
    "modality": "MR",
    "data_source": "40 scans of our hospital",
    "weights_license": "cc-by-4.0",
}


@pytest.fixture(scope="module", params=[FLARE, HIPPOCAMPUS], ids=["slices", "volumes"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of classes of one's own, and the evaluation of its weights."""
    bundle, folder = request.param, tmp_path_factory.mktemp("own")
    facts = small_facts(bundle)
    names = [f"part {k}" for k in range(1, facts.num_classes)]
    own = replace(
        facts,
        class_names=["background", *names],
        label_codes=[0, *range(7, 6 + facts.num_classes)],
        structures={name: [k] for k, name in enumerate(names, start=1)},
        any_orientation=False,
        source=str(folder),
    )
    places = {
        "dataset_dir": str(make_prepared(bundle, folder / "data")),
        "ckpt_dir": str(make_weights(bundle, folder / "models")),
        "output_dir": str(folder / "eval"),
    }
    for name in ("dataset_dir", "ckpt_dir"):
        write_facts(own, places[name])
    run_bundle(bundle, "train.yaml", "evaluate.yaml", **places)
    return folder


def test_a_bundle_says_what_was_trained_and_measured_and_runs(own: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "heart_mr"
    new_bundle(own, bundle, **TOLD)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    summary = json.loads((own / "eval" / "summary.json").read_text())
    assert metadata["eval_metrics"]["mean_dsc"] == round(summary["dsc"]["mean"], 4)
    assert (metadata["version"], metadata["authors"]) == ("0.1.0", "A. Author")
    for page in ((bundle / "docs/README.md").read_bytes(), contents(bundle)["docs/README.md"]):
        text = page.decode()
        assert f"| DSC, part 1 | {summary['dsc_part 1']['mean']:.3f} |" in text
        assert "40 scans of our hospital" in text
        assert "not calibrated" in text
        assert "--structures 'part 1=7," in text
    assert "cc-by-4.0" in (bundle / "docs" / "data_license.txt").read_text()
    assert str(own) not in "".join(file.read_text() for file in bundle.rglob("*.yaml"))
    config = inference_config(bundle)
    assert config["any_orientation"] is False
    assert config["facts"]["class_names"][1] == "part 1"
    package_bundle(bundle, tmp_path / "dist")
    images = make_images(FLARE, tmp_path / "images")
    options = {"ignore_intensity": True} if "ignore_intensity" in config else {}
    run_bundle(bundle, "inference.yaml", dataset_dir=str(images), **options)
    labels: Any = nib.load(bundle / "predictions" / "scan_seg.nii.gz")
    assert {*np.unique(labels.dataobj)} <= {0, *range(7, 11)}


def test_what_is_missing_is_named_at_once(tmp_path: Path) -> None:
    for changed, out, words in (
        ({"bundle_version": "", "modality": " "}, "new", "Pass --bundle_version, --modality, "),
        ({}, ".", "exists"),
        ({}, "new", r"model\.pt is missing"),
    ):
        with pytest.raises(InputError, match=words):
            new_bundle(tmp_path, tmp_path / out, **{**TOLD, **changed})


def test_results_of_other_weights_are_refused(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own / "models", tmp_path / "models")
    file = tmp_path / "models" / "model.pt"
    file.write_bytes(with_calibrator(file, TemperatureScaling()))
    with pytest.raises(InputError, match=r"eval has no evaluation of .* as they are now"):
        new_bundle(own, tmp_path / "new", weights=file, **TOLD)
    assert not (tmp_path / "new").exists()


def test_the_page_states_the_temperature(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own / "models", tmp_path / "models")
    file = tmp_path / "models" / "model.pt"
    fitted = TemperatureScaling().with_state({"temperature": 1.5})
    file.write_bytes(with_calibrator(file, fitted, fit={"region": "all", "patients": 7}))
    bundle = HIPPOCAMPUS if facts_beside(file).spatial_dims == 3 else FLARE
    places = {"dataset_dir": str(own / "data"), "ckpt_dir": str(file.parent)}
    run_bundle(bundle, "train.yaml", "evaluate.yaml", output_dir=str(tmp_path / "eval"), **places)
    new_bundle(tmp_path, tmp_path / "new", **TOLD)
    page = (tmp_path / "new" / "docs" / "README.md").read_text()
    assert "The weights hold a temperature, T = 1.50, fitted on 7 patients" in page
