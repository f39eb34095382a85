"""An Ignite handler that writes the files of an evaluation."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from monai.utils import string_list_all_gather

from calib_components.data import check_labels
from calib_components.errors import InputError, printable
from calib_components.handlers.evaluation_files import (
    FILES,
    number,
    read_calibration,
    read_cases,
    read_logits,
    read_regions,
    read_summary,
    replace_files,
    write_calibration,
    write_cases,
    write_logits,
    writing_in,
)
from calib_components.inference import normalized_entropy
from calib_components.metrics import (
    CalibrationBins,
    CalibrationMetric,
    DSCMetric,
    LogitMagnitudeMetric,
    dice,
    structure_masks,
)

__all__ = [
    "EvaluationWriter",
    "check_case",
    "read_calibration",
    "read_cases",
    "read_logits",
    "read_regions",
    "read_summary",
]

UNFINISHED = ".unfinished-evaluation"  # folder inside the output folder
# Regions that are drawn, if they are measured: what calibration means first, the paper's last.
TITLES = {"all": "all voxels", "predicted": "predicted foreground", "foreground": "ground-truth foreground"}
# Names of pooled errors in summary.json, by kind of bins.
POOLED = {
    "top_label": "ece{}_pooled",
    "classwise": "cece{}_pooled",
    "top_label_if_true": "ece{}_if_true_pooled",
    "classwise_if_true": "cece{}_if_true_pooled",
}


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
    - `summary.json`: Mean, standard deviation over cases and number of cases of every measure, the pooled calibration
      errors, the temperature that the logits were divided by (1 without), and the structures that only the ground truth
      has (`missed`) or only the prediction (`spurious`).
    - `calibration.json`: The bins, per case and pooled, and pooled in each region.
    - `logits.json`: Mean magnitude of the logits, by ground-truth class and channel.
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
            and any whose `aggregate("none")` returns `(cases,)` or `(cases, structures)`.
        structures: Names of the structures and their class indices, in the order of the metrics' columns.
        class_names: Names of the classes, in the order of the network's channels.
        batch_transform: Gets the names of a batch's cases, or their folders, from `engine.state.batch`.
        output_transform: Gets their images, probabilities and labels, lists of channel-first volumes, from
            `engine.state.output`.

    Raises:
        ValueError: One of the three metrics named above is missing.
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
        # What would keep the files from being written is said before the work.
        self._check_names()
        for name in FILES:
            if (self.output_dir / name).is_dir():
                raise InputError(f"{self.output_dir / name}: expected a file of an evaluation or nothing, got a folder")
        if (self.output_dir / "cases").is_file():
            raise InputError(f"{self.output_dir / 'cases'}: expected a folder of pictures or nothing, got a file")
        if idist.get_rank() == 0:
            with writing_in(self.output_dir):
                self._clear().mkdir(parents=True)
                self._clear()
        self._cases.clear()
        self._slices.clear()

    def _check_names(self) -> None:
        """Check that no two columns or entries of the summary have the same name, of which one would be lost."""
        ece = self.metrics["ece"]
        names = ["case", "cases", "temperature", "missed", "spurious"]
        names += [name for name, _ in _calibration_measures(ece)]
        names += [name.format(suffix) for suffix in _by_suffix(ece) for name in POOLED.values()]
        for name in self.metrics:
            if name not in ("ece", "logits"):
                names += [name, *(f"{name}_{structure}" for structure in self.structures)]
        for name, count in Counter(names).items():
            if count > 1:
                raise InputError(
                    f"structures: expected names that give different columns, got {name} twice; rename one"
                )

    def _clear(self) -> Path:
        """Remove what an evaluation that did not finish has left."""
        unfinished = self.output_dir / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        return unfinished

    def _keep(self, engine: Engine) -> None:
        cases = [Path(case).name for case in self.batch_transform(engine.state.batch)]
        self._cases.extend(cases)
        _check_once(self._cases)
        for case, image, probabilities, label in zip(cases, *self.output_transform(engine.state.output), strict=True):
            if len(probabilities) != len(self.class_names):
                raise InputError(
                    f"class_names: expected {len(probabilities)} names, one per channel of the network, got "
                    f"{', '.join(self.class_names)}"
                )
            self._slices[case] = _largest_slice(image, probabilities, label)

    def _write(self, engine: Engine) -> None:
        # Every rank takes part in gathering and draws the cases that it has seen; the first writes the rest.
        cases = string_list_all_gather(self._cases) if idist.get_world_size() > 1 else list(self._cases)
        _check_once(cases)
        values = self._values()
        ece = self.metrics["ece"]
        bins = {"top_label": ece.case_bins, "classwise": ece.cece.case_bins}
        regions = {name: _pooled_bins(metric) for name, metric in {ece.region.name: ece, **ece.regions}.items()}
        magnitudes = self.metrics["logits"].magnitudes
        engine.state.metrics |= _means(ece)  # beside those of the handlers
        first = idist.get_rank() == 0
        unfinished = self.output_dir / UNFINISHED
        try:
            with writing_in(self.output_dir):
                if first:
                    (self._clear() / "cases").mkdir(parents=True)
                    write_cases(unfinished, cases, self._columns(values))
                    self._write_summary(unfinished, cases, values)
                    write_calibration(unfinished, self.class_names, cases, bins, regions)
                    write_logits(unfinished, self.class_names, magnitudes)
                idist.barrier()
                self._draw_cases(unfinished / "cases", cases, values["dsc"].nanmean(1))
                if first:
                    _draw_reliability(unfinished, self.class_names, regions)
                idist.barrier()
                if first:
                    replace_files(unfinished, self.output_dir)
        finally:
            if first:
                self._clear()
        logging.getLogger(__name__).info("Wrote the evaluation of %d cases to %s", len(cases), self.output_dir)

    def _values(self) -> dict[str, torch.Tensor]:
        """Values of each measure, `(cases,)` or `(cases, structures)`."""
        values: dict[str, torch.Tensor] = {}
        for name, metric in self.metrics.items():
            if name == "ece":
                values |= {measure: aggregate("none") for measure, aggregate in _calibration_measures(metric)}
            elif name != "logits":
                values[name] = metric.aggregate("none")
        return {name: of_cases.double().cpu() for name, of_cases in values.items()}

    def _columns(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same with a column for each structure, `(cases,)`."""
        columns = {}
        for name, of_cases in values.items():
            if of_cases.ndim == 1:
                columns[name] = of_cases
            else:
                columns.update(zip((f"{name}_{s}" for s in self.structures), of_cases.unbind(1), strict=True))
        return columns

    def _write_summary(self, folder: Path, cases: Sequence[str], values: Mapping[str, torch.Tensor]) -> None:
        means = {name: of_cases.nanmean(1) for name, of_cases in values.items() if of_cases.ndim == 2}
        structures = list(self.structures)
        temperature = self.metrics["ece"].temperature
        found_in_one = {
            name: [{"case": cases[i], "structure": structures[j]} for i, j in where.nonzero().tolist()]
            for name, where in (("missed", self.metrics["dsc"].missed), ("spurious", self.metrics["dsc"].spurious))
        }
        summary = {
            "cases": len(cases),
            **{name: _statistics(of_cases) for name, of_cases in {**means, **self._columns(values)}.items()},
            **_pooled_errors(self.metrics["ece"]),
            "temperature": 1.0 if temperature is None else float(temperature),
            **found_in_one,
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    def _draw_cases(self, folder: Path, cases: Sequence[str], dsc: torch.Tensor) -> None:
        from calib_components.figures import uncertainty_overlay  # training must not need matplotlib

        ordered = [i for i in dsc.argsort(stable=True).tolist() if not dsc[i].isnan()]
        # Two cases have no median, and one is the best alone: later names win.
        names = {len(ordered) // 2: "median", 0: "worst", len(ordered) - 1: "best"}
        for place, i in enumerate(ordered):
            if place in names and cases[i] in self._slices:
                drawn = self._slices[cases[i]]
                title = f"{printable(cases[i])}\n{self._scores(drawn, dsc[i].item())}"
                figure = uncertainty_overlay(**drawn, class_names=self.class_names, title=title)
                figure.savefig(folder / f"{names[place]}.png")

    def _scores(self, drawn: Mapping[str, np.ndarray], dsc: float) -> str:
        """DSC of a volume and of its slice that is drawn, and the structures that are missed in the slice."""
        classes = list(self.structures.values())
        prediction, label = (
            structure_masks(torch.from_numpy(drawn[name])[None], classes)[None] for name in ("prediction", "label")
        )
        of_slice = dice(prediction, label)[0].nanmean()
        scores = f"DSC {dsc:.3f} of the volume, {of_slice:.3f} of this slice"
        in_label, in_prediction = label[0].flatten(1).any(1), prediction[0].flatten(1).any(1)
        missed = [name for name, of in zip(self.structures, in_label & ~in_prediction, strict=True) if of]
        return f"{scores}\nmissed in this slice: {', '.join(missed)}" if missed else scores


def _by_suffix(ece: CalibrationMetric) -> dict[str, CalibrationMetric]:
    """The metric and those of further regions, by what the names of their measures end with."""
    return {"": ece, **{f"_{name}": metric for name, metric in ece.regions.items()}}


def _calibration_measures(ece: CalibrationMetric) -> Iterator[tuple[str, Callable[[str], torch.Tensor]]]:
    """Name of each measure in each region, and the method that gives its values."""
    for suffix, metric in _by_suffix(ece).items():
        for name, part in (("ece", metric), ("cece", metric.cece), ("nll", metric.nll), ("brier", metric.brier)):
            yield f"{name}{suffix}", part.aggregate
        if metric.region.has_closed_form:
            yield f"ece{suffix}_if_true", metric.aggregate_if_true
            yield f"cece{suffix}_if_true", metric.cece.aggregate_if_true
        if metric.stores_resampled:
            yield f"ece{suffix}_resampled", metric.aggregate_resampled


def _means(ece: CalibrationMetric) -> dict[str, float]:
    """Means over cases that are shown at the end of an evaluation, beside the ECE."""
    parts = {"cece": ece.cece, "nll": ece.nll, "brier": ece.brier}
    parts |= {f"ece_{name}": ece.regions[name] for name in ("all", "predicted") if name in ece.regions}
    return {name: part.aggregate().item() for name, part in parts.items()}


def _pooled_errors(ece: CalibrationMetric) -> dict[str, float | None]:
    """Errors of all voxels of each region, and their values if the probabilities were true."""
    errors = {}
    for suffix, metric in _by_suffix(ece).items():
        for kind, bins in _pooled_bins(metric).items():
            errors[POOLED[kind].format(suffix)] = number(bins.expected_error().item())
    return errors


def _pooled_bins(metric: CalibrationMetric) -> dict[str, CalibrationBins]:
    """Bins of a region, as `read_regions` returns them."""
    bins = {"top_label": metric.bins, "classwise": metric.cece.bins}
    if metric.region.has_closed_form:
        if_true = {"top_label_if_true": metric.bins_if_true, "classwise_if_true": metric.cece.bins_if_true}
        bins |= {kind: expected for kind, expected in if_true.items() if expected is not None}
    return bins


def _draw_reliability(
    folder: Path, class_names: Sequence[str], regions: Mapping[str, Mapping[str, CalibrationBins]]
) -> None:
    from calib_components.figures import reliability_diagram  # training must not need matplotlib

    drawn = {title: regions[name] for name, title in TITLES.items() if name in regions}
    bins = {title: kinds["top_label"] for title, kinds in drawn.items()}
    if_true = {title: kinds["top_label_if_true"] for title, kinds in drawn.items() if "top_label_if_true" in kinds}
    if drawn:
        reliability_diagram(bins, if_true=if_true, bands=True).savefig(folder / "reliability.png")
    if "all" in regions:
        figure = reliability_diagram(regions["all"]["classwise"], class_names, bands=True)
        figure.savefig(folder / "reliability_classes.png")


def _check_once(cases: Sequence[str]) -> None:
    for case, count in Counter(cases).items():
        if count > 1:
            raise InputError(f"{case}: expected each case once in an evaluation, got it {count} times")


def _largest_slice(image: torch.Tensor, probabilities: torch.Tensor, label: torch.Tensor) -> dict[str, np.ndarray]:
    """What `uncertainty_overlay` draws, from the slice along the last axis with the most foreground."""
    foreground = label[0] > 0 if (label > 0).any() else probabilities.argmax(0) > 0
    index = int(foreground.flatten(0, -2).sum(0).argmax())
    p = probabilities[..., index]
    values = {
        "image": image[0, ..., index],
        "label": label[0, ..., index].int(),
        "prediction": p.argmax(0).int(),
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
