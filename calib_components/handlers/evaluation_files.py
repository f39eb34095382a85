"""The files of an evaluation: what writes each of them, and what reads it."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from calib_components.errors import InputError, printable, reading
from calib_components.metrics import CalibrationBins, ThresholdCounts

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
SCHEMA_VERSION = 1  # of the JSON files; those of releases before 0.3 have none and are read as version 1
Array = NDArray[np.float64]
Folder = str | os.PathLike
Bins = Mapping[str, CalibrationBins]  # by kind, see `read_regions`
# Regions in the reliability diagram: what calibration means first, the paper's last.
TITLES = {"all": "all voxels", "predicted": "predicted foreground", "foreground": "ground-truth foreground"}


def write_cases(folder: Path, cases: Sequence[str], columns: Mapping[str, Any]) -> None:
    """Write `cases.csv`: the name of each case, and its value `(cases,)` in each column, empty where it is NaN."""
    names = pd.Series(list(cases), dtype=object)  # file names may hold any bytes, a string of pandas may not
    table = pd.DataFrame({"case": names, **{name: np.asarray(values) for name, values in columns.items()}})
    table.to_csv(folder / "cases.csv", index=False, errors="surrogateescape")


def read_cases(folder: Folder) -> tuple[list[str], dict[str, Array]]:
    """Read `cases.csv`.

    Args:
        folder: Where an evaluation was written.

    Returns:
        The names of the cases, and the values `(cases,)` of each column by its name; NaN where a measure is undefined.

    Raises:
        InputError: The file is missing, cut off or holds something else.
    """
    with reading(Path(folder) / "cases.csv", "the cases of an evaluation") as file:
        if not file.read_bytes().endswith(b"\n"):
            raise ValueError("a table that is cut off in its last line")
        options = {"na_values": [""], "keep_default_na": False, "encoding_errors": "surrogateescape"}
        table = pd.read_csv(file, dtype={"case": object}, **options)
        cases = table.pop("case").tolist()
        return cases, {name: values.to_numpy(float) for name, values in table.items()}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`: statistics over cases, and what is known of all of them together."""
    _write_json(folder / "summary.json", summary, indent=2)


def read_summary(folder: Folder) -> dict[str, Any]:
    """Read `summary.json`. Arguments and errors as in `read_cases`."""
    with _read_json(folder, "summary.json") as content:
        return content


def write_calibration(
    folder: Path, class_names: Sequence[str], cases: Sequence[str], bins: Bins, regions: Mapping[str, Bins]
) -> None:
    """Write `calibration.json`: bins of each case, `bins`, and those of each region, see `read_regions`."""
    content = {
        "class_names": list(class_names),
        "cases": list(cases),
        "per_case": {kind: of_cases.to_dict() for kind, of_cases in bins.items()},
        "pooled": {kind: of_cases.pooled().to_dict() for kind, of_cases in bins.items()},
        "regions": {name: {kind: b.to_dict() for kind, b in kinds.items()} for name, kinds in regions.items()},
    }
    _write_json(folder / "calibration.json", content)


def read_calibration(folder: Folder) -> dict[str, CalibrationBins]:
    """Read the bins pooled over cases from `calibration.json`, `top_label` and `classwise`. See `read_cases`."""
    with _read_json(folder, "calibration.json") as content:
        return {kind: CalibrationBins.from_dict(content["pooled"][kind]) for kind in ("top_label", "classwise")}


def read_regions(folder: Folder) -> dict[str, dict[str, CalibrationBins]]:
    """Read the bins of each region, pooled over cases, from `calibration.json`. Arguments and errors: see `read_cases`.

    Returns:
        Bins by kind, by the name of the region: `top_label` and `classwise`; for regions with a closed form
        `top_label_if_true` and `classwise_if_true`, the bins if the probabilities were true; and for all voxels
        and the predicted foreground `top_label_per_case`, those of each case.
    """
    with _read_json(folder, "calibration.json") as content:
        return {
            name: {kind: CalibrationBins.from_dict(fields) for kind, fields in kinds.items()}
            for name, kinds in content["regions"].items()
        }


def write_logits(folder: Path, class_names: Sequence[str], magnitudes: torch.Tensor) -> None:
    """Write `logits.json`: mean magnitudes `(N, N)`, by ground-truth class and channel."""
    _write_json(folder / "logits.json", {"class_names": list(class_names), "magnitudes": magnitudes.tolist()})


def read_logits(folder: Folder) -> tuple[list[str], Array]:
    """Read the names of the N classes and the mean magnitudes `(N, N)` from `logits.json`. See `read_cases`."""
    with _read_json(folder, "logits.json") as content:
        return content["class_names"], np.array(content["magnitudes"], float)


def write_thresholds(folder: Path, structures: Sequence[str], cases: Sequence[str], counts: ThresholdCounts) -> None:
    """Write `thresholds.json`: counts of each case and structure at each threshold."""
    content = {"structures": list(structures), "cases": list(cases), "counts": counts.to_dict()}
    _write_json(folder / "thresholds.json", content)


def read_thresholds(folder: Folder) -> tuple[list[str], ThresholdCounts]:
    """Read the names of the structures and their counts at each threshold from `thresholds.json`. See `read_cases`."""
    with _read_json(folder, "thresholds.json") as content:
        return content["structures"], ThresholdCounts.from_dict(content["counts"])


def write_risk_coverage(folder: Path, cases: Sequence[str], coverage: torch.Tensor, risk: torch.Tensor) -> None:
    """Write `risk_coverage.json`: error rates `(cases, K)` among the most confident shares of the voxels, `(K,)`."""
    content = {"coverage": coverage.tolist(), "cases": list(cases), "risk": risk.tolist()}
    _write_json(folder / "risk_coverage.json", content)


def read_risk_coverage(folder: Folder) -> tuple[Array, Array]:
    """Read shares of the voxels `(K,)` and error rates `(cases, K)` from `risk_coverage.json`. See `read_cases`."""
    with _read_json(folder, "risk_coverage.json") as content:
        return np.array(content["coverage"], float), np.array(content["risk"], float)


def draw_reliability(folder: Path, class_names: Sequence[str], regions: Mapping[str, Bins]) -> None:
    """Draw `reliability.png`, of the predicted class, and `reliability_classes.png`, of each class over all voxels."""
    from calib_components.figures import reliability_diagram  # training must not need matplotlib

    kinds = ("top_label", "top_label_if_true")
    bins, if_true = ({title: regions[r][kind] for r, title in TITLES.items() if kind in regions[r]} for kind in kinds)
    reliability_diagram(bins, if_true=if_true, bands=True).savefig(folder / "reliability.png")
    of_classes = reliability_diagram(regions["all"]["classwise"], class_names, bands=True)
    of_classes.savefig(folder / "reliability_classes.png")


def draw_cases(
    folder: Path,
    cases: Sequence[str],
    dsc: Sequence[float],
    slices: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
) -> None:
    """Draw `cases/best.png`, `median.png` and `worst.png` by the mean DSC of each case.

    Args:
        folder: Where they are written.
        cases: Names of the cases.
        dsc: Mean DSC of each.
        slices: The slice of each, see `calib_components.handlers.evaluation.record_case`.
        class_names: Names of the classes in the slices, the background first.
    """
    from calib_components.figures import uncertainty_overlay  # training must not need matplotlib

    ordered = sorted((i for i in range(len(cases)) if not math.isnan(dsc[i])), key=lambda i: dsc[i])
    # Two cases have no median, and one is the best alone: later names win.
    names = {len(ordered) // 2: "median", 0: "worst", len(ordered) - 1: "best"} if ordered else {}
    for place, name in names.items():
        i, drawn = ordered[place], slices[ordered[place]]
        title = f"{printable(cases[i])}\nDSC {dsc[i]:.3f} of the volume, {drawn['dsc']:.3f} of this slice"
        if drawn["missed"]:
            title += f"\nmissed in this slice: {', '.join(drawn['missed'])}"
        names_of_maps = ("image", "label", "prediction", "uncertainty")
        maps: list[Any] = [None if drawn[key] is None else drawn[key].numpy() for key in names_of_maps]
        image, label, prediction, uncertainty = maps
        figure = uncertainty_overlay(image, label, prediction, uncertainty, class_names=class_names, title=title)
        figure.savefig(folder / "cases" / f"{name}.png")


def _write_json(file: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    text = json.dumps(_without_nan({"schema_version": SCHEMA_VERSION, **content}), indent=indent, allow_nan=False)
    file.write_text(text + "\n")


def _without_nan(value: Any) -> Any:
    """Replace NaN by None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def _read_json(folder: Folder, name: str) -> Iterator[dict[str, Any]]:
    """Give the content of a file, and name the file in errors."""
    with reading(Path(folder) / name, "a file of an evaluation") as file:
        content = json.loads(file.read_bytes())
        if (version := content.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
            raise ValueError(f"one of schema version {version}, which needs another release of calib_components")
        yield content


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a hidden folder for the files of an evaluation, which replace those of an earlier one at the end.

    The old ones go first, the new summary comes last: a process killed in between leaves no summary, and files of one
    evaluation only.

    Raises:
        InputError: A file cannot be written. Files of an earlier evaluation stay.
    """
    unfinished = folder / ".unfinished-evaluation"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "cases").mkdir(parents=True)
        yield unfinished
        for name in reversed(FILES):
            (folder / name).unlink(missing_ok=True)
        (folder / "cases").mkdir(exist_ok=True)
        for name in FILES:
            if (unfinished / name).is_file():  # not all pictures are there if few cases have a DSC
                (unfinished / name).replace(folder / name)
    except OSError as error:
        raise InputError(f"Evaluation cannot be written to {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
