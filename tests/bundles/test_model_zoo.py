"""The checks that the Model Zoo's continuous integration runs on a bundle, in its way, on what is sent to it.

What it also checks, the properties of inference and the export to TorchScript, is in test_configs.py and test_docs.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from monai.bundle import verify_metadata, verify_net_in_out

from scripts.package_bundle import package_bundle
from tests.helpers import BUNDLES, SHARED, copy_with_weights

SCHEMA = SHARED / "modelzoo" / "meta_schema_20240725.json"
LARGE = 25_000_000  # bytes: larger files are not taken, but linked from large_files.yml


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of each bundle, as it lies in the Zoo's folder `models`."""
    folder = tmp_path_factory.mktemp("zoo")
    package_bundle(copy_with_weights(request.param, folder / "source"), folder)
    (archive,) = folder.glob("*.zip")
    shutil.unpack_archive(archive, folder / "models")
    return folder / "models" / request.param.name


@pytest.fixture
def metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def test_necessary_and_preferred_files(bundle: Path, metadata: dict[str, Any]) -> None:
    for name in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.yaml"):
        assert (bundle / name).is_file(), name
    for name in ("configs/logging.conf", "docs/README.md", "docs/data_license.txt"):  # expected, though not checked
        assert (bundle / name).is_file(), name
    assert [path for path in bundle.rglob("*") if path.stat().st_size > LARGE] == []
    assert metadata["version"] in metadata["changelog"]


def test_model_card_has_the_numbers_of_the_metadata(bundle: Path, metadata: dict[str, Any]) -> None:
    """As the Hugging Face Hub reads it: it refuses a card with an incomplete model-index."""
    card = ModelCard.load(bundle / "docs" / "README.md").data
    assert (card.library_name, card.pipeline_tag, card.model_name) == ("monai", "image-segmentation", bundle.name)
    assert {"monai", "medical"} <= {*card.tags}
    licence = card.license if card.license != "other" else card.license_name
    licences = ("cc-by-nc-sa-4.0", "cc-by-sa-4.0", "terms-of-the-data")
    assert licence in licences  # of the weights, which is not that of the code
    if licence == "terms-of-the-data":
        assert card.license_link == "LICENSE.md"  # the Hub takes no other; docs/packaging.md copies it there
    assert {result.metric_type: result.metric_value for result in card.eval_results} == metadata["eval_metrics"]


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"the Model Zoo's schema is not at {SCHEMA}")
def test_metadata_follows_the_schema(bundle: Path, metadata: dict[str, Any], tmp_path: Path) -> None:
    # The Zoo has the schema that metadata names at this place before it checks.
    assert metadata["schema"].endswith(f"/{SCHEMA.name}")
    schema = shutil.copy(SCHEMA, tmp_path)
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))


def test_network_takes_and_gives_what_metadata_says(bundle: Path) -> None:
    verify_net_in_out(
        net_id="network_def",
        config_file=str(bundle / "configs" / "inference.yaml"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
    )
