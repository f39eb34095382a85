"""The run of a bundle: checks of its options before any work, and one line instead of a traceback for users' mistakes.

MONAI accepts a misspelt option silently, and wraps every exception of a component in pages of tracebacks.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from pydoc import locate
from traceback import walk_tb
from types import TracebackType
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import (
    ComponentLocator,
    ConfigComponent,
    ConfigExpression,
    ConfigParser,
    ConfigWorkflow,
    ReferenceResolver,
)

from calib_components.data.facts import FACTS, Facts
from calib_components.errors import InputError, check_writable, error_line, nearest
from calib_components.options import OPTIONS, PATH, PATHS, TYPED

__all__ = ["OneLineErrors", "check_ids", "check_values", "facts_in_use", "read_as_typed", "running_config", "start_run"]

ENTRIES = ("_meta_", "finalize", "imports", "initialize", "run", "save_execute_config")  # that MONAI looks up
GROUPS = ("train", "validate")


def start_run(folders: Sequence[str] = ()) -> None:
    """Check the options of a run before any work; from then on, a user's mistake ends the process with one line.

    A bundle names it as the first item of `run`. In a process that runs no configuration of MONAI, it does nothing.

    Args:
        folders: Ids of the folders that the run writes to.

    Raises:
        InputError: An id is misspelt or has an unsuitable value, or a folder cannot be written to.
    """
    _show_errors_in_one_line()
    workflow = _running_workflow()
    if workflow is None:
        return
    config = workflow.parser
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if by_torchrun and not torch.distributed.is_initialized():
        expected = "configs/multi_gpu_train.yaml or multi_gpu_evaluate.yaml among the files"
        raise InputError(
            f"config_file: expected {expected if 'validate' in config else 'inference in one process'}, got several "
            "processes that would each do all the work"
        )
    _check_typed_paths(sys.argv)
    check_ids(config, workflow.config_root_path, {workflow.init_id, workflow.run_id, workflow.final_id})
    check_values(config)
    _check_facts_file(config)
    for name in folders:
        check_writable(name, config.get_parsed_content(name))
    if config.get_parsed_content("compile", default=False):
        _check_compiler(config.get_parsed_content("device"))


def _check_facts_file(config: ConfigParser) -> None:
    """Refuse a `facts_file` in place of which the facts of another folder, or those of the bundle, would be taken."""
    file, folder = (Path(str(config.get_parsed_content(name, default=""))) for name in ("facts_file", "dataset_dir"))
    is_one = file.name == FACTS and (file.parent == folder or file.is_file())
    if file.suffix in (".yaml", ".yml") and not is_one:
        raise InputError(f"facts_file: expected a file that is there and is called {FACTS}, got {file}")


def _check_typed_paths(arguments: Sequence[str]) -> None:
    """Refuse a path that Fire has cut at a #, by what was typed."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        typed = value if equals else following
        if argument.startswith("-") and name in PATHS and "#" in typed:
            raise InputError(f"{name}: expected {PATH[0]}, got {typed!r}")


def running_config() -> ConfigParser | None:
    """The configuration that is being run, None if none is."""
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
        InputError: An id has no effect; the message names the nearest one that has.
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
            _refuse(name, sorted({*used, *known}))
        if not any(name in names and all(other in config for other in names) for names in files):
            logging.getLogger(__name__).warning("%s: no effect here, it is an id of another configuration", name)
    for name, value in content.items():
        _check_components(name, value, config.locator)


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


def check_values(config: ConfigParser) -> None:
    """Check the values of well-known options, as far as a configuration has them.

    What was typed on a command line is read first, see `read_as_typed`.

    Raises:
        InputError: A value is not suitable.
    """
    read_as_typed(config)
    if "device" in config:  # first, since others depend on it
        _check_device(config.get_parsed_content("device"), "validate" in config)
    for name, (expected, is_right) in OPTIONS.items():
        if name in config:
            try:
                value = config.get_parsed_content(name)
            except Exception as error:  # of MONAI, or whatever the expression raises
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                raise InputError(
                    f"{name}: expected {expected}, got {config[name]!r}, which MONAI cannot evaluate: "
                    f"{type(cause).__name__}: {' '.join(str(cause).split()).rstrip(',')}"
                ) from error
            if not is_right(value):
                raise InputError(f"{name}: expected {expected}, got {value!r}")
    if "train" in config and "split" not in config:  # nor to be evaluated
        epochs, interval = (config.get_parsed_content(name, default=1) for name in ("max_epochs", "val_interval"))
        if epochs % interval:
            logging.getLogger(__name__).warning(
                "val_interval: expected a divisor of max_epochs, %d, got %d; %s",
                epochs,
                interval,
                "nothing is validated, and model.pt is that of the last epoch"
                if interval > epochs
                else "epochs after the last validation are not chosen from",
            )
    if [config.get_parsed_content(name, default=None) for name in ("tta", "any_orientation")] == [True, False]:
        raise InputError(
            "tta: expected false for a network that was not trained on slices in all orientations (any_orientation "
            "false), got true"
        )
    if "facts" in config:  # options such as --num_classes may not fit the other facts
        facts_in_use(config)
        if "slice_axis" in config:
            _check_slice_axis(config)


def facts_in_use(config: ConfigParser) -> Facts:
    """The facts of the data, with the options that replace some of them.

    Raises:
        InputError: They do not fit each other.
    """
    names = [field.name for field in fields(Facts) if field.name in config and field.name != "dataset"]  # MONAI's id
    given = {name: config.get_parsed_content(name) for name in names}
    return Facts.parse({**asdict(config.get_parsed_content("facts")), **given}, "options")


def _check_slice_axis(config: ConfigParser) -> None:
    """Refuse an axis that would have no effect here, and in training mislead later inference."""
    given, known = config.get_parsed_content("slice_axis"), config.get_parsed_content("facts").slice_axis
    if given == known:
        return
    if "datalist" in config:
        reason = "that of the facts, since prepared cases are cut into slices already"
    elif "slice_axis" not in set(_references(config["volume_transforms"])):
        reason = "since slices follow from the orientation here"
    else:
        return
    raise InputError(f"slice_axis: expected {'null' if known is None else known}, {reason}, got {given!r}")


def read_as_typed(config: ConfigParser) -> None:
    """Read `true`, `null` and `128,128` as they are meant: on a command line, they are texts and a tuple for MONAI.

    Args:
        config: Configuration after overrides; changed in place.
    """
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


def _check_device(device: Any, measures: bool) -> None:
    if measures and str(device).partition(":")[0] == "mps":
        raise InputError(f"device: expected cpu or cuda, got {device}, which has no float64; the metrics need it")
    try:
        torch.empty(0, device=torch.device(device))
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: expected one that PyTorch finds, got {device!r}: {reason}") from None


def _check_compiler(device: Any) -> None:
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"compile: expected a compiler that torch.compile can use, or false, got {reason}") from None


def _references(value: Any) -> Iterator[str]:
    """All ids that expressions and references in a configuration name."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _references(part)
    elif isinstance(value, str) and (ConfigExpression.is_expression(value) or value.startswith(ReferenceResolver.ref)):
        yield from ReferenceResolver.match_refs_pattern(value)


def _parents(name: str) -> Iterator[str]:
    while ReferenceResolver.sep in name:
        name = name.rpartition(ReferenceResolver.sep)[0]
        yield name


def _check_components(name: str, value: Any, locator: ComponentLocator) -> None:
    """Check that the components in a part of a configuration exist and have arguments of the names given."""
    if isinstance(value, Mapping):
        if ConfigComponent.is_instantiable(value):
            _check_component(name, value, locator)
        for key, part in value.items():
            _check_components(f"{name}::{key}", part, locator)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _check_components(f"{name}::{index}", part, locator)


def _check_component(name: str, config: Mapping[str, Any], locator: ComponentLocator) -> None:
    component = ConfigComponent(dict(config), locator=locator)
    target = component.resolve_module_name()
    if not isinstance(target, str) or target.startswith((ReferenceResolver.ref, "$")):
        return
    if (function := locate(target)) is None:
        raise InputError(f"{name}: expected a class or function that Python finds, got {config['_target_']}")
    try:
        parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):  # it has none that Python shows
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in component.resolve_args():
        if key not in parameters:
            _refuse(f"{name}::{key}", [f"{name}::{parameter}" for parameter in parameters])
        value = config[key]
        is_text = isinstance(value, str) and not value.startswith((ReferenceResolver.ref, "$"))
        is_flag = type(parameters[key].default) is bool and "str" not in str(parameters[key].annotation)
        if is_text and is_flag and value.lower() not in TYPED:  # any text would be true
            raise InputError(f"{name}::{key}: expected true or false, got {value!r}")


def _refuse(name: str, others: Iterable[str]) -> None:
    raise InputError(
        f"{name}: expected an id that the configuration uses, got one without effect{nearest(name, others)}"
    )


def _show_errors_in_one_line() -> None:
    if not (isinstance(sys.excepthook, partial) and sys.excepthook.func is _show):
        sys.excepthook = partial(_show, sys.excepthook)


def _show(
    otherwise: Callable, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    line = error_line(error) if _is_of_a_run(traceback) else None
    if line is None:
        otherwise(kind, error, traceback)
    else:
        print(line, file=sys.stderr)


def _is_of_a_run(traceback: TracebackType | None) -> bool:
    """Whether an error left the run of a bundle: a script that started one may fail in another way afterwards."""
    frames = (frame for frame, _ in walk_tb(traceback))
    return any(isinstance(frame.f_locals.get("self"), ConfigWorkflow) for frame in frames)


class OneLineErrors:
    """First handler of an engine: a user's mistake leaves it as an `InputError` and without pages of log messages.

    Other handlers of exceptions are not called: MONAI's and Ignite's show the same traceback again.
    """

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: Any engine.
        """
        # Ignite logs an exception, with the traceback of a DataLoader's worker, while it handles it.
        engine.logger.addFilter(lambda _: error_line(sys.exc_info()[1]) is None)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._raise)

    def _raise(self, engine: Engine, error: BaseException) -> None:
        line = error_line(error)
        if line in (None, str(error)):
            raise error
        raise InputError(str(line)) from error
