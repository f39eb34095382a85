"""The commands of the package: `python -m calib_components COMMAND ...`, installed as
`calib-components`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command with the arguments of the process."""
    if sys.argv[1:2] == ["compare_losses"]:
        print(
            "calib-components: compare_losses is in the repository, not in the package: run"
            " scripts/compare_losses.py there",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        from calib_components.tools import cli
        from calib_components.tools.evaluate import calibrate_predictions, evaluate_predictions
        from calib_components.tools.nnunet import COMMANDS as NNUNET
        from calib_components.tools.prepare import prepare_data
        from calib_components.tools.report.report import report_folders
    except ModuleNotFoundError as error:
        sys.exit(
            f"calib-components: no module {error.name}. Install the extra: pip install"
            " 'WHEEL[bundles]'"
        )
    commands: cli.Commands = {
        "prepare_data": prepare_data,
        "report": report_folders,
        "evaluate_predictions": evaluate_predictions,
        "calibrate_predictions": calibrate_predictions,
        "nnunet": NNUNET,
    }
    cli.run("calib-components", commands)


if __name__ == "__main__":
    main()
