"""What can be compared: overlays in a bundle's `configs/losses`, variants of them, and presets that
name several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calib_components.errors import InputError, nearest


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    name: str  # of its folder in the results
    label: str  # in tables and figures
    loss: str  # name of a file in the bundle's configs/losses
    # Ids and their values, where they differ from that file
    overrides: dict[str, Any] = field(default_factory=dict)


LABELS = {  # of overlays, in tables and figures; others are called as their file
    "ce_dice": "CE+DSC",
    "focal": "FL",
    "entropy_penalty": "ECP",
    "label_smoothing": "LS",
    "svls": "SVLS",
    "mbls": "MbLS",
    "nacl": "NACL",
    "cross_entropy": "CE",
    "l1_ace": "CE+DSC+L1-ACE",
}


def _overlay(loss: str) -> Setting:
    return Setting(loss, LABELS.get(loss, loss), loss)


def _variants(base: Setting, argument: str, *values: Any) -> list[Setting]:
    return [
        Setting(
            f"{base.name}_{v}",
            f"{base.label} {v}",
            base.loss,
            {**base.overrides, f"loss::{argument}": v},
        )
        for v in values
    ]


TABLE1 = [
    _overlay(loss)
    for loss in ("ce_dice", "focal", "entropy_penalty", "label_smoothing", "svls", "mbls", "nacl")
]
_, FOCAL, ECP, LS, SVLS, MBLS, NACL = TABLE1
NACL_SOFTMAX = _variants(NACL, "constraint", "softmax")[0]
PRESETS = {
    "table1": TABLE1,
    "table2": [
        NACL,
        NACL_SOFTMAX,
        *_variants(NACL, "penalty", "l2"),
        Setting("nacl_5x5", "NACL 5x5", "nacl", {"loss::kernel_size": 5}),
    ],
    "table3": [NACL, *_variants(NACL, "prior", "gaussian", "max", "min", "median", "mode")],
    # The paper's grids, and weights of MbLS and NACL. The values of Table 1 are in it under their
    # plain names.
    "tuning": [
        *TABLE1,
        *_variants(FOCAL, "gamma", 1.0, 2.0),
        *_variants(ECP, "penalty_weight", 0.2, 0.3),
        *_variants(LS, "alpha", 0.2, 0.3),
        *_variants(SVLS, "sigma", 0.5, 1.0),
        *_variants(MBLS, "margin", 3.0, 10.0),
        *_variants(MBLS, "penalty_weight", 0.3),
        *_variants(NACL, "penalty_weight", 0.01, 0.03, 0.3),
        *_variants(NACL_SOFTMAX, "penalty_weight", 1.0, 4.0),
    ],
}


def choose_settings(names: Sequence[str], bundle: Path) -> list[Setting]:
    """Return settings by the names of presets, of settings in them, or of overlays of a bundle;
    each once, in order.
    """
    folder = bundle / "configs" / "losses"
    overlays = {file.stem: [_overlay(file.stem)] for file in sorted(folder.glob("*.yaml"))}
    paper_settings = {
        setting.name: [setting]
        for preset in PRESETS.values()
        for setting in preset
        if setting.overrides
    } | PRESETS
    known = paper_settings | overlays
    for name in names:
        if name in paper_settings and name in overlays:
            file = folder / f"{name}.yaml"
            raise InputError(
                f"--losses: {name} is a setting of the paper and {file}. Rename the file."
            )
        if name not in known:
            raise InputError(
                f"--losses: {name!r} is unknown{nearest(name, known)}. Known are"
                f" {', '.join(known)}; a file in {folder} adds one."
            )
    return list({setting.name: setting for name in names for setting in known[name]}.values())
