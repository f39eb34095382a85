"""Results folders of comparisons, and their compact form, as tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from study.compare.compact import with_confidence, write_compact
from study.compare.data import Row
from study.compare.readers import read_cells
from study.tests.made_up import write_cell, write_comparison
from tests.calib_tools.report.made_up import cases_of, write_evaluation


def test_cells_are_read_with_all_conditions(tmp_path: Path) -> None:
    found = read_cells(write_comparison(tmp_path, temperature=0.8, test_sets=("scanner",)))
    assert [*found.labels] == ["ce_dice", "nacl"]
    assert found.about["missing"] == ["svls, seed 0", "svls, seed 1"]
    assert found.test_sets == ["", "scanner"]
    assert [found.label(row) for row in found.rows("scanner")] == [
        "CE+DSC",
        "CE+DSC + T (0.80)",
        "NACL",
        "NACL + T (0.80)",
    ]
    assert found.values(Row("nacl", "with", "scanner"), "dsc").shape == (2, 12)
    assert found.on("").count == "8 patients"
    assert found.cells[["best_epoch", "best_val_dsc"]].drop_duplicates().values.tolist() == [
        [2, 0.8]
    ]
    assert found.temperatures["temperature"].tolist() == [0.8] * 4
    table = pd.read_csv(tmp_path / "nacl/seed1/cases.csv")
    mean = (table["dsc_RV"] + table["dsc_MYO"] + table["dsc_LV"]) / 3
    assert found.values(Row("nacl"), "dsc")[1] == pytest.approx(mean.to_numpy())
    assert found.pooled_bins(Row("nacl"), "all").count.tolist() == [
        [2 * 16 * 1000 * i for i in range(1, 16)]
    ]


def test_compact_form_is_the_same_to_six_digits(tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    write_comparison(cells, temperature=0.8, test_sets=("scanner",))
    found = read_cells(cells)
    found.cases.loc[0, "case"] = "NA"  # a name, not an absent value
    write_compact(found, tmp_path / "compact")
    again = read_cells(tmp_path / "compact")
    assert again.about == found.about
    for name in ("cases", "bins", "cells", "temperatures"):
        pd.testing.assert_frame_equal(
            getattr(found, name), getattr(again, name), check_dtype=False, rtol=1e-5
        )
    assert sorted(file.name for file in (tmp_path / "compact").iterdir()) == [
        "bins.csv.gz",
        "cases.csv.gz",
        "cells.csv",
        "comparison.json",
        "temperatures.csv",
    ]


def test_results_of_earlier_releases_get_confidence_and_accuracy() -> None:
    """Of a structure with 8 voxels, 10 are predicted and 6 of them are right; the probabilities sum
    to 12, those of the predicted voxels to 9.
    """
    columns = {"dsc": 12 / 18, "expected_dsc": 18 / 22, "true_volume": 8.0}
    columns |= {"segmented_volume": 10.0, "expected_volume": 12.0}
    cases = pd.DataFrame({f"{name}_RV": [value] * 2 for name, value in columns.items()})
    cases.loc[1, "segmented_volume_RV"] = 0
    found = with_confidence(cases)
    assert found["confidence_RV"].tolist() == pytest.approx([0.9, np.nan], nan_ok=True)
    assert found["accuracy_RV"].tolist() == pytest.approx([0.6, np.nan], nan_ok=True)
    pd.testing.assert_frame_equal(with_confidence(found), found)


def test_folds_are_joined_at_home_and_averaged_elsewhere_and_a_run_without_all_is_missing(
    tmp_path: Path,
) -> None:
    for method, folds in (("nacl", (0, 1)), ("svls", (0,))):
        for fold in folds:
            temperature = 0.8 + 0.1 * fold
            write_cell(tmp_path, method, fold=fold, temperature=temperature, test_sets=("scanner",))
    found = read_cells(tmp_path)
    assert [*found.labels] == ["nacl"]
    assert found.label(Row("nacl", "with")) == "NACL + T (0.80 to 0.90)"
    assert found.about["missing"] == ["svls, seed 0, fold 1"]
    assert found.values(Row("nacl"), "ece_all").shape == (1, 16)
    files = [tmp_path / f"nacl/seed0_fold{fold}/on_scanner/cases.csv" for fold in (0, 1)]
    mean = np.mean([pd.read_csv(file)["ece_all"] for file in files], axis=0)
    assert found.values(Row("nacl", test_set="scanner"), "ece_all")[0] == pytest.approx(mean)


def test_comparisons_reward_no_miss_and_no_wrong_structure(tmp_path: Path) -> None:
    """A missed structure has no HD95; finding nothing where there is nothing is right."""
    cell, undefined = write_cell(tmp_path, "nacl"), np.where(np.arange(16) == 5, np.nan, 0.5)
    changed = dict.fromkeys(
        [f"{metric}_{s}" for metric in ("dsc", "hd95") for s in ("RV", "MYO", "LV")], undefined
    )
    changed["hd95_RV"] = np.where(np.arange(16) == 3, np.nan, undefined)
    write_evaluation(cell, changed=changed)
    found, row = read_cells(tmp_path), Row("nacl")
    assert np.flatnonzero(np.isnan(found.comparable(row, "hd95"))).tolist() == [3, 5]
    assert found.comparable(row, "dsc")[0, 5] == 1


def test_cases_are_paired_by_name_whatever_their_order(tmp_path: Path) -> None:
    volumes = {f"true_volume_{s}": 80 + 2.0 * np.arange(16)[::-1] for s in ("RV", "MYO", "LV")}
    for method in ("svls", "nacl"):
        cell = write_cell(tmp_path / "cells", method)
        names = cases_of(8) if method == "svls" else dict(reversed(cases_of(8).items()))
        write_evaluation(cell, names, changed=volumes if method == "nacl" else None)
    values = read_cells(tmp_path / "cells").values(Row("svls"), "nll_all")[0]
    first = pd.read_csv(tmp_path / "cells/svls/seed0/cases.csv", index_col="case")["nll_all"]
    assert values.tolist() == first[read_cells(tmp_path / "cells").patients[""].index].tolist()


def change_settings(cell: Path, **changed: Any) -> None:
    file = cell / "settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


TRAINING = {"loss": "svls", "seed": 1, "max_epochs": 3, "network_def": {}}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another training": (lambda cell: change_settings(cell, training=TRAINING), "max_epochs"),
    "other cases": (lambda cell: write_evaluation(cell, cases_of(7)), "p07_1"),
    "another ground truth": (
        lambda cell: write_evaluation(cell, changed={"true_volume_RV": 7.0}),
        "ground truth",
    ),
    "truncated settings": (
        lambda cell: (cell / "settings.json").write_text('{"method": "svls"'),
        "settings",
    ),
    "no summary": (lambda cell: (cell / "summary.json").unlink(), "summary.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_cells_that_cannot_be_compared_are_refused(name: str, tmp_path: Path) -> None:
    write_cell(tmp_path, "nacl")
    break_cell, keyword = REFUSED[name]
    break_cell(write_cell(tmp_path, "svls", seed=1))
    with pytest.raises(InputError, match=keyword):
        read_cells(tmp_path)


def test_patient_in_two_folds_is_refused(tmp_path: Path) -> None:
    cells = [write_cell(tmp_path, "nacl", fold=fold) for fold in (0, 1)]
    read_cells(tmp_path)
    change_settings(cells[1], patients=cases_of(4))
    with pytest.raises(InputError, match="p00 is in fold 1 and in 0"):
        read_cells(tmp_path)
