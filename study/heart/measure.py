"""Measure one network of the heart, or the mean of several, on all test sets of the fifth round.

    python -m study.heart.measure DATA OUT WEIGHTS [WEIGHTS ...] [--views]

DATA has the prepared sets of the protocol. The network finds the heart in whole slices and is
measured over these: as trained, and with a temperature of the odd validation patients (T). Several
networks are measured as an ensemble, with the agreement of their segmentations (`pairwise_dsc_S`);
`--views` adds that of flips and quarter turns (`views_dsc_S`). OUT gets one row for each scan and
calibrator. The published rows also have a temperature of changed images (T changed), and changed
scans: they are of commit `d27d2421`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from calib_components.metrics import dice, structure_masks
from calib_components.metrics.segmentation import hausdorff_distance_95
from calib_components.posthoc import (
    Calibrator,
    Ensemble,
    TemperatureScaled,
    TemperatureScaling,
    set_calibrator,
)
from calib_components.quality import ScanEstimates
from calib_workflows.data.cases import load_sample, read_lists
from calib_workflows.inference.crops import Crop, crop_of
from calib_workflows.inference.inferers import agreement_of, volume_inferer
from calib_workflows.inference.maps import normalized_entropy
from calib_workflows.weights import load_weights

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "acdc_mri_nacl_segmentation"
STRUCTURES = {"RV": [1], "MYO": [2], "LV": [3]}
NEAR = 5  # pixels from a true structure, in a slice
FAR = 20  # pixels from the true heart, in a slice
SHIFT = 40  # pixels
SHIFTS = ((-SHIFT, 0), (SHIFT, 0), (0, -SHIFT), (0, SHIFT))  # up, down, left, right in turn
FLOOR = -20.0  # log of the lowest probability: that of a structure outside of the crop
SETS = {  # folder of the prepared data, and split
    "bssfp": ("bssfp", "testing"),
    "lge": ("lge", "testing"),
    "vendor_b": ("vendor_b", "testing"),
    "vendor_a_192": ("vendor_a_192", "testing"),
    "vendor_a_300": ("vendor_a_300", "testing"),
    "vendor_b_192": ("vendor_b_192", "testing"),
    "vendor_b_300": ("vendor_b_300", "testing"),
}
HOME = "cardiac"  # ACDC and vendor A in one list, whose cases begin with the name of the set
Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Scan:
    """A scan of a set: `image` and `label` are `(1, H, W, D)`, on the network's grid."""

    set: str
    case: str
    patient: str
    image: torch.Tensor
    label: torch.Tensor


def read_scans(items: Sequence[Any], name: str) -> Iterator[Scan]:
    """Read the scans of a split."""
    for item in items:
        volumes = load_sample(item["image"]), load_sample(item["label"])
        yield Scan(name, item["case"], item["patient"], *volumes)


def home_patients(data: Path, split: str) -> dict[str, list[Any]]:
    """Return the items of ACDC and of vendor A in a split of the data of the training."""
    items = read_lists(data / HOME / "datalist.json", data / HOME)[split]
    return {
        name: [item for item in items if item["case"].startswith(name)]
        for name in ("acdc", "vendor_a")
    }


def validation_half(data: Path, remainder: int) -> list[Any]:
    """Return the items of the odd (0) or even (1) validation patients of each data set."""
    chosen = []
    for items in home_patients(data, "validation").values():
        patients = list(dict.fromkeys(item["patient"] for item in items))[remainder::2]
        chosen += [item for item in items if item["patient"] in patients]
    return chosen


def shifted(scan: Scan, shift: tuple[int, int]) -> Scan | None:
    """Return a scan moved by rows and columns; None if its heart leaves the slices."""
    image, label = (move(volume, shift) for volume in (scan.image, scan.label))
    if (label > 0).sum() != (scan.label > 0).sum():
        return None
    return replace(scan, set="acdc_shifted", image=image, label=label)


def move(volume: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
    """Move `(C, H, W, D)` by rows and columns, filled with its minimum."""
    moved = volume.roll(shift, (1, 2))
    for axis, step in enumerate(shift, start=1):
        if step > 0:
            moved.narrow(axis, 0, step).fill_(volume.min())
        elif step < 0:
            moved.narrow(axis, moved.shape[axis] + step, -step).fill_(volume.min())
    return moved


def all_scans(data: Path) -> Iterator[Scan]:
    """Give the scans of the even validation patients, who choose what is shipped, and all sets."""
    yield from read_scans(validation_half(data, 1), "validation")
    for name, items in home_patients(data, "testing").items():
        yield from read_scans(items, name)
    for name, (folder, split) in SETS.items():
        yield from read_scans(
            read_lists(data / folder / "datalist.json", data / folder)[split], name
        )
    for number, scan in enumerate(read_scans(home_patients(data, "testing")["acdc"], "acdc")):
        moved = shifted(scan, SHIFTS[number % len(SHIFTS)])
        if moved is not None:
            yield moved


def load_network(weights: Path) -> torch.nn.Module:
    """Return the bundle's network with weights, as trained: without a temperature."""
    config = ConfigParser(ConfigParser.load_config_file(BUNDLE / "configs" / "train.yaml"))
    config.update({"bundle_root": str(BUNDLE), "device": "cpu"})
    network = config.get_parsed_content("network")
    load_weights(network, weights)
    set_calibrator(network, TemperatureScaling())
    return network.eval()


def load_networks(weights: Sequence[Path]) -> torch.nn.Module:
    """Return a network, or the ensemble of several."""
    networks = [load_network(file) for file in weights]
    if len(networks) == 1:
        return networks[0]
    return TemperatureScaled(Ensemble(networks)).eval()


@torch.inference_mode()
def predict(
    network: torch.nn.Module, image: torch.Tensor, views: bool = False
) -> tuple[torch.Tensor, Crop, dict[str, float]]:
    """Return the logits `(4, H, W, D)` of an image, the crop that the network saw, and how well the
    members of an ensemble, or `views`, agree.
    """
    inferer = volume_inferer((144, 144), 16, views, STRUCTURES, image_size=(224, 224))
    logits = inferer(image[None], network)[0]
    crop = crop_of(logits)
    assert crop is not None
    return torch.as_tensor(logits), crop, agreement_of(logits, STRUCTURES)


def fit_temperature(network: torch.nn.Module, items: Sequence[Any]) -> TemperatureScaling:
    """Return the temperature of validation patients."""
    fit = TemperatureScaling()
    for scan in read_scans(items, "validation"):
        logits, crop, _ = predict(network, scan.image)
        # As in calibrate.yaml: outside of the crop, no calibrator changes anything.
        seen, label = (
            crop.cut(volume).movedim(-1, 0)  # slices, as the network sees them
            for volume in (logits, scan.label)
        )
        fit.update(seen, label, scan.patient)
    fit.compute()
    return fit


@torch.inference_mode()
def apply_calibrator(logits: torch.Tensor, crop: Crop, calibrator: Calibrator) -> torch.Tensor:
    """Return the probabilities of a calibrator, which changes nothing outside of the crop."""
    logits = logits.clone()
    seen = crop.cut(logits)
    seen[:] = calibrator(seen.movedim(-1, 0)).movedim(0, -1)
    return logits.softmax(0)


def near_mask(label: NDArray[Any], distance: float) -> NDArray[np.bool_]:
    """Return the voxels of `(H, W, D)` that are so near to a structure in the same slice."""
    near = np.zeros(label.shape, bool)
    for index in np.flatnonzero(label.any((0, 1))):
        near[..., index] = distance_transform_edt(label[..., index] == 0) <= distance
    return near


def describe_labels(scan: Scan, predicted: torch.Tensor) -> dict[str, Any]:
    """Return what follows from label maps: overlaps, distances, and voxels far from the heart."""
    masks = [
        structure_masks(labels, [*STRUCTURES.values()]) for labels in (predicted[None], scan.label)
    ]
    pair = [each[None] for each in masks]
    row: dict[str, Any] = {}
    for name, dsc, distance in zip(
        STRUCTURES, dice(*pair)[0].tolist(), hausdorff_distance_95(*pair)[0].tolist(), strict=True
    ):
        row |= {f"dsc_{name}": dsc, f"hd95_{name}": distance}
    heart = scan.label[0].numpy() > 0
    around = near_mask(np.broadcast_to(heart.any(-1, keepdims=True), heart.shape), FAR)
    row["far_voxels"] = int(((predicted.numpy() > 0) & ~around).sum())
    return row


def describe_probabilities(scan: Scan, p: torch.Tensor) -> dict[str, Any]:
    """Return errors of probabilities `(4, H, W, D)`, and what they say of the scan's quality."""
    label, predicted = scan.label[0].long(), p.argmax(0)
    nll = -p.gather(0, label[None])[0].double().log().clamp(min=FLOOR)
    near = torch.from_numpy(near_mask(label.numpy(), NEAR))
    entropy = normalized_entropy(p)[0]
    estimates = ScanEstimates(STRUCTURES)
    estimates.update(p)
    row = {
        "nll_all": nll.mean().item(),
        "nll_near": nll[near].mean().item(),
        "entropy_predicted": entropy[predicted > 0].mean().item(),
    }
    for (name, (index,)), estimate in zip(
        STRUCTURES.items(), estimates.compute().values(), strict=True
    ):
        inside = predicted == index
        row |= {
            f"predicted_{name}": int(inside.sum()),
            f"confidence_{name}": p[index][inside].double().mean().item(),
            f"accuracy_{name}": (label[inside] == index).double().mean().item(),
            f"expected_dsc_{name}": estimate.expected_dsc,
            f"expected_volume_{name}": estimate.expected_voxels,
            f"true_volume_{name}": int((label == index).sum()),
        }
    return row


def measure_networks(data: Path, out: Path, weights: Sequence[Path], views: bool = False) -> None:
    """Fit the calibrators and write a row for each scan and calibrator."""
    network, rows = load_networks(weights), []
    calibrators = {
        "": TemperatureScaling().with_state({"temperature": 1.0}),
        "T": fit_temperature(network, validation_half(data, 0)),
    }
    for scan in tqdm(all_scans(data), desc=out.stem, disable=None):
        logits, crop, agreement = predict(network, scan.image)
        known = {"set": scan.set, "case": scan.case, "patient": scan.patient}
        known |= describe_labels(scan, logits.argmax(0))
        known |= {f"pairwise_dsc_{name}": dsc for name, dsc in agreement.items()}
        if views:
            *_, agreement = predict(network, scan.image, views)
            known |= {f"views_dsc_{name}": dsc for name, dsc in agreement.items()}
        for name, calibrator in calibrators.items():
            p = apply_calibrator(logits, crop, calibrator)
            temperature = calibrator.state()["temperature"].item()
            own = {"calibrator": name, "temperature": temperature}
            rows.append(known | own | describe_probabilities(scan, p))
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6g")


if __name__ == "__main__":
    data, out, *weights = (Path(word) for word in sys.argv[1:] if word != "--views")
    measure_networks(data, out, weights, "--views" in sys.argv)
