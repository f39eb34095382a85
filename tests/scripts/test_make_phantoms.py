"""The phantom hearts: their layout, their anatomy, and the same files for the same seed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from calib_components.errors import InputError
from calib_components.tools.prepare.acdc import find_cases
from calib_components.tools.prepare.case import load_case
from calib_components.tools.prepare.facts import facts_of_dataset
from scripts.benchmarks.phantoms import (
    GROUPS,
    LV,
    MYO,
    RV,
    SCANNERS,
    draw_patient,
    make_phantoms,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms")
    make_phantoms(out, patients=10, seed=3)
    return out


def volumes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Image and label at end-diastole and end-systole."""
    files = sorted(folder.glob("*_gt.nii.gz"))
    return [
        (np.asanyarray(nib.load(str(file).replace("_gt", "")).dataobj), np.asanyarray(nib.load(file).dataobj))
        for file in files
    ]


def test_layout_is_that_of_acdc(root: Path) -> None:
    cases = find_cases(root)
    assert len(cases) == 20
    assert {case.group for case in cases} == set(GROUPS)
    for case in cases:
        data, _ = load_case(case, facts_of_dataset("acdc", root))
        assert all(96 <= size <= 128 for size in data["image"].shape[1:3])
        assert 6 <= data["image"].shape[3] <= 10
        assert data["image"].pixdim.tolist() == [1.5, 1.5, 10.0]


def test_anatomy(root: Path) -> None:
    for folder in sorted((root / "training").iterdir()):
        (image, diastole), (_, systole) = volumes(folder)
        for label in (diastole, systole):
            assert np.unique(label).tolist() == [0, RV, MYO, LV]
            base, apex = (label[..., k] for k in (0, -1))
            assert (base == LV).sum() > 1.5 * (apex == LV).sum() > 0
        assert (diastole == LV).sum() > 1.1 * (systole == LV).sum()
        middle = image[..., image.shape[2] // 2], diastole[..., image.shape[2] // 2]
        blood, muscle = (np.median(middle[0][middle[1] == value]) for value in (LV, MYO))
        assert blood > 1.5 * muscle


def test_groups_differ_as_in_acdc(root: Path) -> None:
    """Dilated: a large cavity that hardly contracts. Hypertrophic: a thick wall. RV: a large right ventricle."""
    measures: dict[str, list[np.ndarray]] = {}
    for folder in (root / "training").iterdir():
        group = re.findall(r"Group: (\w+)", (folder / "Info.cfg").read_text())[0]
        sizes = [np.array([(label[..., 1] == value).sum() for value in (RV, MYO, LV)]) for _, label in volumes(folder)]
        measures.setdefault(group, []).append(np.array([*sizes[0], sizes[1][2] / sizes[0][2]]))
    right, muscle, cavity, contraction = range(4)
    mean = {group: np.mean(values, axis=0) for group, values in measures.items()}
    assert mean["DCM"][cavity] == max(values[cavity] for values in mean.values())
    assert mean["DCM"][contraction] == max(values[contraction] for values in mean.values())
    assert mean["HCM"][muscle] == max(values[muscle] for values in mean.values())
    assert mean["RV"][right] == max(values[right] for values in mean.values())


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance to the border of a mask `(H, W)`, in pixels, positive inside."""
    distance = distance_transform_edt(mask) - distance_transform_edt(~mask)
    return distance - np.sign(distance) / 2


def test_rater_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labelled border deviates from the true one by 1.5 pixels; the image stays."""
    heart, scanner = GROUPS["DCM"], SCANNERS["a"]
    drawn = [frame for seed in range(10) for frame in draw_patient(heart, scanner, np.random.default_rng(seed))]
    monkeypatch.setattr("scripts.benchmarks.phantoms.RATER", 0.0)
    true = [frame for seed in range(10) for frame in draw_patient(heart, scanner, np.random.default_rng(seed))]
    errors = []
    for (image, label), (same_image, true_label) in zip(drawn, true, strict=True):
        np.testing.assert_array_equal(image, same_image)
        outside = [-signed_distance(true_label[..., k] == LV) for k in (1, 2)]
        border = [abs(signed_distance(label[..., k] == LV)) < 1 for k in (1, 2)]
        errors += [distance[where] for distance, where in zip(outside, border, strict=True)]
    deviations = np.concatenate(errors)
    assert abs(deviations.mean()) < 0.3
    assert deviations.std() == pytest.approx(1.5, rel=0.15)


def test_seed(root: Path, tmp_path: Path) -> None:
    make_phantoms(tmp_path / "same", patients=2, seed=3)
    make_phantoms(tmp_path / "other", patients=2, seed=4)
    for file in (tmp_path / "same").rglob("*.*"):
        name = file.relative_to(tmp_path / "same")
        if file.suffix == ".gz":
            image = nib.load(file).get_fdata()
            np.testing.assert_array_equal(image, nib.load(root / name).get_fdata())
        else:
            assert file.read_text() == (root / name).read_text()
    with pytest.raises(InputError, match="not empty"):
        make_phantoms(tmp_path / "same", patients=2, seed=4)
    first = Path("training/patient001/patient001_frame01.nii.gz")
    assert nib.load(tmp_path / "other" / first).shape != nib.load(root / first).shape


def test_scanner(root: Path, tmp_path: Path) -> None:
    """Images of scanner b are noisier, with less contrast; its patients are others, and not mixed with those of a."""
    make_phantoms(tmp_path, patients=5, seed=3, scanner="b")
    measures = []
    for folder in (root, tmp_path):
        frames = [frame for patient in sorted((folder / "training").iterdir())[:5] for frame in volumes(patient)]
        blood, muscle = (np.array([np.median(i[k == value]) for i, k in frames]) for value in (LV, MYO))
        differences = [np.diff(i.astype(float), axis=0)[(k[1:] == LV) & (k[:-1] == LV)] for i, k in frames]
        measures.append((blood / muscle, [part.std() for part in differences] / blood))
    (contrast, noise), (other_contrast, other_noise) = measures
    assert other_contrast.mean() < 0.8 * contrast.mean()
    assert other_noise.mean() > 1.5 * noise.mean()
    shapes = [[label.shape for _, label in volumes(folder / "training" / "patient001")] for folder in (root, tmp_path)]
    assert shapes[0] != shapes[1]
    with pytest.raises(InputError, match="not empty"):
        make_phantoms(tmp_path, patients=5, seed=3)


def test_other_data_stay_as_they_are(tmp_path: Path) -> None:
    scan = tmp_path / "training" / "patient003" / "patient003_frame01.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_text("a real heart")
    with pytest.raises(InputError, match="not empty"):
        make_phantoms(tmp_path, patients=4)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [scan]


@pytest.mark.parametrize("options", [{"patients": 0}, {"seed": -1}, {"scanner": "c"}])
def test_bad_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(options))}"):
        make_phantoms(tmp_path / "out", **options)
    assert not [*tmp_path.iterdir()]
