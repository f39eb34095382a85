"""The driver of the seventh round's trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from study.abdomen.run import Network, add_to_results, fold_list, is_finished, write_folds
from study.compare.compact import read_compact
from study.compare.data import Comparison

NACL, CE = Network("authors", "nacl", 1), Network("authors", "cross_entropy", 1)


def measured(network: Network) -> Comparison:
    cases = pd.DataFrame([{**network.keys, "test_set": "", "case": case} for case in "ab"])
    cells, about = pd.DataFrame([{**network.keys, "epochs": 40}]), {"labels": {}}
    bins = cases.assign(region="all")
    return Comparison(cases, bins, cells, pd.DataFrame(), about)


def magnitudes(network: Network) -> pd.DataFrame:
    return pd.DataFrame([{**network.keys, "case": "a", "true_class": "liver", "liver": 1.0}])


def test_each_patient_is_tested_once_and_one_other_chooses_the_epoch(tmp_path: Path) -> None:
    items = [{"case": f"c{number}", "patient": f"p{number}"} for number in range(14)]
    content = {"training": items[:10], "validation": items[10:11], "testing": items[11:]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    write_folds(tmp_path)
    tested = []
    for fold in range(3):
        lists = json.loads(fold_list(tmp_path, fold).read_text())
        names = [item["patient"] for split in lists.values() for item in split]
        assert sorted(names) == sorted(item["patient"] for item in items)
        assert len(lists["validation"]) == 1
        tested += [item["patient"] for item in lists["testing"]]
    assert sorted(tested) == sorted(item["patient"] for item in items)


def test_rows_of_a_network_are_added_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_to_results(measured(CE), magnitudes(CE), tmp_path)
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("study.abdomen.run.write_compact", stop)
        with pytest.raises(KeyboardInterrupt):
            add_to_results(measured(NACL), magnitudes(NACL), tmp_path)
    assert not is_finished(NACL, tmp_path)
    for _ in range(2):
        add_to_results(measured(NACL), magnitudes(NACL), tmp_path)
    assert is_finished(NACL, tmp_path)
    assert is_finished(CE, tmp_path)
    found = read_compact(tmp_path)
    assert found.cells["method"].tolist() == ["cross_entropy", "nacl"]
    assert found.cases["method"].tolist() == ["cross_entropy"] * 2 + ["nacl"] * 2
    assert pd.read_csv(tmp_path / "magnitudes.csv")["method"].tolist() == ["cross_entropy", "nacl"]
