"""The maps that users get of a prediction, on the grid of their image: labels, probabilities and uncertainty.

They are made and written a slab of slices at a time, so that memory does not grow with the length of a scan.
"""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged
from monai.utils import convert_to_dst_type
from nibabel import Nifti1Header

from calib_components.data.transforms import file_name
from calib_components.errors import InputError, make_folder, reading, writing
from calib_components.inference.grid import ImageGrid
from calib_components.inference.images import result_name
from calib_components.inference.scratch import release, scratch
from calib_components.metrics.voxels import top_label

__all__ = [
    "MAPS",
    "PredictionMapsd",
    "SaveMapd",
    "check_own_map",
    "fill_background",
    "label_map",
    "normalized_entropy",
    "structure_probabilities",
]

MAPS = {"label": "seg", "uncertainty": "uncertainty", "probability": "probability"}  # how their files end
INTEGERS = {8: torch.uint8, 16: torch.uint16}  # by their bits
SLAB = 2**22  # values of a slab: its voxels times the classes
SLOPE = "scl_slope"  # of a map's metadata: the step of the whole numbers that it holds
# The file's name that gzip keeps in its own header: programs that save a map again, such as viewers, leave it out.
MARK = "map of calib_components"
MOST_OF_A_SOFTMAX = 1.01  # interpolated and rounded
COMPRESSION = 1  # higher levels of gzip take several times as long for a few per cent


def fill_background(probabilities: torch.Tensor) -> torch.Tensor:
    """Set the probability of the background, class 0 of `(N, *S)`, to 1 minus the sum of the other classes.

    Resampling to the image's own grid pads with zeros where the network did not see a voxel: there, background gets 1.

    Raises:
        InputError: These are not the probabilities of a softmax, such as of channels with a sigmoid each.
    """
    structures = probabilities[1:]
    sums = structures.sum(0, keepdim=True)
    if len(structures) == 0 or sums.max() > MOST_OF_A_SOFTMAX:
        got = f"sums of up to {sums.max():.3g}" if len(structures) else "one channel"
        raise InputError(
            f"probabilities: expected the background and classes that add up to at most 1, got {got}; apply softmax "
            "before fill_background, and leave it out if each channel has a sigmoid"
        )
    return torch.cat([1 - sums, structures]).clamp(0, 1)


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
        `(1, *S)` uint8, or int32 if a value needs it.
    """
    dtype = _code_type(label_codes)
    codes = torch.tensor(label_codes, dtype=dtype, device=probabilities.device)
    classes = top_label(probabilities.flatten(1))[1].view(1, *probabilities.shape[1:])
    return convert_to_dst_type(codes[torch.as_tensor(classes).long()], probabilities, dtype=dtype)[0]


def _code_type(label_codes: Sequence[int]) -> torch.dtype:
    return torch.uint8 if min(label_codes) >= 0 and max(label_codes) <= 255 else torch.int32


class PredictionMapsd(MapTransform):
    """Turn a network's logits into the maps that users get, on the image's own grid.

    The item gains those of `save`, by the ending of their files: `seg`, the label map; `uncertainty`, the normalised
    entropy `(1, *S)`; and `probability`, of the background and of each structure, `(1 + structures, *S)`. The last two
    are whole numbers: 0 to 65535, or 255, for 0 to 1. The key itself becomes the label map.

    Args:
        keys: The logits, `(N, H, W, D)`, of the preprocessed `image`.
        structures: Name of each structure and its class indices.
        label_codes: Value of each class in the label map.
        save: Maps to make: "label", "uncertainty" and "probability", or some of them.
        bits: Of the whole numbers, 16 or 8.
        show_uncertainty: Let the key itself become the uncertainty instead, for MONAI Label, which shows one map only.

    Raises:
        InputError: An option has an unsuitable value, structures or codes are not those of the network's classes,
            logits are not finite, or the way back to the image's grid is not known, see
            `calib_components.inference.grid`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        structures: Mapping[str, Sequence[int]],
        label_codes: Sequence[int],
        save: Sequence[str] | str = tuple(MAPS),
        bits: int = 16,
        show_uncertainty: bool = False,
    ) -> None:
        super().__init__(keys)
        if not isinstance(show_uncertainty, bool):
            raise InputError(f"show_uncertainty: expected true or false, got {show_uncertainty!r}")
        if type(bits) is not int or bits not in INTEGERS:
            raise InputError(f"bits: expected 8 or 16, got {bits!r}")
        self.save = [save] if isinstance(save, str) else list(save) if isinstance(save, Sequence) else []
        if not self.save or any(name not in MAPS for name in self.save) or len({*self.save}) < len(self.save):
            raise InputError(f"save: expected some of {', '.join(MAPS)}, got {save!r}")
        self.structures = list(structures.values())
        self.label_codes = label_codes
        self.bits = bits
        self.show_uncertainty = show_uncertainty

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item["image"]
        grid = ImageGrid(image)
        for key in self.key_iterator(item):
            self._check_classes(len(item[key]))
            maps = {
                name: values.permute(0, 3, 2, 1)
                for name, values in self._maps(item[key], grid, file_name(image)).items()
            }
            shown = maps["uncertainty"].float() / self._largest if self.show_uncertainty else maps["label"]
            results = {key: (shown, None), **{MAPS[name]: (maps[name], name != "label") for name in self.save}}
            for name, (values, is_share) in results.items():
                meta = {**image.meta, SLOPE: 1 / self._largest if is_share else 1.0}  # the image's, as read, is NaN
                item[name] = MetaTensor(values, affine=torch.from_numpy(grid.affine), meta=meta)
        return item

    @property
    def _largest(self) -> int:
        return 2**self.bits - 1

    def _maps(self, logits: torch.Tensor, grid: ImageGrid, file: str) -> dict[str, torch.Tensor]:
        """Return the maps `(C, Z, Y, X)`, as they are in a file, of the image in that file."""

        def empty(channels: int, dtype: torch.dtype) -> torch.Tensor:
            return scratch((channels, *reversed(grid.shape)), dtype)

        maps = {"label": empty(1, _code_type(self.label_codes))}
        if "uncertainty" in self.save or self.show_uncertainty:
            maps["uncertainty"] = empty(1, INTEGERS[self.bits])
        if "probability" in self.save:
            maps["probability"] = empty(1 + len(self.structures), INTEGERS[self.bits])
        slices = max(1, SLAB // (len(logits) * grid.shape[0] * grid.shape[1]))
        for start in range(0, grid.shape[2], slices):
            stop = min(start + slices, grid.shape[2])
            p = grid.slab(logits, start, stop, _softmax)
            if not p.sum().isfinite():
                raise InputError(
                    f"{file}: expected finite logits of the network, got some that are NaN or infinite; try --amp false"
                )
            p = fill_background(p)
            slab = {"label": label_map(p, self.label_codes)}
            if "uncertainty" in maps:
                slab["uncertainty"] = self._rounded(normalized_entropy(p))
            if "probability" in maps:
                slab["probability"] = self._rounded(structure_probabilities(p, self.structures))
            for name, values in slab.items():
                maps[name][:, start:stop] = values
                release(maps[name])
            release(logits)
        return maps

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        return (values.clamp(0, 1) * self._largest).round_().int().to(INTEGERS[self.bits])

    def _check_classes(self, num_classes: int) -> None:
        indices = [index for classes in self.structures for index in classes]
        if not all(0 <= index < num_classes for index in indices):
            raise InputError(f"structures: expected class indices from 0 to {num_classes - 1}, got {self.structures}")
        if len(self.label_codes) != num_classes:
            raise InputError(f"label_codes: expected {num_classes}, one for each class, got {self.label_codes}")


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().softmax(0)


class SaveMapd(SaveImaged):  # MONAI Label leaves out what is a SaveImaged
    """Save maps as `NAME_KEY.nii.gz`, named after the image; a file appears completely or not at all.

    Args:
        keys: The maps, `(C, H, W, D)`; floating point is saved as float32, anything else as it is.
        output_dir: Folder that the files go to; created if it does not exist.
        file_suffixes: Suffixes of the files of one image, see `calib_components.inference.find_images`.
        allow_missing_keys: Skip keys that the item lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        file_suffixes: Sequence[str] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.output_dir = output_dir
        self.file_suffixes = file_suffixes
        self._has_warned = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item as it is. Warn once of other maps of an image that stay beside the new ones.

        Raises:
            InputError: A file cannot be written, or is a label map of somebody else.
        """
        folder = Path(self.output_dir)
        make_folder(folder)
        for key in self.key_iterator(dict(data)):
            name = result_name(data[key].meta["filename_or_obj"], self.file_suffixes)
            file = folder / f"{name}_{key}.nii.gz"
            check_own_map(file)
            with writing(file) as unfinished:
                _write(data[key], unfinished)
            others = [folder / f"{name}_{other}.nii.gz" for other in self.keys if other not in data]
            if not self._has_warned and (staying := [file for file in others if file.exists()]):
                self._has_warned = True
                logging.getLogger(__name__).warning(
                    "%s: stays as an earlier run saved it, maybe with other weights; so may maps of other images.",
                    staying[0],
                )
        return dict(data)


def check_own_map(file: Path) -> None:
    """Refuse to replace a map of somebody else, such as labels that were corrected by hand.

    Raises:
        InputError: There is such a file, or it cannot be read.
    """
    if not file.is_file():
        return
    name = MARK.encode() + b"\0"
    with reading(file), open(file, "rb") as packed:
        beginning = packed.read(10 + len(name))  # a header of 10 bytes, of which one says whether a name follows
    if beginning[:3] != b"\x1f\x8b\x08" or beginning[3] != 8 or beginning[10:] != name:
        raise InputError(
            f"{file}: expected no file or a map of an earlier run, got another file; choose another folder"
        )


def _write(volume: MetaTensor, file: Path) -> None:
    """Write a volume `(C, X, Y, Z)`, slice by slice."""
    values = volume.as_tensor().cpu()
    values = values.float() if values.is_floating_point() else values
    header = Nifti1Header()
    header.set_data_dtype(values[:0].numpy().dtype)
    header.set_data_shape(values.shape[1:] if len(values) == 1 else (*values.shape[1:], len(values)))
    header.set_sform(np.asarray(volume.affine), code=1)
    header.set_qform(np.asarray(volume.affine), code=1)
    header.set_xyzt_units("mm")
    header.set_data_offset(header.single_vox_offset)
    header["scl_slope"], header["scl_inter"] = volume.meta.get(SLOPE, 1.0), 0.0
    with open(file, "wb") as raw, gzip.GzipFile(MARK, "wb", COMPRESSION, raw, mtime=0) as packed:
        header.write_to(packed)
        for channel in values:
            for slices in channel.split(max(1, SLAB // channel[..., 0].numel()), dim=2):
                packed.write(slices.permute(2, 1, 0).contiguous().numpy().data)  # X first in the file
                release(values)
