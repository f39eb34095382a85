"""Write the generated files of every bundle from their sources, or check that they are up to date.

    python scripts/sync_bundles.py [--check]

The facts of a data set are one file in `calib_tools/prepare`, beside the function that lists its
cases; those of cases that are prepared like another data set are `models/facts.yaml` of the bundle.
All else has its source in `bundles/common`, see `scripts/helpers/bundle_files.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# For a clone that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli
from scripts.helpers.bundle_files import BUNDLES, COMMON, generate, without_source

ROOT = Path(__file__).resolve().parents[1] / "bundles"


def sync(check: bool = False) -> None:
    """Write the generated files, and list those that have lost their source.

    Args:
        check: Write nothing, and exit with 1 if a file differs from what would be written or has
            lost its source.
    """
    from calib_workflows.data.facts import facts_beside  # imports PyTorch, which help need not

    lines = []
    datasets = {name: dataset for dataset, name in BUNDLES.items()}
    for bundle in sorted(ROOT.iterdir()):
        if bundle.name == COMMON.name:
            continue
        own = None if bundle.name in datasets else facts_beside(bundle / "models" / "facts.yaml")
        generated = generate(own.dataset if own else datasets[bundle.name], bundle, own)
        for file, text in generated.items():
            if file.is_file() and file.read_text() == text:
                continue
            if check:
                lines.append(f"{file}: differs from its source: run scripts/sync_bundles.py")
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
                lines.append(f"{file}: written")
        orphans = without_source(bundle, generated)
        lines += [f"{file}: has no source: delete it" for file in orphans]
    for line in sorted(lines):
        print(line)
    if check and lines:
        sys.exit(1)


if __name__ == "__main__":
    cli.run("sync_bundles", sync)
