"""Files of cases: listed below a folder, and known by their names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from calib_components.errors import InputError

NIFTI = (".nii", ".nii.gz")
LABEL_SUFFIXES = ("_gt", "_seg", "_label")  # of the name of an image, for its label


class FileName(NamedTuple):
    """The parts of the name of a file: that of its case, a suffix and the ending of its format."""

    case: str
    suffix: str
    ending: str


def split_name(
    name: str, suffixes: Collection[str] = (), endings: Collection[str] = NIFTI
) -> FileName:
    """Split the name of a file. A part that it does not have is empty; the longest one counts, in
    any capitals.

    Examples:
        >>> split_name("heart_GT.nii.gz", LABEL_SUFFIXES)
        FileName(case='heart', suffix='_GT', ending='.nii.gz')
    """
    stem, ending = _cut(name, endings)
    return FileName(*_cut(stem, suffixes), ending)


def _cut(text: str, ends: Collection[str]) -> tuple[str, str]:
    lengths = [len(end) for end in ends if text.lower().endswith(end.lower())]
    length = max((length for length in lengths if length < len(text)), default=0)
    return text[: len(text) - length], text[len(text) - length :]


def find_cases(
    files: Iterable[Path], suffixes: Collection[str] = ()
) -> dict[Path, dict[str, Path]]:
    """Return the NIfTI files of each case by their suffixes, in small letters, "" for a file
    without any; the cases by their folder and name.

    Raises:
        InputError: Two files differ in their endings alone.
    """
    cases: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        case, suffix, ending = split_name(file.name, suffixes)
        if ending:
            first = cases[file.with_name(case)].setdefault(suffix.lower(), file)
            if first is not file:
                raise InputError(f"{file}: {first.name} is there as well. Remove one of them.")
    return cases


def files_below(folder: str | os.PathLike) -> Iterator[Path]:
    """List the files in a folder and its subfolders, sorted in each, without hidden ones.

    Links to folders are followed once. A broken link counts as a file. A folder that cannot be read
    is an `InputError`.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot read the folder: {error.strerror}.")

    seen = set()
    for place, subfolders, names in os.walk(str(folder), onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def patients_of(
    cases: Sequence[str], pattern: str | None, option: str = "--patient_pattern"
) -> dict[str, str]:
    """Find the patient of each case, by the part of its name that a regular expression matches;
    None: all of it.

    Examples:
        >>> patients_of(["patient001_frame01", "patient001_frame12"], r"patient\\d+")
        {'patient001_frame01': 'patient001', 'patient001_frame12': 'patient001'}
    """
    try:
        matches = {case: re.search(".+" if pattern is None else pattern, case) for case in cases}
    except re.error as error:
        raise InputError(f"{option}: {pattern!r} is no regular expression: {error}.") from None
    for case, match in matches.items():
        if match is None or not match[0]:
            raise InputError(f"{option}: {pattern!r} matches no part of the name {case}.")
    return {case: match[0] for case, match in matches.items() if match}
