from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from calib_components.figures import reliability_diagram
from calib_components.metrics import CalibrationBins, calibration_bins


def bins(classwise: bool) -> CalibrationBins:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(2, 3, 20, 20, generator=generator)).softmax(1)
    labels = torch.multinomial(probabilities.movedim(1, -1).reshape(-1, 3), 1, generator=generator)
    return calibration_bins(probabilities, labels.view(2, 1, 20, 20), foreground_only=False, classwise=classwise)


@pytest.mark.parametrize("classwise", [False, True])
def test_is_drawn_from_saved_bins(classwise: bool, tmp_path: Path) -> None:
    saved = json.dumps(bins(classwise).to_dict())
    figure = reliability_diagram(CalibrationBins.from_dict(json.loads(saved)))
    panels = [axes for axes in figure.axes if "ECE" in axes.get_title()]
    errors = bins(True).pooled() if classwise else bins(False).pooled()
    assert len(panels) == (3 if classwise else 1)
    if not classwise:
        assert f"ECE {errors.expected_error().item():.4f}" in panels[0].get_title()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_names_must_match_the_classes() -> None:
    with pytest.raises(ValueError, match="class_names must name the 3 classes"):
        reliability_diagram(bins(True), class_names=["background", "heart"])
