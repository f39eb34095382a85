"""The command that prepares a data set: several cases at a time, continued where an earlier run
ended.
"""

from __future__ import annotations

import math
import operator
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm.contrib.concurrent import thread_map

from calib_components.data.cases import IMAGE, write_case
from calib_components.data.facts import FACTS, MULTIPLES, Facts, facts_beside, write_facts
from calib_components.data.nifti import open_nifti
from calib_components.errors import (
    InputError,
    check_choice,
    check_count,
    check_writable,
    make_folder,
)
from calib_components.tools.cli import parse_structures, patients_of
from calib_components.tools.parallel import count_workers
from calib_components.tools.prepare import acdc, brats, flare, generic, hippocampus, msd
from calib_components.tools.prepare.case import (
    Case,
    Options,
    read_done,
    require_cases,
    transform_case,
)
from calib_components.tools.prepare.facts import facts_of_dataset
from calib_components.tools.prepare.split import write_datalists

# Those with a bundle
LIKE = {"acdc": acdc, "flare": flare, "brats": brats, "hippocampus": hippocampus}
OWN = {"generic": "acdc", "msd": "hippocampus"}  # which they are like by default
DATASETS = {**LIKE, "generic": generic, "msd": msd}
LARGEST_PATCH = 96  # voxels of a side, unless the data set has a patch of its own
# The facts that decide what a prepared case holds: cases prepared with different ones must not mix.
RECIPE = ("dataset", "source", "in_channels", "label_codes", "image_size", "slice_axis", "spacing")


def prepare_data(
    dataset: str,
    src: Path,
    out: Path,
    labels: Sequence[str] | None = None,
    *,
    structures: Sequence[str] | None = None,
    like: str | None = None,
    in_channels: int | None = None,
    patient: str | None = None,
    image_size: Sequence[int] | None = None,
    slice_axis: int | None = None,
    spacing: Sequence[float] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    folds: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
    ignore_headers: bool = False,
    ignore_intensity: bool = False,
    nan_to_num: bool = False,
) -> None:
    """Prepare a data set: write its cases on the network's grid, their facts and the lists of the
    splits.

    The same command continues an interrupted run.

    Args:
        dataset: acdc (ACDC 2017, cardiac cine MR), flare (FLARE 2021, abdominal CT), brats (BraTS
            2019 to 2021, brain MR), hippocampus (Medical Segmentation Decathlon, Task04, brain MR),
            msd (another task of the Decathlon) or generic (your own images and labels).
        src: Folder of the data set as downloaded. acdc: holds `training`, or `patientNNN` folders.
            flare: holds `TrainingImg` and `TrainingMask`. brats: holds cases at any depth.
            hippocampus, msd: holds `imagesTr` and `labelsTr`. generic: holds `images` and `labels`
            with files of the same names.
        out: Folder of the prepared cases.
        labels: Names of the structures, in the order of their values in the label files: 1, 2, ...,
            where 0 is the background (generic and msd). Default: those in dataset.json of msd.
        structures: In place of labels, names with their values, such as liver=6,tumour=255, or
            WT=1+2+4,TC=1+4,ET=4 for structures that consist of several (generic and msd).
        like: Data set whose geometry and intensities to follow: acdc (MR, slices as stored), flare
            (abdominal CT), brats (brain MR without the skull) or hippocampus (MR, volumes for a 3D
            network) (generic and msd). Default: acdc, for msd hippocampus.
        in_channels: Channels of an image; if more than one, they are the fourth axis of the file
            (generic and msd). Default: the number in dataset.json of msd, else 1.
        patient: Regular expression for the part of a case's name that names the patient, such as
            '[^_]+', so that all files of a patient stay in one split. Default: what the data set
            states, or else the whole name.
        image_size: In-plane size of the slices, such as 128,128, multiples of 16. Default: that of
            the bundle.
        slice_axis: Axis of the files along which the slices lie, 0, 1 or 2 (acdc, and generic like
            acdc). Default: that of the largest spacing; if equal, the shortest.
        spacing: Size of voxels, in mm, that volumes are resampled to, such as 1,1,1.5 (hippocampus,
            and generic or msd like it). Default: 1 mm for hippocampus, as acquired for the others.
        fractions: Shares of the patients for training, validation and testing; 0,0,1 makes an
            external test set.
        folds: Number of folds for cross-validation by patient: datalist_fold0.json and so on are
            written as well.
        seed: Seed of the split.
        workers: Number of cases that are prepared at a time. Default: one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end.
        ignore_headers: Take label voxels for those of the image, whatever the headers state, if the
            shapes agree.
        ignore_intensity: Take CT whose values are not those of Hounsfield units (flare, and generic
            like flare).
        nan_to_num: Take NaN for 0, such as outside of the brain.
    """
    check_choice("dataset", dataset, DATASETS)
    check_choice("like", like or "acdc", LIKE)
    if dataset in OWN:
        facts = facts_of_dataset(like or OWN[dataset], src, image_size, slice_axis, spacing)
        task = msd.read_task(src) if dataset == "msd" else {}
        if not labels and not structures:
            structures = task.get("structures")
        channels = in_channels if in_channels is not None else task.get("in_channels", 1)
        facts = replace(
            _own_facts(facts, labels, structures, channels),
            spacing=list(spacing) if spacing else None,
        )
    else:
        of_generic = {
            "labels": labels,
            "structures": structures,
            "like": like,
            "in_channels": in_channels,
        }
        for name, value in of_generic.items():
            if value is not None:
                raise InputError(
                    f"{name} is an option of the data set generic. Leave it out for {dataset}."
                )
        facts = facts_of_dataset(dataset, src, image_size, slice_axis, spacing)
    cases = require_cases(DATASETS[dataset].find_cases, src, DATASETS[dataset].LAYOUT)
    if patient is not None:
        patients = patients_of([case.name for case in cases], patient, "--patient")
        cases = [replace(case, patient=patients[case.name]) for case in cases]
    if (
        len(fractions) != 3
        or min(fractions) < 0
        or not math.isclose(sum(fractions), 1, abs_tol=1e-6)
    ):
        raise InputError(
            f"fractions must be three numbers of at least 0 that sum to 1, got {fractions}."
        )
    if folds is not None:
        check_count("folds", folds, 2, len({case.patient for case in cases}))
    workers = count_workers(workers)
    _check_output(Path(facts.source), out)
    make_folder(out)
    check_writable("out", out)
    try:
        lock = FileLock(out / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{out}: another run writes to this folder. Wait for its end, or choose another."
        ) from None
    with lock:
        prepared = {file.parent.name for file in out.glob(f"*/{IMAGE}")}
        _check_recipe(facts, out) if prepared else write_facts(facts, out)
        print(
            "classes:", ", ".join(f"{index} {name}" for index, name in enumerate(facts.class_names))
        )
        options = Options(ignore_headers, ignore_intensity, nan_to_num)
        sources = _prepare(cases, facts, out, workers, skip_bad, options)
        _print_notes(sources, facts)
        if gone := sorted(prepared - {case.name for case in cases}):
            print(
                f"{out}: {_such_as(gone, 'prepared case')} not in the data set any more, and not"
                " listed"
            )
        listed = write_datalists(
            [case for case in cases if case.name in sources], facts, out, fractions, seed, folds
        )
        training = [item["case"] for item in listed["training"]]
        if facts.spatial_dims == 3:
            facts = replace(
                facts, crop_size=_patch(facts, out, sources, training, keep=dataset not in OWN)
            )
        write_facts(replace(facts, pixel_size=_pixel_size(out, training or sources)), out)
    if dataset in OWN and patient is None:
        print(
            "Each case counts as a patient of its own. If some are of the same patient, give"
            " --patient (see --help)."
        )


def _own_facts(
    facts: Facts, labels: Sequence[str] | None, structures: Sequence[str] | None, channels: int
) -> Facts:
    if bool(labels) == bool(structures):
        remedy = (
            "such as --labels liver,spleen for 1 and 2, or with their values, --structures"
            " liver=6,spleen=1"
        )
        raise InputError(f"labels: give the names of the structures, {remedy}.")
    numbered = [f"{name}={code}" for code, name in enumerate(labels or [], start=1)]
    given = parse_structures(numbered, "--labels") if labels else parse_structures(structures or [])
    codes = sorted({0}.union(*given.values()))
    names = {of_structure: name for name, of_structure in given.items()}
    check_count("in_channels", channels, 1)
    return replace(
        facts,
        num_classes=len(codes),
        in_channels=channels,
        class_names=[
            "background",
            *(names.get(frozenset([code]), f"class{code}") for code in codes[1:]),
        ],
        label_codes=codes,
        structures={name: [codes.index(code) for code in sorted(of)] for name, of in given.items()},
        file_suffixes=[],
        crop_size=facts.image_size or facts.crop_size,
    )


def _check_output(source: Path, out: Path) -> None:
    """Refuse to write among the files of a data set, and into a folder of other files."""
    place = out.resolve()
    if place.is_relative_to(source) or source.is_relative_to(place):
        raise InputError(
            f"{out}: the output folder holds or lies in that of the data set. Choose another one."
        )
    if (
        out.is_dir()
        and not (out / FACTS).exists()
        and any(not path.name.startswith(".") for path in out.iterdir())
    ):
        raise InputError(f"Output folder is not empty: {out}. Choose another one.")


def _check_recipe(facts: Facts, out: Path) -> None:
    """Refuse to mix cases with those of another recipe."""
    present = facts_beside(out / FACTS)
    for name in RECIPE:
        if getattr(present, name) != getattr(facts, name):
            raise InputError(
                f"{out / FACTS}: the cases there were prepared with {name}"
                f" {getattr(present, name)}, not {getattr(facts, name)}. Choose another folder."
            )


def _prepare(
    cases: Sequence[Case], facts: Facts, out: Path, workers: int, skip_bad: bool, options: Options
) -> dict[str, Any]:
    """Prepare what is missing, a thread for each case; return what is recorded of each good case,
    by name.
    """
    found = {case.name: read_done(case, facts, out, options) for case in cases}
    missing = [case for case in cases if found[case.name] is None]

    def attempt(case: Case) -> str:
        try:
            data = transform_case(case, facts, options)
        except InputError as error:
            if not skip_bad:
                raise
            return str(error)
        write_case(
            out / case.name, data["image"], data["label"], data["image"].affine, data["source"]
        )
        found[case.name] = data["source"]
        return ""

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last digits of sums depend on it
    try:
        problems = thread_map(attempt, missing, max_workers=workers, leave=False, disable=None)
    finally:
        torch.set_num_threads(threads)
    for problem in filter(None, problems):
        print(f"skipped: {problem}", file=sys.stderr)
    good = {name: source for name, source in found.items() if source is not None}
    if not good:
        raise InputError(f"{out}: there is no good case.")
    kept = len(cases) - len(missing)
    print(f"{out}: {kept} case(s) kept, {len(good) - kept} made")
    return good


def _print_notes(sources: Mapping[str, Mapping[str, Any]], facts: Facts) -> None:
    """Print what is odd in the prepared cases."""
    if turned := [file for source in sources.values() for file in source["turned"]]:
        print(
            f"{_such_as(turned, 'file')} turned onto the voxels of the image, as the headers state"
        )
    axes = {name: source["slice_axis"] for name, source in sources.items()}
    usual = statistics.mode(axes.values())
    if others := [name for name, axis in axes.items() if axis != usual]:
        print(
            f"{_such_as(others, 'case')} with slices along axis {axes[others[0]]} of the file, most"
            f" others along {usual}; if they show another plane, --slice_axis sets one axis for all"
        )
    if empty := [name for name, source in sources.items() if source["classes"] == [0]]:
        print(f"{_such_as(empty, 'case')} without any structure in the label")
    if lost := {name: source["lost"] for name, source in sources.items() if source["lost"]}:
        cropped = ", ".join(
            facts.class_names[index] for index in sorted(set().union(*lost.values()))
        )
        cases = _such_as([*lost], "case")
        print(
            f"{cases} with structures outside of what training sees, or too small for the grid:"
            f" {cropped}"
        )
    seen = {index for source in sources.values() for index in source["classes"]}
    if unseen := [name for index, name in enumerate(facts.class_names) if index not in seen]:
        print(f"in no label of any case: {', '.join(unseen)}")


def _such_as(names: Sequence[str], kind: str) -> str:
    return f"{len(names)} {kind}(s), such as {names[0]},"


def _pixel_size(out: Path, names: Iterable[str]) -> list[float]:
    """The smallest and largest side of a pixel in these cases, in millimetres."""
    sides = [
        float(side)
        for name in names
        for side in open_nifti(out / name / IMAGE).header.get_zooms()[:2]
    ]
    return [round(min(sides), 4), round(max(sides), 4)]


def _patch(
    facts: Facts, out: Path, names: Iterable[str], training: Sequence[str], keep: bool
) -> list[int]:
    """The size of a patch: that of the facts, to keep, or one that holds a training case as far as
    memory allows.
    """
    shapes = {name: open_nifti(out / name / IMAGE).shape[:3] for name in names}
    patch = facts.crop_size
    if not keep:
        largest = [max(shapes[name][axis] for name in training or shapes) for axis in range(3)]
        patch = [min(LARGEST_PATCH, -(-side // MULTIPLES[3]) * MULTIPLES[3]) for side in largest]
    print(f"patches of {' x '.join(map(str, patch))} voxels (crop_size)")
    if small := [name for name, shape in shapes.items() if any(map(operator.lt, shape, patch))]:
        print(
            f"{_such_as(small, 'case')} smaller than a patch along some axis: padded, which no loss"
            " or measure counts"
        )
    return patch
