"""The package of a bundle, which is complete by itself.

It has one folder, named as the bundle: configs, docs, LICENSE, weights and their facts if there are
any, `scripts/prepare_data.py`, and the parts of the three packages that a bundle uses, which MONAI
finds there. Its `docs/README.md` is made from the bundle's page and metadata. Hidden files stay
out. The same files give the same bytes, on any machine and day.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo, is_zipfile

import jinja2
import yaml

from calib_components import __version__
from calib_components.errors import InputError, make_folder, reading, writing, writing_folder

ROOT = Path(__file__).resolve().parents[2]
REQUIRED, METADATA, PAGE = ("LICENSE", "configs", "docs"), "configs/metadata.json", "docs/README.md"
WEIGHTS, FACTS = "models/model.pt", "models/facts.yaml"
MODELS = ("model.pt", "ensemble.pt", "facts.yaml")  # of `models` and of the folders in it
# Those that prepare data
TOOLS = ("__init__.py", "cli.py", "commands.py", "parallel.py", "prepare")
ZOO_TEST = "bundles/common/zoo_test.py"
SUFFIXES = (".jinja", ".py", ".typed", ".yaml")
REMEDY = "Describe these weights there, or make a bundle of your own with scripts/new_bundle.py."

Files = dict[str, bytes]  # by their path in the package


def package_bundle(
    bundle: Path,
    out: Path = Path("dist"),
    *,
    required: bool = False,
    zoo: Path | None = None,
    huggingface: str | None = None,
    any_weights: bool = False,
    overwrite: bool = False,
) -> None:
    """See `scripts.helpers.commands.package_bundle`."""
    root = bundle.resolve()
    files = contents(root, required, huggingface, any_weights)
    targets = [out / f"{root.name}_v{json.loads(files[METADATA])['version']}.zip"]
    if zoo:
        test = zoo / "ci" / "unit_tests" / f"test_{root.name}.py"
        targets = [zoo / "models" / root.name, test]
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[0]} exists. Pass --overwrite true to replace it.")
    if zoo:
        write_to_zoo(files, *targets)
    else:
        write_zip(files, targets[0], root.name)
    print(f"{targets[0]}: {len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB")
    if WEIGHTS not in files:
        print(f"It holds no weights: the bundle has no {WEIGHTS}.")


def contents(
    bundle: Path,
    required: bool = False,
    huggingface: str | None = None,
    any_weights: bool = False,
) -> Files:
    """Return the files of a bundle's package, sorted; see `package_bundle` for the arguments."""
    _check_bundle(bundle)
    places = [bundle / name for name in (*REQUIRED, "large_files.yml")]
    folders = [bundle / "models", *(bundle / "models").glob("*/")]
    places += [folder / name for folder in folders for name in MODELS]
    files = _read_files(bundle, *places)
    files |= _read_files(ROOT, ROOT / "scripts" / "prepare_data.py")
    if not required:
        files |= _read_components()
    with reading(bundle / METADATA, "JSON with a version") as file:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        metadata["version"]
    _check_metadata(bundle, metadata, any_weights)
    if required:
        metadata["required_packages_version"]["calib-components"] = __version__
    files[PAGE] = readme(bundle, metadata)
    if huggingface:
        metadata["huggingface_url"] = f"https://huggingface.co/{huggingface}"
        page = readme(bundle, metadata)
        files["README.md"] = page.replace(b"](commands.md", b"](docs/commands.md")
        # Of the weights; the Hub takes no other name
        files["LICENSE.md"] = files["docs/data_license.txt"]
    files[METADATA] = (json.dumps(metadata, indent=4, ensure_ascii=False) + "\n").encode()
    return dict(sorted(files.items()))


def write_zip(files: Files, archive: Path, folder: str) -> None:
    """Write a package as an archive that has one folder."""
    make_folder(archive.parent)
    with writing(archive) as unfinished, ZipFile(unfinished, "w") as package:
        for name, content in files.items():
            # Dated 1980-01-01, and stored: deflated bytes vary by machine
            member = ZipInfo(f"{folder}/{name}")
            member.create_system = 3  # Unix, so that the mode is read
            member.external_attr = 0o100644 << 16
            package.writestr(member, content)


def write_to_zoo(files: Files, target: Path, test: Path) -> None:
    """Write a package as `models/NAME` of a clone of the Model Zoo, and the test of the bundle."""
    make_folder(target.parent)
    with writing_folder(target) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    make_folder(test.parent)
    shutil.copyfile(ROOT / ZOO_TEST, test)


def readme(bundle: Path, metadata: Mapping[str, Any]) -> bytes:
    """Return the README of a package: the page of the bundle, in the order of the Model Zoo's
    template.
    """
    with reading(bundle / PAGE, f"what README.md.jinja takes from it and from {METADATA}") as page:
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"(\.\./)+scripts/", "scripts/", text)
        text = re.sub(r"^### (.*)$", r"#### **\1**", text, flags=re.MULTILINE)
        start, *parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
        title, _, introduction = start.partition("\n")
        values = {
            "huggingface_url": None,
            **metadata,
            "bundle": bundle.name,
            "title": title,
            "introduction": introduction.strip(),
            "sections": dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True)),
        }
        return render("README.md.jinja", values).encode()


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a template in `bundles/common`."""
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(ROOT / "bundles" / "common"),
    )
    return environment.get_template(template).render(values).rstrip() + "\n"


def _check_bundle(bundle: Path) -> None:
    for name in (*REQUIRED, METADATA, PAGE):
        if not (bundle / name).exists():
            raise InputError(f"{bundle / name} is missing. Every bundle has it.")
    # Such as a pointer of Git LFS
    if (bundle / WEIGHTS).is_file() and not is_zipfile(bundle / WEIGHTS):
        raise InputError(f"{bundle / WEIGHTS} does not hold weights as torch.save writes them.")


def _check_metadata(bundle: Path, metadata: Mapping[str, Any], any_weights: bool) -> None:
    """Refuse metadata of other classes or channels than the network's, or of other weights."""
    weights, file = bundle / WEIGHTS, bundle / METADATA
    beside = bundle / FACTS
    with reading(beside if beside.is_file() else bundle / "configs/inference.yaml") as source:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        facts = content.get("facts", content)
        classes = dict(zip(map(str, facts["label_codes"]), facts["class_names"], strict=True))
    with reading(file, "the channels of the network"):
        channels = metadata["network_data_format"]
        described = channels["outputs"]["pred"]["channel_def"]
        in_channels = channels["inputs"]["image"]["num_channels"]
    if (described, in_channels) != (classes, facts["in_channels"]):
        raise InputError(
            f"{file}: it describes {in_channels} channel(s) and the classes {described}, but"
            f" {source} {facts['in_channels']} and {classes}. {REMEDY}"
        )
    if any_weights or not weights.is_file():
        return
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    if metadata.get("weights_sha256") != checksum:
        raise InputError(
            f"{file}: it describes other weights: weights_sha256 is not {checksum} of {weights}."
            f" {REMEDY}"
        )


def _read_components() -> Files:
    """Return the files of the packages that a bundle uses."""
    tools = [ROOT / "calib_tools" / name for name in TOOLS]
    files = _read_files(ROOT, ROOT / "calib_components", ROOT / "calib_workflows", *tools)
    return {name: content for name, content in files.items() if name.endswith(SUFFIXES)}


def _read_files(root: Path, *places: Path) -> Files:
    """Return files, and those in folders and below, without hidden ones and those that Python has
    compiled.
    """
    files: Files = {}
    for place in places:
        for file in (place, *place.rglob("*")):
            parts = file.relative_to(root).parts
            is_left_out = any(part[0] == "." or part == "__pycache__" for part in parts)
            if file.is_file() and not is_left_out:
                files[file.relative_to(root).as_posix()] = file.read_bytes()
    return files
