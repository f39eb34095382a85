"""Bad input of `package_bundle`: one line that names the file or argument, no zip, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from scripts.package_bundle import package_bundle
from tests.helpers import run_as_typed, run_script, snapshot


class Case(NamedTuple):
    """What is done to a whole bundle, the arguments (after the bundle) and the line that is expected, or its start."""

    name: str
    spoil: Callable[[Path], object]
    line: str
    arguments: tuple[str, ...] = ("--out", "OUT")


def nothing(_: Path) -> None:
    """The bundle stays whole."""


def remove(name: str) -> Callable[[Path], object]:
    def spoil(bundle: Path) -> None:
        path = bundle / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def put(name: str, content: bytes | None = b"") -> Callable[[Path], object]:
    """Put a file, or a folder, in the place of what is there."""

    def spoil(bundle: Path) -> None:
        path = bundle / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if content is None else path.write_bytes(content)

    return spoil


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda bundle: (
        remove(name)(bundle) if (bundle / name).exists() else None,
        (bundle / name).symlink_to(target),
    )


def version(value: object) -> Callable[[Path], object]:
    return put("configs/metadata.json", json.dumps({"version": value}).encode())


def zip_of(name: str) -> Callable[[Path], object]:
    def spoil(bundle: Path) -> None:
        with zipfile.ZipFile(bundle / "models" / "model.pt", "w") as archive:
            archive.writestr(name, "")

    return spoil


def truncate(bundle: Path) -> None:
    weights = bundle / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-40])


METADATA, WEIGHTS = "BUNDLE/configs/metadata.json", "BUNDLE/models/model.pt"
NO_JSON = f"{METADATA}: expected JSON with a version, got "
NO_VERSION = f"{METADATA}: expected a version of the form 1.2.3, got "
NO_WEIGHTS = f"{WEIGHTS}: expected weights as torch.save writes them, got "
A_LINK = "expected a file or folder of the bundle itself, got a symbolic link"
PACKED = "--out: expected a folder that is not packed itself, got "
CASES = [
    Case("no bundle", lambda bundle: shutil.rmtree(bundle), "BUNDLE/LICENSE: expected a file or folder, as in every"),
    Case("a file", lambda bundle: (shutil.rmtree(bundle), bundle.touch()), "BUNDLE/LICENSE: expected a file or folder"),
    Case("no licence", remove("LICENSE"), "BUNDLE/LICENSE: expected a file or folder, as in every bundle, got none"),
    Case("licence a folder", put("LICENSE", None), "BUNDLE/LICENSE: expected a file, got a folder"),
    Case("no configs", remove("configs"), "BUNDLE/configs: expected a file or folder, as in every bundle, got none"),
    Case("configs a file", put("configs"), f"{METADATA}: expected a file or folder, as in every bundle, got none"),
    Case("no docs", remove("docs"), "BUNDLE/docs: expected a file or folder, as in every bundle, got none"),
    Case("no metadata", remove("configs/metadata.json"), f"{METADATA}: expected a file or folder, as in every"),
    Case("metadata a folder", put("configs/metadata.json", None), f"{METADATA}: expected a file, got a folder"),
    Case("metadata empty", put("configs/metadata.json"), f"{NO_JSON}Expecting value"),
    Case("metadata truncated", put("configs/metadata.json", b'{"version": "0.1'), f"{NO_JSON}Unterminated string"),
    Case("metadata binary", put("configs/metadata.json", bytes(range(128, 200))), f"{NO_JSON}'utf-8' codec can't"),
    Case("metadata nested", put("configs/metadata.json", b"[" * 100_000), f"{NO_JSON}maximum recursion depth"),
    Case("metadata a list", put("configs/metadata.json", b"[]"), f"{NO_JSON}list indices must be"),
    Case("metadata null", put("configs/metadata.json", b"null"), f"{NO_JSON}'NoneType' object"),
    Case("no version", put("configs/metadata.json", b"{}"), f"{NO_JSON}one that lacks 'version'"),
    Case("version null", version(None), f"{NO_VERSION}None"),
    Case("version a number", version(0.1), f"{NO_VERSION}0.1"),
    Case("version a list", version(["0", "1"]), f"{NO_VERSION}['0', '1']"),
    Case("version empty", version(""), f"{NO_VERSION}''"),
    Case("version a word", version("latest"), f"{NO_VERSION}'latest'"),
    Case("version leaves the folder", version("../../0.1.0"), f"{NO_VERSION}'../../0.1.0'"),
    Case("version of two lines", version("0.1.0\n"), f"{NO_VERSION}'0.1.0\\n'"),
    Case("version with a blank", version("0.1 0"), f"{NO_VERSION}'0.1 0'"),
    Case("weights empty", put("models/model.pt"), f"{NO_WEIGHTS}File is not a zip file"),
    Case("weights a pointer", put("models/model.pt", b"version https://git-lfs"), f"{NO_WEIGHTS}File is not a zip"),
    Case("weights truncated", truncate, f"{NO_WEIGHTS}File is not a zip file"),
    Case("weights another zip", zip_of("readme.txt"), f"{NO_WEIGHTS}another zip file"),
    Case("weights a folder", put("models/model.pt", None), f"{WEIGHTS}: expected a file, got a folder"),
    Case("weights a link", link("models/model.pt", "/etc/hostname"), f"{WEIGHTS}: {A_LINK}"),
    Case("facts a folder", put("models/facts.yaml", None), "BUNDLE/models/facts.yaml: expected a file, got a folder"),
    Case("facts a link", link("models/facts.yaml", "/etc/hostname"), f"BUNDLE/models/facts.yaml: {A_LINK}"),
    Case("a link in docs", link("docs/notes.md", "/etc/hostname"), f"BUNDLE/docs/notes.md: {A_LINK}"),
    Case("a link into the bundle", link("docs/notes.md", "README.md"), f"BUNDLE/docs/notes.md: {A_LINK}"),
    Case("a link to nothing", link("docs/notes.md", "absent"), f"BUNDLE/docs/notes.md: {A_LINK}"),
    Case("docs a link", link("docs", "/etc"), f"BUNDLE/docs: {A_LINK}"),
    Case(
        "a pipe",
        lambda bundle: os.mkfifo(bundle / "docs" / "pipe"),
        "BUNDLE/docs/pipe: expected a file with a name of one line, got another",
    ),
    Case(
        "a name of two lines",
        put("docs/a\nb.md"),
        "BUNDLE/docs/a\\nb.md: expected a file with a name of one line, got another",
    ),
    Case("out in docs", nothing, f"{PACKED}BUNDLE/docs/dist, in the bundle's docs", ("--out", "BUNDLE/docs/dist")),
    Case("out is configs", nothing, f"{PACKED}BUNDLE/configs, in the bundle's configs", ("--out", "BUNDLE/configs")),
    Case("out in models", nothing, f"{PACKED}BUNDLE/docs/../models/a, in", ("--out", "BUNDLE/docs/../models/a")),
    Case(
        "out a file",
        nothing,
        "BUNDLE/LICENSE: expected a folder that can be made, got File",
        ("--out", "BUNDLE/LICENSE"),
    ),
    Case("out below a file", nothing, "BUNDLE/LICENSE/x: expected a folder that can", ("--out", "BUNDLE/LICENSE/x")),
    Case("out empty", nothing, "--out: expected a path, got ''", ("--out", "")),
    Case("out without a value", nothing, "--out: expected a value, got none", ("--out",)),
    Case("out twice", nothing, "--out: expected once, got twice", ("--out", "OUT", "--out=OUT")),
    Case("misspelt", nothing, "--otu: expected an option, got no such option; did you mean --out?", ("--otu", "OUT")),
    Case("one dash", nothing, "-otu: expected an option, got no such option; did you mean --out?", ("-otu", "OUT")),
    Case(
        "one more",
        nothing,
        "more: expected at most 2 values without an option, bundle, out, got one more",
        ("OUT", "more"),
    ),
    Case(
        "a folder in the zip's place",
        lambda bundle: (bundle.parent / "dist" / "bundle_v0.1.0.zip" / "full").mkdir(parents=True),
        "OUT/bundle_v0.1.0.zip: expected a file that can be written, got Is a directory",
    ),
]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of few and small files."""
    folder = tmp_path / "bundle"
    for name in ("configs", "docs", "models"):
        (folder / name).mkdir(parents=True)
    for name in ("LICENSE", "docs/README.md", "configs/train.yaml"):
        (folder / name).write_text("text")
    (folder / "configs" / "metadata.json").write_text('{"version": "0.1.0"}')
    torch.save({"weight": torch.zeros(3)}, folder / "models" / "model.pt")
    return folder


def filled_in(text: str, bundle: Path) -> str:
    return text.replace("BUNDLE", str(bundle)).replace("OUT", str(bundle.parent / "dist"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_nothing_is_written(case: Case, bundle: Path, tmp_path: Path) -> None:
    case.spoil(bundle)
    before = snapshot(tmp_path)
    arguments = [filled_in(argument, bundle) for argument in case.arguments]
    outcome = run_as_typed("package_bundle", package_bundle, [bundle, *arguments])
    assert outcome.err.startswith(f"package_bundle: {filled_in(case.line, bundle)}")
    assert outcome.err.count("\n") == 1
    assert (outcome.code, outcome.out) == (1, "")
    assert snapshot(tmp_path) == before


def test_no_bundle_at_all_is_one_line() -> None:
    outcome = run_as_typed("package_bundle", package_bundle, [])
    assert outcome == (1, "", "package_bundle: --bundle: expected a value, got none; see package_bundle --help\n")


def test_full_disk_leaves_the_earlier_zip(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [bundle, "--out", tmp_path / "dist"]
    assert run_as_typed("package_bundle", package_bundle, arguments).code == 0
    (bundle / "LICENSE").write_text("another text")
    before = snapshot(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    outcome = run_as_typed("package_bundle", package_bundle, arguments)
    archive = tmp_path / "dist" / "bundle_v0.1.0.zip"
    reason = "expected a file that can be written, got No space left on device"
    assert (outcome.code, outcome.err) == (1, f"package_bundle: {archive}: {reason}\n")
    assert snapshot(tmp_path) == before


def test_as_a_process(bundle: Path, tmp_path: Path) -> None:
    version("latest")(bundle)
    before = snapshot(tmp_path)
    done = run_script("scripts/package_bundle.py", bundle, "--out", tmp_path / "dist")
    line = f"{bundle}/configs/metadata.json: expected a version of the form 1.2.3, got 'latest'"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"package_bundle: {line}\n")
    assert snapshot(tmp_path) == before
