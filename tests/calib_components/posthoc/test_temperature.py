"""The fit of a temperature, next to optimizers that have all logits in memory."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import MetaTensor
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics import Region
from calib_components.posthoc import TemperatureEstimate, TemperatureScaling

SHAPES = {2: (4, 5, 24, 20), 3: (4, 5, 12, 10, 6)}
NAMES = ["a", "b", "a", "c"]
SEPARABLE = (torch.tensor([[[2.0, -1.0], [0.0, 0.0]]]), torch.tensor([[[0, 1]]]))


def draw(
    shape: tuple[int, ...], true: float = 1.7, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their probabilities at a temperature; each case is shifted its
    own way.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    logits[:, 0] += torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 2))
    noise = -torch.empty(shape).exponential_(generator=generator).log()
    return logits, (logits / true + noise).argmax(1, keepdim=True)


def minimum(logits: np.ndarray, label: np.ndarray) -> tuple[float, float, float]:
    """The temperature of logits `(voxels, N)`, and the NLL at 1 and at the temperature."""

    def nll(log_t: float) -> float:
        return -np.take_along_axis(
            log_softmax(logits / math.exp(log_t), 1), label[:, None], 1
        ).mean()

    found = minimize_scalar(nll, bounds=(-2.1, 2.1), method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x), nll(0), found.fun


def voxels(logits: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return logits.double().movedim(1, -1).flatten(0, -2).numpy(), y.flatten().numpy()


def fit(
    logits: torch.Tensor, y: torch.Tensor, group: Any = "a", **options: Any
) -> TemperatureEstimate:
    scaling = TemperatureScaling(**options)
    scaling.update(logits, y, group)
    return scaling.compute()


def assert_agrees(
    estimate: TemperatureEstimate, expected: tuple[float, float, float], rel: float = 1e-6
) -> None:
    actual = (estimate.temperature, estimate.nll_before, estimate.nll_after)
    assert actual == pytest.approx(expected, rel=rel)


def assert_same(actual: TemperatureEstimate, expected: TemperatureEstimate) -> None:
    """Equal to rounding."""
    assert flat(asdict(actual)) == pytest.approx(flat(asdict(expected)), rel=1e-9, nan_ok=True)


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of fields, by their path."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found |= (
                {f"{name} {value}": 1} if isinstance(value, str) else {f"{prefix}{name}": value}
            )
    return found


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
    assert_agrees(
        fit(logits, squares, region="band(1)"),
        minimum(*voxels(logits[..., 5:7], squares[..., 5:7])),
    )


@pytest.mark.parametrize("region", ["all", "predicted", "union"])
def test_every_fit_compares_all_voxels_with_those_predicted(region: str) -> None:
    logits, y = draw((4, 3, 20, 20))
    logits[:, 1:] *= 3  # temperatures differ
    estimate = fit(logits, y, NAMES, region=region)
    assert estimate.region == region
    assert estimate.regions.keys() == {region, "all", "predicted"}
    all_logits, label = voxels(logits, y)
    predicted = all_logits.argmax(1) > 0
    for name, own in estimate.regions.items():
        alone = fit(logits, y, NAMES, region=name)
        assert [own[key] for key in ("temperature", "low", "high")] == [
            alone.temperature,
            alone.low,
            alone.high,
        ]
        for other, mask in (("all", slice(None)), ("predicted", predicted)):
            log_p = log_softmax(all_logits[mask] / own["temperature"], 1)
            nll = -np.take_along_axis(log_p, label[mask][:, None], 1).mean()
            assert own[f"nll_{other}"] == pytest.approx(nll, rel=1e-6)


def test_a_region_without_a_voxel_is_left_out() -> None:
    logits, y = draw((2, 3, 8, 8))
    logits[:, 0] += 100
    assert fit(logits, y, ["a", "b"]).regions.keys() == {"all"}


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


@pytest.mark.parametrize("true", [0.15, 0.3, 1, 3, 7])
def test_over_its_range(true: float) -> None:
    logits, y = draw((1, 4, 40, 40), true)
    assert_agrees(fit(logits, y), minimum(*voxels(logits, y)), 1e-5)


def test_steep_margins() -> None:
    """Nearly all voxels right by about 60: the derivative falls by many powers of ten within an
    octave.
    """
    gap = torch.from_numpy(np.random.default_rng(0).normal(60, 5, 20_002))
    logits, y = torch.stack([torch.zeros_like(gap), -gap])[None], torch.zeros(1, 1, len(gap)).long()
    y[..., -2:] = 1
    assert_agrees(fit(logits, y), minimum(*voxels(logits, y)), 1e-5)


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


@pytest.mark.parametrize("region", [[1, 3], Region("band", 2.5, spacing=(1, 1, 3))], ids=str)
def test_parts_order_and_files_do_not_matter(region: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of two folds: patient a has a case in each part, b and c in one."""
    logits, y = draw(SHAPES[3])
    whole = fit(logits, y, NAMES, region=region)
    assert whole.patients == 3
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 200)  # and several of them
    first, second = TemperatureScaling(region), TemperatureScaling(region)
    for part, case in ((second, 3), (second, 2), (first, 0), (first, 1)):
        part.update(logits[case : case + 1], y[case : case + 1], NAMES[case])
    of_second = second.compute()
    first.add(
        TemperatureScaling.from_dict(json.loads(json.dumps(second.to_dict(), allow_nan=False)))
    )
    assert_same(first.compute(), whole)
    assert second.compute() == of_second
    assert {row.shape for row in first._rows.values()} == {(3, 28)}  # however many voxels


def test_processes_put_their_patients_together(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, y = draw(SHAPES[2])
    parts = [TemperatureScaling("foreground") for _ in range(3)]  # the last process has no case
    parts[0].update(logits[[0, 3]], y[[0, 3]], ["a", "c"])
    parts[1].update(logits[[1, 2]], y[[1, 2]], ["b", "a"])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: len(parts))
    monkeypatch.setattr(
        dist, "all_gather_object", lambda gathered, _: gathered.__setitem__(slice(None), rows)
    )
    rows = [part._rows for part in parts]
    estimates = [part.compute() for part in parts]
    assert estimates[0] == estimates[1] == estimates[2]
    monkeypatch.undo()
    assert_same(estimates[0], fit(logits, y, NAMES, region="foreground"))


@pytest.mark.parametrize(
    "options", [{"region": "foreground"}, {"ignore_index": 3}, {"sigmoid": True}]
)
def test_fits_with_other_options_cannot_be_added(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="different options"):
        TemperatureScaling(**options).add(TemperatureScaling())


def test_separable_classes() -> None:
    estimate = fit(*SEPARABLE)
    assert (estimate.temperature, estimate.at_edge) == (1 / 8, True)
    assert estimate.nll_after == pytest.approx(
        (math.log1p(math.exp(-16)) + math.log1p(math.exp(-8))) / 2, rel=1e-3
    )
    assert "edge" in estimate.warnings()[0]
    y = torch.arange(3).repeat(1, 1, 40)
    perfect = fit(10 * F.one_hot(y[:, 0], 3).movedim(-1, 1).double() - 1, y)
    # Rounded, the integral is a little more than the NLL before
    assert 0 <= perfect.nll_after < perfect.nll_before


def test_logits_that_say_nothing() -> None:
    logits, y = SEPARABLE
    for wrong in (-logits - 1, 0 * logits - 1):
        estimate = fit(wrong.repeat(2, 1, 1), y.repeat(2, 1, 1), ["a", "b"])
        assert (estimate.temperature, estimate.low, estimate.high, estimate.at_edge) == (
            8,
            8,
            8,
            True,
        )
        assert estimate.leave_one_out == {"a": 8, "b": 8}


def test_one_patient() -> None:
    estimate = fit(*draw((2, 3, 8, 8)), "a")
    assert (estimate.patients, estimate.leave_one_out) == (1, {})
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    (warning,) = estimate.warnings()
    assert "1 patient, fewer than 6" in warning


def test_patients_without_a_voxel_do_not_count() -> None:
    logits, y = draw((3, 3, 8, 8))
    y[1] = 0
    estimate = fit(logits, y, ["a", "b", "c"], region="foreground")
    assert estimate.patients == 2
    assert estimate.leave_one_out.keys() == {"a", "c"}
    # Where they do
    assert estimate.regions["all"]["temperature"] == fit(logits, y, ["a", "b", "c"]).temperature
    with pytest.raises(InputError, match="no voxels in region 'foreground'"):
        fit(logits[1:2], y[1:2], region="foreground")


def test_leave_one_out_equals_fits_without_them() -> None:
    logits, y = draw(SHAPES[2])
    left_out = fit(logits, y, NAMES).leave_one_out
    for name in "abc":
        kept = [i for i, own in enumerate(NAMES) if own != name]
        assert left_out[name] == pytest.approx(fit(logits[kept], y[kept]).temperature, rel=1e-9)


def test_more_voxels_of_the_same_patients_do_not_narrow_the_interval() -> None:
    logits, y = draw((8, 3, 10, 10))
    names = list("abcdefgh")
    once = fit(logits, y, names)
    assert once.low < once.temperature < once.high
    often = fit(logits.repeat(5, 1, 1, 1), y.repeat(5, 1, 1, 1), names * 5)
    assert_same(replace(often, voxels=once.voxels), once)
    equal = fit(logits[:1].repeat(8, 1, 1, 1), y[:1].repeat(8, 1, 1, 1), names)
    assert equal.low == pytest.approx(equal.high, rel=1e-9)


def test_interval_equals_that_of_all_possible_resamples() -> None:
    temperatures_of_patients = np.exp(np.random.default_rng(2).normal(0.5, 0.5, 4))
    pairs = [
        draw((1, 3, 8, 8), true, 20_000 + i) for i, true in enumerate(temperatures_of_patients)
    ]
    logits, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    own = fit(logits, y, list("abcd"))
    draws = np.array(list(itertools.product(range(4), repeat=4)))
    refits = {tuple(sorted(draw)): 0.0 for draw in draws.tolist()}
    for drawn in refits:
        refits[drawn] = fit(logits[list(drawn)], y[list(drawn)]).temperature

    def temperatures(sample: np.ndarray) -> np.ndarray:
        """Those of all resamples of a sample, each as likely as any other."""
        return np.sort([refits[tuple(sorted(resample))] for resample in sample[draws].tolist()])

    low, high = np.quantile(temperatures(np.arange(4)), [0.025, 0.975], method="inverted_cdf")
    assert (own.low, own.high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("patients", [4, 8, 16])
def test_coverage_is_that_of_simulated_intervals(patients: int) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(2000, patients))
    means = gradients[:, rng.integers(patients, size=(1000, patients))].mean(2)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    simulated = ((low < 0) & (high > 0)).mean()
    estimate = replace(TestEstimate.ESTIMATE, patients=patients)
    assert simulated - 0.01 < estimate.coverage < simulated + 0.03


def compared(*fits: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """Fits over all voxels and where a structure is predicted."""
    nll = [{"nll_all": 0.2, "nll_predicted": 0.45}, {"nll_all": 0.21, "nll_predicted": 0.4}]
    own = [dict(zip(("temperature", "low", "high"), each, strict=True)) for each in fits]
    return {name: own[i] | nll[i] for i, name in enumerate(("all", "predicted"))}


class TestEstimate:
    ESTIMATE = TemperatureEstimate(1.1, 0.9, 1.3, {"a": 1.0, "b": 1.25}, 0.3, 0.2, 5, 100, False)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, ["5 patients, fewer than 6", "0.900 to 1.300, includes 1"]),
            ({"patients": 6, "low": 1.01}, []),
            (
                {
                    "patients": 6,
                    "low": 1.01,
                    "leave_one_out": {"a": 1.12, "b": 1.09, "c": 0.93, "d": 1.11},
                },
                [r"^T is 0\.93 without c: look at it first\.$"],
            ),
            ({"patients": 8, "low": 0.125}, ["ends at the edge", "includes 1"]),
            (
                {"patients": 8, "low": 1.01, "regions": compared((1.1, 1.0, 1.2), (1.5, 1.3, 1.7))},
                [
                    (
                        r"1\.10 \[1\.00, 1\.20\] over all .* 1\.50 .* costs 0\.0100 .* 0\.0500 where .*"
                        r" ClassBias"
                    )
                ],
            ),
            (
                {"patients": 8, "low": 1.01, "regions": compared((1.5, 1.3, 1.7), (1.1, 1.0, 1.2))},
                ["no single T"],
            ),
            (
                {"patients": 8, "low": 1.01, "regions": compared((1.1, 1.0, 1.3), (1.5, 1.3, 1.7))},
                [],
            ),
        ],
    )
    def test_warnings(self, changes: dict[str, Any], words: list[str]) -> None:
        warnings = replace(self.ESTIMATE, **changes).warnings()
        assert len(warnings) == len(words)
        assert all(re.search(word, warning) for word, warning in zip(words, warnings, strict=True))

    def test_summary(self) -> None:
        for text in (
            "1.100",
            "5 patients",
            "0.900 to 1.300",
            "at most 85 % of such intervals",
            "1.000 to 1.250",
        ):
            assert text in self.ESTIMATE.summary()
        one = replace(self.ESTIMATE, leave_one_out={}, patients=1)
        assert one.summary() == "1.100, fitted on 1 patient"
        both = replace(one, regions=compared((1.1, 1, 1.2), (1.5, 1.3, 1.7)))
        assert both.summary().endswith("1 patient; 1.500 if fitted to region predicted")

    def test_effect(self) -> None:
        assert re.search(
            "> 1: the model may have been overconfident .* softer", self.ESTIMATE.effect()
        )
        sure = replace(self.ESTIMATE, temperature=0.9, low=0.8, high=0.95)
        assert re.search("< 1: the model was underconfident .* sharper", sure.effect())
        # Of voxels that the ground truth chose
        assert "confident" not in sure.effect(by_prediction=False)

    def test_json(self) -> None:
        for names in ("a", NAMES):
            estimate = fit(*draw(SHAPES[2]), names)
            values = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
            assert_same(TemperatureEstimate.from_dict(values), estimate)
            # Of version 0.3, which simulated it
            assert_same(TemperatureEstimate.from_dict({**values, "coverage": 0.9}), estimate)


def test_after_an_error_nothing_was_added() -> None:
    scaling, (logits, y) = TemperatureScaling(), draw((2, 3, 4, 4))
    broken = logits.clone()
    broken[1, 0, 2, 1:3] = math.nan
    for arguments, name in (
        ((logits, y + 2, "a"), "y"),
        ((logits, y, ["a"]), "group"),
        ((broken, y, "a"), "logits"),
    ):
        with pytest.raises(InputError, match=name):
            scaling.update(*arguments)
        with pytest.raises(InputError, match="no voxels"):
            scaling.compute()


def test_errors_of_options() -> None:
    with pytest.raises(InputError, match="region"):
        TemperatureScaling("fore")
    for value in (-1.0, math.nan, math.inf, 0.0009999, 1000.1):
        with pytest.raises(InputError, match="temperature"):
            TemperatureScaling().set_state({"temperature": value})


def test_probabilities_in_place_of_logits_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("calib_components.posthoc.base.warn_once", said.append)
    logits, y = draw(SHAPES[2])
    fit(logits, y)
    assert not said
    fit(logits.softmax(1), y)
    assert said[0].endswith("pass p.double().clamp_min(1e-12).log().")
    TemperatureScaling(sigmoid=True).update(
        torch.tensor([[[0.1, 0.6, 0, 1]]]), torch.tensor([[[0, 1, 0, 1]]]), "a"
    )
    assert said[1].endswith("pass p.double().logit(1e-12).")
