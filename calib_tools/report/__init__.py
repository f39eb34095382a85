"""Reports of evaluations: one evaluation, or a comparison of several."""

from pathlib import Path


def is_comparison(folder: Path) -> bool:
    """Return whether a folder has the results of a comparison of losses: cells, or their compact
    form.
    """
    names = ("plan.json", "comparison.json", "*/seed*/settings.json")
    return not (folder / "cases.csv").exists() and any([*folder.glob(name)] for name in names)
