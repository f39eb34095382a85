"""Which patients are for training, validation and testing, and the file `datalist.json` that
records it.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib_components.data.cases import IMAGE, LABEL, SPLITS, read_lists
from calib_components.data.facts import DATALIST, Facts
from calib_components.data.overlap import find_shared
from calib_components.errors import InputError, writing
from calib_components.tools.prepare.case import Case

FOLD = "datalist_fold{}.json"  # of cross-validation, numbered from 0
Listed = dict[str, list[dict[str, str]]]  # the items of each split


def split_patients(
    groups: Mapping[str, str], fractions: Sequence[float], seed: int
) -> dict[str, str]:
    """Return the split of each patient; each split has its fraction of every group, see `divide`."""
    parts = divide(groups, fractions, seed)
    return {patient: split for split, part in zip(SPLITS, parts, strict=True) for patient in part}


def split_folds(groups: Mapping[str, str], folds: int, seed: int) -> list[dict[str, str]]:
    """Return the split of each patient in each fold of a cross-validation, see `divide`.

    Fold i tests part i of as many equal parts, selects weights on the next part, and trains on the
    others. Of two folds, each trains on all of the other part and selects nothing.
    """
    parts = divide(groups, [1 / folds] * folds, seed)
    found = []
    for fold in range(folds):
        special = {fold: "testing", **({(fold + 1) % folds: "validation"} if folds > 2 else {})}
        found.append(
            {
                patient: special.get(i, "training")
                for i, part in enumerate(parts)
                for patient in part
            }
        )
    return found


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


def write_datalists(
    cases: Sequence[Case],
    facts: Facts,
    out: Path,
    fractions: Sequence[float],
    seed: int,
    folds: int | None,
) -> Listed:
    """Split the patients of prepared cases, write the lists for MONAI, and print what is in each
    split.

    `out/datalist.json`, whose items are returned, is one split by `fractions`. If `folds` are
    given, `out/datalist_fold0.json` and so on are the folds of a cross-validation over all
    patients. A case that would change the split that it has in a present list is an error.
    """
    groups = {case.patient: case.group for case in cases}
    present = sorted(out.glob(FOLD.format("*")))
    if present and not folds:
        print(
            f"{present[0]} and {len(present) - 1} more are kept. Give --folds to list the folds"
            " again."
        )
    patients = split_patients(groups, fractions, seed)
    splits: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        DATALIST: ({"fractions": list(fractions)}, patients)
    }
    for fold, split in enumerate(split_folds(groups, folds, seed) if folds else []):
        splits[FOLD.format(fold)] = ({"folds": folds}, split)
    for name, (_, split) in splits.items():
        _check_unchanged(out / name, {case.name: split[case.patient] for case in cases})
    lists = {name: _list_cases(cases, split) for name, (_, split) in splits.items()}
    for listed in lists.values():
        _check_volumes(listed, out)
    for name, listed in lists.items():
        datalist = {
            "name": out.name,
            "labels": {str(index): label for index, label in enumerate(facts.class_names)},
            "image_size": facts.image_size,
            "seed": seed,
            **splits[name][0],
            "numTraining": len(listed["training"]),
            "numValidation": len(listed["validation"]),
            "numTest": len(listed["testing"]),
            **listed,
        }
        with writing(out / name) as unfinished:
            unfinished.write_text(json.dumps(datalist, indent=1))
    listed, count = lists[DATALIST], Counter(patients.values())
    counts = ", ".join(f"{split} {count[split]} ({len(listed[split])} cases)" for split in SPLITS)
    print(f"{out}: patients for {counts}")
    if listed["training"] and not listed["validation"]:
        print(
            "No patient for validation: training will keep the weights of its last epoch. See"
            " --fractions."
        )
    if folds:
        print(
            f"{out}: {folds} folds, {FOLD.format(0)} to {FOLD.format(folds - 1)}, each patient"
            " tested in one of them"
        )
    return listed


def _list_cases(cases: Sequence[Case], split: Mapping[str, str]) -> Listed:
    listed: Listed = {name: [] for name in SPLITS}
    for case in cases:
        image, label = f"{case.name}/{IMAGE}", f"{case.name}/{LABEL}"
        item = {"image": image, "label": label, "case": case.name, "patient": case.patient}
        listed[split[case.patient]].append(item)
    return listed


def _check_volumes(listed: Listed, out: Path) -> None:
    """Refuse an image that is trained on and, under the name of another patient, not; name others
    on two sides.
    """
    for one, other in itertools.combinations(SPLITS, 2):
        sides = (
            [{**item, "image": out / item["image"]} for item in listed[split]]
            for split in (one, other)
        )
        for first, second, _ in find_shared(*sides):
            message = (
                f"{first['image']} and {second['image']} hold the same image, one for {one}, one"
                f" for {other}."
            )
            message += " Remove one from the data set, or let --patient give both the same patient."
            if one == "training":
                raise InputError(message)
            print(message)


def _check_unchanged(file: Path, now: Mapping[str, str]) -> None:
    """A model may have been trained on the present split, so no case may silently move to another."""
    if not file.is_file():
        return
    before = {
        item["case"]: split for split, items in read_lists(file, Path()).items() for item in items
    }
    for case in sorted(before.keys() & now.keys()):
        if before[case] != now[case]:
            raise InputError(
                f"{file}: {case} would move from {before[case]} to {now[case]}. Choose another"
                " folder or, to split again, delete the datalists."
            )
