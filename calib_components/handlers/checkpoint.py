"""Checkpoints from which training continues as if it had not been interrupted."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data.utils import set_rnd
from monai.engines import Evaluator, Trainer
from monai.utils import set_determinism

from calib_components.bundle import facts_in_use, running_config
from calib_components.data.cases import SliceDataset
from calib_components.data.facts import FACTS, Facts, facts_beside, has_other_facts, write_facts
from calib_components.errors import InputError, reading, writing
from calib_components.handlers.fingerprint import changes, fingerprint, fingerprint_of_cases, fingerprint_of_list
from calib_components.handlers.temperature import EXPORT_ENDINGS
from calib_components.handlers.weights import LAST, serialize
from calib_components.posthoc import find_temperature, set_temperature
from calib_components.posthoc.network import unwrapped

__all__ = ["TrainingCheckpoint"]

WEIGHTS = (".pt", *EXPORT_ENDINGS)  # how files of weights end
CASES = "cases"  # in the settings of a checkpoint: the fingerprint of what they hold, or None
NEVER = -1  # the epoch of the best metric that MONAI's engines start with


class TrainingCheckpoint:
    """Save the best weights, and all that a bit-exact continuation needs.

    After each epoch it writes `last.ckpt` (network, optimizer, scheduler, AMP scaler, epoch, best metric so far) and,
    if the evaluator has just reached its best key metric or has nothing to validate on, `model.pt` (the state dict of
    the network alone), with `facts.yaml` beside it, from which inference learns what the weights were trained on. Each
    file is replaced in one step, so a process that is killed, or a full disk, leaves the previous one intact. MONAI
    Label would take `last.pt` for weights.

    `last.ckpt` also has the fingerprint of the run, see `calib_components.handlers.fingerprint`: a run with other
    settings of the bundle, other data or another number of processes cannot resume from it. Outside of a bundle's run,
    settings are not known, and it is for you to keep them.

    All randomness of an epoch (augmentation, dropout, and the order of a sampler without a seed of its own) is seeded
    with `seed` and the number of the epoch. A resumed run therefore draws the same numbers as an uninterrupted one, and
    on a CPU ends with the same bits. Workers that stay from epoch to epoch need a `SliceDataset` and a sampler that
    follows the epoch, such as MONAI's `DistributedSampler`.

    A temperature of the network, see `calib_components.posthoc`, is 1 in training, also if the weights that it starts
    from are calibrated: other weights need another temperature, which is fitted after training.

    It saves after all other handlers of the end of an epoch, whenever those were attached, so that a saved epoch has
    been validated and logged.

    Args:
        ckpt_dir: Folder of the two files.
        network: Network to train. Of what `DistributedDataParallel` or `torch.compile` made of one, the weights of the
            network inside are saved.
        optimizer: Its optimizer.
        lr_scheduler: Its learning-rate scheduler.
        evaluator: The validation engine, whose `best_metric_epoch` says when the metric was best.
        seed: Seed of the whole run.
        resume: Continue from `last.ckpt`. Without that file, start from the beginning.
        datalist: List of the prepared cases; with what these hold, it is a part of the fingerprint. It need not exist.
        dataset_dir: Folder of these cases; default: that of the list.

    Raises:
        InputError: At the start of a run that resumes another one, or into a folder with weights of other data; when
            weights are no longer finite; or if a file cannot be written.
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
    ) -> None:
        self.best_path = Path(ckpt_dir) / "model.pt"
        self.last_path = Path(ckpt_dir) / LAST
        network = unwrapped(network)
        self.stateful: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.evaluator = evaluator
        self.seed = seed
        self.resume = resume
        self._told = False
        config = running_config()
        self.facts = facts_in_use(config) if config is not None and "facts" in config else None
        self.settings = _settings(
            config, Path(datalist), Path(datalist).parent if dataset_dir is None else Path(dataset_dir)
        )

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: The trainer.
        """
        engine.add_event_handler(Events.STARTED, self._check_folder)
        # MONAI creates the AMP scaler when the run starts; take it before a resumed run loads its state.
        engine.add_event_handler(Events.STARTED, self._take_scaler)
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.STARTED, self._attach_save)
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed_epoch)
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset_temperature)  # after whatever has loaded weights

    def _check_folder(self, _: Trainer) -> None:
        """Refuse to write other facts beside weights that are not trained here: they would be taken for theirs."""
        folder = self.best_path.parent
        if self.facts is not None and (lists := sorted(folder.glob("datalist*.json"))):
            raise InputError(
                f"ckpt_dir: expected another folder than that of prepared cases, whose {FACTS} would be replaced, got "
                f"one with {lists[0]}"
            )
        found = [file for kind in WEIGHTS for file in sorted(folder.glob(f"[!.]*{kind}"))]
        others = [file for file in found if file != self.best_path]
        if others and self.facts is not None and facts_beside(folder / FACTS) != self._own_facts():
            raise InputError(
                f"ckpt_dir: expected a folder without weights of other data, got {others[0]}; choose another folder, "
                "or move or delete it"
            )

    def _take_scaler(self, engine: Trainer) -> None:
        if engine.scaler is not None:
            self.stateful["scaler"] = engine.scaler

    def _load(self, engine: Trainer) -> None:
        if not self.last_path.is_file():
            logging.getLogger(__name__).info("No %s to resume from: starting from the beginning.", self.last_path)
            return
        with reading(self.last_path, "a checkpoint of a training"):
            checkpoint = torch.load(self.last_path, map_location=engine.state.device, weights_only=True)
            before = checkpoint["settings"]
        unknown = None in (before.get(CASES), self.settings[CASES])  # which may be the same
        if differing := changes(before, {**self.settings, CASES: before.get(CASES)} if unknown else self.settings):
            raise InputError(
                f"{self.last_path}: expected a checkpoint of a run with the same settings, got one with other "
                f"{', '.join(differing)}; set them back, or start from the beginning with resume false"
            )
        for name, holder in self.stateful.items():
            if name in checkpoint:  # a run that started without AMP has no scaler
                holder.load_state_dict(checkpoint[name])
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["epoch"] * engine.state.epoch_length
        self.evaluator.state.best_metric = checkpoint["best_metric"]
        self.evaluator.state.best_metric_epoch = checkpoint["best_metric_epoch"]
        logging.getLogger(__name__).info("Resuming after epoch %d of %s.", checkpoint["epoch"], self.last_path)

    def _attach_save(self, engine: Trainer) -> None:
        # Handlers run in the order in which they were attached; when a run starts, all others have been.
        if engine.has_event_handler(self._save, Events.EPOCH_COMPLETED):
            engine.remove_event_handler(self._save, Events.EPOCH_COMPLETED)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _seed_epoch(self, engine: Trainer) -> None:
        epoch_seed = np.random.SeedSequence((self.seed, engine.state.epoch, idist.get_rank())).generate_state(1).item()
        set_determinism(epoch_seed)
        dataset = getattr(engine.data_loader, "dataset", None)
        if isinstance(dataset, SliceDataset):
            dataset.seed_items(epoch_seed)
        else:  # workers that do not stay seed their own copies; without workers, this one is used
            set_rnd(dataset, seed=epoch_seed)

    def _reset_temperature(self) -> None:
        if find_temperature(self.stateful["network"]) is not None:
            set_temperature(self.stateful["network"], 1.0)

    def _save(self, engine: Trainer) -> None:
        best = self.evaluator.state
        if best.best_metric_epoch != NEVER and (best.best_metric == 0 or math.isnan(best.best_metric)):
            # Where labels have no structure, the DSC is NaN or 0, of which MONAI would keep the first for ever.
            best.best_metric_epoch = NEVER
            if not self._told:
                self._told = True
                logging.getLogger(__name__).warning(
                    "validation: expected a DSC above 0, got %g after epoch %d; until there is one, model.pt holds the "
                    "weights of the last epoch",
                    best.best_metric,
                    engine.state.epoch,
                )
        if idist.get_rank() != 0:
            return
        weights = self.stateful["network"].state_dict()
        if not all(values.isfinite().all() for values in weights.values() if values.is_floating_point()):
            raise InputError(
                f"network: expected finite weights after epoch {engine.state.epoch}, got NaN or infinity; the files in "
                f"{self.best_path.parent} are those of epochs before; try a lower learning_rate"
            )
        self.best_path.parent.mkdir(parents=True, exist_ok=True)
        if best.best_metric_epoch in (engine.state.epoch, NEVER):
            with writing(self.best_path) as file:
                for name, values in weights.items():  # for machines without a GPU, whatever reads them
                    weights[name] = values.cpu()
                file.write_bytes(serialize(weights))
                self._write_facts()
        state = {name: holder.state_dict() for name, holder in self.stateful.items()}
        state["epoch"] = engine.state.epoch
        state["settings"] = self.settings
        state["best_metric"] = best.best_metric
        state["best_metric_epoch"] = best.best_metric_epoch
        with writing(self.last_path) as file:
            file.write_bytes(serialize(state))

    def _write_facts(self) -> None:
        if self.facts is None:
            return
        facts = self._own_facts()
        if has_other_facts(facts, self.best_path.parent):
            self.best_path.unlink(missing_ok=True)  # never beside facts of others, even if the process is killed here
        write_facts(facts, self.best_path.parent)

    def _own_facts(self) -> Facts:
        assert self.facts is not None
        return replace(self.facts, source="")  # weights travel, folders do not


def _settings(config: ConfigParser | None, datalist: Path, folder: Path) -> dict[str, Any]:
    """All that decides the numbers of the run that is being configured, as plain data."""
    return {
        **(fingerprint(config.get()) if config is not None else {}),
        "data": fingerprint_of_list(datalist),
        CASES: fingerprint_of_cases(datalist, folder),
        "processes": idist.get_world_size(),
    }
