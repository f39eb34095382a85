"""Images that inference finds, checks, shares out and names; no network is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine

from calib_components.errors import InputError
from calib_workflows.inference import ImageFolder, find_images, run_stamp
from calib_workflows.inference.images import Image, shard_of

MODALITIES = ("_flair", "_t1", "_t1ce", "_t2")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def save(path: Path, *shape: int, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(
        np.ones(shape or (4, 4, 3), np.int16), np.eye(4) if affine is None else affine
    )
    nib.save(image, path)
    return path


def images_of(folder: Path, **options: object) -> ImageFolder:
    given = {
        "path": folder / "in",
        "in_channels": 1,
        "file_suffixes": [],
        "output_dir": folder / "out",
    }
    return ImageFolder(**{**given, **options})  # type: ignore[arg-type]


def claim(images: ImageFolder) -> None:
    """Do what a run does before it writes."""
    images.check()
    engine = Engine(lambda *_: None)
    images.attach(engine)
    engine.run([None])
    images.output.release()


def test_nifti_files_are_found_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii", "a.nii.gz", "sub/C.NII.GZ", "e.f.nii.gz", "two words.nii")
    touch(
        tmp_path, "._a.nii.gz", ".hidden.nii", ".nii", "a.nii.gz.part", "notes.txt", ".trash/x.nii"
    )
    touch(
        tmp_path,
        *(f"a{ending}.nii.gz" for ending in ("_gt", "_seg", "_SEG", "_label", "_probability")),
    )
    assert {image.name for image in find_images(tmp_path)} == {"a", "b", "C", "e.f", "two words"}
    assert find_images(tmp_path / "b.nii") == [Image("b", (tmp_path / "b.nii",))]


def test_files_of_one_image_are_in_the_order_of_its_channels(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"{folder}/x{s}.nii.gz" for folder in "pq" for s in reversed(MODALITIES)),
        "p/whole.nii",
    )
    whole, *split = find_images(tmp_path, MODALITIES)
    assert whole == Image("whole", (tmp_path / "p/whole.nii",))
    assert split == [
        Image("x", tuple(tmp_path / f"{f}/x{s}.nii.gz" for s in MODALITIES)) for f in "pq"
    ]
    assert [image.name for image in find_images(tmp_path / "p/x_t1.nii.gz", MODALITIES)] == ["x"]


def test_endings_and_capitals_may_differ_within_an_image(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "x_FLAIR.nii",
        "x_t1.nii.gz",
        "x_T2.nii.gz",
        "X_t1.nii",
        "y_t1.nii",
        "y_ce_t1.nii",
        "_t1.nii",
    )
    (image,) = find_images(tmp_path / "x_T2.nii.gz", MODALITIES)
    assert [file.name for file in image.files] == [
        "x_FLAIR.nii",
        "x_t1.nii.gz",
        "x_t1ce.nii.gz",
        "x_T2.nii.gz",
    ]
    # The longest suffix counts
    names = [image.name for image in find_images(tmp_path, ("_t1", "_ce_t1"))]
    assert names == ["X", "_t1", "x_FLAIR", "x_T2", "x", "y"]


def test_images_called_like_labels_are_counted_and_can_be_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b_seg", "c_GT", "d_probability"):
        save(tmp_path / f"in/{name}.nii.gz")
    folder = images_of(tmp_path)
    folder.check()
    assert len(folder.items()) == 1
    assert ["in: 3 file(s) called like labels" in message for message in caplog.messages] == [True]
    named = images_of(tmp_path, path=tmp_path / "in/b_seg.nii.gz")
    named.check()
    assert named.items() == [{"image": [str(tmp_path / "in/b_seg.nii.gz")]}]
    assert len(caplog.messages) == 1


def test_files_of_an_image_share_a_grid(tmp_path: Path) -> None:
    folder = images_of(tmp_path, in_channels=2, file_suffixes=["_t1", "_t2"])
    save(tmp_path / "in/x_t1.nii")
    save(tmp_path / "in/x_t2.nii", affine=np.eye(4) + 1e-3)
    folder.check()
    save(tmp_path / "in/x_t2.nii", affine=np.eye(4) + 3 * np.eye(4, k=3))
    with pytest.raises(InputError, match=r"x_t2\.nii.* 3 mm"):
        folder.check()


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("a.nii", (4, 4), "shape"),
        ("a.nii", (4, 4, 3, 2, 2), "shape"),
        ("x_t1.nii", (4, 4, 3), r"x_t2\.nii\.gz does not exist"),
        ("b/a.nii", (4, 4, 3), "2 images are called a"),
    ],
)
def test_unsuitable_images_are_named(
    name: str, shape: tuple[int, ...], word: str, tmp_path: Path
) -> None:
    save(tmp_path / "in" / name, *shape)
    if name == "b/a.nii":
        save(tmp_path / "in/a.nii.gz")
    with pytest.raises(InputError, match=word):
        images_of(tmp_path, file_suffixes=["_t1", "_t2"]).check()


def test_unsuitable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dataset_dir is or holds no"):
        images_of(tmp_path).check()
    assert images_of(tmp_path).items() == []
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="dataset_dir is or holds no"):
        images_of(tmp_path).check()
    with pytest.raises(InputError, match="review must be a percentage"):
        images_of(tmp_path, review="20").check()
    (tmp_path / "in" / "IM1").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(InputError, match="IM1 is no whole DICOM file"):
        images_of(tmp_path).check()
    (tmp_path / "in" / "IM1").unlink()
    with pytest.raises(InputError, match=r"missing\.nii does not exist"):
        images_of(tmp_path, path=tmp_path / "missing.nii").check()


def test_maps_replace_no_images_and_no_earlier_maps(tmp_path: Path) -> None:
    save(tmp_path / "in/a.nii")
    with pytest.raises(InputError, match="in holds files to read"):
        images_of(tmp_path, output_dir=tmp_path / "in").check()
    save(tmp_path / "out/a_seg.nii.gz")
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz is of no recorded run.*overwrite"):
        images_of(tmp_path, skip_existing=True).check()
    images_of(tmp_path, overwrite=True).check()


def test_finished_images_are_skipped(tmp_path: Path) -> None:
    files = [save(tmp_path / f"in/{name}.nii") for name in "abc"]
    options: dict[str, Any] = {"save": ["label", "uncertainty"], "stamp": {"weights": 1}}
    claim(images_of(tmp_path, **options))
    for name in ("a_seg", "a_uncertainty", "b_seg"):
        save(tmp_path / f"out/{name}.nii.gz")
    touch(tmp_path / "out" / "quality", "a.json", "b.json")
    with pytest.raises(InputError, match=r"a_seg\.nii\.gz exists.*skip_existing"):
        images_of(tmp_path, **options).check()
    options["skip_existing"] = True
    folder = images_of(tmp_path, **options)
    folder.check()
    assert folder.items() == [{"image": [str(file)]} for file in files[1:]]
    with pytest.raises(InputError, match="is of a run with weights 1, not 2"):
        images_of(tmp_path, **{**options, "stamp": {"weights": 2}}).check()
    os.utime(files[0], (2**33, 2**33))  # an image that is newer than its maps
    assert len(folder.items()) == 3
    os.utime(files[0], (0, 0))
    (tmp_path / "out" / "quality" / "a.json").unlink()
    assert len(folder.items()) == 3


def test_phases_of_a_cine_are_images_of_a_network_of_one_channel(tmp_path: Path) -> None:
    cine = save(tmp_path / "in/a.nii.gz", 4, 4, 3, 2)
    save(tmp_path / "in/b.nii", 4, 4, 3, 1)
    folder = images_of(tmp_path, save="label")
    claim(folder)
    assert [image.name for image in folder.find()] == ["a_phase00", "a_phase01", "b"]
    assert images_of(tmp_path, shard="2/3").items() == [
        {"image": [str(tmp_path / "in/a_phase01.nii.gz")]}
    ]
    touch(tmp_path / "out", "a_phase00_seg.nii.gz", "quality/a_phase00.json")
    continued = images_of(tmp_path, save="label", skip_existing=True)
    assert len(continued.items()) == 2
    os.utime(cine, (2**33, 2**33))
    assert len(continued.items()) == 3
    save(tmp_path / "in/a_phase01.nii")
    with pytest.raises(InputError, match="2 images are called a_phase01"):
        images_of(tmp_path).check()
    folder = images_of(tmp_path, in_channels=3)
    with pytest.raises(InputError, match=r"in: no image can be segmented, see above\."):
        folder.check()
    assert any("shape (4, 4, 3, 2) is not that of a 3D" in line for line in folder.left_out)


def test_images_that_are_gone_lose_their_maps_by_overwriting_a_folder_alone(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"in/{name}.nii")
    claim(images_of(tmp_path))
    maps = touch(tmp_path / "out", "a_seg.nii.gz", "b_seg.nii.gz")
    (tmp_path / "in/a.nii").rename(tmp_path / "a.nii")
    for options in ({"skip_existing": True}, {"path": tmp_path / "in/b.nii", "overwrite": True}):
        claim(images_of(tmp_path, **options))
        assert (maps / "a_seg.nii.gz").exists()
    claim(images_of(tmp_path, overwrite=True))
    assert not (maps / "a_seg.nii.gz").exists()


def test_stamps_tell_weights_and_options_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    stamps = [run_stamp(tmp_path / name, tta=tta) for name in "abc" for tta in (True, False)]
    assert all(stamps.count(stamp) == 1 for stamp in stamps)
    assert max(len(stamp["weights"]) for stamp in stamps) <= 71  # bytes, in the header's field


@given(st.lists(st.integers()), st.integers(1, 20))
def test_shards_hold_each_value_once(values: list[int], n: int) -> None:
    shards = [shard_of(values, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(value for shard in shards for value in shard) == sorted(values)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shard_of(values, None) == values
    for shard in ("0/2", "3/2", "1"):
        with pytest.raises(InputError, match="shard"):
            shard_of(values, shard)
