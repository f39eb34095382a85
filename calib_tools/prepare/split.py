"""Which patients are for training, validation and testing, and the file `datalist.json` that
records it.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calib_components.errors import (
    InputError,
    check_choice,
    check_count,
    nearest,
    reading,
    writing,
)
from calib_tools.prepare.case import SourceCase
from calib_workflows.data.cases import IMAGE, LABEL, SPLITS, read_lists
from calib_workflows.data.facts import DATALIST, Facts
from calib_workflows.data.overlap import find_shared

FOLD = "datalist_fold{}.json"  # of cross-validation, numbered from 0
SHORT = {"train": "training", "val": "validation", "test": "testing"}  # also read in a list
Listed = dict[str, list[dict[str, str]]]  # the items of each split


@dataclass(frozen=True)
class SplitOptions:
    """How patients are split; the attributes are options of the command, but for the split of each
    case that a file lists.
    """

    fractions: Sequence[float] = (0.7, 0.1, 0.2)
    folds: int | None = None
    seed: int = 0
    listed: Mapping[str, str] | None = None

    def check(self, cases: Sequence[SourceCase]) -> None:
        """Raise `InputError` unless the patients of these cases can be split."""
        is_whole = math.isclose(sum(self.fractions), 1, abs_tol=1e-6)
        if len(self.fractions) != 3 or min(self.fractions) < 0 or not is_whole:
            raise InputError(
                "fractions must be three numbers of at least 0 that sum to 1, got"
                f" {self.fractions}."
            )
        if self.listed is not None and tuple(self.fractions) != SplitOptions().fractions:
            raise InputError("split: its lists take the place of fractions. Leave out one of them.")
        if self.folds is not None:
            check_count("folds", self.folds, 2, len({case.patient for case in cases}))


def read_split(file: Path, cases: Sequence[SourceCase]) -> dict[str, str]:
    """Return the split of each case that a file lists, and print how many it does not.

    Args:
        file: CSV with a column `case` or `patient`, and `split`; or JSON with lists of such names
            under `training`, `validation` and `testing`; or `train`, `val` and `test`.
        cases: The cases of the data set.

    Raises:
        InputError: The file has another form, a name that no case or patient has, or a patient in
            two splits.
    """
    with reading(file, "a list of cases with their splits, in columns case or patient, and split"):
        names = _listed_names(file)
    known: dict[str, list[SourceCase]] = {}
    for case in cases:
        for name in {case.name, case.patient}:
            known.setdefault(name, []).append(case)
    listed: dict[str, str] = {}
    patients: dict[str, str] = {}
    for name, split in names:
        check_choice(f"{file}: the split of {name}", split, SPLITS)
        if name not in known:
            hint = nearest(name, known).rstrip(".")
            raise InputError(
                f"{file}: no case or patient is called {name}{hint}. --patient says which part of a"
                " name is the patient."
            )
        for case in known[name]:
            listed[case.name] = split
            if patients.setdefault(case.patient, split) != split:
                raise InputError(f"{file}: patient {case.patient} is in two splits.")
    left_out = [case.name for case in cases if case.name not in listed]
    if left_out:
        print(f"{file}: {len(left_out)} case(s) not listed and left out, such as {left_out[0]}")
    return listed


def _listed_names(file: Path) -> list[tuple[str, str]]:
    """Return the names in a file, each with its split, whose name is written out."""
    if file.suffix.lower() == ".json":
        lists = json.loads(file.read_bytes())
        pairs = [(str(name), split) for split, names in lists.items() for name in names]
    else:
        table = pd.read_csv(
            file,
            sep=None,
            engine="python",
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            encoding="utf-8-sig",  # Excel's has a mark
        )
        names = table["case" if "case" in table else "patient"].str.strip()
        pairs = [*zip(names, table["split"].str.strip(), strict=True)]
    return [(name, SHORT.get(split.lower(), split.lower())) for name, split in pairs]


def split_patients(
    groups: Mapping[str, str], fractions: Sequence[float], seed: int
) -> dict[str, str]:
    """Return the split of each patient; each split has its fraction of every group, see
    `divide`.
    """
    parts = divide(groups, fractions, seed)
    return {patient: split for split, part in zip(SPLITS, parts, strict=True) for patient in part}


def split_folds(groups: Mapping[str, str], folds: int, seed: int) -> list[dict[str, str]]:
    """Return the split of each patient in each fold of a cross-validation, see `divide`.

    Fold i tests part i of as many equal parts, selects weights on the next part, and trains on the
    others. Of two folds, each trains on all of the other part and selects nothing.
    """
    parts = divide(groups, [1 / folds] * folds, seed)
    splits = []
    for fold in range(folds):
        split = dict.fromkeys(groups, "training")
        if folds > 2:
            split |= dict.fromkeys(parts[(fold + 1) % folds], "validation")
        splits.append(split | dict.fromkeys(parts[fold], "testing"))
    return splits


def divide(groups: Mapping[str, str], fractions: Sequence[float], seed: int) -> list[list[str]]:
    """Divide patients into parts, each with its share of every group.

    The patients are put in a random order in which the groups alternate in proportion to their
    sizes, and the order is cut. So the sizes are the fractions of the whole, rounded by largest
    remainder, and in each part every group is within two patients of its exact share. The order of
    `groups`, which has the group of each patient, has no effect.
    """
    rng = random.Random(seed)
    order = []
    for group in sorted(set(groups.values())):
        members = sorted(patient for patient in groups if groups[patient] == group)
        rng.shuffle(members)
        order += [
            ((i + 0.5) / len(members), rng.random(), patient) for i, patient in enumerate(members)
        ]
    patients = [patient for *_, patient in sorted(order)]

    exact = [round(fraction * len(patients), 6) for fraction in fractions]
    sizes = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: len(patients) - sum(sizes)]:
        sizes[i] += 1
    remaining = iter(patients)
    return [list(itertools.islice(remaining, size)) for size in sizes]


def make_datalists(
    cases: Sequence[SourceCase], out: Path, options: SplitOptions
) -> dict[Path, Listed]:
    """Split the patients of prepared cases; return the lists for MONAI by their files.

    `out/datalist.json` is one split, by `fractions` or a file. If `folds` are given,
    `out/datalist_fold0.json` and so on are the folds of a cross-validation over all patients. A
    case that would change the split that it has in a present list is an error.
    """
    groups = {case.patient: case.group for case in cases}
    if options.listed is None:
        splits = {DATALIST: split_patients(groups, options.fractions, options.seed)}
    else:
        splits = {DATALIST: {case.patient: options.listed[case.name] for case in cases}}
    if options.folds:
        folds = split_folds(groups, options.folds, options.seed)
        splits |= {FOLD.format(fold): split for fold, split in enumerate(folds)}
    lists = {out / name: _items_of(cases, split) for name, split in splits.items()}
    for file, listed in lists.items():
        _check_unchanged(file, listed)
        _check_volumes(listed, out)
    return lists


def write_datalists(lists: Mapping[Path, Listed], facts: Facts, options: SplitOptions) -> None:
    """Write what `make_datalists` returned, and print what is in each split."""
    for file, listed in lists.items():
        _write_list(file, listed, facts, options)
    file = next(iter(lists))
    _print_splits(lists[file], file.parent, options)


def _items_of(cases: Sequence[SourceCase], split: Mapping[str, str]) -> Listed:
    listed: Listed = {name: [] for name in SPLITS}
    for case in cases:
        image, label = f"{case.name}/{IMAGE}", f"{case.name}/{LABEL}"
        item = {"image": image, "label": label, "case": case.name, "patient": case.patient}
        listed[split[case.patient]].append(item)
    return listed


def _check_unchanged(file: Path, listed: Listed) -> None:
    """A model may have been trained on the present split, so no case may silently move to
    another.
    """
    if not file.is_file():
        return
    before, now = _split_by_case(read_lists(file, Path())), _split_by_case(listed)
    for case in sorted(before.keys() & now.keys()):
        if before[case] != now[case]:
            raise InputError(
                f"{file}: {case} would move from {before[case]} to {now[case]}. Choose another"
                " folder or, to split again, delete the datalists."
            )


def _split_by_case(listed: Listed) -> dict[str, str]:
    return {item["case"]: split for split, items in listed.items() for item in items}


def _check_volumes(listed: Listed, out: Path) -> None:
    """Refuse an image that is trained on and, under the name of another patient, not; name others
    on two sides.
    """
    items = {
        split: [{**item, "image": out / item["image"]} for item in listed[split]]
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        for first, second, _ in find_shared(items[one], items[other]):
            message = (
                f"{first['image']} and {second['image']} hold the same image, one for {one}, one"
                f" for {other}. Remove one from the data set, or let --patient give both the same"
                " patient."
            )
            if one == "training":
                raise InputError(message)
            print(message)


def _write_list(file: Path, listed: Listed, facts: Facts, options: SplitOptions) -> None:
    method: dict[str, object] = {"folds": options.folds}
    if file.name == DATALIST:
        method = {"fractions": None if options.listed else list(options.fractions)}
    datalist = {
        "name": file.parent.name,
        "labels": {str(index): label for index, label in enumerate(facts.class_names)},
        "image_size": facts.image_size,
        "seed": options.seed,
        **method,
        **listed,
    }
    with writing(file) as unfinished:
        unfinished.write_text(json.dumps(datalist, indent=1))


def _print_splits(listed: Listed, out: Path, options: SplitOptions) -> None:
    count = {split: len({item["patient"] for item in listed[split]}) for split in SPLITS}
    counts = ", ".join(f"{split} {count[split]} ({len(listed[split])} cases)" for split in SPLITS)
    print(f"{out}: patients for {counts}")
    if count["training"] and not count["validation"]:
        print(
            "No patient for validation: training will keep the weights of its last epoch. See"
            " --fractions, --split and --patient."
        )
    if options.folds:
        print(
            f"{out}: {options.folds} folds, {FOLD.format(0)} to"
            f" {FOLD.format(options.folds - 1)}, each patient tested in one of them"
        )
