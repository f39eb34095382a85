"""One case of a data set: what it consists of, what is wrong with it, and its preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor, NibabelReader
from monai.transforms import LoadImage, MapLabelValue

from calib_components.data import write_case
from calib_components.errors import InputError, reading
from calib_components.tools.preparation.facts import Facts


@dataclass(frozen=True)
class Case:
    """One volume of a data set and its label, as found in the download.

    Attributes:
        name: Name of its folder of prepared files.
        patient: Patient that it shows; all cases of a patient are in the same split.
        group: Group that splits are stratified by.
        images: File of the image, or a file for each channel.
        label: File of the label.
        problem: What was found to be wrong with the case before any image was read; empty if nothing.
    """

    name: str
    patient: str
    group: str = ""
    images: tuple[Path, ...] = ()
    label: Path = Path()
    problem: str = ""


def nifti_file(folder: Path, stem: str) -> Path:
    """Return `stem.nii` if the folder has it, otherwise `stem.nii.gz`, which need not exist."""
    plain = folder / f"{stem}.nii"
    return plain if plain.is_file() else folder / f"{stem}.nii.gz"


def prepare_case(case: Case, facts: Facts, out: Path) -> None:
    """Write the prepared case `out/case.name`, completely or not at all.

    Raises:
        InputError: See `load_case`; or the volume cannot be transformed.
    """
    data = load_case(case, facts)
    try:
        data = facts.transforms()(data)
    except RuntimeError as error:  # raised by MONAI from the actual cause, such as an empty foreground
        reason = _one_line(error.__cause__ or error)
        raise InputError(f"{case.images[0]}: expected a volume that can be transformed, got {reason}") from error
    label = MapLabelValue(facts.label_codes, range(facts.num_classes))(data["label"])
    write_case(out / case.name, data["image"], label, data["image"].affine)


def load_case(case: Case, facts: Facts) -> dict[str, MetaTensor]:
    """Load a case and check it.

    Args:
        case: Case to load; several images are the channels of one.
        facts: Facts of the data set, which state the number of channels and the values in label files.

    Returns:
        `image` `(C, H, W, D)` and `label` `(1, H, W, D)`, float32, both with the affine of the image: label voxels are
        taken for the image's voxels, whatever the header of the label states.

    Raises:
        InputError: A file is missing, cannot be read or has values that are not finite; shapes differ; or the label has
            an unknown value.
    """
    if case.problem:
        raise InputError(case.problem)
    channels: list[torch.Tensor] = [_load_volume(path) for path in case.images]
    for path, channel in zip(case.images, channels, strict=True):
        _check_shape(path, channel, channels[0], case.images[0])
        if invalid := int((~torch.isfinite(channel)).sum()):
            raise InputError(f"{path}: expected finite values, got {invalid} voxels that are NaN or infinite")
    image = MetaTensor(torch.cat(channels))
    _check_channels(case.images[0], image, facts.in_channels)

    label = _load_volume(case.label)
    _check_shape(case.label, label, image, case.images[0])
    _check_channels(case.label, label, 1)
    if not torch.isin(label, torch.tensor(facts.label_codes, dtype=label.dtype)).all():
        unknown = ", ".join(f"{value:g}" for value in np.setdiff1d(label.numpy(), facts.label_codes)[:5])
        raise InputError(f"{case.label}: expected label values from {facts.label_codes}, got {unknown}")
    label.affine = image.affine
    return {"image": image, "label": label}


def _load_volume(path: Path) -> MetaTensor:
    if not path.is_file():
        raise InputError(f"{path}: expected a NIfTI file, got no such file")
    with reading(path, "a readable NIfTI file"):
        volume = LoadImage(ensure_channel_first=True)(path, reader=NibabelReader())
    if volume.ndim != 4 or volume.numel() == 0:
        raise InputError(f"{path}: expected a 3D volume, got shape {tuple(volume.shape[1:])}")
    if not abs(torch.linalg.det(volume.affine)) > 0:
        raise InputError(f"{path}: expected an invertible affine in its header, got a singular one")
    return volume


def _check_shape(path: Path, volume: torch.Tensor, other: torch.Tensor, other_path: Path) -> None:
    if volume.shape[1:] != other.shape[1:]:
        expected, got = tuple(other.shape[1:]), tuple(volume.shape[1:])
        raise InputError(f"{path}: expected shape {expected} as in {other_path}, got {got}")


def _check_channels(path: Path, volume: torch.Tensor, expected: int) -> None:
    if len(volume) != expected:
        raise InputError(f"{path}: expected {expected} channel(s), got {len(volume)}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
