"""The checks that the Model Zoo's continuous integration runs on a bundle, in its way, on what is
sent to it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from monai.bundle import verify_metadata, verify_net_in_out

from scripts.helpers.packages import package_bundle
from tests.helpers import ACDC, BUNDLES, HIPPOCAMPUS, SHARED, copy_with_weights, inference_config

ZOO = SHARED / "modelzoo"
SCHEMA = ZOO / "meta_schema_20240725.json"
CHECKS = """
import sys, unittest
sys.path[:0] = ["ci", "ci/unit_tests"]
from verify_bundle import verify
for name in sys.argv[1:]:
    verify(name)
unittest.main(None, argv=["", *(f"test_{name}" for name in sys.argv[1:])])
"""
LARGE = 25_000_000  # bytes: larger files are not taken, but linked from large_files.yml


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of each bundle for Hugging Face, as it lies in the Zoo's folder `models`."""
    folder = tmp_path_factory.mktemp("zoo")
    package_bundle(
        copy_with_weights(request.param, folder / "source"), folder, huggingface="me/mine"
    )
    (archive,) = folder.glob("*.zip")
    shutil.unpack_archive(archive, folder / "models")
    return folder / "models" / request.param.name


@pytest.fixture
def metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def test_necessary_and_preferred_files(bundle: Path, metadata: dict[str, Any]) -> None:
    for name in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.yaml"):
        assert (bundle / name).is_file(), name
    # Expected, though not checked
    for name in ("configs/logging.conf", "docs/README.md", "docs/data_license.txt"):
        assert (bundle / name).is_file(), name
    assert [path for path in bundle.rglob("*") if path.stat().st_size > LARGE] == []
    assert metadata["version"] in metadata["changelog"]


def test_channels_are_named_by_the_values_of_their_labels(
    bundle: Path, metadata: dict[str, Any]
) -> None:
    """As MONAI Label reads them. The values of BraTS leave out 3."""
    facts = inference_config(bundle).get_parsed_content("facts")
    for channels in (metadata["network_data_format"][of] for of in ("inputs", "outputs")):
        (tensor,) = channels.values()
        assert len(tensor["channel_def"]) == tensor["num_channels"]
    assert [*tensor["channel_def"]] == [str(code) for code in facts.label_codes]


def test_readme_and_model_card(bundle: Path, metadata: dict[str, Any]) -> None:
    """As the Hugging Face Hub reads it: it refuses a card with an incomplete model-index."""
    whole = ModelCard.load(bundle / "README.md")
    card, readme = whole.data, (bundle / "docs" / "README.md").read_text()
    assert metadata["huggingface_url"] == "https://huggingface.co/me/mine"
    assert (card.library_name, card.pipeline_tag, card.model_name) == (
        "monai",
        "image-segmentation",
        bundle.name,
    )
    assert {"monai", "medical"} <= {*card.tags}
    licence = card.license if card.license != "other" else card.license_name
    licences = ("cc-by-nc-sa-4.0", "cc-by-sa-4.0", "terms-of-the-data")
    assert licence in licences  # of the weights, which is not that of the code
    if licence == "terms-of-the-data":
        assert (bundle / card.license_link).is_file()
    assert {result.metric_type: result.metric_value for result in card.eval_results} == metadata[
        "eval_metrics"
    ]
    assert whole.text.strip() == readme.replace("](commands", "](docs/commands").strip()
    headings = re.findall(r"^##+ \*\*(.*)\*\*$", readme, re.MULTILINE)
    if (ZOO / "readme_template.md").is_file():
        template = (ZOO / "readme_template.md").read_text().replace("Additinal", "Additional")
        asked = re.findall(r"^##+ \*\*([^*]*)\*\*", template, re.MULTILINE)
        assert [name for name in headings if name in asked] == [
            name for name in asked if name != "Additional section"
        ]
    page = (bundle.parents[1] / "source" / bundle.name / "docs" / "README.md").read_text()
    lost = {*page.replace("../../scripts/", "scripts/").splitlines()} - {*readme.splitlines()}
    assert all(line.startswith("#") for line in lost)  # headings, which are those of the template


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"the Model Zoo's schema is not at {SCHEMA}")
def test_metadata_follows_the_schema(
    bundle: Path, metadata: dict[str, Any], tmp_path: Path
) -> None:
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


@pytest.mark.slow
@pytest.mark.skipif(not ZOO.is_dir(), reason=f"the Model Zoo's checks are not at {ZOO}")
def test_requests_pass_the_zoos_checks(tmp_path: Path) -> None:
    """All of `ci/verify_bundle.py`, and the test that comes with the request, for the bundles that
    are proposed.
    """
    shutil.copytree(ZOO / "ci", tmp_path / "ci")
    for bundle in (ACDC, HIPPOCAMPUS):
        package_bundle(copy_with_weights(bundle, tmp_path / "source"), zoo=tmp_path)
        (tmp_path / "models" / bundle.name / "eval").mkdir()
        shutil.copy(SCHEMA, tmp_path / "models" / bundle.name / "eval" / "schema.json")
    (tmp_path / "models" / "model_info.json").write_text("{}")
    command = [sys.executable, "-P", "-c", CHECKS, ACDC.name, HIPPOCAMPUS.name]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("export weights into TorchScript module successfully.") == 2
    assert "Ran 2 tests" in done.stderr
