"""Trained weights: checked against the network before they go into it."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from calib_components.bundle import running_config
from calib_components.data.facts import FACTS, Facts, facts_beside, write_facts
from calib_components.data.transforms import has_other_pixels
from calib_components.errors import InputError, make_folder, reading, writing
from calib_components.handlers.fingerprint import fingerprint_of_cases, fingerprint_of_list
from calib_components.posthoc import find_temperature
from calib_components.posthoc.network import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE

__all__ = [
    "WeightsCheckpointLoader",
    "check_beside",
    "check_weights",
    "join_weights",
    "load_torchscript",
    "load_weights",
    "serialize",
    "warn_of_other_split",
    "with_temperature",
]

TEMPERATURE = "temperature"  # its name in a state dict
MEMBERS = "members."  # what names in that of an ensemble begin with
LAST = "last.ckpt"  # the state of a training, see `TrainingCheckpoint`


def load_weights(network: torch.nn.Module, file: str | os.PathLike) -> None:
    """Load trained weights into a network; no code in the file is run.

    Args:
        network: The network. It stays as it is if the weights do not fit. Weights without a temperature load as those
            of a temperature of 1 if the network has one.
        file: State dict of such a network, or a dictionary that holds one as `model`, as MONAI's `CheckpointSaver`
            writes it.

    Raises:
        InputError: The file is missing or not of this kind, holds values that are NaN or infinite or a temperature out
            of its range (see `set_temperature`), or is that of another network.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from calib_components.handlers.weights import load_weights
        >>> file = tempfile.mkdtemp() + "/model.pt"
        >>> torch.save(torch.nn.Conv2d(1, 3, 1).state_dict(), file)
        >>> load_weights(torch.nn.Conv2d(1, 3, 1), file)
    """
    weights = _read(network, file)
    with reading(file, "trained weights"):
        _compare_shapes(weights, network.state_dict())
        network.load_state_dict(weights)


def check_weights(network: torch.nn.Module, file: str | os.PathLike) -> None:
    """Check trained weights as `load_weights` does, except for their shapes: the number of classes may be another.

    Args:
        network: The network, which stays as it is.
        file: As in `load_weights`.

    Raises:
        InputError: See `load_weights`.
    """
    _read(network, file)


def with_temperature(file: str | os.PathLike, temperature: torch.Tensor) -> memoryview:
    """Return the content of a file of weights with another temperature; nothing else in it changes.

    Args:
        file: Trained weights, see `load_weights`.
        temperature: The temperature, `()`.

    Raises:
        InputError: The file holds no weights.
    """
    with reading(file, "trained weights"):
        content = _load(file)
        weights = _state_dict(content)
        weights[TEMPERATURE] = temperature.detach().cpu()
        if _holds_model(content):
            content["model"] = weights
            return serialize(content)
        return serialize(weights)


def check_beside(file: Path, facts: Facts | None, name: str) -> None:
    """Refuse to write weights, or their facts, beside weights of other data.

    Args:
        file: The file to write.
        facts: Facts of the data that its weights were trained on; None if there are none.
        name: What chooses the file, for messages.

    Raises:
        InputError: There are other facts, or weights without these.
    """
    there = facts_beside(file)
    others = [other for other in file.parent.glob("*.pt") if other != file]
    if there != facts and (there is not None or others):
        raise InputError(
            f"{name}: expected a folder without weights of other data, got {file.parent}; choose another one"
        )


def join_weights(*files: Path, out: Path) -> None:
    """Join the weights of several networks of one kind to those of their ensemble, see `EnsembleUNet`.

    The facts of their data, in `facts.yaml` beside them, are written beside the new weights, too.

    Args:
        files: The weights of the members, see `load_weights`.
        out: File of the weights of the ensemble.

    Raises:
        InputError: There are fewer than two, a file is missing or not of this kind, holds values that are NaN or
            infinite or an unsuitable temperature, the networks or the facts of their data differ, one is there twice,
            their trainings had other lists of cases, or the new file is one of them, there with something else than an
            ensemble, beside weights of other data, or cannot be written.
    """
    if len(files) < 2:
        raise InputError(f"files: expected the weights of at least two networks, got {len(files)}")
    if out.resolve() in [file.resolve() for file in files]:
        raise InputError(f"--out: expected a new file, got {out}, which is that of a member")
    trained: dict[str, Path] = {}  # by what the record beside a network says of its list of cases
    joined: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Tensor] = {}
    for number, file in enumerate(files):
        if not file.exists():
            raise InputError(f"{file}: expected trained weights, got no such file")
        if facts_beside(file) != facts_beside(files[0]):
            raise InputError(f"{file}: expected weights of the same data as {files[0]}, got other facts beside them")
        with reading(file, "trained weights"):
            weights = _state_dict(_load(file))
            weights.setdefault(TEMPERATURE, torch.ones(()))
            first = first or weights
            _compare_names(weights, first)
            _compare_shapes(weights, first)
            _check_finite(weights)
            _check_temperature(weights[TEMPERATURE])
            if any(name.startswith(MEMBERS) for name in weights):
                raise ValueError("those of an ensemble")
        for other in range(number):
            if all(joined[f"{MEMBERS}{other}.{name}"].equal(values) for name, values in weights.items()):
                raise InputError(f"files: expected different networks, got {file}, which is that of {files[other]}")
        if (state := file.with_name(LAST)).is_file():
            trained.setdefault(str(_trained_with(state)[1]), file)
        if len(trained) > 1:
            raise InputError(
                f"{file}: expected a network trained with the list of cases of {files[0]}, got one of another list, by "
                f"{LAST} beside them; folds are trained on the patients that others are tested on"
            )
        joined.update({f"{MEMBERS}{number}.{name}": values for name, values in weights.items()})
    if out.exists():
        with reading(out, "weights of an ensemble or no file"):
            if not any(name.startswith(MEMBERS) for name in _state_dict(_load(out))):
                raise ValueError("those of one network")
    make_folder(out.parent)
    facts = facts_beside(files[0])
    check_beside(out, facts, "--out")
    if facts is not None:
        write_facts(facts, out.parent)
    with writing(out) as unfinished:
        unfinished.write_bytes(serialize(joined))


def serialize(state: Mapping[str, Any]) -> memoryview:
    """Return the content of a file that `torch.load` reads; the same state gives the same bytes."""
    content = io.BytesIO()  # to a file, torch.save hides why writing failed, and writes the file's name into it
    torch.save(state, content)
    return content.getbuffer()


class WeightsCheckpointLoader:
    """Load trained weights into the network when an engine starts, see `load_weights`.

    MONAI's federated learning evaluates other weights: it disables the handlers with `CheckpointLoader` in their name.

    Args:
        load_path: File of the weights.
        network: The network.
        facts: Facts of the data that the network is to run on; None not to compare them with those of the weights, in
            `facts.yaml` beside them, if there is one.

    Raises:
        InputError: When the engine starts, see `load_weights`; or if the weights were trained on other classes, other
            channels or data of another geometry. If they differ in sizes or in the codes of classes, or there is no
            `facts.yaml`, there is a warning.
    """

    def __init__(self, load_path: str | os.PathLike, network: torch.nn.Module, facts: Facts | None = None) -> None:
        self.load_path = load_path
        self.network = network
        self.facts = facts

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: The engine that runs the network.
        """
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine) -> None:
        trained_on, file = facts_beside(self.load_path), Path(self.load_path).with_name(FACTS)
        if trained_on is not None and self.facts is not None:
            _compare_facts(trained_on, self.facts, file)
            if (config := running_config()) is not None:
                warn_of_other_split(self.load_path, config)
        load_weights(self.network, self.load_path)
        if trained_on is None:
            logging.getLogger(__name__).warning(
                "%s: expected the facts of the data that the weights were trained on, got no such file; whether they "
                "suit these images is not checked",
                file,
            )
        logging.getLogger(__name__).info("Loaded the weights in %s", self.load_path)


def _trained_with(state: Path) -> tuple[Any, Any]:
    """Fingerprints of the cases and of their list, in the last checkpoint of a training."""
    with reading(state, "a checkpoint of a training, or no file"):
        settings = torch.load(state, map_location="cpu", weights_only=True, mmap=True)["settings"]
        return settings["cases"], settings["data"]


def warn_of_other_split(file: str | os.PathLike, config: ConfigParser) -> None:
    """Warn of weights whose training, which is recorded beside them, had another list of the cases that are run.

    Args:
        file: File of the weights.
        config: What is run; without a list of cases, there is nothing to say.

    Raises:
        InputError: The record of the training is broken.
    """
    state = Path(file).with_name(LAST)
    if not {"datalist", "dataset_dir"} <= config.get().keys() or not state.is_file():
        return
    datalist, folder = (Path(config.get_parsed_content(name)) for name in ("datalist", "dataset_dir"))
    cases, listed = _trained_with(state)
    known = cases is not None and cases == fingerprint_of_cases(datalist, folder)
    if known and listed != fingerprint_of_list(datalist):
        logging.getLogger(__name__).warning(
            "%s: expected weights that were trained with %s, got ones of another list of the same cases, by %s beside "
            "them; if their split was another one, some of these patients were trained on",
            file,
            datalist,
            LAST,
        )


def _read(network: torch.nn.Module, file: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Weights of the network's names and types."""
    if not isinstance(file, str | os.PathLike):  # MONAI reads the name 2024_11_25 as a number
        raise InputError(f"load_path: expected the path of weights, got {file!r}; write ./NAME if it reads as a number")
    if not Path(file).exists():
        raise InputError(f"{file}: expected trained weights, got no such file; train first, or set --load_path")
    with reading(file, "trained weights"):
        weights = _state_dict(_load(file))
        if (own := find_temperature(network)) is not None:
            weights.setdefault(TEMPERATURE, torch.ones_like(own))
        _compare_names(weights, network.state_dict())
        _check_finite(weights)
        if own is not None:
            _check_temperature(weights[TEMPERATURE])
        return weights


def _check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    for name, values in weights.items():
        if not values.isfinite().all():
            raise ValueError(f"values that are NaN or infinite in {name}")


def _check_temperature(temperature: torch.Tensor) -> None:
    if not ((temperature >= LOWEST_TEMPERATURE) & (temperature <= HIGHEST_TEMPERATURE)).all():
        raise ValueError(
            f"a temperature of {temperature.min():g}, which is not from {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}"
        )


def _load(file: str | os.PathLike) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message fills a page
        code = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(f"pickled code ({code[1]}), which is not run" if code else "another kind of file") from error
    except (EOFError, RuntimeError) as error:
        kind = "a TorchScript file; add configs/inference_ts.yaml" if "TorchScript" in str(error) else "a broken file"
        raise ValueError(kind) from error


def _holds_model(content: Any) -> bool:
    """Whether a file holds weights as `model`, as MONAI's `CheckpointSaver` writes it."""
    return isinstance(content, Mapping) and isinstance(content.get("model"), Mapping)


def _state_dict(content: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights in a file, also of the versions of modules that PyTorch keeps beside them."""
    if _holds_model(content):
        content = content["model"]
    elif isinstance(content, Mapping) and {"network", "optimizer"} <= content.keys():
        raise ValueError("the state of a training; use model.pt beside it")
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}")
    return copy.copy(content)


def _compare_names(weights: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> None:
    """Check names and types against the network's own weights."""
    for name in [*expected, *weights]:
        if name not in weights or name not in expected:
            raise ValueError(f"those of another network, {'without' if name in expected else 'with'} {name}")
        if not isinstance(weights[name], torch.Tensor):
            raise ValueError(f"{name} of type {type(weights[name]).__name__}")
        if weights[name].is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{name} of type {weights[name].dtype}, not {expected[name].dtype}")


def _compare_shapes(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    for name in expected:
        got, own = tuple(weights[name].shape), tuple(expected[name].shape)
        if got == own:
            continue
        network, other = _ends(expected), _ends(weights)
        kind = "" if network == other else f" of {_described(other)}, not of {_described(network)}"
        raise ValueError(f"those of another network{kind}: {name} has shape {got}, not {own}")


def _compare_facts(trained_on: Facts, data: Facts, file: Path) -> None:
    """Refuse data that the weights give no right answer on, and warn of data unlike those that they were trained on."""
    for name in ("dataset", "in_channels", "class_names"):
        if (got := getattr(trained_on, name)) != (own := getattr(data, name)):
            raise InputError(
                f"{file}: expected weights of the data's {name}, {own}, got {got}; use weights trained on such data"
            )
    for name in ("label_codes", "image_size", "crop_size"):
        if (got := getattr(trained_on, name)) != (own := getattr(data, name)):
            logging.getLogger(__name__).warning(
                "%s: expected weights of the data's %s, %s, got %s; compare results with care", file, name, own, got
            )
    if trained_on.pixel_size is not None and data.pixel_size is not None:
        (least, most), (smallest, largest) = trained_on.pixel_size, data.pixel_size
        if has_other_pixels((smallest, largest), trained_on.pixel_size):
            logging.getLogger(__name__).warning(
                "%s: expected weights of pixels like the data's, %.3g to %.3g mm, got %.3g to %.3g mm; do not rely on "
                "results",
                file, smallest, largest, least, most,
            )  # fmt: skip


def _ends(weights: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Number of channels that the first layer takes, and of classes that the last one gives."""
    first = next(values for values in weights.values() if values.ndim > 1)
    last = [values for values in weights.values() if values.ndim > 0][-1]
    return first.shape[1], last.shape[0]


def _described(ends: tuple[int, int]) -> str:
    return f"{ends[0]} channel(s) and {ends[1]} classes"


def load_torchscript(file: str | os.PathLike, device: torch.device | str) -> torch.jit.ScriptModule:
    """Load a network with its weights from the file that MONAI's `ckpt_export` writes.

    Raises:
        InputError: There is no such file, or another one.
    """
    if not Path(file).is_file():
        raise InputError(f"{file}: expected a TorchScript file, got none; write one with monai.bundle ckpt_export")
    if facts_beside(file) is None:
        logging.getLogger(__name__).warning(
            "%s: expected the facts of the data that the network was trained on, got no such file; the bundle's own "
            "are used: copy those of the weights if they differ",
            Path(file).with_name(FACTS),
        )
    with reading(file, "a TorchScript file, as monai.bundle ckpt_export writes it"):
        return torch.jit.load(file, map_location=device)
