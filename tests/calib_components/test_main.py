"""The commands of the installed package, which run without the repository, from any folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calib_components.__main__ import main
from calib_components.tools.prepare import prepare_data
from tests.helpers import make_acdc

# Pretends that a module is not installed.
WITHOUT = "import sys; sys.modules[{!r}] = None; from calib_components.__main__ import main; main()"

COMMANDS_LISTED = "prepare_data, compare_losses, report, evaluate_predictions, calibrate_predictions, nnunet"


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The handler of SIGTERM as it was, after a test that calls `main`."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_lists_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["calib-components"])
    main()
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS_LISTED.split(", "))


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("prepare_data acdc", "--image_size"),
        ("compare_losses", "--seeds"),
        ("report", "--validation"),
        ("evaluate_predictions", "--structures"),
        ("calibrate_predictions", "--apply_to"),
        ("nnunet acdc", "--dataset_id"),
        ("nnunet calibrate", "--patient_pattern"),
    ],
)
def test_help_lists_the_options(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAGER", "cat")
    monkeypatch.setattr(sys, "argv", ["calib-components", *command.split(), "--help"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    shown = capsys.readouterr()
    assert option in shown.out + shown.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("prepare_data flare absent OUT", "absent: expected a folder, got no such folder"),
        ("reprot results", (f"reprot: expected a command, {COMMANDS_LISTED}, got no such command; "
         "did you mean report?")),
        ("prepare_data acdcc a b", ("acdcc: expected a command, acdc, flare, brats, generic, got no such command; "
         "did you mean acdc?")),
        ("report", "folders: expected at least one value, got none; see calib-components report --help"),
        ("report absent", "absent: expected the folder of a comparison, got no such folder"),
        ("report absent --ou x", "--ou: expected an option, got no such option; did you mean --out?"),
        ("compare_losses b d -max_epochs", ("--out: expected a value, got none; see calib-components compare_losses "
         "--help")),
        ("--version", f"--version: expected a command, {COMMANDS_LISTED}, got no such command"),
    ],
)  # fmt: skip
def test_error_is_one_line(arguments: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calib-components", *arguments.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == f"calib-components: {line}"
    assert list(tmp_path.iterdir()) == []


def test_prepares_data_from_any_folder(tmp_path: Path) -> None:
    src = make_acdc(tmp_path / "src")
    options = ("--image_size", "16,32", "--fractions", "0,0,1")
    done = run(tmp_path, "-m", "calib_components", "prepare_data", "acdc", "src", "a/out", *options)
    assert done.returncode == 0, done.stderr
    prepare_data("acdc", src, tmp_path / "b" / "out", image_size=(16, 32), fractions=(0, 0, 1), workers=1)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 15, files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("module", ["fire", "nibabel"])
def test_missing_extra_is_an_error_of_one_line(module: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-c", WITHOUT.format(module))
    assert done.returncode == 1
    assert done.stderr == (
        f"calib-components: expected the module {module}, got none; "
        'install the extra, in a clone: pip install -e ".[bundles]"\n'
    )
