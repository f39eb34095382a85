"""DICOM series: found among the files of a folder, opened as NIfTI files are, and their
segmentations written as DICOM SEG.

A series stands for one image. Its path is that of its first file; its name is
`PatientID_StudyDate_SeriesNumber`. pydicom reads headers, highdicom geometry and voxels.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import from_matvec

from calib_components.errors import InputError, reading
from calib_workflows.data.files import NIFTI

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger(__name__)
SUFFIX = ".dcm"
DIRECTORY = "DICOMDIR"
SEGMENTATIONS = ("SEG", "RTSTRUCT", "RTDOSE")  # modalities that are no images
NAMED_BY = ("PatientID", "StudyDate", "SeriesNumber")
LONGEST = 100  # characters of a name
PLACED_BY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
# Of the headers of a folder, whose others would take 100 kB a slice
KEPT = [
    *(*NAMED_BY, *PLACED_BY, "SeriesInstanceUID", "Modality", "SamplesPerPixel"),
    *("NumberOfFrames", "SpacingBetweenSlices", "SliceThickness"),
]
# What DICOM SEG copies of its images, and they may lack
COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's axes to those of NIfTI
SAME_PLACE = 1e-3  # mm between slices that lie at the same place
OFF_PLACE = 0.1  # of the smallest side of a voxel: how far a slice may lie from its place


def is_dicom(file: str | os.PathLike) -> bool:
    """Return whether a file is DICOM, by its first bytes or its ending."""
    file = Path(file)
    if file.name.lower().endswith(NIFTI) or not file.is_file():  # opens no file of a NIfTI folder
        return False
    with open(file, "rb") as opened:
        return opened.read(132).endswith(b"DICM") or file.suffix.lower() == SUFFIX


def series_of(file: str | os.PathLike) -> list[Path]:
    """Return the files of the series of a DICOM file that lie in its folder; none if it is no
    image, such as a report.
    """
    return [*_headers_beside(Path(file))]


def _headers_beside(file: Path) -> dict[Path, Dataset]:
    """Return the headers of the series of a file, see `series_of`."""
    series = _series_in(file.parent, file.parent.stat().st_mtime_ns)
    return next((headers for headers in series.values() if file in headers), {})


@functools.lru_cache(maxsize=16)
def _series_in(folder: Path, changed: int) -> dict[str, dict[Path, Dataset]]:
    """Return the headers of each series in a folder, which may have `changed` since."""
    placed: dict[str, dict[Path, Dataset]] = defaultdict(dict)
    others: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name == DIRECTORY or not is_dicom(file):
            continue
        header = _read(file, stop_before_pixels=True, specific_tags=KEPT)
        if "SeriesInstanceUID" not in header:
            raise InputError(f"{file} is no whole DICOM file. Export it again, or remove it.")
        series = str(header.SeriesInstanceUID)
        if _is_image(header):
            placed[series][file] = header
        else:
            others[series] = file
            log.warning("%s is no 3D image, as DICOM, and is skipped", file)
    for series in placed.keys() & others.keys():
        raise InputError(
            f"{others[series]}: a slice of a series has no place or values. Export it again."
        )
    return placed


def _is_image(header: Dataset) -> bool:
    """Return whether a file holds grey values whose places are known."""
    is_placed = _has_frames(header) or all(name in header for name in PLACED_BY)
    is_grey = header.get("SamplesPerPixel") == 1
    return is_placed and is_grey and header.get("Modality") not in SEGMENTATIONS


def _has_frames(header: Dataset) -> bool:
    return int(header.get("NumberOfFrames") or 1) > 1


def series_name(file: str | os.PathLike) -> str:
    """Return the name of the image that a series is."""
    header = _read(Path(file), stop_before_pixels=True)
    words = [str(header.get(name) or "") for name in NAMED_BY]
    name = re.sub(r"[^\w.-]+", "-", "_".join(filter(None, words))).strip(".-_")
    return name[:LONGEST] or Path(file).stem


def patient_id(file: str | os.PathLike) -> str:
    """Return the PatientID of a series; "" without one."""
    return str(_read(Path(file), stop_before_pixels=True).get("PatientID") or "")


def open_series(file: str | os.PathLike) -> Nifti1Image:
    """Return the image of a series as nibabel does of a file. Its voxels, in the unit of the
    rescale slope, are read when they are asked for.

    Raises:
        InputError: pydicom or highdicom is missing, the file is no image, or its slices do not make
            a volume: some are missing, lie at one place or beside it, or differ in direction.
    """
    headers = _headers_beside(Path(file))
    if not headers:
        raise InputError(f"{file}: no DICOM image, such as CT or MR.")
    files, affine, shape = _in_order(headers)
    return Nifti1Image(_Voxels(files, shape), TO_RAS @ affine)


class _Voxels:
    """The voxels of a series, `(X, Y, Z)`, of files in order, read when they are asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, files: Sequence[Path], shape: tuple[int, ...]) -> None:
        self.files, self.shape, self.ndim = files, shape, len(shape)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        import highdicom
        from pydicom.pixels import apply_modality_lut

        with reading(self.files[0], "a DICOM series that can be decoded"):
            if len(self.files) < self.shape[2]:  # one file of all frames
                image = highdicom.imread(self.files[0])
                volume = image.get_volume(dtype=np.float32, apply_presentation_lut=False)
                return volume.array.transpose(2, 1, 0)
            values = np.empty(self.shape, np.float32)
            for index, file in enumerate(self.files):
                slice_ = _read(file)
                values[..., index] = apply_modality_lut(slice_.pixel_array, slice_).T
            return values


def write_segmentation(
    file: Path, masks: np.ndarray, names: Sequence[str], image: str | os.PathLike
) -> None:
    """Write masks of the structures of a series as DICOM SEG.

    Args:
        file: Where it is written.
        masks: `(structures, X, Y, Z)` on the grid of the series: boolean, or probabilities, which
            are stored in steps of 1/255.
        names: Names of the structures.
        image: Path of the series.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    import calib_components

    logging.getLogger("highdicom").setLevel(logging.WARNING)
    files, affine, _ = _in_order(_headers_beside(Path(image)))
    headers, frame = [_read(each, stop_before_pixels=True) for each in files], highdicom.UID()
    for header in headers:
        header.setdefault("FrameOfReferenceUID", frame)
        for name in COPIED:
            header.setdefault(name, "")
    product, version = calib_components.__name__, calib_components.__version__
    by = highdicom.AlgorithmIdentificationSequence(
        product, codes.DCM.ArtificialIntelligence, version
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=by,
        )
        for number, name in enumerate(names, 1)
    ]
    is_binary = masks.dtype == bool
    volume = highdicom.Volume(
        (masks.astype(np.uint8) if is_binary else masks).transpose(3, 2, 1, 0),
        affine[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=headers[0].FrameOfReferenceUID,
        channels={"SegmentNumber": [*range(1, len(names) + 1)]},
    )
    highdicom.seg.Segmentation(
        headers,
        volume,
        "BINARY" if is_binary else "FRACTIONAL",
        segments,
        series_instance_uid=highdicom.UID(),
        series_number=int(headers[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=product,
        manufacturer_model_name=product,
        software_versions=version,
        device_serial_number="none",
        content_description="research only",
    ).save_as(file)


def _read(file: Path, **options: Any) -> Dataset:
    """Read a file, with the options of pydicom."""
    try:
        import highdicom  # noqa: F401
        from pydicom import dcmread
    except ImportError as error:
        raise InputError(f"{file} is DICOM. Install highdicom: pip install highdicom.") from error
    with reading(file, "a DICOM file"):
        return dcmread(file, force=True, **options)


def _in_order(
    series: Mapping[Path, Dataset],
) -> tuple[list[Path], np.ndarray, tuple[int, ...]]:
    """Return the files of a series from the first slice to the last, and the affine, in DICOM's
    axes, and shape of its voxels `(X, Y, Z)`.
    """
    import highdicom

    files, headers = [*series], [*series.values()]
    title = f"{files[0].parent}: series {series_name(files[0])}"
    if len(files) == 1 and _has_frames(headers[0]):
        with reading(files[0], "a DICOM image"):
            image = highdicom.imread(files[0], lazy_frame_retrieval=True)
            geometry = image.get_volume_geometry(allow_duplicate_positions=False)
        if geometry is None:
            raise InputError(f"{title}: its frames make no volume. Convert it with dcm2niix.")
        return files, geometry.affine[:, [2, 1, 0, 3]], geometry.spatial_shape[::-1]
    with reading(files[0], "a DICOM series"):
        # What all slices of a volume have in common: directions, sizes of pixels, shape
        grids = np.array(
            [
                [*header.ImageOrientationPatient, *header.PixelSpacing, header.Rows, header.Columns]
                for header in headers
            ],
            float,
        )
        positions = np.array([header.ImagePositionPatient for header in headers], float)
        normal = np.cross(*grids[0, :6].reshape(2, 3))
    offsets = positions @ normal
    order = np.argsort(offsets)
    spacing = _spacing(headers[0], offsets[order])
    expected = positions[order[0]] + np.outer(np.arange(len(files)), spacing * normal)
    flaw = _flaw(grids, offsets[order], np.linalg.norm(positions[order] - expected, axis=1))
    if flaw:
        raise InputError(f"{title}: {flaw}")
    turn = np.stack([*grids[0, :6].reshape(2, 3), normal], axis=1)
    sizes = [*grids[0, 7:5:-1], spacing]  # of columns, rows and slices
    shape = (headers[0].Columns, headers[0].Rows, len(files))
    return [files[index] for index in order], from_matvec(turn * sizes, expected[0]), shape


def _spacing(header: Dataset, offsets: np.ndarray) -> float:
    """Return the distance of slices; a single one has the thickness that its header states."""
    if len(offsets) > 1:
        return float(offsets[-1] - offsets[0]) / (len(offsets) - 1)
    return float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1)


def _flaw(grids: np.ndarray, offsets: np.ndarray, errors: np.ndarray) -> str:
    """Say why slices make no volume; nothing if they do.

    Args:
        grids: Directions, sizes of pixels and shape of each slice, `(slices, 10)`.
        offsets: Places along the normal, sorted, in mm.
        errors: How far each slice lies from its place in an even stack, in mm.
    """
    steps = np.diff(offsets)
    if np.ptp(grids, axis=0).max() > SAME_PLACE:
        return "its slices differ in direction, size of pixels or shape. Convert it with dcm2niix."
    if (steps < SAME_PLACE).any():
        return (
            f"{(steps < SAME_PLACE).sum()} of {len(offsets)} slices lie where another one does:"
            " repeated, or of several phases. Leave one of each, or convert it with dcm2niix."
        )
    if len(steps) and steps.max() > 1.5 * np.median(steps):
        return (
            f"its slices lie {steps.min():.4g} to {steps.max():.4g} mm apart: some are missing."
            " Export the whole series."
        )
    if errors.max() > OFF_PLACE * min(*grids[0, 6:8], *steps):
        return (
            f"slices lie up to {errors.max():.2g} mm beside their place in an even stack, as of a"
            " tilted gantry. Convert it with dcm2niix."
        )
    return ""
