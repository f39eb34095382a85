"""The files of an evaluation: written by an Ignite handler, and read again."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather
from numpy.typing import NDArray

from calib_components.errors import InputError
from calib_components.metrics import CalibrationBins, LogitMagnitudeMetric

__all__ = ["EvaluationWriter", "read_calibration", "read_cases", "read_logits", "read_summary"]


def read_cases(folder: str | os.PathLike) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Read `cases.csv`.

    Args:
        folder: where an evaluation was written.

    Returns:
        The names of the cases, and the values `(cases,)` of each column by its name; NaN where a measure is undefined.

    Raises:
        InputError: the file is missing or broken.
    """
    with _reading(Path(folder) / "cases.csv") as file:
        header, *rows = csv.reader(file.read_text().splitlines())
        cases, *columns = zip(*rows, strict=True)
        values = [np.array([float(cell) if cell else np.nan for cell in column]) for column in columns]
        return list(cases), dict(zip(header[1:], values, strict=True))


def read_summary(folder: str | os.PathLike) -> dict[str, Any]:
    """Read `summary.json`. Arguments and errors as in `read_cases`."""
    return _read_json(Path(folder) / "summary.json")


def read_calibration(folder: str | os.PathLike) -> dict[str, CalibrationBins]:
    """Read the bins pooled over cases from `calibration.json`. Arguments and errors as in `read_cases`.

    Returns:
        Bins of the predicted class, `top_label`, and of each class, `classwise`.
    """
    file = Path(folder) / "calibration.json"
    pooled = _read_json(file)["pooled"]
    with _reading(file):
        return {kind: CalibrationBins.from_dict(fields) for kind, fields in pooled.items()}


def read_logits(folder: str | os.PathLike) -> tuple[list[str], NDArray[np.float64]]:
    """Read `logits.json`. Arguments and errors as in `read_cases`.

    Returns:
        The names of the N classes, and the mean magnitudes `(N, N)`, by ground-truth class and channel.
    """
    content = _read_json(Path(folder) / "logits.json")
    return content["class_names"], np.array(content["magnitudes"], float)


def _read_json(file: Path) -> Any:
    with _reading(file):
        return json.loads(file.read_text())


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    try:
        yield file
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None


class EvaluationWriter:
    """Write what an evaluation measured, per case and in summary.

    ``cases.csv``: one row a case. ``summary.json``: mean, standard deviation over cases and number of cases of every
    measure, the pooled calibration errors, and the structures that only the ground truth has (``missed``) or only the
    prediction (``spurious``).
    ``calibration.json``: the bins, per case and pooled. ``reliability.png`` and ``reliability_classes.png``: drawn from
    the pooled bins. ``logits.json``: mean magnitude of the logits, by ground truth class and channel.
    ``cases/best.png``, ``median.png`` and ``worst.png``: of the cases ordered by DSC, the slice with the most
    foreground and its uncertainty. No more than that slice is kept of a case until then.

    Args:
        output_dir: folder of the files.
        metrics: name of a measure to the metric that the evaluator updates, with ``dsc``, ``hd95``, ``ece`` and
            ``cece`` among them. Its ``aggregate("none")`` gives ``(cases,)`` or ``(cases, structures)``.
        structures: names of the structures, in the order of the metrics' columns.
        class_names: names of the classes, in the order of the network's channels.
        logit_magnitude: the metric of the logits that the evaluator updates.
        batch_transform: gets the names of a batch's cases from ``engine.state.batch``.
        output_transform: gets their images, probabilities and labels, lists of channel-first volumes, from
            ``engine.state.output``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        metrics: Mapping[str, Any],
        structures: Sequence[str],
        class_names: Sequence[str],
        logit_magnitude: LogitMagnitudeMetric,
        batch_transform: Callable[[Any], Sequence[str]],
        output_transform: Callable[[Any], Sequence[Sequence[torch.Tensor]]],
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metrics = metrics
        self.structures = list(structures)
        self.class_names = list(class_names)
        self.logit_magnitude = logit_magnitude
        self.batch_transform = batch_transform
        self.output_transform = output_transform
        self._cases: list[str] = []
        self._slices: dict[str, dict[str, np.ndarray]] = {}

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator that updates the metrics.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _reset(self) -> None:
        self._cases.clear()
        self._slices.clear()

    def _keep(self, engine: Engine) -> None:
        cases = self.batch_transform(engine.state.batch)
        self._cases.extend(cases)
        for case, *volumes in zip(cases, *self.output_transform(engine.state.output), strict=True):
            self._slices[case] = _largest_slice(*volumes)

    def _write(self) -> None:
        from calib_components.figures import reliability_diagram

        # Every rank takes part in the gathering, one writes.
        cases = string_list_all_gather(self._cases) if idist.get_world_size() > 1 else list(self._cases)
        per_case = {name: metric.aggregate("none").double().cpu() for name, metric in self.metrics.items()}
        bins = {kind: self.metrics[name].case_bins for kind, name in (("top_label", "ece"), ("classwise", "cece"))}
        magnitudes = self.logit_magnitude.magnitudes
        self._draw_cases(cases, per_case["dsc"].nanmean(1))
        if idist.get_rank() != 0:
            return
        self._write_cases(cases, per_case)
        self._write_summary(cases, per_case, bins)
        pooled = {kind: case_bins.pooled() for kind, case_bins in bins.items()}
        calibration = {
            "class_names": self.class_names,
            "cases": cases,
            "per_case": {kind: case_bins.to_dict() for kind, case_bins in bins.items()},
            "pooled": {kind: pooled_bins.to_dict() for kind, pooled_bins in pooled.items()},
        }
        (self.output_dir / "calibration.json").write_text(json.dumps(calibration) + "\n")
        reliability_diagram(pooled["top_label"]).savefig(self.output_dir / "reliability.png")
        reliability_diagram(pooled["classwise"], class_names=self.class_names).savefig(
            self.output_dir / "reliability_classes.png"
        )
        rows = [[None if math.isnan(value) else value for value in row] for row in magnitudes.tolist()]
        logits = {"class_names": self.class_names, "magnitudes": rows}
        (self.output_dir / "logits.json").write_text(json.dumps(logits) + "\n")
        logging.getLogger(__name__).info("Wrote the evaluation of %d cases to %s", len(cases), self.output_dir)

    def _draw_cases(self, cases: Sequence[str], dsc: torch.Tensor) -> None:
        """Every rank draws those it has seen."""
        from calib_components.figures import uncertainty_overlay

        folder = self.output_dir / "cases"
        folder.mkdir(parents=True, exist_ok=True)
        ordered = [i for i in dsc.argsort(stable=True).tolist() if not dsc[i].isnan()]
        chosen = {"worst": ordered[:1], "median": ordered[len(ordered) // 2 :][:1], "best": ordered[-1:]}
        for name, indices in chosen.items():
            for i in indices:
                if cases[i] in self._slices:
                    title = f"{cases[i]}, DSC of the volume {dsc[i]:.3f}"
                    figure = uncertainty_overlay(**self._slices[cases[i]], class_names=self.class_names, title=title)
                    figure.savefig(folder / f"{name}.png")

    def _columns(self, per_case: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        columns = {}
        for name, values in per_case.items():
            if values.ndim == 1:
                columns[name] = values
            else:
                columns.update(zip((f"{name}_{s}" for s in self.structures), values.unbind(1), strict=True))
        return columns

    def _write_cases(self, cases: Sequence[str], per_case: Mapping[str, torch.Tensor]) -> None:
        columns = self._columns(per_case)
        with open(self.output_dir / "cases.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", *columns])
            for case, *row in zip(cases, *(values.tolist() for values in columns.values()), strict=True):
                writer.writerow([case, *("" if math.isnan(value) else value for value in row)])

    def _write_summary(
        self, cases: Sequence[str], per_case: Mapping[str, torch.Tensor], bins: Mapping[str, CalibrationBins]
    ) -> None:
        means = {name: values.nanmean(1) for name, values in per_case.items() if values.ndim == 2}
        found_in_one = {
            name: [{"case": cases[i], "structure": self.structures[j]} for i, j in where.nonzero().tolist()]
            for name, where in (("missed", self.metrics["dsc"].missed), ("spurious", self.metrics["dsc"].spurious))
        }
        summary = {
            "cases": len(cases),
            **{name: _statistics(values) for name, values in {**means, **self._columns(per_case)}.items()},
            "ece_pooled": bins["top_label"].pooled().expected_error().item(),
            "cece_pooled": bins["classwise"].pooled().expected_error().item(),
            **found_in_one,
        }
        (self.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _largest_slice(image: torch.Tensor, probabilities: torch.Tensor, label: torch.Tensor) -> dict[str, np.ndarray]:
    """What `uncertainty_overlay` draws, from the slice along the last axis with the most foreground."""
    index = int((label[0] > 0).flatten(0, -2).sum(0).argmax())
    p = probabilities[..., index]
    values = {
        "image": image[0, ..., index],
        "label": label[0, ..., index].byte(),
        "prediction": p.argmax(0).byte(),
        "uncertainty": torch.special.entr(p).sum(0) / math.log(len(p)),
    }
    return {name: value.cpu().numpy().copy() for name, value in values.items()}  # copies, so the volume can go


def _statistics(values: torch.Tensor) -> dict[str, float | int | None]:
    """Mean and standard deviation over the cases where the measure is defined, and how many those are."""
    defined = values[~values.isnan()]
    return {
        "mean": defined.mean().item() if len(defined) > 0 else None,
        "std": defined.std().item() if len(defined) > 1 else None,
        "n": len(defined),
    }
