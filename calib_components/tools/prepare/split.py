"""Which patients are for training, validation and testing, and the file `datalist.json` that records it."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib_components.data.cases import IMAGE, LABEL, SPLITS
from calib_components.data.facts import DATALIST, Facts
from calib_components.errors import InputError, check_count, reading, writing
from calib_components.tools.prepare.case import Case

FOLD = "datalist_fold{}.json"  # of cross-validation, numbered from 0
AGAIN = "Choose another folder or, to split again, delete the datalists."


def split_patients(groups: Mapping[str, str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Return the split of each patient; each split has its fraction of every group, see `divide`."""
    parts = divide(groups, fractions, seed)
    return {patient: split for split, part in zip(SPLITS, parts, strict=True) for patient in part}


def split_folds(groups: Mapping[str, str], folds: int, seed: int) -> list[dict[str, str]]:
    """Divide patients for cross-validation: each is tested in exactly one fold.

    Args:
        groups: Group of each patient.
        folds: Number of folds. Fold i tests part i of as many equal parts, selects weights on the next part, and trains
            on the others; of two folds, each trains on all of the other part and selects nothing.
        seed: See `divide`.

    Returns:
        For each fold, the split of each patient.
    """
    parts = divide(groups, [1 / folds] * folds, seed)
    found = []
    for fold in range(folds):
        special = {fold: "testing", **({(fold + 1) % folds: "validation"} if folds > 2 else {})}
        found.append({patient: special.get(i, "training") for i, part in enumerate(parts) for patient in part})
    return found


def divide(groups: Mapping[str, str], fractions: Sequence[float], seed: int) -> list[list[str]]:
    """Divide patients into parts, each with its share of every group.

    The patients are put in a random order in which the groups alternate in proportion to their sizes, and the order is
    cut. So the sizes are the fractions of the whole, rounded by largest remainder, and in each part every group is
    within two patients of its exact share.

    Args:
        groups: Group of each patient; the order of the entries does not matter.
        fractions: Share of each part.
        seed: Seed of the random order.

    Returns:
        The patients of each part.
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
    return [list(itertools.islice(remaining, size)) for size in sizes]


def write_datalists(
    cases: Sequence[Case], facts: Facts, out: Path, fractions: Sequence[float], seed: int, folds: int | None
) -> dict[str, list[dict[str, str]]]:
    """Split the patients of prepared cases, write the lists for MONAI, and print what is in each split.

    `out/datalist.json` is one split by `fractions`. If `folds` are given, `out/datalist_fold0.json` and so on are the
    folds of a cross-validation over all patients.

    Args:
        cases: The cases in `out`, in the order in which they are listed.
        facts: Facts that the cases were prepared with.
        out: Folder of the prepared cases.
        fractions: Shares of the patients for training, validation and testing.
        seed: Seed of the random order.
        folds: See `split_folds`; None for no cross-validation.

    Returns:
        The items of `out/datalist.json`, by split.

    Raises:
        InputError: A patient would change the split that it has in a present list, there are more folds than patients,
            or a list cannot be written.
    """
    groups = {case.patient: case.group for case in cases}
    check_folds(folds, len(groups))
    present = sorted(out.glob(FOLD.format("*")))
    if folds and present and len(present) != folds:
        raise InputError(f"{present[-1]}: there are {len(present)} folds, not {folds}. {AGAIN}")
    if present and not folds:
        print(f"{present[0]}: kept as it is, and {len(present) - 1} more; give --folds to list the folds again")
    patients = split_patients(groups, fractions, seed)
    splits: dict[Path, tuple[Any, dict]] = {out / DATALIST: (patients, {"fractions": list(fractions)})}
    for fold, split in enumerate(split_folds(groups, folds, seed) if folds else []):
        splits[out / FOLD.format(fold)] = (split, {"folds": folds})
    for file, (split, _) in splits.items():
        _check_unchanged({case.name: split[case.patient] for case in cases}, file)
    for file, (split, made_with) in splits.items():
        listed = _list_cases(cases, split)
        datalist = {
            "name": out.name,
            "labels": {str(index): name for index, name in enumerate(facts.class_names)},
            "image_size": facts.image_size,
            "seed": seed,
            **made_with,
            "numTraining": len(listed["training"]),
            "numValidation": len(listed["validation"]),
            "numTest": len(listed["testing"]),
            **listed,
        }
        text = json.dumps(datalist, indent=1)
        if not file.is_file() or file.read_text() != text:
            with writing(file) as unfinished:
                unfinished.write_text(text)
    listed = _list_cases(cases, patients)
    count = Counter(patients.values())
    counts = ", ".join(f"{split} {count[split]} ({len(listed[split])} cases)" for split in SPLITS)
    size = sum(file.stat().st_size for case in cases for file in (out / case.name).iterdir()) / len(cases)
    print(f"{out}: patients for {counts}; {size / 1e6:.1f} MB per case")
    if listed["training"] and not listed["validation"]:
        print("No patient for validation: training will keep the weights of its last epoch. See --fractions.")
    if folds:
        print(f"{out}: {folds} folds, {FOLD.format(0)} to {FOLD.format(folds - 1)}, each patient tested in one of them")
    return listed


def check_folds(folds: int | None, patients: int) -> None:
    """Raise `InputError` unless the number of folds is from 2 to the number of patients, or None."""
    if folds is not None:
        check_count("folds", folds, 2, patients)


def _list_cases(cases: Sequence[Case], split: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    listed: dict[str, list[dict[str, str]]] = {name: [] for name in SPLITS}
    for case in cases:
        image, label = f"{case.name}/{IMAGE}", f"{case.name}/{LABEL}"
        item = {"image": image, "label": label, "case": case.name, "patient": case.patient}
        listed[split[case.patient]].append(item)
    return listed


def _check_unchanged(splits: Mapping[str, str], datalist: Path) -> None:
    """A model may have been trained on the present split, so no case may silently move to another."""
    if not datalist.is_file():
        return
    with reading(datalist):
        present = json.loads(datalist.read_text())
        before = {item["case"]: split for split in SPLITS for item in present[split]}
    for case in sorted(before.keys() & splits.keys()):
        if before[case] != splits[case]:
            raise InputError(f"{datalist}: {case} would move from {before[case]} to {splits[case]}. {AGAIN}")
