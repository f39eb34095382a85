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
) -> None:
    """See `calib_tools.commands.prepare_data`."""
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
        sources = _prepare_cases(cases, facts, out, workers, skip_bad)
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
