"""The files of an evaluation, written and read, and its pictures."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calib_components.errors import InputError, printable, reading
from calib_components.metrics import CalibrationBins
from calib_components.metrics.case import MEASURES
from calib_components.metrics.objects import FoundObject
from calib_components.quality import Reference

MISSED = 3  # objects that are drawn
PICTURES = (
    "reliability.png",
    "reliability_classes.png",
    "cases/best.png",
    "cases/median.png",
    "cases/worst.png",
    "cases/raters.png",
    *(f"cases/missed{number}.png" for number in range(1, MISSED + 1)),
)
# Tables that evaluations of several raters or networks, or of objects, have besides
PARTS = ("raters", "members", "objects")
TABLES = (
    "cases.csv",
    *(f"{part}.csv" for part in PARTS),
    "calibration.json",
)
NAMES = ("rater", "member", "structure", "case", "patient", "kind", "place")  # columns of tables
PER_CASE = "top_label_per_case"  # kind of bins
REGIONS = ("all", "predicted")  # that have bins of each case
# What a summary has besides numbers
KINDS = {"patients": dict, "labels": dict, "missed": list, "spurious": list, "rows": dict}
KINDS |= {"unit": str, "volume_unit": str}
ROUNDING = 1e-3  # relative, of what a spreadsheet may have rounded
CHANGED = "Values were changed, or files are of two evaluations. Evaluate the cases again."
OBJECT_COLUMNS = ["case", "patient", "structure", *FoundObject._fields]
SUMMARY = "summary.json"
REFERENCE = ("expected_dsc", "dsc", "expected_volume", "true_volume")  # columns of a `Reference`
# The summary comes last: where it is, the rest belongs to it
FILES = (*TABLES, *PICTURES, SUMMARY)
# JSON files have it; version 1 is that of releases before 0.5, whose tables lack columns
SCHEMA_VERSION = 2
Bins = Mapping[str, CalibrationBins]  # by kind
# The reliability diagram shows these regions; the last is that of the paper
TITLES = {
    "all": "all voxels",
    "predicted": "predicted foreground",
    "foreground": "ground-truth foreground",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the files of an evaluation hold. One of label maps has the first two.

    There are also pictures: `reliability.png`, of the predicted class, over all voxels, the
    predicted and the ground-truth foreground; `reliability_classes.png`, of each class, over all
    voxels; and `cases/best.png`, `median.png` and `worst.png`: of the cases ordered by DSC, the
    slice with the most wrong voxels and its uncertainty. One case has only the best, two have no
    median.

    Attributes:
        cases: `cases.csv`: one row a case, its name `case` and the measures of
            `calib_components.metrics.case`, NaN where undefined. `ece` and `cece` are those of
            the ground-truth foreground, with `ece_if_true` and `cece_if_true`, the errors if the
            probabilities were true; `ece_REGION` and so on those of further regions.
        summary: `summary.json`: mean, standard deviation over cases and number of cases of every
            measure, the pooled calibration errors, the structures that only the ground truth has
            (`missed`) or only the prediction (`spurious`), the patient of each case, a hash of its
            label (`labels`) and of what is predicted (`predictions`), the units of distances
            (`unit`) and volumes (`volume_unit`), whether a "bundle" or saved "predictions" are its
            `source`, for these the `arguments` of the command, the `calibration` of the
            probabilities (name of the `calibrator`, `region` and number of `patients` of its fit),
            the number of `rows` of each of the `parts`, the number of `channels`, and whether each
            has a `sigmoid` of its own.
        class_names: Names of the N classes, or of the channels of sigmoids.
        structures: Names of the structures.
        regions: `calibration.json`: bins pooled over cases, by kind, of each region: `top_label`
            and `classwise`; for the foreground `top_label_if_true` and `classwise_if_true`, the
            bins if the probabilities were true; and for all voxels and the predicted foreground
            `top_label_per_case`, those of each case. Empty for label maps.
        parts: `raters.csv` and `members.csv`, by "raters" and "members", if there are several, and
            `objects.csv`, by "objects", if they were asked for: see
            `calib_workflows.parts` and `calib_components.metrics.objects`.
    """

    cases: pd.DataFrame
    summary: dict[str, Any]
    class_names: Sequence[str] = ()
    structures: Sequence[str] = ()
    regions: Mapping[str, Bins] = field(default_factory=dict)
    parts: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def items(self, patient_pattern: str | None = None) -> list[dict[str, Any]]:
        """Return its cases for `find_shared`, with the patients that a pattern finds in their
        names, or as recorded.
        """
        names, items = {"content": "labels", "predicted": "predictions"}, []
        for case, patient in self.summary["patients"].items():
            match = re.search(patient_pattern, case) if patient_pattern else None
            patient = match[0] if match else patient
            contents = {key: self.summary.get(name, {}).get(case) for key, name in names.items()}
            items.append({"case": case, "patient": patient, **contents})
        return items

    def reference(self, patient_pattern: str | None = None) -> Reference:
        """Return what these labelled cases, evaluated with probabilities, are for scans of the same
        network; for the pattern, see `items`.
        """
        patients = [item["patient"] for item in self.items(patient_pattern)]
        values = [
            self.cases[[f"{measure}_{name}" for name in self.structures]] for measure in REFERENCE
        ]
        return Reference.from_scans(self.structures, patients, np.stack(values, -1))

    def write(self, folder: Path) -> None:
        """Write the table and the JSON files."""
        self.cases.to_csv(folder / "cases.csv", index=False, errors="surrogateescape")
        for name, table in self.parts.items():
            table.to_csv(folder / f"{name}.csv", index=False, errors="surrogateescape")
        _write_json(folder / SUMMARY, self.summary, indent=2)
        if self.regions:
            content = {
                "class_names": list(self.class_names),
                "cases": self.cases["case"].tolist(),
                "regions": self.regions,
            }
            _write_json(folder / "calibration.json", content)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Evaluation:
        """Read the files of an evaluation.

        Raises:
            InputError: A file is missing, cut off or holds something else, or other cases.
        """
        folder = Path(folder)
        summary = _read_summary(folder / SUMMARY)
        table = _in_order(_read_table(folder / "cases.csv"), summary, folder / "cases.csv")
        _check_means(table, summary, folder / "cases.csv")
        parts = {}
        for name in filter(summary["rows"].__contains__, PARTS):
            file, rows = folder / f"{name}.csv", summary["rows"][name]
            parts[name] = _read_table(file)
            if len(parts[name]) != rows:
                raise InputError(
                    f"{file}: {len(parts[name])} rows are not those of {SUMMARY}. Evaluate the"
                    " cases again."
                )
        structures = [name.removeprefix("dsc_") for name in table if name.startswith("dsc_")]
        if not {f"ece_{region}" for region in REGIONS} <= {*table}:  # of label maps
            return cls(table, summary, structures=structures, parts=parts)
        calibration = _read_calibration(folder / "calibration.json", table)
        return cls(table, summary, structures=structures, parts=parts, **calibration)


def _read_summary(file: Path) -> dict[str, Any]:
    summary = _read_json(file)
    for name, kind in KINDS.items():
        if not isinstance(summary.get(name), kind):
            raise InputError(f"{file}: {name} is missing, or something else. {CHANGED}")
    return summary


def _check_means(table: pd.DataFrame, summary: Mapping[str, Any], file: Path) -> None:
    """Raise `InputError` unless values of `cases.csv` have the means that the summary states."""
    for name in table.columns.drop("case"):
        values, stated = table[name].dropna(), summary[name]
        mean = math.nan if stated["mean"] is None else stated["mean"]
        is_same = np.isclose(values.mean(), mean, ROUNDING, 1e-6, equal_nan=True)
        if len(values) != stated["n"] or not is_same:
            raise InputError(
                f"{file}: {name} has mean {values.mean():.4g} of {len(values)} cases, in {SUMMARY}"
                f" {mean:.4g} of {stated['n']}. {CHANGED}"
            )


def _read_calibration(file: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Read the bins of the cases of a table, whose errors they must have."""
    content = _read_json(file, "cases", "class_names", "regions")
    with reading(file, "the bins of an evaluation"):
        if content.pop("cases") != [*table["case"]]:
            raise ValueError(f"its cases are not those of {SUMMARY}")
        for region in REGIONS:
            bins, errors = content["regions"][region][PER_CASE], table[f"ece_{region}"]
            found = bins.expected_error().numpy()
            if not np.allclose(found, errors, ROUNDING, 1e-6, equal_nan=True):
                raise InputError(f"{file}: it is not of the errors in cases.csv. {CHANGED}")
    return content


def _read_table(file: Path) -> pd.DataFrame:
    types = defaultdict(lambda: float, dict.fromkeys(NAMES, object), matched=bool)
    with reading(file, "a table of an evaluation"):
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            raise ValueError("a table that is cut off in its last line")
        return pd.read_csv(
            file,
            dtype=types,
            na_values=[""],
            keep_default_na=False,
            encoding="utf-8-sig",  # spreadsheets write a mark
            encoding_errors="surrogateescape",
        )


def _in_order(table: pd.DataFrame, summary: Mapping[str, Any], file: Path) -> pd.DataFrame:
    """Return the rows of `cases.csv` in the order of the other files, whatever a spreadsheet has
    made of it.
    """
    of_structures = {measure.name for measure in MEASURES if not measure.regions}
    columns = {name for name, value in summary.items() if _is_statistics(value)} - of_structures
    if missing := sorted({"case", *columns} - {*table}):
        raise InputError(f"{file}: the column {missing[0]} is missing. Evaluate the cases again.")
    present, cases = pd.Index(table["case"]), pd.Index(summary["patients"], dtype=object)
    for names, problem in (
        (cases.difference(present, sort=False), "has no row"),
        (present.difference(cases, sort=False), f"is not in {SUMMARY}"),
        (present[present.duplicated()], "has two rows"),
    ):
        if len(names):
            raise InputError(
                f"{file}: case {printable(names[0])} {problem}. Evaluate the cases again."
            )
    known = [name for name in table if name in {"case", *columns}]  # not a user's own
    # A copy is one block in memory: pandas warns of a table in more than 100, one for each column
    return table.iloc[present.get_indexer(cases)][known].reset_index(drop=True).copy()


def _is_statistics(value: Any) -> bool:
    """Return whether an entry of the summary has the mean of a measure, and the number of cases."""
    return isinstance(value, Mapping) and {"mean", "std", "n"} == {*value}


def _write_json(file: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    def plain(value: Any) -> Any:
        return value.to_dict() if isinstance(value, CalibrationBins) else value.tolist()

    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, default=plain)
    without_nan = json.loads(text, parse_constant={"NaN": None}.__getitem__)
    file.write_text(json.dumps(without_nan, indent=indent) + "\n")


def _read_json(file: Path, *names: str) -> dict[str, Any]:
    """Return the entries of a file that have these names; all without names."""

    def tensors(values: dict[str, Any]) -> Any:
        return CalibrationBins.from_dict(values) if "confidence_sum" in values else values

    with reading(file, "a file of an evaluation"):
        content = json.loads(file.read_bytes(), object_hook=tensors)
        if (version := content.get("schema_version", 1)) != SCHEMA_VERSION:
            release = "an earlier" if version < SCHEMA_VERSION else "a later"
            raise InputError(
                f"{file}: an evaluation of {release} release, which has other columns. Evaluate"
                " the cases again."
            )
        return {name: content[name] for name in names or content}


def draw_reliability(folder: Path, evaluation: Evaluation) -> None:
    """Draw `reliability.png`, of the predicted class, and `reliability_classes.png`, of each class
    over all voxels.
    """
    from calib_workflows.figures import reliability_diagram  # training must not need matplotlib

    regions = {title: evaluation.regions[name] for name, title in TITLES.items()}
    bins, if_true = (
        {title: kinds[kind] for title, kinds in regions.items() if kind in kinds}
        for kind in ("top_label", "top_label_if_true")
    )
    reliability_diagram(bins, if_true=if_true).savefig(folder / "reliability.png")
    classwise = evaluation.regions["all"]["classwise"]
    reliability_diagram(classwise, evaluation.class_names).savefig(
        folder / "reliability_classes.png"
    )
