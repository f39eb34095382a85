"""Turn a data set, as downloaded, into prepared cases that training reads as slices or volumes.

    python scripts/prepare_data.py acdc        SRC OUT
    python scripts/prepare_data.py flare       SRC OUT
    python scripts/prepare_data.py brats       SRC OUT
    python scripts/prepare_data.py hippocampus SRC OUT
    python scripts/prepare_data.py msd         SRC OUT
    python scripts/prepare_data.py nnunet      SRC OUT
    python scripts/prepare_data.py generic     SRC OUT --labels liver,tumour

In `SRC`, these files are looked for:

    acdc         training/patientNNN/patientNNN_frameFF[_gt].nii.gz, Info.cfg
    flare        TrainingImg/NAME_0000.nii.gz, TrainingMask/NAME.nii.gz
    brats        NAME_{flair,t1,t1ce,t2,seg}.nii.gz, at any depth
    hippocampus  {imagesTr,labelsTr}/hippocampus_NNN.nii.gz
    msd          {imagesTr,labelsTr}/NAME.nii.gz, dataset.json
    nnunet       imagesTr/NAME_0000.nii.gz, labelsTr/NAME.nii.gz, dataset.json of version 2
    generic      {images,labels}/NAME.nii.gz

`OUT` gets the cases on the network's grid, see `calib_workflows.data.cases`; `facts.yaml`, which
records what they were prepared with; and `datalist.json` with the cases of each split. The same
command continues an interrupted run: cases are kept that are whole and whose source files have not
changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

# For a clone or a bundle's zip, which is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli, commands

if __name__ == "__main__":
    cli.run("prepare_data", commands.prepare_data)
