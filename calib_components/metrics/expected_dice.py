"""Expected Dice similarity coefficient, from probabilities alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from calib_components.errors import InputError
from calib_components.metrics.case_metric import plain_tensor
from calib_components.metrics.structures import StructureMetric, check_structures, read_structures
from calib_components.metrics.threads import one_thread
from calib_components.metrics.voxels import check_tensors

__all__ = ["ExpectedDSCMetric", "expected_dsc"]


@one_thread()
def expected_dsc(
    y_pred: torch.Tensor,
    structures: Mapping[str, Sequence[int]],
    y: torch.Tensor | None = None,
    ignore_index: int | None = None,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Dice similarity coefficient (DSC) to expect of each structure: an estimate of quality without ground truth.

    `2 sum_A p / (|A| + sum p)`, where `A` are the voxels whose predicted class is in the structure (for a sigmoid:
    `p > 0.5`) and `p` is its probability, the sum over its classes. This is the ratio of the expected numerator of the
    DSC of `A` to its expected denominator, if the probabilities are calibrated. Cases in the order of this value show
    the segmentations to check first.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels and any number of spatial dimensions.
        - y: `(B, 1, *S)` class index, or `(B, N, *S)` one-hot; for sigmoids 0 or 1, `(B, N, *S)`.
        - output: `(B, structures)`.

    Args:
        y_pred: Probabilities of any floating-point type.
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of each.
        y: Ground truth, which says only which voxels are ignored; None: none are.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid. One channel
            always is.

    Returns:
        Float64; 0 if the structure is predicted nowhere, NaN if its probability is 0 everywhere too.

    Raises:
        TypeError: An input is not a tensor, or `y_pred` is not of a floating-point type.
        ValueError: Shapes do not match or hold no voxel, `y_pred` does not hold probabilities, `y` holds invalid
            labels, or an option has an unsuitable value.

    Sources: Li et al., "Estimating Model Performance under Domain Shifts with Class-Specific Confidence Scores", MICCAI
    2022 (as an estimate of the DSC). Borges et al., "Soft Dice Confidence: A Near-Optimal Confidence Estimator for
    Selective Prediction in Semantic Segmentation", arXiv:2402.10665, 2024 (to order cases).

    Examples:
        >>> import torch
        >>> from calib_components.metrics import expected_dsc
        >>> p = torch.tensor([0.1, 0.3, 0.6, 1.0])  # of class 1
        >>> expected_dsc(torch.stack([1 - p, p]).unsqueeze(0), {"tumour": [1]})  # 2 * (0.6 + 1) / (2 + 2)
        tensor([[0.8000]], dtype=torch.float64)
    """
    y_pred = plain_tensor(y_pred, "y_pred")
    if y is None and ignore_index is not None:
        raise InputError(f"ignore_index: expected None without y, got {ignore_index!r}")
    if y is None:  # any valid label
        y = torch.zeros_like(y_pred if sigmoid or y_pred.ndim < 2 else y_pred[:, :1], dtype=torch.uint8)
    y_pred, y = check_tensors(y_pred, y, sigmoid)
    structures = check_structures(structures, sigmoid, y_pred.shape[1])
    shape = 3, len(y_pred), len(structures)
    overlap, predicted, total = torch.zeros(shape, dtype=torch.float64, device=y_pred.device)
    for voxels in read_structures(y_pred, y, structures, ignore_index, sigmoid):
        at, mask = (voxels.case, voxels.structure), voxels.predicted
        overlap[at] += voxels.p @ mask.double()
        predicted[at] += mask.sum()
        total[at] += voxels.p.sum()
    return 2 * overlap / (predicted + total)


class ExpectedDSCMetric(StructureMetric):
    """Dice similarity coefficient (DSC) to expect of the structures of each case, see `expected_dsc`.

    It is called with the ground truth, as all metrics are, but uses it only to leave out ignored voxels.

    `aggregate()` averages over the structures of each case, then over cases; `aggregate("mean_batch")` returns the mean
    of each structure and `aggregate("none")` all values, `(cases, structures)`.

    Shape:
        - y_pred: `(B, N, *S)`, with N classes or channels, or a list of `(N, *S)`.
        - y: `(B, 1, *S)` class index or `(B, N, *S)` one-hot, for sigmoids 0 or 1, `(B, N, *S)`; or a list of these
          without `B`.

    Args:
        structures: Class indices by name, such as `{"heart": [1, 2]}`; for sigmoids, the channel of each.
        ignore_index: Ground-truth value of voxels to leave out.
        sigmoid: Whether each channel is a binary problem of its own, with a probability from a sigmoid and ground truth
            0 or 1. One channel always is.

    Raises:
        TypeError: An option is not one of these.
        ValueError: An option has an unsuitable value. Calls raise the errors of `expected_dsc`.

    Examples:
        >>> import torch
        >>> from calib_components.metrics import ExpectedDSCMetric
        >>> metric = ExpectedDSCMetric({"tumour": [1]})
        >>> _ = metric(torch.tensor([[[0.9, 0.4, 0.0], [0.1, 0.6, 1.0]]]), torch.tensor([[[0, 0, 1]]]))
        >>> metric.aggregate()  # 2 * (0.6 + 1) / (2 + 1.7)
        tensor(0.8649, dtype=torch.float64)
    """

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return expected_dsc(y_pred, self.structures, y, self.ignore_index, self.sigmoid)

    def case_values(self) -> torch.Tensor:
        return self.gathered()
