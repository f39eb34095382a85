"""Pack a bundle into one zip that is complete by itself: for the Model Zoo, or for anyone who has stock MONAI only.

    python scripts/package_bundle.py bundles/acdc_mri_nacl_segmentation --out dist

writes `dist/acdc_mri_nacl_segmentation_v0.3.0.zip`, which holds one folder, named as the bundle: configs, docs,
LICENSE, weights and their facts if there are any, `scripts/prepare_data.py`, and the parts of `calib_components` that a
bundle uses, which MONAI finds there. The same files give the same bytes, on any machine and day. Hidden files stay out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile, ZipInfo, is_zipfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components.data.facts import facts_beside
from calib_components.errors import InputError, make_folder, reading, writing
from calib_components.tools import cli

ROOT = Path(__file__).resolve().parents[1]
REQUIRED, METADATA = ("LICENSE", "configs", "docs"), "configs/metadata.json"
WEIGHTS, FACTS = "models/model.pt", "models/facts.yaml"  # facts of the data that they were trained on
TOOLS = ("__init__.py", "cli.py", "parallel.py", "prepare")  # those that prepare data
SUFFIXES = (".py", ".typed", ".yaml")


def contents(bundle: Path) -> dict[str, Path]:
    """Return the files of a bundle's package, by their path in it, sorted; `bundle` is a resolved path."""
    for name in (*REQUIRED, METADATA):
        if not (bundle / name).exists():
            raise InputError(f"{bundle / name} is missing. Every bundle has it.")
    if (bundle / WEIGHTS).is_file() and not is_zipfile(bundle / WEIGHTS):  # such as a pointer of Git LFS
        raise InputError(f"{bundle / WEIGHTS} does not hold weights as torch.save writes them.")
    packed = [path for name in (*REQUIRED, "large_files.yml", WEIGHTS, FACTS) for path in _files(bundle / name)]
    ours = (*_components(), ROOT / "scripts" / "prepare_data.py")
    return dict(
        sorted((str(path.relative_to(top)), path) for top, of in ((bundle, packed), (ROOT, ours)) for path in of)
    )


def _components() -> Iterator[Path]:
    """The files of `calib_components` that a bundle uses."""
    package = ROOT / "calib_components"
    parts = [child for child in package.iterdir() if child.name not in ("tools", "__main__.py")]
    for part in (*parts, *(package / "tools" / name for name in TOOLS)):
        yield from (path for path in _files(part) if path.suffix in SUFFIXES)


def _files(path: Path) -> Iterator[Path]:
    """The file, or the files in the folder and below, without hidden ones and those that Python has compiled."""
    if path.resolve() != path:
        raise InputError(f"{path} is a symbolic link, which may lead out of the bundle. Put the file itself there.")
    if path.is_file():
        yield path
    elif path.is_dir():
        for child in path.iterdir():
            if not child.name.startswith(".") and child.name != "__pycache__":
                yield from _files(child)


def package_bundle(bundle: Path, out: Path = Path("dist"), *, overwrite: bool = False) -> None:
    """Pack a bundle into one zip that is complete by itself.

    Args:
        bundle: Folder of the bundle.
        out: Folder to write `<name>_v<version>.zip` to, with the version from the bundle's metadata.
        overwrite: Whether to replace an archive of this version.

    Raises:
        InputError: The bundle is incomplete or unsuitable, or the zip exists or cannot be written.
    """
    root = bundle.resolve()
    files = contents(root)
    with reading(root / METADATA, "JSON with a version") as metadata:
        version = json.loads(metadata.read_text(encoding="utf-8"))["version"]
    if not re.fullmatch(r"[0-9]+(\.[0-9A-Za-z]+)*", str(version)):
        raise InputError(f"{root / METADATA}: version must have the form 1.2.3, got {version!r}.")
    facts_beside(root / WEIGHTS)  # an error if they are broken
    if any((root / name) in (out.resolve() / "_").parents for name in ("configs", "docs")):
        raise InputError(f"--out is packed itself: {out}. Choose another folder.")
    archive = out / f"{root.name}_v{version}.zip"
    if archive.exists() and not overwrite:
        raise InputError(f"Archive exists: {archive}. Pass --overwrite to replace it.")
    make_folder(out)
    with writing(archive) as unfinished, ZipFile(unfinished, "w") as package:
        for name, path in files.items():
            member = ZipInfo(f"{root.name}/{name}")  # dated 1980-01-01, and stored: deflated bytes vary by machine
            member.create_system = 3  # Unix, so that the mode is read
            member.external_attr = 0o100644 << 16
            package.writestr(member, path.read_bytes())
    print(f"{archive}: {len(files)} files, {archive.stat().st_size / 1e6:.1f} MB")
    if WEIGHTS not in files:
        print(f"It holds no weights: the bundle has no {WEIGHTS}.")


if __name__ == "__main__":
    cli.run("package_bundle", package_bundle)
