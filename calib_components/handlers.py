"""Ignite handlers: training that survives an interruption, and the files of an evaluation."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import Evaluator, Trainer
from monai.utils import set_determinism, string_list_all_gather

from calib_components.figures import reliability_diagram, uncertainty_overlay
from calib_components.metrics import CalibrationBins, LogitMagnitudeMetric

__all__ = ["EvaluationWriter", "TrainingCheckpoint"]

NEVER = -1  # what MONAI's engines start with as the epoch of the best metric


class TrainingCheckpoint:
    """Keep the best weights and what a bit-exact continuation needs.

    After each epoch it writes ``last.pt`` (network, optimizer, scheduler, AMP scaler, epoch, best metric so far) and,
    when the evaluator has just found its best key metric or has nothing to validate on, ``model.pt`` (the network's
    state dict alone). Each file is replaced in one step, so a process killed at any moment leaves the old one whole.

    All randomness of an epoch (order, augmentation, dropout) is seeded from ``seed`` and the epoch's number. A run that
    resumes therefore draws what the uninterrupted run would have drawn, and on CPU ends with the same bits.

    Wherever it is attached, it writes after all other handlers of the epoch's end, so that an epoch that counts as done
    is validated and logged.

    Args:
        ckpt_dir: folder of the two files.
        network: network to train; the weights of one that is `DistributedDataParallel` are kept as of a plain one.
        optimizer: its optimizer.
        lr_scheduler: its learning-rate scheduler.
        evaluator: the validation engine; its ``best_metric_epoch`` decides what is best.
        seed: seed of the whole run.
        resume: continue from ``last.pt``; without such a file the run starts from the beginning.

    Raises:
        ValueError: at the start of a run that resumes one of another number of epochs, since the learning rate would
            follow the schedule of that one.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Evaluator,
        seed: int,
        resume: bool = False,
    ) -> None:
        self.best_path = Path(ckpt_dir) / "model.pt"
        self.last_path = Path(ckpt_dir) / "last.pt"
        if isinstance(network, torch.nn.parallel.DistributedDataParallel):
            network = network.module
        self.stateful: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.evaluator = evaluator
        self.seed = seed
        self.resume = resume

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        # Before the handlers of a resumed run read it: MONAI makes the AMP scaler when the run starts.
        engine.add_event_handler(Events.STARTED, self._take_scaler)
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.STARTED, self._attach_save)
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed_epoch)

    def _take_scaler(self, engine: Trainer) -> None:
        if engine.scaler is not None:
            self.stateful["scaler"] = engine.scaler

    def _load(self, engine: Trainer) -> None:
        if not self.last_path.is_file():
            logging.getLogger(__name__).info("No %s to resume from: starting from the beginning.", self.last_path)
            return
        checkpoint = torch.load(self.last_path, map_location=engine.state.device, weights_only=True)
        if checkpoint["max_epochs"] != engine.state.max_epochs:
            raise ValueError(
                f"{self.last_path}: of a run of {checkpoint['max_epochs']} epochs, whose learning rate would not fit "
                f"one of {engine.state.max_epochs}: set max_epochs to {checkpoint['max_epochs']}, or start anew."
            )
        for name, holder in self.stateful.items():
            if name in checkpoint:  # a run that began without AMP has no scaler
                holder.load_state_dict(checkpoint[name])
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["epoch"] * engine.state.epoch_length
        self.evaluator.state.best_metric = checkpoint["best_metric"]
        self.evaluator.state.best_metric_epoch = checkpoint["best_metric_epoch"]
        logging.getLogger(__name__).info("Resuming after epoch %d of %s.", checkpoint["epoch"], self.last_path)

    def _attach_save(self, engine: Trainer) -> None:
        # Handlers run in the order of attachment; at the start of a run all others are there.
        if engine.has_event_handler(self._save, Events.EPOCH_COMPLETED):
            engine.remove_event_handler(self._save, Events.EPOCH_COMPLETED)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _seed_epoch(self, engine: Trainer) -> None:
        epoch_seed = np.random.SeedSequence((self.seed, engine.state.epoch, idist.get_rank())).generate_state(1).item()
        set_determinism(epoch_seed)
        # Workers seed their own copy of the dataset; without workers this one is used.
        set_rnd(getattr(engine.data_loader, "dataset", None), seed=epoch_seed)

    def _save(self, engine: Trainer) -> None:
        if idist.get_rank() != 0:
            return
        best = self.evaluator.state
        if best.best_metric_epoch in (engine.state.epoch, NEVER):
            _save_atomically(self.stateful["network"].state_dict(), self.best_path)
        state = {name: holder.state_dict() for name, holder in self.stateful.items()}
        state["epoch"] = engine.state.epoch
        state["max_epochs"] = engine.state.max_epochs
        state["best_metric"] = best.best_metric
        state["best_metric_epoch"] = best.best_metric_epoch
        _save_atomically(state, self.last_path)


def _save_atomically(state: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    os.replace(partial, path)


class EvaluationWriter:
    """Write what an evaluation measured, per case and in summary.

    ``cases.csv``: one row a case. ``summary.json``: mean, standard deviation over cases and number of cases of every
    measure, the pooled calibration errors, and the structures that only the ground truth has (``missed``) or only the
    prediction (``spurious``).
    ``calibration.json``: the bins, per case and pooled. ``reliability.png`` and ``reliability_classes.png``: drawn from
    the pooled bins. ``logits.json``: mean magnitude of the logits, by ground truth class and channel.
    ``cases/best.png``, ``median.png`` and ``worst.png``: of the cases ordered by DSC, the slice with the most
    foreground and its uncertainty. No more than that slice is kept of a case until then.

    Args:
        output_dir: folder of the files.
        metrics: name of a measure to the metric that the evaluator updates, with ``dsc``, ``hd95``, ``ece`` and
            ``cece`` among them. Its ``aggregate("none")`` gives ``(cases,)`` or ``(cases, structures)``.
        structures: names of the structures, in the order of the metrics' columns.
        class_names: names of the classes, in the order of the network's channels.
        logit_magnitude: the metric of the logits that the evaluator updates.
        batch_transform: gets the names of a batch's cases from ``engine.state.batch``.
        output_transform: gets their images, probabilities and labels, lists of channel-first volumes, from
            ``engine.state.output``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        metrics: Mapping[str, Any],
        structures: Sequence[str],
        class_names: Sequence[str],
        logit_magnitude: LogitMagnitudeMetric,
        batch_transform: Callable[[Any], Sequence[str]],
        output_transform: Callable[[Any], Sequence[Sequence[torch.Tensor]]],
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metrics = metrics
        self.structures = list(structures)
        self.class_names = list(class_names)
        self.logit_magnitude = logit_magnitude
        self.batch_transform = batch_transform
        self.output_transform = output_transform
        self._cases: list[str] = []
        self._slices: dict[str, dict[str, np.ndarray]] = {}

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the evaluator that updates the metrics.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _reset(self) -> None:
        self._cases.clear()
        self._slices.clear()

    def _keep(self, engine: Engine) -> None:
        cases = self.batch_transform(engine.state.batch)
        self._cases.extend(cases)
        for case, *volumes in zip(cases, *self.output_transform(engine.state.output), strict=True):
            self._slices[case] = _largest_slice(*volumes)

    def _write(self) -> None:
        # Every rank takes part in the gathering, one writes.
        cases = string_list_all_gather(self._cases) if idist.get_world_size() > 1 else list(self._cases)
        per_case = {name: metric.aggregate("none").double().cpu() for name, metric in self.metrics.items()}
        bins = {kind: self.metrics[name].case_bins for kind, name in (("top_label", "ece"), ("classwise", "cece"))}
        magnitudes = self.logit_magnitude.magnitudes
        self._draw_cases(cases, per_case["dsc"].nanmean(1))
        if idist.get_rank() != 0:
            return
        self._write_cases(cases, per_case)
        self._write_summary(cases, per_case, bins)
        pooled = {kind: case_bins.pooled() for kind, case_bins in bins.items()}
        calibration = {
            "class_names": self.class_names,
            "cases": cases,
            "per_case": {kind: case_bins.to_dict() for kind, case_bins in bins.items()},
            "pooled": {kind: pooled_bins.to_dict() for kind, pooled_bins in pooled.items()},
        }
        (self.output_dir / "calibration.json").write_text(json.dumps(calibration) + "\n")
        reliability_diagram(pooled["top_label"]).savefig(self.output_dir / "reliability.png")
        reliability_diagram(pooled["classwise"], class_names=self.class_names).savefig(
            self.output_dir / "reliability_classes.png"
        )
        rows = [[None if math.isnan(value) else value for value in row] for row in magnitudes.tolist()]
        logits = {"class_names": self.class_names, "magnitudes": rows}
        (self.output_dir / "logits.json").write_text(json.dumps(logits) + "\n")
        logging.getLogger(__name__).info("Wrote the evaluation of %d cases to %s", len(cases), self.output_dir)

    def _draw_cases(self, cases: Sequence[str], dsc: torch.Tensor) -> None:
        """Every rank draws those it has seen."""
        folder = self.output_dir / "cases"
        folder.mkdir(parents=True, exist_ok=True)
        ordered = [i for i in dsc.argsort(stable=True).tolist() if not dsc[i].isnan()]
        chosen = {"worst": ordered[:1], "median": ordered[len(ordered) // 2 :][:1], "best": ordered[-1:]}
        for name, indices in chosen.items():
            for i in indices:
                if cases[i] in self._slices:
                    title = f"{cases[i]}, DSC of the volume {dsc[i]:.3f}"
                    figure = uncertainty_overlay(**self._slices[cases[i]], class_names=self.class_names, title=title)
                    figure.savefig(folder / f"{name}.png")

    def _columns(self, per_case: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        columns = {}
        for name, values in per_case.items():
            if values.ndim == 1:
                columns[name] = values
            else:
                columns.update(zip((f"{name}_{s}" for s in self.structures), values.unbind(1), strict=True))
        return columns

    def _write_cases(self, cases: Sequence[str], per_case: Mapping[str, torch.Tensor]) -> None:
        columns = self._columns(per_case)
        with open(self.output_dir / "cases.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", *columns])
            for case, *row in zip(cases, *(values.tolist() for values in columns.values()), strict=True):
                writer.writerow([case, *("" if math.isnan(value) else value for value in row)])

    def _write_summary(
        self, cases: Sequence[str], per_case: Mapping[str, torch.Tensor], bins: Mapping[str, CalibrationBins]
    ) -> None:
        means = {name: values.nanmean(1) for name, values in per_case.items() if values.ndim == 2}
        found_in_one = {
            name: [{"case": cases[i], "structure": self.structures[j]} for i, j in where.nonzero().tolist()]
            for name, where in (("missed", self.metrics["dsc"].missed), ("spurious", self.metrics["dsc"].spurious))
        }
        summary = {
            "cases": len(cases),
            **{name: _statistics(values) for name, values in {**means, **self._columns(per_case)}.items()},
            "ece_pooled": bins["top_label"].pooled().expected_error().item(),
            "cece_pooled": bins["classwise"].pooled().expected_error().item(),
            **found_in_one,
        }
        (self.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _largest_slice(image: torch.Tensor, probabilities: torch.Tensor, label: torch.Tensor) -> dict[str, np.ndarray]:
    """What `uncertainty_overlay` draws, from the slice along the last axis with the most foreground."""
    index = int((label[0] > 0).flatten(0, -2).sum(0).argmax())
    p = probabilities[..., index]
    values = {
        "image": image[0, ..., index],
        "label": label[0, ..., index].byte(),
        "prediction": p.argmax(0).byte(),
        "uncertainty": torch.special.entr(p).sum(0) / math.log(len(p)),
    }
    return {name: value.cpu().numpy().copy() for name, value in values.items()}  # copies, so the volume can go


def _statistics(values: torch.Tensor) -> dict[str, float | int | None]:
    """Mean and standard deviation over the cases where the measure is defined, and how many those are."""
    defined = values[~values.isnan()]
    return {
        "mean": defined.mean().item() if len(defined) > 0 else None,
        "std": defined.std().item() if len(defined) > 1 else None,
        "n": len(defined),
    }
