"""The advice of reports, followed as it is printed, ends after two fits at most."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from calib_tools import __main__
from calib_tools.report import comparison
from calib_workflows import figures
from tests.calib_tools.predictions.made_up import save_channels_last, save_nifti
from tests.calib_tools.report.made_up import PNG

SHAPE = (24, 20, 6)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures and further processes, which take seconds."""
    monkeypatch.setattr(comparison, "to_png", lambda figure: PNG)
    for name in ("reliability_diagram", "uncertainty_overlay", "raters_overlay"):
        monkeypatch.setattr(figures, name, lambda *_, **__: Figure(figsize=(1, 1), dpi=30))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def save_cases(folder: Path, patients: int, first: int, scale: tuple[float, float]) -> None:
    """A structure in a box; labels are drawn from probabilities whose logits are then scaled, by
    the first number in the background and by the other where the structure is predicted.
    """
    for seed in range(first, first + patients):
        rng = np.random.default_rng(seed)
        logit = rng.normal(-6, 1, SHAPE)
        logit[4:18, 4:16, 1:5] = rng.normal(2 + rng.normal(0, 0.1), 1, (14, 12, 4))
        true = rng.random(SHAPE) < 1 / (1 + np.exp(-logit))
        p = 1 / (1 + np.exp(-logit * np.where(logit > 0, scale[1], scale[0])))
        other = rng.random(SHAPE) < 1 / (1 + np.exp(-logit))
        name = f"p{seed:03d}.nii.gz"
        for network, shift in (("predictions", 0), ("second", 1e-3)):
            shifted = p + shift * (0.5 - p)
            save_channels_last(folder / network / name, np.stack([1 - shifted, shifted]))
        for rater, mask in (("labels", true), ("other", other)):
            save_nifti(folder / rater / name, mask.astype(np.uint8))


def run(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command of the package, and return the advice that it prints."""
    words = shlex.split(command)
    assert words[0] == "calib-components"
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        __main__.main()
    out, err = capsys.readouterr()
    assert "calib-components:" not in err, err
    return out.partition("Next: ")[2].strip()


SINGLE = "{0}/predictions {0}/labels"
SEVERAL = "--members {0}/predictions,{0}/second --raters {0}/labels,{0}/other"


@pytest.mark.parametrize(
    ("validation", "test", "steps", "end", "places"),
    [
        ((1, 1), (1, 1), 0, "Nothing on images like these", SINGLE),
        ((2, 2), (2, 2), 1, "Nothing on images like these", SINGLE),
        ((1, 3), (1, 3), 2, "Nothing on images like these", SEVERAL),
        ((2, 2), (6, 6), 2, "Label about 16 more patients like these", SINGLE),
    ],
)
def test_the_advice_ends(
    validation: tuple[float, float],
    test: tuple[float, float],
    steps: int,
    end: str,
    places: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_cases(tmp_path / "val of a", 16, 0, validation)
    save_cases(tmp_path / "test", 16, 100, test)
    evaluate = f"calib-components evaluate_predictions {places} --out {{1}}"
    options = "--structures box=1"
    run(f"{evaluate.format(shlex.quote('val of a'), 'ev')} {options}", capsys, monkeypatch)
    advice = run(f"{evaluate.format('test', 'et')} {options} --validation ev", capsys, monkeypatch)
    for _ in range(steps):
        text, *commands = advice.splitlines()
        assert text.startswith("Fit")
        *_, advice = (run(command, capsys, monkeypatch) for command in commands)
    assert end in advice
    assert "\n" not in advice
