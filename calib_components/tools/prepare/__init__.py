"""Preparation of a data set, as downloaded, into cases that training reads slice by slice."""

from __future__ import annotations

from calib_components.tools.cli import Command
from calib_components.tools.prepare.acdc import prepare_acdc
from calib_components.tools.prepare.brats import prepare_brats
from calib_components.tools.prepare.flare import prepare_flare
from calib_components.tools.prepare.generic import prepare_generic

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Command] = {
    "acdc": prepare_acdc,
    "flare": prepare_flare,
    "brats": prepare_brats,
    "generic": prepare_generic,
}
