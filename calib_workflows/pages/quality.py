"""The estimates of many scans as files: one JSON file a scan, and from all of them `quality.csv`
and `quality.html`.

Each run, shard or restart writes the files of its own scans, and makes the table and the page from
all that are there.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from calib_components.errors import InputError, check_number, make_folder, reading, writing
from calib_components.quality.estimates import (
    ESTIMATES,
    QualityColumn,
    ScanEstimates,
    StructureEstimate,
    StructureScan,
)
from calib_components.quality.reference import LIMIT_PATIENTS, Reference, mean_estimate
from calib_workflows.data.nifti import voxel_volume
from calib_workflows.pages.page import Answer, Picture, Section, render_page
from calib_workflows.pages.slices import COLORS, Panel, draw_slice

FOLDER = "quality"
TABLES = TABLE, PAGE = "quality.csv", "quality.html"
UNLIKE = (
    "These images are unlike those of the training: {number} of {total} have a lower estimate than"
    " all validation scans. Do not rely on the values and limits."
)
CENTER = "crop_center"  # a further column, where a network of crops looked
ORDER = (
    "Scans are in the order of their expected DSC, worst first: the overlap that the network itself"
    " predicts, without labels, as a Dice similarity coefficient from 0 to 1; the mean over"
    " structures. It is too high on images unlike those of the training."
)
ABOUT = (
    "Uncertain: of the voxels where the structure is possible (probability above 5 %), the share"
    " where it is not certain (95 % or less). Pairwise DSC, of several networks: the mean overlap"
    " of their segmentations. Pictures show the slice with the most uncertainty: the contours of"
    " the prediction, and beside them the uncertainty, 4 p (1 - p), from black, certain, to white,"
    " undecided."
)


def describe_scan(
    name: str,
    estimates: Mapping[str, StructureEstimate],
    reference: Reference,
    affine: NDArray | None = None,
    picture: bytes = b"",
    agreement: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return what the table and the page show of a scan, as JSON data.

    Args:
        name: Name of the scan.
        estimates: Estimates of its structures, see `ScanEstimates`.
        reference: The validation scans in the weights, if there are any.
        affine: From voxels to mm. Without one, or with the identity, the spacing is lost, and there
            are no volumes.
        picture: A PNG, see `draw_scan`.
        agreement: Mean DSC over pairs of segmentations of each structure, see `PairwiseDice`.
    """
    pairwise = agreement or {}
    voxel_ml = math.nan
    if affine is not None and not np.array_equal(affine, np.eye(4)):
        voxel_ml = voxel_volume(affine)
    rows = [
        _structure_row(
            StructureScan(
                structure, estimate, reference, voxel_ml, pairwise.get(structure, math.nan)
            )
        )
        for structure, estimate in estimates.items()
    ]
    expected_dsc = {structure: found.expected_dsc for structure, found in estimates.items()}
    mean = mean_estimate(expected_dsc, reference.always)
    higher, scans = reference.place(mean)
    place, is_unlike = "", False
    if scans and not math.isnan(mean):
        number = "all" if higher == scans else f"{higher} of"
        place = f"lower than {number} {scans} validation scans"
        is_unlike = higher == scans and reference.patients >= LIMIT_PATIENTS
    reasons = _reasons(estimates, mean, reference)
    if is_unlike:
        reasons.append(f"its estimate is {place}")
    return {
        "scan": name,
        "estimate": _finite(mean),
        "reasons": reasons,
        "rows": rows,
        "place": place,
        "is_unlike": is_unlike,
        "evidence": reference.evidence,
        "note": reference.note,
        "picture": base64.b64encode(picture).decode(),
    }


def draw_scan(
    scan: ScanEstimates, probabilities: torch.Tensor, grey: ArrayLike | None, affine: NDArray
) -> bytes:
    """Draw a slice of a scan as a PNG: its image with contours of the prediction, and beside it the
    uncertainty.

    Args:
        scan: Estimates of the scan.
        probabilities: `(N, Y, X)`, of the slice.
        grey: Grey values `(Y, X)`; None draws on black.
        affine: `(4, 4)`, see `draw_slice`.
    """
    masks = [mask.numpy() for mask in scan.masks(probabilities)]
    uncertainty = scan.uncertainty(probabilities)
    return draw_slice([Panel(grey, masks), Panel(uncertainty, is_share=True)], affine)


def _structure_row(scan: StructureScan) -> dict[str, Any]:
    """Return the value of each estimate of a structure by its name; None if it is not defined."""
    row: dict[str, Any] = {"structure": scan.name}
    is_predicted = scan.estimate.predicted_voxels > 0
    for estimate in ESTIMATES:
        is_defined = is_predicted or not estimate.of_prediction
        row[estimate.name] = _finite(estimate.function(scan)) if is_defined else None
    if not is_predicted and scan.name in scan.reference.always:
        row["expected_dsc"] = 0.0
    return row


def _reasons(
    estimates: Mapping[str, StructureEstimate], mean: float, reference: Reference
) -> list[str]:
    """Return what a scan lacks that is to be looked at in any case."""
    scans = len(reference.values)
    if not scans:  # they are in the order of their estimates
        return []
    if math.isnan(mean):
        return ["nothing is found"]
    return [
        f"{structure} is not found, but is in all {scans} validation scans"
        for structure, estimate in estimates.items()
        if structure in reference.always and not estimate.predicted_voxels > 0
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_record(record: Mapping[str, Any], output_dir: str | os.PathLike) -> None:
    """Write what `describe_scan` returned to `quality/SCAN.json` in a folder."""
    make_folder(Path(output_dir) / FOLDER)
    with writing(Path(output_dir) / FOLDER / f"{record['scan']}.json") as unfinished:
        unfinished.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")


def choose(
    records: Sequence[Mapping[str, Any]], review: str = "20%", review_below: float | None = None
) -> list[dict[str, Any]]:
    """Sort the scans, worst first, and add to each whether a person should look at it, `review`,
    and why, `reasons`.

    That is so in any case where a structure of all validation scans is missing, or the estimate is
    lower than those of all of them.

    Args:
        records: What `describe_scan` returned.
        review: Share of the scans to look at, those with the lowest estimates.
        review_below: Estimate below which scans are looked at, in place of a share.
    """
    share = re.fullmatch(r"(\d+(?:\.\d+)?) *%", str(review))
    if share is None or float(share[1]) > 100:
        raise InputError(f"review must be a percentage of the scans, such as 20%, got {review!r}.")
    if review_below is not None:
        check_number("review_below", review_below, 0, 1)
    ordered = sorted(records, key=lambda record: (record["estimate"] or 0.0, record["scan"]))
    number = math.floor(float(share[1]) / 100 * len(ordered) + 0.5)
    chosen = []
    for place, record in enumerate(ordered):
        reasons = record["reasons"]
        if review_below is None:
            is_low = place < number
            why = f"one of the {number} lowest of {len(ordered)} estimates, which are always listed"
        else:
            is_low = (record["estimate"] or 0.0) < review_below
            why = f"its estimate is below {review_below:g}"
        if is_low and not reasons:
            reasons = [why]
        chosen.append({**record, "reasons": reasons, "review": "yes" if reasons else "no"})
    return chosen


def write_table(
    output_dir: str | os.PathLike,
    review: str = "20%",
    review_below: float | None = None,
    scans: Collection[str] | None = None,
) -> str:
    """Make `quality.csv` and `quality.html` from the scans in `quality/`, or from those among them
    that `scans` names, and say so; for the options, see `choose`.
    """
    folder = Path(output_dir)
    records = []
    for file in sorted((folder / FOLDER).glob("[!.]*.json")):
        if scans is None or file.stem in scans:
            with reading(file, "the estimates of a scan"):
                records.append(json.loads(file.read_text(encoding="utf-8")))
    chosen = choose(records, review, review_below)
    contents = {TABLE: _table(chosen), PAGE: quality_page(chosen)}
    for name, content in contents.items():
        with writing(folder / name) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    number = sum(scan["review"] == "yes" for scan in chosen)
    listed = f"{folder / PAGE}: {number} of {len(chosen)} segmentations to check."
    return " ".join([listed, *caveats(chosen)])


def quality_page(chosen: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of what `choose` returned."""
    listed = [record for record in chosen if record["review"] == "yes"]
    defined = defined_estimates(chosen)
    notes = sorted({record["note"] for record in chosen})
    return render_page(
        f"{len(listed)} of {len(chosen)} segmentations to check",
        Answer([*caveats(chosen), ORDER]),
        [_card(record, defined) for record in chosen],
        [*notes, ABOUT],
        {record["scan"]: record["scan"] for record in listed},
    )


def _card(record: Mapping[str, Any], defined: set[str]) -> Section:
    """Return the part of the page about a scan."""
    shown = [each for each in ESTIMATES if each.format and each.name in defined]
    records = [
        {
            "structure": row["structure"],
            "measure": estimate.title,
            "text": _text(row, estimate),
            "color": COLORS[number % len(COLORS)],
        }
        for number, row in enumerate(record["rows"])
        for estimate in shown
    ]
    name, png = record["scan"], base64.b64decode(record["picture"])
    return Section(
        name,
        name,
        _summary(record),
        pd.DataFrame(records),
        ["structure"],
        pictures=[Picture(name, "", png)] if png else [],
        folded=False,
        kind="card check" if record["review"] == "yes" else "card",
    )


def _summary(record: Mapping[str, Any]) -> str:
    """Say what is expected of a scan, and why a person should look at it."""
    text, reasons = "No structure.", "; ".join(record["reasons"])
    if record["estimate"] is not None:
        place = record["place"]
        beside = f", {place}" if place and place not in reasons else ""
        text = f"Expected DSC {record['estimate']:.2f}{beside}."
    return f"{text} Check: {reasons}." if reasons else text


def _text(row: Mapping[str, Any], estimate: QualityColumn) -> str:
    """Return an estimate of a structure as text, with its limits if it has any."""
    values = [row.get(name) for name in (estimate.name, *estimate.limits)]
    if values[0] is None:
        return "-"
    value, *limits = (format(each, estimate.format) for each in values if each is not None)
    return f"{value} [{', '.join(limits)}]" if limits else value


def defined_estimates(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the estimates that some structure of the scans has."""
    rows = [row for record in records for row in record["rows"]]
    return {name for row in rows for name, value in row.items() if value is not None}


def caveats(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to know before relying on the estimates of scans: whether most are unlike the
    training's, and what labelled scans showed.
    """
    unlike, total = sum(record["is_unlike"] for record in records), len(records)
    evidence = sorted({record["evidence"] for record in records} - {""})
    if 2 * unlike > total:
        return [UNLIKE.format(number=unlike, total=total), *evidence]
    return evidence


def _table(chosen: Sequence[Mapping[str, Any]]) -> str:
    """Return `quality.csv`: a line for each structure of each scan."""
    defined = defined_estimates(chosen)
    estimates = [each.name for each in ESTIMATES if not each.optional or each.name in defined]
    columns = ["scan", "structure", *estimates, "review", "reason"]
    if any(CENTER in record for record in chosen):
        columns.append(CENTER)
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for record in chosen:
        center = ",".join(map(str, record.get(CENTER, ())))
        shown = {**record, "reason": "; ".join(record["reasons"]), CENTER: center}
        table.writerows({**shown, **row} for row in record["rows"])
    return text.getvalue()
