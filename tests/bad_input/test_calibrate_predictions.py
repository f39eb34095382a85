"""Bad input of `calibrate_predictions`: one line that names the file or argument, and nothing lost or half written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from calib_components.tools.evaluate import calibrate_predictions
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
    softmax_of,
)
from tests.helpers import ROOT, run_as_typed, run_script, snapshot

NAMES = ("a", "b")
SHIFTED = AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 5
P = softmax_of(0)
A, TEST, EARLIER = "predictions/a.nii.gz", "test/c.nii.gz", "out/c_probability.nii.gz"


def given(*more: str, **options: str) -> tuple[str, ...]:
    """The usual arguments, some with other values, and more."""
    values = {"apply_to": "test", "out": "out", "workers": "1"} | options
    return ("predictions", "labels", *(part for name, value in values.items() for part in (f"--{name}", value)), *more)


class Case(NamedTuple):
    """What is done to the files, the line that is expected, or its start, and the arguments."""

    name: str
    spoil: Callable[[], object]
    line: str
    given: tuple[str, ...] = given()


def nothing() -> None:
    """The files stay as they are."""


def put(name: str, values: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[], object]:
    """A NIfTI file of these values; channels, if there are any, come first."""
    return lambda: save_nifti(Path(name), np.moveaxis(values, 0, 3) if values.ndim == 4 else values, affine)


def truncate(name: str) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:-300])


def ignore_all() -> None:
    for name in NAMES:
        put(f"labels/{name}.nii.gz", np.full(SHAPE, 9, np.uint8))()


APART = "--out: expected a folder apart from "
FROM_0_TO_1 = "expected probabilities from 0 to 1, got "

BEFORE_THE_FIT = [
    Case("no predictions", lambda: shutil.rmtree("predictions"), "predictions: expected a folder, got nothing\n"),
    Case("no labels", lambda: shutil.rmtree("labels"), "labels: expected a folder, got nothing\n"),
    Case("nothing to scale", lambda: shutil.rmtree("test"), "test: expected a folder, got nothing\n"),
    Case("no prediction to scale", lambda: Path(TEST).unlink(), "test: expected predictions, .nii, .nii.gz, .npz or .npy files, got none\n"),
    Case("a name without a label", put("predictions/c.nii.gz", P), "predictions: expected a label in labels for each prediction, of the same name, got none for c\n"),
    Case("label shifted", put("labels/a.nii.gz", label_of(0), SHIFTED), f"{A}: expected the voxels of labels/a.nii.gz, got some that lie up to 5 mm off\n"),
    Case("other channels to scale", put(TEST, softmax_of(0, 4)), f"{TEST}: expected 3 channel(s), as in {A}, got 4 channel(s)\n"),
    Case("a label map to scale", put(TEST, label_of(0)), f"{TEST}: expected 3 channel(s), as in {A}, got a label map\n"),
    Case("text to scale", lambda: Path(TEST).write_text("no image"), f"{TEST}: expected a readable NIfTI file, got "),
    Case("a link to nothing to scale", lambda: Path("test/d.npz").symlink_to("gone"), "test/d.npz: expected a file, got a link to gone, which is not there\n"),
    Case("logits", put(A, 8 * P - 4), f"{A}: {FROM_0_TO_1}"),
    Case("prediction cut", truncate(A), f"{A}: expected a complete NIfTI file, got "),
    Case("unknown label code", put("labels/b.nii.gz", label_of(1, (0, 1, 2, 4))), "labels/b.nii.gz: expected label codes 0, 1, 2, got 4; --structures names the codes"),
    Case("all voxels left out", ignore_all, "--ignore_index: expected voxels to fit a temperature on, got none: ", given("--ignore_index", "9")),
    Case("structures", nothing, "--structures: expected name=code or name=code+code, such as WT=1+2+4, got 'x'\n", given(structures="x")),
    Case("a bad expression", nothing, "--patient_pattern: expected a regular expression, got '*': ", given("--patient_pattern", "*")),
    Case("unknown region", nothing, "region: expected one of 'all', 'predicted', 'plausible', 'predicted_band', 'foreground', 'union', 'band', or class indices, got 'predict'\n", given(region="predict")),
    Case("a class beyond the channels", nothing, "region: expected class indices from 0 to 2, got [3]\n", given(region="3")),
    Case("a region without voxels", nothing, "--region: expected voxels to fit a temperature on, got none: ", given(region="plausible(0.9999)")),
    Case("a name too long", put(f"test/{'c' * 230}.nii.gz", P), f"test/{'c' * 230}.nii.gz: expected a shorter name, got one whose result, {'c' * 230}_probability.nii.gz, is 6 byte(s) too long while it is written\n"),
    Case("a name without a patient", nothing, "--patient_pattern: expected a part of each case's name, got 'a|b', not in c\n", given("--patient_pattern", "a|b")),
    Case("no worker", nothing, "workers: expected a whole number of at least 1, got 0\n", given(workers="0")),
    Case("misspelt", nothing, "--aply_to: expected an option, got no such option; did you mean --apply_to?\n", given("--aply_to", "x")),
    Case("no apply_to", nothing, "--apply_to: expected a value, got none; see calibrate_predictions --help\n", ("predictions", "labels", "--out", "out")),
    Case("out is what is scaled", nothing, APART, given(out="test")),
    Case("out in the predictions", nothing, APART, given(out="predictions/scaled")),
    Case("out holds all", nothing, APART, given(out=".")),
    Case("out a file", lambda: Path("mine").write_text(""), "--out: expected a folder that can be written, got mine: Not a directory\n", given(out="mine")),
    Case("someone's notes in out", lambda: Path("out/notes.txt").write_text("mine"), "--out: expected a folder without other files, got notes.txt in out;"),
]  # fmt: skip

AFTER_THE_FIT = [
    Case("percentages", put(TEST, 100 * P), f"{TEST}: {FROM_0_TO_1}"),
    Case("NaN", put(TEST, np.where(P.max() == P, np.nan, P)), f"{TEST}: expected finite probabilities, got NaN or infinity\n"),
    Case("cut", truncate(TEST), f"{TEST}: expected a complete NIfTI file, got "),
    Case("sigmoids", put(TEST, np.full_like(P, 0.9)), f"{TEST}: expected probabilities of 3 classes that add up to 1"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of two cases with labels, one to scale, and what an earlier run left, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(NAMES):
        save_channels_last(Path("predictions") / f"{name}.nii.gz", softmax_of(seed))
        save_nifti(Path("labels") / f"{name}.nii.gz", label_of(seed))
    save_channels_last(Path(TEST), softmax_of(2))
    save_channels_last(Path(EARLIER), softmax_of(3))
    Path("out/temperature.json").write_text("{}")
    Path("out/.lock").touch()


def check(case: Case, printed: bool) -> None:
    case.spoil()
    before = snapshot(Path())
    outcome = run_as_typed("calibrate_predictions", calibrate_predictions, case.given)
    assert outcome.err.startswith(f"calibrate_predictions: {case.line}")
    assert outcome.err.count("\n") == 1
    assert (outcome.code, outcome.out.startswith("T = ")) == (1, printed)
    assert snapshot(Path()) == before


@pytest.mark.parametrize("case", BEFORE_THE_FIT, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_nothing_is_written(case: Case) -> None:
    check(case, printed=False)


@pytest.mark.parametrize("case", AFTER_THE_FIT, ids=lambda case: case.name)
def test_bad_values_to_scale_leave_the_earlier_maps(case: Case) -> None:
    check(case, printed=True)


def test_as_a_process(tmp_path: Path) -> None:
    """A properties file that is no pickle, beside what is to be scaled."""
    save_nnunet(tmp_path / "test", "d", P)
    (tmp_path / "test" / "d.pkl").write_bytes(b"no pickle")
    before = snapshot(tmp_path)
    paths = tmp_path / "predictions", tmp_path / "labels", "--apply_to", tmp_path / "test", "--out", tmp_path / "out"
    done = run_script(ROOT / "scripts" / "calibrate_predictions.py", *paths)
    line = f"{tmp_path / 'test' / 'd.pkl'}: expected the properties of an image that nnU-Net saves, got "
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"calibrate_predictions: {line}")
    assert done.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before
