"""Volumes and thresholds in the report of evaluations, and the ratios behind the latter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.calib_components.tools.compare.made_up import STRUCTURES, make_folder

from calib_components.handlers.evaluation_files import read_cases, read_thresholds, write_cases, write_thresholds
from calib_components.metrics import ThresholdCounts
from calib_components.tools.report.clinical import thresholds_section, volumes_section
from calib_components.tools.report.evaluations import Evaluations, read_evaluation, read_evaluations
from calib_components.tools.report.page import Section
from calib_components.tools.report.statistics import mean_with_interval, ratio_with_interval

MEASURES = ("sensitivity", "specificity", "ppv", "dsc")


def vary_thresholds(folder: Path, seed: int = 0) -> Path:
    """Give each case its own counts, and leave RV out of every fourth case."""
    rng = np.random.default_rng(seed)
    cases, _ = read_cases(folder)
    thresholds = np.arange(1, 100) / 100
    true = rng.integers(500, 1500, (len(cases), len(STRUCTURES)))
    true[::4, 0] = 0
    positive = (true[..., None] * (1 - thresholds) ** rng.uniform(0.2, 0.6, true.shape)[..., None]).astype(int)
    false = (rng.integers(100, 900, true.shape)[..., None] * (1 - thresholds)).astype(int)
    fields = (thresholds, positive, positive + false, true, np.full(true.shape, 10_000))
    write_thresholds(folder, STRUCTURES, cases, ThresholdCounts(*map(torch.from_numpy, fields)))
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    place = tmp_path_factory.mktemp("folders")
    return read_evaluations([vary_thresholds(make_folder(place / name), seed) for seed, name in enumerate("ab")])


@pytest.fixture(scope="module")
def section(found: Evaluations) -> Section:
    written = thresholds_section(found, None)
    assert written is not None
    return written


def texts(section: Section, **columns: str) -> list[list[str]]:
    """Cells, with their notes, of the rows whose cell below a heading begins with a text."""
    rows = [["|".join([cell.text, *cell.notes]) for cell in row] for row in section.rows]
    wanted = {section.header.index(name): text for name, text in columns.items()}
    return [row for row in rows if all(row[place].startswith(text) for place, text in wanted.items())]


def test_ratios_by_a_plain_loop() -> None:
    """Cases of seven patients; the third has none of the denominators, and the last one none of the second."""
    rng = np.random.default_rng(1)
    patients = [name for name in "abcdefg" for _ in range(2)] + ["g"]
    below = rng.integers(5, 20, (15, 2))
    below[4:6] = 0
    below[12:, 1] = 0
    above = rng.binomial(below, 0.7)
    found = ratio_with_interval(above, below, patients)
    names = sorted({*patients} - {"c"})
    drawn = np.random.default_rng(0).integers(6, size=(10_000, 6))
    for column, estimate in enumerate(found):
        resampled = []
        for draw in drawn:
            index = [i for place in draw for i, patient in enumerate(patients) if patient == names[place]]
            if below[index, column].sum() > 0:
                resampled.append(above[index, column].sum() / below[index, column].sum())
        assert estimate.mean == above[:, column].sum() / below[:, column].sum()
        ends = np.quantile(resampled, [0.025, 0.975]) if column == 0 else [np.nan, np.nan]  # five patients are too few
        np.testing.assert_allclose(estimate[1:], ends, rtol=1e-12)


def test_a_mean_is_a_ratio() -> None:
    values = np.random.default_rng(2).normal(size=20)
    values[[3, 8, 9]] = np.nan
    patients = [f"p{i // 2}" for i in range(20)]  # p4 has none
    defined = ~np.isnan(values)
    (found,) = ratio_with_interval(np.nan_to_num(values)[:, None], defined[:, None], patients)
    assert found == pytest.approx(mean_with_interval(values, patients), rel=1e-12)


def test_ratios_of_nothing() -> None:
    assert np.isnan(ratio_with_interval(np.zeros((8, 2)), np.zeros((8, 2)))).all()
    (found,) = ratio_with_interval(np.ones((5, 1)), np.ones((5, 1)))  # five patients are too few
    assert found == pytest.approx((1, np.nan, np.nan), nan_ok=True)


def test_intervals_of_thresholds_are_over_patients(found: Evaluations, section: Section) -> None:
    records = {(record["method"], record["structure"], record["threshold"]): record for record in section.records}
    assert len(records) == 2 * 3 * 99
    assert list(section.records[0]) == [
        *("method", "structure", "threshold"),
        *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")),
        "chosen",
    ]
    for method in found.methods:
        counts = method.evaluation.thresholds
        for number, structure in enumerate(STRUCTURES):
            table, dsc = counts.table(number), counts.dsc[:, number].numpy()
            dsc = np.where(counts.true[:, number, None] > 0, dsc, np.nan)
            for index in (0, 49, 98):
                record = records[method.name, structure, round((index + 1) / 100, 4)]
                for name in MEASURES:
                    assert record[name] == pytest.approx(getattr(table, name)[index].item(), rel=1e-12)
                    assert record[f"{name}_low"] < record[name] < record[f"{name}_high"]
                expected = mean_with_interval(dsc[:, index], found.patients)
                assert [record[f"dsc{end}"] for end in ("", "_low", "_high")] == pytest.approx([*expected], rel=1e-12)


def test_intervals_are_below_the_numbers_of_the_table(section: Section) -> None:
    (row,) = texts(section, **{"": "b", "structure": "RV", "threshold": "0.75"})
    (record,) = [r for r in section.records if (r["method"], r["structure"], r["threshold"]) == ("b", "RV", 0.75)]
    shown = [f"{record[n]:.3f}|[{record[f'{n}_low']:.3f}, {record[f'{n}_high']:.3f}]" for n in MEASURES]
    assert row == ["b", "RV", "0.75", *shown]
    assert "the mean over the cases that have the structure; below each, its 95 % interval over patients." in (
        section.caption
    )


def test_few_patients_have_no_interval_of_thresholds(tmp_path: Path) -> None:
    section = thresholds_section(read_evaluations([make_folder(tmp_path / "a", patients=5)]), None)
    assert np.isnan([record["ppv_low"] for record in section.records]).all()
    assert not any("[" in cell for row in texts(section) for cell in row)


def test_row_of_the_usual_threshold_is_marked(section: Section, found: Evaluations, tmp_path: Path) -> None:
    assert [row[2] for row in texts(section, **{"": "a", "structure": "LV"})] == [
        *("0.10", "0.25", "0.50|usual", "0.75", "0.90")
    ]
    assert "The usual threshold is 0.5." in section.caption
    validation = vary_thresholds(make_folder(tmp_path / "validation"))
    names, counts = read_thresholds(validation)
    for field in (counts.true_positive, counts.predicted):
        field[:, 1:] = field[:, 1:, :1]  # all thresholds are the same, so that 0.5 is chosen
    write_thresholds(validation, names, read_cases(validation)[0], counts)
    chosen = thresholds_section(found, read_evaluation(validation))
    assert [row[2] for row in texts(chosen, **{"": "a", "structure": "LV"}) if "|" in row[2]] == ["0.50|chosen"]
    of_rv = [row[2] for row in texts(chosen, **{"": "a", "structure": "RV"}) if "|" in row[2]]
    assert sorted(cell.partition("|")[2] for cell in of_rv) == ["chosen", "usual"]


def test_only_cases_with_the_structure_count_in_range(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", patients=4)
    cases, columns = read_cases(folder)
    true, low, high = (columns[f"{name}_RV"] for name in ("true_volume", "volume_low", "volume_high"))
    true[:], low[:], high[:] = [20, 20, 20, 0, 0, 0, 0, np.nan], 10, [30, 30, 15, 9, 9, 9, 9, 30]
    low[3:] = [0, 0, 0, 1, 10]  # of the four cases without the structure, three are in range
    write_cases(folder, cases, {name: torch.from_numpy(values) for name, values in columns.items()})
    section = volumes_section(read_evaluations([folder]))
    (record,) = [record for record in section.records if record["structure"] == "RV"]
    assert (record["inside"], record["cases"]) == (2, 3)
    assert texts(section, structure="RV")[0][-1] == "2 of 3"
    for text in (
        "In range: how often, of the cases that have the structure, the true volume lies between",
        "at least 90 % of true volumes would lie in this range where some voxel has p > .95",
    ):
        assert text in section.caption
