"""The patches in docs/upstream apply to MONAI and torchmetrics; the tests that they add fail before
and pass after.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import unittest
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.helpers import ROOT

VERSIONS = {"monai": "1.6.1", "torchmetrics": "1.9.0"}
PATCHES = {  # the module, where its package lies, what has its parts, and the test
    "nacl_loss_borders": (
        "monai.losses.nacl_loss",
        ".",
        {"monai.losses": ["NACLLoss"]},
        "tests/losses/test_nacl_loss_borders.py",
    ),
    "calibration_float64": (
        "monai.metrics.calibration",
        ".",
        {"monai.metrics": ["CalibrationErrorMetric", "calibration_binning"]},
        "tests/metrics/test_calibration_large_volumes.py",
    ),
    "torchmetrics_float64": (
        "torchmetrics.functional.classification.calibration_error",
        "src",
        {"torchmetrics.functional.classification.calibration_error": ["_binning_bucketize"]},
        "tests/unittests/classification/test_calibration_error_many_samples.py",
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
    """The number of tests of a module, of unittest or pytest, and of those that fail."""
    suite = unittest.defaultTestLoader.loadTestsFromModule(test)
    functions = [value for name, value in vars(test).items() if name.startswith("test_")]
    suite.addTests(map(unittest.FunctionTestCase, functions))
    result = unittest.TestResult()
    suite.run(result)
    assert not result.errors
    return result.testsRun, len({failed.id().split(" (")[0] for failed, _ in result.failures})


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


def calibrated() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels of a calibrated predictor, in one of 20 bins."""
    generator = torch.Generator().manual_seed(0)
    p = 0.96 + 0.04 * torch.rand(1, 1, 240, 240, 155, generator=generator)
    return p, (torch.rand(p.shape, generator=generator) < p).float()


def row_of(title: str, before: float, after: float) -> list[str]:
    """A row of the page's tables on sums."""
    p, y = calibrated()
    return [f"| {title} | {abs((p.double() - y).mean().item()):.5f} | {before:.5f} | {after:.5f} |"]


def errors(old: ModuleType, new: ModuleType) -> list[str]:
    """The row of the page's table on `CalibrationErrorMetric`."""
    found = (m.CalibrationErrorMetric(num_bins=20)(*calibrated()).item() for m in (old, new))
    return row_of("240 x 240 x 155", *found)


def errors_of_torchmetrics(old: ModuleType, new: ModuleType) -> list[str]:
    """The row of the page's table on `BinaryCalibrationError`."""
    p, y = (values.flatten() for values in calibrated())
    found = (m._ce_compute(p, y, 20).item() for m in (old, new))
    return row_of("8,928,000", *found)


TABLES = {"losses": borders, "metrics": errors, "functional": errors_of_torchmetrics}


@pytest.mark.slow
@pytest.mark.parametrize("name", PATCHES)
def test_patches_apply_and_mend(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, place, parts, test = PATCHES[name]
    library, kind, *_ = module.split(".")
    version = pytest.importorskip(library).__version__
    if version != VERSIONS[library]:
        pytest.skip(f"the patch is for {library} {VERSIONS[library]}")
    source = Path(str(import_module(module).__file__))
    copy = tmp_path / place / f"{module.replace('.', '/')}.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(source, copy)
    patch = ROOT / "docs" / "upstream" / f"{name}.patch"
    subprocess.run(["git", "apply", patch], check=True, cwd=tmp_path)
    tests, failing = failures(load(tmp_path / test))
    assert failing == tests == 2
    mended = load(copy)
    page = (ROOT / "docs" / "upstream.md").read_text().splitlines()
    assert [row for row in TABLES[kind](load(source), mended) if row not in page] == []
    for owner, names in parts.items():
        for part in names:
            monkeypatch.setattr(import_module(owner), part, getattr(mended, part))
    assert failures(load(tmp_path / test)) == (2, 0)
