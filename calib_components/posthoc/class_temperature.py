"""A temperature for each predicted class, fitted in one pass from the sums of temperature scaling.

`T_k` has the lowest negative log-likelihood of the voxels that are predicted as class k: each is a
temperature of its own, see `TemperatureScaling`. Where the predicted class changes, the temperature
would jump, and logits that are interpolated to another grid would give other labels. So it is
mixed: `log T = sum_k q_k log T_k`, which is continuous. The shares q are the softmax of the logits
divided by three times the geometric mean of the `T_k`. Shares that follow the logits more closely
change more labels on another grid; on validation patients of the heart, the NLL was the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from calib_components.posthoc.base import Array, Calibrator, Estimate
from calib_components.posthoc.temperature import (
    FEWEST_PATIENTS,
    HIGHEST,
    LOWEST,
    SUMS,
    TemperatureScaling,
    fit_rows,
    nll_of,
    temperatures_of,
)

SOFTNESS = 3.0  # of the shares


@dataclass(frozen=True)
class ClassTemperatureEstimate(Estimate):
    """Fitted temperatures of the predicted classes.

    Attributes:
        temperatures: Of each class that is predicted, by its index: the `temperature`, the ends
            `low` and `high` of its 95 % interval, a bootstrap over patients, and the number of
            `voxels` and `patients`.
        nll_before, nll_after: Mean negative log-likelihood of the voxels without a temperature, and
            with that of their predicted class, before temperatures are mixed, in nats.
        patients, voxels: Numbers of patients and voxels.
    """

    name = "class_temperature"
    temperatures: dict[str, dict[str, float]]
    nll_before: float
    nll_after: float
    patients: int
    voxels: int

    def summary(self) -> str:
        text = "{temperature:.3f} [{low:.3f}, {high:.3f}]"
        parts = [f"class {name} {text.format(**fit)}" for name, fit in self.temperatures.items()]
        return f"{', '.join(parts)}, fitted on {self.count}"

    def effect(self, by_prediction: bool = True) -> str:
        return "T > 1 softens, T < 1 sharpens probabilities where a class is predicted."

    def warnings(self) -> list[str]:
        return [
            f"Class {name} is predicted for {fit['patients']:.0f} patients, fewer than"
            f" {FEWEST_PATIENTS}: the interval of its temperature is not reliable."
            for name, fit in self.temperatures.items()
            if fit["patients"] < FEWEST_PATIENTS
        ]


class ClassTemperature(Calibrator):
    """Divides logits by a temperature that depends on the predicted class; see `Calibrator` for its
    arguments and use.

    `T_k` minimizes the negative log-likelihood of the voxels that are predicted as class k. Logits
    are divided by `exp(sum_k q_k log T_k)`, with shares q that are softer than the probabilities.
    The predicted class stays. A class that is not predicted has the temperature of all
    voxels.

    Raises:
        InputError: Channels are sigmoids.

    Examples:
        >>> import torch
        >>> from calib_components.posthoc import ClassTemperature
        >>> fit = ClassTemperature()
        >>> logits = torch.tensor([[[4.0, 4.0, 4.0, 4.0, 0.0, 0.0, 0.0], [0.0] * 4 + [3.0] * 3]])
        >>> fit.update(logits, torch.tensor([[[0, 0, 0, 1, 1, 1, 0]]]), group="patient 1")
        >>> _ = fit.compute()
        >>> fit.state()["class_temperature"]  # 4 / log 3 and 3 / log 2
        tensor([3.6410, 4.3281])
    """

    name = "class_temperature"
    estimate = ClassTemperatureEstimate
    takes_soft_labels = True
    if TYPE_CHECKING:  # TorchScript reads annotations
        class_temperature: torch.Tensor

    def __init__(
        self, region: Any = "all", ignore_index: int | None = None, sigmoid: bool = False
    ) -> None:
        super().__init__(region, ignore_index, sigmoid)
        self.softness = SOFTNESS
        self.register_buffer("class_temperature", torch.ones(1))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        each = self.class_temperature.log().to(logits.dtype)
        shares = (logits / (self.softness * each.mean().exp())).softmax(1)
        return logits / (shares.movedim(1, -1) * each).sum(-1).exp().unsqueeze(1)

    def voxel_sums(
        self, logits: torch.Tensor, label: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the number of voxels, and for each predicted class what `TemperatureScaling`
        sums.
        """
        predicted = logits.argmax(0)
        sums = logits.new_zeros(len(logits), SUMS)
        for index in predicted.unique().tolist():
            inside = predicted == index
            kept = [weight[inside] for weight in weights]
            sums[index] = TemperatureScaling.voxel_sums(logits[:, inside], label[inside], *kept)
        return torch.cat([sums[:, 0].sum()[None], sums.flatten()])

    def solve(self, names: Sequence[str], rows: Array) -> ClassTemperatureEstimate:
        sums = self._sums(rows)
        fits, nll = {}, 0.0
        for index in np.flatnonzero(sums[..., 0].any(0)):
            of_class = sums[sums[:, index, 0] > 0, index]
            fit, voxels = fit_rows(of_class), of_class[:, 0].sum()
            fits[str(index)] = fit | {"voxels": voxels, "patients": len(of_class)}
            nll += voxels * nll_of(of_class, fit)
        self.set_state({"class_temperature": _temperatures(sums.sum(0))})
        voxels = sums[..., 0].sum()
        return ClassTemperatureEstimate(
            fits,
            nll_before=float(sums[..., 1].sum() / voxels),
            nll_after=float(nll / voxels),
            patients=len(names),
            voxels=int(voxels),
        )

    def states_without(self, names: Sequence[str], rows: Array) -> list[dict[str, Array]]:
        without = np.tensordot(1 - np.eye(len(rows)), self._sums(rows), 1)
        return [{"class_temperature": _temperatures(each)} for each in without]

    @staticmethod
    def _sums(rows: Array) -> Array:
        """Return the sums of each patient and predicted class, `(patients, classes, SUMS)`."""
        return rows[:, 0, 1:].reshape(len(rows), -1, SUMS)


def _temperatures(sums: Array) -> Array:
    """Return the temperature of each class; that of all voxels where there are none of a class, or
    its NLL has no minimum.
    """
    fitted, overall = temperatures_of(sums), temperatures_of(sums.sum(0))
    return np.where((fitted > LOWEST) & (fitted < HIGHEST), fitted, overall)
