"""Benchmarks: each command prints tables whose rows are ratios measured interleaved in one run.

python scripts/bench.py losses [--device cuda] [--rounds 15] [--threads 2]
python scripts/bench.py metrics [--device cuda]
python scripts/bench.py posthoc [--device cuda]
python scripts/bench.py train [--device cuda]
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fire
import monai.losses
import monai.metrics
import torch
import torch.nn.functional as F
from monai.bundle import ConfigWorkflow
from torch.profiler import ProfilerActivity, profile
from torchmetrics.functional.classification import multiclass_calibration_error

from calib_components.losses import (
    EntropyPenaltyLoss,
    FocalLoss,
    LabelSmoothingLoss,
    MbLSLoss,
    NACLLoss,
    SVLSLoss,
)
from calib_components.metrics import CalibrationMetric, CECEMetric, ECEMetric, hausdorff_distance_95
from calib_components.posthoc import TemperatureScaling

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "acdc_mri_nacl_segmentation"
SHAPES = ((16, 4, 224, 224), (2, 5, 96, 96, 96))
REGIONS = ("all", "predicted", "plausible", "predicted_band", "union", "band")  # and the foreground
# Shape, radii in voxels, and spacing in mm: those of BraTS and ACDC.
STRUCTURES = {
    "tumour core": ((240, 240, 155), (18, 16, 15), (1.0, 1.0, 1.0)),
    "whole tumour": ((240, 240, 155), (48, 40, 38), (1.0, 1.0, 1.0)),
    "left ventricle": ((224, 224, 10), (18, 18, 4), (1.5, 1.5, 10.0)),
}
PRIORS = ("mean", "gaussian", "max", "min", "median", "mode")

Step = Callable[[], object]


def interleaved_seconds(steps: dict[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Times every step once a round, for `rounds` rounds after one warm-up round.

    Whatever slows the machine down for a while then slows every step of those rounds, so ratios within a round hold.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step_round in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device != "cpu":
                torch.cuda.synchronize(device)
            if step_round > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory_mib(step: Step, device: str) -> float:
    """Returns how much tensor memory a step needs at its peak, on top of what was allocated before it, in MiB."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0)) / 2**20


def print_ratios(title: str, steps: dict[str, Step], rounds: int, device: str) -> None:
    """Prints one row a step: its time over the time of the first step (median over rounds), and its peak memory."""
    seconds = interleaved_seconds(steps, rounds, device)
    baseline = seconds[next(iter(steps))]
    width = max(map(len, steps))
    print(f"\n{title} ({device}, {torch.get_num_threads()} threads, median of {rounds} rounds)")
    print(f"{'':{width}}  {'ratio':>6}  {'ms':>8}  {'peak MiB':>8}")
    for name, step in steps.items():
        ratio = statistics.median(own / base for own, base in zip(seconds[name], baseline, strict=True))
        milliseconds = 1e3 * statistics.median(seconds[name])
        print(f"{name:{width}}  {ratio:6.2f}  {milliseconds:8.1f}  {peak_memory_mib(step, device):8.1f}", flush=True)


def _forward_backward(loss: Callable, logits: torch.Tensor, target: torch.Tensor) -> None:
    torch.autograd.grad(loss(logits, target), logits)


def losses(device: str = "cpu", rounds: int = 15, threads: int = 2) -> None:
    """Forward and backward of every loss over plain cross-entropy, 2D and 3D, next to MONAI's.

    Args:
        device: where to run, "cpu" or "cuda".
        rounds: how many times each loss is timed.
        threads: CPU threads for PyTorch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for shape in SHAPES:
        num_classes, dims = shape[1], len(shape) - 2
        logits = torch.randn(shape, device=device, requires_grad=True)
        index = torch.randint(num_classes, (shape[0], *shape[2:]), device=device)
        run = partial(_forward_backward, logits=logits, target=index)
        steps: dict[str, Step] = {"F.cross_entropy": partial(run, F.cross_entropy)}
        for prior in PRIORS:
            steps[f"NACLLoss {prior}"] = partial(run, NACLLoss(prior=prior))
        steps["NACLLoss mean, softmax"] = partial(run, NACLLoss(constraint="softmax"))
        for loss in (SVLSLoss(), MbLSLoss(), EntropyPenaltyLoss(), LabelSmoothingLoss(), FocalLoss()):
            steps[type(loss).__name__] = partial(run, loss)
        for prior in ("mean", "gaussian"):
            monai_nacl = monai.losses.NACLLoss(num_classes, dims, kernel_ops=prior).to(device)
            steps[f"monai NACLLoss {prior}"] = partial(run, monai_nacl)
        dice_ce = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)
        steps["monai DiceCELoss"] = partial(_forward_backward, dice_ce, logits, index.unsqueeze(1))
        print_ratios(f"forward + backward, {'x'.join(map(str, shape))}", steps, rounds, device)


def _measure(metric: Any, probabilities: torch.Tensor, target: torch.Tensor) -> None:
    metric(probabilities, target)
    metric.aggregate()
    metric.reset()


def _smooth_case() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns smooth probabilities of a volume that is mostly background, and labels drawn from them."""
    logits = F.interpolate(4 * torch.randn(1, 4, 12, 12, 6), (192, 192, 64), mode="trilinear")
    logits[:, 0] += 30 * (torch.linspace(-1, 1, 192).abs() - 0.3)[:, None, None]
    labels = (logits - torch.empty_like(logits).exponential_().log()).argmax(1, keepdim=True)
    return logits.softmax(1), labels


def metrics(device: str = "cpu", rounds: int = 5, threads: int = 2) -> None:
    """Calibration errors of a batch over MONAI's calibration error, and HD95 over medpy's.

    MONAI's calibration error is a classwise one from one-hot labels, torchmetrics' a top-label one. The peak memory is
    that of PyTorch's tensors alone, without NumPy's arrays.

    Args:
        device: where to run, "cpu" or "cuda".
        rounds: how many times each metric is timed.
        threads: CPU threads for PyTorch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    cases = [
        ((2 * torch.randn(shape)).softmax(1), torch.randint(shape[1], (shape[0], 1, *shape[2:]))) for shape in SHAPES
    ]
    for title, case in zip((*["random"] * len(SHAPES), "smooth"), (*cases, _smooth_case()), strict=True):
        probabilities, index = (tensor.to(device) for tensor in case)
        num_classes = probabilities.shape[1]
        one_hot = F.one_hot(index[:, 0], num_classes).movedim(-1, 1).float()
        steps: dict[str, Step] = {
            "monai CalibrationErrorMetric": partial(
                _measure, monai.metrics.CalibrationErrorMetric(num_bins=15), probabilities, one_hot
            ),
            "all measures, all regions": partial(_measure, CalibrationMetric(regions=REGIONS), probabilities, index),
            "all measures, all voxels": partial(_measure, CalibrationMetric(region="all"), probabilities, index),
            "all measures, foreground": partial(_measure, CalibrationMetric(), probabilities, index),
            "ECEMetric, all voxels": partial(_measure, ECEMetric(region="all"), probabilities, index),
            "CECEMetric, all voxels": partial(_measure, CECEMetric(region="all"), probabilities, index),
            "torchmetrics calibration_error": partial(
                multiclass_calibration_error, probabilities, index[:, 0], num_classes, n_bins=15
            ),
        }
        print_ratios(f"one batch, {title}, {'x'.join(map(str, probabilities.shape))}", steps, rounds, device)
    for name, (shape, radii, spacing) in STRUCTURES.items():
        y_pred, y = (_structure(shape, radii, shift) for shift in (0, 1))
        for sizes in (None, spacing):
            title = f"HD95, {name}, {'x'.join(map(str, shape))}, {'in voxels' if sizes is None else 'in mm'}"
            print_ratios(title, _hd95_steps(y_pred, y, sizes), rounds, "cpu")


def _structure(shape: Sequence[int], radii: Sequence[int], shift: int) -> torch.Tensor:
    """Returns the mask of a structure with a wavy surface, `(1, 1, *shape)`."""
    offsets = torch.meshgrid(*(torch.arange(size) - size // 2 - shift for size in shape), indexing="ij")
    distance = torch.stack([offset / radius for offset, radius in zip(offsets, radii, strict=True)]).norm(dim=0)
    waves = torch.stack([torch.sin(offset / (4 + shift)) for offset in offsets]).sum(0)
    return (distance + 0.1 * waves < 1)[None, None]


def _hd95_steps(y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float] | None) -> dict[str, Step]:
    steps: dict[str, Step] = {
        "monai compute_hausdorff_distance": partial(
            monai.metrics.compute_hausdorff_distance, y_pred, y, include_background=True, percentile=95, spacing=spacing
        ),
        "hausdorff_distance_95": partial(hausdorff_distance_95, y_pred, y, spacing),
    }
    try:
        from medpy.metric.binary import hd95
    except ImportError:
        print("\nmedpy is not installed: ratios are over MONAI's time")
        return steps
    return {"medpy hd95": partial(hd95, y_pred[0, 0].numpy(), y[0, 0].numpy(), spacing), **steps}


def _concatenate_and_minimize(logits: list[torch.Tensor], y: list[torch.Tensor]) -> float:
    """Fits a temperature as most published code does."""
    all_logits, all_y = torch.cat(logits), torch.cat(y)[:, 0]
    log_temperature = torch.zeros(1, device=all_logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(all_logits / log_temperature.exp(), all_y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_temperature.exp().item()


def _stream(logits: list[torch.Tensor], y: list[torch.Tensor]) -> float:
    scaling = TemperatureScaling()
    for i, case in enumerate(zip(logits, y, strict=True)):
        scaling.update(*case, group=f"patient {i}")
    return scaling.compute().temperature


def posthoc(device: str = "cpu", rounds: int = 5, threads: int = 2, cases: int = 8) -> None:
    """The streaming fit of a temperature, its interval included, over L-BFGS on the logits of all cases concatenated.

    Args:
        device: where to run, "cpu" or "cuda".
        rounds: how many times each is timed.
        threads: CPU threads for PyTorch.
        cases: number of cases, each of another patient.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = (1, 4, 144, 144, 10)
    logits = [4 * torch.randn(shape, device=device) for _ in range(cases)]
    y = [(case / 1.6 - torch.empty_like(case).exponential_().log()).argmax(1, keepdim=True) for case in logits]
    steps: dict[str, Step] = {
        "concatenate, L-BFGS": partial(_concatenate_and_minimize, logits, y),
        "TemperatureScaling": partial(_stream, logits, y),
    }
    print_ratios(f"fit of a temperature, {cases} cases of {'x'.join(map(str, shape[1:]))}", steps, rounds, device)
    print("temperatures:", ", ".join(f"{name} {step():.6f}" for name, step in steps.items()))


def train(device: str = "cpu", rounds: int = 5, threads: int = 2, slices: int = 256, size: int = 128) -> None:
    """An epoch through the ACDC bundle's workflow over one of a bare PyTorch loop, same network and in-memory tensors.

    The workflow's epoch includes its handlers and its checkpoint, not its validation, which the bare loop lacks.

    Args:
        device: where to run, "cpu" or "cuda".
        rounds: how many epochs of each are timed.
        threads: CPU threads for PyTorch.
        slices: number of slices in the data set.
        size: rows and columns of a slice.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.disable(logging.INFO)
    images = torch.randn(slices, 1, size, size)
    labels = torch.randint(4, (slices, 1, size, size), dtype=torch.uint8)
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "device": device,
            "amp": False,
            "num_workers": 0,
            "val_interval": 10**6,
            "ckpt_dir": folder,
            "output_dir": folder,
            "train::dataset": [{"image": i, "label": y} for i, y in zip(images, labels, strict=True)],
            "validate::dataset": [],
        }
        workflow = ConfigWorkflow(str(BUNDLE / "configs" / "train.yaml"), workflow_type="train", **options)
        workflow.initialize()
        trainer = workflow.trainer

        def workflow_epoch() -> None:
            trainer.state.max_epochs = trainer.state.epoch + 1
            trainer.run()

        network = copy.deepcopy(trainer.network)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        batch_size = trainer.data_loader.batch_size

        def bare_epoch() -> None:
            network.train()
            for batch in torch.randperm(slices).split(batch_size):
                optimizer.zero_grad()
                loss = trainer.loss_function(network(images[batch].to(device)), labels[batch].to(device))
                loss.backward()
                optimizer.step()

        steps: dict[str, Step] = {"bare loop": bare_epoch, "bundle's workflow": workflow_epoch}
        print_ratios(f"training epoch, {slices} slices of {size} x {size}", steps, rounds, device)


if __name__ == "__main__":
    fire.Fire({"losses": losses, "metrics": metrics, "posthoc": posthoc, "train": train})
