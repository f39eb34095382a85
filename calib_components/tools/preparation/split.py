"""Which patients are for training, validation and testing, and the file `datalist.json` that records it."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from calib_components.data import IMAGE, LABEL
from calib_components.errors import InputError, reading
from calib_components.tools.preparation.case import Case
from calib_components.tools.preparation.facts import Facts, write_text

SPLITS = ("training", "validation", "testing")
DATALIST = "datalist.json"


def split_patients(groups: Mapping[str, str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Divide patients into training, validation and testing, each with its share of every group.

    The patients are put in a random order in which the groups alternate in proportion to their sizes, and the order is
    cut twice. So the sizes are the fractions of the whole, rounded by largest remainder, and in each split every group
    is within two patients of its exact share.

    Args:
        groups: Group of each patient; the order of the entries does not matter.
        fractions: Shares of training, validation and testing.
        seed: Seed of the random order.

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


def write_datalist(cases: Sequence[Case], facts: Facts, out: Path, fractions: Sequence[float], seed: int) -> None:
    """Split the patients of prepared cases, write `out/datalist.json` for MONAI, and print what is in each split.

    Args:
        cases: The cases in `out`, in the order in which they are listed.
        facts: Facts that the cases were prepared with.
        out: Folder of the prepared cases.
        fractions: See `split_patients`.
        seed: See `split_patients`.

    Raises:
        InputError: A patient would change the split that it has in the present `datalist.json`.
    """
    splits = split_patients({case.patient: case.group for case in cases}, fractions, seed)
    _check_unchanged(splits, out / DATALIST)
    listed: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for case in cases:
        image, label = f"{case.name}/{IMAGE}", f"{case.name}/{LABEL}"
        item = {"image": image, "label": label, "case": case.name, "patient": case.patient}
        listed[splits[case.patient]].append(item)
    datalist = {
        "name": out.name,
        "labels": {str(index): name for index, name in enumerate(facts.class_names)},
        "image_size": facts.image_size,
        "seed": seed,
        "fractions": list(fractions),
        "numTraining": len(listed["training"]),
        "numValidation": len(listed["validation"]),
        "numTest": len(listed["testing"]),
        **listed,
    }
    write_text(out / DATALIST, json.dumps(datalist, indent=1))
    patients = Counter(splits.values())
    counts = ", ".join(f"{split} {patients[split]} ({len(listed[split])} cases)" for split in SPLITS)
    size = sum(file.stat().st_size for case in cases for file in (out / case.name).iterdir()) / len(cases)
    print(f"{out}: patients for {counts}; {size / 1e6:.1f} MB per case")
    if listed["training"] and not listed["validation"]:
        print("No patient for validation: training will keep the weights of its last epoch. See --fractions.")


def _check_unchanged(splits: Mapping[str, str], datalist: Path) -> None:
    """A model may have been trained on the present split, so no patient may silently move to another."""
    if not datalist.is_file():
        return
    with reading(datalist, "a list of prepared cases"):
        present = json.loads(datalist.read_text())
        before = {item["patient"]: split for split in SPLITS for item in present[split]}
    moved = sorted(patient for patient in before.keys() & splits.keys() if before[patient] != splits[patient])
    if moved:
        first = moved[0]
        raise InputError(
            f"{datalist}: expected every patient to stay in its split, got {len(moved)} that would move, "
            f"such as {first} from {before[first]} to {splits[first]}; choose another folder or, to split again, "
            "delete this file"
        )
