"""The commands of the package: `python -m calib_tools COMMAND ...`, installed as
`calib-components`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from calib_components.errors import InputError
from calib_tools import commands

IN_A_CLONE = "it needs the repository: run python scripts/{}.py in a clone"
ELSEWHERE = {
    "train": "a bundle trains: python -m monai.bundle run --config_file BUNDLE/configs/train.yaml;"
    " docs/commands.md of the bundle has the options",
    "infer": "run_cases infer BUNDLE --dataset_dir IMAGES --output_dir MAPS segments images",
    **{
        name: IN_A_CLONE.format(name) for name in ("compare_losses", "new_bundle", "package_bundle")
    },
}


def print_trainers() -> None:
    """Print the folder of the trainers, for nnU-Net's environment variable `nnUNet_extTrainer`."""
    print(Path(__file__).parent / "nnunet" / "trainers")


def _elsewhere(word: str) -> Any:
    """Return a command that tells where a command is that the package has not."""

    def command(*_: Any, **__: Any) -> None:
        raise InputError(f"{word}: {ELSEWHERE[word]}.")

    command.__doc__ = f"Not here: {ELSEWHERE[word]}."
    return command


COMMANDS: dict[str, Any] = {
    "prepare_data": commands.prepare_data,
    "evaluate_predictions": commands.evaluate_predictions,
    "calibrate_predictions": commands.calibrate_predictions,
    "probability_maps": commands.probability_maps,
    "report": commands.report_folders,
    "run_cases": commands.run_cases,
    "nnunet": {
        "trainers": print_trainers,
        "calibrate": commands.calibrate_model,
    },
    **{word: _elsewhere(word) for word in ELSEWHERE},
}


def main() -> None:
    """Run a command with the arguments of the process."""
    try:
        from calib_tools import cli

        cli.run("calib-components", COMMANDS)
    except ModuleNotFoundError as error:
        sys.exit(
            f"calib-components: no module {error.name}. Install the extra: pip install"
            " 'WHEEL[bundles]'"
        )


if __name__ == "__main__":
    main()
