"""Shares of many cases: their commands, what runs them, and that their results are those of one
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import pytest

from calib_components.errors import InputError
from calib_tools import cli, jobs, run_cases
from calib_tools.commands import run_cases as segment
from calib_workflows.inference.images import ImageFolder
from tests.helpers import ACDC, copy_with_weights, make_images


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL", 0.01)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of the commands that would run, as Fire reads them."""
    read: list[dict[str, Any]] = []

    def record(command: Sequence[str], log: Path, accepted: tuple[int, ...]) -> str | None:
        assert accepted == (0, 3)
        fire.Fire(lambda **options: read.append(options), [*command[4:]])
        return "killed; see LOG" if read[-1]["shard"] == "2/2" else None

    monkeypatch.setattr(run_cases, "run_command", record)
    monkeypatch.setattr(ImageFolder, "write_table", lambda _: "the table of the scans")
    return read


def test_images_are_shared_among_no_more_shares_than_there_are(
    tmp_path: Path, commands: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, images = copy_with_weights(ACDC, tmp_path), make_images(ACDC, tmp_path / "images")
    (file,) = images.iterdir()
    file.with_name("other.nii.gz").write_bytes(file.read_bytes())
    with pytest.raises(SystemExit) as caught:
        segment(
            "infer",
            bundle,
            dataset_dir=images,
            output_dir=tmp_path / "1e3",
            workers=3,
            save="label",
            tta=True,
        )
    assert caught.value.code == 1
    assert sorted(options["shard"] for options in commands) == ["1/2", "2/2"]
    assert all(options["skip_existing"] is True and options["tta"] is True for options in commands)
    assert {options["output_dir"] for options in commands} == {str(tmp_path / "1e3")}
    out = capsys.readouterr().out
    assert "the table of the scans" in out
    assert "0 of 2 scans, 00:00 elapsed" in out
    assert out.endswith("1 of 2 shares are finished, 1 failed: share 2 of 2\n")
    assert out.count("killed; see LOG") == 1


def test_an_image_that_is_left_out_is_named_once(
    tmp_path: Path,
    commands: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle, images = copy_with_weights(ACDC, tmp_path), make_images(ACDC, tmp_path / "images")
    (images / "broken.nii").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        segment("infer", bundle, dataset_dir=images, output_dir=tmp_path / "out")
    assert caught.value.code == 3
    told = f"1 scans are segmented, in {tmp_path / 'out'}; 1 left out, see above\n"
    assert capsys.readouterr().out.endswith(told)
    (line,) = caplog.messages
    assert line.startswith(f"Left out: {images / 'broken.nii'}: cannot read the file")


def test_weights_are_found_in_the_bundle_before_anything_runs(
    tmp_path: Path, commands: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, images = copy_with_weights(ACDC, tmp_path), make_images(ACDC, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    options = {"dataset_dir": images, "output_dir": tmp_path / "out"}
    segment("infer", bundle, **options, load_path="models/model.pt")
    assert len(commands) == 1
    for missing in ({"load_path": "models/other.pt"}, {"ckpt_dir": "own"}):
        with pytest.raises(InputError, match=r"\.pt: no such file of trained weights, nor in the"):
            segment("infer", bundle, **options, **missing)
    assert len(commands) == 1


def test_help_names_common_options_of_the_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    cli.make_app("run_cases", segment)("--help", result_action="return_none")
    shown = capsys.readouterr().out
    for word in ("DICOM series", "--save", "--review", "--load_path", "--ckpt_dir"):
        assert word in shown


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"command": "evaluate"}, "command"),
        ({"shard": "1/2"}, "--shard"),
        ({"executor": "slrum"}, "--executor"),
        ({"workers": 0}, "--workers"),
        ({"dataset_dir": Path("absent")}, "absent"),
        ({"bundle": Path("absent")}, "inference.yaml"),
        ({"executor": "slurm", "slurm": {"hours": 3}}, "hours"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    given: dict[str, Any],
    word: str,
    tmp_path: Path,
    commands: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    images = make_images(ACDC, tmp_path / "images")
    bundle = copy_with_weights(ACDC, tmp_path)
    options = {
        "command": "infer",
        "bundle": bundle,
        "dataset_dir": images,
        "output_dir": tmp_path / "out",
    }
    with pytest.raises(InputError, match=word):
        segment(**{**options, **given})
    assert commands == []
