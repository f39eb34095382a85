"""The checkpoint of a training, with a network of one weight. Whole runs are in tests/bundles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer

from calib_components.errors import InputError
from calib_components.posthoc import Ensemble, TemperatureScaled
from calib_workflows.training import TrainingCheckpoint, checkpoint


def train(
    folder: Path,
    max_epochs: int = 4,
    stop_after: int | None = None,
    stop: Callable[[Any], None] = SupervisedTrainer.terminate,
    **options: Any,
) -> dict[str, Any]:
    """Train, perhaps only for the first epochs, and give what last.ckpt holds."""
    torch.manual_seed(0)
    network = options.pop("network", torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=[{"image": torch.ones(2, 1), "label": torch.zeros(2, 1)}] * 2,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        amp=options.pop("amp", False),
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max_epochs // 2])
    best_epoch = options.pop("best_epoch", -1)  # by default, none was validated yet
    evaluator: Any = SimpleNamespace(
        state=SimpleNamespace(
            best_metric=options.pop("best_metric", -1), best_metric_epoch=best_epoch
        )
    )
    if change := options.pop("at_epoch_2", None):
        trainer.add_event_handler(Events.EPOCH_STARTED(once=2), change)
    TrainingCheckpoint(folder, network, optimizer, scheduler, evaluator, seed=0, **options).attach(
        trainer
    )
    if stop_after:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), stop)
    trainer.run()
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_model_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    last = train(tmp_path / "whole", best_epoch=2)
    second = train(tmp_path / "second", best_epoch=2, stop_after=2)
    model = torch.load(tmp_path / "whole" / "model.pt", weights_only=True)
    assert model == second["network"]
    assert model != last["network"]
    assert (last["epoch"], last["best_metric_epoch"]) == (4, 2)


@pytest.mark.parametrize("metric", [math.nan, 0.0])
def test_model_is_that_of_the_last_epoch_where_labels_have_no_structure(
    metric: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MONAI takes the first NaN for the best metric, and no later number is larger than NaN."""
    last = train(tmp_path, best_epoch=1, best_metric=metric)
    assert torch.load(tmp_path / "model.pt", weights_only=True) == last["network"]
    assert (last["epoch"], last["best_metric_epoch"]) == (4, -1)
    assert f"DSC is {metric:g}" in caplog.text


def test_all_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum, learning rate, the best metric, the scaler of AMP, and a calibrator, which is 1 in
    training.
    """
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.cuda.amp, "GradScaler", lambda: scaler("cpu", init_scale=8.0, growth_interval=3)
    )
    torch.manual_seed(0)
    first, rest = (TemperatureScaled(torch.nn.Linear(1, 1), 0.5) for _ in range(2))
    whole = train(
        tmp_path / "whole", amp=True, network=copy.deepcopy(first), best_metric=0.5, best_epoch=1
    )
    assert whole["scaler"]["scale"] == 32  # 8 steps: doubled after the third and the sixth
    train(tmp_path / "parts", amp=True, network=first, best_metric=0.5, best_epoch=1, stop_after=2)
    assert train(tmp_path / "parts", amp=True, network=rest, resume=True) == whole


def test_calibrator_changes_nothing_in_training_and_what_it_saves(tmp_path: Path) -> None:
    """Also where it starts from calibrated weights, and where the network is compiled."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(1, 1)
    scaled = torch.compile(TemperatureScaled(copy.deepcopy(plain), 0.5), backend="eager")
    expected = train(tmp_path / "plain", network=plain)["network"]
    trained = train(tmp_path / "scaled", network=scaled)["network"]
    assert trained.pop("temperature") == 1
    torch.testing.assert_close(
        {name.removeprefix("network."): values for name, values in trained.items()},
        {**expected},
        rtol=0,
        atol=0,
    )
    assert torch.load(tmp_path / "scaled" / "model.pt", weights_only=True)["temperature"] == 1


def test_an_ensemble_is_not_trained_further(tmp_path: Path) -> None:
    """Its weights take the place of the parameters that the optimizer has."""
    network = TemperatureScaled(Ensemble([torch.nn.Linear(1, 2), torch.nn.Linear(1, 2)]))
    with pytest.raises(InputError, match="network: an ensemble is not trained"):
        train(tmp_path, network=network)


def test_resuming_with_other_cases_is_an_error(tmp_path: Path) -> None:
    datalist, source = tmp_path / "a.json", tmp_path / "data" / "a" / "source.json"
    places, out = {"datalist": datalist, "dataset_dir": tmp_path / "data"}, tmp_path / "out"
    listed = '{"training": [{"case": "a", "image": "a/image.nii", "label": "a/label.nii"}]}'
    source.parent.mkdir(parents=True)
    datalist.write_text(listed)
    for epoch, files in ((1, "[]"), (2, '["of another day"]')):
        source.write_text(f'{{"content": "1", "files": {files}}}')
        before = train(out, stop_after=epoch, resume=True, **places)
    source.write_text('{"content": "2"}')
    with pytest.raises(InputError, match=r"last.ckpt .*other settings: cases "):
        train(out, resume=True, **places)
    source.write_text('{"content": "1"}')
    datalist.write_text(listed + " ")
    with pytest.raises(InputError, match=r"last.ckpt .*other settings: data "):
        train(out, resume=True, **places)
    assert torch.load(out / "last.ckpt", weights_only=True) == before


def test_more_epochs_continue_with_the_learning_rate_of_their_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    # Without a handler that steps the scheduler: its steps are those of resuming
    for max_epochs, stop_after, epoch, steps, rate in (
        (2, None, 2, 0, 0.1),
        (4, 3, 3, 2, 0.01),
        (1, None, 3, 2, 0.01),
    ):
        config = ConfigParser(
            {
                "ckpt_dir": str(tmp_path),
                "resume": True,
                "overwrite": False,
                "max_epochs": max_epochs,
                "lr_scheduler": {"milestones": "$@max_epochs // 2"},
                "train": {"handlers": []},
            }
        )
        monkeypatch.setattr(checkpoint, "config_of_run", lambda config=config: config)
        last = train(tmp_path, max_epochs=max_epochs, stop_after=stop_after, resume=True)
        assert (last["epoch"], last["lr_scheduler"]["last_epoch"]) == (epoch, steps)
        assert last["optimizer"]["param_groups"][0]["lr"] == pytest.approx(rate)
    assert "Nothing to train: max_epochs is 1" in caplog.text


def test_training_stops_without_a_better_epoch(tmp_path: Path) -> None:
    epochs = [
        train(tmp_path, max_epochs=9, best_epoch=1, resume=True, patience=patience)["epoch"]
        for patience in (2, 2, 4, 0)
    ]
    assert epochs == [3, 3, 5, 9]
    assert train(tmp_path / "unvalidated", max_epochs=3, patience=1)["epoch"] == 3


def test_training_of_another_release_is_not_continued(tmp_path: Path) -> None:
    content = train(tmp_path, stop_after=1)
    del content["format"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last.ckpt is of a training of another release"):
        train(tmp_path, resume=True)


def test_epoch_is_saved_after_all_other_handlers_even_those_attached_later(tmp_path: Path) -> None:
    train(tmp_path, stop_after=1)

    def die(engine: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path, resume=True, stop_after=2, stop=die)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 1


def test_each_process_and_epoch_draws_its_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for rank, epoch in ((0, 1), (1, 1), (0, 2), (0, 1)):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        checkpoint = TrainingCheckpoint(tmp_path, torch.nn.Linear(1, 1), None, None, None, seed=0)  # type: ignore[arg-type]
        checkpoint._start_epoch(
            SimpleNamespace(state=SimpleNamespace(epoch=epoch), data_loader=None)
        )  # type: ignore[arg-type]
        drawn.append(torch.rand(1).item())
    assert len({*drawn}) == 3
    assert drawn[0] == drawn[3]


def test_weights_that_are_no_longer_finite_replace_none(tmp_path: Path) -> None:
    before = train(tmp_path, stop_after=1)
    model = torch.load(tmp_path / "model.pt", weights_only=True)

    def diverge(trainer: Any) -> None:
        trainer.network.weight.data.fill_(torch.inf)

    network = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match=r"NaN or infinite after epoch 2"):
        train(tmp_path, resume=True, network=network, at_epoch_2=diverge)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == before
    assert torch.load(tmp_path / "model.pt", weights_only=True) == model


def test_weights_are_never_beside_the_state_of_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path)
    monkeypatch.setattr(checkpoint, "save", lambda *_: 1 / 0)  # as if it were killed before
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, max_epochs=1)
    assert sorted(file.name for file in tmp_path.glob("[!.]*")) == ["model.pt"]
