"""The patches for MONAI in docs/upstream apply to it; the tests that they add fail before and pass
after.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import unittest
from pathlib import Path
from types import ModuleType

import monai
import pytest
import torch

from tests.helpers import ROOT

VERSION = "1.6.1"
PATCHES = {  # the module, what is imported from it, and the test
    "nacl_loss_borders": ("losses/nacl_loss.py", ["NACLLoss"], "losses/test_nacl_loss_borders.py"),
    "calibration_float64": (
        "metrics/calibration.py",
        ["CalibrationErrorMetric", "calibration_binning"],
        "metrics/test_calibration_large_volumes.py",
    ),
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def failures(test: ModuleType) -> tuple[int, int]:
    """The number of tests of a module, and of those that fail."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(test).run(result)
    assert not result.errors
    return result.testsRun, len({str(failed).split(" (")[0] for failed, _ in result.failures})


def borders(old: ModuleType, new: ModuleType) -> list[str]:
    """The rows of the page's table on `NACLLoss`."""
    found = []
    for shape in ((144, 144), (48, 64, 48), (32, 32, 32)):
        label = torch.zeros(1, *shape, dtype=torch.int64)
        before, after = (
            m.NACLLoss(classes=2, dim=len(shape)).get_constr_target(label)[:, 0] for m in (old, new)
        )
        share, size = 100 * (before < 0.999).float().mean(), " x ".join(map(str, shape))
        found.append(f"| {size} | {share:.1f} % | {before.mean():.3f} | {after.mean():.3f} |")
    return found


def errors(old: ModuleType, new: ModuleType) -> list[str]:
    """The row of the page's table on `CalibrationErrorMetric`."""
    generator = torch.Generator().manual_seed(0)
    p = 0.96 + 0.04 * torch.rand(1, 1, 240, 240, 155, generator=generator)
    y = (torch.rand(p.shape, generator=generator) < p).float()
    before, after = (m.CalibrationErrorMetric(num_bins=20)(p, y).item() for m in (old, new))
    return [
        (
            f"| 240 x 240 x 155 | {abs((p.double() - y).mean().item()):.5f} | {before:.5f} |"
            f" {after:.5f} |"
        )
    ]


@pytest.mark.slow
@pytest.mark.skipif(monai.__version__ != VERSION, reason=f"the patches are for MONAI {VERSION}")
@pytest.mark.parametrize("name", PATCHES)
def test_patches_apply_and_mend(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, names, test = PATCHES[name]
    package = module.split("/")[0]
    (tmp_path / "monai" / package).mkdir(parents=True)
    shutil.copy(Path(monai.__file__).parent / module, tmp_path / "monai" / package)
    subprocess.run(
        ["git", "apply", ROOT / "docs" / "upstream" / f"{name}.patch"], check=True, cwd=tmp_path
    )
    tests, failing = failures(load(tmp_path / "tests" / test))
    assert failing == tests == 2
    mended = load(tmp_path / "monai" / module)
    table = {"losses": borders, "metrics": errors}[package]
    page = (ROOT / "docs" / "upstream.md").read_text().splitlines()
    assert [
        row for row in table(load(Path(monai.__file__).parent / module), mended) if row not in page
    ] == []
    for part in names:
        monkeypatch.setattr(f"monai.{package}.{part}", getattr(mended, part))
    assert failures(load(tmp_path / "tests" / test)) == (2, 0)
