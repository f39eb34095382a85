"""Preparation of a whole data set: several cases at a time, continued where an earlier run ended."""

from __future__ import annotations

import functools
import itertools
import math
import shutil
import statistics
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calib_components.data.cases import IMAGE, REPLACED, check_whole, write_case
from calib_components.data.facts import FACTS, Facts, facts_beside, write_facts
from calib_components.errors import UNFINISHED, InputError
from calib_components.tools.locks import only_run
from calib_components.tools.parallel import check_workers, parallel
from calib_components.tools.prepare.case import Case, read_done, transform_case
from calib_components.tools.prepare.split import FOLD, check_folds, write_datalists

# The facts that decide what a prepared case holds: cases prepared with different ones must not mix.
RECIPE = ("dataset", "source", "in_channels", "label_codes", "image_size", "slice_axis")


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
        workers: Number of processes, and so of cases in memory; None for one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end; otherwise the first one, by name, is an error.
        ignore_headers: See `load_case`.

    Raises:
        InputError: An argument or a case is not as expected, `out` holds cases that were prepared differently or cannot
            be written, a patient would change the split that it has in the present lists, or a worker was killed.
    """
    cases = sorted(cases, key=lambda case: case.name)
    _check_arguments(cases, fractions, seed, folds, workers)
    _check_folders(Path(facts.source), out)
    with only_run(out):
        for leftover in (*out.glob(f"{UNFINISHED}*"), *out.glob(f"{REPLACED}*")):
            is_folder = leftover.is_dir() and not leftover.is_symlink()
            shutil.rmtree(leftover) if is_folder else leftover.unlink()
        prepared = {file.parent.name for file in out.glob(f"*/{IMAGE}")}
        facts = replace(facts, pixel_size=_check_recipe(facts, out).pixel_size if prepared else None)
        write_facts(facts, out)
        print("classes:", ", ".join(f"{index} {name}" for index, name in enumerate(facts.class_names)))

        sources: dict[str, Any] = {case.name: read_done(case, facts, out, ignore_headers) for case in cases}
        missing = [case for case in cases if sources[case.name] is None]
        kept = len(cases) - len(missing)
        attempt = functools.partial(_attempt, facts=facts, out=out, ignore_headers=ignore_headers)
        made, problems = _prepare(missing, attempt, check_workers(workers), out.name, skip_bad)
        for problem in problems.values():
            print(f"skipped: {problem}", file=sys.stderr)
        sources |= made
        done = [case for case in cases if case.name not in problems]
        if not done:
            raise InputError(f"{out}: expected at least one good case, got none")
        again = len(prepared & made.keys())
        print(f"{out}: {kept} case(s) kept, {len(made)} made" + (f", of these {again} anew" if again else ""))
        _print_notes({case.name: sources[case.name] for case in done}, facts)
        if gone := sorted(prepared - {case.name for case in cases}):
            print(f"{out}: {_such_as(gone, 'prepared case')} not in the data set any more, and not listed")
        listed = write_datalists(done, facts, out, fractions, seed, folds)
        training, validation = ([item["case"] for item in listed[split]] for split in ("training", "validation"))
        if validation and all(sources[case]["classes"] == [0] for case in validation):
            print("No structure in any label for validation, which so chooses no epoch. See --fractions and --seed.")
        if not folds and (stale := sorted(out.glob(FOLD.format("*")))):
            print(f"{stale[0]}: kept as it is, and {len(stale) - 1} more; give --folds to list the folds again")
        write_facts(replace(facts, pixel_size=_pixel_size(out, training or [case.name for case in done])), out)


def _check_arguments(
    cases: Sequence[Case], fractions: Sequence[float], seed: int, folds: int | None, workers: int | None
) -> None:
    if np.shape(fractions) != (3,) or not min(fractions) >= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise InputError(f"fractions: expected three numbers of at least 0 that sum to 1, got {fractions}")
    if seed < 0:
        raise InputError(f"seed: expected a whole number of at least 0, got {seed}")
    check_workers(workers)
    check_folds(folds, len({case.patient for case in cases}))
    for first, second in itertools.pairwise(cases):
        if first.name == second.name:
            raise InputError(f"{second.label}: expected one case {second.name}, got a second besides {first.label}")


def _check_folders(source: Path, out: Path) -> None:
    """Refuse to write among the files of a data set, whose folders might be taken for prepared ones."""
    place = out.resolve()
    if place == source or place in source.parents or source in place.parents:
        raise InputError(f"{out}: expected a folder apart from the data set's, got one that holds or is in {source}")


def _check_recipe(facts: Facts, out: Path) -> Facts:
    """Return the facts that the present cases were prepared with, which must be the same."""
    file = out / FACTS
    try:
        present = facts_beside(file)
    except InputError as error:
        raise InputError(f"{error}; choose another folder") from error
    if present is None:
        raise InputError(f"{file}: expected the facts of the cases there, got no such file; choose another folder")
    for name in RECIPE:
        if getattr(present, name) != getattr(facts, name):
            old, new = (textwrap.shorten(str(getattr(either, name)), 100) for either in (present, facts))
            raise InputError(
                f"{file}: expected {name} {new}, got {old}, which the cases there were prepared with; choose another "
                "folder"
            )
    return present


def _prepare(
    missing: Sequence[Case], attempt: Callable[[Case], Any], workers: int, name: str, skip_bad: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Prepare what is missing; return what is recorded of each good case, and what is wrong with each bad one."""
    made, problems = {}, {}
    with parallel(attempt, missing, workers, name, ["monai.bundle", "monai.transforms"]) as results:
        for case, (source, problem) in zip(missing, results, strict=True):
            if problem and not skip_bad:
                raise InputError(problem)
            if problem:
                problems[case.name] = problem
            else:
                made[case.name] = source
    return made, problems


def _attempt(case: Case, facts: Facts, out: Path, ignore_headers: bool) -> tuple[dict[str, Any], str]:
    """Prepare a case; return what is recorded of it, and what is wrong with it. An error is one of writing."""
    try:
        data = transform_case(case, facts, ignore_headers)
    except InputError as error:
        return {}, str(error)
    write_case(out / case.name, data["image"], data["label"], data["image"].affine, data["source"], replace=True)
    return data["source"], ""


def _print_notes(sources: Mapping[str, Mapping[str, Any]], facts: Facts) -> None:
    """Say what was found in the prepared cases that need not be wrong but may be."""
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
    sides = [float(side) for name in names for side in check_whole(out / name / IMAGE).header.get_zooms()[:2]]
    return [round(min(sides), 4), round(max(sides), 4)]
