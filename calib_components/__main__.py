"""The commands of the package: `python -m calib_components COMMAND ...`, installed as
`calib-components`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def print_trainers() -> None:
    """Print the folder of the trainers, for nnU-Net's environment variable `nnUNet_extTrainer`."""
    print(Path(__file__).parent / "tools" / "nnunet" / "trainers")


COMMANDS: dict[str, Any] = {
    "prepare_data": "calib_components.tools.prepare.prepare:prepare_data",
    "evaluate_predictions": "calib_components.tools.evaluate.evaluate:evaluate_predictions",
    "calibrate_predictions": "calib_components.tools.evaluate.calibrate:calibrate_predictions",
    "report": "calib_components.tools.report.report:report_folders",
    "run_cases": "calib_components.tools.run_cases:run_cases",
    "nnunet": {
        "trainers": print_trainers,
        "calibrate": "calib_components.tools.nnunet.calibrate:calibrate_model",
    },
}
ELSEWHERE = {
    "train": "a bundle trains, by python -m monai.bundle run; see docs/commands.md in the bundle",
    "infer": "run_cases infer BUNDLE --dataset_dir IMAGES --output_dir MAPS segments images",
    "compare_losses": "it is not in the package: run scripts/compare_losses.py in the repository",
}


def main() -> None:
    """Run a command with the arguments of the process."""
    for word in sys.argv[1:2]:
        if word in ELSEWHERE:
            print(f"calib-components: {word}: {ELSEWHERE[word]}", file=sys.stderr)
            sys.exit(2)
    try:
        from calib_components.tools import cli

        cli.run("calib-components", COMMANDS)
    except ModuleNotFoundError as error:
        sys.exit(
            f"calib-components: no module {error.name}. Install the extra: pip install"
            " 'WHEEL[bundles]'"
        )


if __name__ == "__main__":
    main()
