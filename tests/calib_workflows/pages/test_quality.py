"""The files of many scans: what is looked at and why, restarts and shards, and the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_components.metrics.case import MEASURES
from calib_components.quality import ESTIMATES, Reference
from calib_components.quality.estimates import QualityColumn
from calib_components.quality.ranking import is_listed
from calib_workflows.pages import quality
from calib_workflows.pages.quality import (
    MOST_CARDS,
    Review,
    choose,
    describe_scan,
    to_data,
    write_record,
)
from calib_workflows.pages.slices import Panel, draw_slice
from tests.calib_components.quality.made_up import NO_REFERENCE, estimate, reference


def record(
    name: str, dsc: float, known: Reference = NO_REFERENCE, **options: Any
) -> dict[str, Any]:
    return describe_scan(name, {"a": estimate(dsc), "b": estimate(dsc)}, known, **options)


def write_table(folder: Path, **options: Any) -> str:
    return quality.write_table(folder, Review.from_options(**options))


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


def test_missing_structures_are_always_reviewed() -> None:
    known = reference(12)
    missing = describe_scan("missing", {"a": estimate(0.9), "b": estimate(0, 3, 0)}, known)
    assert missing["estimate"] == pytest.approx(0.45)
    assert missing["reasons"] == ["b is not found, but is in all 12 validation scans"]
    assert record("good", 0.9, known)["reasons"] == []
    optional = Reference(known.structures, known.values * [1, 1, 1, 1, 0])
    found = describe_scan("without b", {"a": estimate(0.9), "b": estimate(0, 3, 0)}, optional)
    assert (found["estimate"], found["rows"][1]["expected_dsc"]) == (0.9, None)
    nothing = {"a": estimate(0, 3, 0), "b": estimate(math.nan, 0, 0, possible=0)}
    assert describe_scan("empty", nothing, optional)["reasons"] == ["nothing is found"]
    (chosen,) = choose([missing], known, Review.from_options(review_below=0.1))
    assert chosen["review"] == "yes"


@pytest.mark.parametrize(
    ("options", "scans", "known", "reviewed"),
    [
        ({}, 10, NO_REFERENCE, 2),
        ({}, 11, NO_REFERENCE, 3),  # a fifth, rounded up
        ({"review": "25 %"}, 10, NO_REFERENCE, 3),
        ({"review_below": 0.63}, 10, NO_REFERENCE, 4),
        ({}, 4, NO_REFERENCE, 4),  # there is nothing to compare them with
        ({}, 4, reference(12), 0),
        ({"review": "100%"}, 4, reference(12), 4),
        ({"review_below": 0.685}, 4, reference(12), 3),
    ],
)
def test_the_worst_are_reviewed_and_come_first(
    options: dict[str, Any], scans: int, known: Reference, reviewed: int
) -> None:
    records = [record(f"scan{i:02}", 0.685 - i / 100, known) for i in range(scans)]
    chosen = choose(records, known, Review.from_options(**options))
    assert [each["scan"] for each in chosen] == [f"scan{i:02}" for i in reversed(range(scans))]
    assert [each["review"] for each in chosen] == ["yes"] * reviewed + ["no"] * (scans - reviewed)
    assert all(bool(each["reasons"]) == (each["review"] == "yes") for each in chosen)


def test_scans_with_a_lower_estimate_than_one_in_ten_validation_scans_are_reviewed() -> None:
    known = reference(40)
    lowest = known.lowest_estimate
    assert (known.estimates < lowest).sum() == 4
    records = [record("low", lowest - 0.01, known), record("high", lowest + 0.01, known)]
    low, high = choose(records, known, Review.from_options())
    assert low["reasons"] == [
        f"its estimate is below {lowest:.2f}, as in one of ten validation scans"
    ]
    assert (low["review"], high["review"]) == ("yes", "no")


def test_unsuitable_options_and_files_are_refused(tmp_path: Path) -> None:
    for review in ("0.2", "120%", "all"):
        with pytest.raises(InputError, match="such as 20%"):
            Review.from_options(review)
    with pytest.raises(InputError, match="review_below must be a number from 0 to 1"):
        Review.from_options(review_below=80)
    write_record(record("one", 0.7), tmp_path)
    file = tmp_path / "quality" / "one.json"
    file.write_text('{"scan": ')
    with pytest.raises(InputError, match=r"one.json: cannot read the estimates of a scan"):
        write_table(tmp_path)
    for name, value in (("scan", "two"), ("estimate", 5), ("rows", []), ("place", None)):
        changed = {**record("one", 0.7), name: value}
        if value is None:
            del changed[name]
        file.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=r"one.json: cannot read the estimates of a scan"):
            write_table(tmp_path)
    assert not (tmp_path / "quality.html").exists()


def test_the_page_of_many_scans_shows_those_to_check(tmp_path: Path) -> None:
    scans = {f"scan{number:04}": 0.2 + number / 2000 for number in range(MOST_CARDS + 50)}
    content = record("scan0000", 0.1)
    write_record(content, tmp_path)
    for name, expected in scans.items():
        reasons = ["odd"] if name == "scan0549" else []
        one = {**content, "scan": name, "estimate": expected, "reasons": reasons}
        (tmp_path / "quality" / f"{name}.json").write_text(json.dumps(one))
    write_table(tmp_path)
    page = (tmp_path / "quality.html").read_text()
    assert page.count("<article") == MOST_CARDS
    assert 'id="scan0549"' in page
    assert 'id="scan0540"' not in page
    assert f"The page shows {MOST_CARDS} scans, those to check first" in page
    assert len(pd.read_csv(tmp_path / "quality.csv")["scan"].unique()) == len(scans)


def test_shards_and_restarts_end_in_the_same_files(tmp_path: Path) -> None:
    for shards in (1, 3):
        for shard in range(shards):
            for i in range(shard, 9, shards):
                write_record(record(f"scan{i}", 0.9 - 0.01 * i), tmp_path / str(shards))
            write_table(tmp_path / str(shards))
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
    foreign = {"place": tag, "reasons": [tag, tag]}
    rows = [{"structure": tag, "expected_dsc": 0.8}]
    last = {**record("foreign", 0.95), **foreign, "rows": rows}
    write_record({**last, "reference": to_data(NO_REFERENCE)}, tmp_path)
    said = write_table(tmp_path, review_below=0.6)
    start = f"{tmp_path / 'quality.html'}: 2 of 3 segmentations to check. "
    assert said == start + quality.NO_REFERENCE
    html = (tmp_path / "quality.html").read_text()
    assert "2 of 3 segmentations to check" in html
    assert tag[:9] not in html
    assert "&lt;b&gt;&amp;" in html
    assert html.index("&lt;b&gt;&amp;") < html.index("$scan")
    assert "There are no validation scans" in html
    assert not re.search(r"(src|href)=.(?!#|data:)", html)


def write_scans(
    folder: Path, known: Reference, estimates: Sequence[float], patients: Sequence[str]
) -> tuple[str, str, pd.DataFrame]:
    """Return what is said of scans, their page and their table."""
    for number, dsc in enumerate(estimates):
        patient = patients[number % len(patients)]
        one = record(f"scan{number}", dsc, known, affine=np.diag([1.0, 1.0, 2.0, 1.0]))
        write_record({**one, "patient": patient}, folder)
    said = write_table(folder)
    html = unescape((folder / "quality.html").read_text())
    return said, html, pd.read_csv(folder / "quality.csv")


NAMES = [f"p{number}" for number in range(8)]


def test_images_of_which_the_network_is_less_sure_lose_their_limits(tmp_path: Path) -> None:
    said, html, table = write_scans(tmp_path, reference(30), [0.55] * 8, NAMES)
    sentence = "These images look unlike the training's (a, b): the network is less sure of them"
    assert sentence in said
    assert sentence in html
    assert "Next: Check every scan, not only the listed ones." in said
    assert "label five patients like these" in html
    assert table[["dsc_lower_bound", "volume_low_ml", "volume_high_ml"]].isna().all(axis=None)
    assert table["expected_volume_ml"].notna().all()
    assert "DSC at least" not in html


def test_few_validation_patients_vouch_for_nothing(tmp_path: Path) -> None:
    said, html, _ = write_scans(tmp_path, reference(5), [0.9] * 8, NAMES)
    advice = "Check every scan, not only the listed ones, and do not rely on the volumes: 5 valid"
    assert advice in said
    assert advice in html


@pytest.mark.parametrize(
    ("patients", "sentence"),
    [
        (NAMES, "Nothing shows that these images are unlike the training's."),
        (
            NAMES[:5],
            "that takes six patients here and among the validation scans, and there are 5 and 30.",
        ),
        (NAMES[:1], "and there are 1 and 30."),
    ],
)
def test_silence_of_few_patients_says_nothing(
    patients: list[str], sentence: str, tmp_path: Path
) -> None:
    said, html, table = write_scans(tmp_path, reference(30), [0.9] * 8, patients)
    assert sentence in said
    assert sentence in html
    assert "look unlike" not in said
    assert table["dsc_lower_bound"].notna().all()


def test_what_cannot_be_compared_says_nothing(tmp_path: Path) -> None:
    assert quality.conclude([], reference(12), Review.from_options())[1] == []
    said, *_ = write_scans(tmp_path / "few", reference(5), [0.9] * 8, NAMES)
    assert "is not known: that takes six patients" in said
    optional = Reference(["a", "b"], reference(30).values * [1, 1, 1, 1, 0])
    nothing = {"a": estimate(0, 3, 0), "b": estimate(0, 3, 0)}
    for name in NAMES:
        write_record(describe_scan(name, nothing, optional), tmp_path / "empty")
    assert "there are 0 and 30" in write_table(tmp_path / "empty")


def test_notes_are_of_what_the_page_has(tmp_path: Path) -> None:
    known = reference(30)
    _, html, _ = write_scans(tmp_path / "a", known, [0.9] * 8, NAMES)
    assert "So are the 20% of the scans with the lowest estimates." in html
    assert "Limits are made to hold" in html
    _, html, _ = write_scans(tmp_path / "b", known, [0.9] * 4, NAMES)
    assert "with the lowest estimates" not in html
    _, html, _ = write_scans(tmp_path / "c", known, [0.55] * 8, NAMES)
    assert "Limits are made to hold" not in html
    _, html, _ = write_scans(tmp_path / "d", reference(8), [0.9] * 8, NAMES)
    assert "limits, which need 9 validation patients: there are 8" in html


def test_scans_of_a_patient_count_once(tmp_path: Path) -> None:
    known, estimates = reference(30), [0.55] * 8
    said, *_ = write_scans(tmp_path, known, estimates, ["p"])
    assert "there are 1 and 30" in said
    patients = {f"scan{number}": f"q{number}" for number in range(8)}
    said = quality.write_table(tmp_path, Review.from_options(), patients=patients)
    assert "look unlike" in said


def test_what_tests_showed_stands_on_the_page(tmp_path: Path) -> None:
    known = reference(30)
    tested = reference(20, seed=1)
    bad = tested.values.copy()
    bad[:, 1, 4] *= 3
    tests = {"home": tested, "Philips": Reference(tested.structures, bad)}
    known = Reference(known.structures, known.values, tests)
    said, html, _ = write_scans(tmp_path, known, [0.9] * 8, NAMES)
    listed = is_listed(known.estimate(tested), threshold=known.lowest_estimate)
    is_bad = tested.dsc < 0.8
    found, all_bad = (listed & is_bad).sum(), is_bad.sum()
    assert all_bad > found > 0
    sentence = (
        f"such a list found {2 * found} of the {2 * all_bad} scans with a DSC below 0.8 and missed"
        f" {2 * (all_bad - found)} (home: {found} of {all_bad}, Philips: {found} of {all_bad})."
        f" It also held {2 * (listed & ~is_bad).sum()} of the {40 - 2 * all_bad} better ones."
    )
    held = known.coverage(tests["Philips"])["b volume"].held
    failed = f"which held for too few test patients: b volume ({held} of 20 on Philips)."
    for text in (sentence, failed):
        assert text in said
        assert text in html
    assert f"held for {held} of 20 on Philips" in html  # beside the volumes
    assert "On test patients with labels" in html
    good = tested.values.copy()
    good[..., 2] = 0.9
    no_bad = Reference(known.structures, known.values, {"home": Reference("ab", good)})
    assert "no scan had a DSC below 0.8 (home)" in write_scans(tmp_path, no_bad, [0.9], NAMES)[0]


def test_weights_before_tests_promise_nothing(tmp_path: Path) -> None:
    said, html, _ = write_scans(tmp_path, reference(30), [0.9] * 8, NAMES)
    assert "list found" not in said + html
    assert "the range of a volume, in brackets, holds by itself" in html
    (tmp_path / "quality" / ".reference.json").unlink()
    with pytest.raises(InputError, match=r"reference\.json: cannot read the validation scans"):
        write_table(tmp_path)
