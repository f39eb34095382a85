"""DICOM series beside the same volumes as NIfTI files and as SimpleITK reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid
from scipy import spatial

from calib_components.errors import InputError
from calib_workflows.data.dicom import (
    TO_RAS,
    Segment,
    check_decoder,
    check_source,
    forget_headers,
    write_segmentation,
)
from calib_workflows.data.nifti import open_nifti, read_values
from calib_workflows.data.transforms import LoadVolumed
from calib_workflows.inference import find_images

STRUCTURES = [Segment("a", "0000ff"), Segment("b", "ff0000", "10200004", "Liver")]
OBLIQUE = np.array(
    [[0.9, 0.1, 0.6, -20], [-0.2, 1.1, 0.1, 30], [-0.5, -0.1, 1.9, 7.5], [0, 0, 0, 1.0]]
)


def rigid(affine: np.ndarray) -> np.ndarray:
    """Return an affine with the same voxels sizes whose axes are at right angles."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    turn, _ = np.linalg.qr(affine[:3, :3] / sizes)
    turn *= np.sign((turn * affine[:3, :3]).sum(0))
    return nib.affines.from_matvec(turn * sizes, affine[:3, 3])


def save_series(folder: Path, volume: np.ndarray, affine: np.ndarray, number: int = 3) -> Path:
    """Write `(X, Y, Z)` of whole numbers as a series, in files of arbitrary order."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    axes, origin = (TO_RAS @ affine)[:3, :3] / sizes, (TO_RAS @ affine)[:3, 3]
    series, frame, study = generate_uid(), generate_uid(), generate_uid()
    for index in range(volume.shape[2]):
        file = pydicom.Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = MRImageStorage
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        file.SeriesInstanceUID, file.StudyInstanceUID, file.FrameOfReferenceUID = (
            series,
            study,
            frame,
        )
        file.PatientID, file.StudyDate, file.SeriesNumber = "P 1", "20240102", number
        file.PatientName = file.PatientBirthDate = file.PatientSex = file.StudyTime = ""
        file.StudyID = file.AccessionNumber = file.ReferringPhysicianName = ""
        file.ContentDate = file.ContentTime = file.Manufacturer = file.Laterality = ""
        file.Modality, file.InstanceNumber = "MR", index + 1
        file.ImageType = ["ORIGINAL", "PRIMARY"]
        file.ImageOrientationPatient = [*axes[:, 0].round(8), *axes[:, 1].round(8)]
        file.ImagePositionPatient = [*(origin + index * sizes[2] * axes[:, 2]).round(5)]
        file.PixelSpacing = [round(sizes[1], 8), round(sizes[0], 8)]
        file.SliceThickness = round(sizes[2], 8)
        file.Columns, file.Rows = volume.shape[:2]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated = file.BitsStored = 16
        file.HighBit, file.PixelRepresentation = 15, 1
        file.RescaleSlope, file.RescaleIntercept, file.RescaleType = 2, -1000, "US"
        stored = (volume[..., index].T + 1000) / 2
        file.PixelData = stored.round().astype(np.int16).tobytes()
        file.save_as(folder / f"IM{(7 * index) % 101:03}", enforce_file_format=True)
    return folder


def volume_of(seed: int, shape: Sequence[int] = (6, 7, 5)) -> np.ndarray:
    return 2 * np.random.default_rng(seed).integers(-500, 500, shape)


def check_same(image: nib.Nifti1Image, volume: np.ndarray, affine: np.ndarray) -> None:
    """Each voxel has its value where it lies."""
    values = read_values(image, "series")
    here = np.array(list(np.ndindex(values.shape)))
    there = nib.affines.apply_affine(np.linalg.inv(affine) @ image.affine, here)
    np.testing.assert_allclose(there, there.round(), atol=1e-3)
    assert values[tuple(here.T)].tolist() == volume[tuple(there.round().astype(int).T)].tolist()


AFFINES = {
    "straight": np.diag([1.5, 1, 3, 1.0]),
    "reversed": np.diag([-1.5, -1, -3, 1.0]),
    "oblique": rigid(OBLIQUE),
    "sagittal": np.array([[0, 0, 2, 5], [1.0, 0, 0, 6], [0, -1.5, 0, 7], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_series_are_the_volumes_that_they_were_written_from(name: str, tmp_path: Path) -> None:
    affine, volume = AFFINES[name], volume_of(0)
    folder = save_series(tmp_path / "scan", volume, affine)
    (image,) = find_images(tmp_path)
    assert image.name == "P-1_20240102_3"
    check_same(open_nifti(image.files[0]), volume, affine)
    (item,) = [LoadVolumed("image")({"image": str(image.files[0])})]
    assert item["image"].shape[1:] == volume.shape
    found = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    values = sitk.GetArrayFromImage(found).T
    turn = np.reshape(found.GetDirection(), (3, 3)) * found.GetSpacing()
    by_itk = TO_RAS @ nib.affines.from_matvec(turn, found.GetOrigin())
    check_same(open_nifti(image.files[0]), values, by_itk)


def test_several_series_of_a_folder_are_several_images(tmp_path: Path) -> None:
    for number in (3, 4):
        save_series(tmp_path / "all", volume_of(number), AFFINES["oblique"], number)
        for file in (tmp_path / "all").glob("IM*"):
            file.rename(file.with_name(f"{number}{file.name.replace('IM', 'S')}"))
    images = find_images(tmp_path)
    assert [image.name for image in images] == ["P-1_20240102_3", "P-1_20240102_4"]
    for number, image in enumerate(images, 3):
        check_same(open_nifti(image.files[0]), volume_of(number), AFFINES["oblique"])
        (alone,) = find_images(image.files[0])
        assert alone == image


def set_value(name: str, value: Any) -> Callable[[pydicom.Dataset], None]:
    return lambda file: setattr(file, name, value)


CHANGES = {
    "mixed": set_value("PixelSpacing", [3, 3]),
    "turned": set_value("ImageOrientationPatient", [1, 0, 0, 0, 1, 0]),
    "unscaled": lambda file: delattr(file, "RescaleSlope"),
    "uncentred": lambda file: delattr(file, "RescaleIntercept"),
    "size": set_value("PixelSpacing", [0, 0]),
    "sizes": set_value("PixelSpacing", [1, 1, 1]),
    "undecoded": lambda file: delattr(file, "BitsAllocated"),
    "shapeless": lambda file: delattr(file, "Rows"),
    "cut": lambda file: setattr(file, "PixelData", file.PixelData[:20]),
    "empty": lambda file: delattr(file, "PixelData"),
    "cut short": lambda file: setattr(file, "PixelData", file.PixelData[:-40]),
    "another's": set_value("PatientID", "P 2"),
    "moved": set_value("FrameOfReferenceUID", "1.2.3"),
    "echo": set_value("EchoTime", 9),
    "table": set_value("ModalityLUTSequence", [pydicom.Dataset()]),
}
OF_ALL = {
    "localizer": set_value("ImageType", ["ORIGINAL", "PRIMARY", "Localizer"]),
    "skewed": set_value("ImageOrientationPatient", [1, 0, 0, 0.05, 1, 0]),
}


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("missing", "apart: some are missing"),
        ("repeated", "1 of 6 slices lie where another"),
        ("tilted", "beside their place in an even stack"),
        ("mixed", "differ in size of pixels or shape"),
        ("turned", "differ in direction, as a localizer's do"),
        ("localizer", "a localizer"),
        ("unscaled", "some slices have no RescaleSlope"),
        ("uncentred", "some slices have no RescaleIntercept"),
        ("size", r"IM007 has PixelSpacing \[0.0, 0.0\]"),
        ("sizes", "IM007 has PixelSpacing of other than 2 numbers"),
        ("undecoded", "IM007 has no BitsAllocated"),
        ("shapeless", "IM007 has no Rows"),
        ("cut", "IM007 has not all of its pixels"),
        ("empty", "IM007 has not all of its pixels"),
        ("cut short", "IM007 has not all of its pixels"),
        ("another's", "its slices differ in PatientID"),
        ("moved", "its slices differ in FrameOfReferenceUID"),
        ("echo", "its slices differ in EchoTime"),
        ("table", "some slices have no ModalityLUTSequence"),
        ("skewed", "rows and columns are not at right angles"),
    ],
)
def test_series_that_are_no_volume_are_refused(flaw: str, message: str, tmp_path: Path) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0, (64, 64, 5)), AFFINES["oblique"])
    slices = {pydicom.dcmread(file).InstanceNumber: file for file in folder.iterdir()}
    first, second = slices[1], slices[2]
    if flaw == "missing":
        second.unlink()
    elif flaw == "tilted":
        for index, name in slices.items():
            file = pydicom.dcmread(name)
            file.ImagePositionPatient[1] += 0.1 * index
            file.save_as(name)
    elif flaw in CHANGES:
        file = pydicom.dcmread(second)
        CHANGES[flaw](file)
        file.save_as(second)
    elif flaw in OF_ALL:
        for name in slices.values():
            file = pydicom.dcmread(name)
            OF_ALL[flaw](file)
            file.save_as(name)
    else:
        file = pydicom.dcmread(second)
        file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        file.save_as(folder / "again")
    with pytest.raises(InputError, match=f"scan: series P-1_20240102_3: .*{message}"):
        open_nifti(first)


def set_raw(file: Path, name: str, value: bytes) -> None:
    """Write a value that pydicom would not write."""
    header, tag = pydicom.dcmread(file), Tag(name)
    kind = pydicom.datadict.dictionary_VR(tag)
    header[tag] = RawDataElement(tag, kind, len(value), value, 0, False, True)
    header.save_as(file)


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    set_raw(folder / "IM007", "NumberOfFrames", b"ab")
    with pytest.raises(InputError, match=r"IM007: cannot read a DICOM image: .*'ab'"):
        open_nifti(folder / "IM000")


@pytest.mark.parametrize("missing", ["SliceThickness", "Modality", "PatientName", "StudyTime"])
def test_what_images_lack_is_filled_in(missing: str, tmp_path: Path) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        delattr(header, missing)
        header.save_as(file)
        set_raw(file, "StudyDate", b"notadate")
        set_raw(file, "SeriesNumber", b"AB")
    (image,) = find_images(folder)
    assert check_source(image.files[0]) is None
    segments = [
        Segment("a\\b\n" + 70 * "c", "0000ff"),
        Segment("名前", "00ff00"),
        Segment("", "ff0000"),
    ]
    masks = np.ones((3, *open_nifti(image.files[0]).shape), bool)
    write_segmentation(tmp_path / "seg.dcm", masks, segments, image.files[0])
    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    labels = [segment.SegmentLabel for segment in found.SegmentSequence]
    assert labels == ["a b " + 60 * "c", "名前", "segment 3"]
    assert (found.StudyDate, found.SeriesNumber) == ("", 1000)


@pytest.mark.parametrize("missing", ["SOPInstanceUID", "SOPClassUID", "StudyInstanceUID"])
def test_images_that_cannot_be_referred_to_are_refused_before(missing: str, tmp_path: Path) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    header = pydicom.dcmread(folder / "IM007")
    delattr(header, missing)
    header.save_as(folder / "IM007", enforce_file_format=False)
    with pytest.raises(InputError, match=f"IM007 has no {missing}"):
        check_source(folder / "IM000")


def test_slices_of_one_identifier_are_refused_before(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        header.SOPInstanceUID = "1.2.3"
        header.save_as(file)
    assert open_nifti(folder / "IM000").shape == volume_of(0).shape
    with pytest.raises(InputError, match="slices of its series have one SOPInstanceUID"):
        check_source(folder / "IM000")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("StudyInstanceUID", ["1.2", "1.3"]),
        ("SOPClassUID", "1.2.3.4.5"),
        ("PatientName", "A\\B"),
    ],
)
def test_what_a_segmentation_cannot_copy_is_found_before(
    name: str, value: Any, tmp_path: Path
) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        setattr(header, name, value)
        header.save_as(file)
    assert open_nifti(folder / "IM000").shape == (6, 7, 5)
    with pytest.raises(InputError, match=r"IM000( has 2 S|: cannot read what a DICOM SEG)"):
        check_source(folder / "IM000")


@pytest.mark.parametrize(("name", "other"), [("RescaleSlope", 2), ("RescaleIntercept", -1000)])
def test_one_of_slope_and_intercept_is_enough(name: str, other: int, tmp_path: Path) -> None:
    volume = volume_of(0)
    folder = save_series(tmp_path / "scan", volume, AFFINES["straight"])
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        delattr(header, {"RescaleSlope", "RescaleIntercept"}.difference([name]).pop())
        header.save_as(file)
    stored = (volume + 1000) / 2
    expected = stored * other if name == "RescaleSlope" else stored + other
    check_same(open_nifti(folder / "IM000"), expected, AFFINES["straight"])
    found = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    assert sitk.GetArrayFromImage(found).mean() == pytest.approx(expected.mean())


def save_frames(folder: Path, volume: np.ndarray, affine: np.ndarray) -> pydicom.Dataset:
    """Return a series as one file of all frames."""
    slices = [pydicom.dcmread(file) for file in save_series(folder, volume, affine).iterdir()]
    shutil.rmtree(folder)
    folder.mkdir()
    make = highdicom.legacy.LegacyConvertedEnhancedMRImage
    return make(slices, generate_uid(), 3, generate_uid(), 1)


def test_frames_without_preamble(tmp_path: Path) -> None:
    volume, affine = volume_of(3), AFFINES["oblique"]
    frames = save_frames(tmp_path / "scan", volume, affine)
    frames.file_meta, frames.preamble = FileMetaDataset(), None
    options = {"implicit_vr": True, "little_endian": True, "enforce_file_format": False}
    frames.save_as(tmp_path / "scan" / "IM0", **options)
    check_same(open_nifti(tmp_path / "scan" / "IM0"), volume, affine)
    check_source(tmp_path / "scan" / "IM0")


def test_values_of_frames_are_those_of_slope_and_intercept(tmp_path: Path) -> None:
    volume, affine = volume_of(4), AFFINES["oblique"]
    frames = save_frames(tmp_path / "scan", volume, affine)
    other = pydicom.Dataset()  # as scanners of Philips add, in another unit
    other.RealWorldValueFirstValueMapped, other.RealWorldValueLastValueMapped = 0, 4000
    other.RealWorldValueSlope, other.RealWorldValueIntercept = 0.001, 0.0
    other.LUTExplanation, other.LUTLabel = "other", "OTHER"
    other.MeasurementUnitsCodeSequence = [highdicom.sr.CodedConcept("1", "UCUM", "no units")]
    shared = frames.SharedFunctionalGroupsSequence[0]
    shared.RealWorldValueMappingSequence = [other]
    frames.save_as(tmp_path / "scan" / "IM0")
    check_same(open_nifti(tmp_path / "scan" / "IM0"), volume, affine)


def test_frames_in_two_files_are_refused(tmp_path: Path) -> None:
    frames = save_frames(tmp_path / "scan", volume_of(0), AFFINES["oblique"])
    for name in ("A", "B"):
        frames.save_as(tmp_path / "scan" / name)
    with pytest.raises(InputError, match=r"a file of several frames among others"):
        open_nifti(tmp_path / "scan" / "A")


def test_a_compression_that_nothing_decodes_is_named_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    check_decoder(folder / "IM000")
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        header.compress(RLELossless)
        header.save_as(file)
    forget_headers()
    check_decoder(folder / "IM000")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(pydicom.pixels, "pixel_array", fail)
    with pytest.raises(InputError, match=r"decodes RLE Lossless.*pip install python-gdcm"):
        check_decoder(folder / "IM000")


def test_a_compressed_slice_that_is_cut_is_named_before(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        header.compress(RLELossless)
        header.save_as(file)
    cut = folder / "IM007"
    whole = cut.read_bytes()
    cut.write_bytes(whole + bytes([0xFC, 0xFF, 0xFC, 0xFF]) + b"OB\0\0" + bytes(2000))  # padding
    open_nifti(folder / "IM000")
    cut.write_bytes(whole[:-20])
    forget_headers()
    with pytest.raises(InputError, match="IM007 has not all of its pixels"):
        open_nifti(folder / "IM000")


def test_damaged_files_and_slices_without_a_place_are_refused(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    first, second, *_ = sorted(folder.iterdir())
    file = pydicom.dcmread(second)
    del file.ImagePositionPatient
    file.save_as(second)
    with pytest.raises(InputError, match=f"{second.name} has no ImagePositionPatient"):
        open_nifti(first)
    start = second.read_bytes()[:400]
    second.unlink()  # a folder that changed is read again
    second.write_bytes(start)
    _, damaged = find_images(folder)
    with pytest.raises(InputError, match=f"{second} is no whole DICOM file"):
        open_nifti(damaged.files[0])


def test_names_are_those_of_files(tmp_path: Path) -> None:
    for number, name in enumerate(["../../a b", "x_seg", "..", "é" * 200]):
        for file in save_series(
            tmp_path / str(number), volume_of(0), AFFINES["straight"]
        ).iterdir():
            header = pydicom.dcmread(file)
            header.SpecificCharacterSet, header.PatientID = "ISO_IR 192", name
            del header.StudyDate, header.SeriesNumber, header.PatientName
            header.save_as(file)
    names = [image.name for image in find_images(tmp_path)]
    assert names == ["a-b", "x_seg", "IM000", "é" * 50]


def test_multi_frame_file_is_the_same_volume(tmp_path: Path) -> None:
    folder, volume = save_series(tmp_path / "scan", volume_of(1), AFFINES["oblique"]), volume_of(1)
    slices = [pydicom.dcmread(file) for file in folder.iterdir()]
    multi = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        slices, generate_uid(), 9, generate_uid(), 1
    )
    (tmp_path / "multi").mkdir()
    multi.save_as(tmp_path / "multi" / "all.dcm")
    (image,) = find_images(tmp_path / "multi")
    check_same(open_nifti(image.files[0]), volume, AFFINES["oblique"])


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm"])
def test_single_slices_of_pydicom(name: str, tmp_path: Path) -> None:
    file = Path(shutil.copy(str(get_testdata_file(name)), tmp_path))
    image, header = open_nifti(file), pydicom.dcmread(file)
    values = pydicom.pixels.apply_rescale(header.pixel_array, header)
    assert read_values(image, file)[..., 0].tolist() == values.T.tolist()
    assert image.header.get_zooms()[:2] == pytest.approx([*header.PixelSpacing][::-1])


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_segmentations_are_read_where_they_lie(kind: str, tmp_path: Path) -> None:
    affine, volume = AFFINES["oblique"], volume_of(2)
    folder = save_series(tmp_path / "scan", volume, affine)
    (image,) = find_images(folder)
    shape = open_nifti(image.files[0]).shape
    p = np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32)
    masks = p > 0.4 if kind == "labels" else p
    write_segmentation(tmp_path / "seg.dcm", masks, STRUCTURES, image.files[0])
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    first, second = seg.SegmentSequence
    assert [first.SegmentLabel, second.SegmentLabel] == ["a", "b"]
    (code,) = second.SegmentedPropertyTypeCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == (
        *("10200004", "SCT", "Liver"),
    )
    color = highdicom.color.CIELabColor.from_dicom_value(
        second.RecommendedDisplayCIELabValue
    ).to_rgb()
    assert color == pytest.approx((255, 0, 0), abs=2)
    assert seg.SeriesNumber == (1003 if kind == "labels" else 2003)
    assert seg.SeriesDescription.endswith("research only")
    source = pydicom.dcmread(image.files[0])
    assert (seg.FrameOfReferenceUID, seg.StudyInstanceUID) == (
        source.FrameOfReferenceUID,
        source.StudyInstanceUID,
    )
    found = seg.get_volume(rescale_fractional=True)
    there = TO_RAS @ found.affine[:, [2, 1, 0, 3]]
    onto = np.linalg.inv(open_nifti(image.files[0]).affine) @ there
    here = np.array(list(np.ndindex(*found.spatial_shape[::-1])))
    places = nib.affines.apply_affine(onto, here)
    np.testing.assert_allclose(places, places.round(), atol=1e-3)
    for number in range(2):
        expected = masks[number][tuple(places.round().astype(int).T)]
        values = found.array[..., number].T[tuple(here.T)]
        np.testing.assert_allclose(values, expected, atol=1 / 255)


def by_highdicom(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask `(X, Y, Z)` and its affine in DICOM's axes, as highdicom reads it."""
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    return volume.array.T > 0, volume.affine[:, [2, 1, 0, 3]]


def by_simpleitk(file: Path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(file))
    turn = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = nib.affines.from_matvec(turn, image.GetOrigin())
    return sitk.GetArrayFromImage(image).T > 0, affine


def by_pydicom(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """From the attributes of each frame, as the standard defines them (C.7.6.2.1.1)."""
    seg = pydicom.dcmread(file)
    shared, frames = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    measures = shared.PixelMeasuresSequence[0]
    along = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    places = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames])
    order = np.argsort(places @ np.cross(*along))
    step = (places[order[-1]] - places[order[0]]) / (len(frames) - 1)
    turn = np.stack([*along * np.reshape(measures.PixelSpacing[::-1], (2, 1)), step], 1)
    affine = nib.affines.from_matvec(turn, places[order[0]])
    return seg.pixel_array[order].T > 0, affine


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("read", [by_highdicom, by_simpleitk, by_pydicom])
def test_readers_of_a_segmentation_agree_in_millimetres(
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]], name: str, tmp_path: Path
) -> None:
    # GDCM, in SimpleITK, misreads frames whose bits fill no whole bytes
    folder = save_series(tmp_path / "scan", volume_of(3, (8, 7, 5)), AFFINES[name])
    (image,) = find_images(folder)
    series = open_nifti(image.files[0])
    mask = np.random.default_rng(0).uniform(size=series.shape) > 0.5
    write_segmentation(tmp_path / "seg.dcm", mask[None], STRUCTURES[:1], image.files[0])
    found, affine = read(tmp_path / "seg.dcm")
    assert found.shape == mask.shape
    here = nib.affines.apply_affine(TO_RAS @ affine, np.argwhere(found))
    there = nib.affines.apply_affine(series.affine, np.argwhere(mask))
    apart, _ = spatial.KDTree(there).query(here)
    assert len(here) == len(there)
    assert apart.max() < 0.01


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ImagePositionPatient", [float("nan"), 0, 0]),
        ("RescaleSlope", 0),
        ("RescaleSlope", float("nan")),
    ],
)
def test_values_that_place_or_scale_nothing_are_refused(
    name: str, value: object, tmp_path: Path
) -> None:
    folder = save_series(tmp_path / "scan", volume_of(0), AFFINES["straight"])
    header = pydicom.dcmread(folder / "IM007")
    setattr(header, name, value)
    header.save_as(folder / "IM007")
    with pytest.raises(InputError, match=r"has RescaleSlope|have no place"):
        open_nifti(folder / "IM000")


def test_rounded_directions_are_no_tilt_and_differ_in_no_segmentation(tmp_path: Path) -> None:
    turn = nib.eulerangles.euler2mat(0, 0.4, 0)
    affine = nib.affines.from_matvec(turn * [0.5, 0.5, 2], [10, 20, 30])
    folder = save_series(tmp_path / "scan", volume_of(0, (6, 7, 60)), affine)
    for number, file in enumerate(sorted(folder.iterdir())):
        header = pydicom.dcmread(file)
        rounded = np.round([float(each) for each in header.ImageOrientationPatient], 3)
        header.ImageOrientationPatient = [*(rounded + 1e-6 * number)]
        header.PatientSex, header.Modality = "Unknown", "mr"
        header.save_as(file)
    (image,) = find_images(folder)
    mask = np.ones((1, *open_nifti(image.files[0]).shape), bool)
    write_segmentation(tmp_path / "seg.dcm", mask, STRUCTURES[:1], image.files[0])
    assert highdicom.seg.segread(tmp_path / "seg.dcm").PatientSex == ""
