"""The fit of a temperature, next to optimizers that have all logits in memory."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fiducio
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch.nn import functional as F

from calib_components.metrics import Region, calibration_bins
from calib_components.posthoc import TemperatureEstimate, TemperatureScaling, temperature

SHAPES = {2: (4, 5, 24, 20), 3: (4, 5, 12, 10, 6)}
NAMES = ["a", "b", "a", "c"]
SEPARABLE = (torch.tensor([[[2.0, -1.0], [0.0, 0.0]]]), torch.tensor([[[0, 1]]]))


def draw(shape: tuple[int, ...], true: float = 1.7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their probabilities at a temperature; each case is shifted its own way."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    logits[:, 0] += torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 2))
    noise = -torch.empty(shape).exponential_(generator=generator).log()
    return logits, (logits / true + noise).argmax(1, keepdim=True)


def minimum(logits: np.ndarray, label: np.ndarray) -> tuple[float, float, float]:
    """The temperature of logits `(voxels, N)`, and the NLL at 1 and at the temperature."""

    def nll(log_t: float) -> float:
        return -np.take_along_axis(log_softmax(logits / math.exp(log_t), 1), label[:, None], 1).mean()

    found = minimize_scalar(nll, bounds=(-2.1, 2.1), method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x), nll(0), found.fun


def voxels(logits: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return logits.double().movedim(1, -1).flatten(0, -2).numpy(), y.flatten().numpy()


def fit(logits: torch.Tensor, y: torch.Tensor, group: Any = "a", **options: Any) -> TemperatureEstimate:
    scaling = TemperatureScaling(**options)
    scaling.update(logits, y, group)
    return scaling.compute()


def assert_agrees(estimate: TemperatureEstimate, expected: tuple[float, float, float]) -> None:
    actual = (estimate.temperature, estimate.nll_before, estimate.nll_after)
    assert actual == pytest.approx(expected, rel=1e-6)


def assert_same(actual: TemperatureEstimate, expected: TemperatureEstimate) -> None:
    """Equal to rounding."""
    a, b = asdict(actual), asdict(expected)
    assert a.pop("leave_one_out") == pytest.approx(b.pop("leave_one_out"), rel=1e-9)
    assert a == pytest.approx(b, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("ignore_index", [None, 3, 255])
@pytest.mark.parametrize("region", ["all", "foreground"])
def test_agrees_with_scipy(dims: int, ignore_index: int | None, region: str) -> None:
    logits, y = draw(SHAPES[dims])
    if ignore_index == 255:
        y[:, :, ::3] = 255
        logits[:, :, ::3] = torch.nan  # of ignored voxels, which are not looked at
    scaling = TemperatureScaling(region, ignore_index)
    for case in range(len(logits)):
        scaling.update(logits[case : case + 1], y[case : case + 1], NAMES[case])
    estimate = scaling.compute()
    all_logits, label = voxels(logits, y)
    kept = label != ignore_index
    if region == "foreground":
        kept &= label != 0
    assert_agrees(estimate, minimum(all_logits[kept], label[kept]))
    assert (estimate.voxels, estimate.patients, estimate.at_edge) == (kept.sum(), 3, False)


def test_regions_are_those_of_the_metrics() -> None:
    logits, y = draw((2, 4, 20, 20))
    logits *= 2
    all_logits, label = voxels(logits, y)
    predicted = all_logits.argmax(1)
    foreground = 1 - np.exp(log_softmax(all_logits, 1))[:, 0]
    for region, mask in {
        "predicted": predicted != 0,
        "plausible(0.3)": foreground > 0.3,
        "union": (predicted != 0) | (label != 0),
        (1, 3): (label == 1) | (label == 3),
    }.items():
        estimate = fit(logits, y, region=region)
        assert_agrees(estimate, minimum(all_logits[mask], label[mask]))
        assert estimate.voxels == mask.sum()
    squares = torch.zeros(1, 1, 12, 12, dtype=torch.long)
    squares[..., 6:] = 1
    logits = draw((1, 2, 12, 12))[0] * torch.tensor([0.3, 1])[:, None, None]
    assert_agrees(fit(logits, squares, region="band(1)"), minimum(*voxels(logits[..., 5:7], squares[..., 5:7])))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("region", ["all", "foreground"])
def test_sigmoid_agrees_with_scipy(channels: int, region: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn((2, channels, 9, 8, 7), generator=generator)
    y = (torch.rand(logits.shape, generator=generator) < (logits / 2.5).sigmoid()).to(torch.uint8)
    y[:, :, 0] = 255
    estimate = fit(logits, y, ["a", "b"], region=region, ignore_index=255, sigmoid=True)
    kept = (y != 255) if region == "all" else (y == 1)
    two = torch.stack([torch.zeros_like(logits[kept]), logits[kept]], 1)
    assert_agrees(estimate, minimum(two.double().numpy(), y[kept].numpy()))
    assert estimate.voxels == kept.sum()
    if channels == 1:
        assert_same(fit(logits, y, ["a", "b"], region=region, ignore_index=255), estimate)


def test_agrees_with_fiducio() -> None:
    logits, y = draw((2, 3, 16, 16))
    theirs = fiducio.TemperatureScaling(optimizer="lbfgs").fit(logits, y[:, 0])
    assert fit(logits, y).temperature == pytest.approx(theirs.temperature, rel=1e-4)


@pytest.mark.parametrize("true", [0.15, 0.3, 1, 3, 7])
def test_over_its_range(true: float) -> None:
    logits, y = draw((1, 4, 40, 40), true)
    estimate = fit(logits, y)
    expected = minimum(*voxels(logits, y))
    assert estimate.temperature == pytest.approx(expected[0], rel=1e-5)
    assert estimate.nll_after == pytest.approx(expected[2], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_forms(dtype: torch.dtype) -> None:
    logits, y = draw((2, 3, 8, 7))
    logits = logits.to(dtype)
    expected = fit(logits.float() if dtype != torch.float64 else logits, y, ["a", "b"])
    one_hot = F.one_hot(y[:, 0], 3).movedim(-1, 1)
    for given_logits, given_y in (
        (logits, y.to(torch.uint8)),
        (MetaTensor(logits), MetaTensor(y.float())),
        (logits.requires_grad_(), one_hot),
        (logits.movedim(1, -1).contiguous().movedim(-1, 1), one_hot.to(dtype)),
        (logits + 100 if dtype == torch.float64 else logits, y),  # a constant has no effect
    ):
        assert_same(fit(given_logits, given_y, ("a", "b")), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    logits, y = draw((4, 3, 8, 7))
    assert_same(fit(logits.cuda(), y.cuda(), NAMES), fit(logits, y, NAMES))


def test_order_and_batches_do_not_matter() -> None:
    logits, y = draw(SHAPES[2])
    expected = fit(logits, y, NAMES)
    scaling = TemperatureScaling()
    for case in (3, 2, 0, 1):
        for rows in (slice(0, 7), slice(7, None)):
            scaling.update(logits[case : case + 1, :, rows], y[case : case + 1, :, rows], NAMES[case])
    assert_same(scaling.compute(), expected)
    assert_same(scaling.compute(), expected)
    scaling.reset()
    scaling.update(*draw((1, 2, 5, 5)), "d")
    assert scaling.compute().voxels == 25


def test_fits_of_parts_add_up_to_the_fit_of_all() -> None:
    logits, y = draw(SHAPES[2])
    whole, first, second = (TemperatureScaling() for _ in range(3))
    whole.update(logits, y, NAMES)  # patient a has a case in each part, b and c in one
    first.update(logits[:2], y[:2], NAMES[:2])
    second.update(logits[2:], y[2:], NAMES[2:])
    of_second = second.compute()
    first.add(second)
    assert first.compute() == whole.compute()
    assert first.compute().patients == 3
    assert second.compute() == of_second
    empty = TemperatureScaling()
    empty.add(second)
    empty.update(logits[:1], y[:1], "a")
    assert empty.compute().patients == 2
    assert second.compute() == of_second  # which shares nothing with the fit that it was added to


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "foreground"}, "region 'foreground' as in this one, got 'all'"),
        ({"region": Region("band", 2, spacing=(1, 1))}, "region .*"),
        ({"ignore_index": 3}, "ignore_index 3 as in this one, got None"),
        ({"sigmoid": True}, "sigmoid True as in this one, got False"),
    ],
)
def test_fits_of_other_kinds_cannot_be_added(options: dict[str, Any], message: str) -> None:
    scaling, other = TemperatureScaling(**options), TemperatureScaling()
    other.update(LOGITS, Y, "a")
    with pytest.raises(ValueError, match=rf"^other: expected a fit with {message}$"):
        scaling.add(other)
    with pytest.raises(ValueError, match=r"got none$"):
        scaling.compute()
    with pytest.raises(TypeError, match=r"^other: expected a TemperatureScaling, got TemperatureEstimate$"):
        scaling.add(other.compute())  # type: ignore[arg-type]


def test_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, y = draw(SHAPES[3])
    expected = fit(logits, y, NAMES)
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 200)
    assert_same(fit(logits, y, NAMES), expected)


TWO_RANKS = """
import json, sys
import torch, torch.distributed as dist
from calib_components.posthoc import TemperatureScaling
dist.init_process_group("gloo")
saved = torch.load(sys.argv[1])
for parts in ([[0, 3], [1, 2]], [[0, 1, 2, 3], []]):  # patient "a" is in cases 0 and 2
    scaling = TemperatureScaling("foreground")
    for case in parts[dist.get_rank()]:
        scaling.update(saved["logits"][case : case + 1], saved["y"][case : case + 1], saved["names"][case])
    print(json.dumps(scaling.compute().to_dict()))
dist.destroy_process_group()
"""


def test_two_processes(tmp_path: Path) -> None:
    logits, y = draw(SHAPES[2])
    names = ["Zoë a", "b", "Zoë a", "c"]
    torch.save({"logits": logits, "y": y, "names": names}, tmp_path / "data.pt")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    command = [*launcher, sys.executable, "-c", TWO_RANKS, str(tmp_path / "data.pt")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    estimates = [TemperatureEstimate.from_dict(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(estimates) == 4
    for estimate in estimates:
        assert_same(estimate, fit(logits, y, names, region="foreground"))


def test_separable_classes() -> None:
    estimate = fit(*SEPARABLE)
    assert (estimate.temperature, estimate.at_edge) == (1 / 8, True)
    assert estimate.nll_after == pytest.approx((math.log1p(math.exp(-16)) + math.log1p(math.exp(-8))) / 2, rel=1e-3)
    assert estimate.warnings()[0].startswith("The temperature, 0.125, is at the edge of its range, 0.125 to 8:")


def test_logits_that_say_nothing() -> None:
    logits, y = SEPARABLE
    for wrong in (-logits - 1, 0 * logits - 1):
        estimate = fit(wrong.repeat(2, 1, 1), y.repeat(2, 1, 1), ["a", "b"])
        assert (estimate.temperature, estimate.low, estimate.high, estimate.at_edge) == (8, 8, 8, True)
        assert math.isnan(estimate.coverage)
        assert estimate.leave_one_out == {"a": 8, "b": 8}


def test_large_logits() -> None:
    logits, y = draw((1, 3, 20, 20))
    few = fit(torch.cat([logits, 1e6 * F.one_hot(y[:, 0], 3).movedim(-1, 1)]), torch.cat([y, y]))
    assert few.temperature == pytest.approx(fit(logits, y).temperature, rel=1e-6)  # sure and right: no effect
    assert few.voxels == 800


def test_one_patient() -> None:
    estimate = fit(*draw((2, 3, 8, 8)), "a")
    assert estimate.patients == 1
    assert estimate.leave_one_out == {}
    assert all(map(math.isnan, (estimate.low, estimate.high, estimate.coverage)))
    (warning,) = estimate.warnings()
    assert warning.startswith("The temperature was fitted on 1 patient, fewer than 6:")


def test_patients_without_a_voxel_do_not_count() -> None:
    logits, y = draw((3, 3, 8, 8))
    y[1] = 0
    estimate = fit(logits, y, ["a", "b", "c"], region="foreground")
    assert estimate.patients == 2
    assert estimate.leave_one_out.keys() == {"a", "c"}
    scaling = TemperatureScaling("foreground")
    scaling.update(logits[1:2], y[1:2], "b")
    message = r"^TemperatureScaling: expected at least one voxel in region 'foreground', got none$"
    with pytest.raises(ValueError, match=message):
        scaling.compute()
    with pytest.raises(
        ValueError, match=r"^TemperatureScaling: expected at least one voxel in region 'all', got none$"
    ):
        TemperatureScaling().compute()


def test_leave_one_out_equals_fits_without_them() -> None:
    logits, y = draw(SHAPES[2])
    left_out = fit(logits, y, NAMES).leave_one_out
    for name in "abc":
        kept = [i for i, own in enumerate(NAMES) if own != name]
        assert left_out[name] == pytest.approx(fit(logits[kept], y[kept]).temperature, rel=1e-9)


def test_nll_of_perfect_logits_is_not_negative() -> None:
    """Rounded, the integral of its derivative is a little more than the NLL that it starts from."""
    y = torch.arange(3).repeat(1, 1, 40)
    for size in (1, 2, 5, 10):
        logits = size * torch.nn.functional.one_hot(y[:, 0], 3).movedim(-1, 1).double() - 1
        estimate = fit(logits, y)
        assert estimate.at_edge
        assert 0 <= estimate.nll_after < estimate.nll_before


def test_after_scaling_the_temperature_is_one() -> None:
    logits, y = draw((2, 4, 30, 30))
    first = fit(logits, y)
    again = fit(logits.double() / first.temperature, y)
    assert again.temperature == pytest.approx(1, rel=1e-6)
    assert again.nll_before == pytest.approx(first.nll_after, rel=1e-6)
    before, after = (
        calibration_bins((logits.double() / t).softmax(1), y, foreground_only=False).pooled().expected_error()
        for t in (1, first.temperature)
    )
    assert after < 0.03 < 0.1 < before


def test_more_voxels_of_the_same_patients_do_not_narrow_the_interval() -> None:
    logits, y = draw((8, 3, 10, 10))
    names = list("abcdefgh")
    once = fit(logits, y, names)
    assert once.low < once.temperature < once.high
    often = fit(logits.repeat(5, 1, 1, 1), y.repeat(5, 1, 1, 1), names * 5)
    assert_same(replace(often, voxels=once.voxels), once)


def patients(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One case of each patient, whose temperatures differ."""
    temperatures = np.exp(np.random.default_rng(seed).normal(0.5, 0.5, number))
    pairs = [draw((1, 3, 8, 8), true, 10_000 * seed + i) for i, true in enumerate(temperatures)]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([y for _, y in pairs])


def test_intervals_hold_the_temperature_of_the_population(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature, "RESAMPLES", 400)
    monkeypatch.setattr(temperature, "SIMULATIONS", 50)
    number, studies = 20, 100
    logits, y = patients(number * studies, 1)
    true = fit(logits, y).temperature
    estimates = [
        fit(logits[start : start + number], y[start : start + number], [f"{i}" for i in range(number)])
        for start in range(0, number * studies, number)
    ]
    covered = np.mean([estimate.low <= true <= estimate.high for estimate in estimates])
    simulated = np.mean([estimate.coverage for estimate in estimates])
    assert 0.86 <= covered <= 0.99  # a share of 95 % of 100 has a standard error of 2 %
    assert simulated == pytest.approx(covered, abs=0.07)


def test_interval_and_coverage_equal_those_of_all_possible_resamples() -> None:
    logits, y = patients(4, 2)
    own = fit(logits, y, list("abcd"))
    draws = np.array(list(itertools.product(range(4), repeat=4)))
    refits = {tuple(sorted(draw)): 0.0 for draw in draws.tolist()}
    for drawn in refits:
        refits[drawn] = fit(logits[list(drawn)], y[list(drawn)]).temperature
    assert len(refits) == 35

    def temperatures(sample: np.ndarray) -> np.ndarray:
        """Those of all resamples of a sample, each as likely as any other."""
        return np.sort([refits[tuple(sorted(resample))] for resample in sample[draws].tolist()])

    low, high = np.quantile(temperatures(np.arange(4)), [0.025, 0.975], method="inverted_cdf")
    assert (own.low, own.high) == pytest.approx((low, high), rel=1e-9)
    differences = [(temperatures(sample) / own.temperature - 1).round(9) for sample in draws]
    covered = [max((each < 0).mean(), (each > 0).mean()) <= 0.975 for each in differences]
    assert np.mean(covered) < 0.9  # few patients: far from 95 %
    assert own.coverage == pytest.approx(np.mean(covered), abs=0.05)  # 500 samples have a standard error of 2 %


def test_equal_patients_leave_no_doubt() -> None:
    logits, y = draw((1, 3, 10, 10))
    estimate = fit(logits.repeat(7, 1, 1, 1), y.repeat(7, 1, 1, 1), list("abcdefg"))
    assert estimate.low == pytest.approx(estimate.high, rel=1e-9)
    assert estimate.coverage == 1
    assert estimate.warnings() == []


def test_warnings() -> None:
    estimate = TemperatureEstimate(1.1, 0.9, 1.3, 0.874, {"a": 1.0}, 0.3, 0.2, 5, 100, False)
    assert estimate.warnings() == [
        (
            "The temperature was fitted on 5 patients, fewer than 6: its interval is not reliable (simulated coverage "
            "87 %, not 95 %)."
        ),
        "The 95 % interval of the temperature, 0.900 to 1.300, includes 1: scaling may not be needed.",
    ]
    assert replace(estimate, patients=6, low=1.01).warnings() == []


def test_summary() -> None:
    estimate = TemperatureEstimate(1.1, 0.9, 1.3, 0.874, {"a": 1.0, "b": 1.25}, 0.3, 0.2, 2, 100, False)
    assert estimate.summary() == (
        "1.100, fitted on 2 patients; 95 % interval 0.900 to 1.300 (held the true temperature in 87 % of simulations); "
        "1.000 to 1.250 without one of them"
    )
    unknown = replace(estimate, coverage=math.nan, at_edge=True)
    assert unknown.summary() == (
        "1.100, fitted on 2 patients; 95 % interval 0.900 to 1.300; 1.000 to 1.250 without one of them"
    )
    one = replace(estimate, low=math.nan, high=math.nan, coverage=math.nan, leave_one_out={}, patients=1)
    assert one.summary() == "1.100, fitted on 1 patient"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.1, 1.05, 1.3), "T > 1: the model was overconfident on these patients; its probabilities become softer."),
        ((0.8, 0.7, 0.9), "T < 1: the model was underconfident on these patients; its probabilities become sharper."),
        ((1.1, 0.9, 1.3), "T > 1: the model may have been overconfident on these patients; .* become softer."),
        ((0.9, 0.8, 1.0), "T < 1: the model may have been underconfident on these patients; .* become sharper."),
        ((0.9, math.nan, math.nan), "T < 1: the model may have been underconfident .*"),
        ((1.0, 0.9, 1.1), "T = 1: the probabilities stay as they are."),
    ],
)
def test_effect(values: tuple[float, float, float], expected: str) -> None:
    assert re.fullmatch(expected, TemperatureEstimate(*values, 0.9, {}, 0.3, 0.2, 8, 100, False).effect())


def test_effect_on_voxels_that_the_ground_truth_chose() -> None:
    """There the temperature of a calibrated model is not 1."""
    estimate = TemperatureEstimate(1.5, 1.4, 1.6, 0.9, {}, 0.3, 0.2, 8, 100, False)
    assert estimate.effect(by_prediction=False) == "T > 1: the probabilities become softer."


def test_interval_that_ends_at_the_edge_is_warned_of() -> None:
    estimate = TemperatureEstimate(1.5, 0.125, 1.6, 0.9, {}, 0.3, 0.2, 8, 100, False)
    edge, includes = estimate.warnings()
    assert edge == "The 95 % interval of the temperature ends at the edge of its range, 0.125 to 8: it may be wider."
    assert "includes 1" in includes


class TestKeptFit:
    @pytest.mark.parametrize(
        "region", ["all", "plausible(0.1)", "band", [1, 3], Region("band", 2.5, spacing=(1, 1, 3))]
    )
    def test_parts_put_together_are_the_whole(self, region: Any) -> None:
        """Fits of two folds, which come back from files."""
        logits, y = draw(SHAPES[3])
        parts = [TemperatureScaling(region), TemperatureScaling(region)]
        parts[0].update(logits[:2], y[:2], NAMES[:2])
        parts[1].update(logits[2:], y[2:], NAMES[2:])
        pooled = TemperatureScaling(region)
        for part in parts:
            pooled.add(TemperatureScaling.from_dict(json.loads(json.dumps(part.to_dict(), allow_nan=False))))
        assert_same(pooled.compute(), fit(logits, y, NAMES, region=region))

    def test_options_come_back(self) -> None:
        scaling = TemperatureScaling("predicted", 255, True)
        again = TemperatureScaling.from_dict(scaling.to_dict())
        assert (again.region, again.ignore_index, again.sigmoid) == (scaling.region, 255, True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"patients": []}, r"^patients: expected the sums of each patient, got list$"),
            ({"patients": {"a": [1.0] * 27}}, r"^patients: expected 28 sums over voxels for a, got \[1.0, "),
            ({"patients": {"a": [math.nan] * 28}}, r"^patients: expected 28 sums over voxels for a, got \[nan, "),
            ({"patients": {"a": [0.0] * 28}}, r"^patients: expected 28 sums over voxels for a, got \[0.0, "),
            ({"patients": {"a": [1.0] * 27 + [-1.0]}}, r"^patients: expected 28 sums over voxels for a, got "),
            ({"patients": {"a": ["1"] * 28}}, r"^patients: expected 28 sums over voxels for a, got \['1', "),
            ({"patients": {"a": [10**400] * 28}}, r"^patients: expected 28 sums over voxels for a, got \[1000"),
            ({"patients": {"": [1.0] * 28}}, r"^patients: expected names, got ''$"),
            ({"region": {"kind": "nowhere"}}, r"^region: expected one of 'all', .*, got 'nowhere'$"),
            ({"region": {"sort": "all"}}, r"^region: expected the fields of a region, got \{'sort': 'all'\}$"),
            ({"region": "all"}, r"^region: expected the fields of a region, got 'all'$"),
            ({"sigmoid": 1}, r"^sigmoid: expected "),
            ({"temperature": 1}, r"^values: expected a dictionary with region, .*, got region, .*, temperature$"),
        ],
    )
    def test_broken_one_is_an_error(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TemperatureScaling.from_dict({**TemperatureScaling().to_dict(), **change})


def test_json() -> None:
    for names in ("a", NAMES):
        estimate = fit(*draw(SHAPES[2]), names)
        text = json.dumps(estimate.to_dict(), allow_nan=False)
        assert_same(TemperatureEstimate.from_dict(json.loads(text)), estimate)


def test_errors_of_from_dict() -> None:
    values = fit(*draw(SHAPES[2]), NAMES).to_dict()
    for name, wrong in {
        "temperature": "2",
        "voxels": 1.5,
        "at_edge": 1,
        "leave_one_out": [],
        "nll_after": True,
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: expected a value of type \w+, got "):
            TemperatureEstimate.from_dict({**values, name: wrong})
    with pytest.raises(ValueError, match=r"^leave_one_out: expected a number for each patient, got \{'a': 'x'\}$"):
        TemperatureEstimate.from_dict({**values, "leave_one_out": {"a": "x"}})
    values.pop("low")
    with pytest.raises(
        ValueError, match=r"^values: expected a dictionary with temperature, low, .*, got temperature, h"
    ):
        TemperatureEstimate.from_dict(values)
    with pytest.raises(ValueError, match=r"^values: expected a dictionary with .*, got list$"):
        TemperatureEstimate.from_dict([1])  # type: ignore[arg-type]


LOGITS, Y = draw((2, 3, 4, 4))


@pytest.mark.parametrize(
    ("logits", "y", "group", "error", "message"),
    [
        (LOGITS.numpy(), Y, "a", TypeError, r"logits: expected a torch\.Tensor, got ndarray"),
        (LOGITS, None, "a", TypeError, r"y: expected a torch\.Tensor, got NoneType"),
        (LOGITS.int(), Y, "a", TypeError, r"logits: expected a floating-point type, got torch\.int32"),
        (LOGITS[0, 0], Y, "a", ValueError, r"logits: expected shape \(B, N, \*S\) .*got \(4, 4\)"),
        (LOGITS[:, :, :0], Y[:, :, :0], "a", ValueError, r"logits: expected at least one voxel, got .*"),
        (LOGITS, Y[:, 0], "a", ValueError, r"y: expected shape .*got \(2, 4, 4\); add the channel: y.unsqueeze\(1\)"),
        (LOGITS, Y + 2, "a", ValueError, r"y: expected class indices from 0 to 2 .*"),
        (LOGITS, Y, ["a"], ValueError, r"group: expected a name for each of 2 cases, got 1"),
        (LOGITS, Y, ["a", 3], TypeError, r"group: expected the name of a patient .*got \['a', 3\]"),
        (LOGITS, Y, "", TypeError, r"group: expected the name of a patient .*got ''"),
        (LOGITS, Y, 3, TypeError, r"group: expected the name of a patient .*got 3"),
    ],
)
def test_errors(logits: Any, y: Any, group: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        TemperatureScaling().update(logits, y, group)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_after_an_error_nothing_was_added(value: float) -> None:
    scaling = TemperatureScaling()
    logits = LOGITS.clone()
    logits[1, 0, 2, 1:3] = value
    with pytest.raises(ValueError, match=r"^logits: expected finite values, got 2 of 96 that are NaN or infinite$"):
        scaling.update(logits, Y, ["a", "b"])
    with pytest.raises(ValueError, match="got none"):
        scaling.compute()


def test_errors_of_options() -> None:
    for options, message in (
        ({"region": "fore"}, r"region: expected one of 'all', .*got 'fore'"),
        ({"ignore_index": 1.5}, r"ignore_index: expected a whole number or None, got 1\.5"),
        ({"sigmoid": 1}, r"sigmoid: expected True or False, got 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            TemperatureScaling(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^region: expected class indices from 0 to 2, got \[3\]$"):
        fit(LOGITS, Y, region=3)


MEMORY = """
import resource, torch
from calib_components.posthoc import TemperatureScaling
torch.manual_seed(0)
logits = 3 * torch.randn(1, 4, 224, 224, 10)
y = logits.argmax(1, keepdim=True).to(torch.uint8)
y[..., ::2] = 1
for cases in (10, 100):
    scaling = TemperatureScaling()
    for case in range(cases):
        scaling.update(logits.clone(), y.clone(), f"patient {case}")
    assert scaling.compute().voxels == cases * 224 * 224 * 10
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_cases() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    ten, hundred = map(int, done.stdout.split())
    assert hundred < 1.05 * ten


def test_steep_margins() -> None:
    """Nearly all voxels right by about 60: the derivative falls by many powers of ten within an octave."""
    generator = np.random.default_rng(0)
    gap = torch.from_numpy(np.concatenate([generator.normal(60, 5, 20_000), generator.normal(60, 5, 2)]))
    logits = torch.stack([torch.zeros_like(gap), -gap])[None]
    y = torch.cat([torch.zeros(20_000), torch.ones(2)]).long()[None, None]
    estimate = fit(logits, y)
    expected = minimize_scalar(
        lambda log: torch.nn.functional.cross_entropy(logits / math.exp(log), y[:, 0]).item(),
        bounds=(0, 2),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert estimate.temperature == pytest.approx(math.exp(expected.x), rel=1e-5)
    assert estimate.nll_after == pytest.approx(expected.fun, rel=1e-6)


def test_probabilities_in_place_of_logits_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("calib_components.posthoc.temperature.warn_once", said.append)
    logits, y = draw(SHAPES[2])
    fit(logits, y)
    assert not said
    fit(logits.softmax(1), y)
    assert "got only values from 0 to 1" in said[0]
    assert said[0].endswith("if these are probabilities p, give p.double().clamp_min(1e-12).log()")
    p = torch.tensor([[[0.1, 0.6, 0.0, 1.0]]])
    TemperatureScaling(sigmoid=True).update(p, torch.tensor([[[0, 1, 0, 1]]]), "a")
    assert said[1].endswith("if these are probabilities p, give p.double().logit(1e-12)")
    torch.testing.assert_close(p.double().logit(1e-12).sigmoid(), p.double())


@pytest.mark.parametrize("temperature", [None, 0, -2.0, math.inf, 9.0])
def test_saved_temperature_is_within_the_range(temperature: float | None) -> None:
    saved = {**fit(*draw(SHAPES[2])).to_dict(), "temperature": temperature}
    with pytest.raises(ValueError, match=r"^temperature: expected a number from 0.125 to 8, got "):
        TemperatureEstimate.from_dict(saved)
