"""What each tier of the package needs."""

from __future__ import annotations

import subprocess
import sys

TRAINING = "data, errors, fingerprint, handlers, inference, losses, metrics"


def test_training_needs_neither_matplotlib_nor_fire_nor_the_tools() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['fire'] = None\n"
        f"from calib_components import {TRAINING}\n"
        "assert not any(name.startswith('calib_components.tools') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_losses_metrics_and_posthoc_need_no_extra() -> None:
    extras = ("matplotlib", "fire", "nibabel", "ignite", "yaml", "tensorboard", "tqdm")
    imports = "from calib_components import losses, metrics, posthoc"
    code = f"import sys; sys.modules.update(dict.fromkeys({extras}))\n{imports}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
