"""The files of many scans: what is looked at and why, restarts and shards, and the page."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_components.metrics.case import MEASURES
from calib_components.quality import ESTIMATES, Reference
from calib_components.quality.estimates import QualityColumn
from calib_workflows.pages import quality
from calib_workflows.pages.quality import choose, describe_scan, write_record, write_table
from calib_workflows.pages.slices import Panel, draw_slice
from tests.calib_components.quality.made_up import NO_REFERENCE, estimate, reference


def record(
    name: str, dsc: float, known: Reference = NO_REFERENCE, **options: Any
) -> dict[str, Any]:
    return describe_scan(name, {"a": estimate(dsc), "b": estimate(dsc)}, known, **options)


def test_the_table_has_the_columns_and_numbers_of_each_structure(tmp_path: Path) -> None:
    known = reference(12)
    write_record(record("one", 0.7, known, affine=np.diag([1.0, -1.0, 2.0, 1.0])), tmp_path)
    write_record(record("two", 0.8, known, affine=np.eye(4)), tmp_path)  # its spacing is lost
    write_table(tmp_path)
    found = pd.read_csv(tmp_path / "quality.csv")
    assert {"review", "reason"} < set(found)
    assert "pairwise_dsc" not in found  # of one segmentation
    assert found[["scan", "structure"]].to_numpy().tolist() == [
        ["one", "a"],
        ["one", "b"],
        ["two", "a"],
        ["two", "b"],
    ]
    low, high = known.volume_range("b", 1000)
    expected = {
        "expected_dsc": 0.7,
        "dsc_lower_bound": known.lower_bound("b", 0.7),
        "expected_volume_ml": 2,
        "volume_low_ml": low * 0.002,
        "volume_high_ml": high * 0.002,
        "uncertain_share": 0.25,
        "mean_entropy": 0.5,
    }
    values = found.loc[1, [*expected]].to_numpy(float)
    np.testing.assert_allclose(values, [*expected.values()], rtol=1e-12)
    assert found.loc[3, ["expected_volume_ml", "volume_low_ml", "volume_high_ml"]].isna().all()


def test_a_new_estimate_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the table, on the page, in evaluations and so in reports."""
    new = QualityColumn(
        "made_up", "made-up title", lambda scan: 2 * scan.estimate.mean_entropy, ".1f"
    )
    monkeypatch.setattr(quality, "ESTIMATES", (*ESTIMATES, new))
    write_record(record("one", 0.7), tmp_path)
    write_table(tmp_path)
    assert pd.read_csv(tmp_path / "quality.csv")["made_up"].tolist() == pytest.approx([1, 1])
    html = (tmp_path / "quality.html").read_text()
    assert "<th>made-up title" in html
    assert "<td>1.0" in html
    measured = {measure.name: measure for measure in MEASURES}
    ordering = [entry for entry in ESTIMATES if entry.better]
    assert {entry.name for entry in ordering} >= {"expected_dsc", "mean_entropy"}
    assert all(measured[entry.name].better == entry.better for entry in ordering)


def test_missing_structures_and_scans_unlike_the_validation_scans_are_always_reviewed() -> None:
    known = reference(12)
    missing = describe_scan("missing", {"a": estimate(0.9), "b": estimate(0, 3, 0)}, known)
    assert missing["estimate"] == pytest.approx(0.45)
    assert missing["reasons"][0] == "b is not found, but is in all 12 validation scans"
    assert record("other body part", 0.1, known)["reasons"] == [
        "its estimate is lower than all 12 validation scans"
    ]
    assert record("good", 0.9, known)["reasons"] == []
    optional = Reference(known.structures, known.values * [1, 1, 1, 1, 0])
    found = describe_scan("without b", {"a": estimate(0.9), "b": estimate(0, 3, 0)}, optional)
    assert (found["estimate"], found["rows"][1]["expected_dsc"]) == (0.9, None)
    nothing = {
        "a": estimate(0, 3, 0),
        "b": estimate(math.nan, 0, 0, possible=0),
    }
    assert describe_scan("empty", nothing, optional)["reasons"] == ["nothing is found"]
    empty = describe_scan("empty", nothing, NO_REFERENCE)
    # Of scans that nothing is known of, the share that is asked for
    chosen = choose([{**empty, "scan": name} for name in "abc"])
    assert [each["review"] for each in chosen] == ["yes", "no", "no"]


@pytest.mark.parametrize(
    ("options", "reviewed"), [({}, 2), ({"review": "25 %"}, 3), ({"review_below": 0.63}, 4)]
)
def test_the_worst_are_reviewed_and_come_first(options: dict[str, Any], reviewed: int) -> None:
    chosen = choose([record(f"scan{i}", 0.685 - i / 100) for i in range(10)], **options)
    assert [each["scan"] for each in chosen] == [f"scan{i}" for i in reversed(range(10))]
    assert [each["review"] for each in chosen] == ["yes"] * reviewed + ["no"] * (10 - reviewed)
    assert all(bool(each["reasons"]) == (each["review"] == "yes") for each in chosen)


def test_unsuitable_options_and_files_are_refused(tmp_path: Path) -> None:
    for review in ("0.2", "120%", "all"):
        with pytest.raises(InputError, match="such as 20%"):
            choose([], review)
    with pytest.raises(InputError, match="review_below must be a number from 0 to 1"):
        choose([], review_below=80)
    write_record(record("one", 0.7), tmp_path)
    file = tmp_path / "quality" / "one.json"
    file.write_text('{"scan": ')
    with pytest.raises(InputError, match=r"one.json: cannot read the estimates of a scan"):
        write_table(tmp_path)
    assert not (tmp_path / "quality.html").exists()


def test_shards_and_restarts_end_in_the_same_files(tmp_path: Path) -> None:
    for shards in (1, 3):
        for shard in range(shards):
            for i in range(shard, 9, shards):
                write_record(record(f"scan{i}", 0.9 - 0.01 * i), tmp_path / str(shards))
            write_table(tmp_path / str(shards), "20%")
    for name in ("quality.csv", "quality.html"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_the_page_is_complete_by_itself_and_shows_names_literally(tmp_path: Path) -> None:
    picture = draw_slice([Panel(np.eye(9), np.ones((1, 9, 9)))], np.eye(4))
    for name, dsc in (("<b>&", 0.5), ("$scan", 0.9)):
        write_record(
            record(
                name, dsc, reference(12), affine=np.diag([-1.0, -1.0, 1.0, 1.0]), picture=picture
            ),
            tmp_path,
        )
    tag = "<script>'\""
    foreign = dict.fromkeys(("note", "place", "evidence"), tag) | {"reasons": [tag, tag]}
    rows = [{"structure": tag, "expected_dsc": 0.8}]
    write_record({**record("foreign", 0.95), **foreign, "rows": rows}, tmp_path)
    said = write_table(tmp_path, review_below=0.6)
    evidence = reference(12).evidence
    assert said == f"{tmp_path / 'quality.html'}: 2 of 3 segmentations to check. {tag} {evidence}"
    html = (tmp_path / "quality.html").read_text()
    assert "2 of 3 segmentations to check" in html
    assert tag[:9] not in html
    assert "&lt;b&gt;&amp;" in html
    assert html.index("&lt;b&gt;&amp;") < html.index("$scan")
    assert "optimistic" in html
    assert evidence in html
    assert "Check: its estimate is lower than all 12 validation scans.<" in html
    assert not re.search(r"(src|href)=.(?!#|data:)", html)


@pytest.mark.parametrize(
    ("bad", "patients", "is_headline"), [(3, 12, True), (2, 12, False), (3, 8, False)]
)
def test_a_headline_says_that_most_images_are_unlike_those_of_the_training(
    tmp_path: Path, bad: int, patients: int, is_headline: bool
) -> None:
    known = reference(patients)
    for number in range(5):
        dsc = 0.1 if number < bad else 0.9
        write_record(record(f"scan{number}", dsc, known), tmp_path)
    said, html = write_table(tmp_path), (tmp_path / "quality.html").read_text()
    headline = f"unlike those of the training: {bad} of 5 have a lower estimate than all validation"
    assert (headline in said) == (headline in html) == is_headline
