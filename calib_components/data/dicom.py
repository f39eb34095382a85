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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel import Nifti1Image

from calib_components.errors import InputError, reading

if TYPE_CHECKING:
    from highdicom import VolumeGeometry
    from pydicom import Dataset

SUFFIX = ".dcm"
SEGMENTATIONS = ("SEG", "RTSTRUCT", "RTDOSE")  # modalities that are no images
NAMED_BY = ("PatientID", "StudyDate", "SeriesNumber")
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's axes to those of NIfTI
SAME_PLACE = 1e-3  # mm between slices that lie at the same place


def is_dicom(file: str | os.PathLike) -> bool:
    """Return whether a file is DICOM, by its first bytes or its ending."""
    file = Path(file)
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(132).endswith(b"DICM") or file.suffix.lower() == SUFFIX


def series_of(file: str | os.PathLike) -> list[Path]:
    """Return the files of the series of a DICOM file that lie in its folder; none if it is no
    image, such as a report.
    """
    file = Path(file)
    series = _series_in(file.parent, file.parent.stat().st_mtime_ns)
    return next((files for files in series.values() if file in files), [])


@functools.lru_cache(maxsize=16)
def _series_in(folder: Path, changed: int) -> dict[str, list[Path]]:
    """Return the files of each series in a folder, which may have `changed` since."""
    series = defaultdict(list)
    for file in sorted(folder.iterdir()):
        if not file.name.startswith(".") and is_dicom(file):
            header = _header(file)
            is_placed = "ImagePositionPatient" in header or "NumberOfFrames" in header
            if "Rows" in header and is_placed and header.get("Modality") not in SEGMENTATIONS:
                series[str(header.get("SeriesInstanceUID", file))].append(file)
    return dict(series)


def series_name(file: str | os.PathLike) -> str:
    """Return the name of the image that a series is."""
    header = _header(Path(file))
    words = [str(header.get(name) or "") for name in NAMED_BY]
    return re.sub(r"[^\w.-]+", "-", "_".join(filter(None, words))) or Path(file).stem


def open_series(file: str | os.PathLike) -> Nifti1Image:
    """Return the image of a series as nibabel does of a file. Its voxels, in the unit of the
    rescale slope, are read when they are asked for.

    Raises:
        InputError: pydicom or highdicom is missing, the file is no image, or its slices do not make
            a volume: some are missing, lie at one place, or differ in direction.
    """
    files = series_of(file)
    if not files:
        raise InputError(f"{file}: no DICOM image, such as CT or MR.")
    geometry = _geometry(files)
    affine = TO_RAS @ geometry.affine[:, [2, 1, 0, 3]]
    image = Nifti1Image(_Voxels(files, geometry.spatial_shape[::-1]), affine)
    image.header.set_xyzt_units("mm")
    return image


class _Voxels:
    """The voxels of a series, `(X, Y, Z)`, read when they are asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, files: Sequence[Path], shape: tuple[int, ...]) -> None:
        self.files, self.shape, self.ndim = files, shape, len(shape)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        import highdicom

        options: dict[str, Any] = {"dtype": np.float32, "apply_presentation_lut": False}
        with reading(self.files[0], "a DICOM image that can be decoded"):
            headers = [_header(file, stop_before_pixels=False) for file in self.files]
            if _is_multi_frame(headers):
                image = highdicom.Image.from_dataset(headers[0], copy=False)
                volume = image.get_volume(**options)
            else:
                volume = highdicom.get_volume_from_series(headers, **options)
        return volume.array.transpose(2, 1, 0)

    def __getitem__(self, place: Any) -> np.ndarray:
        return np.asarray(self)[place]


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
    files = series_of(image)
    headers, geometry = [_header(each) for each in files], _geometry(files)
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
        geometry.affine,
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


def _header(file: Path, stop_before_pixels: bool = True) -> Dataset:
    try:
        import highdicom  # noqa: F401
        from pydicom import dcmread
    except ImportError as error:
        raise InputError(f"{file} is DICOM. Install highdicom: pip install highdicom.") from error
    with reading(file, "a DICOM file"):
        return dcmread(file, stop_before_pixels=stop_before_pixels, force=True)


def _is_multi_frame(headers: Sequence[Dataset]) -> bool:
    return len(headers) == 1 and int(headers[0].get("NumberOfFrames") or 1) > 1


def _geometry(files: Sequence[Path]) -> VolumeGeometry:
    """Return where the voxels `(slices, rows, columns)` of a series lie, in DICOM's axes."""
    import highdicom
    from highdicom.spatial import get_series_volume_positions

    with reading(files[0], "a DICOM series"):
        headers = [_header(file) for file in files]
        first, spacing = headers[0], None
        if _is_multi_frame(headers):
            image = highdicom.imread(files[0], lazy_frame_retrieval=True)
            geometry = image.get_volume_geometry(allow_duplicate_positions=False)
            if geometry is not None:
                return geometry
        elif len(files) == 1:
            spacing = first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1
        else:
            spacing, places = get_series_volume_positions(headers)
            first = headers[places.index(0)] if places else first
    if spacing is None:
        raise InputError(f"{files[0].parent}: series {series_name(files[0])}: {_flaw(headers)}")
    return highdicom.VolumeGeometry.from_attributes(
        image_position=first.ImagePositionPatient,
        image_orientation=first.ImageOrientationPatient,
        rows=first.Rows,
        columns=first.Columns,
        pixel_spacing=first.PixelSpacing,
        spacing_between_slices=spacing,
        number_of_frames=len(files),
        coordinate_system="PATIENT",
    )


def _flaw(headers: Sequence[Dataset]) -> str:
    """Say why slices do not make a volume."""
    directions = np.array([header.get("ImageOrientationPatient", [0] * 6) for header in headers])
    if _is_multi_frame(headers) or np.ptp(directions, axis=0).max() > SAME_PLACE:
        return "its slices do not lie one behind the other. Convert it with dcm2niix."
    normal = np.cross(*directions[0].reshape(2, 3))
    steps = np.diff(sorted(normal @ header.ImagePositionPatient for header in headers))
    if steps.min() < SAME_PLACE:
        return (
            f"{(steps < SAME_PLACE).sum()} of {len(headers)} slices lie where another one does:"
            " repeated, or of several phases. Leave one of each, or convert it with dcm2niix."
        )
    return (
        f"its slices lie {steps.min():.4g} to {steps.max():.4g} mm apart: some are missing. Export"
        " the whole series."
    )
