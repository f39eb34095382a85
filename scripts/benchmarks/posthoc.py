"""Times of the fit of a temperature."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from calib_components.posthoc import TemperatureScaling
from scripts.benchmarks.timing import Step, print_ratios, set_up


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
    """The streaming fit of a temperature, its interval included, over L-BFGS on the logits of all
    cases concatenated.

    Args:
        device: Where to run, "cpu" or "cuda".
        rounds: How many times each is timed.
        threads: CPU threads for PyTorch.
        cases: Number of cases, each of another patient.
    """
    set_up(rounds, threads)
    shape = (1, 4, 144, 144, 10)
    logits = [4 * torch.randn(shape, device=device) for _ in range(cases)]
    y = [
        (case / 1.6 - torch.empty_like(case).exponential_().log()).argmax(1, keepdim=True)
        for case in logits
    ]
    steps: dict[str, Step] = {
        "concatenate, L-BFGS": partial(_concatenate_and_minimize, logits, y),
        "TemperatureScaling": partial(_stream, logits, y),
    }
    print_ratios(
        f"fit of a temperature, {cases} cases of {'x'.join(map(str, shape[1:]))}",
        steps,
        rounds,
        device,
    )
    print("temperatures:", ", ".join(f"{name} {step():.6f}" for name, step in steps.items()))
