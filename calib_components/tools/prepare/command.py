"""The command that prepares a data set: the same options for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calib_components.errors import InputError
from calib_components.tools.cli import Command
from calib_components.tools.prepare.case import Case
from calib_components.tools.prepare.facts import facts_of_dataset
from calib_components.tools.prepare.prepare import prepare_cases

HELP = """{summary}

    Args:
        src: {src}
        out: Folder of the prepared cases.
        image_size: In-plane size of the slices, such as 128,128, multiples of 16. Default: that of the bundle.
        slice_axis: Axis of the files along which the slices lie, 0, 1 or 2 (acdc only). Default: that of the largest
            spacing; if equal, the shortest.
        fractions: Shares of the patients for training, validation and testing; 0,0,1 makes an external test set.
        folds: Number of folds for cross-validation by patient: datalist_fold0.json and so on are written as well.
        seed: Seed of the split.
        workers: Number of processes. Default: one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end.
        ignore_headers: Take label voxels for those of the image, whatever the headers state, if the shapes agree.

    Raises:
        InputError: An argument, the source or a case is not as expected.
    """


def dataset_command(
    name: str, find_cases: Callable[[Path], list[Case]], *, layout: str, summary: str, src: str
) -> Command:
    """Create the command that prepares a data set with a bundle of its own.

    Args:
        name: Name of the data set and of the command.
        find_cases: Finds the cases in a folder.
        layout: Files that the folder is expected to hold, for messages.
        summary: First line of the command's help.
        src: Help for the folder to prepare.

    Returns:
        The command.
    """

    def command(
        src: Path,
        out: Path,
        *,
        image_size: Sequence[int] | None = None,
        slice_axis: int | None = None,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        folds: int | None = None,
        seed: int = 0,
        workers: int | None = None,
        skip_bad: bool = False,
        ignore_headers: bool = False,
    ) -> None:
        facts = facts_of_dataset(name, src, image_size, slice_axis)
        cases = require_cases(find_cases, src, layout)
        prepare_cases(
            cases,
            facts,
            out,
            fractions=fractions,
            seed=seed,
            folds=folds,
            workers=workers,
            skip_bad=skip_bad,
            ignore_headers=ignore_headers,
        )

    command.__name__ = command.__qualname__ = f"prepare_{name}"
    command.__doc__ = HELP.format(summary=summary, src=src)
    return command


def require_cases(find_cases: Callable[[Path], list[Case]], src: Path, layout: str) -> list[Case]:
    """Find the cases in a folder, of which there must be at least one.

    Raises:
        InputError: There is no folder or no case in it.
    """
    if not src.is_dir():
        raise InputError(f"{src}: expected a folder, got no such folder")
    cases = find_cases(src)
    if not cases:
        raise InputError(f"{src}: expected {layout}, got no cases")
    return cases
