"""The files of an evaluation: written by an Ignite handler, and read again."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler
from monai.utils import string_list_all_gather
from numpy.typing import NDArray

from calib_components.errors import InputError, reading
from calib_components.inference import normalized_entropy
from calib_components.metrics import CalibrationBins, CalibrationMetric, DSCMetric, LogitMagnitudeMetric

__all__ = ["EvaluationWriter", "read_calibration", "read_cases", "read_logits", "read_summary"]

FILES = (  # all that an evaluation writes; the summary comes last, so where it is, the rest belongs to it
    "cases.csv",
    "calibration.json",
    "logits.json",
    "reliability.png",
    "reliability_classes.png",
    "cases/best.png",
    "cases/median.png",
    "cases/worst.png",
    "summary.json",
)
UNFINISHED = ".unfinished-evaluation"  # folder inside the output folder


def read_cases(folder: str | os.PathLike) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Read `cases.csv`.

    Args:
        folder: Where an evaluation was written.

    Returns:
        The names of the cases, and the values `(cases,)` of each column by its name; NaN where a measure is undefined.

    Raises:
        InputError: The file is missing or broken.
    """
    with reading(Path(folder) / "cases.csv") as file:
        header, *rows = csv.reader(io.StringIO(file.read_text(), newline=""))
        cases, *columns = zip(*rows, strict=True)
        values = [np.array([float(cell) if cell else np.nan for cell in column]) for column in columns]
        return list(cases), dict(zip(header[1:], values, strict=True))


def read_summary(folder: str | os.PathLike) -> dict[str, Any]:
    """Read `summary.json`. Arguments and errors as in `read_cases`."""
    with reading(Path(folder) / "summary.json") as file:
        return json.loads(file.read_text())


def read_calibration(folder: str | os.PathLike) -> dict[str, CalibrationBins]:
    """Read the bins pooled over cases from `calibration.json`. Arguments and errors as in `read_cases`.

    Returns:
        Bins of the predicted class, `top_label`, and of each class, `classwise`.
    """
    with reading(Path(folder) / "calibration.json") as file:
        pooled = json.loads(file.read_text())["pooled"]
        return {kind: CalibrationBins.from_dict(fields) for kind, fields in pooled.items()}


def read_logits(folder: str | os.PathLike) -> tuple[list[str], NDArray[np.float64]]:
    """Read `logits.json`. Arguments and errors as in `read_cases`.

    Returns:
        The names of the N classes, and the mean magnitudes `(N, N)`, by ground-truth class and channel.
    """
    with reading(Path(folder) / "logits.json") as file:
        content = json.loads(file.read_text())
        return content["class_names"], np.array(content["magnitudes"], float)


class EvaluationWriter:
    """Write what an evaluation measured, per case and in summary.

    - `cases.csv`: One row a case.
    - `summary.json`: Mean, standard deviation over cases and number of cases of every measure, the pooled calibration
      errors, and the structures that only the ground truth has (`missed`) or only the prediction (`spurious`).
    - `calibration.json`: The bins, per case and pooled.
    - `logits.json`: Mean magnitude of the logits, by ground-truth class and channel.
    - `reliability.png` and `reliability_classes.png`: Drawn from the pooled bins.
    - `cases/best.png`, `median.png` and `worst.png`: Of the cases ordered by DSC, the slice with the most foreground
      and its uncertainty. Of every case only that slice is kept until then.

    The files are written to a hidden folder, tables before figures, and replace those of an earlier evaluation once all
    are there; other files in the output folder stay. The mean CECE is added to `engine.state.metrics`.

    Args:
        output_dir: Folder of the files.
        metrics: The handlers that update the metrics, by name: `dsc` with a `DSCMetric`, `ece` with a
            `CalibrationMetric` (for ECE and CECE), `logits` with a `LogitMagnitudeMetric`, and any whose
            `aggregate("none")` returns `(cases,)` or `(cases, structures)`.
        structures: Names of the structures, in the order of the metrics' columns.
        class_names: Names of the classes, in the order of the network's channels.
        batch_transform: Gets the names of a batch's cases, or their folders, from `engine.state.batch`.
        output_transform: Gets their images, probabilities and labels, lists of channel-first volumes, from
            `engine.state.output`.

    Raises:
        ValueError: One of the three metrics named above is missing.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        metrics: Mapping[str, IgniteMetricHandler],
        structures: Sequence[str],
        class_names: Sequence[str],
        batch_transform: Callable[[Any], Sequence[str]],
        output_transform: Callable[[Any], Sequence[Sequence[torch.Tensor]]],
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metrics: dict[str, Any] = {name: handler.metric_fn for name, handler in metrics.items()}
        for name, kind in (("dsc", DSCMetric), ("ece", CalibrationMetric), ("logits", LogitMagnitudeMetric)):
            if not isinstance(self.metrics.get(name), kind):
                got = type(self.metrics[name]).__name__ if name in self.metrics else "none"
                raise ValueError(f"metrics: expected a handler of a {kind.__name__} called {name!r}, got {got}")
        self.structures = list(structures)
        self.class_names = list(class_names)
        self.batch_transform = batch_transform
        self.output_transform = output_transform
        self._cases: list[str] = []
        self._slices: dict[str, dict[str, np.ndarray]] = {}

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: The evaluator that updates the metrics.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _reset(self) -> None:
        for name in FILES:
            if (self.output_dir / name).is_dir():  # which cannot be replaced: say so before the work
                raise InputError(f"{self.output_dir / name}: expected a file of an evaluation or nothing, got a folder")
        self._cases.clear()
        self._slices.clear()

    def _keep(self, engine: Engine) -> None:
        cases = [Path(case).name for case in self.batch_transform(engine.state.batch)]
        self._cases.extend(cases)
        for case, *volumes in zip(cases, *self.output_transform(engine.state.output), strict=True):
            self._slices[case] = _largest_slice(*volumes)

    def _write(self, engine: Engine) -> None:
        # Every rank takes part in gathering and draws the cases that it has seen; the first writes the rest.
        cases = string_list_all_gather(self._cases) if idist.get_world_size() > 1 else list(self._cases)
        values = self._values()
        bins = {"top_label": self.metrics["ece"].case_bins, "classwise": self.metrics["ece"].cece.case_bins}
        magnitudes = self.metrics["logits"].magnitudes
        engine.state.metrics["cece"] = self.metrics["ece"].cece.aggregate().item()  # beside those of the handlers
        first = idist.get_rank() == 0
        unfinished = self.output_dir / UNFINISHED
        try:
            if first:
                shutil.rmtree(unfinished, ignore_errors=True)
                (unfinished / "cases").mkdir(parents=True)
                _write_cases(unfinished, cases, self._columns(values))
                self._write_summary(unfinished, cases, values, bins)
                _write_calibration(unfinished, self.class_names, cases, bins)
                _write_logits(unfinished, self.class_names, magnitudes)
            idist.barrier()
            self._draw_cases(unfinished / "cases", cases, values["dsc"].nanmean(1))
            if first:
                _draw_reliability(unfinished, self.class_names, bins)
            idist.barrier()
            if first:
                _replace_files(unfinished, self.output_dir)
        finally:
            if first:
                shutil.rmtree(unfinished, ignore_errors=True)
        logging.getLogger(__name__).info("Wrote the evaluation of %d cases to %s", len(cases), self.output_dir)

    def _values(self) -> dict[str, torch.Tensor]:
        """Values of each measure, `(cases,)` or `(cases, structures)`."""
        values = {}
        for name, metric in self.metrics.items():
            if name != "logits":
                values[name] = metric.aggregate("none").double().cpu()
            if name == "ece":
                values["cece"] = metric.cece.aggregate("none").double().cpu()
        return values

    def _columns(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same with a column for each structure, `(cases,)`."""
        columns = {}
        for name, of_cases in values.items():
            if of_cases.ndim == 1:
                columns[name] = of_cases
            else:
                columns.update(zip((f"{name}_{s}" for s in self.structures), of_cases.unbind(1), strict=True))
        return columns

    def _write_summary(
        self,
        folder: Path,
        cases: Sequence[str],
        values: Mapping[str, torch.Tensor],
        bins: Mapping[str, CalibrationBins],
    ) -> None:
        means = {name: of_cases.nanmean(1) for name, of_cases in values.items() if of_cases.ndim == 2}
        found_in_one = {
            name: [{"case": cases[i], "structure": self.structures[j]} for i, j in where.nonzero().tolist()]
            for name, where in (("missed", self.metrics["dsc"].missed), ("spurious", self.metrics["dsc"].spurious))
        }
        summary = {
            "cases": len(cases),
            **{name: _statistics(of_cases) for name, of_cases in {**means, **self._columns(values)}.items()},
            "ece_pooled": bins["top_label"].pooled().expected_error().item(),
            "cece_pooled": bins["classwise"].pooled().expected_error().item(),
            **found_in_one,
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    def _draw_cases(self, folder: Path, cases: Sequence[str], dsc: torch.Tensor) -> None:
        from calib_components.figures import uncertainty_overlay  # training must not need matplotlib

        ordered = [i for i in dsc.argsort(stable=True).tolist() if not dsc[i].isnan()]
        chosen = {"worst": ordered[:1], "median": ordered[len(ordered) // 2 :][:1], "best": ordered[-1:]}
        for name, indices in chosen.items():
            for i in indices:
                if cases[i] in self._slices:
                    title = f"{cases[i]}, DSC of the volume {dsc[i]:.3f}"
                    figure = uncertainty_overlay(**self._slices[cases[i]], class_names=self.class_names, title=title)
                    figure.savefig(folder / f"{name}.png")


def _write_cases(folder: Path, cases: Sequence[str], columns: Mapping[str, torch.Tensor]) -> None:
    with open(folder / "cases.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *columns])
        for case, *row in zip(cases, *(values.tolist() for values in columns.values()), strict=True):
            writer.writerow([case, *("" if math.isnan(value) else value for value in row)])


def _write_calibration(
    folder: Path, class_names: Sequence[str], cases: Sequence[str], bins: Mapping[str, CalibrationBins]
) -> None:
    calibration = {
        "class_names": class_names,
        "cases": cases,
        "per_case": {kind: case_bins.to_dict() for kind, case_bins in bins.items()},
        "pooled": {kind: case_bins.pooled().to_dict() for kind, case_bins in bins.items()},
    }
    (folder / "calibration.json").write_text(json.dumps(calibration) + "\n")


def _write_logits(folder: Path, class_names: Sequence[str], magnitudes: torch.Tensor) -> None:
    rows = [[None if math.isnan(value) else value for value in row] for row in magnitudes.tolist()]
    (folder / "logits.json").write_text(json.dumps({"class_names": class_names, "magnitudes": rows}) + "\n")


def _draw_reliability(folder: Path, class_names: Sequence[str], bins: Mapping[str, CalibrationBins]) -> None:
    from calib_components.figures import reliability_diagram  # training must not need matplotlib

    reliability_diagram(bins["top_label"]).savefig(folder / "reliability.png")
    reliability_diagram(bins["classwise"], class_names=class_names).savefig(folder / "reliability_classes.png")


def _replace_files(source: Path, target: Path) -> None:
    """Put an evaluation in the place of an earlier one.

    The old summary goes first and the new one comes last: a process killed in between leaves no summary.
    """
    (target / FILES[-1]).unlink(missing_ok=True)
    (target / "cases").mkdir(exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            (source / name).replace(target / name)
        else:  # a picture, if no case has a DSC
            (target / name).unlink(missing_ok=True)


def _largest_slice(image: torch.Tensor, probabilities: torch.Tensor, label: torch.Tensor) -> dict[str, np.ndarray]:
    """What `uncertainty_overlay` draws, from the slice along the last axis with the most foreground."""
    index = int((label[0] > 0).flatten(0, -2).sum(0).argmax())
    p = probabilities[..., index]
    values = {
        "image": image[0, ..., index],
        "label": label[0, ..., index].byte(),
        "prediction": p.argmax(0).byte(),
        "uncertainty": normalized_entropy(p)[0],
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
