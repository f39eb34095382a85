"""What a training shows of itself: a line for each epoch, and curves."""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.utils import is_scalar

from calib_workflows.options import LAST, config_of_run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class TrainingLog:
    """Log one line an epoch, and at the end what to do next.

    The line has the epoch, the metrics of training and, in an epoch with a validation, those of the
    evaluator, its best key metric so far, and the time left.

    Args:
        evaluator: The validation engine.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.start, self.epochs = 0.0, 0  # seconds, and the epochs since then

    def attach(self, engine: Engine) -> None:
        """Log after each epoch of the trainer, once it was validated."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.COMPLETED, self._log_next_step)

    def _start(self, _: Engine) -> None:
        self.start, self.epochs = time.monotonic(), 0

    def _log_epoch(self, engine: Engine) -> None:
        self.epochs += 1
        trained, validated = engine.state, self.evaluator.state
        metrics = {**trained.metrics}
        if validated.epoch == trained.epoch:
            metrics |= validated.metrics
        parts = [f"{name} {value:.4f}" for name, value in metrics.items() if is_scalar(value)]
        if validated.best_metric_epoch > 0:
            best = f"best {validated.key_metric_name} {validated.best_metric:.4f}"
            parts.append(f"{best} in epoch {validated.best_metric_epoch}")
        seconds = (time.monotonic() - self.start) / self.epochs
        last = cast(int, trained.max_epochs)
        left = timedelta(seconds=round(seconds * (last - trained.epoch)))
        log.info("Epoch %d of %d: %s, %s left", trained.epoch, last, ", ".join(parts), left)

    def _log_next_step(self, _: Engine) -> None:
        if config_of_run() is not None:  # not of a server
            # Without validation cases, there is nothing to calibrate on
            verb = "calibrate" if self.evaluator.state.epoch_length else "evaluate"
            log.info("Next: %s the network, with configs/%s.yaml after train.yaml.", verb, verb)


def training_curves(
    output_dir: str | os.PathLike, ckpt_dir: str | os.PathLike, resume: bool
) -> SummaryWriter:
    """Return the writer of TensorBoard's curves. Those of a training that is not resumed are
    removed.

    Args:
        output_dir: Folder of the curves.
        ckpt_dir: Folder of the checkpoint of a training.
        resume: Whether the training continues from that checkpoint, if there is one.
    """
    from torch.utils.tensorboard import SummaryWriter  # of training alone

    if not (resume and (Path(ckpt_dir) / LAST).is_file()):
        for file in Path(output_dir).glob("events.out.tfevents.*"):
            file.unlink()
    return SummaryWriter(output_dir)
