"""The patches for MONAI in docs/upstream apply to it; the tests that they add fail before and pass after."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import unittest
from pathlib import Path
from types import ModuleType

import monai
import pytest

from tests.helpers import ROOT

VERSION = "1.6.1"
PATCHES = {  # the module, what it defines, and the test
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


@pytest.mark.slow
@pytest.mark.skipif(monai.__version__ != VERSION, reason=f"the patches are for MONAI {VERSION}")
@pytest.mark.parametrize("name", PATCHES)
def test_patches_apply_and_mend(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, names, test = PATCHES[name]
    package = module.split("/")[0]
    (tmp_path / "monai" / package).mkdir(parents=True)
    shutil.copy(Path(monai.__file__).parent / module, tmp_path / "monai" / package)
    subprocess.run(["git", "apply", ROOT / "docs" / "upstream" / f"{name}.patch"], check=True, cwd=tmp_path)
    tests, failing = failures(load(tmp_path / "tests" / test))
    assert failing == tests == 2
    mended = load(tmp_path / "monai" / module)
    for part in names:
        monkeypatch.setattr(f"monai.{package}.{part}", getattr(mended, part))
    assert failures(load(tmp_path / "tests" / test)) == (2, 0)
