"""Pack a bundle so that it is complete by itself: for anyone with stock MONAI, the Model Zoo, or
Hugging Face.

    python scripts/package_bundle.py bundles/acdc_mri_nacl_segmentation --out dist

writes `dist/acdc_mri_nacl_segmentation_v0.5.0.zip`, see `scripts/helpers/packages.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# For a clone that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_tools import cli
from scripts.helpers.commands import package_bundle

if __name__ == "__main__":
    cli.run("package_bundle", package_bundle)
