"""The report of evaluations."""

from pathlib import Path


def is_comparison(folder: Path) -> bool:
    """Return whether a folder has the results of `compare_losses`: cells, or their compact form."""
    names = ("plan.json", "comparison.json", "*/seed*/settings.json")
    return not (folder / "cases.csv").exists() and any([*folder.glob(name)] for name in names)
