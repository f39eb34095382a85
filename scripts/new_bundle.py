r"""Make a bundle of your own training, with metadata, a page and licences, to pack or to serve.

    python scripts/new_bundle.py own left_atrium_mri_segmentation \
      --name "Left atrium MR segmentation" --bundle_version 0.1.0 --authors "A. Author, B. Author" \
      --modality MR --data_source "40 scans of our hospital" --weights_license cc-by-4.0

`own` is the `--bundle_root` that you trained, calibrated and evaluated with. It needs a clone,
whose `bundles/common` has the configs and the template of the page; see
`scripts/helpers/new_bundle.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# For a clone that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli
from scripts.helpers.commands import new_bundle

if __name__ == "__main__":
    cli.run("new_bundle", new_bundle)
