"""Calibration of trained weights: a calibrator is fitted on cases, and written into the weights."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator
from monai.utils import convert_to_tensor, ensure_tuple

from calib_components.errors import (
    InputError,
    check_writable,
    reading,
    writing,
)
from calib_components.metrics import CalibrationBins, calibration_bins, dice, structure_masks
from calib_components.posthoc import (
    KINDS,
    RETIRED,
    Calibrator,
    Estimate,
    LeftOut,
    set_calibrator,
)
from calib_components.posthoc.comparison import simpler_fits
from calib_components.quality import Reference, ScanEstimates
from calib_workflows.data.cases import read_datalist
from calib_workflows.data.facts import Facts, facts_beside
from calib_workflows.data.perturbation import Perturbation
from calib_workflows.evaluation_files import SUMMARY
from calib_workflows.folders import OutputFolder
from calib_workflows.inference.crops import Crop, crop_of, cut
from calib_workflows.inference.images import run_stamp
from calib_workflows.options import next_command
from calib_workflows.weights import (
    WeightsCheckpointLoader,
    check_beside,
    join_weights,
    warn_of_other_split,
    with_calibrator,
    write_weights,
)

log = logging.getLogger(__name__)
# Gets a patient, and the logits, the label and the crop of a case
UseCase = Callable[[str, torch.Tensor, torch.Tensor, Crop | None], None]
# Of each calibrator and each of `REGIONS`: bins of the top label
Bins = dict[tuple[str, str], CalibrationBins]
REGIONS = ("all", "predicted")  # what is predicted follows from the calibrated probabilities
# Of each structure of a scan: estimated and true DSC, expected and true volume in voxels
ScanRow = list[tuple[float, ...]]
# Files of a calibrator, by its name: the estimate, what the fit keeps of patients, and the figure
FILES = REPORT, FIT, FIGURE = "{}.json", "{}_fit.json", "reliability_{}.png"
ALL_FILES = {template.format(kind) for kind in (*KINDS, RETIRED) for template in FILES}
SPLITS = {  # what to know of a fit on a split
    "training": (
        "The network is more confident on cases that it was trained on: the temperature is too low"
        " for others."
    ),
    "validation": (
        "If these cases chose the epoch of the network, errors on other patients are higher."
    ),
    "testing": "Results of these weights on the same test cases are no longer independent of them.",
}


def calibration_cases(
    temperature: float | None, pool: Sequence[Any] | None, **options: Any
) -> list[dict[str, Any]]:
    """Return the cases to fit on, see `read_datalist` for options; none if a temperature or earlier
    fits are given.
    """
    if temperature is not None or pool is not None:
        return []
    return read_datalist(**options, refuse_trained=True)


@dataclass(eq=False)
class Calibration:
    """Fit a calibrator to trained weights, and write it into them.

    The network runs over the cases as often as the fit needs, and once more to measure its errors.
    Written are, all of them or none:

    - the weights, with the calibrator, and the reference of the cases, see
      `calib_components.quality.Reference`. All else in the file stays; a calibrator without cases
      removes the reference.
    - `temperature.json`: the estimate, see `read_estimate`. Files of another calibrator have its
      name, and do not stay.
    - `temperature_fit.json`: what the fit keeps of each patient, see `Calibrator.to_dict`, for
      `pool`.
    - `reliability_temperature.png`: reliability before and after, over all voxels and the predicted
      foreground.

    Args:
        evaluator: Runs the network over the cases. Items of its batches have the name of their
            `patient`, those of its output a `label` `(1, *S)` and the logits `pred` `(N, *S)`.
        network: The network, which carries a calibrator: see `calib_components.posthoc`.
        calibrator: What is fitted, and to which region.
        structures: Class indices of the structures of the reference, by name.
        load_path: Trained weights.
        calibrated_path: File of the calibrated weights, which may be the same. Another folder gets
            `facts.yaml`, too.
        output_dir: Folder of the other files.
        split: Split that the cases are from, for what is said of the fit.
        temperature: A temperature to write without a fit. The other files, of an earlier fit, are
            removed.
        pool: Folders of earlier fits, such as of all folds: one calibrator is fitted to all their
            patients, each of whom is in one of them, without any case. `temperature_fit.json`
            stays, and there is no figure.
        facts: Facts of the data, which are compared with those of the weights; None not to compare
            them.
        perturbation: Changes the images that the calibrator is fitted on. Errors are those of the
            images as they are.
        draws: Number of changed copies of each case.
        members: Trained weights of several networks, in place of `load_path`: their ensemble is
            calibrated, and written into one file.
        overwrite: Whether the files of a calibrator of other weights in `output_dir` are replaced.

    Raises:
        InputError: From `run`, if the network carries no calibrator, the weights are not suitable
            (see `WeightsCheckpointLoader`), there are no voxels in the region, an earlier fit is
            missing or of another region, `calibrated_path` has other weights, `output_dir` a
            calibrator of others, another run writes to one of the folders, or a file cannot be
            written.
    """

    evaluator: Evaluator
    network: torch.nn.Module
    calibrator: Calibrator
    structures: Mapping[str, Sequence[int]]
    load_path: Path
    calibrated_path: Path
    output_dir: Path
    split: str = "validation"
    temperature: float | None = None
    pool: Sequence[str | os.PathLike] | None = None
    facts: Facts | None = None
    perturbation: Perturbation | None = None
    draws: int = 1
    members: Sequence[str | os.PathLike] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        is_given = self.temperature is not None or self.pool is not None
        if is_given and (self.perturbation or "temperature" not in self.calibrator.state()):
            raise InputError(
                "temperature and pool go neither with perturb.yaml nor with a calibrator other than"
                " a temperature. Leave out one."
            )
        for name in ("load_path", "calibrated_path", "output_dir"):
            setattr(self, name, Path(getattr(self, name)))
        self.patients = 0  # of the fit

    def run(self) -> None:
        """Fit the calibrator, or take the given temperature, and write the weights."""
        set_calibrator(self.network, type(self.calibrator)())
        with ExitStack() as stack:
            if self.members is not None:
                members = [*map(Path, ensure_tuple(self.members))]
                if self.calibrated_path == self.load_path:
                    raise InputError("calibrated_path: name the file of the ensemble.")
                self.load_path = Path(stack.enter_context(TemporaryDirectory()), "ensemble.pt")
                join_weights(members, self.load_path)
                warn_of_other_split(members[0])
            self._check_places()
            self.output.check(ALL_FILES)
            stack.enter_context(OutputFolder(self.calibrated_path.parent).claim())
            stack.enter_context(self.output.claim())
            if self.temperature is not None:
                self.calibrator.set_state({"temperature": self.temperature})
                self._write({})
            elif self.pool is not None:
                self._fit_to_pool(self.pool)
            else:
                self._fit_to_cases()
        set_calibrator(self.network, self.calibrator)

    def _fit_to_pool(self, folders: Sequence[str | os.PathLike]) -> None:
        _add_fits(folders, self.calibrator)
        self._write({REPORT: _encoded(self._compute().to_dict(), indent=2)}, kept=(FIT,))

    def _fit_to_cases(self) -> None:
        WeightsCheckpointLoader(self.load_path, self.network, self.facts)(self.evaluator)
        set_calibrator(self.network, type(self.calibrator)())  # not that of the weights
        fits = self._fit()
        estimate = self._compute()
        compared = LeftOut([*fits, self.calibrator], self.structures)
        bins, scans = self._measure(compared)
        report = estimate.to_dict()
        if estimate.patients > 1:
            log.info("%s", compared.describe())
            report["left_out"] = compared.table().reset_index().to_dict("records")
        files = {
            REPORT: _encoded(report, indent=2),
            FIT: _encoded(self.calibrator.to_dict()),
            FIGURE: self._compare(bins),
        }
        self._write(files, scans)

    def _check_places(self) -> None:
        """Find out before the work what would keep the files from being written."""
        check_writable("calibrated_path", self.calibrated_path.parent)
        without = KINDS["temperature"]()
        weights, file = with_calibrator(self.load_path, without), self.calibrated_path
        if file.exists() and weights != with_calibrator(file, without):
            raise InputError(f"calibrated_path: {file} has other weights. Choose another file.")
        run = {"weights": hashlib.sha256(weights).hexdigest()[:16]}
        self.weights = {run["weights"], run_stamp(self.load_path)["weights"]}
        self.output = OutputFolder(self.output_dir, run, overwrite=self.overwrite)
        check_beside(self.calibrated_path, facts_beside(self.load_path), "calibrated_path")

    def _run_network(self, use: UseCase, perturbation: Perturbation | None = None) -> None:
        """Run the network over all cases, of changed images if requested, and `use` each."""

        def change(engine: Evaluator, perturbation: Perturbation) -> None:
            images = torch.stack([perturbation(image) for image in engine.state.batch["image"]])
            engine.state.batch = {**engine.state.batch, "image": images}

        def use_all(engine: Evaluator) -> None:
            for case, output in zip(engine.state.batch, engine.state.output, strict=True):
                logits, label = (
                    convert_to_tensor(output[key], track_meta=False)[None]
                    for key in ("pred", "label")
                )
                use(case["patient"], logits.float(), label, crop_of(output["pred"]))

        with ExitStack() as stack:
            add = self.evaluator.add_event_handler
            stack.enter_context(add(Events.ITERATION_COMPLETED, use_all))
            if perturbation is not None:
                stack.enter_context(add(Events.ITERATION_STARTED, change, perturbation))
            self.evaluator.run()

    def _fit(self) -> list[Calibrator]:
        """Add all cases to the fit, in as many passes as it needs, and return calibrators of the
        first pass to compare it with.
        """
        compared = simpler_fits(self.calibrator)
        fits = [*compared, self.calibrator]

        def use(patient: str, logits: torch.Tensor, label: torch.Tensor, crop: Crop | None) -> None:
            # Outside, no calibrator changes anything
            seen, truth = (cut(crop, volume) for volume in (logits, label))
            for fit in fits:
                fit.update(seen, truth, patient)

        for _ in self.calibrator.passes():
            if self.perturbation is not None:
                self.perturbation.restart()
            for _ in range(1 if self.perturbation is None else self.draws):
                self._run_network(use, self.perturbation)
            fits = [self.calibrator]
        for fit in compared:
            fit.compute()
        return compared

    def _compute(self) -> Estimate:
        """Compute the fit, and say what it is."""
        estimate: Estimate = self.calibrator.compute()
        self.patients = estimate.patients
        region = self.calibrator.region
        if self.perturbation is not None:
            log.info("Fitted on %d changed copies of each case:", self.draws)
        log.info("%s %s", self.calibrator.name.capitalize(), estimate.summary())
        log.info(
            "Calibrated for region %s, of what the network sees: NLL %.4f -> %.4f",
            region.name,
            estimate.nll_before,
            estimate.nll_after,
        )
        log.info("%s", estimate.effect(region.by_prediction))
        for warning in estimate.warnings():
            log.warning("%s", warning)
        return estimate

    def _measure(self, compared: LeftOut) -> tuple[Bins, list[tuple[str, ScanRow]]]:
        """Return the bins before and after the calibration over all cases, and of each scan, with
        its patient, what the calibrator of the other patients gives; compare calibrators.
        """
        candidates = {"before": torch.nn.Identity(), "after": self.calibrator}
        bins: dict[tuple[str, str], list[CalibrationBins]] = {
            (name, region): [] for name in candidates for region in REGIONS
        }
        scans: list[tuple[str, ScanRow]] = []

        def use(patient: str, logits: torch.Tensor, label: torch.Tensor, crop: Crop | None) -> None:
            seen, truth = cut(crop, logits), cut(crop, label)
            for name, candidate in candidates.items():
                p = candidate.to(logits.device)(seen).softmax(1)
                for region in REGIONS:
                    bins[name, region].append(calibration_bins(p, truth, region=region))
            left_out = {name: each[0] for name, each in compared.calibrated(seen, patient).items()}
            compared.update(left_out, truth[0], patient)
            p = left_out[self.calibrator.name].softmax(0)
            scans.append((patient, self._measure_scan(p, label[0], crop)))

        self._run_network(use)
        totals = {key: functools.reduce(operator.add, each) for key, each in bins.items()}
        return totals, scans

    def _measure_scan(self, p: torch.Tensor, label: torch.Tensor, crop: Crop | None) -> ScanRow:
        """Return estimated and true DSC, expected and true volume in voxels of each structure of a
        scan.

        Args:
            p: Probabilities of what the network saw; elsewhere, all is background.
            label: `(1, H, W, D)`.
            crop: What the network saw of the slices; None for all.
        """
        scan, predicted = ScanEstimates(self.structures), torch.zeros_like(label)
        scan.update(p)
        cut(crop, predicted)[:] = p.argmax(0)
        classes = [*self.structures.values()]
        masks = structure_masks(label, classes)
        dsc = dice(structure_masks(predicted, classes)[None], masks[None])[0].tolist()
        measured = zip(scan.compute().values(), dsc, masks.flatten(1).sum(1).tolist(), strict=True)
        return [
            (estimate.expected_dsc, true_dsc, estimate.expected_voxels, volume)
            for estimate, true_dsc, volume in measured
        ]

    def _compare(self, bins: Bins) -> bytes:
        """Say what the fit changed, and return the figure of it."""
        # Training must not need matplotlib
        from calib_workflows.figures import reliability_diagram

        log.info("Errors in what the network sees, of the images as they are:")
        for (name, region), each in bins.items():
            log.info("%s: ECE %.4f (%s)", name.capitalize(), each.expected_error().item(), region)
        panels: dict[str, CalibrationBins] = {
            f"{region}, {when}": bins[when, region]
            for region in REGIONS
            for when in ("before", "after")
        }
        log.info("%s", SPLITS[self.split])
        content = io.BytesIO()
        reliability_diagram(panels).savefig(content, format="png")
        return content.getvalue()

    def _write(
        self,
        files: Mapping[str, bytes],
        scans: Sequence[tuple[str, ScanRow]] = (),
        kept: Sequence[str] = (),
    ) -> None:
        """Write the weights and the other files, all or none.

        Files of calibrators that are neither among these nor `kept` are removed.
        """
        name, file = self.calibrator.name, self.calibrated_path
        reference = None
        if scans:
            patients, values = zip(*sorted(scans, key=operator.itemgetter(0)), strict=True)
            reference = Reference.from_scans([*self.structures], patients, values).to_tensor()
        content = with_calibrator(self.load_path, self.calibrator, reference, self.patients)
        with ExitStack() as stack:
            for template, report in files.items():
                place = stack.enter_context(writing(self.output_dir / template.format(name)))
                place.write_bytes(report)
            write_weights(file, content, facts_beside(self.load_path), "calibrated_path")
            self.output.claim(ALL_FILES)
        valid = {template.format(name) for template in (*files, *kept)}
        for old in ALL_FILES - valid:
            (self.output_dir / old).unlink(missing_ok=True)
        log.info("Wrote the %s and %d scans for comparison into %s", name, len(scans), file)
        self._log_next_steps(file)

    def _log_next_steps(self, file: Path) -> None:
        """Say what to export and evaluate again, now that the weights in a file are calibrated."""
        exports = [file.with_suffix(ending) for ending in (".ts", ".onnx")]
        for export in (*exports, Path(f"{file}.plan")):
            if export.exists():
                log.warning("%s may have the weights before calibration. Export it again.", export)
        options = {} if file == self.load_path else {"load_path": str(file)}
        evaluated = [run.get("weights") for run, files in self.output.runs() if SUMMARY in files]
        if self.weights.intersection(evaluated):  # of this network, before
            options["output_dir"] = f"{self.output_dir}_calibrated"
        log.info("Next: evaluate the network.%s", next_command("evaluate.yaml", **options))


def _encoded(content: Any, **options: Any) -> bytes:
    return (json.dumps(content, allow_nan=False, **options) + "\n").encode()


def _add_fits(folders: Sequence[str | os.PathLike], whole: Calibrator) -> None:
    """Add earlier fits of the same kind to a calibrator."""
    files_by_patient: dict[str, Path] = {}
    for folder in ensure_tuple(folders):
        file = Path(str(folder)) / FIT.format(whole.name)
        with reading(file, "a fit of calibrate.yaml"):
            content = json.loads(file.read_bytes())
            whole.add(type(whole).from_dict(content))
        for patient in content["patients"]:
            other = files_by_patient.setdefault(patient, file)
            if other is not file:
                raise InputError(f"{file}: patient {patient} is in {other}, too.")


def read_estimate(folder: str | os.PathLike) -> Any:
    """Read what `write_estimate` wrote into a folder, such as the `output_dir` of a calibration."""
    files = {Path(folder) / REPORT.format(name): kind.estimate for name, kind in KINDS.items()}
    file = next((file for file in files if file.exists()), next(iter(files)))
    with reading(file, "a fitted calibrator"):
        return files[file].from_dict(json.loads(file.read_bytes()))


def write_estimate(
    estimate: Estimate, folder: str | os.PathLike, arguments: Mapping[str, str] | None = None
) -> None:
    """Write the report of a fit, such as `temperature.json`, into a folder, with the `arguments` of
    the command that gave it.
    """
    report = estimate.to_dict() | ({"arguments": arguments} if arguments else {})
    with writing(Path(folder) / REPORT.format(estimate.name)) as unfinished:
        unfinished.write_bytes(_encoded(report, indent=2))
