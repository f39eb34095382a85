"""How good the segmentation of one scan is likely to be, from its probabilities alone, a slab of
slices at a time.

`ESTIMATES` is the table of what is estimated. `quality.csv`, its page, the columns of an evaluation
and the report follow it. A new estimate is one entry, and one of `TERMS` if it needs another sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch

from calib_components.errors import InputError
from calib_components.probabilities import are_probabilities
from calib_components.quality.reference import Reference

# Probabilities above which a voxel may be, and almost certainly is, in a structure
POSSIBLE, CERTAIN = 0.05, 0.95
Structures = Mapping[str, Sequence[int]]
# What is summed over the voxels of a scan, from the probability of a structure and whether it is
# predicted there. Voxels that cannot be in a structure add to the first alone.
TERMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "expected": lambda p, is_predicted: p,
    "overlap": lambda p, is_predicted: p * is_predicted,
    "predicted": lambda p, is_predicted: is_predicted,
    "possible": lambda p, is_predicted: p > POSSIBLE,
    "certain": lambda p, is_predicted: p > CERTAIN,
    "entropy": lambda p, is_predicted: _entropy(p[p > POSSIBLE].clamp_max(1)),
}


def check_structures(
    structures: Structures, sigmoid: bool = False, channels: float = math.inf
) -> None:
    """Raise `InputError` unless each structure has different class indices below the number of
    channels, one for sigmoids.
    """
    for name, classes in structures.items():
        are_classes = all(isinstance(each, Integral) and 0 <= each < channels for each in classes)
        number = len({*classes})
        if not are_classes or not 0 < number == len(classes) or (sigmoid and number > 1):
            what = "one channel" if sigmoid else "different class indices"
            below = "" if channels == math.inf else f" below {channels}"
            raise InputError(f"structures: give {what}{below} for {name!r}, got {classes!r}.")


def require_probabilities(probabilities: torch.Tensor, sigmoid: bool = False) -> None:
    """Raise `InputError` unless values `(N, *S)` are probabilities: of a softmax over N classes, or
    with `sigmoid` of each channel.
    """
    is_valid = bool(are_probabilities(probabilities, None if sigmoid else 0))
    if not (is_valid and (sigmoid or len(probabilities) > 1)):
        raise InputError(
            "probabilities must be (N, *S), from 0 to 1, and sum to 1 over the N classes, unless"
            " channels are sigmoids. Apply sigmoid or softmax to logits; give the cases of a batch"
            " one by one."
        )


def structure_sums(p: torch.Tensor, is_predicted: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the sum of each of `TERMS`, float64 `()`, over voxels with a probability of a
    structure, `(voxels,)`, some of which are predicted as it.
    """
    return {name: term(p, is_predicted).sum(dtype=torch.float64) for name, term in TERMS.items()}


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(p) + torch.special.entr(1 - p)


def expected_dice(sums: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return `2 sum_A p / (|A| + sum p)`, where `A` are the voxels predicted as a structure of
    probability `p`.

    It is 0 if there are none, and NaN if the probability is 0 everywhere, too.
    """
    return 2 * sums["overlap"] / (sums["predicted"] + sums["expected"])


@dataclass(frozen=True)
class StructureEstimate:
    """What the probabilities of one scan say of one structure, whose probability at a voxel is `p`.

    Attributes:
        sums: The sum of each of `TERMS` over the voxels.
    """

    sums: Mapping[str, torch.Tensor]

    @property
    def expected_voxels(self) -> float:
        """Expected volume, `sum p`."""
        return float(self.sums["expected"])

    @property
    def predicted_voxels(self) -> float:
        """Number of voxels predicted as the structure."""
        return float(self.sums["predicted"])

    @property
    def expected_dsc(self) -> float:
        """See `expected_dice`; rounding takes a sum of float32 above 1."""
        return float(expected_dice(self.sums).clamp(max=1))

    @property
    def uncertain_share(self) -> float:
        """Of the voxels with `p > 0.05`, the share with `p <= 0.95`; NaN without any."""
        return float(1 - self.sums["certain"] / self.sums["possible"])

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of `p` over the voxels with `p > 0.05`, in bits; NaN without any."""
        return float(self.sums["entropy"] / self.sums["possible"]) / math.log(2)


@dataclass(frozen=True)
class StructureScan:
    """One structure of one scan: what an estimate is a function of.

    Attributes:
        name: Name of the structure.
        estimate: What the probabilities say of it.
        reference: The validation scans.
        voxel_ml: Volume of a voxel in ml; NaN if it is not known.
        pairwise_dsc: Mean DSC over pairs of segmentations; NaN without several.
    """

    name: str
    estimate: StructureEstimate
    reference: Reference
    voxel_ml: float = math.nan
    pairwise_dsc: float = math.nan

    @property
    def volume_range_ml(self) -> list[float]:
        """Limits of the volume, in ml."""
        voxels = self.reference.volume_range(self.name, self.estimate.expected_voxels)
        return [self.voxel_ml * limit for limit in voxels]


@dataclass(frozen=True)
class QualityColumn:
    """An entry of the table of estimates.

    Attributes:
        name: Name of its column in `quality.csv`.
        title: Heading on the page and in reports.
        function: Gives its value; NaN where it is not defined.
        format: Format of its values on the page; "" if the page does not show it.
        limits: Names of two estimates that the page shows behind it, as a range.
        better: "higher" or "lower" if it orders segmentations by their quality. Then evaluations
            measure it, as `NAME_STRUCTURE` of `cases.csv`, and reports say how well it, or 1 less
            it, orders scans.
        of_prediction: Whether a structure that is predicted nowhere has none.
        optional: Whether `quality.csv` has it only if some scan has a value.
        is_limit: Whether it is a limit, which promises nothing of images unlike the reference's.
    """

    name: str
    title: str
    function: Callable[[StructureScan], float]
    format: str = ""
    limits: tuple[str, ...] = ()
    better: str = ""
    of_prediction: bool = True
    optional: bool = False
    is_limit: bool = False


ESTIMATES = (
    QualityColumn(
        "expected_dsc", "expected DSC", lambda s: s.estimate.expected_dsc, ".2f", better="higher"
    ),
    QualityColumn(
        "dsc_lower_bound",
        "DSC at least (90 %)",
        lambda s: s.reference.lower_bound(s.name, s.estimate.expected_dsc),
        ".2f",
        is_limit=True,
    ),
    QualityColumn(
        "expected_volume_ml",
        "expected volume, ml",
        lambda s: s.voxel_ml * s.estimate.expected_voxels,
        ".4g",
        limits=("volume_low_ml", "volume_high_ml"),
    ),
    QualityColumn(
        "volume_low_ml", "lowest volume, ml", lambda s: s.volume_range_ml[0], is_limit=True
    ),
    QualityColumn(
        "volume_high_ml", "highest volume, ml", lambda s: s.volume_range_ml[1], is_limit=True
    ),
    QualityColumn(
        "uncertain_share",
        "uncertain",
        lambda s: s.estimate.uncertain_share,
        ".0%",
        of_prediction=False,
    ),
    QualityColumn(
        "mean_entropy",
        "mean entropy",
        lambda s: s.estimate.mean_entropy,
        better="lower",
        of_prediction=False,
    ),
    QualityColumn(
        "pairwise_dsc",
        "pairwise DSC",
        lambda s: s.pairwise_dsc,
        ".2f",
        better="higher",
        of_prediction=False,
        optional=True,
    ),
)


class ScanEstimates:
    """Estimates of the structures of one scan: `update` with each slab, then `compute`.

    Args:
        structures: Class indices by name, which may overlap; class 0 is the background. With
            `sigmoid`, a channel each.
        sigmoid: Whether each channel has a sigmoid of its own.

    Raises:
        InputError: There is no structure, or one without a class index of at least 0.

    Examples:
        >>> import torch
        >>> p = torch.tensor([0.01, 0.3, 0.9, 0.99]).view(1, 2, 2)  # of class 1, one slice
        >>> scan = ScanEstimates({"tumour": [1]})
        >>> scan.update(torch.stack([1 - p, p]))
        >>> round(scan.compute()["tumour"].expected_dsc, 4)  # 2 * (0.9 + 0.99) / (2 + 2.2)
        0.9
    """

    def __init__(self, structures: Structures, sigmoid: bool = False) -> None:
        if not structures:
            raise InputError("structures: there is none.")
        check_structures(structures, sigmoid)
        self.structures, self.sigmoid = structures, sigmoid
        zero = torch.zeros((), dtype=torch.float64)
        self._sums = {name: dict.fromkeys(TERMS, zero) for name in structures}
        self._variances = [torch.zeros(0)]  # of the slices

    def update(self, probabilities: torch.Tensor) -> None:
        """Add the next D slices of the scan, probabilities `(N, D, *S)`.

        Raise `InputError` if N is too small, or they are no probabilities.
        """
        require_probabilities(probabilities, self.sigmoid)
        check_structures(self.structures, self.sigmoid, len(probabilities))
        slices = probabilities.shape[1]
        values = probabilities.flatten(1)
        # A row is short enough for float32
        totals = probabilities.sum(-1).flatten(1).sum(1, dtype=torch.float64)
        # Elsewhere, no structure is predicted or possible.
        inside = values.amax(0) > POSSIBLE if self.sigmoid else values[0] < 1 - POSSIBLE
        index = inside.nonzero().squeeze(1)
        values = values[:, index]
        variance = torch.zeros_like(values[0])
        structures = zip(self.structures.items(), self.masks(values), strict=True)
        for (name, classes), is_predicted in structures:
            rows = list(classes)
            p = values[rows].sum(0).clamp(0, 1)
            added = {**structure_sums(p, is_predicted), "expected": totals[rows].sum()}
            for term, value in added.items():
                self._sums[name][term] = self._sums[name][term] + value.cpu()
            variance += p * (1 - p)
        self._variances.append(
            torch.bincount(index // (inside.numel() // slices), variance, minlength=slices).cpu()
        )

    def masks(self, probabilities: torch.Tensor) -> list[torch.Tensor]:
        """Return where each structure is predicted, `(*S)`, of probabilities `(N, *S)`."""
        structures = map(list, self.structures.values())
        if self.sigmoid:
            return [probabilities[channel] > 0.5 for (channel,) in structures]
        predicted = probabilities.argmax(0)
        return [torch.isin(predicted, predicted.new_tensor(classes)) for classes in structures]

    def uncertainty(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the largest `4 p (1 - p)` of a structure, `(*S)`, of probabilities `(N, *S)`: 0 is
        certain, 1 undecided.
        """
        p = torch.stack([probabilities[list(each)].sum(0) for each in self.structures.values()])
        return (4 * p * (1 - p)).amax(0)

    def compute(self) -> dict[str, StructureEstimate]:
        """Return the estimates of each structure, from all slices so far."""
        return {name: StructureEstimate(dict(sums)) for name, sums in self._sums.items()}

    @property
    def most_uncertain_slice(self) -> int:
        """Index of the slice with the largest sum of `p (1 - p)` over voxels and structures."""
        return int(torch.cat(self._variances).argmax())


class PairwiseDice:
    """Agreement of several segmentations of one scan, such as those of turned images: `update`,
    then `compute`.

    Source: Zenk et al., "Comparative benchmarking of failure detection methods in medical image
        segmentation", Medical Image Analysis 2025.
    """

    def __init__(self, structures: Structures) -> None:
        self.structures = structures
        self._shared = dict.fromkeys(structures, torch.zeros((), dtype=torch.float64))

    def update(self, labels: torch.Tensor) -> None:
        """Add voxels: the class indices `(M, *S)` that M segmentations give them."""
        for name, classes in self.structures.items():
            self.add(name, torch.isin(labels, labels.new_tensor(list(classes))))

    def add(self, structure: str, masks: torch.Tensor) -> None:
        """Add voxels of a structure: where each of M segmentations has it, `(M, *S)`."""
        masks = masks.flatten(1)
        # Mixed precision would round a product
        shared = torch.stack([(masks & mask).sum(1) for mask in masks])
        self._shared[structure] = self._shared[structure] + shared.double().cpu()

    def compute(self) -> dict[str, float]:
        """Return the mean DSC over all pairs, for each structure; NaN if it is in none of the
        segmentations.
        """
        means = {}
        for name, shared in self._shared.items():
            dsc = 2 * shared / (shared.diagonal()[:, None] + shared.diagonal())
            means[name] = float(dsc.fill_diagonal_(torch.nan).nanmean())
        return means
