"""Times as ratios in one interleaved run, and peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from calib_components.errors import check_count

Step = Callable[[], object]
BUNDLES = Path(__file__).resolve().parents[2] / "bundles"  # of the clone


def set_up(rounds: int, threads: int) -> None:
    """Check how often and with how many threads of PyTorch to measure, use so many, and seed what
    is drawn.
    """
    check_count("rounds", rounds, 1)
    check_count("threads", threads, 1)
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def interleaved_seconds(
    steps: Mapping[str, Step], rounds: int, device: str
) -> dict[str, list[float]]:
    """Return the seconds of every step once a round, for `rounds` rounds after one warm-up round.

    Whatever slows the machine down for a while then slows every step of those rounds, so ratios
    within a round hold.
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
    """Return how much tensor memory a step needs at its peak, on top of what was allocated before
    it, in MiB.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler does not see what threads of the losses allocate
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    torch.set_num_threads(threads)
    changes = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0)) / 2**20


def peak_resident_mib(step: Step) -> float:
    """Return how much memory the process holds at most during a step, by the count of Linux, on top
    of before, in MiB.

    It includes what PyTorch, NumPy and files mapped into memory take.
    """
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """Return a field of the process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def print_ratios(
    title: str,
    steps: Mapping[str, Step],
    rounds: int,
    device: str,
    memory: Mapping[str, float] | None = None,
) -> None:
    """Print one row a step: its time (median over rounds) and its peak memory in MiB, also over
    those of the first step; by default, the memory of PyTorch's tensors.
    """
    seconds = interleaved_seconds(steps, rounds, device)
    baseline = seconds[next(iter(steps))]
    if memory is None:
        memory = {name: peak_memory_mib(step, device) for name, step in steps.items()}
    baseline_memory = memory[next(iter(steps))]
    width = max(map(len, steps))
    print(f"\n{title} ({device}, {torch.get_num_threads()} threads, median of {rounds} rounds)")
    print(f"{'':{width}}  {'ratio':>6}  {'ms':>8}  {'peak MiB':>8}  {'ratio':>6}")
    for name in steps:
        ratio = statistics.median(
            own / base for own, base in zip(seconds[name], baseline, strict=True)
        )
        times = f"{ratio:6.2f}  {1e3 * statistics.median(seconds[name]):8.1f}"
        print(
            f"{name:{width}}  {times}  {memory[name]:8.1f}  {memory[name] / baseline_memory:6.2f}",
            flush=True,
        )
