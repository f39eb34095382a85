from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from calib_tools.predictions import evaluate
from calib_workflows import figures


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the page and the pictures, which take seconds."""
    monkeypatch.setattr(evaluate, "report_folders", lambda *_, **__: None)
    empty = Figure(figsize=(1, 1), dpi=30)
    monkeypatch.setattr(figures, "reliability_diagram", lambda *_, **__: empty)
