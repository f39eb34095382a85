"""The maps that users get of a prediction, on the grid of their image: labels, probabilities and
uncertainty.

They are made and written a slab of slices at a time, so that memory does not grow with the length
of a scan.
"""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged
from monai.utils import ensure_tuple
from nibabel import Nifti1Image

from calib_components.errors import InputError, check_choice, make_folder, writing
from calib_components.posthoc import find_reference, find_tests
from calib_components.quality import Reference, ScanEstimates
from calib_components.quality.estimates import require_probabilities
from calib_workflows.data.dicom import Segment, is_dicom, series_name, write_segmentation
from calib_workflows.data.nifti import channels_last
from calib_workflows.data.transforms import file_name
from calib_workflows.inference.crops import crop_of
from calib_workflows.inference.grid import ImageGrid
from calib_workflows.inference.images import DICOM_MAPS, MAPS, patient_of, result_name
from calib_workflows.inference.inferers import agreement_of
from calib_workflows.inference.scratch import release, scratch
from calib_workflows.pages.quality import CENTER, describe_scan, draw_scan, write_record
from calib_workflows.pages.slices import COLORS

QUALITY = "quality"  # key of an item
TYPES = {8: torch.uint8, 16: torch.uint16, 32: torch.float32}  # of maps, by their bits
SLAB = 2**22  # values of a slab: voxels times classes
SLOPE = "scl_slope"  # key of a map's metadata: the step of the integers that it holds
COMPRESSION = 1  # higher levels of gzip take several times as long for a few per cent


def normalized_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy over the classes of `(N, *S)`, divided by its largest value log N: `(1,
    *S)`, from 0 to 1.

    Raises an `InputError` if these are not the probabilities of a softmax, or a batch of them.
    """
    require_probabilities(probabilities)
    largest = torch.log(torch.tensor(float(len(probabilities))))
    return torch.special.entr(probabilities).sum(0, keepdim=True) / largest


class PredictionMapsd(MapTransform):
    """Turn a network's logits into the maps that users get, on the image's own grid.

    The item gains the maps of `save`, under the ending of their files: `seg`, the label map;
    `uncertainty`, the normalised entropy `(1, *S)`; and `probability`, of the background and of
    each structure, `(1 + structures, *S)`. The last two are integers: 0 to 65535, or 255, for 0 to
    1; or of 32 bits, floating point. The key itself becomes the label map. `quality` is what
    `calib_workflows.pages.quality.describe_scan` returns.

    Args:
        keys: The logits, `(N, H, W, D)`, of the preprocessed `image`.
        structures: Name of each structure and its class indices.
        label_codes: Value of each class in the label map.
        save: Maps to make, see `ImageFolder`, which checks them. Those of DICOM are masks, or
            probabilities of 0 to 255, of the structures, `(structures, *S)`.
        bits: 16 or 8, of the integers; or 32, of floating point, which a calibrator can be fitted
            to.
        show_uncertainty: Let the key itself become the uncertainty instead, for MONAI Label, which
            shows one map.
        network: Network whose weights hold the reference of the quality; None for a quality without
            one.

    Raises:
        InputError: An option has an unsuitable value, the codes do not fit the network's classes,
            logits are not finite, or the way back to the image's grid is not known, see
            `calib_workflows.inference.grid`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        structures: Mapping[str, Sequence[int]],
        label_codes: Sequence[int],
        save: Sequence[str] | str = tuple(MAPS),
        bits: int = 16,
        show_uncertainty: bool = False,
        network: torch.nn.Module | None = None,
    ) -> None:
        super().__init__(keys)
        self.save = ensure_tuple(save)
        check_choice("bits", bits, TYPES)
        self.structures, self.network = structures, network
        fits_a_byte = min(label_codes) >= 0 and max(label_codes) <= 255
        self.codes = torch.tensor(label_codes, dtype=torch.uint8 if fits_a_byte else torch.int32)
        self.dtype = TYPES[bits]
        self.largest = 1 if self.dtype.is_floating_point else torch.iinfo(self.dtype).max
        self.show_uncertainty = show_uncertainty
        self._stored = torch.empty(0)
        self._reference = Reference.from_tensor(self._stored, [*structures])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item["image"]
        grid = ImageGrid(image)
        for key in self.key_iterator(item):
            if len(self.codes) != len(item[key]):
                raise InputError(
                    f"label_codes: {self.codes.tolist()} are not {len(item[key])} values, one for"
                    " each class."
                )
            scan = ScanEstimates(self.structures)
            maps = self._maps(item[key], grid, file_name(image), scan)
            item[QUALITY] = self._describe(scan, image, grid, item[key])
            for name in self.save:
                slope = 1.0 if name == "label" else 1 / self.largest
                item[MAPS.get(name, name)] = _with_grid(maps[name], image, grid, slope)
            shown = maps["label"]
            if self.show_uncertainty:
                shown = maps["uncertainty"].float() / self.largest
            item[key] = _with_grid(shown, image, grid)
        return item

    def _describe(
        self,
        scan: ScanEstimates,
        image: MetaTensor,
        grid: ImageGrid,
        logits: torch.Tensor,
    ) -> dict[str, Any]:
        """Return the quality of a scan, with a picture."""
        # A server must not tell where its files are
        file, index = file_name(image), scan.most_uncertain_slice
        name = series_name(file) if is_dicom(file) else Path(file).name
        grey = grid.slab(image.as_tensor(), index, index + 1)[0, 0]
        p = _probabilities(logits, grid, index, index + 1)[:, 0].cpu()
        picture = draw_scan(scan, p, grey, grid.affine)
        stored = torch.empty(0) if self.network is None else find_reference(self.network)
        if not torch.equal(stored, self._stored):  # what follows from it is computed once
            self._stored = stored
            tests = {} if self.network is None else find_tests(self.network)
            self._reference = Reference.from_tensor(stored, [*self.structures], tests)
        agreement = agreement_of(logits, self.structures)
        record = describe_scan(
            name,
            scan.compute(),
            self._reference,
            grid.affine,
            picture,
            agreement,
            patient_of(file),
        )
        crop = crop_of(logits)
        if crop is not None:
            record[CENTER] = crop.center(image.shape[1:3])
            if crop.doubt:
                record["reasons"].append(crop.doubt)
        return record

    def _maps(
        self, logits: torch.Tensor, grid: ImageGrid, file: str, scan: ScanEstimates
    ) -> dict[str, torch.Tensor]:
        """Return the maps `(C, X, Y, Z)`, stored with X first as in a file, and measure the scan in
        that file.
        """
        maps: dict[str, torch.Tensor] = {}
        names = {"label", *self.save} | ({"uncertainty"} if self.show_uncertainty else set())
        width, height, depth = grid.shape
        slices = max(1, SLAB // (len(logits) * width * height))
        for start in range(0, depth, slices):
            stop = min(start + slices, depth)
            p = _probabilities(logits, grid, start, stop)
            if not p.sum().isfinite():
                raise InputError(
                    f"{file}: some logits of the network are NaN or infinite. Try --amp false."
                )
            scan.update(p)
            for name in names:
                values = self._values(name, p)
                if name not in maps:
                    maps[name] = scratch((len(values), depth, height, width), values.dtype)
                maps[name][:, start:stop] = values
            for values in (*maps.values(), logits):
                release(values)
        return {name: values.permute(0, 3, 2, 1) for name, values in maps.items()}

    def _values(self, name: str, p: torch.Tensor) -> torch.Tensor:
        """Return the values of a map, `(C, Z, Y, X)`, from the probabilities `(N, Z, Y, X)`."""
        if name == "label":
            return self.codes[p.max(0, keepdim=True).indices]  # faster than argmax
        if name == "uncertainty":
            return rounded(normalized_entropy(p), self.dtype)
        if name == "dicom":
            predicted = p.max(0).indices
            classes = self.structures.values()
            return torch.stack([torch.isin(predicted, torch.tensor(each)) for each in classes])
        structures = [[0], *self.structures.values()]
        sums = torch.stack([p[list(classes)].sum(0) for classes in structures])
        if name == "dicom_probability":
            return rounded(sums[1:], torch.uint8)
        return rounded(sums, self.dtype)


def rounded(shares: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values from 0 to 1 in a type; 1 is the largest number of an integer type."""
    shares = shares.clamp(0, 1)
    if dtype.is_floating_point:
        return shares
    return (shares * torch.iinfo(dtype).max).round_().int().to(dtype)


def _probabilities(logits: torch.Tensor, grid: ImageGrid, start: int, stop: int) -> torch.Tensor:
    """Return the probabilities of slices of the image's grid, `(N, Z, Y, X)`; of the background 1
    where the network saw nothing.
    """
    p = grid.slab(logits, start, stop).softmax(0)
    background = torch.eye(len(p), device=p.device)[0].view(-1, 1, 1, 1)
    return torch.where(grid.is_seen(start, stop).to(p.device), p, background)


def _with_grid(
    values: torch.Tensor, image: MetaTensor, grid: ImageGrid, slope: float = 1.0
) -> MetaTensor:
    """Return a map with the metadata of its image, and the step of its integers."""
    # The slope of the image, as read, is NaN
    meta = {**image.meta, "affine": torch.from_numpy(grid.affine), SLOPE: slope}
    return MetaTensor(values, meta=meta)


class SaveMapd(SaveImaged):  # MONAI Label leaves out what is a SaveImaged
    """Save maps as `NAME_KEY.nii.gz`, named after the image; a file appears completely or not at
    all.

    The `quality` of an item goes to `quality/NAME.json`, see
    `calib_workflows.pages.quality.write_table`.

    Args:
        keys: The maps, `(C, H, W, D)`; floating point is saved as float32, anything else as it is.
        output_dir: Folder that the files go to; created if it does not exist.
        file_suffixes: Suffixes of the files of one image, see
            `calib_workflows.inference.find_images`.
        allow_missing_keys: Skip keys that the item lacks.
        stamp: What `calib_workflows.inference.run_stamp` returns; the field `descrip` of the
            header, and the software version of DICOM SEG, get its weights.
        structures: Names of the structures, for maps of DICOM series, which become
            `NAME_seg.dcm` and `NAME_probability.dcm`.
        segment_codes: Code of SNOMED CT and meaning of structures in them, by name, and `abnormal`
            for a lesion, see `calib_workflows.data.dicom.Segment`.

    Raises:
        InputError: When called: a file cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike,
        file_suffixes: Sequence[str] = (),
        allow_missing_keys: bool = False,
        stamp: Mapping[str, Any] | None = None,
        structures: Sequence[str] = (),
        segment_codes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.segments = [
            Segment(name, color, *(segment_codes or {}).get(name, ()))
            for name, color in zip(structures, itertools.cycle(COLORS))
        ]
        self.output_dir = Path(output_dir)
        self.file_suffixes = file_suffixes
        self.stamp = f"weights {stamp['weights']}" if stamp else ""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        make_folder(self.output_dir)
        for key in self.key_iterator(dict(data)):
            file = data[key].meta["filename_or_obj"]
            name = result_name(file, self.file_suffixes)
            if key in DICOM_MAPS:
                self._write_dicom(data[key], f"{name}_{DICOM_MAPS[key]}", file)
                continue
            with writing(self.output_dir / f"{name}_{key}.nii.gz") as unfinished:
                volume, slope = data[key].as_tensor(), data[key].meta.get(SLOPE, 1.0)
                write_map(unfinished, volume, np.asarray(data[key].affine), slope, self.stamp)
        if QUALITY in data:
            name = result_name(data[QUALITY]["scan"], self.file_suffixes)
            write_record({**data[QUALITY], "scan": name}, self.output_dir)
        return dict(data)

    def _write_dicom(self, values: MetaTensor, name: str, image: str) -> None:
        masks = values.as_tensor().cpu().numpy()
        if masks.dtype != bool:
            masks = masks / np.float32(255)
        with writing(self.output_dir / name) as unfinished:
            write_segmentation(unfinished, masks, self.segments, image, self.stamp)


def write_map(
    file: Path, volume: torch.Tensor, affine: np.ndarray, slope: float = 1.0, stamp: str = ""
) -> None:
    """Write a volume `(C, X, Y, Z)` as a compressed NIfTI file, slice by slice; floating point
    becomes float32.
    """
    values = volume.cpu().float() if volume.is_floating_point() else volume.cpu()
    header = Nifti1Image(channels_last(values), affine).header
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    header["descrip"] = stamp.encode()
    with open(file, "wb") as raw, gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed:
        header.write_to(packed)
        for channel in values:
            for slices in channel.split(max(1, SLAB // channel[..., 0].numel()), dim=2):
                # X first in the file
                packed.write(slices.permute(2, 1, 0).contiguous().numpy().data)
                release(values)
