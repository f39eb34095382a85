"""The commands of the package: `python -m calib_components COMMAND ...`, installed as `calib-components`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command with the arguments of the process."""
    try:
        from calib_components.tools import cli
        from calib_components.tools.compare import compare_losses, report_folders
        from calib_components.tools.evaluate import calibrate_predictions, evaluate_predictions
        from calib_components.tools.nnunet import COMMANDS as NNUNET
        from calib_components.tools.prepare import COMMANDS
    except ModuleNotFoundError as error:
        hint = 'install the extra, in a clone: pip install -e ".[bundles]"'
        sys.exit(f"calib-components: expected the module {error.name}, got none; {hint}")
    commands: cli.Commands = {
        "prepare_data": COMMANDS,
        "compare_losses": compare_losses,
        "report": report_folders,
        "evaluate_predictions": evaluate_predictions,
        "calibrate_predictions": calibrate_predictions,
        "nnunet": NNUNET,
    }
    cli.run("calib-components", commands)


if __name__ == "__main__":
    main()
