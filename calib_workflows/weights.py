"""Trained weights: read and checked against the network, written with the facts of their data
beside them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events

from calib_components.errors import InputError, make_folder, reading, writing
from calib_components.posthoc import KINDS, RETIRED, Calibrator
from calib_components.posthoc.network import (
    BASELINE,
    CASES,
    FITTED_ON,
    MEMBERS,
    OF_THE_FIT,
    REFERENCE,
    TESTS,
    WEIGHTS,
    calibrator_in,
    from_bytes,
    to_bytes,
)
from calib_components.quality import Reference
from calib_workflows.data.facts import DATALIST, FACTS, Facts, facts_beside, write_facts
from calib_workflows.data.transforms import has_other_pixels
from calib_workflows.options import LAST, config_of_run
from calib_workflows.runs import fingerprint_of_cases, fingerprint_of_list

log = logging.getLogger(__name__)
# MONAI's ckpt_export and onnx_export write the first two; the third is TensorRT's engine
EXPORT_ENDINGS = (".ts", ".onnx", ".plan")


def read_weights(file: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the state dict in a file of trained weights; no code in it is run.

    Values that are NaN or infinite are an error.
    """
    check_weights_file(file)
    with reading(file, "trained weights"):
        weights = _read_tensors(file)
        if flaw := _flaw_of(weights):
            raise ValueError(flaw)
        for name, values in weights.items():
            if not torch.as_tensor(values).isfinite().all():
                raise ValueError(f"values of {name} are NaN or infinite")
        return weights


def _flaw_of(weights: Any) -> str:
    """Say why the content of a file is no state dict of this version; nothing if it may be."""
    if not isinstance(weights, dict):
        return "it holds no weights by name, as a state_dict has them"
    if {"network", "optimizer"} <= weights.keys():
        return "it is the state of a training; use model.pt beside it"
    if isinstance(weights.get("state_dict"), Mapping):
        return "weights are in its entry state_dict: save this entry alone"
    if weights and all(name.startswith("module.") for name in weights):
        return "its names begin with module., those of DataParallel: save network.module"
    if old := [name for name in RETIRED if name in weights]:
        return (
            f"they have a calibrator that only version 0.4 knows, {old[0]}. Take later weights of"
            " the bundle; from your own, remove this entry (and class_scale), and calibrate them"
            " again"
        )
    return ""


def check_weights_file(file: str | os.PathLike) -> None:
    """Raise `InputError` unless there is a file of trained weights."""
    if not Path(file).is_file():
        raise InputError(
            f"{file}: no such file of trained weights, nor in the bundle. Give the file"
            " (--load_path) or the folder with its model.pt (--ckpt_dir), or train first."
        )


def _read_tensors(file: str | os.PathLike) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of several kinds, whose messages fill a page
        reason = "not a file of tensors alone"
        if "TorchScript" in str(error):
            reason = "a TorchScript file; add configs/inference_ts.yaml"
        raise ValueError(reason) from error


def load_weights(
    network: torch.nn.Module, file: str | os.PathLike, is_refitted: bool = False
) -> None:
    """Load trained weights into a network.

    Args:
        network: The network. A calibrator that it carries becomes that of the weights, or changes
            nothing if they have none.
        file: See `read_weights`.
        is_refitted: Whether another calibrator takes the place of theirs.

    Raises:
        InputError: See `read_weights`; the weights do not fit, or their calibrator was fitted to
            others.
    """
    weights = read_weights(file)
    if not (is_refitted or is_of_weights(from_bytes(weights.get(FITTED_ON)), weights)):
        raise InputError(
            f"{file}: its calibrator was fitted to other weights. Fit one to these: run"
            f" configs/train.yaml and configs/calibrate.yaml with --load_path {file}."
        )
    with reading(file, "weights of this network"):
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:  # which names all that differs
            raise ValueError(textwrap.shorten(str(error), 300)) from error
        biases = weights.get("vector_shift", weights.get("bias_shift", torch.empty(1))).numel()
        if biases not in (1, getattr(network, "out_channels", biases)):
            raise ValueError(f"its calibrator is of {biases} classes")


def load_torchscript(file: str | os.PathLike, device: torch.device | str) -> torch.jit.ScriptModule:
    """Load a network with its weights from the file that MONAI's `ckpt_export` writes.

    Raises:
        InputError: There is no such file, or another one.
    """
    if facts_beside(file) is None:
        log.warning("%s has no %s beside it: the bundle's own are used", file, FACTS)
    with reading(file, "a TorchScript file, as monai.bundle ckpt_export writes it"):
        return torch.jit.load(str(file), map_location=device)


def serialize(state: Mapping[str, Any]) -> memoryview:
    """Return the content of a file that `torch.load` reads; the same state gives the same bytes."""
    # To a file, torch.save hides why writing failed, and writes the file's name into it
    content = io.BytesIO()
    torch.save(state, content)
    return content.getbuffer()


def save(state: Mapping[str, Any], file: Path) -> None:
    """Write a file that `torch.load` reads, completely or not at all."""
    with writing(file) as unfinished:
        unfinished.write_bytes(serialize(state))


class Baseline(NamedTuple):
    """What weights had before a fit to cases that did not train them.

    Attributes:
        calibrator: The calibrator; None without one.
        fit: What is known of its fit, see `FITTED_ON`; empty if it is not.
        reference: The scans like those of the training; None without.
    """

    calibrator: Calibrator | None = None
    fit: Mapping[str, Any] = {}
    reference: Reference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as data that JSON can store."""
        state = {} if self.calibrator is None else self.calibrator.state()
        return {"state": {name: each.tolist() for name, each in state.items()}, "fit": self.fit}


def baseline_of(file: Path, cases: str | None, structures: Sequence[str]) -> Baseline:
    """Return what weights had before any fit to cases of this fingerprint, or to others that did
    not train them.
    """
    weights = read_weights(file)
    known = from_bytes(weights.get(FITTED_ON))
    if not is_of_weights(known, weights):
        return Baseline()
    stored = known.get(BASELINE)
    if stored is not None:
        log.info("The fit of %s to earlier labels is left out: none is what it had before", file)
        state = {name: torch.tensor(values) for name, values in stored["state"].items()}
        return Baseline(calibrator_in(state), stored["fit"])
    if cases is not None and known.get(CASES) == cases:
        return Baseline()
    reference = Reference.from_tensor(weights.get(REFERENCE, torch.empty(0)), structures)
    return Baseline(calibrator_in(weights), known, reference)


def hash_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Return what tells weights from others, whatever their calibrator and reference."""
    digest = hashlib.sha256()
    carried = {name for kind in KINDS.values() for name in kind().state()}
    for name in sorted(weights.keys() - {*OF_THE_FIT, *carried}):
        values = weights[name].contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def is_of_weights(fit: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a calibrator was fitted to these weights; that of version 0.5 may be."""
    return fit.get(WEIGHTS, hash_of(weights)) == hash_of(weights)


def check_fitted(file: Path, cases: str | None) -> None:
    """Raise `InputError` if weights are fitted to other cases than these."""
    known = from_bytes(read_weights(file).get(FITTED_ON)) if file.exists() else {}
    if known and known.get(CASES) != cases:
        raise InputError(
            f"calibrated_path: {file} is calibrated on other cases. Name another file, or pass"
            " --overwrite true."
        )


def with_calibrator(
    file: str | os.PathLike,
    calibrator: Calibrator,
    reference: torch.Tensor | None = None,
    fit: Mapping[str, Any] | None = None,
) -> memoryview:
    """Return the content of a file of weights, see `read_weights`, with another calibrator and all
    else as it is.

    The reference of the other calibrator, see `calib_components.quality.Reference`, takes the place
    of any before; so does what is known of its fit, such as its region and number of patients. Test
    scans go.
    """
    weights = read_weights(file)
    for name in OF_THE_FIT:
        weights.pop(name, None)
    before = calibrator_in(weights)
    if before is not None:
        for name in before.state():
            del weights[name]
    weights.update({name: values.cpu() for name, values in calibrator.state().items()})
    if reference is not None:
        weights[REFERENCE] = reference
    if fit:
        weights[FITTED_ON] = to_bytes(fit)
    return serialize(weights)


def add_tests(file: Path, name: str, scans: Reference) -> None:
    """Write labelled test scans into weights, beside their reference. They take the place of an
    earlier set of this name.
    """
    weights = read_weights(file)
    tests = from_bytes(weights.get(TESTS)) | {name: scans.to_tensor().tolist()}
    weights[TESTS] = to_bytes(tests)
    save(weights, file)


def check_beside(file: Path, facts: Facts | None, name: str) -> None:
    """Raise `InputError` if beside a file to write are weights or cases of other data; `name` is
    the id of the file.
    """
    folder = file.parent
    if facts_beside(file) == facts:
        return
    weights = {path for path in folder.glob("[!.]*") if path.suffix in (".pt", *EXPORT_ENDINGS)}
    if facts is None or weights - {file} or (folder / DATALIST).exists():
        raise InputError(
            f"{name}: {folder} has weights or cases of other data. Choose another folder."
        )


def write_weights(file: Path, content: bytes | memoryview, facts: Facts | None, name: str) -> None:
    """Write weights, and the facts of their data beside them, see `check_beside`."""
    check_beside(file, facts, name)
    make_folder(file.parent)
    with writing(file.resolve()) as unfinished:  # a link stays one
        unfinished.write_bytes(content)
        if facts is not None and facts_beside(file) != facts:
            # Weights are never beside facts of others, even if the process is killed here
            file.unlink(missing_ok=True)
            write_facts(facts, file.parent)


def join_weights(files: Sequence[Path], out: Path) -> None:
    """Write the weights of several networks into one file, as those of an ensemble, see
    `TemperatureUNet`, with their `facts.yaml`.

    Args:
        files: The weights of the members, see `read_weights`.
        out: File of the weights of the ensemble.

    Raises:
        InputError: There are fewer than two, one is there twice, the networks, the facts of their
            data or the lists of cases of their trainings differ.
    """
    if len({file.resolve() for file in files}) < max(2, len(files)):
        raise InputError("members: give the weights of at least two networks, each once.")
    joined: dict[str, torch.Tensor] = {}
    first: dict[str, Any] = {}  # what all have in common with the first
    for number, file in enumerate(files):
        weights, common = _read_member(file)
        for name, value in common.items():
            if first.setdefault(name, value) != value:
                raise InputError(
                    f"{file}: {name} differ from those of another file. Join networks of one split."
                )
        joined.update({f"{MEMBERS}{number}.{name}": values for name, values in weights.items()})
    write_weights(out, serialize(joined), first[FACTS], "members")


def _read_member(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights of a member of an ensemble, without what is of it alone, and what all
    members have in common.
    """
    weights = read_weights(file)
    if calibrator_in(weights) is None:
        weights["temperature"] = torch.ones(())
    for name in OF_THE_FIT:
        weights.pop(name, None)
    shapes = {name: values.shape for name, values in weights.items()}
    common: dict[str, Any] = {"layers or classes": shapes, FACTS: facts_beside(file)}
    # Folds are trained on the patients that others are tested on
    state = file.with_name(LAST)
    if state.is_file():
        common["lists of cases"] = _trained_with(state)[1]
    return weights, common


class WeightsCheckpointLoader:
    """Load trained weights into the network when an engine starts, see `load_weights`.

    MONAI's federated learning evaluates other weights: it disables the handlers with
    `CheckpointLoader` in their name.

    Args:
        load_path: File of the weights.
        network: The network.
        facts: Facts of the data that the network is to run on; None not to compare them with those
            of the weights, in `facts.yaml` beside them, if there is one.

    Raises:
        InputError: When the engine starts, see `load_weights`; or if the weights were trained on
            another data set, other classes or channels. There is a warning of other sizes or codes
            of classes, of no `facts.yaml`, and of a training with another list of the same cases.
    """

    def __init__(
        self,
        load_path: str | os.PathLike,
        network: torch.nn.Module,
        facts: Facts | None = None,
        is_refitted: bool = False,
    ) -> None:
        self.load_path, self.network, self.facts = Path(load_path), network, facts
        self.is_refitted = is_refitted

    def attach(self, engine: Engine) -> None:
        """Load the weights when the engine that runs the network starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine) -> None:
        if isinstance(self.network, torch.jit.ScriptModule):  # which holds its weights
            return
        trained_on = facts_beside(self.load_path)
        if trained_on is None:
            log.warning(
                "%s has no %s beside it: whether it suits these images is not checked",
                self.load_path,
                FACTS,
            )
        if self.facts is not None:
            if trained_on is not None:
                _compare_facts(trained_on, self.facts, self.load_path)
            warn_of_other_split(self.load_path)
        load_weights(self.network, self.load_path, self.is_refitted)
        log.info("Loaded the weights in %s", self.load_path)


def _compare_facts(trained_on: Facts, data: Facts, file: Path) -> None:
    """Refuse data that the weights give no right answer on, and warn of data unlike those that they
    were trained on.
    """
    refused = ("dataset", "in_channels", "class_names", "window")
    for name in (*refused, "label_codes", "image_size", "crop_size"):
        before, now = getattr(trained_on, name), getattr(data, name)
        if before == now:
            continue
        text = f"{file} was trained on data with {name} {before}, these have {now}."
        if name in refused:
            raise InputError(f"{text} Use other weights.")
        log.warning("%s Pass --%s as in training, or compare with care.", text, name)
    before, now = trained_on.pixel_size, data.pixel_size
    if before and now and has_other_pixels(now, before):
        text = (
            "%s was trained on pixels of %.3g to %.3g mm, these have %.3g to %.3g mm. Do not rely"
            " on the results."
        )
        log.warning(text, file, *before, *now)


def _trained_with(state: Path) -> tuple[str | None, str]:
    """Return what tells the cases and their list, from the last checkpoint of a training."""
    with reading(state, "a checkpoint of a training"):
        settings = torch.load(state, map_location="cpu", weights_only=True, mmap=True)["settings"]
        return settings["cases"], settings["data"]


def cases_of_run() -> str | None:
    """Return the fingerprint of the cases that this run has; None if they have none."""
    config = config_of_run()
    if config is None or "datalist" not in config:
        return None
    places = (Path(config.get_parsed_content(name)) for name in ("datalist", "dataset_dir"))
    return fingerprint_of_cases(*places)


def is_trained_on(file: Path, cases: str | None) -> bool:
    """Return whether a training, recorded beside its weights, had the cases of a fingerprint."""
    state = file.with_name(LAST)
    return cases is not None and state.is_file() and _trained_with(state)[0] == cases


def warn_of_other_split(file: Path) -> None:
    """Warn of weights whose training, recorded beside them, had another list of the cases that this
    run has.
    """
    config, state = config_of_run(), file.with_name(LAST)
    if config is None or "datalist" not in config or not state.is_file():
        return
    datalist = Path(config.get_parsed_content("datalist"))
    folder = Path(config.get_parsed_content("dataset_dir"))
    cases, listed = _trained_with(state)
    same_cases = cases is not None and cases == fingerprint_of_cases(datalist, folder)
    if same_cases and listed != fingerprint_of_list(datalist):
        text = (
            "%s was trained with another list of the cases in %s. Some of these patients may have"
            " been trained on."
        )
        log.warning(text, file, datalist)
