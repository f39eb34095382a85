"""Turn a data set, as downloaded, into prepared cases that training reads as slices or volumes.

    python scripts/prepare_data.py acdc    SRC OUT    #
    SRC/training/patientNNN/patientNNN_frameFF[_gt].nii.gz, Info.cfg python scripts/prepare_data.py
    flare   SRC OUT    # SRC/TrainingImg/NAME_0000.nii.gz, SRC/TrainingMask/NAME.nii.gz python
    scripts/prepare_data.py brats   SRC OUT    # NAME_{flair,t1,t1ce,t2,seg}.nii.gz, at any depth
    below SRC python scripts/prepare_data.py hippocampus SRC OUT    #
    SRC/{imagesTr,labelsTr}/hippocampus_NNN.nii.gz python scripts/prepare_data.py msd     SRC OUT
    # SRC/{imagesTr,labelsTr}/NAME.nii.gz, SRC/dataset.json python scripts/prepare_data.py generic
    SRC OUT --labels liver,tumour    # SRC/{images,labels}/NAME.nii.gz

`OUT` gets the cases on the network's grid, see `calib_components.data.cases`; `facts.yaml`, which
records what they were prepared with; and `datalist.json` with the cases of each split. The same
command continues an interrupted run: cases are kept that are whole and whose source files have not
changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

# For a clone or a bundle's zip, which is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_components.tools import cli
from calib_components.tools.prepare import prepare_data

if __name__ == "__main__":
    cli.run("prepare_data", prepare_data)
