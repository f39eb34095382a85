"""Jobs on a Slurm cluster, through submitit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calib_components.errors import InputError

__all__ = ["check_executor", "one_line", "slurm_executor"]


def check_executor(executor: str, slurm: Mapping[str, Any] | None) -> None:
    """Check the options of a command that runs here or on Slurm.

    Args:
        executor: `local` or `slurm`.
        slurm: Parameters of submitit, which only `slurm` takes.

    Raises:
        InputError: An option is another.
    """
    if executor not in ("local", "slurm"):
        raise InputError(f"--executor: expected local or slurm, got {executor!r}")
    if executor == "local" and slurm is not None:
        raise InputError("--slurm: expected --executor slurm, got local")
    if not isinstance(slurm, Mapping | None):
        raise InputError(
            "--slurm: expected parameters such as \"{time: 60, mem: '16GB'}\", with quotes around what is no plain "
            f"word or number, got {slurm!r}"
        )
    for name in ("nodes", "tasks_per_node", "ntasks_per_node"):  # submitit starts a job once for each task
        if (number := (slurm or {}).get(name, 1)) != 1:
            raise InputError(f"--slurm: expected jobs of one task, got {name}: {number}")


def slurm_executor(folder: Path, parameters: Mapping[str, Any]) -> Any:
    """Return the executor of submitit that starts jobs on Slurm.

    Args:
        folder: Where submitit keeps the logs and results of jobs.
        parameters: See `submitit.SlurmExecutor.update_parameters`.

    Raises:
        InputError: submitit or Slurm is not installed, or it does not know a parameter.
    """
    try:
        import submitit
    except ImportError:
        raise InputError(
            "--executor: expected submitit to be installed for slurm, got no such module; "
            "install the extra, in a clone: pip install -e '.[slurm]'"
        ) from None
    try:
        executor = submitit.SlurmExecutor(folder=folder)
    except RuntimeError as error:
        raise InputError(f"--executor: expected Slurm on this machine for slurm, got none: {error}") from None
    try:
        executor.update_parameters(**parameters)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]  # a list of all parameters follows
        raise InputError(f"--slurm: expected parameters of submitit, got others: {reason}") from None
    return executor


def one_line(error: Exception) -> str:
    """Return what was raised in one line, also where submitit gives the traceback of a job."""
    lines = str(error).splitlines() or [repr(error)]
    raised = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception): ", line)]
    return re.sub(r"^[\w.]*(?:CellError|InputError): ", "", raised[-1] if raised else lines[0])
