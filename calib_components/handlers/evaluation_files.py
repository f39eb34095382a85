"""The files of an evaluation, written and read."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calib_components.errors import InputError, reading
from calib_components.metrics import CalibrationBins, ThresholdCounts

__all__ = [
    "FILES",
    "check_own",
    "number",
    "read_calibration",
    "read_cases",
    "read_logits",
    "read_regions",
    "read_risk_coverage",
    "read_summary",
    "read_thresholds",
    "replace_files",
    "write_calibration",
    "write_cases",
    "write_logits",
    "write_risk_coverage",
    "write_summary",
    "write_thresholds",
    "writing_in",
]

FILES = (  # all that an evaluation writes; the summary comes last, so where it is, the rest belongs to it
    "cases.csv",
    "calibration.json",
    "logits.json",
    "thresholds.json",
    "risk_coverage.json",
    "reliability.png",
    "reliability_classes.png",
    "cases/best.png",
    "cases/median.png",
    "cases/worst.png",
    "summary.json",
)


def check_own(folder: Path) -> None:
    """Refuse to replace a file of somebody else that is called like one of an evaluation.

    The table is the first file of an evaluation that is written and the last that is removed, so others are those of an
    evaluation if the table is.

    Raises:
        InputError: There is one.
    """
    found = [folder / name for name in FILES if (folder / name).is_file()]
    for file in [*found[:1], *(file for file in found if file.name == "summary.json")]:
        with writing_in(folder):
            content = file.read_bytes().decode(errors="replace")
        columns = next(csv.reader(content.splitlines()[:1]), [""])
        if file.name == "summary.json":
            is_own = '"missed"' in content
        else:
            measured = any(column.startswith("dsc_") for column in columns)
            is_own = file.name == "cases.csv" and columns[0] == "case" and measured
        if not is_own:
            raise InputError(
                f"{file}: expected a file of an evaluation or nothing, got another one; choose another folder"
            )


def read_cases(folder: str | os.PathLike) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Read `cases.csv`.

    Args:
        folder: Where an evaluation was written.

    Returns:
        The names of the cases, and the values `(cases,)` of each column by its name; NaN where a measure is undefined.

    Raises:
        InputError: The file is missing or broken.
    """
    with reading(Path(folder) / "cases.csv", "the cases of an evaluation") as file:
        # Any name comes back as it was written: file names may hold bytes that are not UTF-8, and line breaks.
        text = file.read_bytes().decode("utf-8", "surrogateescape")
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        if len(table) < 2 or table[0][:1] != ["case"]:
            raise ValueError("a table without cases")
        header, *rows = table
        for index, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise ValueError(f"{len(row)} cells of case {index} in {len(header)} columns")
        cases = [row[0] for row in rows]
        for kind, names in (("column", header), ("case", cases)):
            for name, count in Counter(names).items():
                if count > 1:
                    raise ValueError(f"the {kind} {name} {count} times")
        values = np.array([[float(cell) if cell else np.nan for cell in row[1:]] for row in rows])
        if np.isinf(values).any():
            raise ValueError("infinite values")
        return cases, dict(zip(header[1:], values.T, strict=True))


def read_summary(folder: str | os.PathLike) -> dict[str, Any]:
    """Read `summary.json`. Arguments and errors as in `read_cases`."""
    with reading(Path(folder) / "summary.json", "the summary of an evaluation") as file:
        summary = json.loads(file.read_bytes())
        if not all(isinstance(summary[name], list) for name in ("missed", "spurious")):
            raise TypeError("no list of missed or of spurious structures")
        return summary


def read_calibration(folder: str | os.PathLike) -> dict[str, CalibrationBins]:
    """Read the bins pooled over cases from `calibration.json`. Arguments and errors as in `read_cases`.

    Returns:
        Bins of the predicted class, `top_label`, and of each class, `classwise`.
    """
    with reading(Path(folder) / "calibration.json", "the bins of an evaluation") as file:
        pooled = json.loads(file.read_bytes())["pooled"]
        return {kind: CalibrationBins.from_dict(pooled[kind]) for kind in ("top_label", "classwise")}


def read_regions(folder: str | os.PathLike) -> dict[str, dict[str, CalibrationBins]]:
    """Read the bins of each region, pooled over cases, from `calibration.json`. Arguments and errors: see `read_cases`.

    Returns:
        Bins by kind, by the name of the region: `top_label` and `classwise`; for regions with a closed form
        `top_label_if_true` and `classwise_if_true`, the bins if the probabilities were true; and for all voxels
        and the predicted foreground `top_label_per_case`, those of each case.
    """
    with reading(Path(folder) / "calibration.json", "the bins of an evaluation") as file:
        content = json.loads(file.read_bytes())
        regions = {
            region: {kind: CalibrationBins.from_dict(fields) for kind, fields in kinds.items()}
            for region, kinds in content["regions"].items()
        }
        if per_case := [kinds["top_label_per_case"] for kinds in regions.values() if "top_label_per_case" in kinds]:
            _check_cases(content, folder)
            if any(len(bins.count) != len(content["cases"]) for bins in per_case):
                raise ValueError(f"bins of other cases than the {len(content['cases'])} of the file")
        return regions


def read_logits(folder: str | os.PathLike) -> tuple[list[str], NDArray[np.float64]]:
    """Read `logits.json`. Arguments and errors as in `read_cases`.

    Returns:
        The names of the N classes, and the mean magnitudes `(N, N)`, by ground-truth class and channel.
    """
    with reading(Path(folder) / "logits.json", "the logits of an evaluation") as file:
        content = json.loads(file.read_bytes())
        names, magnitudes = list(content["class_names"]), np.array(content["magnitudes"], float)
        if magnitudes.shape != (len(names), len(names)):
            raise ValueError(f"magnitudes of shape {magnitudes.shape} of {len(names)} classes")
        return names, magnitudes


def read_thresholds(folder: str | os.PathLike) -> tuple[list[str], ThresholdCounts]:
    """Read `thresholds.json`. Arguments and errors as in `read_cases`.

    Returns:
        The names of the structures, and their counts at each threshold.
    """
    with reading(Path(folder) / "thresholds.json", "the thresholds of an evaluation") as file:
        content = json.loads(file.read_bytes())
        _check_cases(content, folder)
        names, counts = content["structures"], ThresholdCounts.from_dict(content["counts"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("structures that are no names")
        if not (counts.thresholds.diff() > 0).all():
            raise ValueError("thresholds that are not in ascending order")
        if counts.true.shape != (shape := (len(content["cases"]), len(names))):
            raise ValueError(f"counts of shape {tuple(counts.true.shape)} in place of {shape}")
        return names, counts


def read_risk_coverage(folder: str | os.PathLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read `risk_coverage.json`. Arguments and errors as in `read_cases`.

    Returns:
        The shares of the voxels, `(K,)`, and the error rates among the most confident ones of each case, `(cases, K)`.
    """
    with reading(Path(folder) / "risk_coverage.json", "the risk-coverage curves of an evaluation") as file:
        content = json.loads(file.read_bytes())
        _check_cases(content, folder)
        coverage, risk = np.array(content["coverage"], float), np.array(content["risk"], float)
        if risk.shape != (len(content["cases"]), len(coverage)):
            raise ValueError(f"risks of shape {risk.shape} at {len(coverage)} coverages")
        if not (np.diff(coverage, prepend=0) > 0).all() or not (np.isnan(risk) | ((risk >= 0) & (risk <= 1))).all():
            raise ValueError("risks that are not between 0 and 1, or coverages that are not in ascending order")
        return coverage, risk


def _check_cases(content: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Check that values of cases are of those in `cases.csv`, in their order."""
    cases, _ = read_cases(folder)
    if content["cases"] != cases:
        raise ValueError("other cases than cases.csv, or another order")


def write_cases(folder: Path, cases: Sequence[str], columns: Mapping[str, torch.Tensor]) -> None:
    """Write `cases.csv`: the name of each case, and its value `(cases,)` in each column."""
    with open(folder / "cases.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *columns])
        for case, *row in zip(cases, *(values.tolist() for values in columns.values()), strict=True):
            writer.writerow([case, *map(number, row)])  # an empty cell for None


def write_calibration(
    folder: Path,
    class_names: Sequence[str],
    cases: Sequence[str],
    bins: Mapping[str, CalibrationBins],
    regions: Mapping[str, Mapping[str, CalibrationBins]],
) -> None:
    """Write `calibration.json`.

    Args:
        folder: Where it is written.
        class_names: Names of the classes.
        cases: Names of the cases.
        bins: Bins of each case, by the kinds that `read_calibration` returns; their sums are written, too.
        regions: Bins as `read_regions` returns them.
    """
    calibration = {
        "class_names": class_names,
        "cases": cases,
        "per_case": {kind: case_bins.to_dict() for kind, case_bins in bins.items()},
        "pooled": {kind: case_bins.pooled().to_dict() for kind, case_bins in bins.items()},
        "regions": {name: {kind: b.to_dict() for kind, b in kinds.items()} for name, kinds in regions.items()},
    }
    (folder / "calibration.json").write_text(json.dumps(calibration) + "\n")


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`, see `read_summary`."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def write_logits(folder: Path, class_names: Sequence[str], magnitudes: torch.Tensor) -> None:
    """Write `logits.json`, see `read_logits`."""
    rows = [[number(value) for value in row] for row in magnitudes.tolist()]
    (folder / "logits.json").write_text(json.dumps({"class_names": class_names, "magnitudes": rows}) + "\n")


def write_thresholds(folder: Path, structures: Sequence[str], cases: Sequence[str], counts: ThresholdCounts) -> None:
    """Write `thresholds.json`, see `read_thresholds`."""
    content = {"structures": structures, "cases": cases, "counts": counts.to_dict()}
    (folder / "thresholds.json").write_text(json.dumps(content) + "\n")


def write_risk_coverage(folder: Path, cases: Sequence[str], coverage: torch.Tensor, risk: torch.Tensor) -> None:
    """Write `risk_coverage.json`, see `read_risk_coverage`."""
    rows = [[number(value) for value in row] for row in risk.tolist()]
    content = {"coverage": coverage.tolist(), "cases": cases, "risk": rows}
    (folder / "risk_coverage.json").write_text(json.dumps(content) + "\n")


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Turn a full disk, or whatever else keeps files from being written, into one line that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder}: expected a folder that an evaluation can be written to, got {reason}") from error


def replace_files(source: Path, target: Path) -> None:
    """Move the files of an evaluation to the place of an earlier one.

    The old ones go first, the new summary comes last: a process killed in between leaves no summary, and files of one
    evaluation only.
    """
    for name in reversed(FILES):
        (target / name).unlink(missing_ok=True)
    (target / "cases").mkdir(exist_ok=True)
    for name in FILES:
        if (source / name).is_file():  # not all pictures are there if few cases have a DSC
            (source / name).replace(target / name)


def number(value: float) -> float | None:
    """Return the number, or None, which JSON and CSV can hold, if it is NaN."""
    return None if math.isnan(value) else value
