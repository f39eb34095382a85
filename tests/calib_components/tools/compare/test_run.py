"""Runs of a comparison: arguments, and made-up cells for all that can go wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fire
import pytest
import submitit
import torch
from tests.calib_components.tools.compare.made_up import make_datalist

from calib_components.errors import InputError
from calib_components.tools import cli
from calib_components.tools.compare import compare_losses
from calib_components.tools.compare.cell_settings import CellSettings, read_settings, write_settings
from calib_components.tools.compare.plan import PlannedCell, plan_cell
from calib_components.tools.compare.processes import ProcessGroup
from calib_components.tools.compare.run import CellError, run_cell, run_cells
from calib_components.tools.compare.settings import choose_settings
from calib_components.tools.compare.steps import Step
from tests.helpers import ACDC

RUN_CELL = "calib_components.tools.compare.run.run_cell"


def options(data: Path, out: Path, *losses: str) -> dict[str, Any]:
    return {
        "bundle": ACDC,
        "dataset_dir": data,
        "out": out,
        "losses": losses,
        "devices": ["cpu"],
        "max_epochs": 2,
        "image_size": [64, 64],
        "num_workers": 0,
    }


def finish(data: Path, out: Path, *losses: str) -> None:
    """Make results of cells that were not run."""
    overrides = {name: options(data, out)[name] for name in ("max_epochs", "image_size", "num_workers")}
    for setting in choose_settings(losses, ACDC):
        cell = plan_cell(setting, 0, ACDC, data, out, out / "work", overrides)
        cell.results.mkdir(parents=True)
        write_settings(cell.settings, cell.results)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["compare_losses", *map(str, arguments)])
    cli.run("compare_losses", compare_losses)


class TestArguments:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"seeds": []}, r"--seeds: expected numbers of at least 0, such as 0,1,2, got \[\]"),
            ({"devices": []}, r"--devices: expected names such as cuda:0,cuda:1, got \[\]"),
            ({"out": Path("results#1")}, r"--out: expected a path without # or ::, with no ~ .*, got results#1"),
            ({"executor": "slurm"}, r"--workers, --devices: expected --executor local, got slurm"),
        ],
    )
    def test_wrong_argument_is_an_error_before_anything_runs(
        self, wrong: dict[str, Any], message: str, data: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=message):
            compare_losses(**{**options(data, tmp_path / "out", "table1"), **wrong})
        assert not (tmp_path / "out").exists()

    def test_paths_and_names_are_taken_as_typed(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(RUN_CELL, lambda cell, device, processes, of_all_folds: None)
        monkeypatch.chdir(tmp_path)
        data.rename("2024_11_25")
        shutil.copy("2024_11_25/datalist.json", "20241125")
        options = {"dataset_dir": "2024_11_25", "datalist": "20241125", "out": "1e3", "losses": "nacl,ce_dice"}
        run_command(monkeypatch, ACDC, *(f"--{name}={value}" for name, value in options.items()))
        plan = json.loads((tmp_path / "1e3" / "plan.json").read_text())
        assert [(entry["method"], entry["seed"]) for entry in plan] == [("nacl", 0), ("ce_dice", 0)]

        read: list[dict[str, Any]] = []
        for command in plan[0]["commands"]:  # as a shell and MONAI's command line read them
            fire.Fire(lambda **options: read.append(options), shlex.split(command)[4:])
        train, evaluate, calibrate, scaled = read
        for name, text in (
            ("dataset_dir", "2024_11_25"),
            ("datalist", "20241125"),
            ("ckpt_dir", "1e3/work/nacl/seed0"),
        ):
            assert train[name] == evaluate[name] == calibrate[name] == scaled[name] == text
        assert calibrate["calibrated_path"] == scaled["load_path"] == "1e3/work/nacl/seed0/model_calibrated.pt"
        assert train["config_file"] == [f"{ACDC}/configs/train.yaml", f"{ACDC}/configs/losses/nacl.yaml"]
        assert (train["seed"], train["resume"]) == (0, True)

    def test_slurm_without_submitit_says_what_to_install(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "submitit", None)
        with pytest.raises(InputError, match=r"pip install -e '\.\[slurm\]'"):
            compare_losses(**{**options(data, tmp_path, "nacl"), "executor": "slurm", "devices": None})

    def test_without_slurm_says_so(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(InputError, match=r'--executor: expected Slurm on this machine .*"srun"'):
            compare_losses(**{**options(data, tmp_path / "out", "nacl"), "executor": "slurm", "devices": None})
        assert not (tmp_path / "out").exists()

    def test_wrong_parameter_of_slurm_is_an_error(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        srun = tmp_path / "bin" / "srun"
        srun.parent.mkdir()
        srun.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(srun.parent))
        of_slurm = {"executor": "slurm", "devices": None, "slurm": {"hours": 3}}
        with pytest.raises(InputError, match=r"^--slurm: expected parameters of submitit, got others: .*hours'\]$"):
            compare_losses(**{**options(data, tmp_path / "out", "nacl"), **of_slurm})
        assert not (tmp_path / "out").exists()

    def test_work_in_the_folder_of_the_results_is_an_error(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--work: expected another folder than --out"):
            compare_losses(**options(data, tmp_path / "out", "nacl"), work=tmp_path / "work" / ".." / "out")
        assert not (tmp_path / "out").exists()

    def test_loss_file_that_changes_more_than_the_loss_is_an_error_before_anything_runs(
        self, data: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(ACDC / "configs", tmp_path / "bundle" / "configs")
        mine = tmp_path / "bundle" / "configs" / "losses" / "mine.yaml"
        mine.write_text("loss:\n  _target_: torch.nn.CrossEntropyLoss\nlearning_rate: 0.01\n")
        message = "mine, seed 0: expected the same learning_rate as nacl, seed 0, got another"
        with pytest.raises(InputError, match=message):
            compare_losses(**{**options(data, tmp_path / "out", "nacl", "mine"), "bundle": tmp_path / "bundle"})
        assert not (tmp_path / "out").exists()


class TestComparison:
    def test_finished_cells_are_skipped(self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        finish(data, tmp_path / "out", "nacl", "ce_dice")
        compare_losses(**options(data, tmp_path / "out", "nacl", "ce_dice"))
        out = capsys.readouterr().out
        assert f"ce_dice, seed 0: finished before, {tmp_path / 'out' / 'ce_dice' / 'seed0'}\n" in out
        assert out.endswith("2 of 2 cells are finished, 0 failed\n")

    def test_a_seed_given_twice_is_one_cell(
        self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        finish(data, tmp_path / "out", "ce_dice")
        compare_losses(**options(data, tmp_path / "out", "ce_dice"), seeds=[0, 0])
        assert "1 of 1 cells are finished, 0 failed" in capsys.readouterr().out

    def test_a_failed_cell_gives_exit_code_1(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(cell: PlannedCell, device: str, processes: ProcessGroup, of_all_folds: bool) -> None:
            if cell.settings.method == "nacl":
                raise CellError("train failed")

        monkeypatch.setattr(RUN_CELL, fail)
        with pytest.raises(SystemExit) as ended:
            compare_losses(**options(data, tmp_path / "out", "nacl", "ce_dice"))
        assert ended.value.code == 1
        assert capsys.readouterr().out.endswith("1 of 2 cells are finished, 1 failed\nnacl, seed 0: train failed\n")

    def test_tuning_is_evaluated_on_the_validation_split(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        splits = []

        def evaluate(cell: PlannedCell, device: str, processes: ProcessGroup, of_all_folds: bool) -> None:
            splits.append(cell.settings.evaluation["split"])

        monkeypatch.setattr(RUN_CELL, evaluate)
        compare_losses(**options(data, tmp_path / "out", "tuning"))
        assert splits == ["validation"] * 20

    @pytest.fixture
    def folds(self, data: Path) -> Path:
        """Prepared data of two folds."""
        for fold, testing in enumerate("xy"):
            (data / f"datalist_fold{fold}.json").write_text(json.dumps(make_datalist("a", "b", testing)))
        return data

    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
        """Runs of cells, whose results are made up; nacl's fold 1 fails as long as there is no folder `mended`."""
        found: list[tuple[str, bool]] = []

        def run(cell: PlannedCell, device: Any = None, processes: Any = None, of_all_folds: bool = False) -> None:
            found.append((cell.name, of_all_folds))
            if cell.name == "nacl, seed 0, fold 1" and not cell.work.with_name("mended").exists():
                raise CellError("train failed")
            cell.results.mkdir(parents=True, exist_ok=True)
            calibration = cell.settings.calibration if of_all_folds else {}
            write_settings(replace(cell.settings, calibration=calibration), cell.results)
            (cell.work).mkdir(parents=True, exist_ok=True)
            for name in ("model.pt", "model_calibrated.pt"):
                (cell.work / name).touch()

        monkeypatch.setattr(RUN_CELL, run)
        return found

    def test_temperature_of_all_folds_comes_once_they_are_finished(
        self, folds: Path, runs: list[tuple[str, bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ce_dice, nacl = ([f"{loss}, seed 0, fold {fold}" for fold in (0, 1)] for loss in ("ce_dice", "nacl"))
        with pytest.raises(SystemExit):
            compare_losses(**options(folds, tmp_path / "out", "nacl", "ce_dice"), folds=2)
        assert runs == [*((name, False) for name in [*nacl, *ce_dice]), *((name, True) for name in ce_dice)]
        assert capsys.readouterr().out.endswith(
            "2 of 4 cells are finished, 2 failed\nnacl, seed 0, fold 1: train failed\n"
            "nacl, seed 0, fold 0: no temperature without nacl, seed 0, fold 1\n"
        )
        plan = json.loads((tmp_path / "out" / "plan.json").read_text())
        assert [(entry["method"], entry["fold"]) for entry in plan] == [
            ("nacl", 0), ("nacl", 1), ("ce_dice", 0), ("ce_dice", 1)
        ]  # fmt: skip

        runs.clear()
        (tmp_path / "out" / "work" / "nacl" / "mended").mkdir(parents=True)
        compare_losses(**options(folds, tmp_path / "out", "nacl", "ce_dice"), folds=2)
        assert runs == [(nacl[1], False), (nacl[0], True), (nacl[1], True)]
        assert capsys.readouterr().out.endswith("4 of 4 cells are finished, 0 failed\n")

        runs.clear()
        compare_losses(**options(folds, tmp_path / "out", "nacl", "ce_dice"), folds=2)
        assert runs == []

    def test_work_may_lie_elsewhere(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RUN_CELL, lambda cell, device, processes, of_all_folds: None)
        compare_losses(**options(data, tmp_path / "out", "nacl"), work=tmp_path / "work")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "commands.sh", "plan.json"]
        assert (tmp_path / "work" / ".gitignore").read_text() == "*\n"
        (tmp_path / "work" / ".gitignore").write_text("of somebody else")
        compare_losses(**options(data, tmp_path / "out", "nacl"), work=tmp_path / "work")
        assert (tmp_path / "work" / ".gitignore").read_text() == "of somebody else"

    def test_commands_of_somebody_else_are_not_replaced(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "commands.sh").write_text("echo mine\n")
        with pytest.raises(
            InputError, match=r"commands.sh: expected commands of compare_losses or nothing, got others"
        ):
            compare_losses(**options(data, tmp_path, "nacl"))
        assert (tmp_path / "commands.sh").read_text() == "echo mine\n"
        assert not (tmp_path / "plan.json").exists()

    def test_cells_take_turns_on_several_devices(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        used = []
        monkeypatch.setattr(RUN_CELL, lambda cell, device, processes, of_all_folds: used.append(device))
        compare_losses(**{**options(data, tmp_path, "nacl", "ce_dice"), "devices": ["cuda:0", "cuda:1"]})
        assert sorted(used) == ["cuda:0", "cuda:1"]

    @pytest.fixture
    def slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Options to run on a Slurm that runs a job when it is submitted."""

        class Executor:
            def __init__(self, folder: Path) -> None:
                assert folder == tmp_path / "out" / "work" / "slurm"

            def update_parameters(self, **parameters: Any) -> None:
                assert parameters == {"time": 60}

            def submit(self, function: Callable[..., None], *arguments: Any, **options: Any) -> Future:
                return done(function(*arguments, **options))

        monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Executor))
        return {"executor": "slurm", "slurm": {"time": 60}, "devices": None}

    def test_slurm_gets_a_job_for_each_unfinished_cell(
        self, data: Path, tmp_path: Path, runs: list[tuple[str, bool]], slurm: dict[str, Any]
    ) -> None:
        finish(data, tmp_path / "out", "nacl_max", "ce_dice")
        compare_losses(**{**options(data, tmp_path / "out", "nacl_max", "ce_dice", "mbls"), **slurm})
        assert runs == [("mbls, seed 0", False)]

    def test_slurm_that_accepts_no_job_is_one_line(
        self, data: Path, tmp_path: Path, slurm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("sbatch: error: invalid partition specified: nosuch")

        monkeypatch.setattr(sys.modules["submitit"].SlurmExecutor, "submit", refuse)
        with pytest.raises(InputError, match=r"^--slurm: expected a job that is accepted, got sbatch: error: invalid"):
            compare_losses(**{**options(data, tmp_path / "out", "nacl"), **slurm})

    def test_gitignore_is_written_into_a_new_folder_only(
        self, data: Path, tmp_path: Path, runs: list[tuple[str, bool]]
    ) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").touch()
        compare_losses(**options(data, tmp_path / "out", "nacl"), work=tmp_path / "mine")
        assert sorted(file.name for file in (tmp_path / "mine").iterdir() if file.is_file()) == ["notes.txt"]
        compare_losses(**options(data, tmp_path / "out2", "nacl"))
        assert (tmp_path / "out2" / "work" / ".gitignore").read_text() == "*\n"

    def test_slurm_gets_a_job_for_each_fold_and_then_one_with_the_temperature_of_all(
        self, folds: Path, tmp_path: Path, runs: list[tuple[str, bool]], slurm: dict[str, Any]
    ) -> None:
        compare_losses(**{**options(folds, tmp_path / "out", "ce_dice"), **slurm}, folds=2)
        assert runs == [(f"ce_dice, seed 0, fold {fold}", of_all) for of_all in (False, True) for fold in (0, 1)]


def made_up(folder: Path, name: str, train: str = "") -> PlannedCell:
    """A cell that trains with a line of Python and evaluates to one file."""
    work = folder / "work" / name
    evaluate = f"import pathlib; p = pathlib.Path({str(work / 'eval')!r}); p.mkdir(); (p / 'cases.csv').touch()"
    settings = CellSettings(name, name, 0, "bundle", "", {}, {"max_epochs": 1}, {}, {}, [], {})
    steps = [
        Step("train", ["python", "-c", train]),
        Step("evaluate", ["python", "-c", evaluate], work / "eval" / "summary.json"),
    ]
    return PlannedCell(name, folder / name, work, steps, settings)


WRITE = "import pathlib; p = pathlib.Path({!r}); p.mkdir(parents=True, exist_ok=True); (p / {!r}).write_text({!r})"


def add_test_set(cell: PlannedCell, name: str, text: str = "made") -> PlannedCell:
    """A cell of `made_up` that is also evaluated on a test set."""
    folder = cell.work / "eval" / f"on_{name}"
    line = WRITE.format(str(folder), "summary.json", text)
    step = Step(f"evaluate_on_{name}", ["python", "-c", line], folder / "summary.json", name)
    evaluate_on = {**cell.settings.evaluate_on, name: {"datalist": name, "patients": {}}}
    settings = replace(cell.settings, evaluate_on=evaluate_on, commands=[*cell.settings.commands, step.shown])
    return replace(cell, steps=[*cell.steps, step], settings=settings)


class TestFurtherTestSets:
    @pytest.fixture
    def finished(self, tmp_path: Path) -> PlannedCell:
        cell = made_up(tmp_path, "cell")
        assert run_cell(cell)
        (cell.work / "model.pt").touch()
        return cell

    def test_is_a_folder_of_the_cell(self, tmp_path: Path) -> None:
        cell = add_test_set(made_up(tmp_path, "cell"), "b")
        assert run_cell(cell)
        assert (cell.results / "on_b" / "summary.json").read_text() == "made"
        assert [*read_settings(cell.results).evaluate_on] == ["b"]
        assert not run_cell(cell)

    def test_finished_cell_is_not_trained_again(self, finished: PlannedCell) -> None:
        before = read_settings(finished.results)
        logs = (finished.work / "train.log").stat(), (finished.work / "evaluate.log").stat()
        cell = add_test_set(finished, "b")
        assert run_cells([cell], lambda cell: done(run_cell(cell))) == {}
        assert ((finished.work / "train.log").stat(), (finished.work / "evaluate.log").stat()) == logs
        assert sorted(path.name for path in cell.results.iterdir()) == [
            "cases.csv", "history.csv", "on_b", "settings.json"
        ]  # fmt: skip
        after = read_settings(cell.results)
        commands = [*before.commands, cell.steps[-1].shown]
        assert after == replace(before, evaluate_on=cell.settings.evaluate_on, commands=commands)
        assert not run_cell(cell)
        assert not run_cell(finished)  # without the option

    def test_killed_before_the_settings_name_it_is_evaluated_again(
        self, finished: PlannedCell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (finished.results / "settings.json").read_bytes()
        write = "calib_components.tools.compare.run.write_settings"

        def killed(settings: CellSettings, folder: Path) -> None:
            if folder == finished.results:
                raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr(write, killed)
            with pytest.raises(KeyboardInterrupt):
                run_cell(add_test_set(finished, "b", "before"))
        assert (finished.results / "settings.json").read_bytes() == before
        assert run_cell(add_test_set(finished, "b", "after"))
        assert (finished.results / "on_b" / "summary.json").read_text() == "after"

    def test_failed_evaluation_leaves_the_cell_as_it_was(self, finished: PlannedCell) -> None:
        cell = add_test_set(finished, "b")
        broken = replace(cell, steps=[*cell.steps[:-1], replace(cell.steps[-1], command=["python", "-c", "1 / 0"])])
        with pytest.raises(CellError, match="evaluate_on_b failed with exit code 1: ZeroDivisionError: division"):
            run_cell(broken)
        assert not (finished.results / "on_b").exists()
        assert read_settings(finished.results).evaluate_on == {}

    def test_is_told_before_it_is_run_and_its_commands_are_kept(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run: list[list[str]] = []
        monkeypatch.setattr(
            RUN_CELL,
            lambda cell, device, processes, of_all_folds: run.append([step.name for step in cell.unfinished_steps()]),
        )
        shutil.copytree(data, tmp_path / "scanner")
        (tmp_path / "scanner" / "datalist.json").write_text(json.dumps(make_datalist("x", "y", "a")))
        out, further = tmp_path / "out", [f"b={tmp_path / 'scanner'}"]
        finish(data, out, "nacl")
        for name in ("model.pt", "model_calibrated.pt"):
            (out / "work" / "nacl" / "seed0").mkdir(parents=True, exist_ok=True)
            (out / "work" / "nacl" / "seed0" / name).touch()
        compare_losses(**options(data, out, "nacl"), evaluate_on=further)
        assert run == [["evaluate_on_b", "evaluate_temperature_on_b"]]
        printed = capsys.readouterr().out
        assert "nacl, seed 0:\npython -m monai.bundle run" in printed
        assert "b: 1 of its patients are called as patients of the training or validation, such as a; if" in printed
        assert printed.count("python -m monai.bundle run") == 2
        assert (out / "commands.sh").read_text().count("python -m monai.bundle run") == 4 + 2


class TestFold:
    """A fold of a cross-validation, whose temperature needs the fits of all."""

    def fold(self, folder: Path) -> PlannedCell:
        cell = made_up(folder, "fold")
        output = cell.work / "eval" / "temperature"
        line = WRITE.format(str(output), "temperature.json", "fitted")
        pool = Step("pool", ["python", "-c", line], output / "temperature.json", needs_all_folds=True)
        calibration = {"split": "validation", "region": "all", "folds": 2}
        settings = replace(cell.settings, fold=0, folds=2, calibration=calibration)
        return replace(cell, steps=[*cell.steps, pool], settings=settings)

    def test_temperature_is_added_to_the_finished_fold(self, tmp_path: Path) -> None:
        cell = self.fold(tmp_path)
        assert run_cells([cell], lambda cell: done(run_cell(cell))) == {}
        (cell.work / "model.pt").touch()
        files = ["cases.csv", "history.csv", "settings.json"]
        assert sorted(path.name for path in cell.results.iterdir()) == files
        first = read_settings(cell.results)
        assert first.calibration == {}
        assert first.commands == [step.shown for step in cell.steps[:2]]
        assert not run_cell(cell)

        assert run_cells([cell], lambda cell: done(run_cell(cell, of_all_folds=True)), of_all_folds=True) == {}
        assert sorted(path.name for path in cell.results.iterdir()) == [*files, "temperature"]
        settings = replace(cell.settings, commands=[step.shown for step in cell.steps])
        assert read_settings(cell.results) == replace(settings, made_with=first.made_with)
        for of_all_folds in (False, True):
            assert not run_cell(cell, of_all_folds=of_all_folds)

    def test_further_test_set_and_temperature_can_be_added_in_either_order(self, tmp_path: Path) -> None:
        for first, second in ((True, False), (False, True)):
            cell = self.fold(tmp_path / str(first))
            assert run_cell(cell)
            for name in ("model.pt", "model_calibrated.pt"):
                (cell.work / name).touch()
            if first:
                assert run_cell(cell, of_all_folds=True)
            folder = cell.work / "eval" / "on_b" / "temperature"
            line = WRITE.format(str(folder), "summary.json", "scaled")
            scaled = Step("s", ["python", "-c", line], folder / "summary.json", "b", needs_all_folds=True)
            further = add_test_set(cell, "b")
            further = replace(further, steps=[*further.steps, scaled])
            # with its temperature, both evaluations on b are made at once
            steps = [step.name for step in further.unfinished_steps()]
            assert steps == (["evaluate_on_b", "s"] if first else ["evaluate_on_b"])
            assert run_cell(further)
            assert run_cell(further, of_all_folds=True) == second
            assert (cell.results / "on_b" / "temperature" / "summary.json").read_text() == "scaled"
            assert read_settings(cell.results).conditions == further.settings.conditions


def done(result: object) -> Future:
    future: Future = Future()
    future.set_result(result)
    return future


def test_cells_without_temperature_are_named_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RUN_CELL, lambda cell, device, processes, of_all_folds: None)
    compare_losses(**options(data, tmp_path / "out", "nacl"))
    assert "No temperature" not in capsys.readouterr().out
    listed = json.loads((data / "datalist.json").read_text())
    (data / "datalist.json").write_text(json.dumps({**listed, "validation": []}))
    compare_losses(**options(data, tmp_path / "without", "nacl", "ce_dice"))
    assert capsys.readouterr().out.count("No temperature is fitted: there are no validation cases") == 1


class TestMadeUpCells:
    def test_job_that_fails_is_reported_in_one_line(self, tmp_path: Path) -> None:
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
        assert failed["worse"] == f"{worse.work}: expected a folder that can be made, got File exists"
        assert good.results.is_dir()

    def test_the_one_line_of_a_run_is_the_reason(self, tmp_path: Path) -> None:
        line = "data/datalist.json: expected a list of prepared cases, got no such file; run prepare_data first"
        cell = made_up(tmp_path, "cell", f"import sys; print('ValueError: seen before'); sys.exit({line!r})")
        with pytest.raises(CellError) as caught:
            run_cell(cell)
        assert str(caught.value) == f"train failed with exit code 1: {line}; see {cell.work / 'train.log'}"

    def test_full_disk_leaves_no_results(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        cell = made_up(tmp_path, "cell")
        monkeypatch.setattr("calib_components.tools.compare.run.write_history", fail)
        with pytest.raises(InputError, match="cell: expected a folder that can be written, got No space left on dev"):
            run_cell(cell)
        assert [path.name for path in tmp_path.iterdir()] == ["work"]

    def test_failed_cell_is_reported_and_the_rest_go_on(self, tmp_path: Path) -> None:
        bad = made_up(tmp_path, "bad", "print('Epoch[1] Metrics'); raise ValueError('no good')")
        good = made_up(tmp_path, "good")
        with ThreadPoolExecutor(1) as pool:
            failed = run_cells([bad, good], lambda cell: pool.submit(run_cell, cell))
        log = tmp_path / "work" / "bad" / "train.log"
        assert failed == {"bad": f"train failed with exit code 1: ValueError: no good; see {log}"}
        assert not bad.results.exists()
        assert sorted(path.name for path in good.results.iterdir()) == ["cases.csv", "history.csv", "settings.json"]
        assert read_settings(good.results).made_with["torch"] == torch.__version__

    def test_cell_that_another_command_started_with_other_settings_is_left_alone(self, tmp_path: Path) -> None:
        cell = made_up(tmp_path, "cell")
        other = replace(cell.settings, training={"max_epochs": 2})
        cell.work.mkdir(parents=True)
        write_settings(other, cell.work)
        with pytest.raises(
            InputError, match=r"work/cell: expected results of the same settings, got others \(max_epochs\)"
        ):
            run_cell(cell)
        assert read_settings(cell.work) == other

    def test_ending_the_group_ends_the_cells(self, tmp_path: Path) -> None:
        processes = ProcessGroup()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(run_cell, made_up(tmp_path, "first", "import time; time.sleep(60)"), None, processes)
            while not (tmp_path / "work" / "first" / "train.log").is_file():
                time.sleep(0.01)
            processes.end()
            later = pool.submit(run_cell, made_up(tmp_path, "later", "import time; time.sleep(60)"), None, processes)
            for future in (first, later):
                with pytest.raises(CellError, match="train failed with exit code -15"):
                    future.result(timeout=30)

    def test_waits_for_a_process_that_still_runs_the_cell(self, tmp_path: Path) -> None:
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

    def test_ending_the_group_ends_the_wait(self, tmp_path: Path) -> None:
        cell, processes = made_up(tmp_path, "cell"), ProcessGroup()
        cell.work.mkdir(parents=True)
        with open(cell.work / "lock", "w") as held, ThreadPoolExecutor(1) as pool:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = pool.submit(run_cell, cell, None, processes)
            processes.end()
            with pytest.raises(CellError, match="ended while waiting for an earlier process"):
                waiting.result(timeout=30)
        assert not cell.results.exists()

    def test_training_whose_parent_was_killed_is_waited_for(self, tmp_path: Path) -> None:
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
