"""Turn a data set as it is downloaded into prepared cases that training reads slice by slice.

    python scripts/prepare_data.py acdc    SRC OUT    # SRC/training/patientNNN/patientNNN_frameFF[_gt].nii.gz, Info.cfg
    python scripts/prepare_data.py flare   SRC OUT    # SRC/TrainingImg/NAME_0000.nii.gz, SRC/TrainingMask/NAME.nii.gz
    python scripts/prepare_data.py brats   SRC OUT    # NAME_{flair,t1,t1ce,t2,seg}.nii.gz, in any folders below SRC
    python scripts/prepare_data.py generic SRC OUT --labels liver,tumour    # SRC/{images,labels}/NAME.nii.gz

A prepared case is a folder `OUT/NAME` with two uncompressed NIfTI files on the network's grid: `image.nii`, int16 with
a scale factor, (H, W, D) or (H, W, D, C), and `label.nii`, uint8 class indices, (H, W, D). Slices lie along the third
axis, so one slice is read without reading the volume. `OUT/facts.yaml` records what the cases were made with, and
`OUT/datalist.json`, written last, names the cases of each split.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor, NibabelReader
from monai.transforms import Compose, LoadImage
from tqdm import tqdm

COMMON = Path(__file__).resolve().parents[1] / "bundles" / "common"
DATASETS = ("acdc", "flare", "brats")
SPLITS = ("training", "validation", "testing")
UNFINISHED = ".unfinished-"  # prefix of the folder of a case that is being written

# The facts that decide what a prepared case holds: cases made with different ones must not mix.
RECIPE = ("source", "in_channels", "label_codes", "image_size", "volume_transforms")


class PrepareError(ValueError):
    """The input is not as it should be; the message is one line that names the file or folder and the reason."""


@dataclass(frozen=True)
class Case:
    """One volume of a data set and its label, as found in the download.

    `group` is what splits are stratified by; `problem` is what finding the case already showed to be wrong with it.
    """

    name: str
    patient: str
    group: str = ""
    images: tuple[Path, ...] = ()
    label: Path = Path()
    problem: str = ""


# --- finding the cases: one function per data set -----------------------------------------------------------------


def list_acdc(src: Path) -> list[Case]:
    """Cases of ACDC: two frames of every `patientNNN` in `training` or, where there is no such folder, in `src`."""
    root = src / "training" if (src / "training").is_dir() else src
    cases = []
    for folder in root.glob("patient*"):
        patient = folder.name
        if not re.fullmatch(r"patient\d+", patient) or not folder.is_dir():
            continue
        info_file = folder / "Info.cfg"
        try:
            info = dict(re.findall(r"^\s*(\w+)\s*:\s*(.*?)\s*$", info_file.read_text(), flags=re.MULTILINE))
            frames = {f"{patient}_frame{int(info[phase]):02d}" for phase in ("ED", "ES")}
        except OSError as error:
            cases.append(Case(patient, patient, problem=f"{info_file}: {error.strerror}"))
        except (KeyError, ValueError):
            cases.append(Case(patient, patient, problem=f"{info_file}: expected 'ED: <frame>' and 'ES: <frame>'"))
        else:
            for frame in frames:
                images = (_nifti(folder, frame),)
                cases.append(Case(frame, patient, info.get("Group", ""), images, _nifti(folder, f"{frame}_gt")))
    return cases


def list_flare(src: Path) -> list[Case]:
    """Cases of FLARE 2021: `TrainingImg/NAME_0000.nii.gz` and `TrainingMask/NAME.nii.gz`."""
    return _list_pairs(src / "TrainingImg", "_0000", src / "TrainingMask")


def list_brats(src: Path) -> list[Case]:
    """Cases of BraTS, by their files in whatever folders; the group is HGG or LGG where a folder says so."""
    suffixes = load_facts("brats")["file_suffixes"]
    cases = {}
    for file in src.rglob("*.nii*"):
        if match := re.fullmatch(rf"([^.].*)({'|'.join(suffixes)}|_seg)\.nii(\.gz)?", file.name):
            folder, name = file.parent, match[1]
            group = next((part for part in folder.relative_to(src).parts if part in ("HGG", "LGG")), "")
            images = tuple(_nifti(folder, name + suffix) for suffix in suffixes)
            cases[folder, name] = Case(name, name, group, images, _nifti(folder, f"{name}_seg"))
    return list(cases.values())


def list_generic(src: Path, patient: str = ".+") -> list[Case]:
    """Cases of a user's own data: `images/NAME.nii.gz` and `labels/NAME.nii.gz`.

    `patient` is a regular expression for the part of NAME, from its start, that tells the patient.
    """
    cases = []
    for case in _list_pairs(src / "images", "", src / "labels"):
        if not (match := re.match(patient, case.name)):
            raise PrepareError(f"{case.label}: its name does not start with the patient pattern {patient!r}")
        cases.append(replace(case, patient=match[0]))
    return cases


def _list_pairs(image_folder: Path, image_suffix: str, label_folder: Path) -> list[Case]:
    """Every name that has an image or a label, each taken for a patient."""
    names = set()
    for folder, suffix in ((image_folder, image_suffix), (label_folder, "")):
        matches = (re.fullmatch(rf"([^.].*){suffix}\.nii(\.gz)?", file.name) for file in folder.glob("*"))
        names |= {match[1] for match in matches if match}
    return [Case(n, n, "", (_nifti(image_folder, n + image_suffix),), _nifti(label_folder, n)) for n in names]


def _nifti(folder: Path, stem: str) -> Path:
    """The file `stem` with the ending that it has; with the usual one where there is no such file."""
    plain = folder / f"{stem}.nii"
    return plain if plain.is_file() else folder / f"{stem}.nii.gz"


# --- preparing one case -------------------------------------------------------------------------------------------


def load_case(case: Case, in_channels: int, label_codes: Sequence[int]) -> dict[str, MetaTensor]:
    """Load a case and check it.

    Args:
        case: what to load; several images are the channels of one.
        in_channels: number of channels that the image must have.
        label_codes: values that the label may hold.

    Returns:
        `image` (C, H, W, D) and `label` (1, H, W, D), float32, both with the affine of the image: label voxels are the
        image's voxels, whatever the header of the label says.

    Raises:
        PrepareError: a file is missing, cannot be read or is not finite, shapes differ, or a label value is unknown.
    """
    if case.problem:
        raise PrepareError(case.problem)
    channels: list[torch.Tensor] = [_load_volume(path) for path in case.images]
    for path, channel in zip(case.images, channels, strict=True):
        _check_shape(path, channel, channels[0], case.images[0])
        if bad := int((~torch.isfinite(channel)).sum()):
            raise PrepareError(f"{path}: {bad} voxels are not finite")
    image = MetaTensor(torch.cat(channels))
    if len(image) != in_channels:
        raise PrepareError(f"{case.images[0]}: has {len(image)} channels, expected {in_channels}")

    label = _load_volume(case.label)
    _check_shape(case.label, label, image, case.images[0])
    if len(label) != 1:
        raise PrepareError(f"{case.label}: has {len(label)} channels, expected 1")
    if not torch.isin(label, torch.tensor(label_codes, dtype=label.dtype)).all():
        unknown = ", ".join(f"{value:g}" for value in np.setdiff1d(label.numpy(), label_codes)[:5])
        raise PrepareError(f"{case.label}: unknown label values {unknown}; expected {list(label_codes)}")
    label.affine = image.affine
    return {"image": image, "label": label}


def _load_volume(path: Path) -> MetaTensor:
    if not path.is_file():
        raise PrepareError(f"{path}: no such file")
    try:
        volume = LoadImage(ensure_channel_first=True)(path, reader=NibabelReader())
    except Exception as error:  # nibabel, gzip and zlib each raise their own
        raise PrepareError(f"{path}: cannot be read: {_one_line(error)}") from error
    if volume.ndim != 4 or volume.numel() == 0:
        raise PrepareError(f"{path}: expected a 3D volume, got shape {tuple(volume.shape[1:])}")
    if not abs(torch.linalg.det(volume.affine)) > 0:
        raise PrepareError(f"{path}: the affine in its header cannot be inverted")
    return volume


def _check_shape(path: Path, volume: torch.Tensor, other: torch.Tensor, other_path: Path) -> None:
    if volume.shape[1:] != other.shape[1:]:
        raise PrepareError(
            f"{path}: shape {tuple(volume.shape[1:])} differs from {tuple(other.shape[1:])} of {other_path}"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def prepare_case(case: Case, facts: dict[str, Any], out: Path) -> None:
    """Write the folder `out/case.name`, whole or not at all.

    Raises:
        PrepareError: see `load_case`.
    """
    data = load_case(case, facts["in_channels"], facts["label_codes"])
    transforms = Compose(ConfigParser(facts).get_parsed_content("volume_transforms"))
    try:
        data = transforms(data)
    except RuntimeError as error:  # MONAI's, with its own cause: an empty foreground, for one
        raise PrepareError(f"{case.images[0]}: cannot be transformed: {_one_line(error.__cause__ or error)}") from error
    image, codes = data["image"].numpy(), data["label"].numpy()[0]
    classes = np.zeros(codes.shape, np.uint8)
    for index, code in enumerate(facts["label_codes"]):
        classes[codes == code] = index
    unfinished = out / f"{UNFINISHED}{case.name}"
    try:
        unfinished.mkdir()
        affine = data["image"].affine.numpy()
        _save(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1), np.int16, affine, unfinished / "image.nii")
        _save(classes, np.uint8, affine, unfinished / "label.nii")
        unfinished.rename(out / case.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save(array: np.ndarray, dtype: type[np.generic], affine: np.ndarray, path: Path) -> None:
    """Write NIfTI; nibabel brings floats to integers by a scale factor in the header."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_data_dtype(dtype)
    image.to_filename(path)


# --- splitting ----------------------------------------------------------------------------------------------------


def split_patients(groups: dict[str, str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Divide patients into training, validation and testing, each with its share of every group.

    The patients are put in a random order in which the groups alternate in proportion to their sizes, and the order is
    cut twice. So the sizes are the fractions of the whole, rounded by largest remainder, and in each split every group
    is within two patients of its exact share.

    Args:
        groups: group of each patient; the order of the entries does not matter.
        fractions: shares of training, validation and testing.
        seed: of the random order.

    Returns:
        The split of each patient.
    """
    rng = random.Random(seed)
    order = []
    for group in sorted(set(groups.values())):
        members = sorted(patient for patient in groups if groups[patient] == group)
        rng.shuffle(members)
        order += [((i + 0.5) / len(members), rng.random(), patient) for i, patient in enumerate(members)]
    patients = [patient for *_, patient in sorted(order)]

    exact = [round(fraction * len(patients), 6) for fraction in fractions]
    sizes = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: len(patients) - sum(sizes)]:
        sizes[i] += 1
    remaining = iter(patients)
    return {
        patient: split
        for split, size in zip(SPLITS, sizes, strict=True)
        for patient in itertools.islice(remaining, size)
    }


# --- a whole data set ---------------------------------------------------------------------------------------------


def load_facts(dataset: str) -> dict[str, Any]:
    """Facts of a data set as `bundles/common` states them, references unresolved."""
    config = ConfigParser.load_config_file(COMMON / f"{dataset}.yaml")
    names = ("num_classes", "in_channels", "class_names", "label_codes", "structures", "file_suffixes")
    return {name: config[name] for name in (*names, "image_size", "crop_size", "volume_transforms")}


def prepare(
    cases: Sequence[Case],
    facts: dict[str, Any],
    out: Path,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Prepare the cases that `out` lacks, then write `out/datalist.json` for all of them.

    No patient may change the split that an earlier `datalist.json` had it in: a model may have been trained on that.

    Args:
        cases: what to prepare.
        facts: see `load_facts`.
        out: folder of the prepared cases; made if missing.
        fractions: shares of the patients for training, validation and testing; they sum to 1.
        seed: of the split.
        workers: number of processes, and so of cases in memory. Default: one per core, at most 8.
        skip_bad: leave bad cases out and list them at the end; otherwise the first one, by name, is an error.

    Raises:
        PrepareError: an argument or a case is not as it should be, or a patient would change its split.
    """
    if np.shape(fractions) != (3,) or min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise PrepareError(f"fractions: expected three numbers of at least 0 that sum to 1, got {fractions}")
    cases = sorted(cases, key=lambda case: case.name)
    for first, second in itertools.pairwise(cases):
        if first.name == second.name:
            raise PrepareError(f"{second.label}: a second case {second.name}, the first is {first.label}")

    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(f"{out}: another run is preparing it") from None
        for unfinished in out.glob(f"{UNFINISHED}*"):
            shutil.rmtree(unfinished)
        _record_facts(facts, out)
        problems = _prepare_missing(cases, facts, out, workers or min(os.cpu_count() or 1, 8), skip_bad)
        done = [case for case in cases if case.name not in problems]
        for problem in problems.values():
            print(f"skipped: {problem}", file=sys.stderr)
        if not done:
            raise PrepareError(f"{out}: no case was prepared")
        _write_datalist(done, facts, out, fractions, seed)


def _record_facts(facts: dict[str, Any], out: Path) -> None:
    record = out / "facts.yaml"
    if any(out.glob("*/image.nii")):
        before = yaml.safe_load(record.read_text())
        for name in RECIPE:
            if before.get(name) != facts[name]:
                old, new = textwrap.shorten(str(before.get(name)), 100), textwrap.shorten(str(facts[name]), 100)
                raise PrepareError(f"{out}: was prepared with {name} {old}, not {new}; choose another folder")
    _write(record, yaml.safe_dump(facts, sort_keys=False))


def _write(path: Path, text: str) -> None:
    """Write the file, whole or not at all, unless it holds the text already."""
    if not path.is_file() or path.read_text() != text:
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(text)
        unfinished.replace(path)


def _prepare_missing(
    cases: Sequence[Case], facts: dict[str, Any], out: Path, workers: int, skip_bad: bool
) -> dict[str, str]:
    """Prepare what is missing; returns what is wrong with each bad case, or raises it."""
    missing = [case for case in cases if not (out / case.name).is_dir()]
    attempt = functools.partial(_attempt, facts=facts, out=out)
    problems = {}
    with ExitStack() as stack:
        run: Callable[..., Any] = map
        if min(workers, len(missing)) > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["monai.bundle", "monai.transforms"])
            pool = ProcessPoolExecutor(min(workers, len(missing)), context, _start_worker)
            stack.callback(pool.shutdown, cancel_futures=True)
            run = pool.map
        bar = tqdm(run(attempt, missing), out.name, len(missing), unit="case", leave=False, disable=None)
        for case, problem in zip(missing, stack.enter_context(bar), strict=True):
            if problem and not skip_bad:
                raise PrepareError(problem)
            if problem:
                problems[case.name] = problem
    return problems


def _attempt(case: Case, facts: dict[str, Any], out: Path) -> str:
    try:
        prepare_case(case, facts, out)
    except PrepareError as error:
        return str(error)
    return ""


def _start_worker() -> None:
    """One thread per process; interrupts are the parent's to handle; and no worker outlives its parent."""

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, daemon=True).start()


def _write_datalist(
    cases: Sequence[Case], facts: dict[str, Any], out: Path, fractions: Sequence[float], seed: int
) -> None:
    splits = split_patients({case.patient: case.group for case in cases}, fractions, seed)
    _check_that_none_moves(splits, out)
    listed: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for case in cases:
        image, label = f"{case.name}/image.nii", f"{case.name}/label.nii"
        item = {"image": image, "label": label, "case": case.name, "patient": case.patient}
        listed[splits[case.patient]].append(item)
    datalist = {
        "name": out.name,
        "labels": {str(index): name for index, name in enumerate(facts["class_names"])},
        "image_size": facts["image_size"],
        "seed": seed,
        "fractions": list(fractions),
        "numTraining": len(listed["training"]),
        "numValidation": len(listed["validation"]),
        "numTest": len(listed["testing"]),
        **listed,
    }
    _write(out / "datalist.json", json.dumps(datalist, indent=1))
    patients = Counter(splits.values())
    counts = ", ".join(f"{split} {patients[split]} ({len(listed[split])} cases)" for split in SPLITS)
    size = sum(file.stat().st_size for case in cases for file in (out / case.name).iterdir()) / len(cases)
    print(f"{out}: patients for {counts}; {size / 1e6:.1f} MB a case")
    if listed["training"] and not listed["validation"]:
        print("No patient for validation: training will keep the weights of its last epoch. See --fractions.")


def _check_that_none_moves(splits: dict[str, str], out: Path) -> None:
    datalist = out / "datalist.json"
    if datalist.is_file():
        before = json.loads(datalist.read_text())
        was = {item["patient"]: split for split in SPLITS for item in before[split]}
        moved = sorted(patient for patient in was.keys() & splits.keys() if was[patient] != splits[patient])
        if moved:
            raise PrepareError(
                f"{datalist}: {len(moved)} patients would change their split, such as {moved[0]} from {was[moved[0]]} "
                f"to {splits[moved[0]]}; choose another folder or, to split anew, delete this file"
            )


# --- command line -------------------------------------------------------------------------------------------------


def acdc(
    src: str,
    out: str,
    image_size: Sequence[int] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Prepare ACDC 2017 (cardiac cine MR), stratified by Group.

    Args:
        src: the folder that holds `training`, or a folder of `patientNNN` itself, such as the download's `testing`.
        out: folder of the prepared cases.
        image_size: in-plane size of the slices, such as 128,128; default: that of bundles/common.
        fractions: shares of the patients for training, validation and testing; 0,0,1 makes an external test set.
        seed: of the split.
        workers: number of processes; default: one per core, at most 8.
        skip_bad: leave bad cases out and list them at the end.
    """
    cases = _find(list_acdc, src, "training/patientNNN/Info.cfg or patientNNN/Info.cfg")
    prepare(cases, _choose(load_facts("acdc"), image_size, src), Path(str(out)), fractions, seed, workers, skip_bad)


def flare(
    src: str,
    out: str,
    image_size: Sequence[int] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Prepare FLARE 2021 (abdominal CT). Options as for `acdc`.

    Args:
        src: the folder that holds `TrainingImg` and `TrainingMask`.
        out: folder of the prepared cases.
    """
    cases = _find(list_flare, src, "TrainingImg/NAME_0000.nii.gz")
    prepare(cases, _choose(load_facts("flare"), image_size, src), Path(str(out)), fractions, seed, workers, skip_bad)


def brats(
    src: str,
    out: str,
    image_size: Sequence[int] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Prepare BraTS 2019 to 2021 (brain MR: FLAIR, T1, T1ce, T2), stratified by grade. Options as for `acdc`.

    Args:
        src: a folder with the cases at any depth.
        out: folder of the prepared cases.
    """
    cases = _find(list_brats, src, "NAME_flair.nii.gz at any depth")
    prepare(cases, _choose(load_facts("brats"), image_size, src), Path(str(out)), fractions, seed, workers, skip_bad)


def generic(
    src: str,
    out: str,
    labels: str | Sequence[str],
    like: str = "acdc",
    in_channels: int = 1,
    patient: str = ".+",
    image_size: Sequence[int] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Prepare your own images and labels. Further options as for `acdc`.

    `out/facts.yaml` then holds the facts of the data set, to be given to a bundle after its own configuration file.

    Args:
        src: the folder that holds `images` and `labels`, with files of the same names.
        out: folder of the prepared cases.
        labels: names of the structures, in the order of their values in the label files: 1, 2, ... (0 is background).
        like: data set whose geometry and intensities to follow: acdc (MR, slices as stored), flare (abdominal CT) or
            brats (brain MR without skull).
        in_channels: channels of an image; more than one are the fourth axis of the file.
        patient: regular expression for the start of a file's name that tells the patient, such as '[^_]+' where there
            are several files of one, so that they stay in one split; default: the whole name.
    """
    if like not in DATASETS:
        raise PrepareError(f"like: expected one of {', '.join(DATASETS)}, got {like}")
    names = [labels] if isinstance(labels, str) else [str(name) for name in labels]
    facts = load_facts(like) | {
        "num_classes": len(names) + 1,
        "in_channels": in_channels,
        "class_names": ["background", *names],
        "label_codes": list(range(len(names) + 1)),
        "structures": {name: [index] for index, name in enumerate(names, start=1)},
        "file_suffixes": [],
        "crop_size": "@image_size",
    }
    cases = _find(functools.partial(list_generic, patient=patient), src, "images/NAME.nii.gz and labels/NAME.nii.gz")
    prepare(cases, _choose(facts, image_size, src), Path(str(out)), fractions, seed, workers, skip_bad)


def _find(list_cases: Callable[[Path], list[Case]], src: str, layout: str) -> list[Case]:
    if not Path(str(src)).is_dir():
        raise PrepareError(f"{src}: no such folder")
    cases = list_cases(Path(str(src)))
    if not cases:
        raise PrepareError(f"{src}: no cases in it; expected {layout}")
    return cases


def _choose(facts: dict[str, Any], image_size: Sequence[int] | None, src: str) -> dict[str, Any]:
    size = facts["image_size"] if image_size is None else image_size
    if np.shape(size) != (2,) or min(size) < 1:
        raise PrepareError(f"image_size: expected two positive numbers, got {size}")
    return {**facts, "image_size": list(size), "source": str(Path(str(src)).resolve())}


def main() -> None:
    commands: dict[str, Callable[..., None]] = {"acdc": acdc, "flare": flare, "brats": brats, "generic": generic}
    # Fire tells of a misspelt option after the command is done: so one that does nothing takes the arguments first.
    idle = {name: functools.wraps(command)(lambda *_, **__: None) for name, command in commands.items()}
    try:
        if fire.Fire(idle) is None:
            fire.Fire(commands)
    except (PrepareError, OSError) as error:
        sys.exit(f"prepare_data: {error}")
    except BrokenProcessPool:
        sys.exit("prepare_data: a worker process died, perhaps for lack of memory; try fewer --workers")
    except KeyboardInterrupt:
        sys.exit("prepare_data: interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
