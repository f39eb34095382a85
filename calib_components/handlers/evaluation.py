"""An Ignite handler that writes the files of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler

from calib_components.data.cases import check_labels
from calib_components.errors import InputError
from calib_components.handlers.evaluation_files import (
    read_calibration,
    read_cases,
    read_logits,
    read_regions,
    read_risk_coverage,
    read_summary,
    read_thresholds,
)
from calib_components.handlers.evaluation_pictures import DrawnSlice, draw_slice, largest_slice
from calib_components.handlers.evaluation_records import read_record, read_slice, write_record
from calib_components.handlers.evaluation_writing import check_once, start_evaluation, write_evaluation
from calib_components.inference.maps import normalized_entropy
from calib_components.metrics import CalibrationMetric, DSCMetric, LogitMagnitudeMetric, structure_masks

__all__ = [
    "EvaluationWriter",
    "check_case",
    "read_calibration",
    "read_cases",
    "read_logits",
    "read_regions",
    "read_risk_coverage",
    "read_summary",
    "read_thresholds",
]


def check_case(item: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
    """Check a case and the network's output before they are measured; a bundle's postprocessing starts with it.

    Args:
        item: The name of the `case`, its `image` `(C, *S)` and `label` `(1, *S)`, and the logits `pred` `(N, *S)`.

    Returns:
        The item.

    Raises:
        InputError: The image or the logits are not finite, or the label holds other values than the indices of the N
            classes.
    """
    if not item["image"].isfinite().all():
        raise InputError(f"{_file(item, 'image')}: expected finite values, got some that are NaN or infinite")
    check_labels(item["label"], len(item["pred"]), _file(item, "label"))
    if not item["pred"].isfinite().all():
        raise InputError(f"{item['case']}: expected finite logits, got some that are NaN or infinite; try --amp false")
    return item


def _file(item: Mapping[Hashable, Any], key: str) -> str:
    """The file of a volume, as far as it is known; otherwise the name of the case."""
    known = isinstance(item[key], MetaTensor) and "filename_or_obj" in item[key].meta
    return item[key].meta["filename_or_obj"] if known else item["case"]


class EvaluationWriter:
    """Write what an evaluation measured, per case and in summary.

    - `cases.csv`: One row a case. `ece`, `cece`, `nll` and `brier` are those of the metric's own region, `ece_REGION`
      and so on those of each further region. Regions with a closed form have `ece_if_true` and `cece_if_true`, the
      errors if the probabilities were true; structures have `ece_REGION_resampled`, the mean ECE of drawn labels.
      `smooth_ece` is the ECE without bins. Of each structure: its `true_volume`, its `segmented_volume`, that of
      the predicted label map, its `expected_volume`, and `volume_low` and `volume_high`, where its probability is above
      .95 and .05; `expected_dsc`, from the probabilities alone. `aurc` is the area under the risk-coverage curve, and
      `error_share_5` the share of the errors that are among the 5 % most uncertain voxels.
    - `summary.json`: Mean, standard deviation over cases and number of cases of every measure, the pooled calibration
      errors, the temperature that the logits were divided by (1 without), the structures that only the ground truth
      has (`missed`) or only the prediction (`spurious`), the patient of each case, the units of distances (`unit`) and
      volumes (`volume_unit`), the number of `channels`, and whether each has a `sigmoid` of its own.
    - `calibration.json`: The bins, per case and pooled, and pooled in each region; those of the predicted class over
      all voxels and the predicted foreground also of each case.
    - `logits.json`: Mean magnitude of the logits, by ground-truth class and channel.
    - `thresholds.json`: What is found of each structure if it is where its probability is above a threshold.
    - `risk_coverage.json`: The error rate among the most confident voxels of each case, for each share of them.
    - `reliability.png`: Of the predicted class, over all voxels, the predicted and the ground-truth foreground, as far
      as they are measured.
    - `reliability_classes.png`: Of each class, over all voxels, if they are measured. Among voxels of the ground-truth
      foreground, background could never be right.
    - `cases/best.png`, `median.png` and `worst.png`: Of the cases ordered by DSC, the slice with the most foreground
      and its uncertainty. Of every case only that slice is kept until then. One case has only the best, two have no
      median.

    The files are written to a hidden folder, tables before figures, and replace those of an earlier evaluation once all
    are there; other files in the output folder stay. Means of the CECE, NLL and Brier score, and of the ECE of all
    voxels and of the predicted foreground (`ece_all`, `ece_predicted`), are added to `engine.state.metrics`.

    Args:
        output_dir: Folder of the files.
        metrics: The handlers that update the metrics, by name: `dsc` with a `DSCMetric`, `ece` with a
            `CalibrationMetric` (for calibration errors, NLL and Brier score), `logits` with a `LogitMagnitudeMetric`,
            `thresholds` with a `ThresholdMetric`, `selective` with a `RiskCoverageMetric`, and any whose
            `aggregate("none")` returns `(cases, structures)`.
        structures: Names of the structures and their class indices, in the order of the metrics' columns.
        class_names: Names of the classes, in the order of the network's channels.
        batch_transform: Gets the names of a batch's cases, or their folders, from `engine.state.batch`.
        output_transform: Gets their images, probabilities and labels, lists of channel-first volumes, from
            `engine.state.output`.
        patient_transform: Gets the patient of each case of a batch; None if each case is a patient of its own.
        records: Folder, which exists, that gets a record of each case in place of the files; `assemble` makes the files
            of such records, whichever processes have written them.

    Raises:
        ValueError: `dsc`, `ece` or `logits` is missing.
        InputError: During the evaluation, if its files cannot be written, a case comes twice, or the network has
            another number of channels than there are names; at its start, if names of structures give a column
            twice, such as `a` and `a_if_true`.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        metrics: Mapping[str, IgniteMetricHandler],
        structures: Mapping[str, Sequence[int]],
        class_names: Sequence[str],
        batch_transform: Callable[[Any], Sequence[str]],
        output_transform: Callable[[Any], Sequence[Sequence[torch.Tensor]]],
        patient_transform: Callable[[Any], Sequence[str]] | None = None,
        records: str | os.PathLike | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metrics: dict[str, Any] = {name: handler.metric_fn for name, handler in metrics.items()}
        for name, kind in (("dsc", DSCMetric), ("ece", CalibrationMetric), ("logits", LogitMagnitudeMetric)):
            if not isinstance(self.metrics.get(name), kind):
                got = type(self.metrics[name]).__name__ if name in self.metrics else "none"
                raise ValueError(f"metrics: expected a handler of a {kind.__name__} called {name!r}, got {got}")
        self.structures = dict(structures)
        self.class_names = list(class_names)
        self.batch_transform = batch_transform
        self.output_transform = output_transform
        self.patient_transform = patient_transform
        self.records = records
        self._cases: list[str] = []
        self._patients: list[str] = []
        self._slices: dict[str, DrawnSlice] = {}

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: The evaluator that updates the metrics.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def start(self) -> None:
        """Check that the files can be written, see `start_evaluation`."""
        start_evaluation(self.output_dir, self.metrics, self.structures)

    def assemble(self, cases: Sequence[str]) -> None:
        """Write the files from records.

        Args:
            cases: Names of the cases, in the order of the files.

        Raises:
            InputError: A record is missing or broken, or the files cannot be written.
        """
        if self.records is None:
            raise ValueError("records: expected the folder of the records, got None")
        self.start()
        patients = []
        for metric in self.metrics.values():
            metric.reset()
        for case in cases:
            record = read_record(self.records, case)
            for name, metric in self.metrics.items():
                metric.extend(*record["stored"][name])
            patients.append(record["patient"])
        self._write_files(cases, patients, partial(read_slice, self.records))

    def _reset(self) -> None:
        if self.records is None:
            self.start()
        self._cases.clear()
        self._patients.clear()
        self._slices.clear()

    def _keep(self, engine: Engine) -> None:
        cases = [Path(case).name for case in self.batch_transform(engine.state.batch)]
        self._cases.extend(cases)
        self._patients.extend(cases if self.patient_transform is None else self.patient_transform(engine.state.batch))
        check_once(self._cases)
        for case, image, probabilities, label in zip(cases, *self.output_transform(engine.state.output), strict=True):
            if len(probabilities) != len(self.class_names):
                raise InputError(
                    f"class_names: expected {len(probabilities)} names, one per channel of the network, got "
                    f"{', '.join(self.class_names)}"
                )
            prediction = probabilities.max(0).indices  # what argmax(0) gives, in a fraction of its time
            index = largest_slice(prediction, label[0])
            maps = prediction[..., index], label[0, ..., index]
            masks = zip(*(structure_masks(of[None], [*self.structures.values()]) for of in maps), strict=True)
            self._slices[case] = draw_slice(
                image[0, ..., index],
                *maps,
                normalized_entropy(probabilities[..., index])[0],
                dict(zip(self.structures, masks, strict=True)),
            )

    def _write(self, engine: Engine) -> None:
        engine.state.metrics |= _means(self.metrics["ece"])  # beside those of the handlers
        if self.records is None:
            self._write_files(self._cases, self._patients, self._slices.get)
            return
        stored = {name: metric.stored_tensors() for name, metric in self.metrics.items()}
        for i, (case, patient) in enumerate(zip(self._cases, self._patients, strict=True)):
            of_case = {name: [values[i : i + 1] for values in several] for name, several in stored.items()}
            write_record(self.records, case, of_case, self._slices[case], patient=patient)

    def _write_files(
        self, cases: Sequence[str], patients: Sequence[str], slice_of: Callable[[str], DrawnSlice | None]
    ) -> None:
        write_evaluation(self.output_dir, cases, self.metrics, self.structures, self.class_names, slice_of, patients)


def _means(ece: CalibrationMetric) -> dict[str, float]:
    """Means over cases that are shown at the end of an evaluation, beside the ECE."""
    parts = {"cece": ece.cece, "nll": ece.nll, "brier": ece.brier}
    parts |= {f"ece_{name}": ece.regions[name] for name in ("all", "predicted") if name in ece.regions}
    return {name: part.aggregate().item() for name, part in parts.items()}
