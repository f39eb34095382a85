"""What tells one training from another: its settings, and the prepared cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calib_workflows.data.cases import CONTENT, SOURCE, read_lists
from calib_workflows.data.facts import Facts

LOADING = (
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "prefetch_factor",
    "multiprocessing_context",
)
PLACES = (
    "bundle_root",
    "ckpt_dir",
    "datalist",
    "dataset_dir",
    "load_path",
    "output_dir",
    "facts_file",
)
# What a training may change and continue; MONAI's entries and handlers reach no number
FREE = {
    *PLACES,
    *LOADING,
    *("cache", "device", "max_epochs", "resume", "overwrite", "patience", "compile"),
    *("imports", "initialize", "run", "finalize", "handlers", "curves", "facts"),
}


def settings_of(config: Mapping[str, Any], facts: Facts | None = None) -> dict[str, Any]:
    """Return the settings of a configuration as they are written, by their ids, but for `FREE`;
    and the facts of the data.
    """
    settings = dict(_flat("", config))
    if facts is not None:
        values = asdict(facts)
        values.pop("name")  # for readers alone
        settings |= {f"facts::{name}": value for name, value in values.items()}
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def _flat(parent: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name in FREE:
            continue
        if isinstance(value, Mapping):
            yield from _flat(f"{parent}{name}::", value)
        else:
            yield f"{parent}{name}", value


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each setting that differs between two runs, such as `seed 0, not 1`."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} {before.get(name)!s:.200}, not {now.get(name)!s:.200}" for name in names]


def fingerprint_of_cases(datalist: Path, folder: Path) -> str | None:
    """Return the SHA-256 of what the prepared cases of a list hold, as `source.json` of each
    records it.

    Cases that were prepared again to the same voxels have the same. None without a list, or for a
    case without such a record. Paths in the list are relative to `folder`.
    """
    try:
        listed = read_lists(datalist, folder).values()
        images = {item["image"] for items in listed for item in items}
        sources = [Path(image).with_name(SOURCE).read_text() for image in sorted(images)]
        contents = [json.loads(source)[CONTENT] for source in sources]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def fingerprint_of_list(datalist: Path) -> str:
    """Return the SHA-256 of a list of prepared cases, or of nothing where there is none."""
    return hashlib.sha256(datalist.read_bytes() if datalist.is_file() else b"").hexdigest()
