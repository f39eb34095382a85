"""The commands: inference of images and evaluation of prepared cases, case by case, here or as a Slurm array."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from calib_components.bundle import check_ids, check_values
from calib_components.errors import InputError, check_writable, make_folder, reading, writing
from calib_components.handlers.evaluation_writing import check_evaluation, check_once
from calib_components.handlers.fingerprint import EVALUATION, INFERENCE, changes
from calib_components.handlers.weights import warn_of_other_split
from calib_components.inference.images import ImageFolder, find_images
from calib_components.tools.compare.arguments import check_path
from calib_components.tools.compare.configs import checked_settings, explaining, read_configs
from calib_components.tools.compare.datalists import digest
from calib_components.tools.locks import LOCK, locked
from calib_components.tools.many_cases.bundle_run import (
    BundleRun,
    Evaluation,
    Inference,
    PreparedCase,
    digest_weights,
)
from calib_components.tools.many_cases.processes import Resources

__all__ = ["evaluate", "infer"]

ENTRIES = {"initialize", "run", "finalize"}


def infer(
    bundle: Path,
    *,
    dataset_dir: Path,
    output_dir: Path,
    executor: str = "local",
    workers: int = 1,
    jobs: int | None = None,
    slurm: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Segment a folder of images, case by case: here, side by side, or as an array of Slurm jobs.

    Any id of the bundle's inference.yaml is an option as well, such as --ckpt_dir, --save or --tta. All images are
    found and checked before anything runs. A case that fails does not keep others from being segmented. The same
    command continues after an interruption: cases that have all their maps are skipped, unless their files have
    changed.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: One NIfTI file, or a folder of them.
        output_dir: Folder for the maps.
        executor: local, or slurm.
        workers: Number of processes on this machine, each with a case in memory; they share its cores.
        jobs: Number of Slurm jobs, at most, that the cases are shared among; default: 10.
        slurm: Parameters of submitit for these jobs, such as "{time: 60, partition: gpu, gpus_per_node: 1}"; time is
            in minutes, by default 5. "array_parallelism: 4" runs no more than 4 at a time.

    Raises:
        InputError: An argument, a folder or a file is not as expected; nothing was run.
        SystemExit: A case failed.
    """
    resources = Resources(executor, workers, jobs, slurm)
    files = [bundle / "configs" / "inference.yaml"]
    config, options = _plan(files, {"dataset_dir": dataset_dir, "output_dir": output_dir}, overrides, resources)
    settings = checked_settings(config, INFERENCE, files[0].parent)
    with explaining(files[0].parent):
        images: ImageFolder = config.get_parsed_content("images")
        images.check()
        weights = digest_weights(config.get_parsed_content("load_path"))
        config.get_parsed_content("postprocessing")  # checks the names of maps
        save = config.get_parsed_content("save")
    run = Inference(tuple(files), options, output_dir, weights, (save,) if isinstance(save, str) else tuple(save))
    run.configure(device="cpu")  # checks what is left: the weights fit the network
    _run(run, find_images(images.path, images.file_suffixes), settings, resources)


def evaluate(
    bundle: Path,
    *,
    dataset_dir: Path,
    output_dir: Path,
    executor: str = "local",
    workers: int = 1,
    jobs: int | None = None,
    slurm: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Evaluate the network on prepared cases, case by case: here, side by side, or as an array of Slurm jobs.

    Any id of the bundle's train.yaml and evaluate.yaml is an option as well, such as --ckpt_dir, --split or --datalist.
    A case that fails does not keep others from being evaluated. The same command continues after an interruption:
    cases that are measured are kept, unless their files have changed. The files of the evaluation are written once all
    cases are.

    Args:
        bundle: Folder of the bundle.
        dataset_dir: Prepared data, the bundle's or your own.
        output_dir: Folder for the files of the evaluation.
        executor: local, or slurm.
        workers: Number of processes on this machine, each with a case in memory; they share its cores.
        jobs: Number of Slurm jobs, at most, that the cases are shared among; default: 10.
        slurm: Parameters of submitit for these jobs, such as "{time: 60, partition: gpu, gpus_per_node: 1}"; time is
            in minutes, by default 5. "array_parallelism: 4" runs no more than 4 at a time.

    Raises:
        InputError: An argument, a folder or a file is not as expected; nothing was run.
        SystemExit: A case failed.
    """
    resources = Resources(executor, workers, jobs, slurm)
    files = [bundle / "configs" / name for name in ("train.yaml", "evaluate.yaml")]
    config, options = _plan(files, {"dataset_dir": dataset_dir, "output_dir": output_dir}, overrides, resources)
    settings = checked_settings(config, EVALUATION, files[0].parent)
    with explaining(files[0].parent):
        cases = [PreparedCase(item) for item in config.get_parsed_content("validate::dataset::data")]
        weights = digest_weights(config.get_parsed_content("load_path"))
        warn_of_other_split(config.get_parsed_content("load_path"), config)
        settings["datalist"] = digest(Path(config.get_parsed_content("datalist")))
    run = Evaluation(tuple(files), options, output_dir, weights)
    check_once([case.name for case in cases])
    writer = run.writer(run.configure(device="cpu"))
    check_evaluation(output_dir, writer.metrics, writer.structures)
    _run(run, cases, settings, resources)
    with locked(run.work / LOCK):  # another command may have waited for the last case, too
        writer.assemble([case.name for case in cases])
    print(output_dir / "summary.json")


def _plan(
    files: Sequence[Path], places: Mapping[str, Path], overrides: Mapping[str, Any], resources: Resources
) -> tuple[ConfigParser, str]:
    """Return the configuration after overrides, which are checked, and the overrides as JSON."""
    configs = files[0].parent
    for name, place in {"bundle": configs.parent, **places}.items():
        check_path(name, place)
    for file in files:
        if not file.is_file():
            raise InputError(f"--bundle: expected a folder with configs/{file.name}, got {configs.parent}")
    if "num_workers" in overrides:
        raise InputError(
            "--num_workers: expected none, since cases come one by one; --workers is for several at a time"
        )
    options = {"bundle_root": str(configs.parent), "num_workers": 0, **json.loads(json.dumps(overrides))}
    options |= {name: str(place) for name, place in places.items()}
    config = read_configs(files)
    config.update(options)
    with explaining(configs):
        check_ids(config, configs, ENTRIES)
        if resources.executor == "slurm":
            config["device"] = "cpu"  # jobs check theirs: this machine may have no GPU
        check_values(config)
    check_writable("output_dir", places["output_dir"])
    return config, json.dumps(options)


def _run(run: BundleRun, cases: Sequence[Any], settings: Mapping[str, Any], resources: Resources) -> None:
    """Run the cases that are not finished.

    Raises:
        InputError: The folder holds results that were made with other settings, or cases cannot be run.
        SystemExit: A case failed.
    """
    lacking, unfinished = run.lacking(cases), run.unfinished(cases)
    file = run.work / "settings.json"
    settings = {**settings, "weights": run.weights}
    _check_unchanged(file, settings, run, run.has_results(cases))
    run_all = resources.runner(run.work / "slurm")
    make_folder(run.work)
    make_folder(run.folder)
    with locked(run.work / LOCK):
        _check_unchanged(file, settings, run, has_results=False)  # another command may have begun meanwhile
        with writing(file) as new:
            new.write_text(json.dumps(settings, indent=1) + "\n")
    if len(unfinished) < len(cases):
        print(f"{len(cases) - len(unfinished)} of {len(cases)} cases finished before")
    if len(lacking) < len(unfinished):
        print(f"{len(unfinished) - len(lacking)} of {len(cases)} cases run again, since their files have changed")
    # Those that were tried before come last: one may end its process, as for lack of memory, and with it others.
    failed = run_all(run, sorted(unfinished, key=run.was_tried))
    print(f"{len(cases) - len(failed)} of {len(cases)} cases are finished, {len(failed)} failed")
    for case in cases:
        if case.name in failed:
            print(f"{case.name}: {failed[case.name]}")
    if failed:
        sys.exit(1)


def _check_unchanged(file: Path, settings: Mapping[str, Any], run: BundleRun, has_results: bool) -> None:
    if file.is_file():
        with reading(file, "the settings of earlier cases"):
            before = json.loads(file.read_text())
            changed = changes(before, settings) if before != settings else []
        if changed:
            raise InputError(
                f"{run.output_dir}: expected results of the same settings, got others ({', '.join(changed)}); delete "
                "it to run its cases again, or choose another --output_dir"
            )
    elif has_results:
        raise InputError(
            f"--output_dir: expected results of this command or none, got some of other runs in {run.output_dir}, "
            "whose settings are not known; choose another folder"
        )
