"""What runs before the workflow of a bundle: checks of its options, and one line instead of a traceback for mistakes.

MONAI accepts a misspelt option silently, and wraps every exception of a component in pages of tracebacks.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigExpression, ConfigParser, ConfigWorkflow, ReferenceResolver

from calib_components.data.facts import FACTS, Facts
from calib_components.errors import InputError, check_writable, error_line, nearest

ENTRIES = ("_meta_", "finalize", "imports", "initialize", "run", "save_execute_config")  # that MONAI looks up
GROUPS = ("train", "validate")
TYPED: dict[str, bool | None] = {"true": True, "false": False, "null": None}  # as on a command line
FLAGS = (
    "amp", "any_orientation", "any_scanner", "bfloat16", "compile", "ignore_intensity", "nan_to_num", "overwrite",
    "resume", "skip_existing", "tta"
)  # fmt: skip
PATHS = (
    "bundle_root", "ckpt_dir", "dataset_dir", "datalist", "facts_file", "load_path", "output_dir", "calibrated_path"
)  # fmt: skip


def start_run(folders: Sequence[str] = ()) -> None:
    """Check the options of a run before any work; from then on, an `InputError` ends the process with one line.

    A bundle names it as the first item of `run`. In a process that runs no configuration of MONAI, it checks nothing.

    Args:
        folders: Ids of the folders that the run writes to.

    Raises:
        InputError: An id is misspelt or has an unsuitable value, or a folder cannot be written to.
    """
    sys.excepthook = _show
    for handler in logging.root.handlers:
        handler.addFilter(_is_no_mistake)
    workflow = _running_workflow()
    if workflow is None:
        return
    config = workflow.parser
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if by_torchrun and not torch.distributed.is_initialized():  # each process would do all the work
        remedy = "Add configs/multi_gpu_train.yaml or multi_gpu_evaluate.yaml" if "validate" in config else "Use one"
        raise InputError(f"config_file: several processes do not share the work of these files. {remedy}.")
    check_ids(config, workflow.config_root_path, {workflow.init_id, workflow.run_id, workflow.final_id})
    check_values(config)
    for name in folders:
        check_writable(name, config.get_parsed_content(name))


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the line of an `InputError`, and other exceptions as ever."""
    if line := error_line(error):
        print(line, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _is_no_mistake(record: logging.LogRecord) -> bool:
    """Keep the tracebacks that engines log of an `InputError` out of the log."""
    return not (record.name.startswith("ignite.") and error_line(sys.exc_info()[1]))


def running_config() -> ConfigParser | None:
    """Return the configuration that is being run, None if none is."""
    workflow = _running_workflow()
    return None if workflow is None else workflow.parser


def _running_workflow() -> ConfigWorkflow | None:
    """MONAI does not hand the configuration to the components, so it is taken from the workflow among the callers."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(workflow := frame.f_locals.get("self"), ConfigWorkflow):
            return workflow
        frame = frame.f_back
    return None


def check_values(config: ConfigParser) -> None:
    """Check options whose mistakes would have no or another effect, as far as a configuration has them.

    What was typed on a command line is read first, see `read_as_typed`.

    Raises:
        InputError: A value is not suitable.
    """
    read_as_typed(config)
    values = {name: config.get_parsed_content(name) for name in (*FLAGS, *PATHS, "device") if name in config}
    for name, value in values.items():
        if name in FLAGS and not isinstance(value, bool):  # any text would be true
            raise InputError(f"{name} must be true or false, got {value!r}.")
        if name in PATHS and str(value).startswith("~"):
            raise InputError(f"{name}: {value} is not expanded. Write the path in full, or a space in place of '='.")
    if "validate" in config and str(values.get("device")).startswith("mps"):
        raise InputError("device: mps has no float64, which the metrics need. Use cpu or cuda.")
    if values.get("tta") and values.get("any_orientation") is False:
        raise InputError("tta: the network was not trained on slices in all orientations (any_orientation is false).")
    if "facts" in config:  # options such as --num_classes may not fit the other facts
        facts_in_use(config)
        _check_facts_file(Path(str(values["facts_file"])), Path(str(values["dataset_dir"])))
        known = config.get_parsed_content("facts").slice_axis
        given = config.get_parsed_content("slice_axis", default=known)
        is_used = "datalist" not in config and "slice_axis" in set(_references(config["volume_transforms"]))
        if given != known and not is_used:  # in training it would mislead later inference
            raise InputError(f"slice_axis: {given} has no effect here. Leave the option out.")


def _check_facts_file(file: Path, folder: Path) -> None:
    """Refuse a file in place of which the facts of another folder, or those of the bundle, would be taken."""
    is_one = file.name == FACTS and (file.parent == folder or file.is_file())
    if file.suffix in (".yaml", ".yml") and not is_one:
        raise InputError(f"facts_file: {file} is missing, or not called {FACTS}.")


def facts_in_use(config: ConfigParser) -> Facts:
    """Return the facts of the data, with the options that replace some of them, checked against each other."""
    names = [field.name for field in fields(Facts) if field.name in config and field.name != "dataset"]  # MONAI's id
    given = {name: config.get_parsed_content(name) for name in names}
    return Facts.parse({**asdict(config.get_parsed_content("facts")), **given}, "options")


def read_as_typed(config: ConfigParser) -> None:
    """Read `true`, `null` and `128,128` as they are meant: on a command line, they are texts and a tuple for MONAI."""
    for name, value in config.get().items():
        if (typed := _as_typed(value)) != value:
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

    An id has an effect if another one refers to it or to a part of it, or if it is an argument of a component. Those of
    the bundle's files need not: what referred to them may have been overridden. Those of a file that is not a part of
    the configuration are warned of.

    Args:
        config: Configuration after overrides.
        folder: Folder of the bundle's configuration files.
        entries: Ids that MONAI runs, besides its usual ones.

    Raises:
        InputError: An id has no effect. The message names the nearest one that has.
    """
    content = config.get()
    used = {*ENTRIES, *entries}
    for name in _references(content):
        used |= {name, *_parents(name)}
    unused = [name for name in _names(content) if name not in used]
    files = _names_of_files(folder) if unused else []
    known = set().union(*files)
    for name in unused:
        if name not in known:
            hint = nearest(name, sorted({*used, *known}))
            raise InputError(f"{name}: no such option, it would have no effect{hint}")
        if not any(name in names and all(other in config for other in names) for names in files):
            logging.getLogger(__name__).warning("%s: no effect here, it is an id of another configuration", name)


def _names(content: Mapping[str, Any]) -> Iterator[str]:
    """The ids at the top of a configuration and in its groups `train` and `validate`."""
    for name, value in content.items():
        yield name
        if name in GROUPS and isinstance(value, Mapping):
            yield from (f"{name}::{part}" for part in value)


def _names_of_files(folder: str | os.PathLike) -> list[set[str]]:
    """The ids in each configuration file of a folder. A configuration made from a file has all of them."""
    files = []
    for file in (file for ending in ("yaml", "json") for file in Path(folder).glob(f"*.{ending}")):
        if isinstance(content := ConfigParser.load_config_file(file), Mapping):
            names = [name.lstrip("+") for name in _names(content)]
            files.append({name for full in names for name in (full, *_parents(full))})
    return files


def _references(value: Any) -> Iterator[str]:
    """All ids that expressions and references in a configuration name."""
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _references(part)
    elif isinstance(value, str) and (ConfigExpression.is_expression(value) or value.startswith(ReferenceResolver.ref)):
        yield from ReferenceResolver.match_refs_pattern(value)


def _parents(name: str) -> Iterator[str]:
    while ReferenceResolver.sep in name:
        name = name.rpartition(ReferenceResolver.sep)[0]
        yield name
