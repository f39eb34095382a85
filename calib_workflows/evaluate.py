"""An evaluation: each case is measured once, and what was measured of all becomes the files."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
import torch
from monai.engines import Evaluator

from calib_components.errors import InputError, printable
from calib_components.metrics import CalibrationBins
from calib_components.metrics.case import MEASURES, Case, measure_case
from calib_components.metrics.objects import find_objects, largest_miss, show_object
from calib_components.metrics.raters import RatedCase
from calib_components.posthoc import describe_calibration, find_reference
from calib_workflows.cases import (
    Cases,
    LabelledCase,
    NetworkCases,
    check_classes,
    count_classes,
)
from calib_workflows.data.facts import Facts
from calib_workflows.data.overlap import content_of
from calib_workflows.data.transforms import check_indices
from calib_workflows.evaluation_files import (
    FILES,
    MISSED,
    OBJECT_COLUMNS,
    PER_CASE,
    REGIONS,
    Evaluation,
    draw_reliability,
)
from calib_workflows.folders import OutputFolder, replacing
from calib_workflows.inference.maps import normalized_entropy
from calib_workflows.pages.slices import draw_prediction, draw_raters
from calib_workflows.parts import measure_raters, part_tables, rated_slice
from calib_workflows.weights import WeightsCheckpointLoader, add_tests, save

log = logging.getLogger(__name__)
SLICES = ".slices-"  # start of the names of folders of slices that pictures are drawn of
SHOWN = ("dsc", "hd95", "ece_all", "ece_predicted")  # means that the log shows


@dataclass(frozen=True)
class Objects:
    """Structures whose objects are counted, and when a candidate is right, see `find_objects`."""

    structures: Sequence[str] = ()
    threshold: float = 0.5
    overlap: float = 0.0


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
    check_indices(item["label"], len(item["pred"]), f"{item['case']}: label")
    if not item["pred"].isfinite().all():
        raise InputError(
            f"{item['case']}: logits of the network are NaN or infinite. Try --amp false."
        )
    if item["pred"].device != item["label"].device:
        return {**item, "pred": item["pred"].to(item["label"].device)}
    return item


def evaluate(
    cases: Cases,
    output_dir: Path,
    structures: Sequence[str],
    class_names: Sequence[str],
    about: Mapping[str, Any],
    objects: Objects | None = None,
    files: Sequence[str] = FILES,
    claim: Callable[[Sequence[str]], object] = lambda _: None,
) -> dict[str, Any] | None:
    """Measure cases and write the files of an evaluation, see `Evaluation`.

    The files appear together and replace those of an earlier evaluation; other files in the folder
    stay. In several processes, the first writes.

    Args:
        cases: The cases.
        output_dir: Folder of the files.
        structures: Names of the structures.
        class_names: Names of the classes, or of the channels of sigmoids.
        about: Further entries of `summary.json`: the `source`, "bundle" or saved "predictions", the
            `calibration` of the probabilities, and the `arguments` of the command.
        objects: Objects to count.
        files: Names of the files that are replaced or removed.
        claim: Is called with them before that, see `calib_workflows.folders.replacing`.

    Returns:
        The content of `summary.json`; None in another process than the first.
    """
    if idist.get_rank() == 0:
        for left in output_dir.glob(f"{SLICES}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    idist.barrier()
    with tempfile.TemporaryDirectory(prefix=SLICES, dir=output_dir) as folder:
        measure = functools.partial(
            measure_labelled, objects=objects or Objects(), slices=Path(folder)
        )
        records = cases.map(measure)
        if idist.get_rank() > 0:
            idist.barrier()  # until the first has read the slices
            return None
        for name, count in Counter(record["case"] for record in records).items():
            if count > 1:
                raise InputError(
                    f"{count} cases are called {name}. Their results would replace each other."
                )
        if "classes" in records[0]:
            check_classes({record["case"]: record["classes"] for record in records})
        evaluation = join_records(records, structures, class_names)
        evaluation.summary.update(about)
        with replacing(output_dir, files, claim) as unfinished:
            (unfinished / "cases").mkdir()
            evaluation.write(unfinished)
            _draw(unfinished, evaluation, records, structures)
        idist.barrier()
    log.info("Wrote the evaluation of %d cases to %s", len(records), output_dir)
    return evaluation.summary


def measure_labelled(case: LabelledCase, objects: Objects, slices: Path) -> dict[str, Any]:
    """Measure a case.

    Returns:
        The record: the names of the `case` and its `patient`, the `values` of columns, the
            structures that only the ground truth (`missed`) or only the prediction (`spurious`)
            has, the `content_of` the label and of what is `predicted`, and whether voxels have a
            size; of probabilities also `bins`; of several raters or networks, and of objects, their
            rows; and the `slices` to draw, a file in a folder.
    """
    scan = case.scan
    assert scan.prediction is not None
    predicted, true = (masks[0].flatten(1).any(1) for masks in scan.masks)
    record: dict[str, Any] = {
        "case": case.name,
        "patient": case.patient,
        "values": measure_case(scan),
        "missed": [*itertools.compress(scan.structures, true & ~predicted)],
        "spurious": [*itertools.compress(scan.structures, predicted & ~true)],
        "content": content_of(scan.label),
        "predicted": content_of(scan.prediction[None]),
        "has_spacing": scan.spacing is not None,
        "is_sigmoid": scan.sigmoid,
        "slices": str(slices / f"{uuid.uuid4().hex}.pt"),
    }
    drawn = {"case": slice_maps(scan, case)}
    if scan.probabilities is not None:
        measured = scan.region_measures.items()
        record["bins"] = {region: each.bins for region, each in measured if each.bins}
        if not scan.sigmoid:
            record["classes"] = count_classes(scan.label[0].long(), scan.probabilities)
    record |= _count_objects(case, objects, drawn)
    if isinstance(scan, RatedCase):
        record["raters"], everyone = measure_raters(scan)
        record["values"] |= everyone
        record["disputed"], drawn["raters"] = rated_slice(scan, case.image)
    if members := case.members():
        record["members"] = {name: measure_case(each) for name, each in members.items()}
    save(drawn, Path(record["slices"]))
    return record


def _count_objects(case: LabelledCase, objects: Objects, drawn: dict[str, Any]) -> dict[str, Any]:
    """Return the objects of a case, and the largest missed one, which is drawn."""
    scan, options = case.scan, (objects.threshold, objects.overlap)
    found = {name: find_objects(scan, name, *options) for name in objects.structures}
    rows = [(name, *each) for name, of_structure in found.items() for each in of_structure]
    largest = largest_miss(found)
    if largest is None:
        return {"objects": rows}
    index, missed = show_object(scan, *largest)
    drawn["miss"] = {**slice_maps(scan, case, index), "missed": torch.from_numpy(missed)}
    return {"objects": rows, "largest_miss": largest[1]}


def slice_maps(case: Case, labelled: LabelledCase, index: int | None = None) -> dict[str, Any]:
    """Return maps of a slice; by default, of that with the most wrong voxels, or foreground."""
    assert case.prediction is not None
    label, image = labelled.label_map, labelled.image
    if index is None:
        wrong = (label != case.prediction) & case.counted
        shown = wrong if wrong.any() else label > 0
        index = int(shown.flatten(0, -2).sum(0).argmax())
    # These are copies: of a view, torch.save writes the whole volume
    return {
        "image": None if image is None else image[..., index].clone(),
        "label": label[..., index].to(torch.int32, copy=True),
        "prediction": case.prediction[..., index].to(torch.int32, copy=True),
        "uncertainty": _uncertainty(case, index),
    }


def _uncertainty(case: Case, index: int) -> torch.Tensor | None:
    """Return the entropy in a slice `(*S)`; of sigmoids the largest one of a channel."""
    if case.probabilities is None:
        return None
    p = case.probabilities[..., index]
    if case.sigmoid:
        return normalized_entropy(torch.stack([1 - p, p]))[0].amax(0)
    return normalized_entropy(p)[0]


def _draw(
    folder: Path,
    evaluation: Evaluation,
    records: Sequence[Mapping[str, Any]],
    structures: Sequence[str],
) -> None:
    """Draw the pictures of an evaluation."""
    if evaluation.regions:
        draw_reliability(folder, evaluation)
    class_names = [*evaluation.class_names]
    if evaluation.summary.get("sigmoid"):
        class_names = ["background", *class_names]
    dsc = evaluation.cases[[f"dsc_{name}" for name in structures]].mean(axis=1)

    def draw(name: str, record: Mapping[str, Any], kind: str, text: str) -> None:
        title = f"{printable(record['case'])}\n{text}"
        maps = _load_slice(record, kind)
        picture = draw_prediction(**maps, class_names=class_names, title=title)
        (folder / "cases" / f"{name}.png").write_bytes(picture)

    for name, number in _places(dsc).items():
        draw(name, records[number], "case", f"DSC {dsc[number]:.3f} of the volume")
    missed = [record for record in records if "largest_miss" in record]
    missed.sort(key=lambda record: -record["largest_miss"].volume)
    for number, record in enumerate(missed[:MISSED], 1):
        miss, unit = record["largest_miss"], evaluation.summary["volume_unit"]
        text = f"missed: {miss.volume:.3g} {unit} at voxel {miss.place}"
        draw(f"missed{number}", record, "miss", text)
    rated = [record for record in records if "disputed" in record]
    if rated:
        most = max(rated, key=lambda record: record["disputed"])
        picture = draw_raters(**_load_slice(most, "raters"), title=printable(most["case"]))
        (folder / "cases" / "raters.png").write_bytes(picture)


def _places(dsc: pd.Series) -> dict[str, int]:
    """Return the numbers of the cases with the best, median and worst DSC. Of two cases there is no
    median, and one is the best alone.
    """
    ordered = dsc.dropna().sort_values(kind="stable").index
    if not len(ordered):
        return {}
    # Where two have the same place, the later one counts
    by_place = {len(ordered) // 2: "median", 0: "worst", len(ordered) - 1: "best"}
    return {name: ordered[place] for place, name in by_place.items()}


def _load_slice(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return torch.load(record["slices"], "cpu", weights_only=True)[kind]


def _objects(records: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return the table of the objects of all cases, if there are any."""
    rows = [
        (record["case"], record["patient"], *each)
        for record in records
        for each in record["objects"]
    ]
    return {"objects": pd.DataFrame(rows, columns=OBJECT_COLUMNS, dtype=object)} if rows else {}


def join_records(
    records: Sequence[Mapping[str, Any]], structures: Sequence[str], class_names: Sequence[str]
) -> Evaluation:
    """Put the records of all cases together."""
    table = pd.DataFrame([record["values"] for record in records])
    summary = {**_statistics(table, structures), **_lists(records)}
    # Names may hold any bytes, pandas' strings may not
    table.insert(0, "case", pd.Series([record["case"] for record in records], dtype=object))
    has_spacing = all(record["has_spacing"] for record in records)
    unit, volume_unit = ("mm", "ml") if has_spacing else ("voxels", "voxels")
    summary |= {"unit": unit, "volume_unit": volume_unit}
    parts = part_tables(records, table, structures) | _objects(records)
    summary["rows"] = {name: len(part) for name, part in parts.items()}
    first = records[0]
    if "bins" not in first:
        return Evaluation(table, summary, class_names, structures, parts=parts)
    regions = _bins_of_all([record["bins"] for record in records])
    summary |= {"channels": len(class_names), "sigmoid": first["is_sigmoid"], **_errors(regions)}
    return Evaluation(table, summary, class_names, structures, regions, parts)


def _lists(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the summary says of single cases."""
    lists: dict[str, Any] = {"cases": len(records)}
    for kind in ("missed", "spurious"):
        lists[kind] = [
            {"case": record["case"], "structure": name}
            for record in records
            for name in record[kind]
        ]
    for name, key in (("patients", "patient"), ("labels", "content"), ("predictions", "predicted")):
        lists[name] = {record["case"]: record[key] for record in records}
    return lists


def _bins_of_all(
    records: Sequence[Mapping[str, Mapping[str, CalibrationBins]]],
) -> dict[str, dict[str, CalibrationBins]]:
    """Return bins pooled over cases by region and kind, with those of each case where they are
    kept.
    """
    regions = {}
    for region, kinds in records[0].items():
        joined = {
            kind: CalibrationBins.joined([record[region][kind] for record in records])
            for kind in kinds
        }
        regions[region] = {kind: bins.pooled() for kind, bins in joined.items()}
        if region in REGIONS:
            regions[region][PER_CASE] = joined["top_label"]
    return regions


def _statistics(table: pd.DataFrame, structures: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and number of cases of each column and each mean over
    structures.
    """
    means: dict[Hashable, pd.Series] = {}
    for measure in MEASURES:
        names = [measure.column(name) for name in structures]
        if not measure.regions and names[0] in table:
            means[measure.name] = table[names].mean(axis=1)
    return {
        str(name): {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "n": int(values.count()),
        }
        for name, values in (*means.items(), *table.items())
    }


def _errors(regions: Mapping[str, Mapping[str, CalibrationBins]]) -> dict[str, float]:
    """Return the errors of all voxels of all cases, by the names of their columns and `_pooled`."""
    return {
        f"{measure.column(region)}_pooled": regions[region][measure.bins].expected_error().item()
        for measure in MEASURES
        for region in measure.regions
        if measure.bins in regions.get(region, ())
    }


@dataclass(eq=False)
class NetworkEvaluation:
    """The evaluation of a network, as `evaluate.yaml` runs it.

    Distances are in mm and volumes in ml if labels have metadata, otherwise in voxels.

    Args:
        evaluator: Runs the network over the cases, see `NetworkCases`.
        network: The network.
        load_path: Its weights.
        structures: Names of the structures and their class indices.
        class_names: Names of the classes, in the order of the network's channels.
        output_dir: Folder of the files.
        stamp: What tells this evaluation from others, see `calib_workflows.inference.run_stamp`.
        facts: Facts of the data, which are compared with those of the weights; None not to compare
            them.
        overwrite: Whether to replace an evaluation of other weights, options or cases.
        split: Split that the cases are from.
        test_set: Name under which what the cases showed is written into the weights, for the page
            of new scans, see `calib_components.quality.Reference`; None to leave the weights.

    Raises:
        InputError: From `run`: the cases of a `test_set` are not of the testing split, the weights
            are not suitable, another run writes to the folder, or it holds something else, see
            `calib_workflows.folders.OutputFolder`; or it cannot be written.
    """

    evaluator: Evaluator
    network: torch.nn.Module
    load_path: str | os.PathLike
    structures: Mapping[str, Sequence[int]]
    class_names: Sequence[str]
    output_dir: str | os.PathLike
    stamp: Mapping[str, Any]
    facts: Facts | None = None
    overwrite: bool = False
    split: str = "testing"
    test_set: str | None = None

    def run(self) -> None:
        """Evaluate the network."""
        folder = Path(self.output_dir)
        with ExitStack() as stack:
            output = OutputFolder(folder, self.stamp, overwrite=self.overwrite)
            if idist.get_rank() == 0:
                output.check(FILES)
                stack.enter_context(output.claim())
            idist.barrier()
            WeightsCheckpointLoader(self.load_path, self.network, self.facts)(self.evaluator)
            self._check_test_set()
            done = describe_calibration(self.network)
            cases = NetworkCases(self.evaluator, self.structures)
            about = {"source": "bundle", "calibration": done}
            names = ([*self.structures], self.class_names)
            summary = evaluate(cases, folder, *names, about, claim=output.claim)
        if summary is None:
            return
        state = "Calibrated ({calibrator}, region {region})" if done else "Not calibrated"
        shown = ", ".join(f"{name} {summary[name]['mean']:.4f}" for name in SHOWN)
        log.info("%s: %s (HD95 in %s)", state.format(**done or {}), shown, summary["unit"])
        if self.test_set is not None:
            file = Path(self.load_path)
            add_tests(file, str(self.test_set), Evaluation.read(folder).reference())
            log.info("Wrote what the %d cases showed into %s", summary["cases"], file)
        if shutil.which("calib-components"):  # packages of bundles do without
            log.info("Next: make a page of it, with calib-components report %s.", folder)

    def _check_test_set(self) -> None:
        """Refuse cases that chose the network, and weights without scans to compare them with."""
        if self.test_set is None:
            return
        if self.split != "testing":
            raise InputError(
                f"test_set: the {self.split} cases chose the network or its calibrator. Give those"
                " of the testing split."
            )
        if not find_reference(self.network).numel():
            raise InputError(
                f"{self.load_path}: these weights have no validation scans to compare the test set"
                " with. Run configs/calibrate.yaml."
            )
