"""A folder as a hospital's archive exports it: what can be segmented is, the rest is listed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from html import unescape
from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import RLELossless, generate_uid

from calib_components.errors import InputError
from calib_workflows.data.dicom import forget_headers
from calib_workflows.data.nifti import open_nifti
from calib_workflows.inference import images as images_module
from calib_workflows.inference.images import ImageFolder, find_images, result_name
from calib_workflows.pages.quality import write_record
from tests.calib_workflows.data.test_dicom import AFFINES, check_same, save_series, volume_of
from tests.calib_workflows.pages.test_quality import record

AFFINE = AFFINES["oblique"]
LEFT_OUT = {  # name of the folder, and what is said of it
    "localizer": "differ in direction, as a localizer's do",
    "scout": "one slice, such as a localizer",
    "gap": "some are missing",
    "report": "no image, but Comprehensive SR Storage",
    "pdf": "no image, but Encapsulated PDF Storage",
    "seg": "no image, but Segmentation Storage",
    "parts": "lies in several folders",
    "damaged": "IM0 is no whole DICOM file",
    "plain": "IM999: cannot read the file: Empty file",
}
SEGMENTED = ("plain", "bare", "rle", "frames", "study")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series of one patient, a folder each, of which only some can be segmented."""
    root = tmp_path_factory.mktemp("export")
    series = {
        name: save_series(root / "DICOM" / "ST0" / name, volume_of(number), AFFINE, number)
        for number, name in enumerate(
            ["plain", "bare", "rle", "frames", "localizer", "scout", "gap"]
        )
    }
    for file in series["bare"].iterdir():  # what was sent over the network, and saved as it came
        header = pydicom.dcmread(file)
        header.file_meta, header.preamble = FileMetaDataset(), None
        header.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert file.read_bytes()[:1] == b"\x08"
    for file in series["rle"].iterdir():
        header = pydicom.dcmread(file)
        header.compress(RLELossless)
        header.save_as(file)
    slices = [pydicom.dcmread(file) for file in series["frames"].iterdir()]
    frames = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        slices, generate_uid(), 3, generate_uid(), 1
    )
    shutil.rmtree(series["frames"])
    series["frames"].mkdir()
    frames.save_as(series["frames"] / "IM0")
    (series["plain"] / "IM999").write_bytes(b"")
    (series["plain"] / "P_seg.dcm").write_bytes(b"")  # a result of before, which is skipped
    turned = pydicom.dcmread(series["localizer"] / "IM007")
    turned.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    turned.save_as(series["localizer"] / "IM007")
    for file in sorted(series["scout"].iterdir())[1:]:
        file.unlink()
    (series["gap"] / "IM014").unlink()
    # Another study of that day, whose series has the number of another
    save_series(root / "DICOM" / "ST1" / "study", volume_of(9), AFFINE, 0)
    for name, source in {"report": "test-SR.dcm", "seg": "liver_1frame.dcm"}.items():
        (root / "DICOM" / "ST1" / name).mkdir()
        file = str(get_testdata_file(source))
        shutil.copy(file, root / "DICOM" / "ST1" / name / "IM0")
    report = pydicom.dcmread(root / "DICOM" / "ST1" / "report" / "IM0")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.save_as(root / "DICOM" / "ST1" / "report" / "IM0")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"
    report.SeriesInstanceUID = generate_uid()
    (root / "DICOM" / "ST1" / "pdf").mkdir()
    report.save_as(root / "DICOM" / "ST1" / "pdf" / "IM0")
    parts = save_series(root / "DICOM" / "parts" / "A", volume_of(0), AFFINE, 20)
    (parts.parent / "B").mkdir()
    (parts / "IM007").rename(parts.parent / "B" / "IM007")
    (root / "DICOM" / "damaged").mkdir()
    (root / "DICOM" / "damaged" / "IM0").write_bytes(bytes(128) + b"DICM")
    (root / "DICOMDIR").write_bytes(Path(str(get_testdata_file("DICOMDIR"))).read_bytes())
    (root / "autorun.inf").write_text("[autorun]")
    (root / "VIEWER.EXE").write_bytes(b"MZ" + bytes(400))
    return root


def folder_of(export: Path, out: Path, **options: object) -> ImageFolder:
    return ImageFolder(export, 1, [], out, **options)  # type: ignore[arg-type]


def test_all_series_that_can_be_are_segmented_and_the_others_are_named(
    export: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(export, tmp_path)
    folder.check()
    images = {Path(item["image"][0]).parent.name: item["image"][0] for item in folder.items()}
    assert {*images} == {*SEGMENTED}
    for number, name in enumerate(SEGMENTED[:4]):
        check_same(open_nifti(images[name]), volume_of(number), AFFINE)
    check_same(open_nifti(images["study"]), volume_of(9), AFFINE)
    assert len({result_name(file) for file in images.values()}) == len(SEGMENTED)
    for name, reason in LEFT_OUT.items():
        assert sum(name in line and reason in line for line in folder.left_out) >= 1, name
    assert len({*folder.left_out}) == len(LEFT_OUT) == len(folder.left_out) - 1  # of two parts
    skipped, *left_out, told = caplog.messages
    assert "1 file(s) called like labels or maps are skipped, such as P_seg.dcm" in skipped
    assert {f"Left out: {line}" for line in folder.left_out} == {*left_out}
    assert len(left_out) == len(LEFT_OUT)
    places = [f"{result_name(images[name])} is {export}" for name in ("plain", "study")]
    assert told.startswith("Series called P-1_20240102: ")
    assert all(place in told for place in places)


def test_a_run_that_left_something_out_ends_with_status_3_and_the_page_says_what(
    export: Path, tmp_path: Path
) -> None:
    folder = folder_of(export, tmp_path, save="label")
    folder.check()
    folder.output.claim(folder.names)
    segmented = next(image for image in folder.find() if image.name.startswith("P-1"))
    write_record(record(segmented.name, 0.8), tmp_path)
    with pytest.raises(SystemExit) as ended:
        folder.finish()
    assert ended.value.code == 3
    page = unescape((tmp_path / "quality.html").read_text())
    assert f"<h2>Left out, not segmented: {len(LEFT_OUT)}</h2>" in page
    assert all(line in page for line in folder.left_out)


def test_an_export_without_any_image_is_refused(export: Path, tmp_path: Path) -> None:
    folder = folder_of(export / "DICOM" / "ST1" / "report", tmp_path)
    with pytest.raises(InputError, match="no image, but Comprehensive SR"):
        folder.check()


def test_each_header_is_read_once(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, plain = [], pydicom.dcmread
    shutil.copytree(export, tmp_path / "in")
    for number in range(20):
        save_series(tmp_path / "in" / f"{number}", volume_of(number), AFFINE, 30 + number)

    def count(file: Any, **options: Any) -> pydicom.Dataset:
        read.append(file if isinstance(file, Path) else Path(file.name))
        return plain(file, **options)

    monkeypatch.setattr(pydicom, "dcmread", count)
    folder = folder_of(tmp_path / "in", tmp_path / "out", save="dicom")
    folder.check()
    items = folder.items()
    assert len(items) == 20 + len(SEGMENTED)
    # A DICOM SEG is tried with one slice of each
    assert sorted(Counter(read).values())[::-1][: len(items) + 1] == [*[2] * len(items), 1]


def test_results_under_another_name_are_not_kept(tmp_path: Path) -> None:
    save_series(tmp_path / "in" / "first", volume_of(0), AFFINE)
    out = tmp_path / "out"

    def run(**options: object) -> list[str]:
        folder = folder_of(tmp_path / "in", out, save="label", skip_existing=True, **options)
        folder.check()
        folder.output.claim(folder.names)
        folder.output.release()
        return sorted(name for name in folder.names if name.startswith("quality/P"))

    assert run() == run() == ["quality/P-1_20240102_3.json"]
    save_series(tmp_path / "in" / "second", volume_of(1), AFFINE)
    with pytest.raises(InputError, match="holds results of P-1_20240102_3, whose series has"):
        run()
    assert len(run(overwrite=True)) == 2
    shutil.rmtree(tmp_path / "in" / "second")
    with pytest.raises(InputError, match=r"P-1_20240102_3_\w{6}, whose series has another name"):
        run()


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (3, 4):
        save_series(tmp_path / f"{number}", volume_of(0), AFFINE, number)
    closed = tmp_path / "3" / "IM007"
    access = os.access
    monkeypatch.setattr(os, "access", lambda file, mode: file != closed and access(file, mode))
    folder = folder_of(tmp_path, tmp_path / "out", save="label")
    folder.check()
    assert any(str(closed) in line for line in folder.left_out)


def test_a_share_counts_its_own_series(
    export: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shares = [folder_of(export, tmp_path, shard=f"{number}/2") for number in (1, 2)]
    for share in shares:
        share.check()
    whole = folder_of(export, tmp_path)
    whole.check()
    assert sorted(shares[0].left_out + shares[1].left_out) == sorted(whole.left_out)
    counts = [int(each.outcome().split()[0]) for each in (*shares, whole)]
    assert counts[0] + counts[1] == counts[2] == len(SEGMENTED)
    names = [result_name(item["image"][0]) for share in shares for item in share.items()]
    assert {*names} == {result_name(item["image"][0]) for item in whole.items()}


def test_a_series_of_one_file_is_called_as_in_its_folder(tmp_path: Path) -> None:
    for name in ("A", "B"):  # of one name, in one folder
        for file in save_series(tmp_path / name, volume_of(0), AFFINE).iterdir():
            (tmp_path / "in").mkdir(exist_ok=True)
            file.rename(tmp_path / "in" / f"{name}_{file.name}")
    every = {image.name for image in find_images(tmp_path / "in")}
    files = [tmp_path / "in" / f"{name}_IM007" for name in ("A", "B")]
    assert {image.name for file in files for image in find_images(file)} == every
    assert len(every) == 2


def test_slices_may_be_called_like_labels(tmp_path: Path) -> None:
    for file in sorted(save_series(tmp_path / "in", volume_of(0), AFFINE).iterdir()):
        file.rename(file.with_name(f"{file.name}_label.dcm"))
    first = min((tmp_path / "in").iterdir())
    first.rename(first.with_name("A_seg.dcm"))
    (image,) = find_images(tmp_path / "in")
    check_same(open_nifti(image.files[0]), volume_of(0), AFFINE)


def test_a_scan_is_done_again_when_slices_came_later(tmp_path: Path) -> None:
    folder, out = save_series(tmp_path / "in", volume_of(0), AFFINE), tmp_path / "out"
    last = max(folder.iterdir())
    content, times = last.read_bytes(), (last.stat().st_atime, last.stat().st_mtime)
    last.unlink()
    images = folder_of(tmp_path / "in", out, save="label", skip_existing=True)
    images.check()
    images.output.claim(images.names)
    for name in images._results(images.find()[0]):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"")
    assert not images.items()
    last.write_bytes(content)
    os.utime(last, times)
    os.utime(folder, (times[0] + 1000, times[1] + 1000))
    forget_headers()
    assert len(images.items()) == 1


def set_in(file: Path, **values: Any) -> None:
    header = pydicom.dcmread(file)
    for name, value in values.items():
        setattr(header, name, value)
    header.save_as(file)


def test_one_bad_file_ends_no_run_and_is_named(tmp_path: Path) -> None:
    names = ("good", "header", "link", "zeros", "thick", "pet", "raw", "several")
    folders = {
        name: save_series(tmp_path / "in" / name, volume_of(0), AFFINE, number)
        for number, name in enumerate(names)
    }
    for folder in folders.values():
        for file in folder.iterdir():
            set_in(file, Modality="CT", RescaleIntercept=0, RescaleSlope=1)
    last = {name: max(folder.iterdir()) for name, folder in folders.items()}
    last["header"].write_bytes(last["header"].read_bytes()[:154])
    last["link"].unlink()
    last["link"].symlink_to("gone")
    last["zeros"].write_bytes(bytes(4000))
    raw = last["thick"].read_bytes()
    last["thick"].write_bytes(raw.replace(b"\x18\0\x50\0DS", b"\x18\0\x50\0ZZ"))
    for file in folders["pet"].iterdir():
        set_in(file, Modality="PT")
    for file in folders["raw"].iterdir():
        header = pydicom.dcmread(file)
        del header.RescaleIntercept
        header.save_as(file)
    header = pydicom.dcmread(last["several"])
    header.SOPInstanceUID = [header.SOPInstanceUID, "1.2.3"]
    header.save_as(last["several"], enforce_file_format=False)
    (folders["good"] / "VERSION").write_text("1")
    folder = folder_of(tmp_path / "in", tmp_path / "out", modality="CT", save="dicom")
    folder.check()
    told = {name: [line for line in folder.left_out if f"/{name}" in line] for name in names}
    assert "cannot read a DICOM file" in told["header"][0]
    assert told["link"]
    assert told["zeros"]
    assert "Modality PT, not CT" in told["pet"][0]
    assert "without RescaleIntercept" in told["raw"][0]
    assert told["good"] == []
    segmented = {Path(item["image"][0]).parent.name for item in folder.items()}
    assert {"good", "header", "link"} <= segmented
    assert not {"pet", "raw"} & segmented


def test_the_table_leaves_out_what_can_no_longer_be_segmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = [save_series(tmp_path / "in" / f"{k}", volume_of(k), AFFINE, k) for k in (1, 2)]
    tables: list[Any] = []
    monkeypatch.setattr(images_module, "write_table", lambda *args: tables.append(args[2]) or "")

    def run() -> None:
        folder = folder_of(tmp_path / "in", tmp_path / "out", save="label", skip_existing=True)
        folder.check()
        folder.output.claim(folder.names)
        for image in folder.find():
            for name in folder._results(image):
                (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
                (tmp_path / "out" / name).write_bytes(b"")
        folder.write_table()

    run()
    (series[1] / "IM014").unlink()
    run()
    assert [len(scans) for scans in tables] == [2, 1]
