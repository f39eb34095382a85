"""What runs before the workflow of a bundle: checks of its options, and one line instead of a
traceback for mistakes.

MONAI accepts a misspelt option silently, and wraps every exception of a component in pages of
tracebacks.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import (
    ConfigExpression,
    ConfigParser,
    ConfigWorkflow,
    ReferenceResolver,
)

from calib_components.errors import (
    InputError,
    check_writable,
    error_line,
    nearest,
    reading,
)
from calib_workflows.data.facts import FACTS, MULTIPLES, Facts, check_fact, facts_beside

# Ids that MONAI looks up
ENTRIES = ("_meta_", "finalize", "imports", "initialize", "run", "save_execute_config")
GROUPS = ("train", "validate")
TYPED: dict[str, bool | None] = {"true": True, "false": False, "null": None}  # as on a command line
PLACES = ("_dir", "_file", "_path", "_root", "datalist")  # endings of options that are paths
LEFT_OUT = 3  # status of a process that has done all but what it named and left out
INTERRUPTED = "Interrupted. --resume true continues a training, --skip_existing true the others."
# A training writes its best weights and its state into ckpt_dir
BEST, LAST = "model.pt", "last.ckpt"


def start_run(folders: Sequence[str] = ()) -> None:
    """Check the files and options of a run before any work; from then on, an `InputError` ends it
    with one line.

    A bundle names it as the first item of `run`. In a process that runs no configuration of MONAI,
    it checks nothing.

    Args:
        folders: Ids of the folders that the run writes to; with `ckpt_dir`, it is a training.

    Raises:
        InputError: Files are missing, an id is misspelt or has an unsuitable
            value, a folder cannot be written to, a training would replace weights unasked, or its
            loss takes logits for probabilities.
    """
    # Where pydicom is installed, each of MONAI's readers of DICOM says that it uses no GPU
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    # Of a run that goes on where all was done
    warnings.filterwarnings("ignore", "`dataloader` is empty")
    workflow = check_files()
    if workflow is None:
        return
    config = workflow.parser
    entries = (workflow.init_id, workflow.run_id, workflow.final_id)
    files = read_files(workflow.config_root_path, config)
    check_ids(config, files, entries)
    check_values(config, files)
    for name in folders:
        check_writable(name, config.get_parsed_content(name))
    if "ckpt_dir" in folders:
        check_training(config)


def check_files() -> ConfigWorkflow | None:
    """Check that the files of a run are complete, see `start_run`; return its workflow, None
    without.
    """
    sys.excepthook = _show
    for place in logging.root.handlers:
        place.addFilter(_is_no_mistake)
    workflow = _running_workflow()
    if workflow is None:
        return None
    ids = (workflow.run_id, *references(workflow.parser.get()))
    # An operator @ looks like an empty name
    needed = {name.partition(ReferenceResolver.sep)[0] for name in ids} - {""}
    missing = sorted(name for name in needed if name not in workflow.parser)
    if missing:
        raise InputError(
            f"config_file: {missing[0]} is in none of the files. Give configs/train.yaml, or for"
            " inference configs/inference.yaml, before them."
        )
    return workflow


def check_training(config: ConfigParser) -> None:
    """Check that a training replaces no weights unasked, and that the loss applies softmax."""
    check_weights(config)
    loss = config.get_parsed_content("loss")
    for part in loss.modules() if isinstance(loss, torch.nn.Module) else ():
        # One of these is an option of each of MONAI's losses of probabilities
        uses_softmax = getattr(part, "softmax", getattr(part, "use_softmax", True))
        if not (uses_softmax or getattr(part, "other_act", None)):
            raise InputError(
                f"loss: {type(part).__name__} has no softmax, as the network's probabilities do."
                " Set it."
            )


def check_weights(config: ConfigParser) -> None:
    """Refuse a training that would replace weights unasked.

    One that loads weights of the folder first, as that of MONAI Label does, continues from them.
    """
    folder = Path(config.get_parsed_content("ckpt_dir"))
    existing = [name for name in (LAST, BEST) if (folder / name).exists()]
    files = [handler.get("load_path") for handler in config["train::handlers"]]
    continues = folder in [Path(file).parent for file in files if file]
    if not existing or continues or config.get_parsed_content("overwrite"):
        return
    remedy = "--overwrite true"
    if LAST in existing:
        if config.get_parsed_content("resume"):
            return
        remedy = "--resume true to continue its training, --overwrite true"
    raise InputError(
        f"ckpt_dir: {folder} has {existing[-1]}. Pass {remedy}, or another --ckpt_dir."
    )


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with one line and exit code 2 for an `InputError`; print other exceptions as ever."""
    if isinstance(error, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    if line := error_line(error):
        print(line, file=sys.stderr)
        sys.exit(2)
    sys.__excepthook__(kind, error, trace)


def _is_no_mistake(record: logging.LogRecord) -> bool:
    """Keep the tracebacks that engines log of an `InputError`, or an interrupt, out of the log."""
    error = sys.exc_info()[1]
    is_mistake = isinstance(error, KeyboardInterrupt) or bool(error_line(error))
    return not (record.levelno >= logging.ERROR and is_mistake)


def config_of_run() -> ConfigParser | None:
    """Return the configuration of the bundle's run that this is a part of; None elsewhere."""
    workflow = _running_workflow()
    return None if workflow is None else workflow.parser


def _running_workflow() -> ConfigWorkflow | None:
    """Return the workflow among the callers: MONAI does not hand it to the components."""
    callers = (frame.frame.f_locals.get("self") for frame in inspect.stack(0))
    return next((caller for caller in callers if isinstance(caller, ConfigWorkflow)), None)


def check_values(config: ConfigParser, files: Sequence[Mapping[str, Any]]) -> None:
    """Check options whose mistakes would have no or another effect, as far as a configuration has
    them.

    What was typed on a command line is read first, see `read_as_typed`.

    Args:
        config: The configuration.
        files: Contents of the bundle's files, which say what is true or false.
    """
    read_as_typed(config)
    for name, value in config.get().items():
        is_flag = any(isinstance(content.get(name), bool) for content in files)
        # Python takes any text for true
        if is_flag and isinstance(value, str) and not value.startswith(("$", "@")):
            raise InputError(f"{name} must be true or false, got {value!r}.")
    _check_orientations(config)
    _check_device(config)
    _check_batch_size(config)
    if "facts" in config:  # options such as --num_classes may not fit the other facts
        _check_facts(config, config.get_parsed_content("facts"))
        _check_facts_file(config)


def _check_facts(config: ConfigParser, facts: Facts) -> None:
    """Refuse options that contradict the facts."""
    if facts.spatial_dims > config.get_parsed_content("spatial_dims", default=3):
        raise InputError(
            "config_file: network, data or weights are 3D. Give configs/volumes.yaml, too."
        )
    options = facts_in_use(config)
    if max(options.crop_size) == MULTIPLES[options.spatial_dims]:
        raise InputError(  # the network's lowest layer would see one voxel, which has no variance
            f"crop_size: {options.crop_size} is too small for the network. Double a side."
        )
    if "datalist" in config and options.slice_axis != facts.slice_axis:
        raise InputError(
            "slice_axis: cases are prepared, and later inference would take this axis. Leave the"
            " option out."
        )


def _check_device(config: ConfigParser) -> None:
    """Refuse a device that is not there."""
    device = config.get_parsed_content("device", default="cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter by PyTorch without CUDA
        raise InputError(f"device: {device} cannot be used: {str(error).splitlines()[0]}") from None


def _check_batch_size(config: ConfigParser) -> None:
    """Refuse batches without a slice."""
    size = config.get_parsed_content("batch_size", default=1)
    if not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size must be a whole number from 1 on, got {size!r}.")


def _check_orientations(config: ConfigParser) -> None:
    """Refuse an average over orientations in which the network saw no training image."""
    if not config.get_parsed_content("tta", default=False):
        return
    any_orientation = config.get_parsed_content("any_orientation", default=None)
    if "load_path" in config:
        trained_on = facts_beside(config.get_parsed_content("load_path"))
        if trained_on is not None and trained_on.any_orientation is not None:
            any_orientation = trained_on.any_orientation
    if any_orientation is False:
        raise InputError(
            "tta: the network was not trained on slices in all orientations (any_orientation is"
            " false)."
        )


def _check_facts_file(config: ConfigParser) -> None:
    """Refuse a file of facts that is not there: others would be taken."""
    file, folder = (Path(config.get_parsed_content(name)) for name in ("facts_file", "dataset_dir"))
    exists = file.name == FACTS and (file.parent == folder or file.is_file())
    if file.suffix in (".yaml", ".yml") and not exists:
        raise InputError(f"facts_file: {file} is missing, or not called {FACTS}.")


def facts_in_use(config: ConfigParser) -> Facts:
    """Return the facts of the data, with the options that replace some of them, checked against
    each other.
    """
    given = {}
    for name in [field.name for field in fields(Facts)]:
        if name in config and name != "dataset":  # which is MONAI's id of the cases
            with reading("options", name):  # crop_size follows from image_size
                given[name] = config.get_parsed_content(name)
            check_fact(name, given[name], "options")
    return Facts.parse({**asdict(config.get_parsed_content("facts")), **given}, "options")


def read_as_typed(config: ConfigParser) -> None:
    """Read `true`, `null`, `128,128` and a folder `2024` as they are meant: on a command line, they
    are texts, a tuple and a number for MONAI.

    A relative `load_path` that is not in the working folder is one in the bundle, if it is there.
    """
    for name, value in config.get().items():
        is_place = name.endswith(PLACES) and value is not None
        typed = str(value) if is_place else _as_typed(value)
        if typed != value:
            config[name] = typed
    file = str(config.get("load_path"))
    in_bundle = Path(config.get_parsed_content("bundle_root", default="."), file)
    if in_bundle.is_file() and not Path(file).exists():
        config["load_path"] = str(in_bundle)


def _as_typed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_typed(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_typed(part) for part in value]
    return TYPED.get(value.lower(), value) if isinstance(value, str) else value


def read_files(folder: str | os.PathLike, config: ConfigParser) -> list[Mapping[str, Any]]:
    """Return the contents of those configuration files in the folder of a bundle's that a
    configuration was read from: it has all their ids.
    """
    files = (*Path(folder).glob("*.yaml"), *Path(folder).glob("*.json"))
    contents = [ConfigParser.load_config_file(file) for file in files]
    return [
        content
        for content in contents
        if isinstance(content, Mapping) and all(name.lstrip("+") in config for name in content)
    ]


def check_ids(
    config: ConfigParser, files: Iterable[Mapping[str, Any]], entries: Iterable[str] = ()
) -> None:
    """Check that every id of a configuration has an effect, which a misspelt one has not.

    An id has an effect if another one refers to it or to a part of it, if it is an argument of a
    component, or if MONAI runs it, as it does its usual ones and `entries`. Those of the bundle's
    `files` need not: what referred to them may have been overridden.
    """
    known = {*ENTRIES, *entries, *_with_parents(references(config.get()))}
    for content in files:
        known |= _with_parents(name.lstrip("+") for name in _names(content))
    for name in _names(config.get()):
        if name not in known:
            hint = nearest(name, sorted(known))
            raise InputError(f"{name}: no such option of these files, it has no effect{hint}")


def _names(content: Mapping[str, Any]) -> Iterator[str]:
    """The ids at the top of a configuration and in its groups `train` and `validate`."""
    for name, value in content.items():
        yield name
        if name in GROUPS and isinstance(value, Mapping):
            yield from (f"{name}::{part}" for part in value)


def references(value: Any) -> Iterator[str]:
    """All ids that expressions and references in a configuration name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from references(part)
    elif ConfigExpression.is_expression(value) or str(value).startswith(ReferenceResolver.ref):
        yield from ReferenceResolver.match_refs_pattern(value)


def _with_parents(names: Iterable[str]) -> set[str]:
    """Ids, and those that they are parts of: of `a::b`, also `a`."""
    ids = set()
    for name in names:
        while name:
            ids.add(name)
            name = name.rpartition(ReferenceResolver.sep)[0]
    return ids
