"""Splits of patients, folds, and the lists that MONAI reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist

from calib_components.errors import InputError
from calib_tools.prepare.case import SourceCase
from calib_tools.prepare.split import read_split, split_folds, split_patients
from calib_workflows.data.cases import SPLITS
from tests.calib_tools.prepare.conftest import Prepare
from tests.helpers import make_acdc


class TestSplitPatients:
    groups = st.dictionaries(
        st.text(min_size=1, max_size=3), st.sampled_from("ABC"), min_size=1, max_size=60
    )
    parts = st.tuples(*[st.integers(0, 10)] * 3).filter(any)

    @given(groups=groups, parts=parts, seed=st.integers(0, 5))
    def test_sizes_and_groups_are_close_to_their_shares(
        self, groups: dict[str, str], parts: tuple[int, ...], seed: int
    ) -> None:
        fractions = [part / sum(parts) for part in parts]
        splits = split_patients(groups, fractions, seed)
        assert splits.keys() == groups.keys()
        assert splits == split_patients(dict(reversed(groups.items())), fractions, seed)
        for split, fraction in zip(SPLITS, fractions, strict=True):
            members = [patient for patient in splits if splits[patient] == split]
            assert abs(len(members) - fraction * len(groups)) < 1
            for group, size in Counter(groups.values()).items():
                assert (
                    abs(sum(groups[patient] == group for patient in members) - fraction * size) < 2
                )


CASES = [SourceCase("a1", "a"), SourceCase("a2", "a"), SourceCase("b", "b"), SourceCase("c", "c")]


class TestReadSplit:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("s.csv", "patient,split\na,train\nb,val\n"),
            ("s.csv", "\ufeffage;case; split\n3;a1;Training\n3;a2;training\n4;b ;validation\n"),
            ("s.json", '{"training": ["a1", "a2"], "val": ["b"], "test": []}'),
        ],
    )
    def test_names_of_cases_or_patients(
        self, name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / name).write_text(text)
        expected = {"a1": "training", "a2": "training", "b": "validation"}
        assert read_split(tmp_path / name, CASES) == expected
        assert "1 case(s) not listed and left out, such as c" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"training": ["a1"], "testing": ["a2"]}', "patient a is in two splits"),
            ('{"training": ["a3"]}', "no case or patient is called a3; did you mean a"),
            ('{"dev": ["a1"]}', "the split of a1 must be one of 'training', 'validation'"),
            ('["a1"]', "cannot read a list of cases with their splits"),
        ],
    )
    def test_mistakes(self, text: str, message: str, tmp_path: Path) -> None:
        file = tmp_path / "s.json"
        file.write_text(text)
        with pytest.raises(InputError, match=f"^{file}: {message}"):
            read_split(file, CASES)

    def test_only_listed_cases_are_prepared(
        self, tmp_path: Path, out: Path, prepare: Prepare
    ) -> None:
        file = tmp_path / "s.csv"
        file.write_text("patient,split\npatient001,test\npatient003,train\n")
        shown = prepare(make_acdc(tmp_path / "src", patients=3), split=file)
        assert "training 1 (2 cases), validation 0 (0 cases), testing 1 (2 cases)" in shown
        assert len([*out.glob("patient*")]) == 4
        with pytest.raises(InputError, match="take the place of fractions"):
            prepare(split=file, fractions=(0.5, 0, 0.5))


class TestFolds:
    @given(groups=TestSplitPatients.groups.filter(lambda groups: len(groups) > 1), data=st.data())
    def test_each_patient_is_tested_once(self, groups: dict[str, str], data: st.DataObject) -> None:
        folds = data.draw(st.integers(2, len(groups)))
        found = split_folds(groups, folds, seed=0)
        assert len(found) == folds
        tested = [patient for split in found for patient in split if split[patient] == "testing"]
        assert sorted(tested) == sorted(groups)
        for split in found:
            sizes = Counter(split.values())
            assert split.keys() == groups.keys()
            assert abs(sizes["testing"] - len(groups) / folds) < 1
            assert (sizes["validation"] > 0) == (folds > 2)
            assert sizes["training"] > 0 or folds == len(groups) == 2

    def test_files(self, tmp_path: Path, out: Path, prepare: Prepare) -> None:
        shown = prepare(make_acdc(tmp_path / "src", patients=5), folds=5)
        assert "5 folds, datalist_fold0.json to datalist_fold4.json" in shown
        tested = []
        for fold in range(5):
            datalist = json.loads((out / f"datalist_fold{fold}.json").read_text())
            assert (datalist["folds"], datalist["seed"]) == (5, 0)
            assert [len(datalist[split]) for split in SPLITS] == [6, 2, 2]
            tested += [item["case"] for item in datalist["testing"]]
        assert sorted(tested) == sorted(path.name for path in out.glob("patient*"))
        before = {file: file.read_bytes() for file in out.glob("datalist*")}
        for options in ({"folds": 4}, {"folds": 5, "seed": 1}):
            with pytest.raises(InputError, match=r"datalist.*\.json: "):
                prepare(**options)
        prepare()
        assert {file: file.read_bytes() for file in out.glob("datalist*")} == before


class TestDatalist:
    def test_monai_reads_it(self, tmp_path: Path, out: Path, prepare: Prepare) -> None:
        prepare(make_acdc(tmp_path / "src", patients=10))
        datalist = json.loads((out / "datalist.json").read_text())
        assert (datalist["labels"]["3"], datalist["image_size"]) == ("left ventricle", [16, 32])
        patients: list[str] = []
        for split, size in (("training", 14), ("validation", 2), ("testing", 4)):
            items = load_decathlon_datalist(out / "datalist.json", True, split, base_dir=out)
            assert len(items) == size
            assert all(Path(item[key]).is_file() for item in items for key in ("image", "label"))
            patients += {item["patient"] for item in items}
        # Each in one split
        assert sorted(patients) == sorted({path.name[:10] for path in out.glob("patient*")})

    def test_one_image_under_two_names_stays_on_one_side(
        self, src: Path, out: Path, prepare: Prepare
    ) -> None:
        training = src / "training"
        for file in (training / "patient001").glob("*frame01.nii.gz"):  # with another label
            nib.load(file).to_filename(training / "patient002" / file.name.replace("001", "002"))
        with pytest.raises(
            InputError, match=r"patient002_frame01/image\.nii hold the same image, one for training"
        ):
            prepare(fractions=(0.5, 0, 0.5))
        assert not (out / "datalist.json").exists()
        with pytest.raises(InputError, match="hold the same image"):
            prepare(fractions=(0, 0, 1), folds=2)
        assert "hold the same image" not in prepare(fractions=(0, 0, 1))
        assert "hold the same image, one for validation" in prepare(
            out=out.with_name("b"), fractions=(0, 0.5, 0.5)
        )
        prepare(out=out.with_name("c"), fractions=(0.5, 0, 0.5), patient="patient")

    def test_no_patient_silently_changes_its_split(self, out: Path, prepare: Prepare) -> None:
        assert "No patient for validation" in prepare(fractions=(1, 0, 0))
        before = (out / "datalist.json").read_bytes()
        with pytest.raises(
            InputError,
            match=r"datalist\.json: patient001_frame01 would move from training to testing",
        ):
            prepare(fractions=(0, 0, 1))
        assert (out / "datalist.json").read_bytes() == before
        (out / "datalist.json").unlink()
        prepare(fractions=(0, 0, 1))
