"""Preparation of a whole data set: several cases at a time, continued where an earlier run ended."""

from __future__ import annotations

import functools
import itertools
import math
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.concurrent import thread_map

from calib_components.data.cases import IMAGE, REPLACED, write_case
from calib_components.data.facts import FACTS, Facts, facts_beside, write_facts
from calib_components.data.nifti import open_nifti
from calib_components.errors import UNFINISHED, InputError, check_count
from calib_components.tools.locks import only_run
from calib_components.tools.prepare.case import Case, read_done, transform_case
from calib_components.tools.prepare.split import check_folds, write_datalists

# The facts that decide what a prepared case holds: cases prepared with different ones must not mix.
RECIPE = ("dataset", "source", "in_channels", "label_codes", "image_size", "slice_axis")
MOST_WORKERS = 8  # by default, since each holds a case in memory


def prepare_cases(
    cases: Sequence[Case],
    facts: Facts,
    out: Path,
    *,
    fractions: Sequence[float],
    seed: int,
    folds: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    ignore_headers: bool = False,
) -> None:
    """Prepare the cases that `out` lacks, then write `out/datalist.json` for all of them.

    Args:
        cases: Cases to prepare.
        facts: Facts of the data set, with its source.
        out: Folder of the prepared cases; created if missing.
        fractions: Shares of the patients for training, validation and testing; they sum to 1.
        seed: Seed of the split.
        folds: Number of folds of a cross-validation to list as well.
        workers: Number of cases that are prepared at a time; None for one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end; otherwise the first one, by name, is an error.
        ignore_headers: See `load_case`.

    Raises:
        InputError: An argument or a case is unsuitable, `out` holds other files or cases that were prepared
            differently, it cannot be written, or a patient would change the split that it has in the present lists.
    """
    cases = sorted(cases, key=lambda case: case.name)
    _check_arguments(cases, fractions, seed, folds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, MOST_WORKERS) if workers is None else workers
    check_count("workers", workers, 1)
    _check_output(Path(facts.source), out)
    with only_run(out):
        for leftover in (*out.glob(f"{UNFINISHED}*"), *out.glob(f"{REPLACED}*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        prepared = {file.parent.name for file in out.glob(f"*/{IMAGE}")}
        facts = replace(facts, pixel_size=_check_recipe(facts, out).pixel_size if prepared else None)
        write_facts(facts, out)
        print("classes:", ", ".join(f"{index} {name}" for index, name in enumerate(facts.class_names)))

        sources: dict[str, Any] = {case.name: read_done(case, facts, out, ignore_headers) for case in cases}
        missing = [case for case in cases if sources[case.name] is None]
        attempt = functools.partial(_attempt, facts=facts, out=out, skip_bad=skip_bad, ignore_headers=ignore_headers)
        sources |= _prepare(missing, attempt, workers, out.name)
        done = [case for case in cases if sources[case.name] is not None]
        if not done:
            raise InputError(f"{out}: there is no good case.")
        made = {case.name for case in missing if sources[case.name] is not None}
        again = f", of these {len(prepared & made)} anew" if prepared & made else ""
        print(f"{out}: {len(cases) - len(missing)} case(s) kept, {len(made)} made{again}")
        _print_notes({case.name: sources[case.name] for case in done}, facts)
        if gone := sorted(prepared - {case.name for case in cases}):
            print(f"{out}: {_such_as(gone, 'prepared case')} not in the data set any more, and not listed")
        listed = write_datalists(done, facts, out, fractions, seed, folds)
        training, validation = ([item["case"] for item in listed[split]] for split in ("training", "validation"))
        if validation and all(sources[case]["classes"] == [0] for case in validation):
            print("No structure in any label for validation, which so chooses no epoch. See --fractions and --seed.")
        write_facts(replace(facts, pixel_size=_pixel_size(out, training or [case.name for case in done])), out)


def _check_arguments(cases: Sequence[Case], fractions: Sequence[float], seed: int, folds: int | None) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise InputError(f"fractions must be three numbers of at least 0 that sum to 1, got {fractions}.")
    check_count("seed", seed, 0)
    check_folds(folds, len({case.patient for case in cases}))
    for first, second in itertools.pairwise(cases):
        if first.name == second.name:
            raise InputError(f"{second.label}: two cases are called {second.name}, see {first.label}. Rename one.")


def _check_output(source: Path, out: Path) -> None:
    """Refuse to write among the files of a data set, and into a folder of other files."""
    place = out.resolve()
    if place == source or place in source.parents or source in place.parents:
        raise InputError(f"{out}: the output folder holds or lies in that of the data set. Choose another one.")
    if out.is_dir() and not (out / FACTS).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"Output folder is not empty: {out}. Choose another one.")


def _check_recipe(facts: Facts, out: Path) -> Facts:
    """Return the facts that the present cases were prepared with, which must be the same."""
    present = facts_beside(out / FACTS)
    assert present is not None  # see _check_output
    for name in RECIPE:
        if getattr(present, name) != getattr(facts, name):
            raise InputError(
                f"{out / FACTS}: the cases there were prepared with {name} {getattr(present, name)}, not "
                f"{getattr(facts, name)}. Choose another folder."
            )
    return present


def _prepare(missing: Sequence[Case], attempt: Any, workers: int, name: str) -> dict[str, Any]:
    """Prepare what is missing, a thread for each case; return what is recorded of each case, None of a skipped one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last digits of sums depend on it
    try:
        done = thread_map(attempt, missing, max_workers=workers, desc=name, unit="case", leave=False, disable=None)
    finally:
        torch.set_num_threads(threads)
    for _, problem in done:
        if problem:
            print(f"skipped: {problem}", file=sys.stderr)
    return {case.name: source for case, (source, _) in zip(missing, done, strict=True)}


def _attempt(case: Case, facts: Facts, out: Path, skip_bad: bool, ignore_headers: bool) -> tuple[Any, str]:
    """Prepare a case; return what is recorded of it or, if a bad case is skipped, what is wrong with it."""
    try:
        data = transform_case(case, facts, ignore_headers)
    except InputError as error:
        if not skip_bad:
            raise
        return None, str(error)
    write_case(out / case.name, data["image"], data["label"], data["image"].affine, data["source"])
    return data["source"], ""


def _print_notes(sources: Mapping[str, Mapping[str, Any]], facts: Facts) -> None:
    """Print what was found in the prepared cases that may be wrong."""
    if turned := [file for source in sources.values() for file in source["turned"]]:
        print(f"{_such_as(turned, 'file')} turned onto the voxels of the image, as the headers state")
    axes = {name: source["slice_axis"] for name, source in sources.items()}
    usual = statistics.mode(axes.values())
    if others := [name for name, axis in axes.items() if axis != usual]:
        print(
            f"{_such_as(others, 'case')} with slices along axis {axes[others[0]]} of the file, most others along "
            f"{usual}; if they show another plane, --slice_axis sets one axis for all"
        )
    if empty := [name for name, source in sources.items() if source["classes"] == [0]]:
        print(f"{_such_as(empty, 'case')} without any structure in the label")
    seen = {index for source in sources.values() for index in source["classes"]}
    if unseen := [name for index, name in enumerate(facts.class_names) if index not in seen]:
        print(f"in no label of any case: {', '.join(unseen)}")


def _such_as(names: Sequence[str], kind: str) -> str:
    return f"{len(names)} {kind}(s), such as {names[0]},"


def _pixel_size(out: Path, names: Sequence[str]) -> list[float]:
    """The smallest and largest side of a pixel in these cases, in millimetres."""
    sides = [float(side) for name in names for side in open_nifti(out / name / IMAGE).header.get_zooms()[:2]]
    return [round(min(sides), 4), round(max(sides), 4)]
