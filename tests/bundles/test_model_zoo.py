"""The checks that the Model Zoo's continuous integration runs on a bundle, in its way, on what is sent to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from monai.bundle import ckpt_export, create_workflow, verify_metadata, verify_net_in_out

from scripts.package_bundle import package_bundle
from tests.helpers import BUNDLES, SHARED, copy_with_weights

SCHEMA = SHARED / "modelzoo" / "meta_schema_20240725.json"
LARGE = 25_000_000  # bytes: larger files are not taken, but linked from large_files.yml


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of each bundle, with weights, as it lies in the Zoo's folder `models`."""
    folder = tmp_path_factory.mktemp("zoo")
    package_bundle(copy_with_weights(request.param, folder / "source"), folder)
    (archive,) = folder.glob("*.zip")
    shutil.unpack_archive(archive, folder / "models")
    return folder / "models" / request.param.name


def config(bundle: Path) -> dict[str, str]:
    return {
        "config_file": str(bundle / "configs" / "inference.yaml"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "bundle_root": str(bundle),
    }


def test_necessary_and_preferred_files(bundle: Path) -> None:
    for name in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.yaml"):
        assert (bundle / name).is_file(), name
    for name in ("configs/logging.conf", "docs/README.md", "docs/data_license.txt"):  # expected, though not checked
        assert (bundle / name).is_file(), name
    assert [path for path in bundle.rglob("*") if path.stat().st_size > LARGE] == []


def test_version_is_in_the_changelog(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


def test_model_card_has_the_numbers_of_the_metadata(bundle: Path) -> None:
    """As the Hugging Face Hub reads it: it refuses a card with an incomplete model-index."""
    card = ModelCard.load(bundle / "docs" / "README.md").data
    assert (card.library_name, card.pipeline_tag, card.model_name) == ("monai", "image-segmentation", bundle.name)
    assert {"monai", "medical"} <= {*card.tags}
    licence = card.license if card.license != "other" else card.license_name
    assert licence in ("cc-by-nc-sa-4.0", "terms-of-the-data")  # of the weights, which is not that of the code
    if licence == "terms-of-the-data":
        assert card.license_link == "LICENSE.md"  # the Hub takes no other; docs/packaging.md copies it there
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert {result.metric_type: result.metric_value for result in card.eval_results} == metadata["eval_metrics"]


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"the Model Zoo's schema is not at {SCHEMA}")
def test_metadata_follows_the_schema(bundle: Path) -> None:
    # The Zoo has the schema that metadata names at this place before it checks.
    assert json.loads((bundle / "configs" / "metadata.json").read_text())["schema"].endswith(f"/{SCHEMA.name}")
    (bundle / "eval").mkdir(exist_ok=True)
    shutil.copy(SCHEMA, bundle / "eval" / "schema.json")
    verify_metadata(meta_file=config(bundle)["meta_file"], filepath=str(bundle / "eval" / "schema.json"))


def test_properties_of_inference(bundle: Path) -> None:
    logging_file = str(bundle / "configs" / "logging.conf")
    workflow = create_workflow(workflow_type="inference", logging_file=logging_file, **config(bundle))
    assert workflow.check_properties() == []


def test_network_takes_and_gives_what_metadata_says(bundle: Path) -> None:
    verify_net_in_out(net_id="network_def", **config(bundle))


def test_weights_export_to_torchscript(bundle: Path) -> None:
    exported = bundle / "models" / "verify_model.ts"
    ckpt_export(
        net_id="network_def", filepath=str(exported), ckpt_file=str(bundle / "models" / "model.pt"), **config(bundle)
    )
    torch.jit.load(exported)
