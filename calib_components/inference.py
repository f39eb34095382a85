"""Inference on a folder of images: finding and checking them, and the maps that are made of the predictions.

One image is one NIfTI file or, where a data set keeps each modality in a file of its own, several whose names differ in
a suffix (`NAME_flair.nii.gz`, `NAME_t1.nii.gz`, ...). Results are named after the image: `NAME_seg.nii.gz`.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from nibabel.spatialimages import SpatialImage

from calib_components.errors import InputError, reading

__all__ = [
    "Image",
    "ImageFolder",
    "PredictionMapsd",
    "check_finite",
    "check_images",
    "fill_background",
    "find_images",
    "label_map",
    "normalized_entropy",
    "result_name",
    "structure_probabilities",
]

NIFTI = re.compile(r"(.+)(\.nii(?:\.gz)?)", re.IGNORECASE)
NOT_IMAGES = ("_gt", "_seg", "_probability", "_uncertainty")  # labels, and what inference writes itself


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
    (`*_gt`, `*_seg`) and maps that inference writes (`*_seg`, `*_probability`, `*_uncertainty`).

    Args:
        path: One NIfTI file, or a folder.
        file_suffixes: Suffixes of the files of one image, in the order of its channels, such as `_flair` and `_t1`. A
            file without any of them is an image by itself.

    Returns:
        The images; an image may lack files, see `check_images`. Empty if the path does not exist.
    """
    path = Path(path)
    images: dict[tuple[Path, ...], Image] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if hidden or not file.is_file() or not (match := NIFTI.fullmatch(file.name)):
            continue
        stem, ending = match[1], match[2]
        name = _without_suffix(stem, file_suffixes)
        if name != stem:
            parts = tuple(_sibling(file, name + suffix, ending) for suffix in file_suffixes)
            images.setdefault(tuple(part for part in parts if part.is_file()), Image(name, parts))
        elif not stem.lower().endswith(NOT_IMAGES):
            images[file,] = Image(name, (file,))
    return list(images.values())


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
        InputError: A file is missing, cannot be read or has another shape; two images have one name; or the results
            would go to a folder of images, whose labels they could replace.
    """
    for image in images:
        for file in image.files:
            if not file.is_file():
                raise InputError(f"{file}: expected a file for each channel of {image.name}, got none")
    names = Counter(image.name for image in images)
    if repeated := sorted(name for name, count in names.items() if count > 1):
        raise InputError(
            f"dataset_dir: expected a name of its own for each image, got several called {', '.join(repeated)}, whose "
            "results would replace each other"
        )
    for image in images:
        channels = in_channels if len(image.files) == 1 else 1
        for file in image.files:
            with reading(file, "a readable NIfTI file"):
                shape = cast(SpatialImage, nibabel.load(file)).shape
            if len(shape) not in (3, 4) or (*shape, 1)[3] != channels:
                raise InputError(f"{file}: expected a 3D image with {channels} channel(s), got shape {shape}")
    files = [file for image in images for file in image.files]
    folders = {folder.resolve() for file in files for folder in (file.parent, file.resolve().parent)}  # of links too
    if Path(output_dir).resolve() in folders:
        raise InputError(
            f"output_dir: expected a folder without images, whose labels the results could replace, got {output_dir}"
        )


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
        """Items of a MONAI dataset: the files of each image, whose channels are loaded in this order."""
        return [
            {"image": [str(file) for file in image.files]} for image in find_images(str(self.path), self.file_suffixes)
        ]

    def check(self) -> None:
        """End the process with one line on standard error if there is no image or an unsuitable one.

        MONAI wraps any other exception in pages of tracebacks.
        """
        try:
            for name, place in (("dataset_dir", self.path), ("output_dir", self.output_dir)):
                if not isinstance(place, str | os.PathLike):  # MONAI reads 2024_11_25 as a number
                    raise InputError(f"{name}: expected a path, got {place!r}; write ./NAME if it reads as a number")
            if not Path(self.path).exists():
                raise InputError(f"dataset_dir: expected a NIfTI file or a folder, got {self.path}, which is neither")
            if not (images := find_images(self.path, self.file_suffixes)):
                raise InputError(f"dataset_dir: expected .nii or .nii.gz images, got none in {self.path}")
            check_images(images, self.in_channels, self.output_dir)
        except InputError as error:
            sys.exit(str(error))


def result_name(meta: Mapping[str, Any], _: Any = None, *, file_suffixes: Sequence[str] = ()) -> dict[str, str]:
    """Name the results of an image after it, for `monai.transforms.SaveImage(output_name_formatter=...)`.

    Args:
        meta: Metadata of the image, with the path that it was loaded from.
        file_suffixes: Suffixes of the files of one image, which the name goes without.

    Returns:
        The argument `subject` of MONAI's folder layout.
    """
    file = Path(meta["filename_or_obj"])
    match = NIFTI.fullmatch(file.name)
    stem = match[1] if match else file.name
    return {"subject": f"{_without_suffix(stem, file_suffixes)}.nii"}


def check_finite(image: torch.Tensor) -> torch.Tensor:
    """Return the image, or raise an `InputError` that names its file if a value is NaN or infinite.

    One such value would spread over the whole image in normalisation.
    """
    invalid = int((~torch.isfinite(image)).sum())
    if invalid:
        name = image.meta["filename_or_obj"] if isinstance(image, MetaTensor) else "image"
        raise InputError(f"{name}: expected finite values, got {invalid} that are NaN or infinite")
    return image


def fill_background(probabilities: torch.Tensor) -> torch.Tensor:
    """Set the probability of the background, class 0 of `(N, *S)`, to 1 minus the sum of the other classes.

    Resampling to the image's own grid pads with zeros where the network did not see a voxel: there, background gets 1.
    """
    structures = probabilities[1:]
    return torch.cat([1 - structures.sum(0, keepdim=True), structures]).clamp(0, 1)


def structure_probabilities(probabilities: torch.Tensor, structures: Sequence[Sequence[int]]) -> torch.Tensor:
    """Probability of the background and of each structure.

    Args:
        probabilities: Of the classes, `(N, *S)`.
        structures: Class indices of each structure; they may share classes, as the regions of BraTS do.

    Returns:
        `(1 + len(structures), *S)`.
    """
    return torch.stack([probabilities[list(classes)].sum(0) for classes in [[0], *structures]])


def normalized_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over the classes of `(N, *S)`, divided by its largest value log N.

    Returns:
        `(1, *S)`: 0 where one class is certain, 1 where all are equally probable.
    """
    largest = torch.log(torch.tensor(float(len(probabilities))))
    return torch.special.entr(probabilities).sum(0, keepdim=True) / largest


def label_map(probabilities: torch.Tensor, label_codes: Sequence[int]) -> torch.Tensor:
    """The most probable class of each voxel, as the value that the data set's own label files give it.

    Args:
        probabilities: `(N, *S)`.
        label_codes: Value of each of the N classes.

    Returns:
        `(1, *S)` uint8.
    """
    codes = torch.tensor(label_codes, dtype=torch.uint8, device=probabilities.device)
    classes = probabilities.argmax(0, keepdim=True)
    return convert_to_dst_type(codes[torch.as_tensor(classes).long()], probabilities, dtype=torch.uint8)[0]


class PredictionMapsd(MapTransform):
    """Turn class probabilities on the image's own grid into the maps that users get.

    The item gains `probability`, the probabilities of the background and of each structure, and `uncertainty`, the
    normalised entropy. The key itself becomes the label map.

    Args:
        keys: The probabilities, `(N, *S)`.
        structures: Name of each structure and its class indices.
        label_codes: Value of each class in the label map.
        show_uncertainty: Let the key itself become the uncertainty instead, for MONAI Label, which shows one map only.
    """

    def __init__(
        self,
        keys: KeysCollection,
        structures: Mapping[str, Sequence[int]],
        label_codes: Sequence[int],
        show_uncertainty: bool = False,
    ) -> None:
        super().__init__(keys)
        self.structures = list(structures.values())
        self.label_codes = label_codes
        self.show_uncertainty = show_uncertainty

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            probabilities = fill_background(item[key])
            item["probability"] = structure_probabilities(probabilities, self.structures)
            item["uncertainty"] = normalized_entropy(probabilities)
            item[key] = item["uncertainty"] if self.show_uncertainty else label_map(probabilities, self.label_codes)
        return item
