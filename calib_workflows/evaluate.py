"""An evaluation: each case is measured and recorded, and the records of all cases become the files.

So several processes, GPUs or jobs can measure different cases, an evaluation that was interrupted
continues with the cases that have no record, and the probabilities may be those of a bundle or
anybody's.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils import convert_to_tensor, ensure_tuple
from torch.serialization import safe_globals

from calib_components import __version__
from calib_components.errors import InputError, make_folder, reading
from calib_components.metrics import CalibrationBins, ThresholdCounts
from calib_components.metrics.measures import MEASURES, Case, measure_case
from calib_components.posthoc import describe_calibration
from calib_workflows.data.overlap import content_of
from calib_workflows.data.transforms import check_labels
from calib_workflows.evaluation_files import (
    FILES,
    OBJECT_COLUMNS,
    Evaluation,
    draw_cases,
    draw_missed,
    draw_reliability,
    replacing,
)
from calib_workflows.folders import OutputFolder
from calib_workflows.inference.images import shard_of
from calib_workflows.inference.inferers import agreement_of
from calib_workflows.inference.maps import normalized_entropy
from calib_workflows.options import arguments_of_run
from calib_workflows.pages.table import CUBIC_MM
from calib_workflows.parts import draw_raters, part_tables
from calib_workflows.weights import save

log = logging.getLogger(__name__)
PER_CASE = ("all", "predicted")  # regions whose bins are kept of each case
# In the log and among the metrics of an engine, after a prefix
SHOWN = ("dsc", "hd95", "ece_all", "ece_predicted")
PREFIXES = {"training": "train", "validation": "val", "testing": "test"}


def check_case(item: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
    """Check a case and the network's output before they are measured; a bundle's postprocessing
    starts with it.

    Args:
        item: The name of the `case`, its `image` `(C, *S)` and `label` `(1, *S)`, and the logits
            `pred` `(N, *S)`.

    Returns:
        The item, with the logits on the device of the label: inferers keep those of large volumes
            in memory of the CPU.

    Raises:
        InputError: The image or the logits are not finite, or the label holds other values than the
            indices of the N classes.
    """
    if not item["image"].isfinite().all():
        raise InputError(f"{item['case']}: image has NaN or infinite values.")
    check_labels(item["label"], range(len(item["pred"])), f"{item['case']}: label")
    if not item["pred"].isfinite().all():
        raise InputError(
            f"{item['case']}: logits of the network are NaN or infinite. Try --amp false."
        )
    if item["pred"].device != item["label"].device:
        return {**item, "pred": item["pred"].to(item["label"].device)}
    return item


def record_case(
    case: Case,
    prediction: torch.Tensor,
    label: torch.Tensor,
    image: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: The case.
        prediction, label, image: Maps of classes and grey values to draw, `(H, W, D)`.

    Returns:
        The record: the `values` of columns, the structures that only the ground truth (`missed`) or
            only the prediction (`spurious`) has, the `slice` to draw, the `content_of` the label,
            whether its voxels have a size, and of probabilities also `bins`, `thresholds` and
            `risk`.
    """
    predicted, true = (masks[0].flatten(1).any(1) for masks in case.masks)
    record: dict[str, Any] = {
        "values": measure_case(case),
        "missed": [*itertools.compress(case.structures, true & ~predicted)],
        "spurious": [*itertools.compress(case.structures, predicted & ~true)],
        "slice": draw_slice(case, prediction, label, image),
        "content": content_of(case.label),
        "has_spacing": case.spacing is not None,
    }
    if case.probabilities is not None:
        record["bins"] = {
            region: {
                kind: each for kind, each in kinds.items() if isinstance(each, CalibrationBins)
            }
            for region, kinds in case.measured.items()
        }
        record["thresholds"] = case.structure_measures.thresholds
        record["risk"] = case.risk.coverage, case.risk.risk
        record["temperature"] = 1.0 if case.temperature is None else float(case.temperature)
        record["sigmoid"] = case.sigmoid or len(case.probabilities) == 1
    return record


def draw_slice(
    case: Case,
    prediction: torch.Tensor,
    label: torch.Tensor,
    image: torch.Tensor | None,
    index: int | None = None,
) -> dict[str, Any]:
    """Return maps of a slice; by default, of that with the most wrong voxels, or foreground."""
    if index is None:
        wrong = (label != prediction) & case.counted
        shown = wrong if wrong.any() else label > 0
        index = int(shown.flatten(0, -2).sum(0).argmax())
    maps = {"image": image, "label": label.int(), "prediction": prediction.int()}
    # Of a view, the whole volume would be saved
    drawn = {
        key: None if values is None else values[..., index].clone() for key, values in maps.items()
    }
    return {**drawn, "uncertainty": _uncertainty(case, index)}


def _uncertainty(case: Case, index: int) -> torch.Tensor | None:
    """Entropy in a slice; of sigmoids the largest one of a channel."""
    if case.probabilities is None:
        return None
    p = case.probabilities[..., index]
    if case.sigmoid:
        return normalized_entropy(torch.stack([1 - p, p]))[0].amax(0)
    return normalized_entropy(p)[0]


class EvaluationRecords:
    """What is measured of each case, in a file of its own in the output folder until the evaluation
    is written.

    A record counts if it has the stamp of this evaluation and is newer than the files of its case.

    Args:
        output_dir: Folder of the evaluation.
        cases: An item for each case, such as those of `read_datalist`: its name `case`, its
            `patient`, and its files.
        stamp: What tells this evaluation from others, see `calib_workflows.inference.run_stamp`.
        files: Keys of an item whose values are a file or several.
        overwrite: Whether to replace an evaluation of other weights, options or cases.

    Raises:
        InputError: Two cases have the same name.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        cases: Sequence[Mapping[str, Any]],
        stamp: Mapping[str, Any] | None = None,
        files: Sequence[str] = ("image", "label"),
        overwrite: bool = False,
    ) -> None:
        self.output_dir, self.folder = Path(output_dir), Path(output_dir) / ".records"
        self.cases = {Path(item["case"]).name: item for item in cases}
        self.files = files
        run = {**(stamp or {}), **{f"case {name}": self._sources(name) for name in self.cases}}
        self.output = OutputFolder(self.output_dir, run, overwrite=overwrite)
        for name, count in Counter(Path(item["case"]).name for item in cases).items():
            if count > 1:
                raise InputError(
                    f"{count} cases are called {name}. Their results would replace each other."
                )

    def to_measure(
        self, shard: str | None = None, skip_existing: bool = False
    ) -> list[Mapping[str, Any]]:
        """Return the items of the cases to measure.

        Args:
            shard: `"i/n"` for the `i`-th of `n` shares of the cases; None for all of them.
            skip_existing: Whether to leave out cases that have a record.

        Raises:
            InputError: `shard` has another form, or is a share without cases.
        """
        self.output = replace(self.output, shard=shard)
        if not (names := shard_of([*self.cases], shard)):
            raise InputError(
                f"shard {shard} has none of the {len(self.cases)} cases. Use fewer shards."
            )
        missing = [name for name in names if not (skip_existing and self.has(name))]
        if skip_existing:
            log.info("%d of %d cases have a record.", len(names) - len(missing), len(names))
        # Without a case, an engine does not run, and nothing would be written: the last case is
        # measured again.
        return [self.cases[name] for name in missing or names[-1:]]

    def has(self, case: str) -> bool:
        """Whether a case has a record of this evaluation."""
        if not (file := self._file(case)).is_file():
            return False
        written = file.stat().st_mtime_ns
        return all(os.stat(source).st_mtime_ns <= written for source in self._sources(case))

    def _sources(self, case: str) -> list[str]:
        values = (ensure_tuple(self.cases[case].get(key, ())) for key in self.files)
        return [os.path.realpath(file) for files in values for file in files]

    def write(self, case: str, record: Mapping[str, Any]) -> None:
        """Write the record of a case, see `record_case`."""
        make_folder(self.folder)
        save(record, self._file(case))

    def read(self, case: str) -> dict[str, Any]:
        """Read the record of a case."""
        with reading(self._file(case)) as file, safe_globals([CalibrationBins, ThresholdCounts]):
            return torch.load(file, "cpu", weights_only=True)

    @idist.one_rank_only(with_barrier=True)
    def claim(self, *further_files: str) -> OutputFolder:
        """Claim the output folder for this evaluation, see `OutputFolder`."""
        records = [f"{self.folder.name}/{self._file(case).name}" for case in self.cases]
        return self.output.claim([*FILES, *records, *further_files])

    def _file(self, case: str) -> Path:
        name = repr((__version__, self.output.run, case))  # may be long
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.pt"


def write_evaluation(
    records: EvaluationRecords,
    structures: Sequence[str],
    class_names: Sequence[str],
    check: Callable[[Sequence[Mapping[str, Any]]], None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Mapping[str, Any] | None:
    """Write the files of an evaluation if all cases have a record, and remove the records.

    The files appear together and replace those of an earlier evaluation; other files in the folder
    stay.

    Args:
        records: The records.
        structures: Names of the structures.
        class_names: Names of the classes, or of the channels of sigmoids.
        check: Is called with all records before the files are written.
        about: Further entries of `summary.json`: the `source`, "bundle" or saved "predictions", the
            `arguments` of the evaluation, and the `calibration` of the probabilities.

    Returns:
        The content of `summary.json`; None if another process has to measure cases, or has written
        the files.
    """
    cases = [*records.cases]
    # Of two processes that finish at the same time, one writes
    with records.output.locked():
        if missing := [case for case in cases if not records.has(case)]:
            message = (
                "%d of %d cases have no record: the process that measures the last one writes the"
                " evaluation."
            )
            log.info(message, len(missing), len(cases))
            return None
        measured = {case: records.read(case) for case in cases}
        if check is not None:
            check([*measured.values()])
        patients = {case: item["patient"] for case, item in records.cases.items()}
        evaluation = join_records(measured, patients, structures, class_names)
        evaluation.summary.update(about or {})
        with replacing(records.output_dir) as folder:
            evaluation.write(folder)
            _draw(folder, evaluation, measured, structures)
        shutil.rmtree(records.folder, ignore_errors=True)
    log.info("Wrote the evaluation of %d cases to %s", len(cases), records.output_dir)
    return evaluation.summary


def _draw(
    folder: Path,
    evaluation: Evaluation,
    records: Mapping[str, Mapping[str, Any]],
    structures: Sequence[str],
) -> None:
    """Draw the pictures of an evaluation."""
    if evaluation.regions:
        draw_reliability(folder, evaluation)
    columns = [f"dsc_{name}" for name in structures]
    dsc = evaluation.cases.set_index("case")[columns].mean(axis=1)
    names = [*evaluation.class_names]
    if evaluation.summary.get("sigmoid"):
        names = ["background", *names]
    draw_cases(folder, dsc, [record["slice"] for record in records.values()], names)
    rated = {case: record["rated"] for case, record in records.items() if "rated" in record}
    if rated:
        draw_raters(folder / "cases" / "raters.png", rated)
    missed = {case: record["miss"] for case, record in records.items() if "miss" in record}
    draw_missed(folder, missed, names, evaluation.summary["volume_unit"])


def _objects(
    records: Mapping[str, Mapping[str, Any]], patients: Mapping[str, str]
) -> dict[str, pd.DataFrame]:
    """Return the table of the objects of all cases, if there are any."""
    rows = [
        (case, patients[case], *each)
        for case, record in records.items()
        for each in record.get("objects", ())
    ]
    return {"objects": pd.DataFrame(rows, columns=OBJECT_COLUMNS, dtype=object)} if rows else {}


def join_records(
    records: Mapping[str, Mapping[str, Any]],
    patients: Mapping[str, str],
    structures: Sequence[str],
    class_names: Sequence[str],
) -> Evaluation:
    """Put the records of all cases, by their names, together."""
    table = pd.DataFrame([record["values"] for record in records.values()])
    summary = {**_statistics(table, structures), **_lists(records), "patients": dict(patients)}
    # Names may hold any bytes, pandas' strings may not
    table.insert(0, "case", pd.Series([*records], dtype=object))
    first = next(iter(records.values()))
    summary["temperature"] = first.get("temperature", 1.0)
    has_spacing = all(record["has_spacing"] for record in records.values())
    unit, volume_unit = ("mm", "ml") if has_spacing else ("voxels", "voxels")
    summary |= {"unit": unit, "volume_unit": volume_unit}
    parts = part_tables([*records.values()], table, structures)
    parts |= _objects(records, patients)
    summary["rows"] = {name: len(part) for name, part in parts.items()}
    if "bins" not in first:
        return Evaluation(table, summary, class_names, parts=parts)
    bins = _joined_bins([record["bins"] for record in records.values()])
    regions = {region: _pooled(region, kinds) for region, kinds in bins.items()}
    summary |= {"channels": len(class_names), "sigmoid": first["sigmoid"], **_errors(regions)}
    return Evaluation(
        table,
        summary,
        class_names,
        regions=regions,
        structures=structures,
        thresholds=ThresholdCounts.joined([record["thresholds"] for record in records.values()]),
        coverage=first["risk"][0].numpy(),
        risk=torch.cat([record["risk"][1] for record in records.values()]).numpy(),
        parts=parts,
    )


def _lists(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the summary says of single cases."""
    lists: dict[str, Any] = {"cases": len(records)}
    for kind in ("missed", "spurious"):
        lists[kind] = [
            {"case": case, "structure": name}
            for case, record in records.items()
            for name in record[kind]
        ]
    return {**lists, "labels": {case: record["content"] for case, record in records.items()}}


def _joined_bins(
    records: Sequence[Mapping[str, Mapping[str, CalibrationBins]]],
) -> dict[str, dict[str, CalibrationBins]]:
    """Bins of all cases by region and kind."""
    return {
        region: {
            kind: CalibrationBins.joined([record[region][kind] for record in records])
            for kind in kinds
        }
        for region, kinds in records[0].items()
    }


def _statistics(table: pd.DataFrame, structures: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and number of cases of each column and each mean over structures."""
    means: dict[Hashable, pd.Series] = {}
    for measure in MEASURES:
        names = [measure.column(name) for name in structures]
        if measure.scope == "structure" and names[0] in table:
            means[measure.name] = table[names].mean(axis=1)
    return {
        str(name): {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "n": int(values.count()),
        }
        for name, values in (*means.items(), *table.items())
    }


def _pooled(region: str, kinds: Mapping[str, CalibrationBins]) -> dict[str, CalibrationBins]:
    """Bins of a region pooled over cases, with those of each case where they are kept."""
    pooled = {kind: bins.pooled() for kind, bins in kinds.items()}
    if region in PER_CASE:
        pooled["top_label_per_case"] = kinds["top_label"]
    return pooled


def _errors(regions: Mapping[str, Mapping[str, CalibrationBins]]) -> dict[str, float]:
    """Errors of all voxels of all cases, by the names of their columns and `_pooled`."""
    return {
        f"{measure.column(region)}_pooled": kinds[measure.bins].expected_error().item()
        for measure in MEASURES
        for region, kinds in regions.items()
        if measure.bins in kinds
    }


def _voxel_size(label: torch.Tensor) -> dict[str, Any]:
    """Return the spacing in mm, and the volume in ml, of the voxels of a label with metadata."""
    if not isinstance(label, MetaTensor):
        return {}
    volume = float(label.affine[:3, :3].det().abs()) / CUBIC_MM
    return {"spacing": label.pixdim.tolist(), "voxel_volume": volume}


@dataclass(eq=False)
class EvaluationWriter:
    """Measure each case that an engine has run on, and write the files of the evaluation when all
    cases are measured.

    The files are those of `Evaluation`. In several processes, each measures its cases, and the
    first writes. Some means go to the log and, such as `test_dsc`, to `engine.state.metrics`.
    Distances are in mm and volumes in ml if labels have metadata, otherwise in voxels.

    Args:
        records: The records of the cases.
        structures: Names of the structures and their class indices.
        class_names: Names of the classes, in the order of the network's channels.
        batch_transform: Gets the names of a batch's cases, or their folders, from
            `engine.state.batch`.
        output_transform: Gets their images, probabilities and labels, lists of channel-first
            volumes, from `engine.state.output`.
        temperature: By which the logits were divided, a number or a tensor of one element; None is
            1.
        network: The network, whose weights say how it was calibrated.
        split: The split that the cases are from.

    Raises:
        InputError: When the engine starts, if another run writes to the folder, or it holds
            something else, see `calib_workflows.folders.OutputFolder`; during a run, if the folder
            cannot be written, or a case has another number of channels than there are names.
    """

    records: EvaluationRecords
    structures: Mapping[str, Sequence[int]]
    class_names: Sequence[str]
    batch_transform: Callable[[Any], Sequence[str]]
    output_transform: Callable[[Any], Sequence[Sequence[torch.Tensor]]]
    temperature: float | torch.Tensor | None = None
    network: torch.nn.Module | None = None
    split: str = "testing"

    def attach(self, engine: Engine) -> None:
        """Measure after each iteration of the evaluator, and write after its epoch."""
        engine.add_event_handler(Events.STARTED, lambda: self.records.claim())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda: self.records.output.release())

    def _measure(self, engine: Engine) -> None:
        outputs = self.output_transform(engine.state.output)
        for name, *volumes in zip(self.batch_transform(engine.state.batch), *outputs, strict=True):
            image, probabilities, label = (
                convert_to_tensor(volume, track_meta=False) for volume in volumes
            )
            # What argmax(0) gives, in a fraction of its time
            prediction = probabilities.max(0).indices
            temperature = None if self.temperature is None else float(self.temperature)
            case = Case(
                label,
                self.structures,
                probabilities,
                prediction,
                temperature=temperature,
                pairwise_dsc=agreement_of(volumes[1], self.structures),
                **_voxel_size(volumes[2]),
            )
            self.records.write(Path(name).name, record_case(case, prediction, label[0], image[0]))

    def _write(self, engine: Engine) -> None:
        idist.barrier()
        if idist.get_rank() > 0:
            return
        done = self.network and describe_calibration(self.network)
        about = {"source": "bundle", "arguments": arguments_of_run(), "calibration": done}
        summary = write_evaluation(self.records, [*self.structures], self.class_names, about=about)
        if summary is None:
            return
        prefix = PREFIXES[self.split]
        means = {f"{prefix}_{name}": summary[name]["mean"] for name in SHOWN}
        engine.state.metrics |= means
        state = "Calibrated ({calibrator}, region {region})" if done else "Not calibrated"
        state = state.format(**done or {})
        shown = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        log.info("%s: %s (HD95 in %s)", state, shown, summary["unit"])
        folder = str(self.records.output_dir)
        command = ["calib-components", "report", folder, "--out", str(Path(folder, "report"))]
        if shutil.which(command[0]):  # packages of bundles do without
            log.info("Next: make a page of it.\n%s", shlex.join(command))
