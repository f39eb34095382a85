"""The images of a folder: found, checked, and shared among several runs.

One image is one NIfTI file, one DICOM series or, where a data set keeps each modality in a file of
its own, several files whose names differ in a suffix (`NAME_flair.nii.gz`, `NAME_t1.nii.gz`, ...).
Where a network takes one channel, each phase of a file with a fourth axis is an image,
`NAME_phase00` and so on. Results are named after the image: `NAME_seg.nii.gz`.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.utils import ensure_tuple

from calib_components.errors import InputError, check_choice, check_writable, printable, root_cause
from calib_workflows.data.dicom import (
    check_decoder,
    check_modality,
    check_source,
    forget_headers,
    is_dicom,
    patient_id,
    plain_name,
    series_name,
    series_of,
    series_uid,
    tell_apart,
)
from calib_workflows.data.files import (
    LABEL_SUFFIXES,
    files_below,
    find_cases,
    patients_of,
    split_name,
)
from calib_workflows.data.nifti import open_channels, open_nifti, stored_in
from calib_workflows.folders import OutputFolder
from calib_workflows.options import LEFT_OUT
from calib_workflows.pages.quality import FOLDER, TABLES, Review, write_table

log = logging.getLogger(__name__)
# Endings of the files of each map
MAPS = {"label": "seg", "uncertainty": "uncertainty", "probability": "probability"}
# Maps of a DICOM series, which are DICOM SEG
DICOM_MAPS = {"dicom": "seg.dcm", "dicom_probability": "probability.dcm"}
# Files of discs, without an ending
NO_SLICES = ("DICOMDIR", "VERSION", "LOCKFILE", "README", "LICENSE", "INDEX")
MOST_NAMED = 3  # folders of a series
# Labels, and maps that inference writes
NOT_IMAGES = (*LABEL_SUFFIXES, "_probability", "_uncertainty")


@dataclass(frozen=True)
class Image:
    """One image: the name of its results, and its one file or one file per channel."""

    name: str
    files: tuple[Path, ...]


def find_images(path: str | os.PathLike, file_suffixes: Sequence[str] = ()) -> list[Image]:
    """Find the images in a folder and its subfolders, sorted by file; some may lack files, see
    `ImageFolder.check`.

    Files that end in `.nii` or `.nii.gz`, in any case, are images, and so are DICOM series, also
    those that hold something else, such as a report: `ImageFolder` leaves them out. Hidden
    files and folders are skipped, as are labels (`*_gt`, `*_seg`, `*_label`) and maps that
    inference writes. Links to folders are followed.

    Args:
        path: One NIfTI file, whatever it is called, a file of a DICOM series, or a folder.
        file_suffixes: Suffixes of the files of one image, in any case, in the order of its
            channels, such as `_flair` and `_t1`. A file without any of them is an image by itself.

    Raises:
        InputError: A folder cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _images_below(path, file_suffixes)
    if is_dicom(path):  # called as in a run of its folder
        series = series_of(path)
        return [each for each in _images_below(path.parent, ()) if each.files[0] in series]
    if split_name(path.name, file_suffixes).suffix:
        beside = _images(sorted(path.parent.glob("*")), file_suffixes)
        return [image for image in beside if path in image.files]
    return _images([path], ())


def _images_below(folder: Path, file_suffixes: Sequence[str]) -> list[Image]:
    """Return the images of a folder, see `find_images`; DICOM series of one name are told apart."""
    files = [file for file in files_below(folder) if not _is_skipped(file, file_suffixes)]
    series = dict.fromkeys(filter(_is_series, files))
    tell_apart(series)
    images = [_image_of_series(file) for file in series]
    images += [Image(str(file), (file,)) for file in _unread(files, series)]  # no results
    return sorted([*images, *_images(files, file_suffixes)], key=operator.attrgetter("files"))


def _unread(files: Iterable[Path], series: Iterable[Path]) -> list[Path]:
    """Return files that may be slices: they cannot be read, or are no DICOM beside slices whose
    names are like theirs.
    """
    kinds = {(file.parent, _kind(file)) for file in series}
    return [
        file
        for file in files
        if file not in series
        and not split_name(file.name).ending
        and file.name.upper() not in NO_SLICES
        and (
            not os.access(file, os.R_OK)
            or ((file.parent, _kind(file)) in kinds and not is_dicom(file))
        )
    ]


def _kind(file: Path) -> str:
    """Return the ending of a name, if it is a word: identifiers end in numbers."""
    return file.suffix.lower() if file.suffix[1:].isalpha() else ""


def _images(files: Iterable[Path], file_suffixes: Sequence[str]) -> list[Image]:
    """Return the images that NIfTI files hold."""
    images = []
    for place, by_suffix in find_cases(files, file_suffixes).items():
        if whole := by_suffix.pop("", None):
            images.append(Image(place.name, (whole,)))
        if by_suffix:  # a file that is missing is named later
            channels = [
                by_suffix.get(suffix.lower(), Path(f"{place}{suffix}.nii.gz"))
                for suffix in file_suffixes
            ]
            images.append(Image(place.name, tuple(channels)))
    return images


def _is_skipped(file: Path, file_suffixes: Sequence[str] = ()) -> bool:
    """Return whether a file is called like a label or a map. Slices may have any name, so a DICOM
    file must be called as inference calls one, and be the only one of its series.
    """
    if file.name.endswith(tuple(f"_{ending}" for ending in DICOM_MAPS.values())):
        return not (is_dicom(file) and len(series_of(file)) > 1)
    name = split_name(file.name, {*NOT_IMAGES, *file_suffixes})
    return name.ending != "" and name.suffix.lower() in NOT_IMAGES


def _is_series(file: Path) -> bool:
    """Return whether a file is the first one of a DICOM series."""
    return is_dicom(file) and series_of(file)[:1] == [file]


def _image_of_series(file: Path) -> Image:
    return Image(series_name(file), (file,))


def result_name(file: str | os.PathLike, file_suffixes: Sequence[str] = ()) -> str:
    """Return the name that the results of an image get, from one of its files."""
    if is_dicom(file):
        return series_name(file)
    return split_name(Path(file).name, file_suffixes).case


def patient_of(file: str | os.PathLike) -> str:
    """Return the patient of an image: DICOM's PatientID, or the name of the file, which all phases
    have in common.
    """
    if is_dicom(file):
        return patient_id(file)
    return split_name(stored_in(file)[0].name).case


def run_stamp(weights: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """Return what tells runs with different weights or options apart: a hash of the weights, and
    the options.

    A missing file of weights gives a stamp as well: loading the weights reports it.
    """
    file = Path(weights)
    content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "none"
    return {"weights": content[:16], **options}


FLAW = "flaw"  # in an item: why its image cannot be read


class ImageDataset(Dataset):
    """MONAI's `Dataset` of images, in which an item that its transforms refuse by an `InputError`
    is replaced by the `flaw` and the `file`, for `ImageFolder.iterate`.
    """

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            cause = root_cause(error)
            if not isinstance(cause, InputError):
                raise
            return {FLAW: str(cause), "file": str(self.data[index]["image"][0])}


@dataclass
class ImageFolder:
    """The images to segment, as a bundle's configuration names them. No file is read before a
    method is called.

    Args:
        path: See `find_images`.
        in_channels: Number of channels that the network takes.
        file_suffixes: Suffixes of the files of one image, see `find_images`.
        output_dir: Folder that the maps go to.
        save: Maps that are written: "label", "uncertainty" and "probability", or some of them; of
            DICOM series also "dicom" and "dicom_probability".
        shard: `"i/n"` for the `i`-th of `n` shares of the images, such as "2/8"; None for all
            images.
        skip_existing: Whether to leave out images whose maps exist and are newer than the image.
        overwrite: Whether maps that exist are replaced; those of another run are removed.
        stamp: What tells this run from others, see `run_stamp`.
        review, review_below: Which scans a person should look at, see
            `calib_workflows.pages.quality.Review`.
        modality: Of DICOM, such as "CT"; other series are left out. None takes all.
        patient_pattern: Regular expression for the part of a name that names the patient, whose
            scans count once where images are compared with the training's; None for the DICOM
            PatientID or the name of the file.
    """

    path: Path
    in_channels: int
    file_suffixes: Sequence[str]
    output_dir: Path
    save: Sequence[str] | str = tuple(MAPS)
    shard: str | None = None
    skip_existing: bool = False
    overwrite: bool = False
    stamp: Mapping[str, Any] = field(default_factory=dict)
    review: str = "20%"
    review_below: float | None = None
    patient_pattern: str | None = None
    modality: str | None = None

    def __post_init__(self) -> None:
        # MONAI gives text
        self.path, self.output_dir = Path(self.path), Path(self.output_dir)
        self.save = ensure_tuple(self.save)
        for name in self.save:
            check_choice("save", name, MAPS | DICOM_MAPS)
        folder = self.path if self.path.is_dir() else self.path.parent
        run = {**self.stamp, "dataset_dir": folder}
        self.output = OutputFolder(self.output_dir, run, self.shard, self.overwrite)
        self.names: set[str] = set()  # of all results, between `check` and the claim
        self._images: list[Image] = []  # of this run, once they are checked
        self._flaws: dict[Image, str] = {}  # why each cannot be segmented, or ""

    def attach(self, engine: Engine) -> None:
        """Claim the output folder when the engine that writes the maps starts, with its weights."""
        engine.add_event_handler(Events.STARTED, self._claim)

    def _claim(self) -> None:
        names, self.names = self.names, set()
        if not (self.overwrite and self.path.is_dir()):  # else without images that are gone
            names |= self.output.files()
        self.output.claim(names)

    def iterate(self, engine: Engine, batch: dict[str, Any]) -> Any:
        """Do an iteration of MONAI's evaluator; an image that cannot be read is left out, with a
        warning, see `ImageDataset`.

        Raises:
            InputError: It is the only image.
        """
        if FLAW not in batch:
            return engine._iteration(engine, batch)  # type: ignore[attr-defined]
        flaw, file = batch[FLAW][0], batch["file"][0]
        if len(self._images) == 1:
            raise InputError(flaw)
        image = next(image for image in self._images if str(image.files[0]) == file)
        self._flaws[image] = flaw
        log.warning("Left out: %s", flaw)
        return {}

    def items(self) -> list[dict[str, list[str]]]:
        """Items of a MONAI dataset: the files of each image of this run; none where `check` refuses
        the path.
        """
        try:
            images = shard_of(self.find(), self.shard)
            is_continued = self.skip_existing and self.output.files()
        except InputError:
            return []
        return [
            {"image": [str(file) for file in image.files]}
            for image in images
            if not (is_continued and self._is_finished(image)) and not self._flaw(image)
        ]

    @property
    def left_out(self) -> list[str]:
        """Why images of this run, once they are checked, cannot be segmented."""
        return [flaw for image in self._images if (flaw := self._flaw(image))]

    def check(self) -> None:
        """Check, from the headers alone, which images can be segmented and that no file is
        replaced.

        An image whose file is missing, cannot be read or has an unsuitable shape or grid, and a
        DICOM series that is no volume, are each named in a warning and left out. Files of the
        folder that are called like labels or maps are counted in a warning.

        Raises:
            InputError: No image can be segmented, two have the same name, maps exist already, the
                output folder cannot be written, has results of another run, or of a series under
                another name, or is written to by one, `review` is not a share, or
                `patient_pattern` finds no patient in a name.
        """
        Review.from_options(self.review, self.review_below)
        self._flaws.clear()
        forget_headers()
        self._warn_of_labels()
        every = self.find()
        suitable = self._suitable(every)
        divided = _divided_series(every)
        _check_names([image for image in every if image not in divided])
        self._patients([image.name for image in suitable])
        phases = sum(stored_in(image.files[0])[1] is not None for image in suitable)
        if phases:
            log.info("%d images are phases, along the fourth axis of a file", phases)
        check_writable("output_dir", self.output_dir)
        self._check_results(suitable, every)
        for name, series in _series_by_name(suitable).items():
            if len(series) > 1:
                places = (f"{image.name} is {image.files[0].parent}" for image in series)
                log.warning("Series called %s: %s", name, ", ".join(places))
        self._check_renamed(every)

    def find(self) -> list[Image]:
        """Find the images of all shards, with each phase as an image."""
        images = find_images(self.path, self.file_suffixes)
        self._flaws |= _divided_series(images)
        if self.in_channels > 1:
            return images
        return [phase for image in images for phase in _phases(image)]

    def _suitable(self, every: Sequence[Image]) -> list[Image]:
        """Return the images of this run that can be segmented; the others are named."""
        images = self._images = shard_of(every, self.shard)
        if not images:
            raise InputError(
                "dataset_dir is or holds no .nii or .nii.gz image, and no DICOM series of one:"
                f" {self.path}."
            )
        suitable = [image for image in images if not self._flaw(image)]
        flaws = [*dict.fromkeys(self.left_out)]
        if not suitable and len(flaws) == 1 and len(images) == len(every):
            raise InputError(flaws[0])
        for flaw in flaws:
            log.warning("Left out: %s", flaw)
        if not suitable and len(images) == len(every):
            raise InputError(f"{self.path}: no image can be segmented, see above.")
        return suitable

    def _flaw(self, image: Image) -> str:
        """Return why an image cannot be segmented; "" if it can."""
        if image not in self._flaws:
            try:
                self._check_image(image)
                self._flaws[image] = ""
            except InputError as error:
                self._flaws[image] = printable(error)
        return self._flaws[image]

    def _warn_of_labels(self) -> None:
        below = files_below(self.path) if self.path.is_dir() else ()
        labels = [file for file in below if _is_skipped(file, self.file_suffixes)]
        if labels:
            log.warning(
                "%s: %d file(s) called like labels or maps are skipped, such as %s. Rename those"
                " that are images.",
                self.path,
                len(labels),
                labels[0].name,
            )

    def _check_image(self, image: Image) -> None:
        for file in image.files:
            if not stored_in(file)[0].is_file():
                raise InputError(
                    f"{file} does not exist. Each channel of {image.name} needs a file."
                )
        self._check_shapes(image)
        is_series = is_dicom(image.files[0])
        if is_series:
            if self.modality:
                check_modality(image.files[0], self.modality)
            check_decoder(image.files[0])
        if DICOM_MAPS.keys() & self.save:
            if not is_series:
                raise InputError(f"save: DICOM is written of DICOM alone, not of {image.files[0]}.")
            check_source(image.files[0])

    def _check_shapes(self, image: Image) -> None:
        channels = self.in_channels if len(image.files) == 1 else 1
        for file, opened in zip(image.files, open_channels(image.files), strict=True):
            shape = opened.shape
            if len(shape) not in (3, 4) or (*shape, 1)[3] != channels:
                raise InputError(
                    f"{file}: shape {shape} is not that of a 3D image with {channels} channel(s)."
                )
            if shape[2] == 1 and is_dicom(file):
                raise InputError(
                    f"{file.parent}: series {image.name}: one slice, such as a localizer."
                )

    def _check_results(self, images: Sequence[Image], every: Sequence[Image]) -> None:
        """Refuse to replace maps unasked, and results of another run."""
        self.names = {*TABLES, *(name for image in every for name in self._results(image))}
        self.output.check(self.names)
        maps = [self.output_dir / name for image in images for name in self._results(image)[1:]]
        existing = [file for file in maps if file.exists()]
        if existing and not (self.skip_existing or self.overwrite):
            raise InputError(
                f"{existing[0]} exists. Pass --overwrite true, or --skip_existing true to"
                " continue a run."
            )

    def _check_renamed(self, images: Sequence[Image]) -> None:
        """Refuse to keep results that a series has under another name, from before there were
        several of its name or one.
        """
        alike = _series_by_name(images)
        scans = {Path(file).stem for file in self.output.files() if file.endswith(".json")}
        for scan in sorted(scans - {image.name for image in images}):
            if re.sub("_[0-9a-f]{6}$", "", scan) in alike and not self.overwrite:
                raise InputError(
                    f"{self.output_dir} holds results of {scan}, whose series has another name"
                    " now. --overwrite true removes them."
                )

    def write_table(self) -> str:
        """Write the table and the page of the quality of all scans that the run recorded in the
        output folder, release it, and return how many to check.
        """
        self._claim()  # also without an image that had to be segmented
        with self.output.locked():  # of several shards, the last has all scans
            records = {Path(name) for name in self.output.files() if name.endswith(".json")}
            left_out = {image.name for image in self._images if self._flaw(image)}
            scans = {
                file.stem
                for file in records
                if not file.name.startswith(".") and (self.output_dir / file).exists()
            } - left_out  # of an earlier run, in which they could be segmented
            review = Review.from_options(self.review, self.review_below)
            patients = self._patients(sorted(scans))
            reasons = [*dict.fromkeys(self.left_out)]
            text = printable(write_table(self.output_dir, review, scans, patients, reasons))
        self.output.release()
        log.info(text)
        return text

    def finish(self) -> None:
        """Write the table, see `write_table`, and say how many images are segmented; if others were
        left out, end the process with status 3.
        """
        if self._images and len(self.left_out) == len(self._images):
            raise InputError(f"{self.path}: no image of this run can be segmented, see above.")
        self.write_table()
        log.info(self.outcome())
        if self.left_out:
            sys.exit(LEFT_OUT)

    def outcome(self) -> str:
        """Return how many images of the run are segmented, and how many were left out."""
        left_out = len(self.left_out)
        text = f"{len(self._images) - left_out} scans are segmented, in {self.output_dir}"
        return f"{text}; {left_out} left out, see above" if left_out else text

    def _patients(self, names: Sequence[str]) -> dict[str, str] | None:
        """Return the patient of each scan; None where no pattern says it."""
        return patients_of(names, self.patient_pattern) if self.patient_pattern else None

    def _results(self, image: Image) -> list[str]:
        """Return the names of its estimates and its maps."""
        endings = DICOM_MAPS | {name: f"{ending}.nii.gz" for name, ending in MAPS.items()}
        maps = [f"{image.name}_{endings[name]}" for name in self.save]
        return [f"{FOLDER}/{image.name}.json", *maps]

    def _is_finished(self, image: Image) -> bool:
        results = [self.output_dir / name for name in self._results(image)]
        if not all(file.exists() for file in results):
            return False
        files = [stored_in(file)[0] for file in image.files]
        if is_dicom(files[0]):  # the folder tells of slices that came later
            files = [files[0].parent, *series_of(files[0])]
        times = [file.stat().st_mtime for file in files if file.exists()]
        return min(file.stat().st_mtime for file in results) >= max(times, default=0)


def _phases(image: Image) -> list[Image]:
    """Return the images of the phases of one whose file has several; else the image alone."""
    file = image.files[0]
    if is_dicom(file):
        return [image]
    try:
        shape = open_nifti(file).shape if len(image.files) == 1 and file.is_file() else ()
    except InputError:  # `ImageFolder` names it
        return [image]
    if len(shape) != 4 or shape[3] == 1:
        return [image]
    digits = max(2, len(str(shape[3] - 1)))
    stem, _, ending = split_name(file.name)
    names = [f"{stem}_phase{number:0{digits}}" for number in range(shape[3])]
    return [Image(name, (file.with_name(f"{name}{ending}"),)) for name in names]


def _series_by_name(images: Iterable[Image]) -> dict[str, list[Image]]:
    """Return DICOM series by the name that several may have."""
    alike: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        if is_dicom(image.files[0]):
            alike[plain_name(image.files[0])].append(image)
    return alike


def _divided_series(images: Sequence[Image]) -> dict[Image, str]:
    """Return the DICOM series whose files lie in several folders, or are there twice, and say so of
    each.
    """
    places: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        if is_dicom(image.files[0]):
            places[series_uid(image.files[0])].append(image)
    flaws = {}
    for parts in places.values():
        folders = ", ".join(str(image.files[0].parent) for image in parts[:MOST_NAMED])
        folders += ", ..." if len(parts) > MOST_NAMED else ""
        for image in parts if len(parts) > 1 else ():
            flaws[image] = (
                f"series {image.name} lies in several folders: {folders}. Put its files into one,"
                " or remove a copy."
            )
    return flaws


def _check_names(images: Sequence[Image]) -> None:
    for name, count in Counter(image.name for image in images).items():
        if count > 1:
            several = ", ".join(str(image.files[0]) for image in images if image.name == name)
            raise InputError(
                f"{count} images are called {name}: {several}. Their results would replace each"
                " other."
            )


def shard_of(values: Sequence[Any], shard: str | None) -> list[Any]:
    """Return every `n`-th value, from the `i`-th on, for a `shard` of "i/n"; all values for
    None.
    """
    if shard is None:
        return list(values)
    match = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard must have the form i/n, such as 2/8, got {shard!r}.")
    return list(values[int(match[1]) - 1 :: int(match[2])])
