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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib_components.errors import InputError, check_number, make_folder, reading, writing
from calib_components.quality.estimates import StructureEstimate, mean_estimate
from calib_components.quality.page import quality_page
from calib_components.quality.reference import Reference

FOLDER, PAGE = "quality", "quality.html"
LOCK = f"{FOLDER}/.lock"  # stays where a table was written
CUBIC_MM = 1000  # in a millilitre
MEASURES = (
    "expected_dsc", "dsc_lower_bound", "expected_volume_ml", "volume_low_ml", "volume_high_ml", "uncertain_share"
)  # fmt: skip
Estimates = Mapping[str, StructureEstimate]
COLUMNS = ("scan", "structure", *MEASURES, "review", "reason")
AGREEMENT, CENTER = "pairwise_dsc", "crop_center"  # more, where there are any


def describe_scan(
    name: str,
    estimates: Estimates,
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
        picture: A PNG, see `draw_slice`.
        agreement: Mean DSC over pairs of segmentations of each structure, see `PairwiseDice`.
    """
    is_lost = affine is None or np.array_equal(affine, np.eye(4))
    voxel_ml = (
        math.nan if is_lost else float(abs(np.linalg.det(np.asarray(affine)[:3, :3])) / CUBIC_MM)
    )
    reasons: list[str] = []
    rows: list[dict[str, Any]] = []
    among = (
        f", but is in all {len(reference.values)} validation scans" if len(reference.values) else ""
    )
    for structure, found in estimates.items():
        values = [math.nan] * 5
        if found.predicted_voxels > 0:
            bound = reference.lower_bound(structure, found.expected_dsc)
            volumes = (
                found.expected_voxels,
                *reference.volume_range(structure, found.expected_voxels),
            )
            values = [found.expected_dsc, bound, *(voxel_ml * volume for volume in volumes)]
        elif structure in reference.always:
            values[0] = 0.0
            reasons.append(f"{structure} is not found{among}")
        cells = map(
            _finite, [*values, found.uncertain_share, (agreement or {}).get(structure, math.nan)]
        )
        rows.append(
            {"structure": structure, **dict(zip((*MEASURES, AGREEMENT), cells, strict=True))}
        )
    estimate = mean_estimate(
        {key: found.expected_dsc for key, found in estimates.items()}, reference.always
    )
    higher, scans = reference.place(estimate)
    place = (
        f"lower than {'all' if higher == scans else f'{higher} of'} {scans} validation scans"
        if scans
        else ""
    )
    if math.isnan(estimate):
        place, reasons = "", ["nothing is found"]
    elif 0 < higher == scans:
        reasons.append(f"its estimate is {place}")
    shown = {"place": place, "note": reference.note, "picture": base64.b64encode(picture).decode()}
    return {"scan": name, "estimate": _finite(estimate), "reasons": reasons, "rows": rows, **shown}


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

    That is so in any case where a structure is missing or the estimate is lower than those of all
    validation scans.

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
    number, chosen = math.floor(float(share[1]) / 100 * len(ordered) + 0.5), []
    for place, record in enumerate(ordered):
        reasons = record["reasons"]
        if not reasons and review_below is not None and (record["estimate"] or 0.0) < review_below:
            reasons = [f"its estimate is below {review_below:g}"]
        elif not reasons and review_below is None and place < number:
            reasons = [
                f"it is among the {number} of {len(ordered)} scans with the lowest estimates"
            ]
        chosen.append({**record, "reasons": reasons, "review": "yes" if reasons else "no"})
    return chosen


def write_table(
    output_dir: str | os.PathLike, review: str = "20%", review_below: float | None = None
) -> str:
    """Make `quality.csv` and `quality.html` from the scans in `quality/`, and say so; for the
    options, see `choose`.
    """
    from filelock import FileLock  # metrics must not need it

    folder, records = Path(output_dir), []
    make_folder(folder / FOLDER)
    with FileLock(folder / LOCK):  # of several shards, the last one to write has all scans
        for file in sorted((folder / FOLDER).glob("[!.]*.json")):
            with reading(file, "the estimates of a scan"):
                records.append(json.loads(file.read_text(encoding="utf-8")))
        chosen, text = choose(records, review, review_below), io.StringIO()
        columns = [*COLUMNS]
        if any(row.get(AGREEMENT) is not None for record in chosen for row in record["rows"]):
            columns.append(AGREEMENT)
        if any(CENTER in record for record in chosen):
            columns.append(CENTER)
        table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for record in chosen:
            center = ",".join(map(str, record.get(CENTER, ())))
            shown = {**record, "reason": "; ".join(record["reasons"]), CENTER: center}
            table.writerows({**shown, **row} for row in record["rows"])
        for name, content in (("quality.csv", text.getvalue()), (PAGE, quality_page(chosen))):
            with writing(folder / name) as unfinished:
                unfinished.write_text(content, encoding="utf-8")
    return (
        f"{folder / PAGE}: {sum(scan['review'] == 'yes' for scan in chosen)} of {len(chosen)}"
        " segmentations to check"
    )
