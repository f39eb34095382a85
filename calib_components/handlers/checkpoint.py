"""Training that survives an interruption."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.engines import Evaluator, Trainer
from monai.utils import set_determinism

__all__ = ["TrainingCheckpoint"]

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
