"""The preparation of a data set: several cases at a time, continued where an earlier run ended."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.contrib.concurrent import thread_map

from calib_components.errors import InputError, printable
from calib_tools.cli import parse_structures
from calib_tools.parallel import count_workers
from calib_tools.prepare import acdc, brats, flare, generic, hippocampus, msd
from calib_tools.prepare.case import (
    SourceCase,
    read_done,
    require_cases,
    transform_case,
)
from calib_tools.prepare.facts import with_structures
from calib_tools.prepare.split import SplitOptions, make_datalists, read_split, write_datalists
from calib_workflows.data.cases import IMAGE, write_case
from calib_workflows.data.facts import DATALIST, FACTS, MULTIPLES, Facts, facts_beside, write_facts
from calib_workflows.data.files import patients_of
from calib_workflows.data.nifti import open_nifti
from calib_workflows.folders import OutputFolder

# Data sets that have a bundle
LIKE = {"acdc": acdc, "flare": flare, "brats": brats, "hippocampus": hippocampus}
# Data sets of the user, and which one they are like by default
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
    "ignored_code",
    "image_size",
    "slice_axis",
    "spacing",
    "window",
)


def with_own_classes(
    facts: Facts,
    task: Mapping[str, Any],
    src: Path,
    labels: Sequence[str] | None,
    structures: Sequence[str] | None,
    in_channels: int | None,
) -> Facts:
    """Return facts with the classes and channels that the options or the data set's own description
    state, see `read_task`.
    """
    if in_channels is None:
        in_channels = task.get("in_channels", 1)
    option = "--labels" if labels else "--structures"
    if not labels and not structures:
        structures, option = task.get("structures"), f"{src / 'dataset.json'}, or --structures"
    if bool(labels) == bool(structures):
        raise InputError(
            "labels: give the names of the structures, such as --labels liver,spleen for 1 and 2,"
            " or with their values, --structures liver=6,spleen=1; or, to calibrate trained"
            " weights, --like the folder of these."
        )
    name = task.get("name") or src.resolve().name
    facts = replace(
        facts,
        name=name,
        file_suffixes=task.get("file_suffixes", []),
        ignored_code=task.get("ignored_code"),
    )
    return with_structures(facts, _parse_labels(labels, structures, option), in_channels)


def facts_of_weights(
    weights: Path,
    task: Mapping[str, Any],
    src: Path,
    labels: Sequence[str] | None,
    structures: Sequence[str] | None,
    given: Mapping[str, Any],
) -> Facts:
    """Return the facts of trained weights for cases that they are calibrated or evaluated on, whose
    label files may have other values, and whose slices may lie along another axis.

    Raises:
        InputError: There are no facts beside the weights, structures are not theirs, or another
            option is given that they decide.
    """
    facts = facts_beside(weights / FACTS)
    if facts is None:
        raise InputError(
            f"like must be one of {', '.join(LIKE)}, or a folder of weights with their {FACTS}, got"
            f" {printable(str(weights))}."
        )
    for option, value in given.items():
        if value is not None and option != "slice_axis":
            raise InputError(f"{option} is that of the weights that --like names. Leave it out.")
    if not labels:
        structures = structures or task.get("structures")
    axis = facts.slice_axis if given["slice_axis"] is None else given["slice_axis"]
    place = src.resolve()
    return replace(
        facts,
        name=place.name,
        label_codes=_codes_of(facts, labels, structures),
        ignored_code=task.get("ignored_code"),
        slice_axis=axis,
        source=str(place),
    )


def _codes_of(
    facts: Facts, labels: Sequence[str] | None, structures: Sequence[str] | None
) -> list[int]:
    """Return the codes of the classes of weights in label files, which options may state."""
    if not labels and not structures:
        return facts.label_codes
    names, named = facts.class_names[1:], _parse_labels(labels, structures, "--structures")
    if {*named} != {*names} or any(len(values) > 1 for values in named.values()):
        raise InputError(
            f"--structures: give one value for each structure of the weights: {', '.join(names)}."
        )
    return [0, *(min(named[name]) for name in names)]


def read_task(dataset: str, src: Path) -> dict[str, Any]:
    """Return what the `dataset.json` of a data set of the user says of it, see `msd.read_task`."""
    return msd.read_task(src) if DATASETS[dataset] is msd else {}


def _parse_labels(
    labels: Sequence[str] | None, structures: Sequence[str] | None, option: str
) -> dict[str, frozenset[int]]:
    numbered = [f"{name}={value}" for value, name in enumerate(labels or [], start=1)]
    return parse_structures(structures or numbered, option)


def list_cases(
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


def prepare_cases(
    cases: Sequence[SourceCase],
    facts: Facts,
    out: Path,
    split: SplitOptions,
    workers: int | None,
    skip_bad: bool,
    fit_patch: bool,
) -> None:
    """Write cases, their facts and the lists of the splits.

    Args:
        cases: Cases of the data set.
        facts: Its facts.
        out: Folder of the prepared cases, in which those of an earlier run with these facts stay.
        split: How patients are split.
        workers: Number of threads; None for one per core, at most 8.
        skip_bad: Whether to leave bad cases out.
        fit_patch: Whether patches of volumes are as large as the cases, up to 96 voxels.
    """
    split.check(cases)
    workers = count_workers(workers)
    _check_output(Path(facts.source), out)
    with OutputFolder(out).claim():
        if any(out.glob(f"*/{IMAGE}")):
            _check_recipe(facts, out)
        else:
            write_facts(facts, out)
        names = [f"{index} {name}" for index, name in enumerate(facts.class_names)]
        print("classes:", ", ".join(names))
        sources = _write_cases(cases, facts, out, workers, skip_bad)
        _print_notes(sources, facts.class_names)
        good = [case for case in cases if case.name in sources]
        lists = make_datalists(good, out, split)
        listed = lists[out / DATALIST]
        trained = listed["training"] or [item for items in listed.values() for item in items]
        headers = [open_nifti(out / item["image"]).header for item in trained]
        write_facts(_with_sizes(facts, headers, fit_patch), out)
        write_datalists(lists, facts, split)  # last: a training looks for them


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


def _write_cases(
    cases: Sequence[SourceCase],
    facts: Facts,
    out: Path,
    workers: int,
    skip_bad: bool,
) -> dict[str, dict[str, Any]]:
    """Prepare what is missing, a thread for each case; return what is recorded of each good case,
    by name.
    """
    sources = {case.name: read_done(case, facts, out) for case in cases}
    missing = [case for case in cases if sources[case.name] is None]

    def prepare_case(case: SourceCase) -> str:
        """Return why the case is skipped, or an empty text."""
        try:
            data = transform_case(case, facts)
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
    kept = f"{num_kept} case(s) kept, " if num_kept else ""
    print(f"{out}: {kept}{len(good) - num_kept} made")
    return good


def _print_notes(sources: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]) -> None:
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
    for text, is_odd in notes.items():
        names = [name for name, source in sources.items() if is_odd(source)]
        if names:
            print(f"{len(names)} case(s), such as {names[0]}: {text}")
    present = set().union(*(source["classes"] for source in sources.values()))
    absent = [name for index, name in enumerate(class_names) if index not in present]
    if absent:
        print(f"in no label of any case: {', '.join(absent)}")


def _with_sizes(facts: Facts, headers: Sequence[Any], fit_patch: bool) -> Facts:
    """Return facts with what follows from the headers of the training cases: the size of pixels
    and, if asked to fit it, of a patch.
    """
    if facts.spatial_dims == 3:
        if fit_patch:
            largest = np.max([header.get_data_shape()[:3] for header in headers], axis=0)
            patch = np.ceil(largest / MULTIPLES[3]).astype(int) * MULTIPLES[3]
            facts = replace(facts, crop_size=np.minimum(LARGEST_PATCH, patch).tolist())
        print(f"patches of {' x '.join(map(str, facts.crop_size))} voxels (crop_size)")
    sides = [float(side) for header in headers for side in header.get_zooms()[:2]]
    return replace(facts, pixel_size=[round(min(sides), 4), round(max(sides), 4)])
