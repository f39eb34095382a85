"""The maps that are made of a network's logits, and their files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from calib_components.errors import InputError
from calib_components.posthoc import TemperatureScaled
from calib_components.posthoc.network import to_bytes
from calib_workflows.inference import maps as prediction_maps
from calib_workflows.inference.maps import (
    PredictionMapsd,
    SaveMapd,
    normalized_entropy,
)
from calib_workflows.pages.quality import Review, write_table
from tests.calib_components.quality.made_up import reference

MODALITIES = ("_flair", "_t1", "_t1ce", "_t2")


def make_map(*shape: int, dtype: torch.dtype = torch.float64) -> MetaTensor:
    affine = torch.diag(torch.tensor([2.0, 2, 5, 1], dtype=torch.float64))
    meta = {"filename_or_obj": "in/scan_t1.nii.gz"}
    return MetaTensor(
        torch.arange(math.prod(shape)).view(shape).to(dtype), affine=affine, meta=meta
    )


class TestSaveMapd:
    @pytest.mark.parametrize(
        ("volume", "shape", "stored"),
        [
            # One slice stays a volume, as the image is
            (make_map(1, 4, 3, 1), (4, 3, 1), np.float32),
            (make_map(3, 4, 3, 2), (4, 3, 2, 3), np.float32),
            (make_map(1, 10, 10, 5, dtype=torch.int32), (10, 10, 5), np.int32),
        ],
        ids=["slice", "channels", "labels"],
    )
    def test_values_affine_and_type(
        self, volume: MetaTensor, shape: tuple[int, ...], stored: type, tmp_path: Path
    ) -> None:
        item = SaveMapd("seg", tmp_path / "new" / "out", MODALITIES)({"seg": volume, "id": 3})
        assert item["seg"] is volume
        (file,) = (tmp_path / "new" / "out").iterdir()
        assert file.name == "scan_seg.nii.gz"
        saved = nib.Nifti1Image.from_filename(file)
        assert saved.shape == shape
        assert saved.get_data_dtype() == stored
        np.testing.assert_array_equal(
            saved.get_fdata(), volume.movedim(0, -1).numpy().reshape(shape)
        )
        np.testing.assert_array_equal(saved.affine, np.diag([2, 2, 5, 1]))


def test_entropy_is_0_for_certainty_and_1_for_ignorance() -> None:
    p = torch.tensor([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]])
    torch.testing.assert_close(
        normalized_entropy(p), torch.tensor([[0, 1, math.log(2) / math.log(3)]])
    )
    for wrong in (LOGITS, p.T[:, :, None].repeat(1, 1, 2), p[None], LOGITS.softmax(0)[:1]):
        with pytest.raises(InputError, match="softmax to logits"):
            normalized_entropy(wrong)


LOGITS = torch.randn(3, 4, 3, 2, generator=torch.Generator().manual_seed(0))
AFFINE = torch.diag(torch.tensor([2.0, 2, 5, 1], dtype=torch.float64))
STRUCTURES = {"core": [2], "whole": [1, 2]}  # structures may share classes


def of_structures(p: torch.Tensor) -> torch.Tensor:
    return torch.stack([p[0], p[2], p[1] + p[2]])


def item(logits: torch.Tensor = LOGITS) -> dict[str, Any]:
    """Logits on the grid of their image, which nothing was done to."""
    meta = {"filename_or_obj": "in/scan_t1.nii.gz", "original_affine": AFFINE.numpy()}
    return {
        "pred": logits,
        "image": MetaTensor(torch.zeros(1, *logits.shape[1:]), affine=AFFINE, meta=meta),
        "id": 7,
    }


@pytest.mark.parametrize("slab", [1, 10**6])
@pytest.mark.parametrize(
    ("bits", "dtype"), [(32, torch.float32), (16, torch.uint16), (8, torch.uint8)]
)
def test_prediction_maps(
    bits: int, dtype: torch.dtype, slab: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prediction_maps, "SLAB", slab)
    given = item()
    maps = PredictionMapsd("pred", STRUCTURES, [0, 1, 4], bits=bits)(given)
    assert maps.keys() == {"pred", "image", "id", "seg", "probability", "uncertainty", "quality"}
    filled = LOGITS.softmax(0)
    for name, expected in (
        ("probability", of_structures(filled)),
        ("uncertainty", normalized_entropy(filled)),
    ):
        assert maps[name].dtype == dtype
        values = maps[name].as_tensor().float() * maps[name].meta["scl_slope"]
        torch.testing.assert_close(values, expected, rtol=0, atol=0.5 / (2**bits - 1) + 1e-6)
    for name in ("pred", "seg"):
        expected = torch.tensor([0, 1, 4], dtype=torch.uint8)[filled.argmax(0, keepdim=True)]
        torch.testing.assert_close(maps[name].as_tensor(), expected)
    for name in ("pred", "seg", "probability", "uncertainty"):
        torch.testing.assert_close(maps[name].affine, AFFINE)
        assert maps[name].meta["filename_or_obj"] == "in/scan_t1.nii.gz"
    assert given["pred"] is LOGITS
    SaveMapd("probability", tmp_path)(maps)
    stored = nib.Nifti1Image.from_filename(tmp_path / "scan_t1_probability.nii.gz")
    stored_as = "f4" if dtype.is_floating_point else f"u{bits // 8}"
    assert (stored.get_data_dtype(), stored.shape) == (stored_as, (4, 3, 2, 3))
    np.testing.assert_allclose(
        stored.get_fdata(), of_structures(filled).movedim(0, -1), atol=0.6 / (2**bits - 1) + 1e-7
    )


@pytest.mark.parametrize(
    ("save", "endings"), [("label", {"seg"}), (["uncertainty", "label"], {"uncertainty", "seg"})]
)
def test_only_what_is_asked_for_is_made_and_saved(
    save: Any, endings: set[str], tmp_path: Path
) -> None:
    maps = PredictionMapsd("pred", STRUCTURES, [0, 1, 4], save=save)(item())
    SaveMapd(["seg", "uncertainty", "probability"], tmp_path, MODALITIES, allow_missing_keys=True)(
        maps
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"scan_{ending}.nii.gz" for ending in endings),
        "quality",
    }


def test_uncertainty_is_shown_in_place_of_the_label_map() -> None:
    maps = PredictionMapsd("pred", STRUCTURES, [0, 1, 4], show_uncertainty=True)(item())
    expected = normalized_entropy(LOGITS.softmax(0))
    torch.testing.assert_close(maps["pred"].as_tensor(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("slab", [1, 10**6])
def test_the_quality_is_that_of_the_probabilities(
    slab: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prediction_maps, "SLAB", slab)
    known = reference(12)
    network = TemperatureScaled(torch.nn.Identity())
    tests = to_bytes({"home": known.to_tensor().tolist()})
    stored = {"reference": known.to_tensor(), "tests": tests}
    network.load_state_dict({**network.state_dict(), **stored})
    SaveMapd("seg", tmp_path, MODALITIES)(
        PredictionMapsd("pred", STRUCTURES, [0, 1, 4], network=network)(item())
    )
    write_table(tmp_path, Review.from_options())
    table, filled = (
        pd.read_csv(tmp_path / "quality.csv"),
        LOGITS.softmax(0).double().numpy(),
    )
    assert table[["scan", "structure"]].to_numpy().tolist() == [["scan", "core"], ["scan", "whole"]]
    for row, own, classes in zip(table.itertuples(), ("a", "b"), STRUCTURES.values(), strict=True):
        p, mask = filled[classes].sum(0), np.isin(filled.argmax(0), classes)
        dsc, volume = 2 * p[mask].sum() / (mask.sum() + p.sum()), p.sum() * 0.02  # voxels of 20 mm3
        expected = (dsc, known.lower_bound(own, dsc), volume, *known.volume_range(own, volume))
        np.testing.assert_allclose(row[3:8], expected, rtol=1e-6, atol=1e-6)
    assert "<td>home" in (tmp_path / "quality.html").read_text()


def test_codes_that_a_byte_cannot_hold() -> None:
    labels = PredictionMapsd("pred", STRUCTURES, [0, -1, 300], save="label")(item())["seg"]
    assert labels.unique().tolist() == [-1, 0, 300]


@pytest.mark.parametrize("options", [{"label_codes": [0, 1]}, {"bits": 12}], ids=str)
def test_unsuitable_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        PredictionMapsd(
            **{"keys": "pred", "structures": STRUCTURES, "label_codes": [0, 1, 4], **options}
        )(item())


def test_logits_that_are_not_finite() -> None:
    """Of a network that overflows in half precision, say."""
    logits = LOGITS.clone()
    logits[1, 2, 2, 1] = math.inf
    with pytest.raises(InputError, match=r"scan_t1\.nii\.gz.*--amp"):
        PredictionMapsd("pred", STRUCTURES, [0, 1, 4])(item(logits))


def test_the_header_has_the_stamp_and_the_file_no_trace_of_its_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        SaveMapd("seg", tmp_path / folder, stamp={"weights": 1})(
            PredictionMapsd("pred", STRUCTURES, [0, 1, 4])(item())
        )
    files = [tmp_path / folder / "scan_t1_seg.nii.gz" for folder in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert bytes(nib.load(files[0]).header["descrip"]).startswith(b"weights 1\0")


def test_label_map_has_no_scale_factor(tmp_path: Path) -> None:
    """Whatever the image's header holds: nibabel reads it, NaN in memory, into the image's
    metadata.
    """
    given = item()
    given["image"].meta["scl_slope"] = np.array(np.nan, np.float32)
    SaveMapd("seg", tmp_path)(PredictionMapsd("pred", STRUCTURES, [0, 1, 4])(given))
    header = gzip.decompress((tmp_path / "scan_t1_seg.nii.gz").read_bytes())[:348]
    assert np.frombuffer(header[112:120], "<f4").tolist() == [1, 0]  # scl_slope and scl_inter
