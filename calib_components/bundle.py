"""What runs before the workflow of a bundle: checks of its options, and one line instead of a
traceback for mistakes.

MONAI accepts a misspelt option silently, and wraps every exception of a component in pages of
tracebacks.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigExpression, ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.utils import ensure_tuple

from calib_components.data.facts import FACTS, Facts, facts_beside
from calib_components.errors import InputError, check_writable, error_line, nearest, root_cause

# That MONAI looks up
ENTRIES = ("_meta_", "finalize", "imports", "initialize", "run", "save_execute_config")
GROUPS = ("train", "validate")
TYPED: dict[str, bool | None] = {"true": True, "false": False, "null": None}  # as on a command line
FLAGS = (
    "amp", "any_orientation", "any_scanner", "bfloat16", "compile", "ignore_intensity", "nan_to_num", "overwrite",
    "resume", "skip_existing", "tta"
)  # fmt: skip
PATHS = (
    "bundle_root", "ckpt_dir", "dataset_dir", "datalist", "facts_file", "load_path", "output_dir", "calibrated_path"
)  # fmt: skip
# That a training writes into ckpt_dir: its best weights, and its state
BEST, LAST = "model.pt", "last.ckpt"


def start_run(folders: Sequence[str] = ()) -> None:
    """Check the files and options of a run before any work; from then on, an `InputError` ends it
    with one line.

    A bundle names it as the first item of `run`. In a process that runs no configuration of MONAI,
    it checks nothing.

    Args:
        folders: Ids of the folders that the run writes to; with `ckpt_dir`, it is a training.

    Raises:
        InputError: Files are missing or in another order, an id is misspelt or has an unsuitable
            value, a folder cannot be written to, a training would replace weights unasked, or its
            network or loss does not fit the data.
    """
    if (workflow := check_files()) is None:
        return
    config = workflow.parser
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if by_torchrun and not torch.distributed.is_initialized():  # each process would do all the work
        remedy = (
            "Add configs/multi_gpu_train.yaml or multi_gpu_evaluate.yaml"
            if "validate" in config
            else "Use one"
        )
        raise InputError(
            f"config_file: several processes do not share the work of these files. {remedy}."
        )
    check_ids(
        config, workflow.config_root_path, {workflow.init_id, workflow.run_id, workflow.final_id}
    )
    check_values(config)
    for name in folders:
        check_writable(name, config.get_parsed_content(name))
    if "ckpt_dir" in folders:
        check_training(config)


def check_files() -> ConfigWorkflow | None:
    """Check that the files of a run are complete and in order, see `start_run`; return its
    workflow, None without.
    """
    sys.excepthook = _show
    for handler in logging.root.handlers:
        handler.addFilter(_is_no_mistake)
    workflow, files = _running_workflow()
    if workflow is None:
        return None
    for file in files[1:]:
        if {"facts", "run"} <= ConfigParser.load_config_file(file).keys():
            raise InputError(
                f"config_file: {file} is complete and replaces what is before it. Give it first."
            )
    config = workflow.parser
    needed = {
        name.partition(ReferenceResolver.sep)[0]
        for name in (workflow.run_id, *_references(config.get()))
    }
    # An operator @ looks like an empty name
    missing = {name for name in needed if name and name not in config}
    known = _names_of_files(workflow.config_root_path) if missing else {}
    if bases := [file for file, names in known.items() if missing <= names]:
        base = max(bases, key=lambda file: len(known[file]))
        raise InputError(
            f"config_file: {min(missing)} is in none of the files. Give {base} before them."
        )
    return workflow


def check_training(config: ConfigParser) -> None:
    """Check that a training replaces no weights unasked, and that its network and loss work, on
    samples of zeros.

    A training that loads weights of the folder first, as that of MONAI Label does, continues from
    them.
    """
    folder = Path(str(config.get_parsed_content("ckpt_dir")))
    there = [name for name in (LAST, BEST) if (folder / name).exists()]
    loaded = [
        Path(handler["load_path"]).parent
        for handler in config["train::handlers"]
        if "load_path" in handler
    ]
    resumes = config.get_parsed_content("resume") and LAST in there
    if there and not (resumes or config.get_parsed_content("overwrite") or folder in loaded):
        remedy = "--resume true to continue its training, " if LAST in there else ""
        raise InputError(
            f"ckpt_dir: {folder} has {there[-1]}. Pass {remedy}--overwrite true, or another"
            " --ckpt_dir."
        )
    facts, device = facts_in_use(config), config.get_parsed_content("device")
    image, label = (
        torch.zeros(2, n, *facts.crop_size, device=device) for n in (facts.in_channels, 1)
    )
    trial = ConfigParser(copy.deepcopy(config.get()))  # draws none of the weights that are trained
    with torch.no_grad(), _naming("network_def"):
        logits = trial.get_parsed_content("network_def").to(device)(image)
        if (shape := tuple(logits.shape)) != (2, facts.num_classes, *facts.crop_size):
            raise InputError(
                f"network_def: gives {shape} for two samples, not {facts.num_classes} classes of"
                " each of their voxels."
            )
    with _naming("loss"):
        loss = trial.get_parsed_content("loss")
        # Which is no change, except that they look unlike probabilities, of which losses warn
        logits -= 9
        loss(logits, label).item()
        if (ignored := trial.get_parsed_content("ignore_index", default=None)) is not None:
            _check_ignored(loss, logits, label, ignored)
    for part in loss.modules() if isinstance(loss, torch.nn.Module) else ():
        if not (
            getattr(part, "softmax", getattr(part, "use_softmax", True))
            or getattr(part, "other_act", None)
        ):
            raise InputError(
                f"loss: {type(part).__name__} has no softmax, as the network's probabilities do."
                " Set it."
            )


def _check_ignored(
    loss: torch.nn.Module, logits: torch.Tensor, label: torch.Tensor, ignored: int
) -> None:
    """Refuse a loss that counts padding, in a half of the samples whose label is set to `ignored`."""
    label[:, :, : label.shape[2] // 2] = ignored
    try:
        one, other = (
            loss(changed, label) for changed in (logits, logits * (1 + (label == ignored).float()))
        )
    except (InputError, IndexError, RuntimeError):
        one, other = math.nan, math.nan
    if one != other:
        raise InputError(
            f"loss: padding counts, whose label is {ignored}. Let the loss have that ignore_index."
        )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn what goes wrong in a component into an `InputError` that names its id."""
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        line = f"{name}: {type(cause).__name__}: {textwrap.shorten(str(cause), 300).rstrip('.')}."
        raise InputError(str(cause) if isinstance(cause, InputError) else line) from error


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the line of an `InputError`, and other exceptions as ever."""
    if line := error_line(error):
        print(line, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _is_no_mistake(record: logging.LogRecord) -> bool:
    """Keep the tracebacks that engines log of an `InputError` out of the log."""
    return not (record.levelno >= logging.ERROR and error_line(sys.exc_info()[1]))


def running_config() -> ConfigParser | None:
    """Return the configuration that is being run, None if none is."""
    workflow, _ = _running_workflow()
    return None if workflow is None else workflow.parser


def _running_workflow() -> tuple[ConfigWorkflow | None, Sequence[str]]:
    """MONAI does not hand the configuration to the components, so it is taken from the workflow
    among the callers.

    With it come the files that it is made of, if a function of MONAI was given them.
    """
    workflow, frame = None, inspect.currentframe()
    while frame is not None:
        if workflow is None and isinstance(caller := frame.f_locals.get("self"), ConfigWorkflow):
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
    values: dict[str, Any] = {}
    for name in filter(config.__contains__, (*FLAGS, *PATHS, "device")):
        with _naming(name):
            values[name] = config.get_parsed_content(name)
    if isinstance(loss := config.get("loss"), str) and loss[:1] not in ("@", "$"):
        raise InputError(
            f"loss: give configs/losses/{Path(loss).stem}.yaml after train.yaml in place of this"
            " option."
        )
    for name, value in values.items():
        if name in FLAGS and not isinstance(value, bool):  # any text would be true
            raise InputError(f"{name} must be true or false, got {value!r}.")
        if name in PATHS and str(value).startswith("~"):
            raise InputError(
                f"{name}: {value} is not expanded. Write the path in full, or a space in place of"
                " '='."
            )
    trained_on = (
        facts_beside(values["load_path"]) if values.get("tta") and "load_path" in values else None
    )
    turned = None if trained_on is None else trained_on.any_orientation
    if values.get("tta") and (values.get("any_orientation") if turned is None else turned) is False:
        raise InputError(
            "tta: the network was not trained on slices in all orientations (any_orientation is"
            " false)."
        )
    if "facts" in config:  # options such as --num_classes may not fit the other facts
        facts = config.get_parsed_content("facts")
        asked = [
            config.get(f"network_def::{name}") for name in ("spatial_dims", "network::spatial_dims")
        ]
        if (
            3 in (facts.spatial_dims, *asked)
            and config.get_parsed_content("spatial_dims", default=3) == 2
        ):
            raise InputError(
                "config_file: network, data or weights are 3D. Give configs/volumes.yaml, too."
            )
        facts_in_use(config)
        file, folder = Path(str(values["facts_file"])), Path(str(values["dataset_dir"]))
        is_there = file.name == FACTS and (file.parent == folder or file.is_file())
        if file.suffix in (".yaml", ".yml") and not is_there:  # other facts would be taken
            raise InputError(f"facts_file: {file} is missing, or not called {FACTS}.")
        known = facts.slice_axis
        given = config.get_parsed_content("slice_axis", default=known)
        is_used = "datalist" not in config and "slice_axis" in set(
            _references(config["volume_transforms"])
        )
        if given != known and not is_used:  # in training it would mislead later inference
            raise InputError(f"slice_axis: {given} has no effect here. Leave the option out.")


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
        if name in PATHS and str(value).startswith("%"):
            raise InputError(
                f"{name}: MONAI reads {value}, which begins with %, as a reference. Write"
                f" ./{value}."
            )
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

    An id has an effect if another one refers to it or to a part of it, if it is an argument of a
    component, or if MONAI runs it, as it does its usual ones and `entries`. Those of the bundle's
    files, in `folder`, need not: what referred to them may have been overridden. Those of a file
    that is not a part of the configuration are warned of.
    """
    content = config.get()
    used = {*ENTRIES, *entries}
    for name in _references(content):
        used |= {name, *_parents(name)}
    unused = [name for name in _names(content) if name not in used]
    files = [*_names_of_files(folder).values()] if unused else []
    known = set().union(*files)
    for name in unused:
        if name not in known:
            hint = nearest(name, sorted({*used, *known}))
            raise InputError(f"{name}: no such option, it would have no effect{hint}")
        if not any(name in names and all(other in config for other in names) for names in files):
            logging.getLogger(__name__).warning(
                "%s: no effect here, it is an id of another configuration", name
            )


def _names(content: Mapping[str, Any]) -> Iterator[str]:
    """The ids at the top of a configuration and in its groups `train` and `validate`."""
    for name, value in content.items():
        yield name
        if name in GROUPS and isinstance(value, Mapping):
            yield from (f"{name}::{part}" for part in value)


def _names_of_files(folder: str | os.PathLike) -> dict[Path, set[str]]:
    """The ids in each configuration file of a folder.

    A configuration made from a file has all of them.
    """
    files = {}
    for file in (file for ending in ("yaml", "json") for file in Path(folder).glob(f"*.{ending}")):
        if isinstance(content := ConfigParser.load_config_file(file), Mapping):
            names = [name.lstrip("+") for name in _names(content)]
            files[file] = {name for full in names for name in (full, *_parents(full))}
    return files


def _references(value: Any) -> Iterator[str]:
    """All ids that expressions and references in a configuration name."""
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _references(part)
    elif isinstance(value, str) and (
        ConfigExpression.is_expression(value) or value.startswith(ReferenceResolver.ref)
    ):
        yield from ReferenceResolver.match_refs_pattern(value)


def _parents(name: str) -> Iterator[str]:
    while ReferenceResolver.sep in name:
        name = name.rpartition(ReferenceResolver.sep)[0]
        yield name
