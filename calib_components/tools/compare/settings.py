"""What can be compared: settings of the bundles' losses, and the presets that name several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calib_components.errors import InputError

__all__ = ["FURTHER", "PRESETS", "TABLE1", "Setting", "choose_settings"]


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        name: Name of its folder in the results.
        label: Name in tables and figures.
        loss: Name of a file in the bundle's `configs/losses`.
        overrides: Ids of the configuration and their values, where they differ from that file.
    """

    name: str
    label: str
    loss: str
    overrides: dict[str, Any] = field(default_factory=dict)


def _variants(loss: str, label: str, argument: str, *values: Any) -> list[Setting]:
    return [Setting(f"{loss}_{v}", f"{label} {v}", loss, {f"loss::{argument}": v}) for v in values]


NACL = Setting("nacl", "NACL", "nacl")
TABLE1 = [
    Setting("ce_dice", "CE+DSC", "ce_dice"),
    Setting("focal", "FL", "focal"),
    Setting("entropy_penalty", "ECP", "entropy_penalty"),
    Setting("label_smoothing", "LS", "label_smoothing"),
    Setting("svls", "SVLS", "svls"),
    Setting("mbls", "MbLS", "mbls"),
    NACL,
]
FURTHER = [  # in no preset: not of the paper
    Setting("cross_entropy", "CE", "cross_entropy"),
    Setting("l1_ace", "CE+DSC+L1-ACE", "l1_ace"),
]
PRESETS = {
    "table1": TABLE1,
    "table2": [
        NACL,
        *_variants("nacl", "NACL", "constraint", "softmax"),
        *_variants("nacl", "NACL", "penalty", "l2"),
        Setting("nacl_5x5", "NACL 5x5", "nacl", {"loss::kernel_size": 5}),
    ],
    "table3": [NACL, *_variants("nacl", "NACL", "prior", "gaussian", "max", "min", "median", "mode")],
    # The paper's grids, and one for NACL. The values of Table 1 are in it under their plain names.
    "tuning": [
        *TABLE1,
        *_variants("focal", "FL", "gamma", 1.0, 2.0),
        *_variants("entropy_penalty", "ECP", "penalty_weight", 0.2, 0.3),
        *_variants("label_smoothing", "LS", "alpha", 0.2, 0.3),
        *_variants("svls", "SVLS", "sigma", 0.5, 1.0),
        *_variants("mbls", "MbLS", "margin", 3.0, 10.0),
        *_variants("nacl", "NACL", "penalty_weight", 0.01, 0.03, 0.3),
    ],
}


def choose_settings(names: Sequence[str], bundle: Path) -> list[Setting]:
    """Return settings by the names of presets, of settings, or of files in the bundle's `configs/losses`; each once.

    Args:
        names: Names, in the order of the result.
        bundle: Folder of the bundle.

    Raises:
        InputError: A name is unknown, or has two meanings.
    """
    known = {setting.name: setting for preset in (*PRESETS.values(), FURTHER) for setting in preset}
    files = sorted(path.stem for path in (bundle / "configs" / "losses").glob("*.yaml"))
    chosen: dict[str, Setting] = {}
    for name in names:
        if name in files and (name in PRESETS or (name in known and known[name].loss != name)):
            file = bundle / "configs" / "losses" / f"{name}.yaml"
            raise InputError(
                f"--losses: expected one meaning of {name}, got a setting of the paper and {file}; rename it"
            )
        if name in PRESETS:
            chosen.update((setting.name, setting) for setting in PRESETS[name])
        elif name in known:
            chosen[name] = known[name]
        elif name in files:
            chosen[name] = Setting(name, name, name)
        else:
            options = ", ".join(dict.fromkeys([*PRESETS, *known, *files]))
            raise InputError(f"--losses: expected names among {options}, got {name!r}")
    return list(chosen.values())
