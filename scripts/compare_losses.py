r"""Train and evaluate a bundle with several losses under one protocol, and keep the results side by
side.

    python scripts/compare_losses.py bundles/acdc_mri_nacl_segmentation --dataset_dir DATA \
      --out runs/table1

A *cell* is one loss setting and one seed: plain runs of the bundle, which train, fit the
temperature on the validation split, and evaluate without and with it. Their commands are kept in
`OUT/commands.sh`; each can be run by hand. The measurements of a finished cell are in
`OUT/METHOD/seedN`, a folder that appears complete or not at all; large and unfinished files are in
`OUT/work/METHOD/seedN`. With `--folds`, each fold is a cell. `--evaluate_on NAME=DIR` adds prepared
test sets of other origin.

The same command continues after an interruption: finished cells are skipped, and partly trained
ones resume. A folder made with other settings is an error. `scripts/report.py OUT` makes tables and
figures of the results.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli
from study.compare.commands import compare_losses

if __name__ == "__main__":
    cli.run("compare_losses", compare_losses)
