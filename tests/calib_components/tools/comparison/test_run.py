"""Comparison of losses: real cells of the ACDC bundle on phantoms, and made-up ones for what can go wrong."""

from __future__ import annotations

import ast
import csv
import fcntl
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from calib_components.comparison import PUBLISHED
from scripts.compare_losses import (
    PRESETS,
    Cell,
    CellError,
    Children,
    CompareError,
    choose_settings,
    compare,
    plan_cell,
    read_history,
    run_cell,
    run_cells,
)
from scripts.prepare_data import load_facts
from scripts.report import report
from tests.helpers import ROOT

BUNDLE = ROOT / "bundles" / "acdc_mri_nacl_segmentation"


def options(prepared: Path, out: Path, losses: str) -> dict[str, Any]:
    return {
        "bundle": str(BUNDLE),
        "dataset_dir": str(prepared),
        "out": str(out),
        "losses": losses,
        "devices": "cpu",
        "max_epochs": 2,
        "image_size": [64, 64],
        "num_workers": 0,
    }


def command(prepared: Path, out: Path, losses: str, **further: Any) -> list[str]:
    arguments = {**options(prepared, out, losses), **further}
    return [sys.executable, "scripts/compare_losses.py", *(f"--{name}={value}" for name, value in arguments.items())]


@pytest.fixture(scope="module")
def compared(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two losses, side by side."""
    out = tmp_path_factory.mktemp("compared")
    done = subprocess.run(
        command(prepared, out, "nacl_max,ce_dice", workers=2), cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cells are finished, 0 failed" in done.stdout
    return out


def test_keeps_small_files_as_results_and_the_rest_apart(compared: Path) -> None:
    assert sorted(path.name for path in compared.iterdir()) == [
        "ce_dice",
        "commands.sh",
        "nacl_max",
        "plan.json",
        "work",
    ]
    for method in ("ce_dice", "nacl_max"):
        assert sorted(path.name for path in (compared / method / "seed0").iterdir()) == [
            "calibration.json", "cases", "cases.csv", "history.csv", "logits.json", "reliability.png",
            "reliability_classes.png", "settings.json", "summary.json",
        ]  # fmt: skip
        assert {"last.pt", "model.pt"} <= {path.name for path in (compared / "work" / method / "seed0").iterdir()}
        history = (compared / method / "seed0" / "history.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in history] == ["epoch", "1", "2"]
    assert (compared / "work" / ".gitignore").read_text() == "*\n"


def test_commands_are_plain_runs_of_the_bundle(compared: Path, prepared: Path) -> None:
    lines = (compared / "commands.sh").read_text().splitlines()
    assert lines[2] == "# nacl_max, seed 0"
    train, evaluate = (shlex.split(line) for line in lines[3:5])
    assert train[:4] == evaluate[:4] == ["python", "-m", "monai.bundle", "run"]
    assert {"--loss::prior=max", "--seed=0", "--resume=True", "--max_epochs=2", "--image_size=[64, 64]"} <= set(train)
    base = f"'{BUNDLE}/configs/train.yaml','{prepared}/facts.yaml'"
    assert f"--config_file=[{base},'{BUNDLE}/configs/losses/nacl.yaml']" in train
    assert f"--config_file=[{base},'{BUNDLE}/configs/evaluate.yaml']" in evaluate
    log = (compared / "work" / "nacl_max" / "seed0" / "train.log").read_text()
    assert "> loss::prior: 'max'" in log


def test_report_has_the_means_of_the_evaluation(compared: Path, tmp_path: Path) -> None:
    report(str(compared), str(tmp_path), reference="ce_dice")
    assert "NACL max" in (tmp_path / "index.html").read_text()
    with open(tmp_path / "means.csv", newline="") as file:
        for row in csv.DictReader(file):
            summary = json.loads((compared / row["method"] / "seed0" / "summary.json").read_text())
            assert float(row["mean"]) == pytest.approx(summary[row["measure"]]["mean"], rel=1e-12)


def test_facts_of_the_data_go_before_those_of_the_bundle(tmp_path: Path) -> None:
    data = tmp_path / "Bob's data"
    data.mkdir()
    (data / "datalist.json").write_text('{"testing": [{"case": "a"}]}')
    (data / "facts.yaml").write_text(yaml.safe_dump(load_facts("flare"), sort_keys=False))
    cell = plan_cell(PRESETS["table1"][0], 0, BUNDLE, data, tmp_path, tmp_path, {})
    assert cell.settings["crop_size"] == [192, 192]
    assert list(cell.settings["evaluate"]["structures"]) == ["liver", "kidneys", "spleen", "pancreas"]
    config_file = shlex.split(cell.commands[1])[4].removeprefix("--config_file=")
    assert ast.literal_eval(config_file) == [
        f"{BUNDLE}/configs/train.yaml",
        f"{data}/facts.yaml",
        f"{BUNDLE}/configs/evaluate.yaml",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected ids and their values, .* got None"),
        ("- 3\n", r"expected ids and their values, .* got \[3\]"),
        ("a: [", "cannot be read: .*expected the node content"),
    ],
)
def test_broken_facts_are_an_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "facts.yaml").write_text(content)
    with pytest.raises(CompareError, match=f"facts.yaml: {message}"):
        plan_cell(PRESETS["table1"][0], 0, BUNDLE, tmp_path, tmp_path, tmp_path, {})


def test_finished_cells_are_skipped(compared: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (compared / "ce_dice" / "seed0" / "settings.json").stat().st_mtime_ns
    with pytest.raises(SystemExit) as done:
        compare(**options(prepared, compared, "nacl_max,ce_dice"))
    assert done.value.code == 0
    assert "ce_dice, seed 0: finished before" in capsys.readouterr().out
    assert (compared / "ce_dice" / "seed0" / "settings.json").stat().st_mtime_ns == before


def test_cell_made_with_other_settings_is_an_error(compared: Path, prepared: Path) -> None:
    for changed in ({"max_epochs": 3}, {"split": "validation"}):
        with pytest.raises(CompareError, match=rf"ce_dice/seed0: made with other settings \({next(iter(changed))}\)"):
            compare(**{**options(prepared, compared, "ce_dice"), **changed})


def test_killed_comparison_goes_on_to_the_same_results(compared: Path, prepared: Path, tmp_path: Path) -> None:
    again = command(prepared, tmp_path, "ce_dice")
    work = tmp_path / "work" / "ce_dice" / "seed0"
    killed = subprocess.Popen(again, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (work / "last.pt").is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGTERM)
    _, errors = killed.communicate()
    assert killed.returncode == 1
    assert "compare_losses: interrupted; the same command goes on from here" in errors
    assert not (tmp_path / "ce_dice" / "seed0").exists()
    assert torch.load(work / "last.pt", weights_only=True)["epoch"] == 1

    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    assert "Resuming after epoch 1" in (work / "train.log").read_text()
    whole, resumed = (folder / "ce_dice" / "seed0" for folder in (compared, tmp_path))
    for path in sorted(whole.rglob("*.*")):
        if path.name not in ("history.csv", "settings.json"):  # paths
            assert (resumed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
    of_whole, of_resumed = (list(csv.DictReader((folder / "history.csv").open())) for folder in (whole, resumed))
    assert [{**epoch, "seconds": ""} for epoch in of_resumed] == [{**epoch, "seconds": ""} for epoch in of_whole]


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_epoch": 3}, r"--max_epoch: no such id .*; did you mean --max_epochs\?"),
        ({"train::trainer::epochs": 3}, r"--train::trainer::epochs: no such id"),
        ({"seed": 1}, r"--seed: set by compare_losses"),
        ({"loss::prior": "max"}, r"--loss::prior: losses are compared"),
        ({"losses": "nalc"}, r"losses: 'nalc' is none of table1, "),
        ({"split": "holdout"}, r"no cases in split 'holdout'"),
        ({"dataset_dir": "/nowhere"}, r"/nowhere/datalist.json: no such file"),
        ({"bundle": "/nowhere"}, r"/nowhere: no bundle"),
        ({"executor": "pbs"}, r"executor: expected local or slurm, got 'pbs'"),
        ({"seeds": "0-2"}, r"seeds: expected numbers such as 0,1,2, got '0-2'"),
        ({"seeds": 0.5}, r"seeds: expected numbers such as 0,1,2, got 0.5"),
        ({"seeds": True}, r"seeds: expected numbers such as 0,1,2, got True"),
        ({"seeds": [[0, 1]]}, r"seeds: expected numbers such as 0,1,2, got \[\[0, 1\]\]"),
        ({"losses": 5}, r"losses: expected names such as table1 or nacl,ce_dice, got 5"),
        ({"losses": []}, r"losses: expected names such as table1 or nacl,ce_dice, got \[\]"),
        ({"devices": []}, r"devices: expected names such as cuda:0,cuda:1, got \[\]"),
        ({"crop_size": 144}, r"--image_size, --crop_size: expected two numbers such as \[144,144\], got .* and 144"),
        ({"max_epochs": "zero"}, r"--max_epochs: expected a number of at least 1, got 'zero'"),
        ({"max_epochs": 0}, r"--max_epochs: expected a number of at least 1, got 0"),
        ({"image_size": 64}, r"--image_size, --crop_size: expected two numbers such as \[144,144\], got 64"),
        ({"workers": -1}, r"workers: expected a number of at least 1, got -1"),
        ({"workers": 0}, r"workers: expected a number of at least 1, got 0"),
        ({"devices": 0}, r"devices: expected names such as cuda:0,cuda:1, got 0"),
        ({"slurm": {"time": 60}}, r"--slurm needs --executor slurm"),
        ({"executor": "slurm"}, r"--workers and --devices are for this machine"),  # devices is among the options
    ],
)
def test_wrong_argument_is_an_error_before_anything_runs(
    wrong: dict[str, Any], message: str, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(CompareError, match=message):
        compare(**{**options(prepared, tmp_path / "out", "table1"), **wrong})
    assert not (tmp_path / "out").exists()


def test_slurm_without_submitit_says_what_to_install(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(CompareError, match=r"pip install 'calib-components\[slurm\]'"):
        compare(**{**options(prepared, tmp_path, "nacl"), "executor": "slurm", "devices": None})


def test_work_in_the_folder_of_the_results_is_an_error(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="--work and --out are the same folder"):
        compare(**{**options(prepared, tmp_path / "out", "nacl"), "work": str(tmp_path / "work" / ".." / "out")})
    assert not (tmp_path / "out").exists()


def test_a_seed_given_twice_is_one_cell(compared: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        compare(**{**options(prepared, compared, "ce_dice"), "seeds": [0, 0]})
    assert done.value.code == 0
    assert "1 of 1 cells are finished, 0 failed" in capsys.readouterr().out


def test_from_the_bundles_own_folder_it_has_its_name(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BUNDLE)
    places = (prepared, Path("out"), Path("work"))
    assert plan_cell(PRESETS["table1"][0], 0, Path(), *places, {}).settings["bundle"] == BUNDLE.name


def test_without_slurm_says_so(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompareError, match='executor slurm: Could not detect "srun"'):
        compare(**{**options(prepared, tmp_path / "out", "nacl"), "executor": "slurm", "devices": None})
    assert not (tmp_path / "out").exists()


def test_wrong_parameter_of_slurm_is_an_error(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(srun.parent))
    of_slurm = {"executor": "slurm", "devices": None, "slurm": {"hours": 3}}
    with pytest.raises(CompareError, match=r"executor slurm: .*hours"):
        compare(**{**options(prepared, tmp_path / "out", "nacl"), **of_slurm})
    assert not (tmp_path / "out").exists()


def test_work_may_lie_elsewhere(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.compare_losses.run_cell", lambda cell, device, children: None)
    with pytest.raises(SystemExit) as done:
        compare(**{**options(prepared, tmp_path / "out", "nacl"), "work": str(tmp_path / "work")})
    assert done.value.code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["commands.sh", "plan.json"]


def test_slurm_gets_a_job_for_each_unfinished_cell(
    compared: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Executor:
        """Runs jobs here, in the place of Slurm."""

        def __init__(self, folder: Path) -> None:
            assert folder == compared / "work" / "slurm"

        def update_parameters(self, **parameters: Any) -> None:
            assert parameters == {"time": 60}

        def submit(self, function: Callable[..., bool], cell: Cell) -> Future:
            submitted.append(cell.name)
            job: Future = Future()
            job.set_result(False)
            return job

    submitted: list[str] = []
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Executor))
    of_slurm = {"executor": "slurm", "slurm": {"time": 60}, "devices": None, "out": str(compared)}
    with pytest.raises(SystemExit) as done:
        compare(**{**options(prepared, compared, "nacl_max,ce_dice,mbls"), **of_slurm})
    assert done.value.code == 0
    assert submitted == ["mbls, seed 0"]


def test_job_that_fails_is_reported_in_one_line(tmp_path: Path) -> None:
    """In jobs that submitit really starts, here without Slurm."""
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    bad, good = made_up(tmp_path, "bad", "raise ValueError('no good')"), made_up(tmp_path, "good")
    worse = made_up(tmp_path, "worse")
    worse.work.parent.mkdir()
    worse.work.touch()  # a file where its folder should be
    failed = run_cells([bad, worse, good], lambda cell: executor.submit(run_cell, cell))
    log = tmp_path / "work" / "bad" / "train.log"
    assert failed.keys() == {"bad", "worse"}
    assert failed["bad"] == f"train failed with exit code 1: ValueError: no good; see {log}"
    assert failed["worse"] == f"FileExistsError: [Errno 17] File exists: '{worse.work}'"
    assert good.results.is_dir()


def test_devices_are_several_with_commas(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr("scripts.compare_losses.run_cell", lambda cell, device, children: used.append(device))
    with pytest.raises(SystemExit):
        compare(**{**options(prepared, tmp_path, "nacl,ce_dice"), "devices": "cuda:0,cuda:1"})
    assert sorted(used) == ["cuda:0", "cuda:1"]


def test_loss_file_that_changes_more_than_the_loss_is_an_error_before_anything_runs(
    prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")
    mine = tmp_path / "bundle" / "configs" / "losses" / "mine.yaml"
    mine.write_text("loss:\n  _target_: torch.nn.CrossEntropyLoss\nlearning_rate: 0.01\n")
    message = "mine, seed 0: not comparable with nacl, seed 0: learning_rate differs"
    with pytest.raises(CompareError, match=message):
        compare(**{**options(prepared, tmp_path / "out", "nacl,mine"), "bundle": str(tmp_path / "bundle")})
    assert not (tmp_path / "out").exists()


def test_presets_are_the_papers_tables() -> None:
    names = {preset: [setting.name for setting in choose_settings([preset], BUNDLE)] for preset in PRESETS}
    assert {preset: len(found) for preset, found in names.items()} == {
        "table1": 7, "table2": 4, "table3": 6, "tuning": 7 + 2 * 5
    }  # fmt: skip
    assert set(names["table1"]) == set(PUBLISHED["flare"]) == set(PUBLISHED["brats"])
    assert {*names["table1"], *names["table2"], *names["table3"]} == set(PUBLISHED["acdc"])
    for preset in PRESETS.values():
        for setting in preset:
            assert (BUNDLE / "configs" / "losses" / f"{setting.loss}.yaml").is_file()


def test_a_file_of_the_bundle_is_a_loss_too(tmp_path: Path) -> None:
    (tmp_path / "configs" / "losses").mkdir(parents=True)
    (tmp_path / "configs" / "losses" / "mine.yaml").touch()
    assert [setting.name for setting in choose_settings(["mine", "table2", "nacl"], tmp_path)] == [
        "mine", "nacl", "nacl_softmax", "nacl_l2", "nacl_5x5"
    ]  # fmt: skip


# --- made-up cells ------------------------------------------------------------------------------------------------


def made_up(folder: Path, name: str, train: str = "") -> Cell:
    """A cell that trains with a line of Python and evaluates to one file."""
    work = folder / "work" / name
    evaluate = f"import pathlib; p = pathlib.Path({str(work / 'eval')!r}); p.mkdir(); (p / 'cases.csv').touch()"
    settings = {"datalist": "", "train": {"max_epochs": 1}, "evaluate": {}}
    return Cell(name, folder / name, work, ["python", "-c", train], ["python", "-c", evaluate], settings)


def test_failed_cell_is_reported_and_the_rest_go_on(tmp_path: Path) -> None:
    bad = made_up(tmp_path, "bad", "print('Epoch[1] Metrics'); raise ValueError('no good')")
    good = made_up(tmp_path, "good")
    with ThreadPoolExecutor(1) as pool:
        failed = run_cells([bad, good], lambda cell: pool.submit(run_cell, cell))
    log = tmp_path / "work" / "bad" / "train.log"
    assert failed == {"bad": f"train failed with exit code 1: ValueError: no good; see {log}"}
    assert not bad.results.exists()
    assert sorted(path.name for path in good.results.iterdir()) == ["cases.csv", "history.csv", "settings.json"]
    assert json.loads((good.results / "settings.json").read_text())["made_with"]["torch"] == torch.__version__


def test_cell_that_another_command_began_with_other_settings_is_left_alone(tmp_path: Path) -> None:
    cell = made_up(tmp_path, "cell")
    other = {**cell.settings, "train": {"max_epochs": 2}}
    cell.work.mkdir(parents=True)
    (cell.work / "settings.json").write_text(json.dumps(other))
    with pytest.raises(CompareError, match=r"work/cell: made with other settings \(max_epochs\)"):
        run_cell(cell)
    assert json.loads((cell.work / "settings.json").read_text()) == other


def test_ending_children_ends_the_cells(tmp_path: Path) -> None:
    children = Children()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run_cell, made_up(tmp_path, "first", "import time; time.sleep(60)"), None, children)
        while not (tmp_path / "work" / "first" / "train.log").is_file():
            time.sleep(0.01)
        children.end()
        later = pool.submit(run_cell, made_up(tmp_path, "later", "import time; time.sleep(60)"), None, children)
        for future in (first, later):
            with pytest.raises(CellError, match="train failed with exit code -15"):
                future.result(timeout=30)


def test_waits_for_a_process_that_is_still_at_the_cell(tmp_path: Path) -> None:
    cell = made_up(tmp_path, "cell")
    cell.work.mkdir(parents=True)
    with open(cell.work / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=run_cell, args=(cell,))
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive()
        assert not cell.results.exists()
    thread.join(timeout=30)
    assert cell.results.is_dir()


def test_ending_children_ends_the_wait(tmp_path: Path) -> None:
    cell, children = made_up(tmp_path, "cell"), Children()
    cell.work.mkdir(parents=True)
    with open(cell.work / "lock", "w") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = pool.submit(run_cell, cell, None, children)
        children.end()
        with pytest.raises(CellError, match="ended while waiting for an earlier process"):
            waiting.result(timeout=30)
    assert not cell.results.exists()


def test_training_whose_parent_was_killed_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write"
    cell = made_up(tmp_path, "cell", f"import time; {write}('begun '); time.sleep(2); {write}('done ')")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(run_cell, cell)
        while not log.is_file():
            time.sleep(0.01)
        (parent,) = pool._processes.values()
        parent.kill()
    run_cell(cell)
    assert log.read_text() == "begun done begun done "
    assert cell.results.is_dir()


def test_history_has_the_latest_word_on_every_epoch(tmp_path: Path) -> None:
    for stamp, value, epochs in ((1, 0.25, (1, 2)), (2, 0.5, (2, 3))):  # resumed after epoch 1
        with SummaryWriter(tmp_path / str(stamp)) as writer:
            for epoch in epochs:
                writer.add_scalar("train_loss", value, epoch)
        (file,) = (tmp_path / str(stamp)).iterdir()
        file.rename(tmp_path / f"events.out.tfevents.{stamp}.host")
    header, *rows = read_history(tmp_path)
    assert header == ["epoch", "seconds", "train_loss"]
    assert [(epoch, value) for epoch, _, value in rows] == [(1, 0.25), (2, 0.5), (3, 0.5)]
