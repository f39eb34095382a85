"""Inference on a folder of images: finding and checking them, and naming what is made of them.

One image is one NIfTI file or, where a data set keeps each modality in a file of its own, several whose names differ in
a suffix (`NAME_flair.nii.gz`, `NAME_t1.nii.gz`, ...). Results are named after the image: `NAME_seg.nii.gz`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from calib_components.data.files import files_below
from calib_components.data.nifti import SMALLEST_SLICE, check_same_grid, open_nifti
from calib_components.errors import UNFINISHED, InputError, check_writable

__all__ = [
    "Image",
    "ImageFolder",
    "check_images",
    "find_images",
    "result_name",
]

NIFTI = re.compile(r"(.+)(\.nii(?:\.gz)?)", re.IGNORECASE | re.DOTALL)
NOT_IMAGES = ("_gt", "_seg", "_label", "_probability", "_uncertainty")  # labels, and what inference writes itself
LONGEST_NAME = 255  # bytes, on nearly all file systems


@dataclass(frozen=True)
class Image:
    """One image to segment.

    Attributes:
        name: What its results are named after.
        files: Its one file, or a file for each channel.
    """

    name: str
    files: tuple[Path, ...]


def find_images(path: str | os.PathLike, file_suffixes: Sequence[str] = ()) -> list[Image]:
    """Find the images in a folder and its subfolders, sorted by file.

    Files that end in `.nii` or `.nii.gz`, in any case, are images. Hidden files and folders are skipped, as are labels
    (`*_gt`, `*_seg`, `*_label`) and maps that inference writes (`*_seg`, `*_probability`, `*_uncertainty`). Links to
    folders are followed; a broken link counts as a file.

    Args:
        path: One NIfTI file, or a folder.
        file_suffixes: Suffixes of the files of one image, in the order of its channels, such as `_flair` and `_t1`. A
            file without any of them is an image by itself.

    Returns:
        The images; an image may lack files, see `check_images`. Empty if the path does not exist.

    Raises:
        InputError: A folder cannot be read.
    """
    path = Path(path)
    files = sorted(files_below(path)) if path.is_dir() else [path]
    images: dict[tuple[Path, ...], Image] = {}
    for file in files:
        if not (file.is_file() or _is_broken_link(file)) or not (match := NIFTI.fullmatch(file.name)):
            continue
        stem, ending = match[1], match[2]
        name = _without_suffix(stem, file_suffixes)
        if name != stem:
            parts = tuple(_sibling(file, name + suffix, ending) for suffix in file_suffixes)
            images.setdefault(tuple(part for part in parts if part.is_file()), Image(name, parts))
        elif not stem.lower().endswith(NOT_IMAGES):
            images[file,] = Image(name, (file,))
    return list(images.values())


def _is_broken_link(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def _without_suffix(stem: str, file_suffixes: Sequence[str]) -> str:
    longest_first = sorted(file_suffixes, key=len, reverse=True)
    return next((stem[: -len(suffix)] for suffix in longest_first if stem.endswith(suffix) and stem != suffix), stem)


def _sibling(file: Path, stem: str, ending: str) -> Path:
    """The file of that stem, with whichever ending it has; with the given one if there is none."""
    candidates = [file.with_name(stem + ending), file.with_name(f"{stem}.nii"), file.with_name(f"{stem}.nii.gz")]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def check_images(images: Sequence[Image], in_channels: int, output_dir: str | os.PathLike) -> None:
    """Check, from the headers alone, that every image can be segmented and that no result replaces a file.

    Args:
        images: See `find_images`.
        in_channels: Number of channels that the network takes.
        output_dir: Folder that the results go to.

    Raises:
        InputError: A file is missing, cannot be read, is not that of an image (see `open_nifti`), or has another shape
            or grid; two images have one name, or a name that is no line of text; or the results cannot be written, or
            would go to a folder of images, whose labels they could replace.
    """
    _check_names(images)
    for image in images:
        _check_headers(image, in_channels)
    _check_output(images, Path(output_dir))


def _check_names(images: Sequence[Image]) -> None:
    files: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        files[image.name].append(image.files[0])
        if not image.name.isprintable():
            raise InputError(f"{image.files[0]}: expected a name that is one line of text, got {image.name!r}")
        if len(os.fsencode(f"{UNFINISHED}{image.name}_probability.nii.gz")) > LONGEST_NAME:
            raise InputError(
                f"{image.files[0]}: expected a shorter name, got one that leaves no room for `_probability`"
            )
    for name, several in files.items():
        if len(several) > 1:
            raise InputError(
                f"dataset_dir: expected a name of its own for each image, got several called {name}, whose results "
                f"would replace each other: {', '.join(map(str, several))}"
            )


def _check_headers(image: Image, in_channels: int) -> None:
    channels = in_channels if len(image.files) == 1 else 1
    for file in image.files:
        if _is_broken_link(file):
            raise InputError(f"{file}: expected an image, got a link to {os.readlink(file)}, which does not exist")
        if not file.is_file():
            raise InputError(f"{file}: expected a file for each channel of {image.name}, got none")
        shape = open_nifti(file).shape
        if len(shape) not in (3, 4) or (*shape, 1)[3] != channels:
            raise InputError(f"{file}: expected a 3D image with {channels} channel(s), got shape {shape}")
        if min(shape) < 1 or sorted(shape[:3])[1] < SMALLEST_SLICE:
            raise InputError(
                f"{file}: expected slices of at least {SMALLEST_SLICE} x {SMALLEST_SLICE} pixels, got shape {shape}"
            )
    for file in image.files[1:]:
        check_same_grid(file, image.files[0])


def _check_output(images: Sequence[Image], output_dir: Path) -> None:
    files = [file for image in images for file in image.files]
    folders = {folder.resolve() for file in files for folder in (file.parent, file.resolve().parent)}  # of links too
    if output_dir.resolve() in folders:
        raise InputError(
            f"output_dir: expected a folder without images, whose labels the results could replace, got {output_dir}"
        )
    check_writable("output_dir", output_dir)


class ImageFolder:
    """The images to segment, as a bundle's configuration names them. No file is read before a method is called.

    Args:
        path: One NIfTI file, or a folder.
        in_channels: Number of channels that the network takes.
        file_suffixes: Suffixes of the files of one image, see `find_images`.
        output_dir: Folder that the results go to.
    """

    def __init__(
        self, path: str | os.PathLike, in_channels: int, file_suffixes: Sequence[str], output_dir: str | os.PathLike
    ) -> None:
        self.path = path
        self.in_channels = in_channels
        self.file_suffixes = file_suffixes
        self.output_dir = output_dir

    def items(self) -> list[dict[str, list[str]]]:
        """Items of a MONAI dataset: the files of each image, whose channels are loaded in this order.

        Nothing is listed if the path is unsuitable; `check` says so.
        """
        try:
            images = find_images(str(self.path), self.file_suffixes)
        except InputError:
            return []
        return [{"image": [str(file) for file in image.files]} for image in images]

    def check(self, items: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Check that there are images, all suitable.

        Args:
            items: Items of a dataset, with a path `image` or those of the channels, in place of the images of the path.

        Raises:
            InputError: There is no image, or an unsuitable one, see `check_images`.
        """
        for name, place in (("dataset_dir", self.path), ("output_dir", self.output_dir)):
            if not isinstance(place, str | os.PathLike) or not str(place):  # MONAI reads 2024_11_25 as a number
                raise InputError(f"{name}: expected a path, got {place!r}; write ./NAME if it reads as a number")
        if items:
            files = [tuple(Path(file) for file in ensure_tuple(item["image"])) for item in items]
            images = [Image(result_name(of_image[0], self.file_suffixes), of_image) for of_image in files]
        elif not Path(self.path).exists():
            raise InputError(f"dataset_dir: expected a NIfTI file or a folder, got {self.path}, which is neither")
        elif not (images := find_images(self.path, self.file_suffixes)):
            raise InputError(f"dataset_dir: expected .nii or .nii.gz images, got none in {self.path}")
        check_images(images, self.in_channels, self.output_dir)


def result_name(file: str | os.PathLike, file_suffixes: Sequence[str] = ()) -> str:
    """Return the name of the image that a file is of, which its results get.

    Args:
        file: The file, or one of several.
        file_suffixes: Suffixes of the files of one image, which the name goes without.
    """
    name = Path(file).name
    match = NIFTI.fullmatch(name)
    return _without_suffix(match[1] if match else name, file_suffixes)
