"""Inference and evaluation case by case: their results are those of a plain run, also after failures and in jobs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import submitit

from calib_components.errors import InputError
from calib_components.handlers.evaluation import EvaluationWriter
from calib_components.tools.locks import LOCK, try_lock
from calib_components.tools.many_cases import bundle_run, evaluate, infer
from calib_components.tools.many_cases.bundle_run import WORK
from tests.bad_input.harness import run_as_typed, snapshot
from tests.helpers import ACDC, BRATS, make_brats, make_prepared, make_weights, run_bundle, save

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(ACDC, tmp_path_factory.mktemp("weights"))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for depth, name in enumerate(NAMES, 2):
        save(tmp_path / "scans" / f"{name}.nii.gz", rng.integers(0, 900, (20, 24, depth)).astype(np.int16))
    return tmp_path / "scans"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return make_prepared(ACDC, tmp_path / "prepared", len(NAMES))


@pytest.fixture
def on_slurm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of an array of two jobs, which submitit starts on this machine instead."""
    monkeypatch.setattr(submitit, "SlurmExecutor", submitit.LocalExecutor)
    return {"executor": "slurm", "jobs": 2, "slurm": {"timeout_min": 10}}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that this process runs the network on."""
    names: list[str] = []
    run_on = bundle_run.BundleRun.run_on

    def note(self: Any, items: Any, config: Any) -> None:
        names.extend(Path(item["image"] if isinstance(item["image"], str) else item["image"][0]).name for item in items)
        run_on(self, items, config)

    monkeypatch.setattr(bundle_run.BundleRun, "run_on", note)
    return names


def files(folder: Path) -> dict[str, str]:
    """Hashes of the results in a folder."""
    return {name: content for name, content in snapshot(folder).items() if not name.startswith(WORK)}


def plainly_inferred(scans: Path, weights: Path, out: Path, **options: Any) -> dict[str, str]:
    run_bundle(ACDC, "inference.yaml", dataset_dir=str(scans), output_dir=str(out), ckpt_dir=str(weights), **options)
    return files(out)


def break_scan(file: Path) -> None:
    """Give an image a value that is not finite, which its header does not show."""
    values = np.ones((20, 24, 4), np.float32)
    values[3, 3, 1] = np.nan
    save(file, values)


class TestInference:
    @pytest.fixture
    def options(self, scans: Path, weights: Path, tmp_path: Path) -> dict[str, Any]:
        places = {"dataset_dir": scans, "output_dir": tmp_path / "out", "ckpt_dir": str(weights)}
        return {"bundle": ACDC, **places, "device": "cpu"}

    def test_maps_are_those_of_a_plain_run(self, options: dict[str, Any], weights: Path, tmp_path: Path) -> None:
        infer(**options, tta=True, bits=8)
        expected = plainly_inferred(options["dataset_dir"], weights, tmp_path / "plain", tta=True, bits=8)
        assert len(expected) == 9
        assert files(options["output_dir"]) == expected

    def test_a_failed_case_in_an_array_is_named_and_the_same_command_goes_on(
        self,
        options: dict[str, Any],
        weights: Path,
        tmp_path: Path,
        on_slurm: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        expected = plainly_inferred(options["dataset_dir"], weights, tmp_path / "plain")
        image = options["dataset_dir"] / "a.nii.gz"
        good = image.read_bytes()
        break_scan(image)
        with pytest.raises(SystemExit) as ended:
            infer(**options, **on_slurm)
        assert ended.value.code == 1
        assert capsys.readouterr().out.splitlines()[-2:] == [
            "2 of 3 cases are finished, 1 failed",
            f"a: {image}: expected finite values, got 1 that are NaN or infinite",
        ]
        assert files(options["output_dir"]) == {
            name: content for name, content in expected.items() if not name.startswith("a_")
        }
        image.write_bytes(good)
        infer(**options)
        printed = capsys.readouterr().out.splitlines()  # and what the plain run has made MONAI log
        assert "2 of 3 cases finished before" in printed
        assert printed[-1] == "3 of 3 cases are finished, 0 failed"
        assert files(options["output_dir"]) == expected

    def test_a_broken_case_in_the_middle_does_not_end_the_others(
        self, options: dict[str, Any], tried: list[str]
    ) -> None:
        break_scan(options["dataset_dir"] / "b.nii.gz")
        with pytest.raises(SystemExit):
            infer(**options, save="label")
        assert sorted(files(options["output_dir"])) == ["a_seg.nii.gz", "c_seg.nii.gz"]
        tried.clear()
        with pytest.raises(SystemExit):
            infer(**options, save="label")
        assert tried == ["b.nii.gz"]

    def test_an_error_without_a_line_of_its_own_is_told_too(
        self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any) -> None:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 3 GiB")

        monkeypatch.setattr(bundle_run.BundleRun, "run_on", fail)
        with pytest.raises(SystemExit):
            infer(**options)
        assert "\na: RuntimeError: CUDA out of memory.\\nTried to allocate 3 GiB\n" in capsys.readouterr().out

    def test_only_cases_that_lack_a_map_are_run_again_and_those_tried_before_come_last(
        self, options: dict[str, Any], tried: list[str]
    ) -> None:
        infer(**options)
        expected = files(options["output_dir"])
        (options["output_dir"] / "a_probability.nii.gz").unlink()
        (options["output_dir"] / "c_seg.nii.gz").unlink()
        tried.clear()
        infer(**options)
        assert tried == ["a.nii.gz", "c.nii.gz"]
        assert files(options["output_dir"]) == expected

        shutil.copy(options["dataset_dir"] / "a.nii.gz", options["dataset_dir"] / "d.nii.gz")
        (options["output_dir"] / "a_seg.nii.gz").unlink()
        tried.clear()
        infer(**options, batch_size=1)  # which changes nothing
        assert tried == ["d.nii.gz", "a.nii.gz"]

    def test_an_image_that_was_replaced_is_run_again(
        self,
        options: dict[str, Any],
        weights: Path,
        tmp_path: Path,
        tried: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        infer(**options)
        tried.clear()
        save(options["dataset_dir"] / "b.nii.gz", np.random.default_rng(1).random((24, 20, 3)).astype(np.float32))
        infer(**options)
        assert tried == ["b.nii.gz"]
        assert "1 of 3 cases run again, since their files have changed\n" in capsys.readouterr().out
        assert files(options["output_dir"]) == plainly_inferred(options["dataset_dir"], weights, tmp_path / "plain")

    def test_no_map_of_an_image_that_was_replaced_stays(
        self, options: dict[str, Any], weights: Path, tmp_path: Path
    ) -> None:
        """Also if the next run saves other maps."""
        infer(**options)
        save(options["dataset_dir"] / "b.nii.gz", np.random.default_rng(1).random((24, 20, 3)).astype(np.float32))
        infer(**options, save="label")
        assert {name for name in files(options["output_dir"]) if name.startswith("b_")} == {"b_seg.nii.gz"}
        infer(**options)
        assert files(options["output_dir"]) == plainly_inferred(options["dataset_dir"], weights, tmp_path / "plain")

    def test_maps_of_a_run_that_was_killed_are_removed(self, options: dict[str, Any]) -> None:
        infer(**options)
        for lock in options["output_dir"].rglob("locks/*"):
            lock.write_text("")  # as it is while a case runs
        (options["output_dir"] / "b_seg.nii.gz").unlink()
        infer(**options, save="label")
        assert {name for name in files(options["output_dir"]) if name.startswith("b_")} == {"b_seg.nii.gz"}

    def test_maps_of_an_image_that_was_replaced_by_a_bad_one_are_removed(
        self, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        infer(**options)
        save(options["dataset_dir"] / "b.nii.gz", np.full((24, 20, 3), np.nan, np.float32))
        with pytest.raises(SystemExit):
            infer(**options)
        assert "b.nii.gz: expected finite values, got" in capsys.readouterr().out
        assert {name.split("_")[0] for name in files(options["output_dir"])} == {"a", "c"}

    def test_maps_that_were_corrected_by_hand_stay(
        self, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        infer(**options)
        corrected = options["output_dir"] / "b_seg.nii.gz"
        save(corrected, np.ones((24, 20, 3), np.uint8))
        before = {file: file.read_bytes() for file in options["output_dir"].glob("*.nii.gz")}
        os.utime(options["dataset_dir"] / "b.nii.gz")
        with pytest.raises(SystemExit):
            infer(**options)
        assert f"b: {corrected}: expected no file or a map of an earlier run, got another" in capsys.readouterr().out
        assert {file: file.read_bytes() for file in options["output_dir"].glob("*.nii.gz")} == before

    def test_maps_of_another_kind_and_unknown_settings_are_refused(self, options: dict[str, Any]) -> None:
        options["output_dir"].mkdir(parents=True)
        (options["output_dir"] / "a_probability.nii.gz").touch()
        with pytest.raises(InputError, match=r"^--output_dir: expected results of this command or none, got some of"):
            infer(**options, save="label")

    def test_a_job_that_finds_other_weights_does_not_begin(self, options: dict[str, Any], weights: Path) -> None:
        infer(**options)
        places = {"ckpt_dir": str(weights), "output_dir": str(options["output_dir"]), "bundle_root": str(ACDC)}
        config = (ACDC / "configs" / "inference.yaml",)
        run = bundle_run.Inference(config, json.dumps(places), options["output_dir"], "0" * 64, ("label",))
        with pytest.raises(
            InputError, match=r"model\.pt: expected the weights that the command began with, got others"
        ):
            run.configure(device="cpu")

    def test_an_image_of_several_files_is_one_case(self, tmp_path: Path) -> None:
        weights = make_weights(BRATS, tmp_path / "weights")
        for name in ("x", "y"):
            make_brats(tmp_path / "scans", name)
        out = tmp_path / "out"
        infer(BRATS, dataset_dir=tmp_path / "scans", output_dir=out, ckpt_dir=str(weights), device="cpu", save="label")
        run_bundle(
            BRATS,
            "inference.yaml",
            dataset_dir=str(tmp_path / "scans"),
            output_dir=str(tmp_path / "plain"),
            ckpt_dir=str(weights),
            save="label",
        )
        assert files(out) == files(tmp_path / "plain")
        assert len(files(out)) == 2

    def test_results_of_other_settings_are_refused(
        self, options: dict[str, Any], weights: Path, tmp_path: Path
    ) -> None:
        infer(**options)
        before = files(options["output_dir"])
        with pytest.raises(
            InputError,
            match=r"out: expected results of the same settings, got others \(tta \(false, now true\)\); delete it to",
        ):
            infer(**options, tta=True)
        others = make_weights(ACDC, tmp_path / "others")
        (others / "model.pt").write_bytes((weights / "model.pt").read_bytes() + b"x")
        with pytest.raises(InputError, match=r"expected results of the same settings, got others \(weights \("):
            infer(**{**options, "ckpt_dir": str(others)})
        assert files(options["output_dir"]) == before

    def test_results_of_unknown_settings_are_refused(
        self, options: dict[str, Any], weights: Path, tmp_path: Path
    ) -> None:
        before = plainly_inferred(options["dataset_dir"], weights, options["output_dir"])
        with pytest.raises(InputError, match=r"^--output_dir: expected results of this command or none, got some of"):
            infer(**options)
        assert snapshot(options["output_dir"]) == before

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["--sve", "label"], "sve: expected an id that the configuration uses, got one without effect; did "),
            (["--save", "label,labels"], "save: expected some of label, uncertainty, probability, got ['label', 'l"),
            (["--save", "3"], "save: expected some of label, uncertainty, probability, got 3"),
            (["--device", "cuda:99"], "device: expected one that PyTorch finds, got 'cuda:99': "),
            (["--ckpt_dir", "absent"], "absent/model.pt: expected trained weights, got no such file; train first"),
            (["--num_workers", "2"], "--num_workers: expected none, since cases come one by one; --workers is for"),
            (["--workers", "two"], "--workers: expected a whole number, got 'two'"),
            (["--slurm", "{time: 3}"], "--slurm: expected --executor slurm, got local"),
            (["--load_path", "{scans}/a.nii.gz"], "{scans}/a.nii.gz: expected trained weights, got another kind of"),
            (["--dataset_dir", "absent"], "dataset_dir: expected a NIfTI file or a folder, got absent, which is "),
            (["--output_dir", "{scans}"], "output_dir: expected a folder without images, whose labels the results"),
            (["--dataset_dir", "$HOME"], "--dataset_dir: expected a path that does not start with $, @ or %, got $H"),
            (["--executor", "slurm"], "--executor: expected Slurm on this machine for slurm, got none: Could not"),
        ],
    )  # fmt: skip
    def test_bad_input_is_one_line_before_anything_runs(
        self, arguments: list[str], line: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")
        given = {f"--{name}": str(value) for name, value in options.items() if name != "bundle"}
        name, value = (text.replace("{scans}", str(options["dataset_dir"])) for text in arguments)
        typed = [word for option in {**given, name: value}.items() for word in option]
        before = snapshot(options["dataset_dir"])
        outcome = run_as_typed("run_cases", {"infer": infer}, ["infer", ACDC, *typed])
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.splitlines()[-1].startswith(
            "run_cases: " + line.replace("{scans}", str(options["dataset_dir"]))
        )
        assert snapshot(options["dataset_dir"]) == before
        assert not options["output_dir"].exists()

    def test_a_folder_that_is_no_bundle_is_refused(self, options: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^--bundle: expected a folder with configs/inference.yaml, got "):
            infer(**{**options, "bundle": tmp_path})

    def test_an_unsuitable_image_is_refused_before_others_are_segmented(self, options: dict[str, Any]) -> None:
        save(options["dataset_dir"] / "cine.nii.gz", np.ones((20, 24, 4, 5), np.int16))
        with pytest.raises(InputError, match=r"cine.nii.gz: expected a 3D image with 1 channel"):
            infer(**options)
        assert not options["output_dir"].exists()


class TestEvaluation:
    @pytest.fixture
    def options(self, prepared: Path, weights: Path, tmp_path: Path) -> dict[str, Any]:
        places = {"dataset_dir": prepared, "output_dir": tmp_path / "out", "ckpt_dir": str(weights)}
        return {"bundle": ACDC, **places, "device": "cpu"}

    @pytest.fixture
    def expected(self, prepared: Path, weights: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
        def evaluate_plainly(**options: Any) -> dict[str, str]:
            places = {"dataset_dir": str(prepared), "output_dir": str(tmp_path / "plain"), "ckpt_dir": str(weights)}
            run_bundle(ACDC, "train.yaml", "evaluate.yaml", **places, **options)
            return files(tmp_path / "plain")

        return evaluate_plainly

    def test_files_are_those_of_a_plain_run(
        self, options: dict[str, Any], expected: Callable[..., dict[str, str]], tried: list[str]
    ) -> None:
        evaluate(**options, split="validation")
        assert len(tried) == len(NAMES)
        of_plain_run = expected(split="validation")
        assert {"cases.csv", "summary.json", "calibration.json", "cases/worst.png"} < of_plain_run.keys()
        assert files(options["output_dir"]) == of_plain_run
        evaluate(**options, split="validation")  # again, from what was measured
        assert len(tried) == len(NAMES)
        assert files(options["output_dir"]) == of_plain_run

    def test_nothing_is_written_before_all_cases_are_measured(
        self,
        options: dict[str, Any],
        expected: Callable[..., dict[str, str]],
        on_slurm: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        of_plain_run = expected()
        label = options["dataset_dir"] / "testing0" / "label.nii"
        good = label.read_bytes()
        volume = nib.load(label)
        save(label, np.full(volume.shape, 9, np.uint8), volume.affine)
        with pytest.raises(SystemExit) as ended:
            evaluate(**options, **on_slurm)
        assert ended.value.code == 1
        printed = capsys.readouterr().out.splitlines()
        assert printed[-2:] == [
            "2 of 3 cases are finished, 1 failed",
            f"testing0: {label}: expected class indices from 0 to 3, those of the network, got 9",
        ]
        assert files(options["output_dir"]) == {}
        label.write_bytes(good)
        evaluate(**options)
        assert "2 of 3 cases finished before\n" in capsys.readouterr().out
        assert files(options["output_dir"]) == of_plain_run

    def test_two_commands_that_finish_together_write_one_after_the_other(
        self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        of_the_other, free = options["output_dir"] / ".unfinished-evaluation", []

        def assemble(writer: EvaluationWriter, cases: list[str]) -> None:
            with open(writer.output_dir / WORK / LOCK) as lock:
                free.append(try_lock(lock))

        monkeypatch.setattr(EvaluationWriter, "assemble", assemble)
        of_the_other.mkdir(parents=True)
        evaluate(**options)
        assert free == [False]
        assert of_the_other.is_dir()

    def test_other_data_are_refused(self, options: dict[str, Any]) -> None:
        evaluate(**options)
        datalist = options["dataset_dir"] / "datalist.json"
        listed = json.loads(datalist.read_text())
        datalist.write_text(json.dumps({**listed, "testing": listed["testing"][:1]}))
        with pytest.raises(InputError, match=r"expected results of the same settings, got others \(datalist \("):
            evaluate(**options)

    def test_data_that_were_prepared_anew_are_measured_again(
        self, options: dict[str, Any], expected: Callable[..., dict[str, str]]
    ) -> None:
        evaluate(**options)
        label = options["dataset_dir"] / "testing1" / "label.nii"
        save(label, np.zeros(nib.load(label).shape, np.uint8))
        evaluate(**options)
        assert files(options["output_dir"]) == expected()

    def test_bad_input_is_one_line(self, options: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^splitt: expected an id that .* did you mean split\?$"):
            evaluate(**options, splitt="validation")
        with pytest.raises(InputError, match=r"datalist.json: expected a list of prepared cases, got no such file"):
            evaluate(**{**options, "dataset_dir": tmp_path})
        assert not options["output_dir"].exists()


def test_jobs_need_no_gpu_where_they_are_started(
    scans: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that starts jobs may have none: `--device cuda` is checked where it is used."""

    submitted: list[str] = []

    class Executor:
        def __init__(self, folder: Path) -> None:
            pass

        def update_parameters(self, **parameters: Any) -> None:
            assert parameters == {"partition": "gpu"}

        def map_array(self, function: Any, shares: list[list[Any]]) -> list[Any]:
            assert json.loads(function.run.options)["device"] == "cuda"
            submitted.extend(case.name for share in shares for case in share)
            return [
                SimpleNamespace(
                    done=lambda: True, result=lambda share=share: dict.fromkeys([c.name for c in share], "no")
                )
                for share in shares
            ]

    monkeypatch.setattr("calib_components.tools.many_cases.processes.POLL", 0)
    monkeypatch.setattr(submitit, "SlurmExecutor", Executor)
    options = {"dataset_dir": scans, "output_dir": tmp_path / "out", "ckpt_dir": str(weights), "device": "cuda"}
    with pytest.raises(SystemExit) as ended:
        infer(ACDC, **options, executor="slurm", slurm={"partition": "gpu"})
    assert ended.value.code == 1
    assert sorted(submitted) == list(NAMES)
