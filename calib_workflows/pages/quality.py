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
from typing import Any, NamedTuple

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
from calib_components.quality.ranking import MIN_PATIENTS, count_share, is_listed
from calib_components.quality.reference import (
    ALL_DSC,
    LIMIT_PATIENTS,
    Reference,
    coverage_of,
    mean_estimate,
    volume_of,
)
from calib_components.quality.shift import MEAN, SIGNIFICANT, find_shift
from calib_workflows.data.nifti import voxel_volume
from calib_workflows.pages.page import Answer, Picture, Section, render_page
from calib_workflows.pages.slices import COLORS, Panel, draw_slice

FOLDER = "quality"
REFERENCE = f"{FOLDER}/.reference.json"  # hidden: the others are named after scans
TABLE, PAGE = "quality.csv", "quality.html"
TABLES = (TABLE, PAGE, REFERENCE)
RECORDED = ("scan", "patient", "estimate", "reasons", "rows", "place", "picture")
MOST_CARDS = 500  # of scans on a page, which a browser shows in seconds
MOST_REASONS = 5  # that are not folded
CENTER = "crop_center"  # a further column, where a network of crops looked
BAD = 0.8  # DSC below which a segmentation is one that a list should hold

# The answer
NO_REFERENCE = (
    "There are no validation scans: expected DSCs were never compared with true ones here, nothing"
    " tells which are too low, and there are no limits."
)
UNLIKE = (
    "These images look unlike the training's ({what}): the network is less sure of them than of the"
    " validation scans. Limits and ranges of volumes are left out: they hold for images like the"
    " training's. Do not rely on the volumes; expected DSCs may be too high."
)
LABEL = (
    "Check every scan, not only the listed ones. To adapt the network, label five patients like"
    " these, drawn at random, and calibrate it on them: docs/another_scanner.md of the"
    " repository has the commands."
)
FEW = (
    "Whether these images are like the training's is not known: that takes {minimum} patients here"
    " and among the validation scans, and there are {here} and {there}.{limits}"
)
IF_ALIKE = " Limits and ranges of volumes hold only if they are."
TOGETHER = "Segment {minimum} patients of this scanner or more together."
CHECK_ALL = (
    "Check every scan, not only the listed ones, and do not rely on the volumes: {there} validation"
    " patients tell too little. Calibrate on {minimum} or more."
)
ALIKE = (
    "Nothing shows that these images are unlike the training's. That is no proof: the network can"
    " also be sure of images that it segments badly."
)
EVALUATE = (
    "Check the listed scans. Labels of {minimum} patients or more tell how right the network is on"
    " your scanner."
)
FOUND = (
    "In tests with labels, such a list found {found} of the {bad} scans with a DSC below 0.8 and"
    " missed {missed} ({sets}). It also held {listed} of the {others} better ones."
)
NONE_BAD = (
    "In tests with labels, no scan had a DSC below 0.8 ({sets}): whether such a list holds the bad"
    " ones is not known."
)
FAILED = "Do not rely on these limits, which held for too few test patients: {limits}."

# How to read the numbers
ORDER = (
    "Scans are in the order of their expected DSC, worst first: the overlap that the network itself"
    " predicts, without labels, as a Dice similarity coefficient from 0 to 1; the mean over"
    " structures. It is too high on images unlike those of the training."
)
LISTED = (
    "Listed are scans without a structure that every validation scan has, and scans with an"
    " estimate below {threshold:.2f}."
)
SHARE = " So are the {share:.0%} of the scans with the lowest estimates."
TOO_FEW = (
    "DSC and volume have no limits, which need {minimum} validation patients: there are {count}."
)
LIMITS = (
    "Limits are made to hold for 90 % of new patients like the {count} validation patients. Those"
    " of the DSC hold for all structures of a scan together{ranges}."
    " With so many patients, the true share lies between {low:.0%} and {high:.0%} (95 %)."
)
RANGES = "; the range of a volume, in brackets, holds by itself"
MORE = f"The page shows {MOST_CARDS} scans, those to check first; all are in quality.csv."
WORST = " Below 19 patients, the one with the largest error alone sets the limit of the DSC."
OPTIMISTIC = (
    " Limits are optimistic if these patients also chose the epoch or fitted the calibration of the"
    " network, and promise nothing on images of another scanner."
)
ABOUT = (
    "Uncertain: of the voxels where the structure is possible (probability above 5 %), the share"
    " where it is not certain (95 % or less). Pairwise DSC, of several networks: the mean overlap"
    " of their segmentations. Pictures show the slice with the most uncertainty: the contours of"
    " the prediction, and beside them the uncertainty, 4 p (1 - p), from black, certain, to white,"
    " undecided."
)
ABOUT_TESTS = (
    "Patients with labels who chose neither the network nor its calibrator: how many of the scans"
    " with a DSC below 0.8 a list by the rules of this page holds, how far the expected DSC is from"
    " the true one, and for how many patients limits hold; in brackets, for how many that is to be"
    " expected of patients like the validation patients, with a probability of 95 %."
)


class Review(NamedTuple):
    """Which scans a person should look at.

    Attributes:
        share: Share of the scans, those with the lowest estimates.
        below: Estimate below which scans are looked at, in place of a share, and of the 10 %
            quantile of the validation scans.
    """

    share: float
    below: float | None = None

    @classmethod
    def from_options(cls, review: str = "20%", review_below: float | None = None) -> Review:
        """Read the options, such as "20%"; raise `InputError` if one is not suitable."""
        share = re.fullmatch(r"(\d+(?:\.\d+)?) *%", str(review))
        if share is None or float(share[1]) > 100:
            raise InputError(
                f"review must be a percentage of the scans, such as 20%, got {review!r}."
            )
        if review_below is not None:
            check_number("review_below", review_below, 0, 1)
        return cls(float(share[1]) / 100, review_below)

    def is_listed(self, estimates: ArrayLike, reference: Reference) -> NDArray[np.bool_]:
        """Return which scans are looked at, `(scans,)`; all, where the share is not even one and
        there are no validation scans.
        """
        if self.below is not None:
            return is_listed(estimates, 0, self.below)
        listed = is_listed(estimates, self.share, reference.lowest_estimate)
        return listed if listed.any() or len(reference.values) else np.ones_like(listed)

    def among(self, scans: int) -> Review:
        """Return what is looked at of so few scans that the share is not even one."""
        return self if count_share(self.share, scans) else self._replace(share=0)


def describe_scan(
    name: str,
    estimates: Mapping[str, StructureEstimate],
    reference: Reference,
    affine: NDArray | None = None,
    picture: bytes = b"",
    agreement: Mapping[str, float] | None = None,
    patient: str = "",
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
        patient: Name of the patient; "" for that of the scan.
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
    place = ""
    if scans and not math.isnan(mean):
        number = "all" if higher == scans else f"{higher} of"
        place = f"lower than {number} {scans} validation scans"
    return {
        "scan": name,
        "patient": patient or name,
        "estimate": _finite(mean),
        "reasons": _reasons(estimates, mean, reference),
        "rows": rows,
        "place": place,
        "picture": base64.b64encode(picture).decode(),
        "reference": to_data(reference),
    }


def to_data(reference: Reference) -> dict[str, Any]:
    """Return a reference as JSON data."""
    tests = {name: scans.to_tensor().tolist() for name, scans in reference.tests.items()}
    values = reference.to_tensor().tolist()
    return {"structures": [*reference.structures], "values": values, "tests": tests}


def from_data(data: Mapping[str, Any]) -> Reference:
    """Inverse of `to_data`."""
    tests = {name: torch.tensor(values) for name, values in data["tests"].items()}
    return Reference.from_tensor(torch.tensor(data["values"]), data["structures"], tests)


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
    """Write what `describe_scan` returned to `quality/SCAN.json` in a folder, and its reference to
    a file for all scans.
    """
    make_folder(Path(output_dir) / FOLDER)
    scan = dict(record)
    contents = {REFERENCE: scan.pop("reference"), f"{FOLDER}/{record['scan']}.json": scan}
    for name, content in contents.items():
        with writing(Path(output_dir) / name) as unfinished:
            unfinished.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _read_json(file: Path, what: str) -> Any:
    with reading(file, what):
        return json.loads(file.read_text(encoding="utf-8"))


def _read_record(file: Path) -> dict[str, Any]:
    """Read what `write_record` wrote of a scan."""
    with reading(file, "the estimates of a scan"):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["scan"] != file.stem:
            raise ValueError(f"it is of the scan {record['scan']}")
        rows = [{"expected_dsc": record["estimate"]}, *record["rows"]]
        values = [row["expected_dsc"] for row in rows]
        if not record["rows"] or not all(each is None or 0 <= each <= 1 for each in values):
            raise ValueError("it was changed. Segment the scan again")
        return {**{name: record[name] for name in RECORDED}, **record}


def choose(
    records: Sequence[Mapping[str, Any]], reference: Reference, review: Review
) -> list[dict[str, Any]]:
    """Sort the scans, worst first, and add to each whether a person should look at it, `review`,
    and why, `reasons`.

    That is so in any case where a structure of all validation scans is missing.

    Args:
        records: What `describe_scan` returned.
        reference: The validation scans.
        review: Which others to look at.
    """
    ordered = sorted(records, key=lambda record: (record["estimate"] or 0.0, record["scan"]))
    estimates = [record["estimate"] or 0.0 for record in ordered]
    listed = review.is_listed(estimates, reference)
    chosen = []
    for record, is_low in zip(ordered, listed, strict=True):
        reasons = record["reasons"]
        if is_low and not reasons:
            reasons = [_why_listed(record["estimate"] or 0.0, len(ordered), reference, review)]
        chosen.append({**record, "reasons": reasons, "review": "yes" if reasons else "no"})
    return chosen


def _why_listed(estimate: float, scans: int, reference: Reference, review: Review) -> str:
    """Return why a scan is listed whose estimate is low."""
    if review.below is not None:
        return f"its estimate is below {review.below:g}"
    if estimate < reference.lowest_estimate:
        lowest = reference.lowest_estimate
        return f"its estimate is below {lowest:.2f}, as in one of ten validation scans"
    number = count_share(review.share, scans)
    if not number:
        return "there are no validation scans to compare it with"
    return f"one of the {number} lowest of {scans} estimates"


def write_table(
    output_dir: str | os.PathLike,
    review: Review,
    scans: Collection[str] | None = None,
    patients: Mapping[str, str] | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """Make `quality.csv` and `quality.html` from the scans in `quality/`, and say what the page
    says.

    Args:
        output_dir: The folder.
        review: Which scans to look at.
        scans: Names of the scans; None for all that are there.
        patients: Patient of each scan; None for those in the files.
        left_out: Why images could not be segmented, which the page says.
    """
    folder = Path(output_dir)
    records = []
    for file in sorted((folder / FOLDER).glob("[!.]*.json")):
        if scans is None or file.stem in scans:
            records.append(_read_record(file))
    reference = from_data(_read_json(folder / REFERENCE, "the validation scans"))
    review = review.among(len(records))
    if patients is not None:
        records = [{**record, "patient": patients[record["scan"]]} for record in records]
    answer, unlike = conclude(records, reference, review)
    chosen = choose(records, reference, review)
    if unlike:
        chosen = [without_limits(record) for record in chosen]
    page = quality_page(chosen, answer, reference, review, left_out)
    contents = {TABLE: _table(chosen), PAGE: page}
    for name, content in contents.items():
        with writing(folder / name) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    advice = [f"Next: {answer.advice}"] if answer.advice else []
    return " ".join([f"{folder / PAGE}: {_count_listed(chosen)}.", *answer.sentences, *advice])


def conclude(
    records: Sequence[Mapping[str, Any]], reference: Reference, review: Review
) -> tuple[Answer, list[str]]:
    """Return what the page begins with, and the structures of which the network is less sure than
    of the validation scans.
    """
    if not len(reference.values):
        return Answer([NO_REFERENCE]), []
    unlike = find_unlike(records, reference)
    found = _describe_tests(reference, review)
    if unlike:
        return Answer([UNLIKE.format(what=", ".join(unlike)), *found], LABEL), unlike
    failed = [f"{limit} ({', '.join(held)})" for limit, held in _failures(reference).items()]
    if failed:
        found.append(FAILED.format(limits="; ".join(failed)))
    here = len({record["patient"] for record in records if record["estimate"] is not None})
    if min(here, reference.patients) < MIN_PATIENTS:
        limits = IF_ALIKE if reference.patients >= LIMIT_PATIENTS else ""
        few = FEW.format(minimum="six", here=here, there=reference.patients, limits=limits)
        advice = TOGETHER.format(minimum="six")
        if reference.patients < MIN_PATIENTS:
            advice = CHECK_ALL.format(minimum="six", there=reference.patients)
        return Answer([few, *found], advice), []
    return Answer([ALIKE, *found], EVALUATE.format(minimum="six")), []


def find_unlike(records: Sequence[Mapping[str, Any]], reference: Reference) -> list[str]:
    """Return the structures, or that it is their mean alone, of which the network is less sure in
    these scans than in the validation scans, see `find_shift`.
    """
    by_structure: dict[str, list[Any]] = {name: [] for name in reference.structures}
    for record in records:
        for row in record["rows"]:
            by_structure[row["structure"]].append(row["expected_dsc"])
    estimates = np.array([record["estimate"] for record in records], float)
    patients = [record["patient"] for record in records]
    p_values = find_shift(reference, patients, by_structure, estimates)
    lower = [name for name, p_value in p_values.items() if p_value < SIGNIFICANT]
    return [name for name in lower if name != MEAN] or lower


def without_limits(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without limits of its structures."""
    withdrawn = {estimate.name: None for estimate in ESTIMATES if estimate.is_limit}
    return {**record, "rows": [{**row, **withdrawn} for row in record["rows"]]}


def _describe_tests(reference: Reference, review: Review) -> list[str]:
    """Return how many bad scans such a list held in tests, in a sentence, if there were any."""
    counts = {name: _try_list(scans, reference, review) for name, scans in reference.tests.items()}
    if not counts:
        return []
    found, bad, listed, others = np.sum([*counts.values()], 0)
    if not bad:
        return [NONE_BAD.format(sets=", ".join(counts))]
    sets = ", ".join(
        f"{name}: {here} of {total}" if total else f"{name}: none is that bad"
        for name, (here, total, *_) in counts.items()
    )
    numbers = {"found": found, "bad": bad, "missed": bad - found, "sets": sets}
    return [FOUND.format(**numbers, listed=listed, others=others)]


def _try_list(scans: Reference, reference: Reference, review: Review) -> tuple[int, ...]:
    """Return how many of the bad scans of a test a list would hold, and how many there are;
    likewise of the others.
    """
    listed = review.is_listed(reference.estimate(scans), reference)
    is_bad = scans.dsc < BAD
    parts = (listed & is_bad, is_bad, listed & ~is_bad, ~is_bad)
    return tuple(int(part.sum()) for part in parts)


def _failures(reference: Reference) -> dict[str, list[str]]:
    """Return for how many patients each limit held, in tests in which these were too few."""
    failed: dict[str, list[str]] = {}
    for name, scans in reference.tests.items():
        for limit, each in reference.coverage(scans).items():
            if each.fails:
                failed.setdefault(limit, []).append(f"{each.held} of {each.patients} on {name}")
    return failed


def quality_page(
    chosen: Sequence[Mapping[str, Any]],
    answer: Answer,
    reference: Reference,
    review: Review,
    left_out: Sequence[str] = (),
) -> str:
    """Return the page of what `choose` returned, and of images that could not be segmented."""
    shown = _cards_of(chosen)
    defined = defined_estimates(chosen)
    has_limits = any(each.is_limit and each.name in defined for each in ESTIMATES)
    failed = _failures(reference) if has_limits else {}
    sections = [*_left_out_section(left_out), *_tests_section(reference, review)]
    return render_page(
        _count_listed(chosen),
        answer,
        [*sections, *(_card(record, defined, failed) for record in shown)],
        [*_notes(reference, review, has_limits), *([MORE] if len(shown) < len(chosen) else [])],
        {record["scan"]: record["scan"] for record in shown if record["review"] == "yes"},
    )


def _cards_of(chosen: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the scans that the page shows, in their order: those to check first, as far as
    browsers show a page.
    """
    first = sorted(chosen, key=lambda record: record["review"] != "yes")[:MOST_CARDS]
    names = {record["scan"] for record in first}
    return [record for record in chosen if record["scan"] in names]


def _count_listed(chosen: Sequence[Mapping[str, Any]]) -> str:
    listed = sum(record["review"] == "yes" for record in chosen)
    return f"{listed} of {len(chosen)} segmentations to check"


def _notes(reference: Reference, review: Review, has_limits: bool) -> list[str]:
    """Return how to read the numbers."""
    notes, count = [ORDER], reference.patients
    if review.below is None and len(reference.values):
        share = SHARE.format(share=review.share) if review.share else ""
        notes.append(LISTED.format(threshold=reference.lowest_estimate) + share)
    if count < LIMIT_PATIENTS:
        notes.append(TOO_FEW.format(minimum=LIMIT_PATIENTS, count=count))
    if not has_limits:
        return [*notes, ABOUT]
    low, high = coverage_of(count).interval(0.95)
    has_ranges = any(
        np.isfinite(reference.volume_range(name, 1)[0]) for name in reference.structures
    )
    ranges = "; the range of a volume, in brackets, holds by itself" if has_ranges else ""
    limits = LIMITS.format(count=count, low=low, high=high, ranges=ranges)
    if count < 2 * LIMIT_PATIENTS + 1:
        limits += WORST
    return [*notes, limits + OPTIMISTIC, ABOUT]


def _left_out_section(reasons: Sequence[str]) -> list[Section]:
    """Return a line for each reason why an image was left out; nothing without one."""
    if not reasons:
        return []
    table = pd.DataFrame(
        {"number": str(number), "measure": "reason", "text": reason}
        for number, reason in enumerate(reasons, 1)
    )
    title = f"Left out, not segmented: {len(reasons)}"
    return [Section("left_out", title, "", table, ["number"], folded=False, first=MOST_REASONS)]


def _tests_section(reference: Reference, review: Review) -> list[Section]:
    """Return a line for each set of labelled test scans; nothing without one."""
    rows: list[dict[str, Any]] = []
    for name, scans in reference.tests.items():
        found, bad, listed, others = _try_list(scans, reference, review)
        optimism = np.nanmean(np.nan_to_num(reference.estimate(scans)) - scans.dsc)
        texts = {
            "patients": str(scans.patients),
            "below 0.8, listed": f"{found} of {bad}",
            "others, listed": f"{listed} of {others}",
            "expected minus true DSC": f"{optimism:+.3f}",
        }
        rows += [{"set": name, "measure": title, "text": text} for title, text in texts.items()]
        for limit, each in reference.coverage(scans).items():
            rows.append({"set": name, "measure": limit, "text": str(each), "bold": each.fails})
    if not rows:
        return []
    title, table = "On test patients with labels", pd.DataFrame(rows)
    return [Section("tests", title, ABOUT_TESTS, table, ["set"])]


def _card(
    record: Mapping[str, Any], defined: set[str], failed: Mapping[str, Sequence[str]]
) -> Section:
    """Return the part of the page about a scan; `failed` says by limit in which tests it did not
    hold.
    """
    shown = [each for each in ESTIMATES if each.format and each.name in defined]
    records = [
        {
            "structure": row["structure"],
            "measure": estimate.title,
            "text": _text(row, estimate),
            "color": COLORS[number % len(COLORS)],
            "note": _failed_of(estimate, row["structure"], failed),
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


def _failed_of(
    estimate: QualityColumn, structure: str, failed: Mapping[str, Sequence[str]]
) -> str | None:
    """Return for how many patients the limits of a column held in tests, if these were too few."""
    limit = volume_of(structure) if estimate.limits else ALL_DSC if estimate.is_limit else ""
    return f"held for {', '.join(failed[limit])}" if limit in failed else None


def _summary(record: Mapping[str, Any]) -> str:
    """Say what is expected of a scan, and why a person should look at it."""
    text, reasons = "No structure.", "; ".join(record["reasons"])
    if record["estimate"] is not None:
        place = record["place"]
        beside = f", {place}" if place else ""
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
