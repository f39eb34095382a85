"""One run writes to a folder at a time, and no results of another one stay in it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_components.errors import InputError
from calib_components.folders import OutputFolder
from calib_components.inference import ImageFolder
from calib_components.quality import write_record
from calib_components.tools.evaluate import (
    calibrate,
    calibrate_predictions,
    evaluate,
    evaluate_predictions,
    quality,
)
from tests.calib_components.handlers.test_checkpoint import train
from tests.calib_components.inference.test_images import save
from tests.calib_components.tools.evaluate.made_up import (
    label_of,
    save_channels_last,
    save_nifti,
    softmax_of,
)

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

    process = processes.Process(target=run, args=(pause,))
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
    given: dict[str, Any] = {"kind": "maps", "run": {"weights": 1}, **options}
    return OutputFolder(path, shard=shard, **given)


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found if path.parent.name != ".run"}


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
        with folder_of(tmp_path, first).claim(["a"]):
            pause()

    later = folder_of(tmp_path, second, run={"weights": weights}, overwrite=True)
    with another_process(run):
        if is_refused:
            with pytest.raises(InputError, match=BUSY):
                later.claim(["b"])
        else:
            later.claim(["b"], keep=True).release()
            assert later.files() == ["a", "b"]
    later.claim(["b"]).release()  # after its end


def test_a_run_that_was_killed_holds_no_folder_and_can_be_continued(tmp_path: Path) -> None:
    def run(pause: Callable[[], None]) -> None:
        with folder_of(tmp_path).claim(["a", "b"]):
            (tmp_path / "a").touch()
            pause()

    with another_process(run, kill=True):
        pass
    with pytest.raises(InputError, match=r"holds results of weights 1, not 2\. Pass --overwrite"):
        folder_of(tmp_path, run={"weights": 2}).claim()
    with folder_of(tmp_path).claim(["a", "b"], keep=True) as folder:
        folder.remove_stale()
    assert files(tmp_path) == {"a"}


def test_a_run_that_wrote_nothing_leaves_the_folder_to_any_other(tmp_path: Path) -> None:
    folder_of(tmp_path).claim(["a"]).release()
    folder_of(tmp_path, run={"weights": 2}, alone=True).claim(["a"]).release()


def test_overwrite_leaves_nothing_of_an_earlier_run_and_all_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder_of(out).claim(["a", "sub/b", "../beside"]).release()
    for name in ("a", "sub/b", "../beside", "mine", "c"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    with pytest.raises(InputError, match="out/c exists, and is not of this run"):
        folder_of(out).claim(["c"])
    with pytest.raises(InputError, match="folder is not empty"):
        folder_of(out, kind="other", alone=True).claim(["d"])
    with folder_of(out, run={"weights": 2}, overwrite=True).claim(["a"]) as folder:
        folder.remove_stale()
    assert files(out) == {"a", "mine", "c"}
    assert (tmp_path / "beside").exists()
    with folder_of(out, kind="other", alone=True, overwrite=True).claim(["d"]) as folder:
        folder.remove_stale()
    assert files(out) == {"mine", "c"}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine").touch()
    with pytest.raises(InputError, match="folder is not empty"):
        folder_of(tmp_path / "foreign", alone=True).claim()
    assert [*(tmp_path / "foreign").iterdir()] == [tmp_path / "foreign" / "mine"]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of predictions, and one of their labels."""
    monkeypatch.setattr(evaluate, "report_folders", lambda *_, **__: None)
    for seed, name in enumerate("ab"):
        save_nifti(tmp_path / "labels" / f"{name}.nii.gz", label_of(seed))
        for number in (1, 2):
            file = tmp_path / f"predictions{number}" / f"{name}.nii.gz"
            save_channels_last(file, softmax_of(seed + 5 * number))
    return tmp_path


def command(saved: Path, name: str, number: int, **options: Any) -> None:
    """Run a command on the first or second folder of predictions, always with the same output."""
    given: dict[str, Any] = {"out": saved / "out", "workers": 1, **options}
    predictions = saved / f"predictions{number}"
    if name == "calibrate":
        calibrate_predictions(predictions, saved / "labels", apply_to=predictions, **given)
    else:
        evaluate_predictions(predictions, saved / "labels" if name == "labels" else None, **given)


@pytest.mark.parametrize("name", ["labels", "no labels", "calibrate"])
def test_commands_on_predictions_refuse_a_folder_in_use_and_results_of_others(
    name: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(pause: Callable[[], None]) -> None:
        for module in (evaluate, quality, calibrate):
            work = module.map_cases

            def paused(*arguments: Any, work: Any = work) -> Any:
                pause()
                return work(*arguments)

            monkeypatch.setattr(module, "map_cases", paused)
        command(saved, name, 1)

    with another_process(run):
        for number in (1, 2):
            with pytest.raises(InputError, match=f"out: {BUSY}"):
                command(saved, name, number, overwrite=True)
    with pytest.raises(InputError, match=r"out holds results of predictions .*predictions1, not "):
        command(saved, name, 2)
    command(saved, name, 1)
    command(saved, name, 2, overwrite=True)
    command(saved, name, 2, out=saved / "alone")
    assert files(saved / "out") == files(saved / "alone")
    for file in ("cases.csv", "quality.csv", "a_probability.nii.gz"):
        if (saved / "alone" / file).exists():
            assert (saved / "out" / file).read_bytes() == (saved / "alone" / file).read_bytes()


def infer(folder: Path, weights: int, **options: Any) -> list[str]:
    """Do what a run of inference does, on images of some weights; return the scans of its table."""
    images = ImageFolder(
        folder / f"in{weights}",
        1,
        [],
        folder / "out",
        "label",
        stamp={"weights": weights},
        **options,
    )
    items = images.items()
    images.check(items)
    for item in items:
        name = Path(item["image"][0]).stem
        save(folder / "out" / f"{name}_seg.nii.gz")
        record = {"scan": name, "estimate": 0.5, "reasons": [], "rows": [{"structure": "s"}]}
        write_record({**record, "place": "", "note": "", "picture": ""}, folder / "out")
    images.write_table()
    return [*pd.read_csv(folder / "out" / "quality.csv")["scan"]]


def test_inference_mixes_no_maps_of_other_weights_or_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("in1/a", "in1/b", "in2/b", "in2/c"):
        save(tmp_path / f"{name}.nii")
    assert infer(tmp_path, 1, shard="1/2") == ["a"]

    def run(pause: Callable[[], None]) -> None:
        monkeypatch.setattr(ImageFolder, "write_table", lambda _: pause())
        infer(tmp_path, 1, shard="1/2", skip_existing=True)

    with another_process(run):
        with pytest.raises(InputError, match=BUSY):
            infer(tmp_path, 1, skip_existing=True)
        assert infer(tmp_path, 1, shard="2/2") == ["a", "b"]
    for options in ({}, {"skip_existing": True}):
        with pytest.raises(InputError, match="out holds results of weights 1, not 2"):
            infer(tmp_path, 2, **options)
    assert infer(tmp_path, 2, overwrite=True, skip_existing=True) == ["b", "c"]
    maps = {"b_seg.nii.gz", "c_seg.nii.gz", "quality/b.json", "quality/c.json"}
    assert files(tmp_path / "out") == maps | {"quality.csv", "quality.html"}
    save(tmp_path / "in2/d.nii")
    assert infer(tmp_path, 2, skip_existing=True) == ["b", "c", "d"]
    (tmp_path / "in2/b.nii").unlink()
    assert infer(tmp_path, 2, overwrite=True) == ["c", "d"]


def test_second_training_into_an_empty_folder_is_refused_at_once(tmp_path: Path) -> None:
    def run(pause: Callable[[], None]) -> None:
        train(tmp_path, max_epochs=1, stop_after=1, stop=lambda _: pause())

    with another_process(run), pytest.raises(InputError, match=BUSY):
        train(tmp_path, max_epochs=1)
    assert np.all([(tmp_path / name).exists() for name in ("model.pt", "last.ckpt")])
