from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from calib_tools.predictions import evaluate
from calib_workflows import figures


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the page and the pictures, which take seconds."""
    monkeypatch.setattr(evaluate, "report_folders", lambda *_, **__: None)
    for name in ("reliability_diagram", "uncertainty_overlay", "raters_overlay"):
        monkeypatch.setattr(figures, name, lambda *_, **__: Figure(figsize=(1, 1), dpi=30))
