"""The temperature of trained weights: fitted on cases, and written into them."""

from __future__ import annotations

import glob
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import Evaluator

from calib_components.data.cases import read_datalist
from calib_components.data.facts import FACTS, Facts, facts_beside, write_facts
from calib_components.errors import InputError, check_writable, make_folder, reading, writing
from calib_components.handlers.weights import (
    LAST,
    WeightsCheckpointLoader,
    check_beside,
    check_weights,
    with_temperature,
)
from calib_components.metrics import CalibrationBins, ECEMetric
from calib_components.posthoc import TemperatureEstimate, TemperatureScaling, find_temperature, set_temperature

__all__ = ["TemperatureCalibration", "calibration_cases", "read_temperature", "write_temperature"]

Bins = dict[str, CalibrationBins]  # by their region

TEMPERATURE_FILE, RELIABILITY = "temperature.json", "reliability_temperature.png"
FIT = "temperature_fit.json"
WORSE = 1.1  # times the error before, from which an error after the fit is warned of
REGIONS = {"all": "all voxels", "predicted": "predicted foreground"}  # that errors are reported in
EXPORT_ENDINGS = (".ts", ".onnx", ".plan")  # by ckpt_export, by onnx_export, and TensorRT's engine
SPLITS = {  # what to know of a temperature that is fitted on a split
    "training": "The network was trained on such cases and is more confident on them than it should be on others: the "
    "temperature is too low for other patients.",
    "validation": "The validation cases of the data that the weights were trained on chose their epoch too: errors on "
    "other patients are higher.",
    "testing": "Results of these weights on the same test cases are no longer independent of them.",
}


def calibration_cases(
    file: str | os.PathLike,
    split: str,
    folder: str | os.PathLike,
    image_size: Sequence[int],
    in_channels: int,
    temperature: float | None = None,
    pool: Sequence[str | os.PathLike] | None = None,
) -> list[dict[str, Any]]:
    """Read the prepared cases that a temperature is fitted on.

    Args:
        file: See `calib_components.data.read_datalist`.
        split: As there.
        folder: As there.
        image_size: As there.
        in_channels: As there.
        temperature: A temperature that needs no cases; then none are read.
        pool: Earlier fits that a temperature is fitted to; then none are read, either.

    Returns:
        The items of `read_datalist`.

    Raises:
        InputError: The split has no cases, or see `read_datalist`.
    """
    if temperature is not None or pool is not None:
        return []
    items = read_datalist(file, split, folder, image_size, in_channels, may_be_empty=True)
    if not items:
        raise InputError(
            f"{file}: expected cases for {split} to fit the temperature on, got none; prepare the data with other "
            "--fractions, set --split testing (whose results are then no longer independent) or training (on which "
            "the network is more confident than on others), or give cases of your own as --dataset_dir"
        )
    return items


class TemperatureCalibration:
    """Fit the temperature of trained weights, and write it into them.

    The network runs over the cases twice: without a temperature, for the fit, and with it, for the calibration errors
    after it. It writes, all of them or none:

    - the weights, with the temperature. All else in the file stays, so that fitting again gives the same bytes.
    - `temperature.json`: the estimate, see `read_temperature`.
    - `temperature_fit.json`: what the fit keeps of each patient, see `TemperatureScaling.to_dict`, for `pool`.
    - `reliability_temperature.png`: reliability before and after, over all voxels and the predicted foreground.

    Across several processes, the fit and the errors are those of all cases, and the first process writes.

    Args:
        evaluator: Runs the network over the cases. Items of its batches have the name of their `patient`, those of its
            output a `label` `(1, *S)` and the logits `pred` `(N, *S)`.
        network: The network, which has a temperature: see `calib_components.posthoc`.
        load_path: Trained weights.
        calibrated_path: File of the weights with the temperature, which may be the same. In another folder, it gets
            the `facts.yaml` of the weights beside it.
        output_dir: Folder of the other files.
        split: Split that the cases are from, for what is said of the temperature.
        region: Voxels that the temperature is fitted on.
        temperature: A temperature to write into the weights without a fit. The other files, which an earlier fit may
            have left, are removed: they would be of another temperature.
        pool: Folders of earlier fits, such as those of all folds of a cross-validation, each with the network of its
            fold: one temperature is fitted to all their patients, each of whom is in one of them, without any case.
            `temperature_fit.json` stays as it is then, and there is no figure.
        facts: Facts of the data, which are compared with those of the weights; None not to compare them.

    Raises:
        InputError: From `run`, if the network has no temperature, an argument is not as described, the weights are not
            suitable (see `WeightsCheckpointLoader`), there are no voxels in the region, an earlier fit is missing,
            broken or of another region, or a file cannot be written.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        network: torch.nn.Module,
        load_path: str | os.PathLike,
        calibrated_path: str | os.PathLike,
        output_dir: str | os.PathLike,
        split: str = "validation",
        region: Any = "all",
        temperature: float | None = None,
        pool: Sequence[str | os.PathLike] | None = None,
        facts: Facts | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.network = network
        self.load_path = Path(load_path)
        self.calibrated_path = Path(calibrated_path)
        self.output_dir = Path(output_dir)
        self.split = split
        self.region = region
        self.temperature = temperature
        self.pool = pool
        self.facts = facts

    def run(self) -> None:
        """Fit the temperature, or take the given one, and write the weights."""
        if find_temperature(self.network) is None:
            raise InputError(
                "network_def: expected a network with a temperature, calib_components.posthoc.TemperatureUNet or "
                f"TemperatureScaled around another one, got {type(self.network).__name__}"
            )
        self._check()
        if self.pool is not None:
            self._run_pooled(self.pool)
            return
        if self.temperature is not None:
            check_weights(self.network, self.load_path)
            set_temperature(self.network, self.temperature)
            if idist.get_rank() == 0:
                with self._writing_weights():
                    for file in self._reports():
                        file.unlink(missing_ok=True)
            return
        WeightsCheckpointLoader(self.load_path, self.network, self.facts)(self.evaluator)
        set_temperature(self.network, 1.0)
        fit = TemperatureScaling(region=self.region)
        before = self._run_network(fit)
        estimate = self._estimate(fit)
        set_temperature(self.network, estimate.temperature)
        after = self._run_network()
        kept = fit.to_dict()  # by all processes
        if idist.get_rank() == 0:
            self._say(estimate)
            self._say_errors(before, after)
            self._write(estimate, kept, before, after)

    def _run_pooled(self, pool: Sequence[str | os.PathLike]) -> None:
        """Fit one temperature to the patients of earlier fits."""
        if self.temperature is not None:
            raise InputError(f"temperature: expected null beside a pool of fits, got {self.temperature}")
        fit = TemperatureScaling(region=self.region)
        whole = _read_fits(pool, fit)
        if idist.get_rank() == 0:  # `compute` adds up what all processes have
            fit = whole
        check_weights(self.network, self.load_path)
        estimate = self._estimate(fit)
        set_temperature(self.network, estimate.temperature)
        if idist.get_rank() == 0:
            self._say(estimate)
            make_folder(self.output_dir)
            with self._writing_weights():
                (self.output_dir / RELIABILITY).unlink(missing_ok=True)
                write_temperature(estimate, self.output_dir)

    def _reports(self) -> tuple[Path, ...]:
        return tuple(self.output_dir / name for name in (TEMPERATURE_FILE, FIT, RELIABILITY))

    def _check(self) -> None:
        """Say before the work what would keep the temperature from being fitted or the files from being written."""
        if self.split not in SPLITS:
            raise InputError(f"split: expected {', '.join(SPLITS)}, got {self.split!r}")
        if self.pool is not None and not self.pool:
            raise InputError("pool: expected folders of earlier fits, got none")
        check_writable("calibrated_path", self.calibrated_path.parent)
        for file in (self.calibrated_path, *self._reports()):
            if file.exists() and not file.is_file():
                kind = "a folder" if file.is_dir() else "a device"
                raise InputError(f"{file}: expected a file or nothing, got {kind}")
        if self.calibrated_path.name in (FACTS, *(file.name for file in self._reports())):
            raise InputError(
                f"calibrated_path: expected a file of weights, such as model.pt, got {self.calibrated_path}"
            )
        if self.calibrated_path.exists():  # never over a file of others
            check_weights(self.network, self.calibrated_path)
            folder = self.calibrated_path.resolve().parent
            is_of_training = self.calibrated_path.name == "model.pt" and (folder / LAST).exists()
            if is_of_training and folder != Path(self.load_path).resolve().parent:
                raise InputError(
                    f"calibrated_path: expected a file that is not the model.pt of another training, got "
                    f"{self.calibrated_path}"
                )
        check_beside(self.calibrated_path, facts_beside(self.load_path), "calibrated_path")

    def _run_network(self, fit: TemperatureScaling | None = None) -> Bins:
        """Run the network over all cases, and add them to the fit; return the bins of each region."""
        metrics = {region: ECEMetric(region=region) for region in REGIONS}

        def add(engine: Evaluator) -> None:
            for case, output in zip(engine.state.batch, engine.state.output, strict=True):
                logits, label = output["pred"][None].float(), output["label"][None]
                if fit is not None:
                    fit.update(logits, label, case["patient"])
                for metric in metrics.values():
                    metric(logits.softmax(1), label)

        with self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, add):
            self.evaluator.run()
        return {region: metric.bins for region, metric in metrics.items()}

    def _estimate(self, fit: TemperatureScaling) -> TemperatureEstimate:
        try:
            return fit.compute()
        except ValueError as error:
            line = f"region: expected one with voxels of the {self.split} cases, got {self.region}, which has none"
            raise InputError(line) from error

    def _say(self, estimate: TemperatureEstimate) -> None:
        log = logging.getLogger(__name__)
        log.info("Temperature %s", estimate.summary())
        log.info("NLL %.4f -> %.4f (region %s)", estimate.nll_before, estimate.nll_after, self.region)
        for warning in estimate.warnings():
            log.warning("%s", warning)

    def _say_errors(self, before: Bins, after: Bins) -> None:
        errors = [
            f"{before[region].expected_error().item():.4f} -> {after[region].expected_error().item():.4f} ({title})"
            for region, title in REGIONS.items()
        ]
        log = logging.getLogger(__name__)
        log.info("ECE %s", ", ".join(errors))
        for region, title in REGIONS.items():
            if after[region].expected_error() > WORSE * before[region].expected_error():
                log.warning("The ECE of %s is larger with this temperature: one number cannot serve all voxels.", title)
        log.info("%s", SPLITS[self.split])

    def _write(self, estimate: TemperatureEstimate, kept: dict[str, Any], before: Bins, after: Bins) -> None:
        from calib_components.figures import reliability_diagram  # training must not need matplotlib

        when = {"before": before, "after": after}
        panels = {f"{region}, {time}": bins[region] for region in REGIONS for time, bins in when.items()}
        figure = reliability_diagram(panels, bands=True)
        make_folder(self.output_dir)
        with self._writing_weights(), writing(self.output_dir / RELIABILITY) as picture:
            figure.savefig(picture, format="png")
            self._write_estimate(estimate, kept)
        logging.getLogger(__name__).info("Wrote %s and %s to %s", TEMPERATURE_FILE, RELIABILITY, self.output_dir)

    def _write_estimate(self, estimate: TemperatureEstimate, kept: dict[str, Any]) -> None:
        with writing(self.output_dir / FIT) as unfinished:
            unfinished.write_text(json.dumps(kept, allow_nan=False) + "\n")
            write_temperature(estimate, self.output_dir)

    @contextmanager
    def _writing_weights(self) -> Iterator[None]:
        """Write the weights; they take their place after the files that are written within, if those could be."""
        temperature = find_temperature(self.network)
        assert temperature is not None
        content = with_temperature(self.load_path, temperature)
        file = self.calibrated_path
        is_new = not file.is_file() or file.read_bytes() != content
        make_folder(file.parent)
        with writing(file.resolve()) as unfinished:  # a link stays one
            unfinished.write_bytes(content)
            yield
            facts = facts_beside(self.load_path)
            if facts is not None and facts_beside(file) is None:
                write_facts(facts, file.parent)
        log = logging.getLogger(__name__)
        log.info("Wrote the temperature %.6g into %s", temperature.item(), file)
        for export in sorted(file.parent.glob(f"{glob.escape(file.stem)}.*")):
            if is_new and export.suffix in EXPORT_ENDINGS:
                log.warning("%s: made from the weights as they were before; export it again, or delete it", export)


def _read_fits(folders: Sequence[str | os.PathLike], empty: TemperatureScaling) -> TemperatureScaling:
    """Return the fits in folders as one with the options of an empty one."""
    whole = TemperatureScaling(empty.region, empty.ignore_index, empty.sigmoid)
    found: dict[str, Path] = {}
    for file in (Path(folder) / FIT for folder in folders):
        with reading(file, "what calibrate.yaml keeps of a fit"):
            content = json.loads(file.read_bytes())
        try:
            whole.add(TemperatureScaling.from_dict(content))
        except ValueError as error:
            raise InputError(f"{file}: {error}") from error
        for patient in content["patients"]:
            if patient in found:
                raise InputError(f"{file}: expected other patients than in {found[patient]}, got {patient}")
            found[patient] = file
    return whole


def read_temperature(folder: str | os.PathLike) -> TemperatureEstimate:
    """Read `temperature.json`.

    Args:
        folder: The `output_dir` of the calibration.

    Raises:
        InputError: The file is missing or broken.
    """
    with reading(Path(folder) / TEMPERATURE_FILE, "a fitted temperature") as file:
        return TemperatureEstimate.from_dict(json.loads(file.read_bytes()))


def write_temperature(estimate: TemperatureEstimate, folder: str | os.PathLike) -> None:
    """Write `temperature.json` into a folder.

    Raises:
        InputError: It cannot be written.
    """
    with writing(Path(folder) / TEMPERATURE_FILE) as unfinished:
        unfinished.write_text(json.dumps(estimate.to_dict(), indent=2, allow_nan=False) + "\n")
