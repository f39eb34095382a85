"""Checkpoints from which training continues as if it had not been interrupted."""

from __future__ import annotations

import logging
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data.utils import set_rnd
from monai.engines import Evaluator, Trainer
from monai.utils import set_determinism

from calib_components.errors import InputError, reading
from calib_components.posthoc import find_calibrator
from calib_components.posthoc.network import members_of, set_calibrator, unwrapped
from calib_workflows.data.cases import SliceDataset
from calib_workflows.data.facts import Facts
from calib_workflows.folders import OutputFolder
from calib_workflows.options import BEST, LAST, check_weights, config_of_run, facts_in_use
from calib_workflows.runs import changes, fingerprint_of_cases, fingerprint_of_list, settings_of
from calib_workflows.weights import (
    check_beside,
    save,
    serialize,
    write_weights,
)

log = logging.getLogger(__name__)
FORMAT = 2  # of `last.ckpt`
NEVER = -1  # the epoch of the best metric that MONAI's engines start with


class TrainingCheckpoint:
    """Save the best weights, and all that a bit-exact continuation needs.

    After each epoch it writes `last.ckpt` (network, optimizer, scheduler, AMP scaler, epoch, best
    metric so far) and, if the evaluator has just reached its best key metric or has nothing to
    validate on, `model.pt` (the state dict of the network alone), with the `facts.yaml` of its
    data. Each file is replaced in one step, so a process that is killed leaves the previous one.
    (Ignite's `Checkpoint` removes the previous file first.)

    `last.ckpt` also has the settings of the run, see `calib_workflows.runs`: a bundle's run with
    other settings, other data or another number of processes cannot resume from it. With another
    number of epochs it can: then the learning rate is what it would be if these had been meant from
    the start.

    All randomness of an epoch is seeded with `seed` and the number of the epoch, so on a CPU a
    resumed run ends with the same bits as an uninterrupted one. Workers that stay from epoch to
    epoch need a `SliceDataset` and a sampler that follows the epoch, such as MONAI's
    `DistributedSampler`.

    A calibrator of the network, see `calib_components.posthoc`, changes nothing in training.

    Args:
        ckpt_dir: Folder of the two files.
        network: Network to train, which `DistributedDataParallel` or `torch.compile` may wrap.
        optimizer: Its optimizer.
        lr_scheduler: Its learning-rate scheduler.
        evaluator: The validation engine, whose `best_metric_epoch` says when the metric was best.
        seed: Seed of the whole run.
        resume: Continue from `last.ckpt`. Without that file, start from the beginning.
        patience: Number of epochs without a better key metric after which training stops; 0 never.
        datalist: List of the prepared cases; with what these hold, it is one of the settings. It
            need not exist.
        dataset_dir: Folder of these cases; default: that of the list.

    Raises:
        InputError: At the start of a run that resumes another one, into a folder with weights of
            other data or while another training writes into it; when weights are no longer finite;
            or if a file cannot be written.
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
        datalist: str | os.PathLike = "",
        dataset_dir: str | os.PathLike | None = None,
        patience: int = 0,
    ) -> None:
        self.best_path, self.last_path = Path(ckpt_dir) / BEST, Path(ckpt_dir) / LAST
        self.output = OutputFolder(Path(ckpt_dir))
        self.network, self.evaluator = unwrapped(network), evaluator
        self.seed, self.resume, self.patience = seed, resume, patience
        self.stateful: dict[str, Any] = {
            "network": self.network,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
        }
        self.datalist = Path(datalist)
        self.dataset_dir = Path(dataset_dir or self.datalist.parent)
        # These are known from the start of the bundle's run on
        self.facts: Facts | None = None
        self.settings: dict[str, Any] = {}

    def attach(self, engine: Trainer) -> None:
        """Save after each epoch of the trainer, and resume when it starts."""
        engine.add_event_handler(Events.STARTED, self._start)
        # At that time, other handlers have loaded weights
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.COMPLETED, self.output.release)

    def _start(self, engine: Trainer) -> None:
        config = config_of_run()
        if idist.get_rank() == 0:
            self.output.claim()
            if config is not None:  # another training may have ended since the run's check
                check_weights(config)
        self._describe_run(config)
        if self.facts is not None:
            check_beside(self.best_path, self.facts, "ckpt_dir")
        if engine.scaler is not None:  # of AMP; MONAI has just created it
            self.stateful["scaler"] = engine.scaler
        if self.resume and self.last_path.is_file():
            self._load(engine)
        else:
            if self.resume:
                log.info("No %s to resume from: starting from the beginning.", self.last_path)
            if idist.get_rank() == 0:  # never beside weights of this training
                self.last_path.unlink(missing_ok=True)
        # Handlers run in the order in which they were attached; now all others have been, which
        # validate and log.
        if engine.has_event_handler(self._save, Events.EPOCH_COMPLETED):
            engine.remove_event_handler(self._save, Events.EPOCH_COMPLETED)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _describe_run(self, config: ConfigParser | None) -> None:
        """Record the facts and the settings of the bundle's run, if this is a part of one."""
        if config is not None:
            if "facts" in config:  # weights travel, folders do not
                self.facts = replace(facts_in_use(config), source="")
            self.settings = settings_of(config.get(), self.facts)
        self.settings |= {
            "data": fingerprint_of_list(self.datalist),
            "cases": fingerprint_of_cases(self.datalist, self.dataset_dir),
            "processes": idist.get_world_size(),
        }

    def _load(self, engine: Trainer) -> None:
        with reading(self.last_path, "a checkpoint of a training"):
            checkpoint = torch.load(
                self.last_path, map_location=engine.state.device, weights_only=True
            )
        if checkpoint.get("format") != FORMAT:
            raise InputError(
                f"{self.last_path} is of a training of another release, which this one does not"
                " continue. Finish it with that, or start from the beginning with --resume false"
                " --overwrite true."
            )
        if differing := changes(checkpoint["settings"], self.settings):
            raise InputError(
                f"{self.last_path} is of a run with other settings: {'; '.join(differing)}. Set"
                " them back, or start from the beginning with --resume false --overwrite true."
            )
        has_schedule = checkpoint["max_epochs"] == engine.state.max_epochs
        for name, holder in self.stateful.items():
            if name == "lr_scheduler" and not has_schedule:
                continue
            if name in checkpoint:  # a run that started without AMP has no scaler
                holder.load_state_dict(checkpoint[name])
        if not has_schedule:
            self._repeat_schedule(checkpoint["epoch"])
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["epoch"] * engine.state.epoch_length
        self.evaluator.state.best_metric = checkpoint["best_metric"]
        self.evaluator.state.best_metric_epoch = checkpoint["best_metric_epoch"]
        log.info("Resuming after epoch %d of %s.", checkpoint["epoch"], self.last_path)
        if engine.state.epoch >= cast(int, engine.state.max_epochs):
            log.info(
                "Nothing to train: max_epochs is %s. A larger one continues.",
                engine.state.max_epochs,
            )
        self._stop_without_improvement(engine)

    def _repeat_schedule(self, epochs: int) -> None:
        """Step a new scheduler through the epochs so far, from the first learning rate on."""
        for group in self.stateful["optimizer"].param_groups:
            group["lr"] = group["initial_lr"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _ in range(epochs):
                self.stateful["lr_scheduler"].step()

    def _stop_without_improvement(self, engine: Trainer) -> None:
        """End a training whose key metric has not been better for as many epochs as `patience`."""
        best = self.evaluator.state.best_metric_epoch
        if 0 < self.patience <= engine.state.epoch - best and best != NEVER:
            log.info("No better epoch than %d in %d epochs: training stops.", best, self.patience)
            engine.terminate()

    def _start_epoch(self, engine: Trainer) -> None:
        sequence = np.random.SeedSequence((self.seed, engine.state.epoch, idist.get_rank()))
        seed = sequence.generate_state(1).item()
        set_determinism(seed)
        dataset = getattr(engine.data_loader, "dataset", None)
        if isinstance(dataset, SliceDataset):
            dataset.seed_items(seed)
        else:  # workers that do not stay seed their own copies; without workers, this one is used
            set_rnd(dataset, seed=seed)
        calibrator = find_calibrator(self.network)
        if calibrator is not None:
            set_calibrator(self.network, type(calibrator)())
        if members_of(self.network):  # whose parameters no optimizer has
            raise InputError(
                "network: an ensemble is not trained further. Train one of its networks."
            )

    def _save(self, engine: Trainer) -> None:
        best, epoch = self.evaluator.state, engine.state.epoch
        has_metric = best.best_metric_epoch != NEVER
        if has_metric and (best.best_metric == 0 or math.isnan(best.best_metric)):
            # Where labels have no structure, the DSC is NaN or 0, of which MONAI would keep the
            # first for ever.
            best.best_metric_epoch = NEVER
            log.warning("validation: the DSC is %g. model.pt is of this epoch", best.best_metric)
        self._stop_without_improvement(engine)
        if idist.get_rank() != 0:
            return
        weights = self.network.state_dict()
        if not all(torch.as_tensor(values).isfinite().all() for values in weights.values()):
            raise InputError(
                f"network: weights are NaN or infinite after epoch {epoch}. The files in"
                f" {self.best_path.parent} are of epochs before. Try a lower --learning_rate."
            )
        if best.best_metric_epoch in (epoch, NEVER):
            for name, values in weights.items():  # for machines without a GPU, whatever reads them
                weights[name] = values.cpu()
            write_weights(self.best_path, serialize(weights), self.facts, "ckpt_dir")
        state = {name: holder.state_dict() for name, holder in self.stateful.items()}
        state.update(format=FORMAT, settings=self.settings)
        state.update(epoch=epoch, max_epochs=engine.state.max_epochs)
        state.update(best_metric=best.best_metric, best_metric_epoch=best.best_metric_epoch)
        save(state, self.last_path)
