"""Writing what an evaluation measured, whatever ran the network, to the files of one folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.utils import string_list_all_gather

from calib_components.errors import InputError
from calib_components.handlers.evaluation_files import (
    FILES,
    check_own,
    number,
    replace_files,
    write_calibration,
    write_cases,
    write_logits,
    write_risk_coverage,
    write_summary,
    write_thresholds,
    writing_in,
)
from calib_components.handlers.evaluation_pictures import DrawnSlice, draw_cases, draw_reliability
from calib_components.metrics import (
    CalibrationBins,
    CalibrationMetric,
    LogitMagnitudeMetric,
    RiskCoverageMetric,
    SmoothECEMetric,
    ThresholdMetric,
    VolumeMetric,
)
from calib_components.metrics.case_metric import CaseMetric

__all__ = ["check_evaluation", "check_once", "start_evaluation", "write_evaluation"]

UNFINISHED = ".unfinished-evaluation"  # folder inside the output folder
# Names of pooled errors in summary.json, by kind of bins.
POOLED = {
    "top_label": "ece{}_pooled",
    "classwise": "cece{}_pooled",
    "top_label_if_true": "ece{}_if_true_pooled",
    "classwise_if_true": "cece{}_if_true_pooled",
}
FIELDS = {
    "case",
    "cases",
    "patients",
    "unit",
    "volume_unit",
    "channels",
    "sigmoid",
    "temperature",
    "missed",
    "spurious",
}

# Metrics whose values are of a case, not of its structures.
OF_CASES = (CalibrationMetric, SmoothECEMetric, RiskCoverageMetric)

Values = Callable[[], torch.Tensor]


def start_evaluation(
    output_dir: str | os.PathLike, metrics: Mapping[str, CaseMetric], structures: Mapping[str, Sequence[int]]
) -> None:
    """Check that an evaluation can be written, before the work, and remove what one that did not finish has left.

    Args:
        output_dir: Folder of the files.
        metrics: See `write_evaluation`.
        structures: See `write_evaluation`.

    Raises:
        InputError: The folder cannot be written, or see `check_evaluation`.
    """
    check_evaluation(output_dir, metrics, structures)
    if idist.get_rank() == 0:
        with writing_in(Path(output_dir)):
            _clear(Path(output_dir)).mkdir(parents=True)
            _clear(Path(output_dir))


def check_evaluation(
    output_dir: str | os.PathLike, metrics: Mapping[str, CaseMetric], structures: Mapping[str, Sequence[int]]
) -> None:
    """Check what an evaluation will write, and leave the folder as it is. Arguments as in `start_evaluation`.

    Raises:
        InputError: Something of another kind, or a table of somebody else, is in the place of a file, or names of
            structures give a column twice, such as `a` and `a_if_true`.
    """
    _check_names(metrics, structures)
    for name in FILES:
        if (file := Path(output_dir) / name).is_dir():
            raise InputError(f"{file}: expected a file of an evaluation or nothing, got a folder")
    if (folder := Path(output_dir) / "cases").is_file():
        raise InputError(f"{folder}: expected a folder of pictures or nothing, got a file")
    check_own(Path(output_dir))


def write_evaluation(
    output_dir: str | os.PathLike,
    cases: Sequence[str],
    metrics: Mapping[str, CaseMetric],
    structures: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    slice_of: Callable[[str], DrawnSlice | None],
    patients: Sequence[str] | None = None,
    unit: str = "voxels",
    volume_unit: str = "voxels",
) -> None:
    """Write what an evaluation measured, per case and in summary; `EvaluationWriter` describes the files.

    They are written to a hidden folder, tables before figures, and replace those of an earlier evaluation once all are
    there; other files in the folder stay. In several processes, all call this, each with its own cases.

    Args:
        output_dir: Folder of the files.
        cases: Names of the cases, in the order in which the metrics got them.
        metrics: Metrics by name, with the values of these cases: `dsc`, a `DSCMetric`; `ece`, a `CalibrationMetric`,
            and the others if probabilities were measured.
        structures: Names of the structures and their class indices, in the order of the metrics' columns.
        class_names: Names of the classes, or of the channels of sigmoids.
        slice_of: Gives the slice of a case that may be drawn; classes in it are indices of `class_names`, or of the
            background and the channels of sigmoids. None for cases of other processes.
        patients: The patient of each case; None if the cases themselves are the patients.
        unit: Unit of distances: "mm" or "voxels".
        volume_unit: Unit of volumes: "ml" or "voxels".

    Raises:
        InputError: The files cannot be written, or a case comes twice.
    """
    output_dir = Path(output_dir)
    # Every rank takes part in gathering and draws the cases that it has seen; the first writes the rest.
    patients = list(cases if patients is None else patients)
    cases, patients = (_gather(names) for names in (cases, patients))
    check_once(cases)
    values = {name: of_cases().double().cpu() for name, of_cases in _all_measures(metrics)}
    by_name: dict[str, Any] = {
        "patients": dict(zip(cases, patients, strict=True)),
        "unit": unit,
        "volume_unit": volume_unit,
    }
    ece, logits, thresholds, selective = (metrics.get(n) for n in ("ece", "logits", "thresholds", "selective"))
    regions = {}
    if isinstance(ece, CalibrationMetric):
        bins = {"top_label": ece.case_bins, "classwise": ece.cece.case_bins}
        for name, metric in {ece.region.name: ece, **ece.regions}.items():
            regions[name] = _pooled_bins(metric)
            if name in ("all", "predicted"):
                regions[name]["top_label_per_case"] = metric.case_bins
        by_name |= {"channels": len(class_names), "sigmoid": ece.sigmoid or len(class_names) == 1}
    summary = _summary(cases, metrics, structures, values) | by_name
    magnitudes = logits.magnitudes if isinstance(logits, LogitMagnitudeMetric) else None
    counts = thresholds.counts if isinstance(thresholds, ThresholdMetric) else None
    risk = selective.risk if isinstance(selective, RiskCoverageMetric) else None
    first = idist.get_rank() == 0
    unfinished = output_dir / UNFINISHED
    try:
        with writing_in(output_dir):
            if first:
                (_clear(output_dir) / "cases").mkdir(parents=True)
                write_cases(unfinished, cases, _columns(values, structures))
                write_summary(unfinished, summary)
                if regions:
                    write_calibration(unfinished, class_names, cases, bins, regions)
                if magnitudes is not None:
                    write_logits(unfinished, class_names, magnitudes)
                if counts is not None:
                    write_thresholds(unfinished, list(structures), cases, counts)
                if risk is not None and isinstance(selective, RiskCoverageMetric):
                    write_risk_coverage(unfinished, cases, selective.coverage, risk)
            idist.barrier()
            drawn_names = ["background", *class_names] if summary.get("sigmoid") else class_names
            draw_cases(unfinished / "cases", cases, values["dsc"].nanmean(1), slice_of, drawn_names)
            if first and regions:
                draw_reliability(unfinished, class_names, regions)
            idist.barrier()
            if first:
                replace_files(unfinished, output_dir)
    finally:
        if first:
            _clear(output_dir)
    logging.getLogger(__name__).info("Wrote the evaluation of %d cases to %s", len(cases), output_dir)


def check_once(cases: Sequence[str]) -> None:
    """Raise `InputError` if a case comes twice."""
    for case, count in Counter(cases).items():
        if count > 1:
            raise InputError(f"{case}: expected each case once in an evaluation, got it {count} times")


def _gather(names: Sequence[str]) -> list[str]:
    encoded = [json.dumps(name) for name in names]  # in which no character separates names
    return [json.loads(text) for text in string_list_all_gather(encoded)]


def _clear(output_dir: Path) -> Path:
    """Remove what an evaluation that did not finish has left."""
    unfinished = output_dir / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    return unfinished


def _check_names(metrics: Mapping[str, CaseMetric], structures: Mapping[str, Sequence[int]]) -> None:
    """Check that no two columns or entries of the summary have the same name, of which one would be lost."""
    names = [*FIELDS, *(name for name, _ in _all_measures(metrics))]
    if isinstance(ece := metrics.get("ece"), CalibrationMetric):
        names += [name.format(suffix) for suffix in _by_suffix(ece) for name in POOLED.values()]
    of_structures = {name: metric for name, metric in metrics.items() if not isinstance(metric, OF_CASES)}
    names += [f"{name}_{structure}" for name, _ in _all_measures(of_structures) for structure in structures]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"structures: expected names that give different columns, got {name} twice; rename one")


def _all_measures(metrics: Mapping[str, CaseMetric]) -> Iterator[tuple[str, Values]]:
    """Name of each measure, and what gives its values, `(cases,)` or `(cases, structures)`."""
    for name, metric in metrics.items():
        if isinstance(metric, CalibrationMetric):
            yield from _calibration_measures(metric)
        elif isinstance(metric, SmoothECEMetric):
            yield from ((f"{name}{suffix}", _each(of_region)) for suffix, of_region in _by_suffix(metric).items())
        elif isinstance(metric, VolumeMetric):
            yield "true_volume", partial(getattr, metric, "true")
            yield "segmented_volume", partial(getattr, metric, "segmented")
            yield "expected_volume", partial(getattr, metric, "expected")
            yield "volume_low", partial(getattr, metric, "low")
            yield "volume_high", partial(getattr, metric, "high")
        elif isinstance(metric, RiskCoverageMetric):
            yield "aurc", _each(metric)
            yield "error_share_5", partial(getattr, metric, "error_share")
        elif not isinstance(metric, LogitMagnitudeMetric | ThresholdMetric):
            yield name, _each(metric)


def _each(metric: CaseMetric) -> Values:
    return partial(metric.aggregate, "none")


def _by_suffix(metric: Any) -> dict[str, Any]:
    """A metric and those of further regions, by what the names of their measures end with."""
    return {"": metric, **{f"_{name}": of_region for name, of_region in metric.regions.items()}}


def _calibration_measures(ece: CalibrationMetric) -> Iterator[tuple[str, Values]]:
    """Name of each measure in each region, and what gives its values."""
    for suffix, metric in _by_suffix(ece).items():
        for name, part in (("ece", metric), ("cece", metric.cece), ("nll", metric.nll), ("brier", metric.brier)):
            yield f"{name}{suffix}", _each(part)
        if metric.region.has_closed_form:
            yield f"ece{suffix}_if_true", partial(metric.aggregate_if_true, "none")
            yield f"cece{suffix}_if_true", partial(metric.cece.aggregate_if_true, "none")
        if metric.stores_resampled:
            yield f"ece{suffix}_resampled", partial(metric.aggregate_resampled, "none")


def _columns(values: Mapping[str, torch.Tensor], structures: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """The values with a column for each structure, `(cases,)`."""
    columns = {}
    for name, of_cases in values.items():
        if of_cases.ndim == 1:
            columns[name] = of_cases
        else:
            columns.update(zip((f"{name}_{s}" for s in structures), of_cases.unbind(1), strict=True))
    return columns


def _summary(
    cases: Sequence[str],
    metrics: Mapping[str, Any],
    structures: Mapping[str, Sequence[int]],
    values: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    means = {name: of_cases.nanmean(1) for name, of_cases in values.items() if of_cases.ndim == 2}
    ece, dsc, names = metrics.get("ece"), metrics["dsc"], list(structures)
    pooled, temperature = ({}, None) if ece is None else (_pooled_errors(ece), ece.temperature)
    found_in_one = {
        name: [{"case": cases[i], "structure": names[j]} for i, j in where.nonzero().tolist()]
        for name, where in (("missed", dsc.missed), ("spurious", dsc.spurious))
    }
    return {
        "cases": len(cases),
        **{name: _statistics(of_cases) for name, of_cases in {**means, **_columns(values, structures)}.items()},
        **pooled,
        "temperature": 1.0 if temperature is None else float(temperature),
        **found_in_one,
    }


def _pooled_errors(ece: CalibrationMetric) -> dict[str, float | None]:
    """Errors of all voxels of each region, and their values if the probabilities were true."""
    errors = {}
    for suffix, metric in _by_suffix(ece).items():
        for kind, bins in _pooled_bins(metric).items():
            errors[POOLED[kind].format(suffix)] = number(bins.expected_error().item())
    return errors


def _pooled_bins(metric: CalibrationMetric) -> dict[str, CalibrationBins]:
    """Bins of all cases of a region together, by the kinds that `read_regions` returns."""
    bins = {"top_label": metric.bins, "classwise": metric.cece.bins}
    if metric.region.has_closed_form:
        if_true = {"top_label_if_true": metric.bins_if_true, "classwise_if_true": metric.cece.bins_if_true}
        bins |= {kind: expected for kind, expected in if_true.items() if expected is not None}
    return bins


def _statistics(values: torch.Tensor) -> dict[str, float | int | None]:
    """Mean and standard deviation over the cases where the measure is defined, and how many those are."""
    defined = values[~values.isnan()]
    return {
        "mean": defined.mean().item() if len(defined) > 0 else None,
        "std": defined.std().item() if len(defined) > 1 else None,
        "n": len(defined),
    }
