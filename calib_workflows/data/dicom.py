"""DICOM series: found among the files of a folder, opened as NIfTI files are, and their
segmentations written as DICOM SEG.

A series stands for one image. Its path is that of its first file; its name is
`PatientID_StudyDate_SeriesNumber`. pydicom reads headers, highdicom geometry and voxels.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from nibabel import Nifti1Image
from nibabel.affines import from_matvec

from calib_components.errors import InputError, reading
from calib_workflows.data.files import NIFTI

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIX = ".dcm"
DIRECTORY = "DICOMDIR"
NOT_GREY = ("SEG", "RTSTRUCT", "RTDOSE")  # modalities whose pixels are no grey values
NAMED_BY = ("PatientID", "StudyDate", "SeriesNumber")
LONGEST = 100  # bytes of a name
FIRST = 100  # bytes of the first element of a file, which is short
# What says where a slice lies, and of how many values each is
PLACED_BY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
PIXELS = (  # what every image says of its pixels
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    "PhotometricInterpretation",
)
GREY = ("MONOCHROME1", "MONOCHROME2")
RESCALED_BY = ("RescaleSlope", "RescaleIntercept")
SCALED_BY = (*RESCALED_BY, "ModalityLUTSequence")
# By all slices of a volume
SHARED = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "EchoTime")
REFERRED_BY = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID")  # DICOM SEG names its images
# Of the headers of a folder, whose others would take 100 kB a slice
KEPT = [
    *(*NAMED_BY, *PIXELS, *PLACED_BY, *SCALED_BY, *REFERRED_BY, *SHARED, "SeriesInstanceUID"),
    *("Modality", "ImageType", "NumberOfFrames", "SpacingBetweenSlices", "SliceThickness"),
]
# What DICOM SEG copies of its images, and they may lack
COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's axes to those of NIfTI
SAME_PLACE = 1e-3  # mm between slices at the same place, and of rounded directions and sizes
ASKEW = 1e-3  # cosine of the angle of rows and columns, which headers round
END_OF_FRAMES = b"\xfe\xff\xdd\xe0"  # after compressed pixels
MOST_PADDING = 65_536  # bytes that may follow it
OFF_PLACE = 0.1  # of the smallest side of a voxel: how far a slice may lie from its place


def is_dicom(file: str | os.PathLike) -> bool:
    """Return whether a file is DICOM, by its first bytes or its ending."""
    file = Path(file)
    if file.name.lower().endswith(NIFTI) or not file.is_file():  # opens no file of a NIfTI folder
        return False
    if not os.access(file, os.R_OK):
        return False
    with open(file, "rb") as opened:
        start = opened.read(132)
    return start.endswith(b"DICM") or _is_bare(start) or file.suffix.lower() == SUFFIX


def _is_bare(start: bytes) -> bool:
    """Return whether bytes begin with an element of DICOM, without the preamble that files should
    have.
    """
    group, element, kind, length = start[:2], start[2:4], start[4:6], start[4:8]
    is_first = group in (b"\x02\x00", b"\x08\x00") and element[1:] == b"\x00"
    # The first elements are a length, a character set, a type or an identifier
    is_explicit = kind in (b"UL", b"CS", b"UI", b"OB", b"DA", b"SH")
    size = int.from_bytes(length, "little")
    return is_first and (is_explicit or (0 < size < FIRST and size % 2 == 0))


def series_of(file: str | os.PathLike) -> list[Path]:
    """Return the files of the series of a DICOM file that lie in its folder; none of a directory
    of other files.
    """
    return [*_headers_beside(Path(file))]


def _headers_beside(file: Path) -> dict[Path, Dataset]:
    """Return the headers of the series of a file, see `series_of`."""
    series = _series_in(file.parent, file.parent.stat().st_mtime_ns)
    return next((headers for headers in series.values() if file in headers), {})


@functools.cache  # about 10 kB a file
def _series_in(folder: Path, changed: int) -> dict[str, dict[Path, Dataset]]:
    """Return the headers of each series in a folder, which may have `changed` since. A file that
    names no series is one by itself.
    """
    series: dict[str, dict[Path, Dataset]] = defaultdict(dict)
    for file in sorted(folder.iterdir()):
        is_directory = file.name.upper().split(";")[0] == DIRECTORY  # ";1" on old discs
        if file.name.startswith(".") or is_directory or not is_dicom(file):
            continue
        _require_library(file)
        try:
            header = _read_header(file)
        except InputError as error:
            header = _no_header(file, str(error))
        series[str(header.get("SeriesInstanceUID") or file)][file] = header
    return series


def _first_header(file: str | os.PathLike) -> Dataset:
    """Return the header of the first file of a series."""
    return next(iter(_headers_beside(Path(file)).values()))


def series_uid(file: str | os.PathLike) -> str:
    """Return what tells the series of a file from others."""
    header = _first_header(file)
    return str(header.get("SeriesInstanceUID") or file)


def _read_header(file: Path) -> Dataset:
    """Return what is kept of a header; `bytes_after` says how many bytes of pixels follow, and of
    compressed ones, `end` has the last of them.
    """
    with open(file, "rb") as opened, reading(file, "a DICOM file"):
        header = _read(file, opened, stop_before_pixels=True, specific_tags=KEPT)
        tuple(header)  # elements are decoded when they are asked for
        syntax = header.file_meta.TransferSyntaxUID
        tag = 8 if syntax.is_implicit_VR else 12  # bytes of the element before the pixels
        header.bytes_after, header.end = file.stat().st_size - opened.tell() - tag, b""
        if syntax.is_encapsulated:
            opened.seek(-min(header.bytes_after, MOST_PADDING), os.SEEK_END)
            header.end = opened.read()
    return header


def _no_header(file: Path, flaw: str) -> Dataset:
    """Return an empty header of a file that cannot be read."""
    from pydicom import Dataset

    header = Dataset()
    header.flaw = flaw
    return header


def _has_frames(header: Dataset) -> bool:
    return int(header.get("NumberOfFrames") or 1) > 1


def series_name(file: str | os.PathLike) -> str:
    """Return the name of the image that a series is."""
    return _names.get(series_uid(file)) or plain_name(file)


_names: dict[str, str] = {}  # of series that others are called like


def plain_name(file: str | os.PathLike) -> str:
    """Return the name of a series, which another one may have as well."""
    header = _first_header(file)
    words = [str(header.get(name) or "") for name in NAMED_BY]
    name = re.sub(r"[^\w.-]+", "-", "_".join(filter(None, words))).strip(".-_")
    name = name.replace(".nii", "-nii")  # the ending of a file of its own
    return name.encode()[:LONGEST].decode(errors="ignore") or Path(file).stem


def forget_headers() -> None:
    """Read folders again, whose files may have been replaced."""
    _series_in.cache_clear()


def tell_apart(files: Iterable[Path]) -> None:
    """Give series of one name, such as of two studies of a day, each a name of its own.

    Args:
        files: The first file of each series.
    """
    _names.clear()
    alike: dict[str, list[str]] = defaultdict(list)
    for file in files:
        alike[plain_name(file)].append(series_uid(file))
    for name, series in alike.items():
        for uid in series if len({*series}) > 1 else ():
            _names[uid] = f"{name}_{hashlib.sha256(uid.encode()).hexdigest()[:6]}"


def patient_id(file: str | os.PathLike) -> str:
    """Return the PatientID of a series; "" without one."""
    header = _first_header(file)
    return str(header.get("PatientID") or "")


def open_series(file: str | os.PathLike) -> Nifti1Image:
    """Return the image of a series as nibabel does of a file. Its voxels, in the unit of the
    rescale slope, are read when they are asked for.

    Raises:
        InputError: pydicom or highdicom is missing, the file is no image, or its slices do not make
            a volume: some are missing, lie at one place or beside it, differ in direction, or are
            a localizer's.
    """
    files, affine, shape = _in_order(_headers_beside(Path(file)))
    return Nifti1Image(_Voxels(files, shape), TO_RAS @ affine)


class _Voxels:
    """The voxels of a series, `(X, Y, Z)`, of files in order, read when they are asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, files: Sequence[Path], shape: tuple[int, ...]) -> None:
        self.files, self.shape, self.ndim = files, shape, len(shape)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if len(self.files) < self.shape[2]:  # one file of all frames
            with reading(self.files[0], "its frames"):
                volume = _frames(self.files[0]).get_volume(
                    dtype=np.float32,
                    apply_real_world_transform=False,  # which has another unit
                    apply_presentation_lut=False,
                )
                return volume.array.transpose(2, 1, 0)
        values = np.empty(self.shape, np.float32)
        for index, file in enumerate(self.files):
            with reading(file, "its pixels"):
                values[..., index] = _rescaled(_read(file)).T
        return values


def _rescaled(header: Dataset) -> np.ndarray:
    """Return the pixels of a file in the unit of its rescale slope and intercept, one of which it
    may lack.
    """
    from pydicom.pixels import apply_modality_lut

    if any(name in header for name in RESCALED_BY):
        for name, value in zip(RESCALED_BY, (1, 0), strict=True):
            header.setdefault(name, value)
    return apply_modality_lut(header.pixel_array, header)


def _frames(file: Path) -> Any:
    """Return the image of a file with several frames."""
    import highdicom

    with open(file, "rb") as opened:
        is_bare = not opened.read(132).endswith(b"DICM")
    if is_bare:  # which imread refuses
        return highdicom.Image.from_dataset(_read(file), copy=False)
    return highdicom.imread(file, lazy_frame_retrieval=True)


def check_decoder(file: str | os.PathLike) -> None:
    """Raise `InputError` if the pixels of a series are compressed, and no package here decodes
    them.
    """
    from pydicom.pixels import pixel_array

    headers = _headers_beside(Path(file))
    kinds = {header.file_meta.TransferSyntaxUID: place for place, header in headers.items()}
    for syntax, place in kinds.items():
        if not syntax.is_compressed:
            continue
        try:
            pixel_array(place, index=0)
        except Exception as error:  # of several kinds
            raise InputError(
                f"{place}: no package here decodes {syntax.name}. Install one, pip install"
                " python-gdcm, or convert it with dcm2niix."
            ) from error


def check_modality(file: str | os.PathLike, modality: str) -> None:
    """Raise `InputError` if a series is of another modality, or a CT without Hounsfield units."""
    header = _first_header(file)
    found = str(header.get("Modality") or modality)
    if found != modality:
        raise InputError(
            f"{file}: Modality {found}, not {modality}. --modality null takes every modality."
        )
    if modality == "CT" and not _has_frames(header) and "RescaleIntercept" not in header:
        raise InputError(f"{file}: a CT without RescaleIntercept is not in Hounsfield units.")


class Segment(NamedTuple):
    """What a DICOM SEG says of a structure: a code of SNOMED CT with its meaning, and a colour.

    Attributes:
        name: Its name.
        color: `rrggbb`.
        code: Such as `10200004`; "" for one that is not known.
        meaning: Of the code, such as `Liver`.
        category: `anatomy`, or `abnormal` of a lesion.
    """

    name: str
    color: str
    code: str = ""
    meaning: str = ""
    category: str = "anatomy"


def check_source(file: str | os.PathLike) -> None:
    """Raise `InputError` if no DICOM SEG could be written of a series, by a trial."""
    series = _headers_beside(Path(file))
    for place, header in series.items():
        for name in REFERRED_BY:
            number = header[name].VM if header.get(name) else "no"
            if number != 1:
                raise InputError(f"{place} has {number} {name}, to which a DICOM SEG refers.")
    names = ("SOPInstanceUID", "SOPClassUID")
    instances, kinds = ({str(each[name].value) for each in series.values()} for name in names)
    if len(instances) < len(series):
        raise InputError(f"{file}: slices of its series have one SOPInstanceUID. Export it again.")
    if len(kinds) > 1:
        raise InputError(f"{file}: slices of its series differ in SOPClassUID. Export it again.")
    files, affine, shape = _in_order(series)
    mask = np.ones((1, *shape[:2], 1), bool)  # of one slice
    with reading(files[0], "what a DICOM SEG copies of it"):
        _segmentation(files[:1], affine, mask, [Segment("any", "000000")]).save_as(BytesIO())


def write_segmentation(
    file: Path,
    masks: np.ndarray,
    segments: Sequence[Segment],
    image: str | os.PathLike,
    stamp: str = "",
) -> None:
    """Write masks of the structures of a series as DICOM SEG.

    What the files of the series lack or state wrongly, and a DICOM SEG may leave empty, is empty in
    it.

    Args:
        file: Where it is written.
        masks: `(structures, X, Y, Z)` on the grid of the series: boolean, or probabilities, which
            are stored in steps of 1/255.
        segments: The structures.
        image: Path of the series.
        stamp: What tells the weights, which goes beside the version of the software.
    """
    files, affine, _ = _in_order(_headers_beside(Path(image)))
    _segmentation(files, affine, masks, segments, stamp).save_as(file)


def _segmentation(
    files: Sequence[Path],
    affine: np.ndarray,
    masks: np.ndarray,
    segments: Sequence[Segment],
    stamp: str = "",
) -> Any:
    """Return the DICOM SEG of masks, see `write_segmentation`, of files in order."""
    import highdicom

    import calib_components

    logging.getLogger("highdicom").setLevel(logging.WARNING)
    thickness = float(np.linalg.norm(affine[:3, 2]))
    headers, frame = [_read(each, stop_before_pixels=True) for each in files], highdicom.UID()
    for header in headers:
        _complete(header, headers[0], frame, thickness)
    product = calib_components.__name__
    version = ", ".join(filter(None, [calib_components.__version__, stamp]))
    is_binary = masks.dtype == bool
    volume = highdicom.Volume(
        (masks.astype(np.uint8) if is_binary else masks).transpose(3, 2, 1, 0),
        affine[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=headers[0].FrameOfReferenceUID,
        channels={"SegmentNumber": [*range(1, len(segments) + 1)]},
    )
    seg = highdicom.seg.Segmentation(
        headers,
        volume,
        "BINARY" if is_binary else "FRACTIONAL",
        [_describe(number, segment, version) for number, segment in enumerate(segments, 1)],
        series_instance_uid=highdicom.UID(),
        series_number=_series_number(headers[0], is_binary),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=product,
        manufacturer_model_name=product,
        software_versions=version,
        device_serial_number="none",
        content_description="research only",
        specific_character_set="ISO_IR 192",  # UTF-8, for any name
    )
    what = "Segmentation" if is_binary else "Probabilities"
    seg.SeriesDescription = f"{what}, research only"
    return seg


def _describe(number: int, segment: Segment, version: str) -> Any:
    """Return the description of a segment, which software of a version made."""
    import highdicom
    from pydicom.sr.codedict import codes

    import calib_components

    category = kind = (
        codes.SCT.MorphologicallyAbnormalStructure
        if segment.category == "abnormal"
        else codes.SCT.AnatomicalStructure
    )
    if segment.code:
        kind = highdicom.sr.CodedConcept(segment.code, "SCT", segment.meaning)
    rgb = [int(segment.color[place : place + 2], 16) for place in (0, 2, 4)]
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_label(segment.name, number),
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            calib_components.__name__, codes.DCM.ArtificialIntelligence, version
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*rgb),
    )


def _label(name: str, number: int) -> str:
    """Return a name as a text of DICOM: one line of at most 64 characters without a backslash."""
    text = "".join(c if c.isprintable() and c != "\\" else " " for c in name)
    return " ".join(text.split())[:64] or f"segment {number}"


def _series_number(header: Dataset, is_binary: bool) -> int:
    """Return the number of the series of a SEG: 1000, or of probabilities 2000, above that of the
    images.
    """
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return max(number, 0) + (1000 if is_binary else 2000)


def _complete(header: Dataset, first: Dataset, frame: str, thickness: float) -> None:
    """Fill in what a SEG copies of an image, and the image lacks or states wrongly, or otherwise
    than the first one, from which rounding may tell it.
    """
    from pydicom.valuerep import DA, TM

    header.setdefault("FrameOfReferenceUID", frame)
    for name in ("FrameOfReferenceUID", "ImageOrientationPatient"):
        if name in first:
            setattr(header, name, first[name].value)
    header.SliceThickness = thickness
    if not re.fullmatch("[A-Z0-9_ ]+", str(header.get("Modality") or "")):
        header.Modality = "OT"
    if header.get("PatientSex") not in ("M", "F", "O"):
        header.PatientSex = ""
    for name in COPIED:
        header.setdefault(name, "")
    for name, kind in (("StudyDate", DA), ("PatientBirthDate", DA), ("StudyTime", TM)):
        try:
            kind(header.get(name))
        except (TypeError, ValueError):
            setattr(header, name, "")


def _read(file: Path, opened: BinaryIO | None = None, **options: Any) -> Dataset:
    """Read a file, which may be open, with the options of pydicom."""
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with reading(file, "a DICOM file"):
        dataset = dcmread(opened or file, force=True, **options)
        if "TransferSyntaxUID" not in dataset.file_meta:  # of a file without preamble
            is_implicit, _ = dataset.original_encoding
            syntax = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = syntax
        return dataset


def _require_library(file: Path) -> None:
    """Raise `InputError` if highdicom is missing, with which pydicom comes."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"{file} is DICOM. Install highdicom: pip install highdicom.") from error


def _in_order(
    series: Mapping[Path, Dataset],
) -> tuple[list[Path], np.ndarray, tuple[int, ...]]:
    """Return the files of a series from the first slice to the last, and the affine, in DICOM's
    axes, and shape of its voxels `(X, Y, Z)`.
    """
    files, headers = [*series], [*series.values()]
    if "SeriesInstanceUID" not in headers[0]:
        flaw = getattr(headers[0], "flaw", f"{files[0]} is no whole DICOM file.")
        raise InputError(f"{flaw} Export it again, or remove it.")
    title = f"{files[0].parent}: series {series_name(files[0])}"
    if flaw := _flaw_of_headers(series):
        raise InputError(f"{title}: {flaw}")
    if len(files) == 1 and _has_frames(headers[0]):
        return files, *_frames_in_order(files[0], title)
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
        along = _unit(grids[0, :6].reshape(2, 3))  # headers round them
        normal = _unit(np.cross(*along))
        if positions.shape[1:] != (3,) or not np.isfinite([*positions.ravel(), *normal]).all():
            raise ValueError("its slices have no place, or no directions")
        offsets = positions @ normal
        order = np.argsort(offsets)
        spacing = _spacing(headers[0], offsets[order])
    expected = positions[order[0]] + np.outer(np.arange(len(files)), spacing * normal)
    errors = np.linalg.norm(positions[order] - expected, axis=1)
    if flaw := _flaw(grids, offsets[order], errors):
        raise InputError(f"{title}: {flaw}")
    turn = np.stack([*along, normal], axis=1)
    sizes = [*grids[0, 7:5:-1], spacing]  # of columns, rows and slices
    shape = (headers[0].Columns, headers[0].Rows, len(files))
    return [files[index] for index in order], from_matvec(turn * sizes, expected[0]), shape


def _frames_in_order(file: Path, title: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return affine and shape of the frames of one file, see `_in_order`."""
    with reading(file, "a DICOM image"):
        geometry = _frames(file).get_volume_geometry(allow_duplicate_positions=False)
    if geometry is None:
        raise InputError(f"{title}: its frames make no volume. Convert it with dcm2niix.")
    return geometry.affine[:, [2, 1, 0, 3]], geometry.spatial_shape[::-1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `(..., 3)` of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _spacing(header: Dataset, offsets: np.ndarray) -> float:
    """Return the distance of slices; a single one has the thickness that its header states."""
    if len(offsets) > 1:
        return float(offsets[-1] - offsets[0]) / (len(offsets) - 1)
    return float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1)


def _flaw_of_headers(series: Mapping[Path, Dataset]) -> str:
    """Say why files are no image, or no whole one; nothing if they may be."""
    for file, header in series.items():
        with reading(file, "a DICOM image"):
            for find_flaw in (
                _flaw_of_kind,
                _flaw_of_pixels,
                _flaw_of_bits,
                _flaw_of_values,
                _flaw_of_place,
            ):
                if flaw := find_flaw(header, file):
                    return flaw
    return _flaw_of_files([*series.values()])


def _flaw_of_files(headers: Sequence[Dataset]) -> str:
    """Say why files together are no volume; nothing if they may be."""
    if len(headers) > 1 and any(map(_has_frames, headers)):
        return "a file of several frames among others. Convert it with dcm2niix."
    for name in SCALED_BY:
        if len({name in header for header in headers}) > 1:
            return f"some slices have no {name}, and others have one. Export it again."
    for name in SHARED:
        if len({str(header.get(name)) for header in headers}) > 1:
            return f"its slices differ in {name}, as of two images. Convert it with dcm2niix."
    return ""


def _flaw_of_kind(header: Dataset, file: Path) -> str:
    """Say why a file is no image of a volume; nothing if it may be."""
    kind = header.SOPClassUID.name if "SOPClassUID" in header else ""
    is_image = any(name in header for name in PIXELS) or kind.endswith("Image Storage")
    if not is_image or header.get("Modality") in NOT_GREY:
        return f"no image, but {kind or header.get('Modality') or 'other data'}."
    if "LOCALIZER" in str(header.get("ImageType")).upper():
        return "a localizer."
    return ""


def _flaw_of_pixels(header: Dataset, file: Path) -> str:
    """Say why the pixels of a file are no grey values, or not all there; nothing if they may be."""
    for missing in PIXELS:
        if header.get(missing) in (None, ""):
            return f"{file.name} has no {missing}. Export it again."
    if header.PhotometricInterpretation not in GREY or header.SamplesPerPixel != 1:
        return f"{file.name} has colours, {header.PhotometricInterpretation}, no grey values."
    syntax = header.file_meta.TransferSyntaxUID
    size = header.Rows * header.Columns * int(header.get("NumberOfFrames") or 1)
    is_plain = not (syntax.is_compressed or syntax.is_deflated)
    is_cut = is_plain and header.bytes_after < size * header.BitsAllocated // 8
    if is_cut or (syntax.is_encapsulated and END_OF_FRAMES not in header.end):
        return f"{file.name} has not all of its pixels. Export it again."
    return ""


def _flaw_of_bits(header: Dataset, file: Path) -> str:
    """Say why the bits of pixels are no numbers; nothing if they may be."""
    bits, stored = header.BitsAllocated, header.BitsStored
    if bits in (8, 16, 32) and 0 < stored <= bits and header.PixelRepresentation in (0, 1):
        return ""
    return f"{file.name} has pixels of {stored} in {bits} bits. Export it again."


def _flaw_of_values(header: Dataset, file: Path) -> str:
    """Say why the unit of pixels is not known; nothing if it may be."""
    for name in RESCALED_BY:
        value = header.get(name, 1)
        if value in (None, "") or not np.isfinite(float(value)):
            return f"{file.name} has {name} {value}. Export it again."
    if header.get("RescaleSlope") == 0:
        return f"{file.name} has RescaleSlope 0. Export it again."
    return ""


def _flaw_of_place(header: Dataset, file: Path) -> str:
    """Say why the place of a slice is not known, or its size; nothing if both are."""
    if _has_frames(header):  # highdicom reads where each lies
        return ""
    for name, count in PLACED_BY.items():
        if header.get(name) in (None, ""):
            return f"{file.name} has no {name}: no slice of a volume, or a damaged one."
        if np.size(header[name].value) != count:
            return f"{file.name} has {name} of other than {count} numbers. Export it again."
    spacing = np.array(header.PixelSpacing, float)
    if not (spacing > 0).all() or not np.isfinite(spacing).all():
        return f"{file.name} has PixelSpacing {spacing.tolist()}. Export it again."
    return ""


def _flaw(grids: np.ndarray, offsets: np.ndarray, errors: np.ndarray) -> str:
    """Say why slices make no volume; nothing if they do.

    Args:
        grids: Directions, sizes of pixels and shape of each slice, `(slices, 10)`.
        offsets: Places along the normal, sorted, in mm.
        errors: How far each slice lies from its place in an even stack, in mm.
    """
    steps = np.diff(offsets)
    rows, columns = _unit(grids[0, :6].reshape(2, 3))
    if abs(rows @ columns) > ASKEW:
        return "its rows and columns are not at right angles."
    if np.ptp(grids[:, :6], axis=0).max() > SAME_PLACE:
        return "its slices differ in direction, as a localizer's do."
    if np.ptp(grids, axis=0).max() > SAME_PLACE:
        return "its slices differ in size of pixels or shape. Convert it with dcm2niix."
    if (steps < SAME_PLACE).any():
        return (
            f"{(steps < SAME_PLACE).sum()} of {len(offsets)} slices lie where another one does:"
            " repeated, or of several phases. Leave one of each, or convert it with dcm2niix."
        )
    if len(steps) and steps.max() > 1.5 * steps.min():
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
