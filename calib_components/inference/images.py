"""The images of a folder: found, checked, and shared among several runs.

One image is one NIfTI file or, where a data set keeps each modality in a file of its own, several
whose names differ in a suffix (`NAME_flair.nii.gz`, `NAME_t1.nii.gz`, ...). Results are named after
the image: `NAME_seg.nii.gz`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from calib_components.data.nifti import LABEL_SUFFIXES, check_same_grid, files_below, open_nifti
from calib_components.errors import InputError, check_writable, printable
from calib_components.quality import write_table
from calib_components.quality.table import FOLDER, choose

NIFTI = re.compile(r"(.+)(\.nii(?:\.gz)?)", re.IGNORECASE | re.DOTALL)
# Endings of the files of each map
MAPS = {"label": "seg", "uncertainty": "uncertainty", "probability": "probability"}
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

    Files that end in `.nii` or `.nii.gz`, in any case, are images. Hidden files and folders are
    skipped, as are labels (`*_gt`, `*_seg`, `*_label`) and maps that inference writes. Links to
    folders are followed.

    Args:
        path: One NIfTI file, whatever it is called, or a folder.
        file_suffixes: Suffixes of the files of one image, in any case, in the order of its
            channels, such as `_flair` and `_t1`. A file without any of them is an image by itself.

    Raises:
        InputError: A folder cannot be read.
    """
    path = Path(path)
    parts: dict[Path, dict[str, Path]] = defaultdict(dict)  # the files of each image, by suffix
    for file in (
        sorted(files_below(path)) if path.is_dir() else [path, *sorted(path.parent.glob("*"))]
    ):
        name, suffix, _ = _split(file, file_suffixes)
        if _is_nifti(file) and (suffix or file == path or not name.lower().endswith(NOT_IMAGES)):
            place = file.with_name(name) if suffix else file
            parts[place if parts[place].get(suffix, file) == file else file][suffix] = file
    return [
        _image(own, file_suffixes)
        for own in parts.values()
        if path.is_dir() or path in own.values()
    ]


def _image(own: Mapping[str, Path], file_suffixes: Sequence[str]) -> Image:
    first = next(iter(own.values()))
    name, suffix, ending = _split(first, file_suffixes)
    files = [
        own.get(part.lower(), first.with_name(f"{name}{part}{ending}")) for part in file_suffixes
    ]
    return Image(name, tuple(files) if suffix else (first,))


def _is_nifti(file: Path) -> bool:
    return (file.is_file() or file.is_symlink()) and NIFTI.fullmatch(file.name) is not None


def _split(file: str | os.PathLike, file_suffixes: Sequence[str]) -> tuple[str, str, str]:
    """Split the name of a file into that of its image, its suffix in small letters, if it has one,
    and its ending.
    """
    match = NIFTI.fullmatch(Path(file).name)
    stem, ending = match.groups() if match else (Path(file).name, "")
    longest_first = sorted(map(str.lower, file_suffixes), key=len, reverse=True)
    suffix = next(
        (
            suffix
            for suffix in longest_first
            if stem.lower().endswith(suffix) and stem.lower() != suffix
        ),
        "",
    )
    return stem[: len(stem) - len(suffix)], suffix, ending


def result_name(file: str | os.PathLike, file_suffixes: Sequence[str] = ()) -> str:
    """Return the name that the results of an image get, from one of its files."""
    return _split(file, file_suffixes)[0]


def run_stamp(weights: str | os.PathLike, **options: Any) -> str:
    """Return a text that tells runs with different weights or options apart, for the header of a
    map.

    A missing file of weights gives a stamp as well: loading the weights reports it.
    """
    file = Path(weights)
    content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "none"
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()
    return f"weights {content[:16]}, options {digest[:8]}"


@dataclass
class ImageFolder:
    """The images to segment, as a bundle's configuration names them. No file is read before a
    method is called.

    Args:
        path: One NIfTI file, or a folder.
        in_channels: Number of channels that the network takes.
        file_suffixes: Suffixes of the files of one image, see `find_images`.
        output_dir: Folder that the maps go to.
        save: Maps that are written: "label", "uncertainty" and "probability", or some of them.
        shard: `"i/n"` for the `i`-th of `n` shares of the images, such as "2/8"; None for all
            images.
        skip_existing: Whether to leave out images whose maps exist and are newer than the image.
        overwrite: Whether maps that exist are replaced.
        stamp: What the header of each map says of the run, see `run_stamp`.
        review, review_below: Which scans a person should look at, see
            `calib_components.quality.write_table`.
    """

    path: Path
    in_channels: int
    file_suffixes: Sequence[str]
    output_dir: Path
    save: Sequence[str] | str = tuple(MAPS)
    shard: str | None = None
    skip_existing: bool = False
    overwrite: bool = False
    stamp: str = ""
    review: str = "20%"
    review_below: float | None = None

    def __post_init__(self) -> None:
        # MONAI gives text
        self.path, self.output_dir = Path(str(self.path)), Path(str(self.output_dir))
        self.save = ensure_tuple(self.save)

    def items(self) -> list[dict[str, list[str]]]:
        """Items of a MONAI dataset: the files of each image of this run; none where `check` refuses
        the path.
        """
        try:
            images = shard_of(find_images(self.path, self.file_suffixes), self.shard)
        except InputError:
            return []
        images = [
            image for image in images if not (self.skip_existing and self._is_finished(image))
        ]
        return [{"image": [str(file) for file in image.files]} for image in images]

    def check(self, items: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Check, from the headers alone, that every image can be segmented and that no file is
        replaced.

        Files of the folder that are left out as labels or maps are counted in a warning.

        Args:
            items: Items of a dataset, with a path `image` or those of the channels, in place of the
                folder's images.

        Raises:
            InputError: There is no image, a file is missing, cannot be read or has an unsuitable
                shape or grid, two images have the same name, maps exist already, the output folder
                cannot be written, or `review` is not a share.
        """
        choose([], self.review, self.review_below)
        below = filter(_is_nifti, files_below(self.path)) if self.path.is_dir() else ()
        if left_out := [file for file in below if result_name(file).lower().endswith(NOT_IMAGES)]:
            logging.getLogger(__name__).warning(
                "%s: %d file(s) called like labels or maps are skipped, such as %s. Rename those that are images.",
                self.path, len(left_out), left_out[0].name,
            )  # fmt: skip
        if items:
            files = [tuple(Path(file) for file in ensure_tuple(item["image"])) for item in items]
            images = [
                Image(result_name(of_image[0], self.file_suffixes), of_image) for of_image in files
            ]
        elif not self.path.exists():
            raise InputError(
                f"dataset_dir does not exist: {self.path}. Give a NIfTI file or a folder."
            )
        elif not (images := shard_of(find_images(self.path, self.file_suffixes), self.shard)):
            raise InputError(f"dataset_dir holds no .nii or .nii.gz images: {self.path}.")
        for name, count in Counter(image.name for image in images).items():
            if count > 1:
                several = ", ".join(str(image.files[0]) for image in images if image.name == name)
                raise InputError(
                    f"{count} images are called {name}: {several}. Their results would replace each"
                    " other."
                )
        for image in images:
            channels = self.in_channels if len(image.files) == 1 else 1
            for file in image.files:
                if not file.is_file():
                    raise InputError(
                        f"{file} does not exist. Each channel of {image.name} needs a file."
                    )
                shape = open_nifti(file).shape
                if len(shape) not in (3, 4) or (*shape, 1)[3] != channels:
                    raise InputError(
                        f"{file}: shape {shape} is not that of a 3D image with {channels}"
                        " channel(s)."
                    )
            for file in image.files[1:]:
                check_same_grid(file, image.files[0])
        self._check_output(images)

    def _check_output(self, images: Sequence[Image]) -> None:
        files = [file for image in images for file in image.files]
        folders = {
            folder.resolve() for file in files for folder in (file.parent, file.resolve().parent)
        }
        if self.output_dir.resolve() in folders:
            raise InputError(
                f"output_dir holds the images: {self.output_dir}. Give another folder."
            )
        check_writable("output_dir", self.output_dir)
        for image in images:
            existing = next((file for file in self._maps(image) if file.exists()), None)
            if (
                existing is None
                or self.overwrite
                or (self.skip_existing and not self._is_finished(image))
            ):
                continue
            if not self.skip_existing:
                raise InputError(
                    f"{existing} exists. Pass --overwrite true, or --skip_existing true to continue"
                    " a run."
                )
            header: Any = open_nifti(existing).header
            written = bytes(header["descrip"]).rstrip(b"\0").decode(errors="replace")
            if written != self.stamp:
                raise InputError(
                    f"{existing} was written with other weights or options. Give another"
                    " output_dir."
                )

    def write_table(self) -> None:
        """Write the table and the page of the quality of all scans in the output folder."""
        logging.getLogger(__name__).info(
            printable(write_table(self.output_dir, self.review, self.review_below))
        )

    def _maps(self, image: Image) -> list[Path]:
        return [self.output_dir / f"{image.name}_{MAPS[name]}.nii.gz" for name in self.save]

    def _is_finished(self, image: Image) -> bool:
        record = self.output_dir / FOLDER / f"{image.name}.json"
        maps, files = [*self._maps(image), record], [file for file in image.files if file.exists()]
        done = [file.stat().st_mtime for file in maps if file.exists()]
        return len(done) == len(maps) and min(done) >= max(
            (file.stat().st_mtime for file in files), default=0
        )


def shard_of(values: Sequence[Any], shard: str | None) -> list[Any]:
    """Return every `n`-th value, from the `i`-th on, for a `shard` of "i/n"; all values for None."""
    if shard is None:
        return list(values)
    match = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard must have the form i/n, such as 2/8, got {shard!r}.")
    return list(values[int(match[1]) - 1 :: int(match[2])])
