"""Train the networks of the sixth round, on newborn brains with seven raters each, and save their
predictions.

    python -m study.raters.train DATA OUT

DATA has `images` and `rater1` to `rater7`. OUT gets a folder of probabilities for each target, loss
and seed, in which each scan is predicted by the network of the fold that did not see it. What is
there already is kept.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import UNet
from monai.transforms import Compose, RandAdjustContrastd, RandAffined
from tqdm import tqdm

from calib_components.losses import NACLLoss, SVLSLoss

RATERS = [f"rater{number}" for number in range(1, 8)]
TARGETS = ("majority", "mean")  # of the raters
LOSSES = {
    "cross_entropy": torch.nn.CrossEntropyLoss,
    "nacl": NACLLoss,
    "svls": SVLSLoss,
}
SEEDS, FOLDS = (0, 1, 2), 5
EPOCHS, BATCH = 100, 8
AUGMENTATION = (
    RandAffined(
        ["image", "raters"],
        prob=1.0,
        rotate_range=0.35,  # rad
        scale_range=(0.15, 0.15),
        translate_range=(8, 8),  # pixels
        mode=["bilinear", "nearest"],
        padding_mode="border",
    ),
    RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
)
Scan = dict[str, torch.Tensor]


def read_scans(folder: Path) -> dict[str, Scan]:
    """Read each slice as `image` `(1, H, W)`, normalised, and `raters` `(7, H, W)`, 0 or 1."""
    scans = {}
    for file in sorted((folder / "images").glob("*.nii.gz")):
        values, *raters = (
            torch.from_numpy(
                nib.Nifti1Image.from_filename(folder / name / file.name).get_fdata()[..., 0]
            ).float()
            for name in ("images", *RATERS)
        )
        image = (values - values.mean()) / values.std()
        scans[file.name.removesuffix(".nii.gz")] = {
            "image": image[None],
            "raters": torch.stack(raters),
        }
    return scans


def make_target(raters: torch.Tensor, target: str) -> torch.Tensor:
    """Return what a network is trained on, from masks `(B, 7, H, W)`: the share of raters of both
    classes `(B, 2, H, W)`, or the class of the majority `(B, H, W)`.
    """
    share = raters.mean(1)
    if target == "mean":
        return torch.stack([1 - share, share], 1)
    return (share > 0.5).long()


def train(scans: Sequence[Scan], target: str, loss: str, seed: int) -> torch.nn.Module:
    """Train a network for all epochs; none is chosen."""
    torch.manual_seed(seed)
    network = UNet(2, 1, 2, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)
    augment = Compose(AUGMENTATION).set_random_state(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [EPOCHS // 2])
    loss_function = LOSSES[loss]()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(scans)).split(BATCH):
            items = [augment(scans[index]) for index in batch]
            image, raters = (
                torch.stack([item[name] for item in items]).as_subclass(torch.Tensor)
                for name in ("image", "raters")
            )
            optimizer.zero_grad()
            loss_function(network(image), make_target(raters, target)).backward()
            optimizer.step()
        scheduler.step()
    return network.eval()


def predict(network: torch.nn.Module, scan: Scan, file: Path) -> None:
    """Save the probabilities of a scan, `(X, Y, 1, 2)`."""
    with torch.inference_mode():
        p = network(scan["image"][None]).softmax(1)[0]
    values = p.permute(1, 2, 0).unsqueeze(2).numpy()
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), file)


def main(data: Path, out: Path) -> None:
    """Train and predict all that is not there yet."""
    torch.set_num_threads(1)
    scans = read_scans(data)
    names = [*scans]
    settings = itertools.product(SEEDS, TARGETS, LOSSES, range(FOLDS))
    for seed, target, loss, fold in tqdm([*settings]):
        folder = out / f"{target}_{loss}_seed{seed}"
        files = {name: folder / f"{name}_probability.nii.gz" for name in names[fold::FOLDS]}
        if all(file.exists() for file in files.values()):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        network = train(
            [scans[name] for name in names if name not in files], target, loss, seed * FOLDS + fold
        )
        for name, file in files.items():
            predict(network, scans[name], file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
