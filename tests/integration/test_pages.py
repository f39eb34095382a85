"""The Python and YAML blocks of the pages, which run as they are written; see `test_docs`."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from calib_tools.predictions import evaluate_predictions
from tests.calib_tools.predictions.made_up import label_of, save_nifti, softmax_of
from tests.helpers import ROOT
from tests.integration.test_docs import PAGES, blocks


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_python(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python"))
    exec(code, {})
    expected = (
        re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
        or "".join(blocks(page, "text")).splitlines()
    )
    assert capsys.readouterr().out.splitlines() == expected
    assert [path.name for path in tmp_path.iterdir()] == re.findall(r'savefig\("(.*)"\)', code)


def configs(page: Path) -> list[dict]:
    """The configs in the YAML blocks of a page."""
    parts = [
        part
        for block in blocks(page, "yaml")
        for part in re.split(r"^#.*\n", block, flags=re.MULTILINE)
    ]
    return [yaml.safe_load(part) for part in parts if part]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem
)
def test_yaml(page: Path) -> None:
    for config in configs(page):
        parser = ConfigParser(config)
        if "loss" in config:
            logits = torch.randn(2, 4, 16, 16, requires_grad=True)
            parser.get_parsed_content("loss")(logits, torch.randint(4, (2, 1, 16, 16))).backward()
            assert logits.grad is not None
        else:
            parser.parse()


@pytest.mark.slow
def test_maps_of_monais_transforms(tmp_path: Path) -> None:
    """As the page writes them; the network has seen a part of the image, whose axes are stored in
    another order.
    """
    p, affine = softmax_of(0, 3), np.diag([-1.5, 1.25, 8.0, 1.0])[:, [2, 0, 1, 3]]
    save_nifti(tmp_path / "images" / "scan.nii.gz", p[0], affine)
    save_nifti(tmp_path / "labels" / "scan.nii.gz", label_of(0, (0, 1, 2)), affine)
    (config,) = configs(ROOT / "docs/own_predictions.md")
    loading = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "CenterSpatialCropd", "keys": "image", "roi_size": [4, 4, 4]},
    ]
    parser = ConfigParser(
        config | {"preprocessing": {"_target_": "Compose", "transforms": loading}}
    )
    maps, saving = parser["postprocessing"]["transforms"]
    maps |= {"structures": {"class1": [1], "class2": [2]}, "label_codes": [0, 1, 2]}
    saving["output_dir"] = str(tmp_path / "predictions")
    item = parser.get_parsed_content("preprocessing")(
        {"image": str(tmp_path / "images" / "scan.nii.gz")}
    )
    item["pred"] = MetaTensor(torch.randn(3, *item["image"].shape[1:]), meta=item["image"].meta)
    parser.get_parsed_content("postprocessing")(item)
    evaluate_predictions(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out")
    saved = nib.load(tmp_path / "predictions" / "scan_probability.nii.gz")
    np.testing.assert_allclose(saved.affine, affine)
    outside = saved.get_fdata()[..., 0] > 1 - 1e-6
    assert outside.sum() == p[0].size - item["image"].numel()
