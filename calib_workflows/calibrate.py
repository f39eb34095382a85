"""Calibration of trained weights: a calibrator is fitted on cases, and written into the weights."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.engines import Evaluator
from monai.utils import ensure_tuple

from calib_components.errors import InputError, check_writable, reading, writing
from calib_components.posthoc import KINDS, RETIRED, Calibrator, Estimate, LeftOut, set_calibrator
from calib_workflows.cases import NetworkCases
from calib_workflows.data.facts import Facts, facts_beside
from calib_workflows.fit import AFTER, BEFORE, REGIONS, Fit, describe_fit, fit_calibrator
from calib_workflows.folders import OutputFolder
from calib_workflows.weights import (
    WeightsCheckpointLoader,
    check_beside,
    join_weights,
    warn_of_other_split,
    with_calibrator,
    write_weights,
)

log = logging.getLogger(__name__)
# The files of a calibrator have its name
REPORT = "{}.json"  # the estimate
FIGURE = "reliability_{}.png"
FILES = (REPORT, FIGURE)
ALL_FILES = {template.format(kind) for kind in (*KINDS, *RETIRED) for template in FILES}
SPLITS = {  # what a user should know of a fit on a split
    "training": (
        "The network is more confident on cases that it was trained on: the temperature is too low"
        " for others."
    ),
    "validation": (
        "If these cases chose the epoch of the network, errors on other patients are higher."
    ),
    "testing": "Results of these weights on the same test cases are no longer independent of them.",
}


@dataclass(eq=False)
class Calibration:
    """Fit a calibrator to trained weights, and write it into them.

    The network runs over the cases twice: for the fit, and to measure its errors. Written are, all
    of them or none:

    - the weights, with the calibrator, and the reference of the cases, see
      `calib_components.quality.Reference`. All else in the file stays.
    - `temperature.json`: the estimate, see `read_estimate`. Files of another calibrator have its
      name, and do not stay.
    - `reliability_temperature.png`: reliability before and after, over all voxels and the predicted
      foreground.

    Args:
        evaluator: Runs the network over the cases, see `NetworkCases`.
        network: The network, which carries a calibrator: see `calib_components.posthoc`.
        calibrator: What is fitted, and to which region.
        structures: Class indices of the structures of the reference, by name.
        load_path: Trained weights.
        calibrated_path: File of the calibrated weights, which may be the same. Another folder gets
            `facts.yaml`, too.
        output_dir: Folder of the other files.
        split: Split that the cases are from, for what is said of the fit.
        facts: Facts of the data, which are compared with those of the weights; None not to compare
            them.
        members: Trained weights of several networks, in place of `load_path`: their ensemble is
            calibrated, and written into one file.
        overwrite: Whether the files of a calibrator of other weights in `output_dir` are replaced.

    Raises:
        InputError: From `run`, if the network carries no calibrator, the weights are not suitable
            (see `WeightsCheckpointLoader`), there are no voxels in the region, `calibrated_path`
            has other weights, `output_dir` a calibrator of others, another run writes to one of the
            folders, or a file cannot be written.
    """

    evaluator: Evaluator
    network: torch.nn.Module
    calibrator: Calibrator
    structures: Mapping[str, Sequence[int]]
    load_path: Path
    calibrated_path: Path
    output_dir: Path
    split: str = "validation"
    facts: Facts | None = None
    members: Sequence[str | os.PathLike] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("load_path", "calibrated_path", "output_dir"):
            setattr(self, name, Path(getattr(self, name)))

    def run(self) -> None:
        """Fit the calibrator, and write the weights."""
        set_calibrator(self.network, type(self.calibrator)())
        with ExitStack() as stack:
            if self.members is not None:
                members = [*map(Path, ensure_tuple(self.members))]
                if self.calibrated_path == self.load_path:
                    raise InputError("calibrated_path: name the file of the ensemble.")
                self.load_path = Path(stack.enter_context(TemporaryDirectory()), "ensemble.pt")
                join_weights(members, self.load_path)
                warn_of_other_split(members[0])
            output = self._check_places()
            stack.enter_context(OutputFolder(self.calibrated_path.parent).claim())
            stack.enter_context(output.claim())
            WeightsCheckpointLoader(self.load_path, self.network, self.facts)(self.evaluator)
            set_calibrator(self.network, type(self.calibrator)())  # in place of that of the weights
            cases = NetworkCases(self.evaluator, self.structures)
            fit = fit_calibrator(cases, self.calibrator, self.structures)
            self._log(fit)
            self._write(fit, output)
        set_calibrator(self.network, fit.calibrator)

    def _check_places(self) -> OutputFolder:
        """Find out before the work what would keep the files from being written."""
        check_writable("calibrated_path", self.calibrated_path.parent)
        without = KINDS["temperature"]()
        weights, file = with_calibrator(self.load_path, without), self.calibrated_path
        if file.exists() and weights != with_calibrator(file, without):
            raise InputError(f"calibrated_path: {file} has other weights. Choose another file.")
        check_beside(self.calibrated_path, facts_beside(self.load_path), "calibrated_path")
        run = {"weights": hashlib.sha256(weights).hexdigest()[:16]}
        output = OutputFolder(self.output_dir, run, overwrite=self.overwrite)
        output.check(ALL_FILES)
        return output

    def _log(self, fit: Fit) -> None:
        """Say what was fitted, and what it changed."""
        for sentence in describe_fit(fit.estimate, fit.calibrator.region, fit.compared):
            log.info("%s", sentence)
        for warning in fit.estimate.warnings():
            log.warning("%s", warning)
        log.info("Errors in what the network sees:")
        for (when, where), bins in fit.bins.items():
            log.info("%s: ECE %.4f (%s)", when.capitalize(), bins.expected_error().item(), where)
        log.info("%s", SPLITS[self.split])

    def _write(self, fit: Fit, output: OutputFolder) -> None:
        """Write the weights and the other files, all or none."""
        name, file = fit.calibrator.name, self.calibrated_path
        content = with_calibrator(
            self.load_path, fit.calibrator, fit.reference.to_tensor(), fit.estimate.patients
        )
        files = {REPORT: _report(fit.estimate, fit.compared), FIGURE: _figure(fit)}
        with ExitStack() as stack:
            for template, part in files.items():
                place = stack.enter_context(writing(self.output_dir / template.format(name)))
                place.write_bytes(part)
            write_weights(file, content, facts_beside(self.load_path), "calibrated_path")
            output.claim(ALL_FILES)
        for old in ALL_FILES - {template.format(name) for template in files}:
            (self.output_dir / old).unlink(missing_ok=True)
        scans = len(fit.reference.values)
        log.info("Wrote the %s and %d scans for comparison into %s", name, scans, file)
        exports = [file.with_suffix(ending) for ending in (".ts", ".onnx")]
        for export in (*exports, Path(f"{file}.plan")):
            if export.exists():
                log.warning("%s may have the weights before calibration. Export it again.", export)
        log.info(
            "Next: evaluate the network, with configs/evaluate.yaml in place of calibrate.yaml"
        )


def _figure(fit: Fit) -> bytes:
    """Return the figure of what a fit changed."""
    # The import is here, as training must not need matplotlib
    from calib_workflows.figures import reliability_diagram

    panels = {
        f"{region}, {when}": fit.bins[when, region]
        for region in REGIONS
        for when in (BEFORE, AFTER)
    }
    content = io.BytesIO()
    reliability_diagram(panels).savefig(content, format="png")
    return content.getvalue()


def _report(estimate: Estimate, compared: LeftOut | None = None) -> bytes:
    report = estimate.to_dict()
    if compared is not None and estimate.patients > 1:
        rows = compared.table().items()
        report["left_out"] = [{"calibrator": name, **row} for name, row in rows]
    return (json.dumps(report, allow_nan=False, indent=2) + "\n").encode()


def read_estimate(folder: str | os.PathLike) -> Any:
    """Read what `write_estimate` wrote into a folder, such as the `output_dir` of a calibration."""
    files = {Path(folder) / REPORT.format(name): kind.estimate for name, kind in KINDS.items()}
    file = next((file for file in files if file.exists()), next(iter(files)))
    with reading(file, "a fitted calibrator"):
        return files[file].from_dict(json.loads(file.read_bytes()))


def write_estimate(estimate: Estimate, folder: str | os.PathLike) -> None:
    """Write the report of a fit, such as `temperature.json`, into a folder."""
    with writing(Path(folder) / REPORT.format(estimate.name)) as unfinished:
        unfinished.write_bytes(_report(estimate))
