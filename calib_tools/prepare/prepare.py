"""The command that prepares a data set: several cases at a time, continued where an earlier run
ended.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.contrib.concurrent import thread_map

from calib_components.errors import InputError, check_choice
from calib_tools.cli import parse_structures, patients_of
from calib_tools.parallel import count_workers
from calib_tools.prepare import acdc, brats, flare, generic, hippocampus, msd
from calib_tools.prepare.case import (
    Options,
    SourceCase,
    read_done,
    require_cases,
    transform_case,
)
from calib_tools.prepare.facts import facts_of_dataset, with_structures
from calib_tools.prepare.split import SplitOptions, read_split, write_datalists
from calib_workflows.data.cases import IMAGE, write_case
from calib_workflows.data.facts import FACTS, MULTIPLES, Facts, facts_beside, write_facts
from calib_workflows.data.nifti import open_nifti
from calib_workflows.folders import OutputFolder

# Those with a bundle
LIKE = {"acdc": acdc, "flare": flare, "brats": brats, "hippocampus": hippocampus}
# Which they are like by default
OWN = {"generic": "acdc", "msd": "hippocampus", "nnunet": "hippocampus"}
DATASETS = {**LIKE, "generic": generic, "msd": msd, "nnunet": msd}
LARGEST_PATCH = 96  # voxels of a side, unless the data set has a patch of its own
# The facts that decide what a prepared case holds: cases prepared with different ones must not mix.
RECIPE = (
    "dataset",
    "source",
    "in_channels",
    "class_names",
    "label_codes",
    "image_size",
    "slice_axis",
    "spacing",
    "window",
)


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
    split: Path | None = None,
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
            msd (another task of the Decathlon), nnunet (raw data of nnU-Net) or generic (your own
            images and labels).
        src: Folder of the data set as downloaded. acdc: holds `training`, or `patientNNN` folders.
            flare: holds `TrainingImg` and `TrainingMask`. brats: holds cases at any depth.
            hippocampus, msd, nnunet: holds `imagesTr` and `labelsTr`. generic: holds `images` and
            `labels` with files of the same names.
        out: Folder of the prepared cases.
        labels: Names of the structures, in the order of their values in the label files: 1, 2, ...,
            where 0 is the background (generic, msd and nnunet). Default: those in dataset.json of
            msd and nnunet.
        structures: In place of labels, names with their values, such as liver=6,tumour=255, or
            WT=1+2+4,TC=1+4,ET=4 for structures that consist of several (generic, msd and nnunet).
        like: Data set whose geometry and intensities to follow: acdc (MR, slices as stored), flare
            (abdominal CT), brats (brain MR without the skull) or hippocampus (MR, volumes for a 3D
            network) (generic, msd and nnunet). Default: acdc, for msd and nnunet hippocampus.
        in_channels: Channels of an image; if more than one, they are the fourth axis of the file
            (generic and msd). Default: the number in dataset.json of msd and nnunet, else 1.
        patient: Regular expression for the part of a case's name that names the patient, such as
            '[^_]+', so that all files of a patient stay in one split. Default: what the data set
            states, or else the whole name.
        image_size: In-plane size of the slices, such as 128,128, multiples of 16. Default: that of
            the bundle.
        slice_axis: Axis of the files along which the slices lie, 0, 1 or 2 (acdc, and generic like
            acdc). Default: that of the largest spacing; if equal, the shortest.
        spacing: Size of voxels, in mm, that volumes are resampled to, such as 1,1,1.5 (hippocampus,
            and generic, msd or nnunet like it). Default: 1 mm for hippocampus, as acquired for the
            others.
        fractions: Shares of the patients for training, validation and testing; 0,0,1 makes an
            external test set.
        split: In place of fractions, a file with your own lists: CSV with the columns case (or
            patient) and split, or JSON with lists of names under training, validation and testing.
            Cases that it does not list are left out.
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
    facts = facts_of_dataset(
        like or OWN.get(dataset, dataset), src, image_size, slice_axis, spacing
    )
    if dataset in OWN:
        facts = replace(facts, spacing=list(spacing) if spacing else None)  # else as acquired
        facts = _with_own_classes(facts, dataset, src, labels, structures, in_channels)
    elif any((labels, structures, like, in_channels)):
        raise InputError(
            f"{dataset}: labels, structures, like and in_channels are options of {', '.join(OWN)}."
        )
    cases, listed = _list_cases(dataset, src, patient, split)
    split_options = SplitOptions(fractions, folds, seed, listed)
    split_options.check(cases)
    workers = count_workers(workers)
    with _locked_output(facts, out):
        names = [f"{index} {name}" for index, name in enumerate(facts.class_names)]
        print("classes:", ", ".join(names))
        options = Options(ignore_headers, ignore_intensity, nan_to_num)
        sources = _prepare_cases(cases, facts, out, workers, skip_bad, options)
        _print_notes(sources, facts.class_names, _unlisted(cases, out))
        good = [case for case in cases if case.name in sources]
        _write_lists_and_facts(good, facts, out, split_options, dataset in OWN)
    if dataset in OWN and patient is None:
        print(
            "Each case counts as a patient of its own. If some are of the same patient, give"
            " --patient (see --help)."
        )


def _with_own_classes(
    facts: Facts,
    dataset: str,
    src: Path,
    labels: Sequence[str] | None,
    structures: Sequence[str] | None,
    in_channels: int | None,
) -> Facts:
    """Return facts with the classes and channels that the options or the data set state."""
    task = {} if dataset == "generic" else msd.read_task(src)
    if in_channels is None:
        in_channels = task.get("in_channels", 1)
    option = "--labels" if labels else "--structures"
    if not labels and not structures:
        structures, option = task.get("structures"), f"{src / 'dataset.json'}, or --structures"
    if bool(labels) == bool(structures):
        raise InputError(
            "labels: give the names of the structures, such as --labels liver,spleen for 1 and 2,"
            " or with their values, --structures liver=6,spleen=1."
        )
    numbered = [f"{name}={value}" for value, name in enumerate(labels or [], start=1)]
    facts = replace(facts, file_suffixes=task.get("file_suffixes", []))
    return with_structures(facts, parse_structures(structures or numbered, option), in_channels)


def _list_cases(
    dataset: str, src: Path, patient: str | None, split: Path | None
) -> tuple[list[SourceCase], dict[str, str] | None]:
    """Return the cases, and the split of each if a file lists them: then the others are left
    out.
    """
    cases = require_cases(DATASETS[dataset].find_cases, src, DATASETS[dataset].LAYOUT)
    if patient is not None:
        patients = patients_of([case.name for case in cases], patient, "--patient")
        cases = [replace(case, patient=patients[case.name]) for case in cases]
    if split is None:
        return cases, None
    listed = read_split(split, cases)
    return [case for case in cases if case.name in listed], listed


@contextmanager
def _locked_output(facts: Facts, out: Path) -> Iterator[None]:
    """Take the lock of the output folder, which has the facts of the cases that it gets."""
    _check_output(Path(facts.source), out)
    with OutputFolder(out).claim():
        if any(out.glob(f"*/{IMAGE}")):
            _check_recipe(facts, out)
        else:
            write_facts(facts, out)
        yield


def _check_output(source: Path, out: Path) -> None:
    """Refuse to write among the files of a data set, and into a folder of other files."""
    place = out.resolve()
    if place.is_relative_to(source) or source.is_relative_to(place):
        raise InputError(
            f"{out}: the output folder holds or lies in that of the data set. Choose another one."
        )
    if not out.is_dir() or (out / FACTS).exists():
        return
    if any(not path.name.startswith(".") for path in out.iterdir()):
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


def _prepare_cases(
    cases: Sequence[SourceCase],
    facts: Facts,
    out: Path,
    workers: int,
    skip_bad: bool,
    options: Options,
) -> dict[str, dict[str, Any]]:
    """Prepare what is missing, a thread for each case; return what is recorded of each good case,
    by name.
    """
    sources = {case.name: read_done(case, facts, out, options) for case in cases}
    missing = [case for case in cases if sources[case.name] is None]

    def prepare_case(case: SourceCase) -> str:
        """Return why the case is skipped, or an empty text."""
        try:
            data = transform_case(case, facts, options)
        except InputError as error:
            if not skip_bad:
                raise
            return str(error)
        write_case(
            out / case.name, data["image"], data["label"], data["image"].affine, data["source"]
        )
        sources[case.name] = data["source"]
        return ""

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last digits of sums depend on it
    try:
        problems = thread_map(prepare_case, missing, max_workers=workers, leave=False, disable=None)
    finally:
        torch.set_num_threads(threads)
    for problem in filter(None, problems):
        print(f"skipped: {problem}", file=sys.stderr)
    good = {name: source for name, source in sources.items() if source is not None}
    if not good:
        raise InputError(f"{out}: there is no good case.")
    num_kept = len(cases) - len(missing)
    print(f"{out}: {num_kept} case(s) kept, {len(good) - num_kept} made")
    return good


def _unlisted(cases: Sequence[SourceCase], out: Path) -> list[str]:
    """Return the names of prepared cases that the data set has not any more."""
    prepared = {file.parent.name for file in out.glob(f"*/{IMAGE}")}
    return sorted(prepared - {case.name for case in cases})


def _print_notes(
    sources: Mapping[str, Mapping[str, Any]], class_names: Sequence[str], unlisted: Sequence[str]
) -> None:
    """Print a line for each kind of what is odd in the prepared cases."""
    usual_axis = statistics.mode(source["slice_axis"] for source in sources.values())
    notes: dict[str, Callable[[Mapping[str, Any]], bool]] = {
        f"slices not along axis {usual_axis} of the file, as most others; if they show another"
        " plane, --slice_axis sets one axis for all": (
            lambda source: source["slice_axis"] != usual_axis
        ),
        "no structure in the label": lambda source: source["classes"] == [0],
        "structures outside of what training sees, or too small for the grid": (
            lambda source: bool(source["lost"])
        ),
    }
    odd_cases = {
        text: [name for name, source in sources.items() if is_odd(source)]
        for text, is_odd in notes.items()
    }
    odd_cases["prepared, but not in the data set any more, and not listed"] = [*unlisted]
    for text, names in odd_cases.items():
        if names:
            print(f"{len(names)} case(s), such as {names[0]}: {text}")
    present = set().union(*(source["classes"] for source in sources.values()))
    absent = [name for index, name in enumerate(class_names) if index not in present]
    if absent:
        print(f"in no label of any case: {', '.join(absent)}")


def _write_lists_and_facts(
    cases: Sequence[SourceCase], facts: Facts, out: Path, split: SplitOptions, fit_patch: bool
) -> None:
    """List prepared cases by split, and record what follows for training: the size of pixels and,
    if asked to fit it, of a patch.
    """
    listed = write_datalists(cases, facts, out, split)
    names = [item["case"] for item in listed["training"]] or [case.name for case in cases]
    headers = [open_nifti(out / name / IMAGE).header for name in names]
    if facts.spatial_dims == 3:
        if fit_patch:
            largest = np.max([header.get_data_shape()[:3] for header in headers], axis=0)
            patch = np.ceil(largest / MULTIPLES[3]).astype(int) * MULTIPLES[3]
            facts = replace(facts, crop_size=np.minimum(LARGEST_PATCH, patch).tolist())
        print(f"patches of {' x '.join(map(str, facts.crop_size))} voxels (crop_size)")
    sides = [float(side) for header in headers for side in header.get_zooms()[:2]]
    pixel_size = [round(min(sides), 4), round(max(sides), 4)]
    write_facts(replace(facts, pixel_size=pixel_size), out)
