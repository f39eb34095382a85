"""Pack a bundle into one zip that stands alone: for the Model Zoo, or for a colleague who has stock MONAI only.

    python scripts/package_bundle.py bundles/acdc_mri_nacl_segmentation --out dist

writes `dist/acdc_mri_nacl_segmentation_v0.1.0.zip`. In it is one folder, named as the bundle: configs, docs, LICENSE,
the weights if there are any, and the source of `calib_components`, which MONAI finds there. The same files give the
same bytes, on any machine and day.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import fire

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = ("LICENSE", "configs", "docs")
WEIGHTS = "models/model.pt"


class PackageError(ValueError):
    """The bundle cannot be packed; the message is one line that names the file and the reason."""


def contents(bundle: Path) -> dict[str, Path]:
    """List the files of a bundle's package, by their path in the bundle.

    Args:
        bundle: folder of the bundle, as an absolute path without symbolic links.

    Raises:
        PackageError: when a part is missing or behind a symbolic link, which may lead out of the bundle.
    """
    for name in REQUIRED:
        if not (bundle / name).exists():
            raise PackageError(f"{bundle / name}: no such file or folder; every bundle has one")
    files = {str(path.relative_to(bundle)): path for name in (*REQUIRED, WEIGHTS) for path in _files(bundle / name)}
    files.update(
        {str(path.relative_to(ROOT)): path for path in _files(ROOT / "calib_components") if path.suffix == ".py"}
    )
    return dict(sorted(files.items()))


def _files(path: Path) -> Iterator[Path]:
    if path.resolve() != path:
        raise PackageError(f"{path}: a symbolic link may lead out of the bundle; put what it leads to in its place")
    if path.is_dir():
        for child in path.iterdir():
            yield from _files(child)
    elif path.is_file():
        yield path


def package_bundle(bundle: str, out: str = "dist") -> None:
    """Pack a bundle into one zip that stands alone.

    Args:
        bundle: folder of the bundle.
        out: folder to write `<name>_v<version>.zip` to, with the version from the bundle's metadata.
    """
    root = Path(bundle).resolve()
    files = contents(root)
    version = json.loads((root / "configs" / "metadata.json").read_text())["version"]
    if not re.fullmatch(r"\w+(\.\w+)*", version):
        raise PackageError(f"{root / 'configs' / 'metadata.json'}: version {version!r} is not of the form 1.2.3")
    archive = Path(out) / f"{root.name}_v{version}.zip"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(archive, "w") as package:
        for name, path in files.items():
            member = ZipInfo(f"{root.name}/{name}")  # dated 1980-01-01, and stored: what deflating gives varies
            member.create_system = 3  # Unix, so that the mode counts
            member.external_attr = 0o100644 << 16
            package.writestr(member, path.read_bytes())
    print(f"{archive}: {len(files)} files, {archive.stat().st_size / 1e6:.1f} MB")
    if WEIGHTS not in files:
        print(f"No weights in it: the bundle has no {WEIGHTS}.")


def main() -> None:
    try:
        fire.Fire(package_bundle)
    except (PackageError, OSError) as error:
        sys.exit(f"package_bundle: {error}")


if __name__ == "__main__":
    main()
