"""Pack a bundle so that it is complete by itself: for anyone with stock MONAI, the Model Zoo, or
Hugging Face.

    python scripts/package_bundle.py bundles/acdc_mri_nacl_segmentation --out dist

writes `dist/acdc_mri_nacl_segmentation_v0.4.0.zip`, which holds one folder, named as the bundle:
configs, docs, LICENSE, weights and their facts if there are any, `scripts/prepare_data.py`, and the
parts of `calib_components` that a bundle uses, which MONAI finds there. Its `docs/README.md` is
made from the bundle's page and metadata. The same files give the same bytes, on any machine and
day. Hidden files stay out.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo, is_zipfile

import jinja2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from calib_components import __version__
from calib_components.errors import InputError, make_folder, reading, writing, writing_folder
from calib_components.tools import cli

ROOT = Path(__file__).resolve().parents[1]
REQUIRED, METADATA, PAGE = ("LICENSE", "configs", "docs"), "configs/metadata.json", "docs/README.md"
# Facts of the data that they were trained on
WEIGHTS, FACTS = "models/model.pt", "models/facts.yaml"
TOOLS = ("__init__.py", "cli.py", "parallel.py", "prepare")  # those that prepare data
TEMPLATE, ZOO_TEST = "bundles/common/README.md.jinja", "bundles/common/zoo_test.py"
SUFFIXES = (".py", ".typed", ".yaml")


def contents(
    bundle: Path, required: bool = False, huggingface: str | None = None
) -> dict[str, bytes]:
    """Return the files of a bundle's package, by their path in it, sorted; see `package_bundle` for
    the arguments.
    """
    for name in (*REQUIRED, METADATA, PAGE):
        if not (bundle / name).exists():
            raise InputError(f"{bundle / name} is missing. Every bundle has it.")
    # Such as a pointer of Git LFS
    if (bundle / WEIGHTS).is_file() and not is_zipfile(bundle / WEIGHTS):
        raise InputError(f"{bundle / WEIGHTS} does not hold weights as torch.save writes them.")
    package = ROOT / "calib_components"
    parts = [child for child in package.iterdir() if child.name not in ("tools", "__main__.py")]
    parts += [package / "tools" / name for name in TOOLS]
    ours = [
        path for part in parts for path in _files(part) if path.suffix in SUFFIXES and not required
    ]
    packed = [
        path
        for name in (*REQUIRED, "large_files.yml", WEIGHTS, FACTS)
        for path in _files(bundle / name)
    ]
    found = {str(path.relative_to(bundle)): path.read_bytes() for path in packed}
    found |= {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in (*ours, ROOT / "scripts" / "prepare_data.py")
    }
    with reading(bundle / METADATA, "JSON with a version") as file:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        metadata["version"]
    if required:
        metadata["required_packages_version"]["calib-components"] = __version__
    found[PAGE] = readme(bundle, metadata)
    if huggingface:
        metadata["huggingface_url"] = f"https://huggingface.co/{huggingface}"
        found["README.md"] = readme(bundle, metadata).replace(
            b"](commands.md", b"](docs/commands.md"
        )
        # Of the weights; the Hub takes no other name
        found["LICENSE.md"] = found["docs/data_license.txt"]
    found[METADATA] = (json.dumps(metadata, indent=4, ensure_ascii=False) + "\n").encode()
    return dict(sorted(found.items()))


def readme(bundle: Path, metadata: dict[str, Any]) -> bytes:
    """Return the README of a package: the page of the bundle, in the order of the Model Zoo's
    template.
    """
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((ROOT / TEMPLATE).read_text(encoding="utf-8"))
    with reading(bundle / PAGE, f"what {TEMPLATE} takes from it and from {METADATA}") as page:
        text = page.read_text(encoding="utf-8").replace("../../scripts/", "scripts/")
        text = re.sub(r"^### (.*)$", r"#### **\1**", text, flags=re.MULTILINE)
        start, *parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
        title, _, introduction = start.partition("\n")
        sections = dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))
        known = {
            "huggingface_url": None,
            **metadata,
            "bundle": bundle.name,
            "title": title,
            "sections": sections,
        }
        return (template.render(known, introduction=introduction.strip()).rstrip() + "\n").encode()


def _files(path: Path) -> list[Path]:
    """The file, or the files in the folder and below, without hidden ones and those that Python has
    compiled.
    """
    if path.is_file():
        return [path]
    below = {file: file.relative_to(path).parts for file in path.rglob("*") if file.is_file()}
    return [
        file
        for file, parts in below.items()
        if not any(part[0] == "." or part == "__pycache__" for part in parts)
    ]


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
        out: Folder to write `<name>_v<version>.zip` to, with the version from the bundle's
            metadata.
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
    archive = out / f"{root.name}_v{json.loads(files[METADATA])['version']}.zip"
    target = zoo / "models" / root.name if zoo else archive
    if target.exists() and not overwrite:
        raise InputError(
            f"{'Folder' if zoo else 'Archive'} exists: {target}. Pass --overwrite to replace it."
        )
    make_folder(target.parent)
    if zoo:
        with writing_folder(target) as folder:
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        make_folder(zoo / "ci" / "unit_tests")
        shutil.copyfile(ROOT / ZOO_TEST, zoo / "ci" / "unit_tests" / f"test_{root.name}.py")
    else:
        with writing(target) as unfinished, ZipFile(unfinished, "w") as package:
            for name, content in files.items():
                # Dated 1980-01-01, and stored: deflated bytes vary by machine
                member = ZipInfo(f"{root.name}/{name}")
                member.create_system = 3  # Unix, so that the mode is read
                member.external_attr = 0o100644 << 16
                package.writestr(member, content)
    print(f"{target}: {len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB")
    if WEIGHTS not in files:
        print(f"It holds no weights: the bundle has no {WEIGHTS}.")


if __name__ == "__main__":
    cli.run("package_bundle", package_bundle)
