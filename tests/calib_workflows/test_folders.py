"""One run writes to a folder at a time, and no results of another one stay in it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine

from calib_components.errors import InputError
from calib_components.quality import Reference
from calib_tools.commands import probability_maps
from calib_tools.predictions import (
    calibrate,
    calibrate_predictions,
    cases,
    evaluate,
    evaluate_predictions,
    quality,
)
from calib_workflows.folders import OutputFolder
from calib_workflows.inference import ImageFolder
from calib_workflows.pages.quality import describe_scan, write_record
from tests.calib_tools.predictions.made_up import (
    drawn_from,
    save_channels_last,
    save_nifti,
    softmax_of,
)
from tests.calib_workflows.inference.test_images import save
from tests.calib_workflows.training.test_checkpoint import train
from tests.helpers import files, snapshot

BUSY = "another run writes to this folder. Wait for its end, or choose another."
processes = multiprocessing.get_context("fork")


@contextmanager
def another_process(run: Callable[[Callable[[], None]], object], kill: bool = False) -> Iterator:
    """Run a function in another process up to where it calls its argument, and to its end after
    the context.
    """
    is_there, may_go = processes.Event(), processes.Event()

    def pause() -> None:
        is_there.set()
        may_go.wait(60)

    def start() -> None:
        torch.set_num_threads(1)  # those of OpenMP do not survive a fork
        run(pause)

    process = processes.Process(target=start)
    process.start()
    try:
        assert is_there.wait(60)
        yield process
    finally:
        if kill:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        else:
            may_go.set()
        process.join(120)
    assert process.exitcode == (-signal.SIGKILL if kill else 0)


def folder_of(path: Path, shard: str | None = None, **options: Any) -> OutputFolder:
    return OutputFolder(path, **{"run": {"weights": 1}, "shard": shard, **options})


@pytest.mark.parametrize(
    ("first", "second", "weights", "is_refused"),
    [
        (None, None, 1, True),
        ("1/2", None, 1, True),
        (None, "1/2", 1, True),
        ("1/2", "1/2", 1, True),
        ("1/2", "2/3", 1, True),
        ("1/2", "2/2", 2, True),
        ("1/2", "2/2", 1, False),
    ],
)
def test_two_processes_share_a_folder_as_shards_of_one_run_alone(
    first: str | None, second: str | None, weights: int, is_refused: bool, tmp_path: Path
) -> None:
    def run(pause: Callable[[], None]) -> None:
        with folder_of(tmp_path, first).claim(["a", "b"]):
            pause()

    later = folder_of(tmp_path, second, run={"weights": weights}, overwrite=True)
    refused = pytest.raises(InputError, match=BUSY) if is_refused else nullcontext()
    with another_process(run), refused:
        later.claim(["a", "b"]).release()
    later.claim(["a", "b"]).release()  # after its end


def test_a_run_that_was_killed_holds_no_folder_and_can_be_continued(tmp_path: Path) -> None:
    def run(pause: Callable[[], None]) -> None:
        with folder_of(tmp_path).claim(["a", "b"]):
            (tmp_path / "a").touch()
            pause()

    with another_process(run, kill=True):
        pass
    with pytest.raises(InputError, match=r"/a is of a run with weights 1, not 2\. Pass --over"):
        folder_of(tmp_path, run={"weights": 2}).claim(["b"])
    with folder_of(tmp_path).claim(["a", "b"]) as folder:
        assert folder.files() == {"a", "b"}
    assert files(tmp_path) == {"a"}


def test_a_claim_removes_what_is_not_of_the_run_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder_of(out).claim(["a", "sub/b"]).release()  # and ends before it writes
    folder_of(out, run={"weights": 2}).claim(["a", "sub/b", "../beside", "c"]).release()
    folder_of(out, run={"other": 1}).claim(["mine"]).release()
    for name in ("a", "sub/b", "../beside", "c", "mine", "foreign"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    folder_of(out, run={"weights": 2}).claim(["a", "sub/b"]).release()
    assert files(out) == {"a", "sub/b", "mine", "foreign"}
    folder_of(out, overwrite=True).claim(["a"]).release()
    assert files(tmp_path) == {"beside", "out/mine", "out/foreign"}
    with pytest.raises(InputError, match=r"/beside is of no recorded run"):
        folder_of(tmp_path).claim(["beside"])
    assert not (tmp_path / ".run").exists()
    folder_of(out, overwrite=True).claim(["foreign"]).release()
    assert files(out) == {"mine"}
    assert folder_of(out).files() == {"foreign"}


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of predictions, and one of their labels."""
    monkeypatch.setattr(evaluate, "report_folders", lambda *_, **__: None)
    for seed, name in enumerate("ab"):
        of_both = (softmax_of(seed + 5) + softmax_of(seed + 10)) / 2
        save_nifti(tmp_path / "labels" / f"{name}.nii.gz", drawn_from(of_both))
        for number in (1, 2):
            file = tmp_path / f"predictions{number}" / f"{name}.nii.gz"
            save_channels_last(file, softmax_of(seed + 5 * number))
    return tmp_path


def command(saved: Path, name: str, number: int, **options: Any) -> None:
    """Run a command on the first or second folder of predictions, always with the same output."""
    given: dict[str, Any] = {"out": saved / "out", "workers": 1, **options}
    predictions = saved / f"predictions{number}"
    if name == "maps":
        probability_maps(predictions, **given)
    elif name == "calibrate":
        calibrate_predictions(predictions, saved / "labels", apply_to=[predictions], **given)
    else:
        evaluate_predictions(predictions, saved / "labels" if name == "labels" else None, **given)


@pytest.mark.parametrize("name", ["labels", "no labels", "calibrate"])
def test_commands_on_predictions_refuse_a_folder_in_use_and_results_of_others(
    name: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(pause: Callable[[], None]) -> None:
        for module in (cases, quality, calibrate):
            work = module.map_cases

            def paused(*arguments: Any, work: Any = work, **options: Any) -> Any:
                pause()
                return work(*arguments, **options)

            monkeypatch.setattr(module, "map_cases", paused)
        command(saved, name, 1)

    with another_process(run):
        for number in (1, 2):
            with pytest.raises(InputError, match=f"out: {BUSY}"):
                command(saved, name, number, overwrite=True)
    with pytest.raises(InputError, match=r"is of a run with predictions .*predictions1, not "):
        command(saved, name, 2)
    command(saved, name, 1)
    command(saved, name, 2, overwrite=True)
    command(saved, name, 2, out=saved / "alone")
    assert files(saved / "out") == files(saved / "alone")
    for file in ("cases.csv", "quality.csv", "a_probability.nii.gz"):
        if (saved / "alone" / file).exists():
            assert (saved / "out" / file).read_bytes() == (saved / "alone" / file).read_bytes()


@pytest.mark.parametrize("name", ["labels", "no labels", "calibrate", "maps"])
def test_results_stay_until_new_ones_are_whole(name: str, saved: Path) -> None:
    command(saved, name, 1)
    before = snapshot(saved / "out")
    for case in "ab":
        save_channels_last(saved / "predictions2" / f"{case}.nii.gz", softmax_of(0) * np.nan)
    with pytest.raises(InputError, match=r"predictions2.*NaN"):
        command(saved, name, 2, overwrite=True)
    assert snapshot(saved / "out") == before


def infer(folder: Path, weights: int, **options: Any) -> list[str]:
    """Do what a run of inference does, on images of some weights; return the scans of its table."""
    stamp, out = {"weights": weights}, folder / "out"
    images = ImageFolder(folder / f"in{weights}", 1, [], out, "label", stamp=stamp, **options)
    items = images.items()
    images.check()

    def write(_: Engine, item: dict[str, list[str]]) -> None:
        name = Path(item["image"][0]).stem
        save(out / f"{name}_seg.nii.gz")
        record = describe_scan(name, {}, Reference.from_tensor(torch.empty(0), ["s"]))
        write_record({**record, "rows": [{"structure": "s", "expected_dsc": 0.5}]}, out)

    engine = Engine(write)
    images.attach(engine)
    if items:  # as an engine of MONAI
        engine.run(items)
    images.write_table()
    return [*pd.read_csv(out / "quality.csv")["scan"]]


def test_inference_mixes_no_maps_of_other_weights_or_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("in1/a", "in1/b", "in2/b", "in2/c"):
        save(tmp_path / f"{name}.nii")
    assert infer(tmp_path, 1, shard="1/2") == ["a"]

    def run(pause: Callable[[], None]) -> None:
        monkeypatch.setattr(ImageFolder, "write_table", lambda _: pause())
        infer(tmp_path, 1, shard="1/2", overwrite=True)

    with another_process(run):
        with pytest.raises(InputError, match=BUSY):
            infer(tmp_path, 1, skip_existing=True)
        assert infer(tmp_path, 1, shard="2/2") == ["a", "b"]
    for options in ({}, {"skip_existing": True}):
        with pytest.raises(InputError, match="is of a run with weights 1, not 2"):
            infer(tmp_path, 2, **options)
    assert infer(tmp_path, 2, overwrite=True, skip_existing=True) == ["b", "c"]
    assert not (tmp_path / "out/a_seg.nii.gz").exists()
    (tmp_path / "in2/b.nii").unlink()
    assert infer(tmp_path, 2, skip_existing=True) == ["b", "c"]
    assert infer(tmp_path, 2, overwrite=True, skip_existing=True) == ["c"]


def test_second_training_into_an_empty_folder_is_refused_at_once(tmp_path: Path) -> None:
    def run(pause: Callable[[], None]) -> None:
        train(tmp_path, max_epochs=1, stop_after=1, stop=lambda _: pause())

    with another_process(run), pytest.raises(InputError, match=BUSY):
        train(tmp_path, max_epochs=1)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, at_epoch_2=lambda _: 1 / 0)
    train(tmp_path, max_epochs=1)  # again in this process
