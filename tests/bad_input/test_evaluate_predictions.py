"""Bad input of `evaluate_predictions`: one line that names the file or argument, and nothing lost or half written."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from calib_components.tools.evaluate import evaluate_predictions
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    first_version_properties,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
    save_rounded,
    sitk_properties,
    softmax_of,
)
from tests.helpers import ROOT, run_as_typed, run_script, snapshot

NAMES = ("a", "b")
SHIFTED = AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 5
P, LABEL = softmax_of(0), label_of(0)
GIVEN = ("predictions", "labels", "--out", "out", "--structures", "x=1,y=2", "--workers", "1")
A, A_LABEL = "predictions/a.nii.gz", "labels/a.nii.gz"


class Case(NamedTuple):
    """What is done to the files, the line that is expected, or its start, and the arguments: the usual ones and more."""

    name: str
    spoil: Callable[[], object]
    line: str
    more: tuple[str, ...] = ()
    given: tuple[str, ...] = GIVEN


def nothing() -> None:
    """The files stay as they are."""


def given(**options: str) -> tuple[str, ...]:
    """The usual arguments with other values."""
    values = {"out": "out", "structures": "x=1,y=2", "workers": "1"} | options
    return ("predictions", "labels", *(part for name, value in values.items() for part in (f"--{name}", value)))


def put(name: str, values: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[], object]:
    """A NIfTI file of these values; channels, if there are any, come first."""
    return lambda: save_nifti(Path(name), np.moveaxis(values, 0, 3) if values.ndim == 4 else values, affine)


def write(name: str, content: bytes) -> Callable[[], object]:
    def spoil() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)

    return spoil


def truncate(name: str) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:400])


def move(name: str, to: str) -> Callable[[], object]:
    def spoil() -> None:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        Path(name).rename(to)

    return spoil


def link(name: str, to: str) -> Callable[[], object]:
    return lambda: Path(name).symlink_to(to)


def in_metres() -> None:
    image = nib.Nifti1Image(LABEL, AFFINE)
    image.header.set_xyzt_units("meter")
    image.to_filename(A_LABEL)


def arrays(
    properties: object = None, p: np.ndarray = P, key: str = "probabilities", cut: int | None = None
) -> Callable[[], object]:
    """Replace the predictions by one of nnU-Net, with or without its properties."""

    def spoil() -> None:
        shutil.rmtree("predictions")
        file = save_nnunet(Path("predictions"), "a", p, properties, key)
        file.write_bytes(file.read_bytes()[:cut])

    return spoil


def one_array(values: np.ndarray) -> Callable[[], object]:
    def spoil() -> None:
        shutil.rmtree("predictions")
        Path("predictions").mkdir()
        np.save("predictions/a.npy", values, allow_pickle=True)

    return spoil


class Harmful:
    """Its pickle makes a folder when it is loaded."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("canary",)


AS_SHAPE = "expected shape (6, 5, 4) as in labels/a.nii.gz, got "
CROPPED = "; nnU-Net's first version saves only the part that it crops to\n"
MISPLACED = "expected the voxels of labels/a.nii.gz, got some that lie up to 5 mm off"
STRUCTURE = "--structures: expected name=code or name=code+code, such as WT=1+2+4, got "
OWN_FOLDER = "--out: expected a folder of its own for the results, got "
OTHERS = "out/report: expected only files of this report, got "

BEFORE_THE_WORK = [
    # folders
    Case("no predictions", lambda: shutil.rmtree("predictions"), "predictions: expected a folder, got nothing\n"),
    Case("no labels", lambda: shutil.rmtree("labels"), "labels: expected a folder, got nothing\n"),
    Case("predictions a file", nothing, f"{A}: expected a folder, got a file\n", given=(A, "labels", *GIVEN[2:])),
    Case("predictions empty", lambda: [Path(f"predictions/{name}.nii.gz").unlink() for name in NAMES], "predictions: expected predictions, .nii, .nii.gz, .npz or .npy files, got none\n"),
    Case("array empty", arrays(cut=0), "predictions/a.npz: expected an array of numbers, as numpy saves it"),
    Case("labels the predictions", nothing, "predictions/a.nii.gz: expected a label of shape", given=("labels", "predictions", *GIVEN[2:])),
    Case("both one folder", nothing, "labels: expected a folder of its own, got that of the predictions, labels\n", given=("labels", "labels", *GIVEN[2:])),
    Case("a name without a label", put("predictions/c.nii.gz", P), "predictions: expected a label in labels for each prediction, of the same name, got none for c\n"),
    Case("a channel that is missing", lambda: (shutil.rmtree("predictions"), [put(f"predictions/a_{index}.nii.gz", P[0])() for index in (0, 1, 3)]), "predictions/a_0.nii.gz: expected channels of a that are numbered from 0, without gaps and leading zeros, got none called a_2\n"),
    Case("names of another data set", move(A_LABEL, "labels/A.nii.gz"), "predictions: expected a label in labels for each prediction, of the same name, got none for a\n"),
    Case("label in two endings", put("labels/a.nii", LABEL), "labels/a.nii.gz: expected one such file, got another, labels/a.nii\n"),
    Case("prediction in two formats", put("predictions/sub/a.nii.gz", P), "predictions/a.nii.gz: expected one prediction called a, got another, predictions/sub/a.nii.gz\n"),
    Case("a link to nothing", link("predictions/c.nii.gz", "gone"), "predictions/c.nii.gz: expected a file, got a link to gone, which is not there\n"),
    Case("a label that links to nothing", link("labels/c.nii.gz", "gone"), "labels/c.nii.gz: expected a file, got a link to gone"),
    # files
    Case("prediction truncated", truncate(A), f"{A}: expected a readable NIfTI file, got Cannot work out file type of "),
    Case("prediction empty", write(A, b""), f"{A}: expected a readable NIfTI file, got "),
    Case("prediction of text", write(A, b"no image"), f"{A}: expected a readable NIfTI file, got "),
    Case("label of text", write(A_LABEL, b"no image"), f"{A_LABEL}: expected a readable NIfTI file, got "),
    Case("another shape", put(A, P[:, 1:]), f"{A}: {AS_SHAPE}(5, 5, 4)\n"),
    Case("channels first", lambda: save_nifti(Path(A), P), f"{A}: {AS_SHAPE}(3, 6, 5)\n"),
    Case("five axes", lambda: save_nifti(Path(A), P[:, None]), f"{A}: expected a volume of shape (X, Y, Z, C) or (X, Y, Z), got "),
    Case("prediction shifted", put(A, P, SHIFTED), f"{A}: {MISPLACED}\n"),
    Case("label shifted", put(A_LABEL, LABEL, SHIFTED), f"{A}: {MISPLACED}\n"),
    Case("other spacing", put(A, P, AFFINE @ np.diag([2.0, 2, 2, 1])), f"{A}: expected the voxels of {A_LABEL}, got some"),
    Case("label in metres", in_metres, f"{A_LABEL}: expected lengths in millimetres, got metres, as xyzt_units in its"),
    Case("unequal channels", put("predictions/b.nii.gz", softmax_of(1, 4)), f"predictions/b.nii.gz: expected probabilities of 3 channel(s) like {A}, got probabilities of 4"),
    Case("a label map among them", put("predictions/b.nii.gz", LABEL), "predictions/b.nii.gz: expected probabilities of 3 channel(s) like"),
    Case("array cut", arrays(cut=200), "predictions/a.npz: expected an array of numbers, as numpy saves it, got File is not a"),
    Case("array of another name", arrays(key="logits"), "predictions/a.npz: expected an array called probabilities, as nnU-Net writes it, got logits\n"),
    Case("array of an image that is cropped", arrays(p=P[:, 1:]), f"predictions/a.npz: {AS_SHAPE}(5, 5, 4){CROPPED}"),
    Case("array of the first version that is cropped", arrays(first_version_properties(), P[:, 1:], "softmax"), f"predictions/a.npz: {AS_SHAPE}(5, 5, 4){CROPPED}"),
    Case("axes of numpy reversed", one_array(P.transpose(0, 3, 2, 1)), f"predictions/a.npy: {AS_SHAPE}(4, 5, 6); its axes are in reverse order\n"),
    Case("array shifted", arrays(sitk_properties(SHIFTED)), "predictions/a.npz: expected the voxels of labels/a.nii.gz, got some that lie up to 5 mm off\n"),
    Case("a pickle that runs code", arrays({"sitk_stuff": Harmful()}), "predictions/a.pkl: expected the properties of an image that nnU-Net saves, got posix.mkdir, which is no plain value; it was not loaded\n"),
    Case("a pickle that is cut", lambda: (arrays({"a": 1})(), write("predictions/a.pkl", pickle.dumps({"a": 1})[:-5])()), "predictions/a.pkl: expected the properties of an image"),
    # options
    *(
        Case(f"structures {text!r}", nothing, line, given=given(structures=text))
        for text, line in (
            ("", f"{STRUCTURE}''\n"),
            ("[]", f"{STRUCTURE}''\n"),
            ("x", f"{STRUCTURE}'x'\n"),
            ("x:1", f"{STRUCTURE}'x:1'\n"),
            ("x=one", f"{STRUCTURE}'x=one'\n"),
            ("x=-1", f"{STRUCTURE}'x=-1'\n"),
            ("=1", f"{STRUCTURE}'=1'\n"),
            ("x=0", "--structures: expected label codes above 0, the background's, got 'x=0'\n"),
            ("x=1,x=2", "--structures: expected different names, got x twice"),
            ("x=1,y=2,z=3", "--structures: expected the structures of 3 channels, the background and 2 classes, got x, y, z;"),
        )
    ),
    Case("columns twice", nothing, "structures: expected names that give different columns, got ", given=given(structures="a=1,a_if_true=2")),
    Case("sigmoids of another number", nothing, "--structures: expected a structure for each of the 3 channel(s), in their order, got 2: x, y\n", ("--sigmoid",)),
    Case("label maps without structures", lambda: [put(f"predictions/{name}.nii.gz", LABEL)() for name in NAMES], "--structures: expected the structures in the label maps, such as liver=1,tumour=2, got none\n", given=("predictions", "labels", "--out", "out")),
    Case("more structures than bytes hold", lambda: [put(f"predictions/{name}.nii.gz", LABEL)() for name in NAMES], "--structures: expected at most 254 classes, the background and each code or structure apart from the others, got 256\n", given=given(structures=f"low={'+'.join(map(str, range(1, 201)))},last=255,all={'+'.join(map(str, range(1, 256)))}")),
    Case("label maps of fractions", lambda: [put(f"predictions/{name}.nii.gz", LABEL.astype(np.float32))() for name in NAMES], "--structures: expected a structure for each of the 1 channel(s), in their order, got 2: x, y; if these are label maps, store them as integers\n"),
    Case("ignore_index a class", nothing, "--ignore_index: expected a label code of no class, got 2\n", ("--ignore_index", "2")),
    Case("ignore_index a name", nothing, "--ignore_index: expected a whole number, got 'void'\n", ("--ignore_index", "void")),
    Case("a bad expression", nothing, "--patient_pattern: expected a regular expression, got 'p(': ", ("--patient_pattern", "p(")),
    Case("an expression of other names", nothing, "--patient_pattern: expected a part of each case's name, got 'case', not in a\n", ("--patient_pattern", "case")),
    Case("an expression of nothing", nothing, "--patient_pattern: expected a part of each case's name, got 'c*', not in a\n", ("--patient_pattern", "c*")),
    Case("no worker", nothing, "workers: expected a whole number of at least 1, got 0\n", given=given(workers="0")),
    Case("half a worker", nothing, "--workers: expected a whole number, got '0.5'\n", given=given(workers="0.5")),
    Case("misspelt", nothing, "--structure: expected an option, got no such option; did you mean --structures?\n", ("--structure", "x=1")),
    Case("sigmoid a number", nothing, "--sigmoid: expected true or false, got '3'\n", ("--sigmoid=3",)),
    Case("no out", nothing, "--out: expected a value, got none; see evaluate_predictions --help\n", given=GIVEN[:2]),
    Case("out empty", nothing, "--out: expected a path, got ''\n", given=given(out="")),
    Case("no images", nothing, "none: expected an image for each case, called NAME or NAME_0000, got none for a\n", ("--images", "none")),
    Case("images of other names", put("images/c.nii.gz", P[0]), "images: expected an image for each case, called NAME or NAME_0000, got none for a\n", ("--images", "images")),
    Case("no validation", nothing, "--validation: expected an evaluation folder, got labels, which has no cases.csv\n", ("--validation", "labels")),
    Case("validation on itself", write("out/cases.csv", b"case\n"), "--validation: expected the evaluation of other cases, got the folder of --out, out\n", ("--validation", "out")),
    # the output folder
    Case("out is the predictions", nothing, f"{OWN_FOLDER}predictions, which holds the inputs\n", given=given(out="predictions")),
    Case("out is the labels", nothing, f"{OWN_FOLDER}labels/../labels, which holds", given=given(out="labels/../labels")),
    Case("out a file", nothing, f"--out: expected a folder that can be written, got {A}: Not a directory\n", given=given(out=A)),
    Case("out below a file", nothing, f"--out: expected a folder that can be written, got {A}/x: Not a directory\n", given=given(out=f"{A}/x")),
    *(
        Case(
            f"inputs in {place}", move("labels", f"out/{place}"),
            f"--out: expected no inputs where results go, got out, whose folder {place.split('/')[0]} holds them\n",
            given=("predictions", f"out/{place}", *GIVEN[2:]),
        )
        for place in ("cases", "cases/test", "report", ".measured")
    ),
    Case("someone's page", write("out/report/index.html", b"<title>Me</title>"), f"{OTHERS}index.html; move or delete them, or choose another --out\n"),
    Case("someone's notes", write("out/report/notes.txt", b"mine"), f"{OTHERS}notes.txt; move or delete them, or choose another --out\n"),
    Case("report a file", write("out/report", b"mine"), "--out: expected a folder, got the file out/report\n"),
    Case("a folder in the place of a table", lambda: Path("out/cases.csv").mkdir(parents=True), "out/cases.csv: expected a file of an evaluation or nothing, got a folder\n"),
    Case("a file in the place of pictures", write("out/cases", b"mine"), "out/cases: expected a folder of pictures or nothing, got a file\n"),
]  # fmt: skip

IGNORED = tuple(f"labels/{name}.nii.gz" for name in NAMES)
FROM_0_TO_1 = "expected probabilities from 0 to 1, got "
WHILE_MEASURED = [
    Case("logits", put(A, 8 * P - 4), f"{A}: {FROM_0_TO_1}-3.999 to 3.9"),
    Case("percentages", put(A, 100 * P), f"{A}: {FROM_0_TO_1}"),
    Case("label codes", put(A, np.round(3 * P)), f"{A}: {FROM_0_TO_1}0 to 3, label codes stored as floating-point numbers"),
    Case("NaN", put(A, np.where(P.max() == P, np.nan, P)), f"{A}: expected finite probabilities, got NaN or infinity\n"),
    Case("sigmoids", put(A, np.full_like(P, 0.9)), f"{A}: expected probabilities of 3 classes that add up to 1 in every voxel, got sums from 2.7 to 2.7; --sigmoid reads"),
    Case("no background", put(A, np.where(np.arange(4) == 1, 0, P)), f"{A}: expected probabilities of 3 classes that add up to 1 in every voxel, got sums from 0 to 1; 25 % of"),
    Case("bytes without a step", put(A, np.rint(255 * P).astype(np.uint8)), f"{A}: expected probabilities, as floating-point numbers or as integers with a scale"),
    Case("bytes with a wrong step", lambda: save_rounded(Path(A), P / 255, np.uint8, 1 / 255 / 255), f"{A}: expected probabilities of 3 classes that add up to 1 in every voxel, got sums"),
    Case("compressed and cut", lambda: Path(A).write_bytes(Path(A).read_bytes()[:-300]), f"{A}: expected a complete NIfTI file, got "),
    Case("half a label code", put(A_LABEL, LABEL + np.float32(0.5)), f"{A_LABEL}: expected whole numbers, the label codes, got others\n"),
    Case("a code beyond all", put(A_LABEL, np.where(LABEL == 1, 1e30, LABEL).astype(np.float32)), f"{A_LABEL}: expected label codes of at most 64 bits, got 1e+30\n"),
    Case("an image for a label", put(A_LABEL, np.arange(120, dtype=np.int16).reshape(SHAPE)), f"{A_LABEL}: expected label codes 0, 1, 2, got 3, 4, 5, 6, 7; --structures names the codes"),
    Case("codes of BraTS", put(A_LABEL, label_of(0, (0, 1, 2, 4))), f"{A_LABEL}: expected label codes 0, 1, 2, got 4; --structures names the codes"),
    Case("all voxels left out", lambda: [put(name, np.full(SHAPE, 9, np.uint8))() for name in IGNORED], "--ignore_index: expected voxels with other codes, got 9 in every voxel of all 2 label(s)\n", ("--ignore_index", "9")),
    Case("an image of another grid", lambda: [put(f"images/{name}.nii.gz", P[0], SHIFTED)() for name in NAMES], f"images/a.nii.gz: expected the voxels of {A_LABEL}, (6, 5, 4), got others, (6, 5, 4)\n", ("--images", "images")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions and labels of two cases, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(NAMES):
        save_channels_last(Path("predictions") / f"{name}.nii.gz", softmax_of(seed))
        save_nifti(Path("labels") / f"{name}.nii.gz", label_of(seed))


def check(case: Case) -> None:
    outcome = run_as_typed("evaluate_predictions", evaluate_predictions, [*case.given, *case.more])
    assert outcome.err.startswith(f"evaluate_predictions: {case.line}")
    assert outcome.err.count("\n") == 1
    assert (outcome.code, outcome.out) == (1, "")


@pytest.mark.parametrize("case", BEFORE_THE_WORK, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_nothing_is_written(case: Case) -> None:
    case.spoil()
    before = snapshot(Path())
    check(case)
    assert snapshot(Path()) == before


@pytest.mark.parametrize("case", WHILE_MEASURED, ids=lambda case: case.name)
def test_bad_values_are_one_line_and_no_result_is_written(case: Case) -> None:
    """What is measured of other cases is kept in a hidden folder, for the same command to continue."""
    case.spoil()
    before = snapshot(Path())
    check(case)
    after = {
        name: content
        for name, content in snapshot(Path()).items()
        if not name.startswith(("out/.measured", "out/.lock"))
    }
    assert after == before | {"out": "folder"}


def test_as_a_process(tmp_path: Path) -> None:
    """With a worker for each case."""
    put(A, 100 * P)()
    paths = tmp_path / "predictions", tmp_path / "labels", "--out", tmp_path / "out"
    done = run_script(ROOT / "scripts" / "evaluate_predictions.py", *paths, "--workers", 2)
    got = f"got {100 * P.min():.4g} to {100 * P.max():.4g}, percentages?; divide them by 100"
    line = f"evaluate_predictions: {tmp_path / A}: expected probabilities from 0 to 1, {got}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", ".measured"}
