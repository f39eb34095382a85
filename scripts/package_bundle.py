"""Pack a bundle so that it is complete by itself: for anyone with stock MONAI, the Model Zoo, or
Hugging Face.

    python scripts/package_bundle.py bundles/acdc_mri_nacl_segmentation --out dist

writes `dist/acdc_mri_nacl_segmentation_v0.4.0.zip`, see `scripts/helpers/packages.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# For a clone that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calib_components.errors import InputError
from calib_components.tools import cli
from scripts.helpers.packages import WEIGHTS, contents, version_of, write_to_zoo, write_zip


def package_bundle(
    bundle: Path,
    out: Path = Path("dist"),
    *,
    required: bool = False,
    zoo: Path | None = None,
    huggingface: str | None = None,
    overwrite: bool = False,
) -> None:
    """Pack a bundle into one zip that is complete by itself, or into a clone of the Model Zoo.

    Args:
        bundle: Folder of the bundle.
        out: Folder to write `NAME_vVERSION.zip` to, with the version from the bundle's metadata.
        required: Whether the metadata require `calib-components`, in this version, in place of a
            copy in the package.
        zoo: Clone of the Model Zoo to write the files of a request to, in place of a zip: the
            folder of the bundle in `models`, and its test in `ci/unit_tests`.
        huggingface: Repository for the package at Hugging Face, such as YOU/NAME. The metadata have
            its address, and the package a model card and the licence of the weights.
        overwrite: Whether to replace an archive of this version, or the bundle in the Zoo.
    """
    root = bundle.resolve()
    files = contents(root, required, huggingface)
    archive = out / f"{root.name}_v{version_of(files)}.zip"
    target = zoo / "models" / root.name if zoo else archive
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists. Pass --overwrite to replace it.")
    if zoo:
        write_to_zoo(files, target)
    else:
        write_zip(files, target, root.name)
    print(f"{target}: {len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB")
    if WEIGHTS not in files:
        print(f"It holds no weights: the bundle has no {WEIGHTS}.")


if __name__ == "__main__":
    cli.run("package_bundle", package_bundle)
