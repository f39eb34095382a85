"""What a training shows of itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine, Events

from calib_workflows.training import TrainingLog, training_curves


def test_a_line_has_what_was_validated_in_its_epoch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("calib_workflows.training.log.config_of_run", dict)
    best = {"best_metric_epoch": -1, "key_metric_name": "dsc"}
    state = SimpleNamespace(epoch=0, metrics={"dsc": 0.5}, epoch_length=1, **best)
    evaluator: Any = SimpleNamespace(state=state)
    trainer = Engine(lambda *_: None)

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def validate() -> None:
        vars(state).update(epoch=2, best_metric=0.5, best_metric_epoch=2)

    TrainingLog(evaluator).attach(trainer)
    trainer.run([1], max_epochs=3)
    state.epoch_length = 0  # no validation case
    trainer.run([1], max_epochs=4)
    name = TrainingLog.__module__
    lines = [record.getMessage() for record in caplog.records if record.name == name]
    assert [line.rpartition(",")[0] or line for line in lines] == [
        "Epoch 1 of 3: ",
        "Epoch 2 of 3: dsc 0.5000, best dsc 0.5000 in epoch 2",
        "Epoch 3 of 3: best dsc 0.5000 in epoch 2",
        "Next: calibrate the network",
        "Epoch 4 of 4: best dsc 0.5000 in epoch 2",
        "Next: evaluate the network",
    ]


@pytest.mark.parametrize(("resume", "kept"), [(True, 1), (False, 0)])
def test_curves_of_a_training_that_is_replaced_go(resume: bool, kept: int, tmp_path: Path) -> None:
    before = tmp_path / "events.out.tfevents.0"
    for name in ("last.ckpt", before.name, "cases.csv"):
        (tmp_path / name).touch()
    training_curves(tmp_path, tmp_path, resume).close()
    assert (before.exists(), (tmp_path / "cases.csv").exists()) == (kept, True)
    assert len([*tmp_path.glob("events.out.tfevents.*")]) == 1 + kept
