"""Lists of prepared cases, as far as planning reads them: which patients are evaluated."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from calib_components.errors import InputError
from calib_components.tools.compare.cell_settings import is_name, read_json

__all__ = ["digest", "fitted_patients", "has_cases", "read_patients", "read_test_patients"]


def digest(datalist: Path) -> str:
    """Return the SHA-256 of a list of prepared cases.

    Raises:
        InputError: There is no such file.
    """
    if not datalist.is_file():
        raise InputError(f"{datalist}: expected the list of prepared cases, got no such file; run prepare_data first")
    return hashlib.sha256(datalist.read_bytes()).hexdigest()


def read_patients(datalist: Path, split: Any) -> dict[str, str]:
    """Return the patient of each case that is evaluated, none of whom is trained on or, for another split, validated.

    Args:
        datalist: List of the prepared cases that the network is trained on and evaluated on.
        split: Split to evaluate.

    Raises:
        InputError: The file is broken, has no cases for training or for the split, or a patient is in two splits.
    """
    splits = _read(datalist)
    patients = {name: _patients(splits, name, datalist) for name in dict.fromkeys(("training", split))}
    if splits.get("validation"):
        patients["validation"] = _patients(splits, "validation", datalist)
    for other in ("training", "validation"):
        both = {*patients.get(other, {}).values()} & {*patients[split].values()}
        if split != "training" and other != split and both:
            raise InputError(
                f"{datalist}: expected other patients for {split} than for {other}, got {min(both)} for both"
            )
    return patients[split]


def read_test_patients(datalist: Path) -> dict[str, str]:
    """Return the patient of each case for testing in a list of other data than those that are trained on.

    Raises:
        InputError: The file is broken or has no cases for testing.
    """
    splits = _read(datalist)
    others = [name for name in ("training", "validation") if splits.get(name)]
    if others and not splits.get("testing"):
        raise InputError(
            f"{datalist}: expected cases for testing, got some for {' and '.join(others)} alone; prepare the data "
            "again with --fractions 0,0,1, which makes all of them a test set"
        )
    return _patients(splits, "testing", datalist)


def fitted_patients(datalist: Path) -> set[str]:
    """Return the patients that a network of a list is trained on, or whose cases choose its epoch or temperature.

    Raises:
        InputError: The file is broken.
    """
    splits = _read(datalist)
    return {
        patient
        for name in ("training", "validation")
        if splits.get(name)
        for patient in _patients(splits, name, datalist).values()
    }


def has_cases(datalist: Path, split: str) -> bool:
    """Whether a list of prepared cases has any for a split.

    Raises:
        InputError: The file is broken.
    """
    return bool(_read(datalist).get(split))


def _read(datalist: Path) -> dict[str, Any]:
    digest(datalist)
    splits = read_json(datalist)
    return splits if isinstance(splits, dict) else {}


def _patients(splits: dict[str, Any], split: Any, datalist: Path) -> dict[str, str]:
    cases = splits.get(split)
    if not isinstance(cases, list) or not cases:
        raise InputError(f"{datalist}: expected cases for {split}, got none")
    for item in cases:
        if not isinstance(item, dict) or not (is_name(item.get("case")) and is_name(item.get("patient"))):
            raise InputError(f"{datalist}: expected a case and its patient for {split}, got {item!r:.60}")
        if "/" in item["case"]:  # results would name it by its last part
            raise InputError(f"{datalist}: expected names of cases without /, got {item['case']!r:.60} for {split}")
    patients = {item["case"]: item["patient"] for item in cases}
    if len(patients) < len(cases):
        raise InputError(f"{datalist}: expected every case for {split} once, got one of them twice")
    return patients
