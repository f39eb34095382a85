"""Pack a bundle into one zip that is complete by itself: for the Model Zoo, or for anyone who has stock MONAI only.

    python scripts/package_bundle.py bundles/acdc_mri_nacl_segmentation --out dist

writes `dist/acdc_mri_nacl_segmentation_v0.3.0.zip`, which holds one folder, named as the bundle: configs, docs,
LICENSE, weights and their facts if there are any, `scripts/prepare_data.py`, and the parts of `calib_components` that a
bundle uses, which MONAI finds there. The same files give the same bytes, on any machine and day. Hidden files stay out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from zipfile import ZipFile, ZipInfo, is_zipfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

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
    package = ROOT / "calib_components"
    parts = [child for child in package.iterdir() if child.name not in ("tools", "__main__.py")]
    parts += [package / "tools" / name for name in TOOLS]
    ours = [path for part in parts for path in _files(part) if path.suffix in SUFFIXES]
    packed = [path for name in (*REQUIRED, "large_files.yml", WEIGHTS, FACTS) for path in _files(bundle / name)]
    found = {str(path.relative_to(bundle)): path for path in packed}
    found |= {str(path.relative_to(ROOT)): path for path in (*ours, ROOT / "scripts" / "prepare_data.py")}
    return dict(sorted(found.items()))


def _files(path: Path) -> list[Path]:
    """The file, or the files in the folder and below, without hidden ones and those that Python has compiled."""
    if path.is_file():
        return [path]
    below = {file: file.relative_to(path).parts for file in path.rglob("*") if file.is_file()}
    return [file for file, parts in below.items() if not any(part[0] == "." or part == "__pycache__" for part in parts)]


def package_bundle(bundle: Path, out: Path = Path("dist"), *, overwrite: bool = False) -> None:
    """Pack a bundle into one zip that is complete by itself.

    Args:
        bundle: Folder of the bundle.
        out: Folder to write `<name>_v<version>.zip` to, with the version from the bundle's metadata.
        overwrite: Whether to replace an archive of this version.
    """
    root = bundle.resolve()
    files = contents(root)
    with reading(root / METADATA, "JSON with a version") as metadata:
        version = json.loads(metadata.read_text(encoding="utf-8"))["version"]
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
