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
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigExpression, ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.utils import ensure_tuple

from calib_components.data.facts import FACTS, Facts, facts_beside
from calib_components.errors import InputError, check_writable, error_line, nearest

# That MONAI looks up
ENTRIES = ("_meta_", "finalize", "imports", "initialize", "run", "save_execute_config")
GROUPS = ("train", "validate")
TYPED: dict[str, bool | None] = {"true": True, "false": False, "null": None}  # as on a command line
FLAGS = (
    "amp", "any_orientation", "any_scanner", "bfloat16", "compile", "ignore_intensity", "nan_to_num", "overwrite",
    "resume", "skip_existing", "tta"
)  # fmt: skip
# That a training writes into ckpt_dir: its best weights, and its state
BEST, LAST = "model.pt", "last.ckpt"

# The workflow of the run that `start_run` began in this thread, for as long as it exists
_workflow: ContextVar[Callable[[], ConfigWorkflow | None]] = ContextVar(
    "workflow", default=lambda: None
)


def start_run(folders: Sequence[str] = ()) -> None:
    """Check the files and options of a run before any work; from then on, an `InputError` ends it
    with one line, and `config_of_run` returns its configuration.

    A bundle names it as the first item of `run`. In a process that runs no configuration of MONAI,
    it checks nothing.

    Args:
        folders: Ids of the folders that the run writes to; with `ckpt_dir`, it is a training.

    Raises:
        InputError: Files are missing or in another order, an id is misspelt or has an unsuitable
            value, a folder cannot be written to, a training would replace weights unasked, or its
            loss takes logits for probabilities.
    """
    workflow = check_files()
    if workflow is None:
        _workflow.set(lambda: None)
        return
    config = workflow.parser
    _check_processes(config)
    entries = (workflow.init_id, workflow.run_id, workflow.final_id)
    check_ids(config, workflow.config_root_path, entries)
    check_values(config)
    for name in folders:
        check_writable(name, config.get_parsed_content(name))
    if "ckpt_dir" in folders:
        check_training(config)
    _workflow.set(weakref.ref(workflow))


def config_of_run() -> ConfigParser | None:
    """Return the configuration of the run that `start_run` began; None if there is none."""
    workflow = _workflow.get()()
    return None if workflow is None else workflow.parser


def check_files() -> ConfigWorkflow | None:
    """Check that the files of a run are complete and in order, see `start_run`; return its
    workflow, None without.
    """
    sys.excepthook = _show
    for handler in logging.root.handlers:
        handler.addFilter(_is_no_mistake)
    workflow, files = running_config()
    if workflow is None:
        return None
    for file in files[1:]:
        if {"facts", "run"} <= ConfigParser.load_config_file(file).keys():
            raise InputError(
                f"config_file: {file} is complete and replaces what is before it. Give it first."
            )
    config = workflow.parser
    ids = (workflow.run_id, *_references(config.get()))
    needed = {name.partition(ReferenceResolver.sep)[0] for name in ids}
    # An operator @ looks like an empty name
    missing = {name for name in needed if name and name not in config}
    if missing:
        _check_base(missing, workflow.config_root_path)
    return workflow


def _check_base(missing: set[str], folder: str | os.PathLike) -> None:
    """Name the file that has all ids that are missing, the one with the most ids."""
    ids_by_file = _ids_by_file(folder)
    bases = [file for file, ids in ids_by_file.items() if missing <= ids]
    if bases:
        base = max(bases, key=lambda file: len(ids_by_file[file]))
        raise InputError(
            f"config_file: {min(missing)} is in none of the files. Give {base} before them."
        )


def _check_processes(config: ConfigParser) -> None:
    """Refuse processes of `torchrun` that would each do all the work."""
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if not by_torchrun or torch.distributed.is_initialized():
        return
    remedy = "Use one"
    if "validate" in config:
        remedy = "Add configs/multi_gpu_train.yaml or multi_gpu_evaluate.yaml"
    raise InputError(
        f"config_file: several processes do not share the work of these files. {remedy}."
    )


def check_training(config: ConfigParser) -> None:
    """Check that a training replaces no weights unasked, and that the loss applies softmax."""
    _check_weights(config)
    loss = config.get_parsed_content("loss")
    for part in loss.modules() if isinstance(loss, torch.nn.Module) else ():
        # One of these is an option of each of MONAI's losses of probabilities
        uses_softmax = getattr(part, "softmax", getattr(part, "use_softmax", True))
        if not (uses_softmax or getattr(part, "other_act", None)):
            raise InputError(
                f"loss: {type(part).__name__} has no softmax, as the network's probabilities do."
                " Set it."
            )


def _check_weights(config: ConfigParser) -> None:
    """Refuse a training that would replace weights unasked.

    One that loads weights of the folder first, as that of MONAI Label does, continues from them.
    """
    folder = Path(str(config.get_parsed_content("ckpt_dir")))
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


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the line of an `InputError`, and other exceptions as ever."""
    if line := error_line(error):
        print(line, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _is_no_mistake(record: logging.LogRecord) -> bool:
    """Keep the tracebacks that engines log of an `InputError` out of the log."""
    return not (record.levelno >= logging.ERROR and error_line(sys.exc_info()[1]))


def running_config() -> tuple[ConfigWorkflow | None, Sequence[str]]:
    """Return the workflow of the configuration that is being run, None if none is.

    MONAI does not hand the configuration to the components, so it is taken from the workflow among
    the callers. With it come the files that it is made of, if a function of MONAI was given them.
    """
    workflow, frame = None, inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if workflow is None and isinstance(caller, ConfigWorkflow):
            workflow = caller
        elif workflow is not None and frame.f_globals.get("__name__") == "monai.bundle.scripts":
            return workflow, ensure_tuple(frame.f_locals.get("config_file") or ())
        frame = frame.f_back
    return workflow, ()


def check_values(config: ConfigParser) -> None:
    """Check options whose mistakes would have no or another effect, as far as a configuration has
    them.

    What was typed on a command line is read first, see `read_as_typed`.
    """
    read_as_typed(config)
    for name in FLAGS:
        value = config.get_parsed_content(name, default=False)
        if not isinstance(value, bool):  # any text would be true
            raise InputError(f"{name} must be true or false, got {value!r}.")
    _check_orientations(config)
    if "facts" in config:  # options such as --num_classes may not fit the other facts
        facts = config.get_parsed_content("facts")
        _check_dimensions(config, facts)
        facts_in_use(config)
        _check_facts_file(config)
        _check_slice_axis(config, facts)


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


def _check_dimensions(config: ConfigParser, facts: Facts) -> None:
    ids = ("network_def::spatial_dims", "network_def::network::spatial_dims")
    dimensions = {facts.spatial_dims, *(config.get(name) for name in ids)}
    if 3 in dimensions and config.get_parsed_content("spatial_dims", default=3) == 2:
        raise InputError(
            "config_file: network, data or weights are 3D. Give configs/volumes.yaml, too."
        )


def _check_facts_file(config: ConfigParser) -> None:
    """Refuse a file of facts that is not there: others would be taken."""
    file, folder = (
        Path(str(config.get_parsed_content(name))) for name in ("facts_file", "dataset_dir")
    )
    exists = file.name == FACTS and (file.parent == folder or file.is_file())
    if file.suffix in (".yaml", ".yml") and not exists:
        raise InputError(f"facts_file: {file} is missing, or not called {FACTS}.")


def _check_slice_axis(config: ConfigParser, facts: Facts) -> None:
    """Refuse an axis that nothing uses: after a training it would mislead inference."""
    axis = config.get_parsed_content("slice_axis", default=facts.slice_axis)
    is_used = "datalist" not in config and "slice_axis" in _references(config["volume_transforms"])
    if axis != facts.slice_axis and not is_used:
        raise InputError(f"slice_axis: {axis} has no effect here. Leave the option out.")


def facts_in_use(config: ConfigParser) -> Facts:
    """Return the facts of the data, with the options that replace some of them, checked against
    each other.
    """
    # MONAI's id
    names = [
        field.name for field in fields(Facts) if field.name in config and field.name != "dataset"
    ]
    given = {name: config.get_parsed_content(name) for name in names}
    return Facts.parse({**asdict(config.get_parsed_content("facts")), **given}, "options")


def read_as_typed(config: ConfigParser) -> None:
    """Read `true`, `null` and `128,128` as they are meant: on a command line, they are texts and a
    tuple for MONAI.
    """
    for name, value in config.get().items():
        typed = _as_typed(value)
        if typed != value:
            config[name] = typed


def _as_typed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_typed(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_typed(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return TYPED.get(value.lower(), value) if isinstance(value, str) else value


def check_ids(config: ConfigParser, folder: str | os.PathLike, entries: Iterable[str] = ()) -> None:
    """Check that every id of a configuration has an effect, which a misspelt one has not.

    An id has an effect if another one refers to it or to a part of it, if it is an argument of a
    component, or if MONAI runs it, as it does its usual ones and `entries`. Those of the bundle's
    files, in `folder`, need not: what referred to them may have been overridden. Those of a file
    that is not a part of the configuration are warned of.
    """
    content = config.get()
    used = {*ENTRIES, *entries, *_with_parents(_references(content))}
    unused = [name for name in _names(content) if name not in used]
    if not unused:
        return
    ids_of_files = [*_ids_by_file(folder).values()]
    known = set().union(*ids_of_files)
    loaded = [ids for ids in ids_of_files if all(name in config for name in ids)]
    for name in unused:
        if name not in known:
            hint = nearest(name, sorted({*used, *known}))
            raise InputError(f"{name}: no such option, it would have no effect{hint}")
        if not any(name in ids for ids in loaded):
            logging.getLogger(__name__).warning(
                "%s: no effect here, it is an id of another configuration", name
            )


def _names(content: Mapping[str, Any]) -> Iterator[str]:
    """The ids at the top of a configuration and in its groups `train` and `validate`."""
    for name, value in content.items():
        yield name
        if name in GROUPS and isinstance(value, Mapping):
            yield from (f"{name}::{part}" for part in value)


def _ids_by_file(folder: str | os.PathLike) -> dict[Path, set[str]]:
    """The ids in each configuration file of a folder.

    A configuration made from a file has all of them.
    """
    ids_by_file = {}
    for file in [*Path(folder).glob("*.yaml"), *Path(folder).glob("*.json")]:
        content = ConfigParser.load_config_file(file)
        if isinstance(content, Mapping):
            ids_by_file[file] = _with_parents(name.lstrip("+") for name in _names(content))
    return ids_by_file


def _references(value: Any) -> Iterator[str]:
    """All ids that expressions and references in a configuration name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _references(part)
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
