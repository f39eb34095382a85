"""Bad input and faults of inference: each ends with one line that names the file or argument, and writes nothing."""

from __future__ import annotations

import gzip
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch

from calib_components.inference.maps import MARK
from tests.bad_input.harness import snapshot
from tests.helpers import ACDC, BRATS, ROOT, SPACING, make_weights, run_bundle_as_typed, save

GOOD = np.random.default_rng(0).integers(0, 900, (20, 24, 4)).astype(np.int16)
Options = dict[str, Any]


class Case(NamedTuple):
    """What is done to a folder with `in/scan.nii.gz` and `weights`, the start of the line, and options of the run.

    In the latter two, {} is the folder.
    """

    id: str
    change: Callable[[Path], Any]
    line: str
    options: Options = {}  # noqa: RUF012
    overlay: str | None = None


def nothing(_: Path) -> None:
    pass


def array(values: np.ndarray, name: str = "scan.nii.gz", affine: Any = SPACING) -> Callable[[Path], Any]:
    """Replace the image by another."""

    def change(folder: Path) -> None:
        (folder / "in" / "scan.nii.gz").unlink()
        save(folder / "in" / name, values, affine)

    return change


def voxel(value: float, dtype: type = np.float64) -> Callable[[Path], Any]:
    values: np.ndarray = GOOD.astype(dtype)
    values[3, 3, 1] = value
    return array(values)


def header(**fields: Any) -> Callable[[Path], Any]:
    """Change fields of the image's header, to what nibabel would not write."""

    def change(folder: Path) -> None:
        file = folder / "in" / "scan.nii.gz"
        raw = bytearray(gzip.decompress(file.read_bytes()))
        changed = nib.Nifti1Header(bytes(raw[:348]), check=False)
        for name, value in fields.items():
            changed[name] = value
        raw[:348] = changed.binaryblock
        file.write_bytes(gzip.compress(bytes(raw)))

    return change


def content(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(name: str, keep: float) -> Callable[[Path], Any]:
    """Leave that part of a file."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return change


def then(*changes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [change(folder) for change in changes] and None


def rename(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "in/scan.nii.gz").rename(folder / "in" / name) and None


def link(name: str, target: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).symlink_to(target)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    """Replace the weights by what is made of them."""

    def apply(folder: Path) -> None:
        state = torch.load(folder / "weights/model.pt")
        torch.save(change(state), folder / "weights/model.pt")

    return apply


def four_classes_become_three(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values[:3] if values.shape[:1] == (4,) else values for name, values in state.items()}


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("made-by-weights",)


def facts(before: str, after: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        file = folder / "weights/facts.yaml"
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))

    return change


NIFTI = "{}/in/scan.nii.gz: expected a readable NIfTI file, got "
IMAGES = [
    Case("folder missing", nothing, "dataset_dir: expected a NIfTI file or a folder, got {}/no", {"dataset_dir": "{}/no"}),
    Case("folder a number", nothing, "dataset_dir: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got 20241125", {"dataset_dir": 20241125}),
    Case("folder empty text", nothing, "dataset_dir: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got ''", {"dataset_dir": ""}),
    Case("folder without images", lambda f: (f / "in/scan.nii.gz").unlink(), "dataset_dir: expected .nii or .nii.gz images"),
    Case("folder of labels", rename("scan_seg.nii.gz"), "dataset_dir: expected .nii or .nii.gz images, got none in {}/in"),
    Case("folder a broken link", link("l", "no"), "dataset_dir: expected a NIfTI file or a folder", {"dataset_dir": "{}/l"}),
    Case("file of another kind", content("a.png", b"x"),
         "dataset_dir: expected .nii or .nii.gz images, got none in {}/a.png", {"dataset_dir": "{}/a.png"}),
    Case("image a broken link", link("in/a.nii", "no"), "{}/in/a.nii: expected an image, got a link to no"),
    Case("image empty", content("in/scan.nii.gz", b""), NIFTI),
    Case("image is text", content("in/scan.nii.gz", b"not an image"), NIFTI),
    Case("image is packed text", content("in/scan.nii.gz", gzip.compress(b"no" * 999)), NIFTI),
    Case("header truncated", cut("in/scan.nii.gz", 0.01), NIFTI),
    Case("voxels truncated", cut("in/scan.nii.gz", 0.7), "{}/in/scan.nii.gz: expected a complete NIfTI file, got "),
    Case("capitals truncated", then(rename("S.NII.GZ"), cut("in/S.NII.GZ", 0.7)), "{}/in/S.NII.GZ: expected a complete"),
    Case("not packed, truncated", then(array(GOOD, "a.nii"), cut("in/a.nii", 0.7)), "{}/in/a.nii: expected 4192 bytes"),
    Case("packed in name only", then(array(GOOD, "a.nii"), lambda f: (f / "in/a.nii").rename(f / "in/a.nii.gz") and None),
         "{}/in/a.nii.gz: expected a readable NIfTI file"),
    Case("a second one is broken", content("in/z.nii", b"x"), "{}/in/z.nii: expected a readable NIfTI file"),
    Case("both endings", lambda f: save(f / "in/scan.nii", GOOD),
         "dataset_dir: expected a name of its own for each image, got several called scan, whose results would replace "
         "each other: {}/in/scan.nii, {}/in/scan.nii.gz"),
    Case("one name in two folders", lambda f: save(f / "in/sub/scan.nii.gz", GOOD),
         "dataset_dir: expected a name of its own for each image, got several called scan, whose"),
    Case("line break in the name", rename("a\nb.nii.gz"), "{}/in/a\\nb.nii.gz: expected a name that is one line of text"),
    Case("escape code in the name", rename("a\x1b[31m.nii.gz"),
         "{}/in/a\\x1b[31m.nii.gz: expected a name that is one line of text"),
    Case("name too long", rename("n" * 240 + ".nii.gz"), "{}/in/" + "n" * 240 + ".nii.gz: expected a shorter name"),
    Case("two axes", array(GOOD[..., 0]),
         "{}/in/scan.nii.gz: expected a 3D image with 1 channel(s), got shape (20, 24)"),
    Case("a movie", array(np.stack([GOOD] * 3, -1)), "{}/in/scan.nii.gz: expected a 3D image with 1 channel(s), got shape "),
    Case("five axes", array(GOOD[..., None, None]),
         "{}/in/scan.nii.gz: expected a 3D image with 1 channel(s), got shape (20, 24, 4, 1, 1)"),
    Case("one slice of 1 x 1", array(GOOD[:1, :1, :1]),
         "{}/in/scan.nii.gz: expected slices of at least 4 x 4 pixels, got shape (1, 1, 1)"),
    Case("slices of 1 x 1", array(GOOD[:1, :1]), "{}/in/scan.nii.gz: expected slices of at least 4 x 4 pixels"),
    Case("no slice", header(dim=[3, 20, 24, 0, 1, 1, 1, 1]),
         "{}/in/scan.nii.gz: expected slices of at least 4 x 4 pixels, got shape (20, 24, 0)"),
    Case("negative size", header(dim=[3, 20, -24, 4, 1, 1, 1, 1]),
         "{}/in/scan.nii.gz: expected slices of at least 4 x 4 pixels, got shape (20, -24, 4)"),
    Case("header demands more", header(dim=[3, 20, 24, 9, 1, 1, 1, 1]), "{}/in/scan.nii.gz: expected a complete NIfTI file"),
    Case("header demands terabytes", header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
         "{}/in/scan.nii.gz: expected 54000000000352 bytes, as its header demands, got "),
    Case("unknown type", header(datatype=77), NIFTI),
    Case("complex", array(GOOD.astype(np.complex64)), "{}/in/scan.nii.gz: expected one real number per voxel, got complex64"),
    Case("colours", array(np.zeros((9, 9, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
         "{}/in/scan.nii.gz: expected one real number per voxel"),
    Case("NaN in the affine", header(srow_x=[np.nan, 0, 0, 0]), "{}/in/scan.nii.gz: expected an affine of finite numbers"),
    Case("infinite affine", header(srow_y=[0, 0, 0, np.inf]), "{}/in/scan.nii.gz: expected an affine of finite numbers"),
    Case("affine of zeros", header(srow_x=[0] * 4, srow_y=[0] * 4),
         "{}/in/scan.nii.gz: expected an affine whose three axes differ"),
    Case("affine with equal axes", header(srow_x=[1] * 4, srow_y=[1] * 4, srow_z=[1] * 4),
         "{}/in/scan.nii.gz: expected an affine whose three axes differ"),
    Case("NaN", voxel(np.nan), "{}/in/scan.nii.gz: expected finite values, got 1 that are NaN or infinite"),
    Case("infinite", voxel(-np.inf), "{}/in/scan.nii.gz: expected finite values, got 1 that are NaN or infinite"),
    Case("infinite in float32", voxel(1e300), "{}/in/scan.nii.gz: expected finite values, got 1"),
    Case("scale factor huge", header(scl_slope=3e38, scl_inter=0), "{}/in/scan.nii.gz: expected finite values"),
    Case("all zero", array(GOOD * 0), "{}/in/scan.nii.gz: expected an image with contrast, got "),
    Case("quaternion no rotation", header(sform_code=0, qform_code=1, quatern_b=5), NIFTI),
    Case("NaN in the quaternion", header(sform_code=0, qform_code=1, quatern_b=np.nan), "{}/in/scan.nii.gz: expected an affine"),
    Case("NaN as spacing", header(sform_code=0, qform_code=0, pixdim=[1, np.nan] + [1] * 6),
         "{}/in/scan.nii.gz: expected an affine of finite"),
    Case("voxels beyond the end", header(vox_offset=9e6), "{}/in/scan.nii.gz: expected 9003840 bytes"),
    Case("other magic", header(magic=b"xx"), NIFTI),
    Case("name that is no UTF-8", lambda f: os.rename(f / "in/scan.nii.gz", os.fsencode(f / "in") + b"/a\xff.nii.gz"),
         "{}/in/a\\udcff.nii.gz: expected a name that is one line of text"),
    Case("one voxel in air", array(np.where(np.arange(1920).reshape(GOOD.shape) == 700, 9, 0).astype(np.uint8)),
         "{}/in/scan.nii.gz: expected an image with contrast, got a few voxels between 0 and 9"),
    Case("all air", array(GOOD * 0 - 1000), "{}/in/scan.nii.gz: expected an image with contrast, got "),
]  # fmt: skip


def modalities(affine: Any = SPACING, shape: tuple[int, ...] = (20, 24, 4), value: float = 0) -> Callable[[Path], Any]:
    """Four modalities of a brain, of which T1 has another affine, shape or voxel."""

    def change(folder: Path) -> None:
        (folder / "in/scan.nii.gz").unlink()
        shutil.rmtree(folder / "weights")
        for name in ("flair", "t1", "t1ce", "t2"):
            values = np.random.default_rng(0).uniform(1, 900, shape if name == "t1" else (20, 24, 4))
            values.flat[0] = value if name == "t1" and value else 1
            save(folder / "in" / f"b_{name}.nii", values.astype(np.float32), affine if name == "t1" else SPACING)
        make_weights(BRATS, folder / "weights")

    return change


T1 = "{}/in/b_t1.nii: expected "
CHANNELS = [
    Case("channel missing", then(modalities(), lambda f: (f / "in/b_t1.nii").unlink()), T1 + "a file for each channel of b"),
    Case("channel mirrored", modalities(np.diag([-1.5, 1.25, 10, 1])), T1 + "the voxels of {}/in/b_flair.nii, in the same order, got others"),
    Case("channel shifted", modalities(SPACING + np.eye(4, k=3) * 5), T1 + "the voxels of {}/in/b_flair.nii, in the same order, got others"),
    Case("channel of other shape", modalities(shape=(20, 24, 5)), T1 + "shape (20, 24, 4) as in {}/in/b_flair.nii"),
    Case("channel of one axis less", modalities(shape=(20, 24)), T1 + "a 3D image"),
    Case("channel of more channels", modalities(shape=(20, 24, 4, 4)), T1 + "a 3D image with 1 channel(s)"),
    Case("channel truncated", then(modalities(), cut("in/b_t1.nii", 0.9)), T1 + "8032 bytes"),
    Case("channel empty", then(modalities(), content("in/b_t1.nii", b"")), T1 + "a readable NIfTI file"),
    Case("voxel that swallows the others", modalities(value=3e38), T1 + "an image with contrast, got a few voxels between "),
    Case("one file of too few channels", then(modalities(), lambda f: save(f / "in/c.nii", GOOD)),
         "{}/in/c.nii: expected a 3D image with 4 channel(s), got shape (20, 24, 4)"),
]  # fmt: skip

MODEL = "{}/weights/model.pt: expected trained weights, got "
WEIGHTS = [
    Case("missing", lambda f: (f / "weights/model.pt").unlink(), MODEL + "no such file"),
    Case("folder missing", lambda f: shutil.rmtree(f / "weights"), MODEL + "no such file"),
    Case("a folder", then(lambda f: (f / "weights/model.pt").unlink(), lambda f: (f / "weights/model.pt").mkdir()),
         MODEL + "Is a directory"),
    Case("empty", content("weights/model.pt", b""), MODEL + "a broken file"),
    Case("garbage", content("weights/model.pt", b"garbage" * 99), MODEL + "another kind of file"),
    Case("truncated", cut("weights/model.pt", 0.5), MODEL + "a broken file"),
    Case("code", weights(lambda state: {"model": Code()}), MODEL + "pickled code"),
    Case("plain pickle with code", content("weights/model.pt", pickle.dumps(Code())), MODEL + "another kind of file"),
    Case("three classes", weights(four_classes_become_three), MODEL + "those of another network"),
    Case("of another layer", weights(lambda state: {f"x.{name}": values for name, values in state.items()}),
         MODEL + "those of another network, without model.0.conv.unit0.conv.weight"),
    Case("a list", weights(list), MODEL + "a list"),
    Case("NaN", weights(lambda state: {name: values * float("nan") for name, values in state.items()}),
         MODEL + "values that are NaN or infinite in temperature"),
    Case("state of a training", weights(lambda state: {"network": state, "optimizer": {}}), MODEL + "the state of a training"),
    Case("load_path missing", nothing, "{}/no.pt: expected trained weights", {"load_path": "{}/no.pt"}),
    Case("load_path a number", nothing,
         "load_path: expected a path without # or ::, with no ~ in front; write ./NAME if it reads as a number, got 2024",
         {"load_path": 2024}),
    Case("TorchScript missing", nothing, "{}/weights/model.ts: expected a TorchScript file, got none", {}, "inference_ts.yaml"),
    Case("TorchScript garbage", content("weights/model.ts", b"x" * 99), "{}/weights/model.ts: expected a TorchScript file",
         {}, "inference_ts.yaml"),
    Case("TorchScript is weights", lambda f: shutil.copy(f / "weights/model.pt", f / "weights/model.ts") and None,
         "{}/weights/model.ts: expected a TorchScript file", {}, "inference_ts.yaml"),
]  # fmt: skip

FACTS = "{}/weights/facts.yaml: expected "
KNOWN = (
    "dataset, num_classes, in_channels, class_names, label_codes, structures, file_suffixes, image_size, crop_size, "
    "slice_axis, pixel_size, source"
)
FACTS_OF_WEIGHTS = [
    Case(
        "broken",
        content("weights/facts.yaml", b"a: [1"),
        FACTS + "the facts of a data set, got while parsing a flow sequence",
    ),
    Case("empty", content("weights/facts.yaml", b""), FACTS + "the facts of a data set, got None"),
    Case(
        "binary",
        content("weights/facts.yaml", b"\xff\xfe\x00"),
        FACTS + "the facts of a data set, got 'utf-8' codec can't decode byte 0xff",
    ),
    Case(
        "code as a value",
        facts("image_size:\n- 32", "image_size:\n- $__import__('os').mkdir('made-by-facts')"),
        FACTS + "image_size to be two positive whole numbers, got ",
    ),
    Case(
        "code as a tag",
        content("weights/facts.yaml", b"!!python/object/apply:os.mkdir ['made-by-facts']"),
        FACTS + "the facts of a data set, got could not determine a constructor for the tag",
    ),
    Case(
        "code as a name",
        facts("RV:", "$print(1):"),
        FACTS + "structures to be names and their lists of different class indices, got ",
    ),
    Case("unknown key", facts("image_size", "imagesize"), f"{FACTS}only {KNOWN}, got 'imagesize'"),
    Case("another data set", facts("dataset: acdc", "dataset: flare"), FACTS + "data prepared like acdc"),
    Case("too few codes", facts("- 3\nstructures", "structures"), FACTS + "4 label_codes"),
]

OPTIONS = [
    Case(
        "misspelt",
        nothing,
        "dataset_dri: expected an id that the configuration uses, got one without effect; did you mean dataset_dir?",
        {"dataset_dri": "x"},
    ),
    Case(
        "misspelt below",
        nothing,
        "images::pth: expected an id that the configuration uses, got one without effect; did you mean images::path?",
        {"images::pth": "x"},
    ),
    Case("tta no bool", nothing, "tta: expected true or false, got 'maybe'", {"tta": "maybe"}),
    Case("tta a number", nothing, "tta: expected true or false, got 8", {"tta": 8}),
    Case("device absent", nothing, "device: expected one that PyTorch finds", {"device": "cuda:9"}),
    Case("device no device", nothing, "device: expected one that PyTorch finds", {"device": "gpu"}),
    Case("batch of none", nothing, "batch_size: expected a whole number of at least 1", {"batch_size": 0}),
    Case("workers negative", nothing, "num_workers: expected a whole number of at least 0", {"num_workers": -1}),
    Case(
        "odd size",
        nothing,
        "image_size: expected two multiples of 16, such as [128,128], got [33, 33]",
        {"image_size": [33, 33]},
    ),
    Case("crop of none", nothing, "crop_size: expected two multiples of 16", {"crop_size": [0, 16]}),
    Case(
        "structure of no class",
        nothing,
        "options: expected structures of class indices from 0 to 3, got",
        {"structures": {"RV": [9]}},
    ),
    Case(
        "codes of other classes",
        nothing,
        "options: expected 4 label_codes, one per class, got [0, 1]",
        {"label_codes": [0, 1]},
    ),
    Case("slice axis", nothing, "options: expected slice_axis to be 0, 1, 2 or null, got 5", {"slice_axis": 5}),
    Case(
        "no show", nothing, "show_uncertainty: expected true or false", {"displayable_configs::show_uncertainty": "x"}
    ),
    Case("list of folders", nothing, "dataset_dir: expected a path", {"dataset_dir": ["{}/in"]}),
    Case(
        "classes of another number", nothing, "options: expected 5 class_names, one per class, got", {"num_classes": 5}
    ),
    Case(
        "odd crop",
        nothing,
        "crop_size: expected two multiples of 16, such as [128,128], got [17, 9]",
        {"crop_size": [17, 9]},
    ),
    Case(
        "pixel size a word",
        nothing,
        "options: expected pixel_size to be two positive numbers or null",
        {"pixel_size": "x"},
    ),
    Case(
        "suffixes a number",
        nothing,
        "options: expected file_suffixes to be a list of texts, got 5",
        {"file_suffixes": 5},
    ),
]

OUTPUT = [
    Case("a file", content("out", b"mine"), "output_dir: expected a folder"),
    Case("below a file", content("out", b"mine"), "output_dir: expected a folder", {"output_dir": "{}/out/maps"}),
    Case("broken link", link("out", "no"), "output_dir: expected a folder"),
    Case("a number", nothing, "output_dir: expected a path", {"output_dir": 2024}),
    Case("empty text", nothing, "output_dir: expected a path", {"output_dir": ""}),
    Case("folder of the images", nothing, "output_dir: expected a folder without images", {"output_dir": "{}/in"}),
    Case("link to the images", link("out", "in"), "output_dir: expected a folder without images"),
    Case("not writable", nothing, "output_dir: expected a folder that can be written, got /proc/maps-of-mine: ",
         {"output_dir": "/proc/maps-of-mine"}),
    Case("folder where a map goes", lambda f: (f / "out/scan_seg.nii.gz").mkdir(parents=True),
         "{}/out/scan_seg.nii.gz: expected a file that can be written"),
]  # fmt: skip

TABLE = {
    "image": IMAGES,
    "channel": CHANNELS,
    "weights": WEIGHTS,
    "facts": FACTS_OF_WEIGHTS,
    "option": OPTIONS,
    "output": OUTPUT,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    save(folder / "in" / "scan.nii.gz", GOOD)
    make_weights(ACDC, folder / "weights")
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "f"))


def filled(options: Options, folder: Path) -> Options:
    places = {"dataset_dir": "{}/in", "ckpt_dir": "{}/weights", "output_dir": "{}/out"}
    return {
        name: value.replace("{}", str(folder)) if isinstance(value, str) else value
        for name, value in {**places, **options}.items()
    }


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{kind}: {case.id}") for kind, cases in TABLE.items() for case in cases]
)
def test_one_line_and_nothing_written(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # code from weights or facts would leave something here
    case.change(folder)
    before = snapshot(folder)
    bundle = BRATS if (folder / "in" / "b_flair.nii").exists() else ACDC
    ended = run_bundle_as_typed(
        bundle, "inference.yaml", *([case.overlay] if case.overlay else []), **filled(case.options, folder)
    )
    assert ended.code == 1
    assert ended.err.endswith("\n") or "\n" not in ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith(case.line.replace("{}", str(folder)))
    assert snapshot(folder) == before


def test_full_disk(folder: Path) -> None:
    (folder / "out").mkdir()
    with (
        open(folder / "out" / "scan_probability.nii.gz", "wb") as file,
        gzip.GzipFile(MARK, "wb", fileobj=file) as packed,
    ):
        packed.write(nib.Nifti1Image(GOOD, np.eye(4)).to_bytes())
    before = snapshot(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        ended = run_bundle_as_typed(ACDC, "inference.yaml", **filled({}, folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = f"{folder}/out/scan_probability.nii.gz: expected a file that can be written, got File too large\n"
    assert ended == (1, line)
    after = snapshot(folder)
    assert (
        nib.Nifti1Image.from_filename(folder / "out" / "scan_seg.nii.gz").shape == GOOD.shape
    )  # complete, as it came first
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"out/scan_seg.nii.gz"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (cut("in/scan.nii.gz", 0.7), "{}/in/scan.nii.gz: expected a complete NIfTI file, got "),
        (nothing, "dataset_dri: expected an id that the configuration uses, got one without effect"),
    ],
    ids=["truncated image", "misspelt option"],
)
def test_as_a_process(change: Callable[[Path], Any], line: str, folder: Path) -> None:
    change(folder)
    options = filled({"bundle_root": str(ACDC), **({"dataset_dri": "x"} if "dri" in line else {})}, folder)
    typed = [part for name, value in options.items() for part in (f"--{name}", value)]
    config = ACDC / "configs" / "inference.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *typed],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(line.replace("{}", str(folder)))
    assert "Traceback" not in done.stdout + done.stderr
    assert not (folder / "out").exists()
