"""What the installed wheel does without the repository.

`scripts/release` runs it by the Python that has the wheel.
"""

import re
import sys
from importlib.metadata import entry_points, metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import calib_components
from calib_components.posthoc import TemperatureScaling
from calib_tools.nnunet.trainers import loss_trainers

folder = Path(calib_components.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert files("calib_components").joinpath("py.typed").is_file()
description = cast(Any, metadata("calib-components")).get_payload()
# Losses and metrics
for code in re.findall(r"^```python\n(.*?)^```", description, re.MULTILINE | re.DOTALL):
    exec(code, {})
logits = torch.randn(1, 3, 64, 64)
labels = torch.distributions.Categorical(logits=logits.movedim(1, -1)).sample()[:, None]
fit = TemperatureScaling()
fit.update(2 * logits, labels, "patient")
assert 1.5 < fit.compute().temperature < 2.5
assert issubclass(vars(loss_trainers)["nnUNetTrainerNACLDice"], nnUNetTrainer)
(command,) = entry_points(group="console_scripts", name="calib-components")
sys.argv = ["calib-components", "--help"]
command.load()()
