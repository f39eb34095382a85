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

from calib_components.errors import InputError, check_choice, check_writable, reading, writing
from calib_components.metrics.regions import Region
from calib_components.posthoc import KINDS, RETIRED, Estimate, set_calibrator
from calib_components.posthoc.comparison import NONE, REGIONS
from calib_components.posthoc.network import BASELINE, CASES, WEIGHTS
from calib_components.quality.reference import LIMIT_PATIENTS
from calib_workflows.cases import NetworkCases
from calib_workflows.data.facts import Facts, facts_beside
from calib_workflows.fit import (
    CHOICES,
    COMPARISON,
    Fit,
    comparison_table,
    describe_fit,
    fit_calibrator,
    unscaled,
)
from calib_workflows.folders import OutputFolder
from calib_workflows.weights import (
    Baseline,
    WeightsCheckpointLoader,
    baseline_of,
    cases_of_run,
    check_beside,
    check_fitted,
    check_weights_file,
    hash_of,
    is_trained_on,
    join_weights,
    read_weights,
    warn_of_other_split,
    with_calibrator,
    write_weights,
)

log = logging.getLogger(__name__)
# The files of a calibrator have its name
REPORT = "{}.json"  # the estimate
FIGURE = "reliability_{}.png"
FILES = (REPORT, FIGURE)
ALL_FILES = {COMPARISON} | {
    template.format(kind) for kind in (*KINDS, *RETIRED) for template in FILES
}
SPLITS = {  # what a user should know of a fit on a split
    "training": (
        "The network is more confident on cases that it was trained on: this fits no others."
    ),
    "validation": (
        "If these cases chose the epoch of the network, errors on other patients are higher."
    ),
    "testing": "Results of these weights on the same test cases are no longer independent of them.",
}


@dataclass(eq=False)
class Calibration:
    """Fit calibrators to trained weights, and write the advised one, or another, into them.

    The network runs over the cases twice: for the fits, and to compare them on patients that are
    left out. Written are, all of them or none:

    - the weights, with the calibrator, and the reference of the cases, see
      `calib_components.quality.Reference`. All else in the file stays.
    - `calibrators.csv`: what each calibrator gives on patients that are left out, see
      `calib_components.posthoc.LeftOut.table`.
    - `temperature.json`: the estimate, see `read_estimate`, and `reliability_temperature.png`:
      reliability before and after, over all voxels and the predicted foreground, of patients that
      are left out. Files of another calibrator have its name; without one, there are none.

    Args:
        evaluator: Runs the network over the cases, see `NetworkCases`.
        network: The network, which carries a calibrator: see `calib_components.posthoc`.
        structures: Class indices of the structures of the reference, by name.
        load_path: Trained weights. If a training on these data made them, the calibrators are
            compared with the network as it was trained, else with the weights as they are.
        calibrated_path: File of the calibrated weights. Another folder gets `facts.yaml`, too.
            None for `load_path`, if a training on these data made it.
        output_dir: Folder of the other files.
        calibrator: Name of the calibrator, one of `calib_workflows.fit.CHOICES`; None for the
            advised.
        region: The voxels that are fitted.
        split: Split that the cases are from, for what is said of the fit.
        facts: Facts of the data, which are compared with those of the weights; None not to compare
            them.
        members: Trained weights of several networks, in place of `load_path`: their ensemble is
            calibrated, and written into one file.
        overwrite: Whether the files of a calibrator of other weights in `output_dir` are replaced.

    Raises:
        InputError: From `run`, if the network carries no calibrator, the weights are not suitable
            (see `WeightsCheckpointLoader`), there are no voxels in the region, there is no
            `calibrated_path` for weights of other data, it has other weights, `output_dir` a
            calibrator of others, another run writes to one of the folders, or a file cannot be
            written.
    """

    evaluator: Evaluator
    network: torch.nn.Module
    structures: Mapping[str, Sequence[int]]
    load_path: Path
    calibrated_path: Path | None
    output_dir: Path
    calibrator: str | None = None
    region: Any = "all"
    split: str = "validation"
    facts: Facts | None = None
    members: Sequence[str | os.PathLike] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.load_path, self.output_dir = Path(self.load_path), Path(self.output_dir)
        if self.calibrated_path is not None:
            self.calibrated_path = Path(self.calibrated_path)
        self.region = Region.parse(self.region)

    def run(self) -> None:
        """Fit the calibrators, and write the weights."""
        if self.calibrator is not None:
            check_choice("calibrator", self.calibrator, CHOICES)
        if self.members is not None and self.calibrated_path in (None, self.load_path):
            raise InputError("calibrated_path: name the file of the ensemble.")
        set_calibrator(self.network, KINDS["temperature"]())
        cases = cases_of_run()
        with ExitStack() as stack:
            members = [*map(Path, ensure_tuple(self.members or self.load_path))]
            for file in members:
                check_weights_file(file)
            is_own = all(is_trained_on(file, cases) for file in members)
            target = self._target(is_own)
            if self.members is not None:
                self.load_path = Path(stack.enter_context(TemporaryDirectory()), "ensemble.pt")
                join_weights(members, self.load_path)
                warn_of_other_split(members[0])
            baseline = Baseline()
            if not is_own:
                baseline = baseline_of(self.load_path, cases, [*self.structures])
            output = self._check_places(target, cases)
            stack.enter_context(OutputFolder(target.parent).claim())
            stack.enter_context(output.claim())
            load = WeightsCheckpointLoader(
                self.load_path, self.network, self.facts, is_refitted=True
            )
            load(self.evaluator)
            set_calibrator(self.network, unscaled())  # in place of that of the weights
            fit = fit_calibrator(
                NetworkCases(self.evaluator, self.structures),
                self.structures,
                self.calibrator,
                self.region,
                baseline=baseline.calibrator,
                trained_like=baseline.reference,
            )
            self._log(fit, is_own)
            known = baseline.fit
            if fit.estimate is not None:
                known = {"region": self.region.name, "patients": fit.estimate.patients}
                known |= {WEIGHTS: hash_of(read_weights(self.load_path)), CASES: cases}
                known |= {} if is_own else {BASELINE: baseline.to_dict()}
            self._write(fit, target, output, known)
        set_calibrator(self.network, fit.calibrator)

    def _target(self, is_own: bool) -> Path:
        """Return the file of the calibrated weights: not by itself one that others made."""
        if self.calibrated_path is not None:
            return self.calibrated_path
        if is_own:
            return self.load_path
        raise InputError(
            f"calibrated_path: no training on these cases made {self.load_path}. Name another file"
            " for the calibrated weights, such as models/mine.pt."
        )

    def _check_places(self, target: Path, cases: str | None) -> OutputFolder:
        """Find out before the work what would keep the files from being written."""
        check_writable("calibrated_path", target.parent)
        weights = with_calibrator(self.load_path, unscaled())
        if target.exists() and weights != with_calibrator(target, unscaled()):
            raise InputError(f"calibrated_path: {target} has other weights. Choose another file.")
        if not self.overwrite:
            check_fitted(target, cases)
        check_beside(target, facts_beside(self.load_path), "calibrated_path")
        run = {"weights": hashlib.sha256(weights).hexdigest()[:16], "cases": cases}
        output = OutputFolder(self.output_dir, run, overwrite=self.overwrite)
        output.check(ALL_FILES)
        return output

    def _log(self, fit: Fit, is_own: bool) -> None:
        """Say what was fitted, and what it changed."""
        for sentence in describe_fit(fit, self.region, self.calibrator is not None):
            log.info("%s", sentence)
        if is_own:
            log.info("%s", SPLITS[self.split])

    def _write(
        self, fit: Fit, target: Path, output: OutputFolder, known: Mapping[str, Any]
    ) -> None:
        """Write the weights, with what is known of the fit, and the other files, all or none."""
        reference = fit.reference.to_tensor()
        content = with_calibrator(self.load_path, fit.calibrator, reference, known)
        files = {COMPARISON: comparison_table(fit.compared).encode()}
        if fit.estimate is not None:
            files[REPORT.format(fit.name)] = _report(fit.estimate)
            files[FIGURE.format(fit.name)] = _figure(fit)
        with ExitStack() as stack:
            for name, part in files.items():
                stack.enter_context(writing(self.output_dir / name)).write_bytes(part)
            write_weights(target, content, facts_beside(self.load_path), "calibrated_path")
            output.claim(ALL_FILES)
        for old in ALL_FILES - files.keys():
            (self.output_dir / old).unlink(missing_ok=True)
        what = "no new calibrator" if fit.estimate is None else f"the {fit.name}"
        log.info("Wrote %s and %d scans for comparison to %s", what, len(reference), target)
        if (patients := fit.reference.patients) < LIMIT_PATIENTS:
            text = "New scans get no limits: they need %d patients, these are %d."
            log.info(text, LIMIT_PATIENTS, patients)
        _warn_of_exports(target)
        if target == self.load_path:
            log.info(
                "Next: evaluate the network, with configs/evaluate.yaml in place of calibrate.yaml"
            )
        else:
            log.info("Next: segment scans, with configs/inference.yaml and --load_path %s", target)


def _warn_of_exports(weights: Path) -> None:
    exports = [weights.with_suffix(ending) for ending in (".ts", ".onnx")]
    for export in (*exports, Path(f"{weights}.plan")):
        if export.exists():
            log.warning("%s may have the weights before calibration. Export it again.", export)


def _figure(fit: Fit) -> bytes:
    """Return the figure of what a fit changed."""
    # The import is here, as training must not need matplotlib
    from calib_workflows.figures import reliability_diagram

    panels = {
        f"{region}, {when}": fit.bins[name, region]
        for region in REGIONS
        for when, name in (("before", NONE), ("after", fit.name))
    }
    content = io.BytesIO()
    reliability_diagram(panels).savefig(content, format="png")
    return content.getvalue()


def _report(estimate: Estimate) -> bytes:
    return (json.dumps(estimate.to_dict(), allow_nan=False, indent=2) + "\n").encode()


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
