"""Bad data sets, arguments and folders for `prepare_data`: one line that names what is wrong, and nothing written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import yaml

from calib_components.tools.prepare import COMMANDS
from tests.bad_input.harness import run_as_typed, snapshot
from tests.helpers import ROOT, SPACING, blocks, make_acdc, make_brats, make_flare, save

SHAPE = (18, 16, 4)
A, B = "src/images/a.nii.gz", "src/labels/a.nii.gz"  # of the generic data set
FRAME = "src/training/patient001/patient001_frame01.nii.gz"
INFO = "src/training/patient001/Info.cfg"
FRAME_GT = FRAME.replace(".nii", "_gt.nii")
FLAIR, T1, SEG = "src/A_flair.nii.gz", "src/A_t1.nii.gz", "src/A_seg.nii.gz"
CT, MASK = "src/TrainingImg/c_0000.nii.gz", "src/TrainingMask/c.nii.gz"
GOOD = ("out/b", "out/patient001_frame01")  # cases that are prepared before a bad one
GENERIC = "generic src out --labels one,two,three --image_size 16,32 --workers 1"
ACDC = "acdc src out --image_size 16,32 --workers 1"
BRATS = "brats src out --image_size 16,32 --workers 1"
FLARE = "flare src out --image_size 16,32 --workers 1"


def make_source(kind: str, patients: int = 2) -> None:
    """A good data set in `src`, and a file `plain.nii` beside it."""
    rng = np.random.default_rng(0)
    if kind == "acdc":
        make_acdc(Path("src"), 1)
    elif kind == "brats":
        make_brats(Path("src"), "A")
    elif kind == "flare":
        body = np.full((24, 20, 5), -1000, np.int16)
        body[4:-4, 2:-2] = rng.integers(-100, 200, (16, 16, 5))
        make_flare(Path("src"), "c", body, blocks(body.shape, [1, 2, 3, 4]), SPACING)
    else:
        for name in "abcd"[:patients]:
            save(Path(f"src/images/{name}.nii.gz"), rng.integers(0, 900, SHAPE).astype(np.int16))
            save(Path(f"src/labels/{name}.nii.gz"), blocks(SHAPE, [1, 2, 3]))
    save(Path("plain.nii"), np.ones(SHAPE, np.int16))


def nothing() -> None:
    pass


def empty_folder() -> None:
    Path("empty").mkdir()


def other_file(name: str) -> Callable[[], None]:
    def make() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("mine")

    return make


def shift(x: float, y: float) -> np.ndarray:
    return nib.affines.from_matvec(np.eye(3), [x, y, 0])


def turn(angle: float) -> np.ndarray:
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(z=angle))


def read(name: str) -> np.ndarray:
    return np.asanyarray(nib.load(name).dataobj)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], None]:
    return lambda: save(Path(name), change(read(name)), nib.load(name).affine)


def moved(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], None]:
    return lambda: save(Path(name), read(name), change(nib.load(name).affine))


def header(name: str, field: str, index: Any, value: float) -> Callable[[], None]:
    def change() -> None:
        with gzip.open(name) as file:
            content = file.read()
        present = nib.Nifti1Header(content[:348], check=False)
        present[field][index] = value
        Path(name).write_bytes(gzip.compress(present.binaryblock + content[348:]))

    return change


def written(name: str, content: bytes) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(content)


def renamed(name: str, other: str) -> Callable[[], object]:
    return lambda: Path(name).rename(other)


def both_named(stem: str) -> Callable[[], None]:
    def rename() -> None:
        for name in (A, B):
            Path(name).rename(Path(name).with_name(f"{stem}.nii.gz"))

    return rename


def added(line: str) -> Callable[[], object]:
    """Replaces a line of the facts, or adds it."""
    key = line.split(":")[0]

    def add() -> None:
        facts = yaml.safe_load(Path("out/facts.yaml").read_text())
        facts.pop(key, None)
        Path("out/facts.yaml").write_text(f"{yaml.safe_dump(facts)}{line}\n")

    return add


def copied(name: str, other: str) -> Callable[[], object]:
    return lambda: shutil.copy(name, other)


def linked(name: str, target: str) -> Callable[[], None]:
    def link() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(target)

    return link


def folder_instead(name: str) -> Callable[[], None]:
    def make() -> None:
        Path(name).unlink()
        Path(name).mkdir()

    return make


def cut(name: str, keep: float) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[: int(keep * Path(name).stat().st_size)])


def flipped(name: str, place: int) -> Callable[[], None]:
    def flip() -> None:
        content = bytearray(Path(name).read_bytes())
        content[place] ^= 4
        Path(name).write_bytes(content)

    return flip


def cut_inside(name: str) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(gzip.compress(gzip.decompress(Path(name).read_bytes())[:-100]))


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(volume: np.ndarray) -> np.ndarray:
        volume = volume.astype(np.float32)
        volume[3, 4, 1] = value
        return volume

    return change


def swapped() -> None:
    image, label = read(A), read(B)
    save(Path(A), label)
    save(Path(B), image)


def to_both(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], None]:
    def both() -> None:
        for name in (A, B):
            save(Path(name), change(read(name)))

    return both


def rgb(volume: np.ndarray) -> np.ndarray:
    return np.zeros(volume.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])


class Bad(NamedTuple):
    """What is done to a good data set, how the command is typed, and what its one line states."""

    name: str
    spoil: Callable[[], object]
    typed: str
    expected: str


VOXELS, NONE, FINITE = (
    f"{B}: expected the voxels of {A}, got",
    "expected a NIfTI file, got",
    "got 1 that are NaN or inf",
)
READABLE = "expected a readable NIfTI file, got"
COMPLETE = "expected a complete NIfTI file, got"
TABLE = [
    # Where the voxels of a label or of a channel lie
    Bad("label shifted", moved(B, lambda a: shift(5, 0) @ a), GENERIC, f"{VOXELS} voxels that lie 5 mm off"),
    Bad(
        "label shifted by half a voxel", moved(B, lambda a: shift(0.7, 0) @ a), GENERIC, f"{VOXELS} voxels that lie 0.7"
    ),
    Bad("label mirrored", moved(B, lambda a: np.diag([-1, 1, 1, 1]) @ a), GENERIC, f"{VOXELS} voxels that lie"),
    Bad("label mirrored twice", moved(B, lambda a: np.diag([-1, -1, 1, 1]) @ a), GENERIC, f"{VOXELS} voxels that lie"),
    Bad("label at 1 mm", moved(B, lambda a: np.eye(4)), GENERIC, f"{VOXELS} voxels of 1 x 1 x 1 instead of 1.5 x 1.25"),
    Bad("label turned", moved(B, lambda a: turn(0.2) @ a), GENERIC, f"{VOXELS} axes turned by 11.5 degrees"),
    Bad("label of another shape", changed(B, lambda v: v[:, :, :3]), GENERIC, f"{B}: expected shape (18, 16, 4) as in"),
    Bad(
        "label transposed",
        changed(B, lambda v: v.transpose(1, 0, 2)),
        GENERIC,
        f"{B}: expected shape (18, 16, 4) as in",
    ),
    Bad(
        "label of another shape, headers ignored",
        changed(B, lambda v: v[:, :, :3]),
        f"{GENERIC} --ignore_headers",
        f"{B}: expected shape (18, 16, 4) as in {A}, got (18, 16, 3)",
    ),
    Bad("ACDC label shifted", moved(FRAME_GT, lambda a: shift(5, 0) @ a), ACDC, f"{FRAME_GT}: expected the voxels of"),
    Bad("modality shifted", moved(T1, lambda a: shift(5, 0) @ a), BRATS, f"{T1}: expected the voxels of {FLAIR}, got"),
    Bad("tumour shifted", moved(SEG, lambda a: shift(5, 0) @ a), BRATS, f"{SEG}: expected the voxels of {FLAIR}, got"),
    Bad("modality of another shape", changed(T1, lambda v: v[1:]), BRATS, f"{T1}: expected shape (22, 24, 9) as in"),
    Bad("organs shifted", moved(MASK, lambda a: shift(5, 0) @ a), FLARE, f"{MASK}: expected the voxels of {CT}, got"),
    # Headers
    Bad("NaN in the sform", header(A, "srow_y", 3, np.nan), GENERIC, f"{A}: expected an affine of finite numbers, got"),
    Bad("NaN in the sform of a label", header(B, "srow_x", 0, np.nan), GENERIC, f"{B}: expected an affine of finite"),
    Bad("infinite sform", header(A, "srow_z", 2, np.inf), GENERIC, f"{A}: expected an affine of finite numbers, got"),
    Bad(
        "sform without an axis", header(A, "srow_x", 0, 0), GENERIC, f"{A}: expected an affine whose three axes differ"
    ),
    Bad(
        "NaN in the image with headers ignored",
        header(A, "srow_x", 0, np.nan),
        f"{GENERIC} --ignore_headers",
        f"{A}: expected an affine of finite numbers",
    ),
    Bad(
        "header of 30000 voxels a side",
        header(A, "dim", slice(1, 4), 30000),
        GENERIC,
        f"{A}: expected 54000000000352 bytes, as its header demands, got ",
    ),
    Bad("negative dimensions", header(A, "dim", 2, -16), GENERIC, f"{A}: {COMPLETE} negative count"),
    Bad("no voxel", header(A, "dim", 2, 0), GENERIC, f"{A}: expected a 3D volume, got shape ()"),
    Bad("unknown type of value", header(A, "datatype", (), 77), GENERIC, f"{A}: {READABLE}"),
    Bad(
        "header of 1500 voxels a side", header(A, "dim", slice(1, 4), 1500), GENERIC, f"{A}: expected 6750000352 bytes"
    ),
    # Values
    Bad("complex", changed(A, lambda v: v.astype(np.complex64)), GENERIC, f"{A}: expected one real number per voxel"),
    Bad(
        "complex label", changed(B, lambda v: v.astype(np.complex64)), GENERIC, f"{B}: expected one real number per vox"
    ),
    Bad("colours", changed(A, rgb), GENERIC, f"{A}: expected one real number per voxel"),
    Bad("NaN", changed(A, with_value(np.nan)), GENERIC, f"{A}: expected finite values, {FINITE}"),
    Bad("infinite", changed(A, with_value(-np.inf)), GENERIC, f"{A}: expected finite values, {FINITE}"),
    Bad(
        "1e300",
        changed(A, lambda v: with_value(1e3)(v).astype(float) * 1e300),
        GENERIC,
        f"{A}: expected finite values, got ",
    ),
    Bad("NaN in a modality", changed(T1, with_value(np.nan)), BRATS, f"{T1}: expected finite values, {FINITE}"),
    Bad(
        "constant",
        changed(A, lambda v: v * 0 + 7),
        GENERIC,
        f"{A}: expected an image with contrast",
    ),
    Bad("constant modality", changed(T1, lambda v: v * 0), BRATS, f"{T1}: expected an image with contrast"),
    Bad("one voxel of 3e38", changed(A, with_value(3e38)), GENERIC, f"{A}: expected an image with contrast"),
    Bad(
        "one voxel of 3e38 in a modality",
        changed(T1, with_value(3e38)),
        BRATS,
        f"{T1}: expected an image with contrast",
    ),
    Bad("one voxel of -1e30", changed(CT, with_value(-1e30)), FLARE, f"{CT}: expected an image with contrast"),
    Bad("air alone", changed(CT, lambda v: v * 0 - 1000), FLARE, f"{CT}: expected an image with contrast"),
    Bad(
        "body darker than the window", changed(CT, lambda v: v - 9000), FLARE, f"{CT}: expected a volume that can be tr"
    ),
    Bad(
        "body brighter than the window",
        changed(CT, lambda v: v + 9000),
        FLARE,
        f"{CT}: expected an image with contrast",
    ),
    Bad(
        "unknown label", changed(B, lambda v: 2 * v), GENERIC, f"{B}: expected label values from [0, 1, 2, 3], got 4, 6"
    ),
    Bad(
        "fractional label",
        changed(B, lambda v: v / 2),
        GENERIC,
        f"{B}: expected label values from [0, 1, 2, 3], got 0.5",
    ),
    Bad(
        "negative label",
        changed(B, lambda v: -v.astype("i2")),
        GENERIC,
        f"{B}: expected label values from [0, 1, 2, 3]",
    ),
    Bad(
        "NaN in a label",
        changed(B, with_value(np.nan)),
        GENERIC,
        f"{B}: expected label values from [0, 1, 2, 3], got nan",
    ),
    Bad(
        "infinite label",
        changed(B, with_value(np.inf)),
        GENERIC,
        f"{B}: expected label values from [0, 1, 2, 3], got inf",
    ),
    Bad(
        "code 3 in BraTS",
        changed(SEG, lambda v: v * 0 + 3),
        BRATS,
        f"{SEG}: expected label values from [0, 1, 2, 4], got",
    ),
    Bad("image and label swapped", swapped, GENERIC, f"{B}: expected label values from [0, 1, 2, 3], got"),
    Bad(
        "fewer names than labels",
        nothing,
        GENERIC.replace(",three", ""),
        f"{B}: expected label values from [0, 1, 2], got",
    ),
    # Shapes
    Bad("time series", changed(A, lambda v: np.stack([v] * 3, -1)), GENERIC, f"{A}: expected 1 channel(s), got 3"),
    Bad(
        "label of two channels",
        changed(B, lambda v: np.stack([v] * 2, -1)),
        GENERIC,
        f"{B}: expected 1 channel(s), got 2",
    ),
    Bad("too few channels", nothing, f"{GENERIC} --in_channels 2", f"{A}: expected 2 channel(s), got 1"),
    Bad("two axes", to_both(lambda v: v[:, :, 0]), GENERIC, f"{A}: expected a 3D volume, got shape (18, 16)"),
    Bad(
        "five axes", to_both(lambda v: np.stack([np.stack([v] * 2, -1)] * 2, -1)), GENERIC, f"{A}: expected a 3D volume"
    ),
    Bad(
        "one pixel", to_both(lambda v: v[:1, :1]), GENERIC, f"{A}: expected slices of at least 4 x 4 pixels, got shape"
    ),
    Bad("one voxel", to_both(lambda v: v[:1, :1, :1]), GENERIC, f"{A}: expected slices of at least 4 x 4 pixels, got"),
    # Files
    Bad("empty", written(A, b""), GENERIC, f"{A}: {READABLE}"),
    Bad("empty label", written(B, b""), GENERIC, f"{B}: {READABLE}"),
    Bad("text", written(A, b"<html>404 not found</html>"), GENERIC, f"{A}: {READABLE}"),
    Bad("compressed text", written(A, gzip.compress(b"text")), GENERIC, f"{A}: {READABLE}"),
    Bad("wrong checksum", flipped(A, -6), GENERIC, f"{A}: {COMPLETE} CRC check failed"),
    Bad("changed bit", flipped(A, 1000), GENERIC, f"{A}: {COMPLETE}"),
    Bad("truncated gzip", cut(A, 0.5), GENERIC, f"{A}: {COMPLETE}"),
    Bad("truncated gzip of a label", cut(B, 0.9), GENERIC, f"{B}: {COMPLETE}"),
    Bad(
        "truncated by one byte",
        cut(A, 0.9999),
        GENERIC,
        f"{A}: {COMPLETE} Compressed file ended before the end-of-stream marker was reached",
    ),
    Bad("truncated volume", cut_inside(A), GENERIC, f"{A}: {COMPLETE}"),
    Bad("not compressed", lambda: written(A, gzip.decompress(Path(A).read_bytes()))(), GENERIC, f"{A}: {READABLE}"),
    Bad("missing image", lambda: Path(A).unlink(), GENERIC, f"{A}: {NONE} no such file"),
    Bad("missing label", lambda: Path(B).unlink(), GENERIC, f"{B}: {NONE} no such file"),
    Bad("missing modality", lambda: Path(T1).unlink(), BRATS, f"{T1}: {NONE} no such file"),
    Bad("missing segmentation", lambda: Path(SEG).unlink(), BRATS, f"{SEG}: {NONE} no such file"),
    Bad("missing frame", lambda: Path(FRAME).unlink(), ACDC, f"{FRAME}: {NONE} no such file"),
    Bad("broken link", linked(A, "nowhere"), GENERIC, f"{A}: {NONE} a broken link"),
    Bad("broken link to a label", linked(B, "nowhere"), GENERIC, f"{B}: {NONE} a broken link"),
    Bad("folder of that name", folder_instead(A), GENERIC, f"{A}: {NONE} a folder"),
    Bad(
        "both endings",
        copied("plain.nii", "src/images/a.nii"),
        GENERIC,
        "src/images/a.nii: expected one file of that name",
    ),
    Bad(
        "both endings of a label",
        copied("plain.nii", "src/labels/a.nii"),
        GENERIC,
        "src/labels/a.nii: expected one file",
    ),
    Bad("both endings in ACDC", copied("plain.nii", FRAME[:-3]), ACDC, f"{FRAME[:-3]}: expected one file of that name"),
    Bad(
        "capitals as well", copied(A, "src/images/a.NII.GZ"), GENERIC, "src/images/a.NII.GZ: expected one file of that"
    ),
    # Names
    Bad("p0_label", renamed(B, "src/labels/a_label.nii.gz"), GENERIC, f"{B}: {NONE} no such file but one of a_label"),
    Bad(
        "a_0000 of nnU-Net",
        renamed(A, "src/images/a_0000.nii.gz"),
        GENERIC,
        f"{A}: {NONE} no such file but one of a_0000",
    ),
    Bad("a-seg", renamed(B, "src/labels/a-seg.nii.gz"), GENERIC, f"{B}: {NONE} no such file but one of a-seg"),
    Bad(
        "line break",
        both_named("a\nb"),
        GENERIC,
        r"src/labels/a\nb.nii.gz: expected another name, of printable characters, got 'a\nb'",
    ),
    Bad(
        "escape sequence",
        both_named("a\x1b[2J"),
        GENERIC,
        r"src/labels/a\x1b[2J.nii.gz: expected another name, of printable characters, got 'a\x1b",
    ),
    Bad(
        "name of the datalist",
        both_named("datalist.json"),
        GENERIC,
        "src/labels/datalist.json.nii.gz: expected another name, of printable characters",
    ),
    Bad(
        "name of the facts",
        both_named("facts.yaml"),
        GENERIC,
        "src/labels/facts.yaml.nii.gz: expected another name, of printable characters",
    ),
    Bad(
        "name of 250 characters",
        both_named("a" * 245),
        GENERIC,
        f"out/{'a' * 245}: expected a folder that can be written, got File name",
    ),
    Bad(
        "two cases of one name",
        lambda: shutil.copytree("src", "src/more"),
        BRATS,
        "src/more/A_seg.nii.gz: expected one case A, got a second",
    ),
    Bad(
        "no patient in a name",
        nothing,
        rf"{GENERIC} --patient \d+",
        f"{B}: expected a name that starts with the patient",
    ),
    Bad(
        "patient without a letter",
        nothing,
        f"{GENERIC} --patient x*",
        f"{B}: expected a name that starts with the patient",
    ),
    # Info.cfg
    Bad("no Info.cfg", lambda: Path(INFO).unlink(), ACDC, f"{INFO}: expected a readable file, got No such file"),
    Bad("empty Info.cfg", written(INFO, b""), ACDC, f"{INFO}: expected the lines 'ED: FRAME' and 'ES: FRAME', got"),
    Bad("Info.cfg of bytes", written(INFO, b"\xff\xfe\x00"), ACDC, f"{INFO}: expected the lines 'ED: FRAME' and"),
    Bad(
        "Info.cfg without numbers",
        written(INFO, b"ED: one\nES: two\n"),
        ACDC,
        f"{INFO}: expected the lines 'ED: FRAME'",
    ),
    Bad(
        "another frame in Info.cfg",
        written(INFO, b"ED: 1\nES: 12\n"),
        ACDC,
        f"src/training/patient001/patient001_frame12.nii.gz: {NONE} no such",
    ),
    # Folders
    Bad("no source", nothing, GENERIC.replace("src", "absent"), "absent: expected a folder, got no such folder"),
    Bad(
        "file as source",
        nothing,
        GENERIC.replace("src", "plain.nii"),
        "plain.nii: expected a folder, got no such folder",
    ),
    Bad(
        "no ACDC",
        empty_folder,
        "acdc empty out",
        "empty: expected training/patientNNN/Info.cfg or patientNNN/Info.cfg, got",
    ),
    Bad("no FLARE", empty_folder, "flare empty out", "empty: expected TrainingImg/NAME_0000.nii.gz, got no cases"),
    Bad("no BraTS", empty_folder, "brats empty out", "empty: expected NAME_flair.nii.gz at any depth, got no cases"),
    Bad(
        "no images", empty_folder, "generic empty out --labels a", "empty: expected images/NAME.nii.gz and labels/NAME"
    ),
    Bad(
        "out is src",
        nothing,
        GENERIC.replace("out", "src"),
        "src: expected a folder apart from the data set's, got one",
    ),
    Bad("brats SRC SRC", nothing, BRATS.replace("out", "src"), "src: expected a folder apart from the data set's, got"),
    Bad(
        "out in src", nothing, GENERIC.replace("out", "src/out"), "src/out: expected a folder apart from the data set's"
    ),
    Bad(
        "out above src", nothing, GENERIC.replace("out", "."), ".: expected a folder apart from the data set's, got one"
    ),
    Bad(
        "out by dots in src",
        nothing,
        GENERIC.replace("out", "out/../src/x"),
        "out/../src/x: expected a folder apart from the data set's",
    ),
    Bad(
        "out by a link in src",
        linked("link", "src"),
        GENERIC.replace("out", "link"),
        "link: expected a folder apart from the data",
    ),
    Bad(
        "file as out",
        nothing,
        GENERIC.replace("out", "plain.nii"),
        "plain.nii: expected a folder that can be written, got",
    ),
    Bad(
        "file in place of a case",
        other_file("out/a"),
        GENERIC,
        "out/a: expected a prepared case or nothing, got a file",
    ),
    Bad(
        "folder in place of a case",
        other_file("out/a/thesis.txt"),
        GENERIC,
        "out/a: expected a prepared case or nothing, got thesis.txt; choose",
    ),
    Bad(
        "other files beside a case",
        other_file("out/a/image.nii.bak"),
        GENERIC,
        "out/a: expected a prepared case or noth",
    ),
    Bad(
        "file above out",
        nothing,
        GENERIC.replace("out", "plain.nii/out"),
        "plain.nii/out: expected a folder that can be",
    ),
    Bad(
        "out in /proc",
        nothing,
        GENERIC.replace("out", "/proc/out"),
        "/proc/out: expected a folder that can be written, got",
    ),
    # Arguments
    Bad("no labels", nothing, "generic src out", "--labels: expected a value, got none"),
    Bad("empty name", nothing, GENERIC.replace("two", ""), "labels: expected names of one line, got ''"),
    Bad(
        "256 names",
        nothing,
        GENERIC.replace("one,two,three", ",".join(map(str, range(256)))),
        "labels: expected at most 255 names, got 256",
    ),
    Bad("name twice", nothing, GENERIC.replace("two", "one"), "labels: expected different names, got one twice"),
    Bad(
        "background",
        nothing,
        GENERIC.replace("two", "Background"),
        "labels: expected names of structures, got Background",
    ),
    Bad(
        "code",
        nothing,
        GENERIC.replace("two", "$__import__('os').mkdir('ran')"),
        "labels: expected names that do not start",
    ),
    Bad(
        "reference",
        nothing,
        GENERIC.replace("two", "@device"),
        "labels: expected names that do not start with $, @ or %",
    ),
    Bad(
        "macro",
        nothing,
        GENERIC.replace("two", "%a::b"),
        "labels: expected names that do not start with $, @ or %, got %a",
    ),
    Bad("unknown like", nothing, f"{GENERIC} --like flair", "like: expected one of acdc, flare, brats, got flair"),
    Bad("path as like", nothing, f"{GENERIC} --like ../x", "like: expected one of acdc, flare, brats, got ../x"),
    Bad(
        "no channel", nothing, f"{GENERIC} --in_channels 0", "in_channels: expected a whole number of at least 1, got 0"
    ),
    Bad("pattern", nothing, f"{GENERIC} --patient (", "patient: expected a regular expression, got '('"),
    Bad(
        "size of 120",
        nothing,
        "generic src out --labels a --image_size 120,128",
        "image_size: expected two whole numbers, mu",
    ),
    Bad(
        "one size", nothing, "acdc src out --image_size 128", "image_size: expected two whole numbers, multiples of 16"
    ),
    Bad(
        "negative size",
        nothing,
        "acdc src out --image_size=-16,16",
        "image_size: expected two whole numbers, multiples of",
    ),
    Bad("size of words", nothing, "acdc src out --image_size a,b", "--image_size: expected a whole number, or several"),
    Bad("axis 3", nothing, f"{GENERIC} --slice_axis 3", "slice_axis: expected 0, 1 or 2, got 3"),
    Bad(
        "axis in CT",
        nothing,
        f"{FLARE} --slice_axis 1",
        "slice_axis: expected none for data like flare, whose slices are",
    ),
    Bad(
        "axis like CT",
        nothing,
        f"{GENERIC} --like flare --slice_axis 1",
        "slice_axis: expected none for data like flare",
    ),
    Bad("no process", nothing, "acdc src out --workers 0", "workers: expected a whole number of at least 1, got 0"),
    Bad(
        "negative processes",
        nothing,
        "acdc src out --workers=-2",
        "workers: expected a whole number of at least 1, got -2",
    ),
    Bad("half a process", nothing, "acdc src out --workers 0.5", "--workers: expected a whole number, got '0.5'"),
    Bad("negative seed", nothing, "acdc src out --seed=-1", "seed: expected a whole number of at least 0, got -1"),
    Bad("one fold", nothing, f"{GENERIC} --folds 1", "folds: expected 2 to 2, the number of patients, got 1"),
    Bad("no fold", nothing, f"{GENERIC} --folds 0", "folds: expected 2 to 2, the number of patients, got 0"),
    Bad(
        "more folds than patients",
        nothing,
        f"{GENERIC} --folds 3",
        "folds: expected 2 to 2, the number of patients, got 3",
    ),
    Bad(
        "fractions above 1",
        nothing,
        f"{GENERIC} --fractions 0.5,0.5,0.5",
        "fractions: expected three numbers of at least",
    ),
    Bad("two fractions", nothing, f"{GENERIC} --fractions 0.5,0.5", "fractions: expected three numbers of at least 0"),
    Bad(
        "fractions not numbers",
        nothing,
        f"{GENERIC} --fractions nan,0,1",
        "--fractions: expected a number, or several separated",
    ),
    Bad(
        "infinite fractions",
        nothing,
        f"{GENERIC} --fractions inf,0,1",
        "--fractions: expected a number, or several separated",
    ),
    Bad(
        "negative fraction",
        nothing,
        f"{GENERIC} --fractions 1.5,-0.5,0",
        "fractions: expected three numbers of at least 0",
    ),
    Bad(
        "neither true nor false",
        nothing,
        f"{GENERIC} --skip_bad maybe",
        "--skip_bad: expected true or false, got 'maybe'",
    ),
    Bad("misspelt option", nothing, f"{GENERIC} --skip_bat", "--skip_bat: expected an option, got no such option"),
    Bad("misspelt command", nothing, "acdcc src out", "acdcc: expected a command, acdc, flare, brats, generic, got"),
    Bad(
        "labels without quotes",
        nothing,
        "generic src out --labels left kidney,GTV+",
        "kidney,GTV+: expected at most 3 values without an option, src, out, labels, got one more; quote a value",
    ),
]


@pytest.mark.parametrize("bad", TABLE, ids=[bad.name for bad in TABLE])
def test_one_line_and_nothing_written(bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_source(bad.typed.split()[0])
    bad.spoil()
    before = snapshot(tmp_path)
    done = run_as_typed("prepare_data", COMMANDS, bad.typed.split(" "))
    assert done.code == 1
    assert done.err.startswith(f"prepare_data: {bad.expected}")
    assert done.err.count("\n") == 1
    after = snapshot(tmp_path)
    new = {name for name in after if name not in before and not name.startswith(GOOD)}
    assert new <= {"out", "out/.lock", "out/facts.yaml"}
    assert {name: after[name] for name in before} == before
    assert not list(tmp_path.rglob("ran"))


def test_names_of_cases_are_the_same_in_every_row() -> None:
    assert len({bad.name for bad in TABLE}) == len(TABLE) >= 100


class Fault(NamedTuple):
    """What is done to the folder that a command has prepared, how the command is typed again, and its one line."""

    name: str
    spoil: Callable[[], object]
    options: str
    expected: str


def edited(name: str, **changes: object) -> Callable[[], object]:
    return lambda: Path(name).write_text(json.dumps({**json.loads(Path(name).read_text()), **changes}))


FAULTS = [
    Fault("another source", renamed("src", "other"), "other", "out/facts.yaml: expected source "),
    Fault(
        "another size", nothing, "src --image_size 32,32", "out/facts.yaml: expected image_size [32, 32], got [16, 32]"
    ),
    Fault(
        "another axis",
        nothing,
        "src --slice_axis 2",
        "out/facts.yaml: expected slice_axis 2, got None, which the cases",
    ),
    Fault("more labels", nothing, "src --labels a,b,c,d", "out/facts.yaml: expected label_codes [0, 1, 2, 3, 4], got"),
    Fault(
        "like another", nothing, "src --like flare", "out/facts.yaml: expected dataset flare, got acdc, which the cases"
    ),
    Fault("channels", nothing, "src --in_channels 2", "out/facts.yaml: expected in_channels 2, got 1, which the cases"),
    Fault("other fractions", nothing, "src --fractions 1,0,0", "out/datalist.json: expected every case to stay in its"),
    Fault(
        "another number of folds", nothing, "src --folds 3", "out/datalist_fold1.json: expected 3 folds as in --folds"
    ),
    Fault(
        "another seed of folds",
        nothing,
        "src --folds 2 --seed 5",
        "out/datalist_fold0.json: expected every case to stay in its",
    ),
    Fault(
        "empty datalist",
        written("out/datalist.json", b""),
        "src",
        "out/datalist.json: expected a list of prepared cases",
    ),
    Fault(
        "datalist of a list",
        written("out/datalist.json", b"[]"),
        "src",
        "out/datalist.json: expected a list of prepared",
    ),
    Fault(
        "datalist without splits", written("out/datalist.json", b"{}"), "src", "out/datalist.json: expected a list of"
    ),
    Fault("items of text", edited("out/datalist.json", testing=["a"]), "src", "out/datalist.json: expected a list of"),
    Fault(
        "broken fold", written("out/datalist_fold0.json", b"{"), "src --folds 2", "out/datalist_fold0.json: expected a"
    ),
    Fault(
        "empty facts",
        written("out/facts.yaml", b""),
        "src",
        "out/facts.yaml: expected the facts of a data set, got None; choose another folder",
    ),
    Fault(
        "facts of bytes",
        written("out/facts.yaml", b"\xff\x00"),
        "src",
        "out/facts.yaml: expected the facts of a data set",
    ),
    Fault(
        "no facts", lambda: Path("out/facts.yaml").unlink(), "src", "out/facts.yaml: expected the facts of the cases"
    ),
    Fault(
        "code in facts", added("crop_size: $__import__('os').mkdir('ran')"), "src", "out/facts.yaml: expected crop_size"
    ),
    Fault(
        "tag in facts",
        added("source: !!python/object/apply:os.mkdir [ran]"),
        "src",
        "out/facts.yaml: expected the facts",
    ),
    Fault("older version", added("volume_transforms: []"), "src", "out/facts.yaml: expected only dataset, num_classes"),
    Fault("bad source since", cut(A, 0.5), "src", f"{A}: {COMPLETE}"),
    Fault("second ending since", copied("plain.nii", "src/images/a.nii"), "src", "src/images/a.nii: expected one file"),
    Fault("label moved since", moved(B, lambda a: shift(5, 0) @ a), "src", f"{VOXELS} voxels that lie 5 mm off"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_prepared_cases_are_kept(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_source("generic", patients=4)
    typed = [
        "generic",
        "src",
        "out",
        "--labels",
        "one,two,three",
        "--image_size",
        "16,32",
        "--workers",
        "1",
        "--folds",
        "2",
        "--fractions",
        "0,0,1",
    ]
    assert run_as_typed("prepare_data", COMMANDS, typed).code == 0
    fault.spoil()
    before = snapshot(tmp_path)
    source, *options = fault.options.split(" ")
    given = dict(zip(typed[3::2], typed[4::2], strict=True)) | dict(zip(options[::2], options[1::2], strict=True))
    if "--folds" not in options:
        del given["--folds"]
    done = run_as_typed(
        "prepare_data", COMMANDS, ["generic", source, "out", *(t for pair in given.items() for t in pair)]
    )
    assert done.code == 1
    assert done.err.startswith(f"prepare_data: {fault.expected}")
    assert done.err.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file the disk is full at: the line names its folder, bad cases are not to blame, nothing half is left."""
    monkeypatch.chdir(tmp_path)
    make_source("generic")
    write = nib.Nifti1Image.to_filename

    def fail(image: nib.Nifti1Image, name: Path) -> None:
        if name.name == "label.nii":
            name.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))
        write(image, name)

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", fail)
    done = run_as_typed("prepare_data", COMMANDS, [*GENERIC.split(), "--skip_bad"])
    assert (done.code, done.err) == (
        1,
        "prepare_data: out/a: expected a folder that can be written, got No space left on device\n",
    )
    assert {path.name for path in Path("out").iterdir()} == {".lock", "facts.yaml"}


def test_limit_of_file_sizes_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that may write no more than 8 KB: images are larger."""
    monkeypatch.chdir(tmp_path)
    make_source("generic", patients=3)
    script = f"ulimit -f 8; exec {sys.executable} {ROOT}/scripts/prepare_data.py {GENERIC}".replace("16,32", "64,64")
    done = subprocess.run(
        ["bash", "-c", script.replace("workers 1", "workers 2")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("prepare_data: out/")
    assert done.stderr.endswith(": expected a folder that can be written, got File too large\n")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock", "facts.yaml"}


def test_as_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_source("generic")
    cut(B, 0.5)()
    command = [sys.executable, ROOT / "scripts" / "prepare_data.py", *GENERIC.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"prepare_data: {B}: {READABLE}")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in Path("out").iterdir()} == {".lock", "facts.yaml"}
