"""The fit of a temperature, next to optimizers that have all logits in memory."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re
import warnings
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch.nn import functional as F

from calib_components.errors import InputError
from calib_components.metrics import Region
from calib_components.posthoc import TemperatureEstimate, TemperatureScaling
from tests.calib_components.posthoc.made_up import draw, voxels

SHAPES = {2: (4, 5, 24, 20), 3: (4, 5, 12, 10, 6)}
NAMES = ["a", "b", "a", "c"]
SEPARABLE = (torch.tensor([[[2.0, -1.0], [0.0, 0.0]]]), torch.tensor([[[0, 1]]]))


def minimum(logits: np.ndarray, label: np.ndarray) -> tuple[float, float, float]:
    """The temperature of logits `(voxels, N)`, and the NLL at 1 and at the temperature."""

    def nll(log_t: float) -> float:
        return -np.take_along_axis(
            log_softmax(logits / math.exp(log_t), 1), label[:, None], 1
        ).mean()

    found = minimize_scalar(nll, bounds=(-2.1, 2.1), method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x), nll(0), found.fun


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
    fields = (pd.json_normalize(asdict(estimate)) for estimate in (actual, expected))
    pd.testing.assert_frame_equal(*fields, rtol=1e-9, check_like=True)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("ignore_index", [None, 3, 255])
@pytest.mark.parametrize("region", ["all", "foreground", "predicted"])
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
    if region != "all":
        kept &= (label if region == "foreground" else all_logits.argmax(1)) != 0
    assert_agrees(estimate, minimum(all_logits[kept], label[kept]))
    assert (estimate.voxels, estimate.patients, estimate.at_edge) == (kept.sum(), 3, False)


@pytest.mark.parametrize("region", ["all", "predicted", "near(1)"])
def test_every_fit_compares_all_voxels_with_those_predicted(region: str) -> None:
    logits, y = draw((4, 3, 20, 20))
    logits[:, 1:] *= 3  # temperatures differ
    estimate = fit(logits, y, NAMES, region=region)
    assert estimate.regions.keys() == {region, "all", "predicted"}
    all_logits, label = voxels(logits, y)
    predicted = all_logits.argmax(1) > 0
    for name, own in estimate.regions.items():
        alone = fit(logits, y, NAMES, region=name)
        interval = own["temperature"], own["low"], own["high"]
        assert interval == (alone.temperature, alone.low, alone.high)
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
    logits, y = draw((1, 4, 40, 40), 1 / true)
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
    expected = fit(logits.double(), y, ["a", "b"])
    for given_logits, given_y in (
        (MetaTensor(logits), MetaTensor(y.float())),
        (logits.requires_grad_(), F.one_hot(y[:, 0], 3).movedim(-1, 1)),
        (logits.double() + 100, y.byte()),  # a constant has no effect
    ):
        assert_same(fit(given_logits, given_y, ("a", "b")), expected)


@pytest.mark.parametrize("region", [[1, 3], Region("near", 2.5, spacing=(1, 1, 3))], ids=str)
def test_parts_order_and_processes_do_not_matter(
    region: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fits of two folds: patient a has a case in each part, b and c in one."""
    logits, y = draw(SHAPES[3])
    whole = fit(logits, y, NAMES, region=region)
    assert whole.patients == 3
    monkeypatch.setattr("calib_components.metrics.voxels.CPU_CHUNK", 200)  # and several of them
    first, second = TemperatureScaling(region), TemperatureScaling(region)
    for part, case in ((second, 3), (second, 2), (first, 0), (first, 1)):
        part.update(logits[case : case + 1], y[case : case + 1], NAMES[case])
    of_second = second.compute()
    sent = pickle.dumps(second)
    assert len(sent) < 6000  # however many voxels
    first.add(pickle.loads(sent))
    assert_same(first.compute(), whole)
    assert second.compute() == of_second


@pytest.mark.parametrize(
    "options", [{"region": "foreground"}, {"ignore_index": 3}, {"sigmoid": True}]
)
def test_fits_with_other_options_cannot_be_added(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="different options"):
        TemperatureScaling(**options).add(TemperatureScaling())


def test_separable_classes() -> None:
    estimate = fit(*SEPARABLE)
    assert (estimate.temperature, estimate.at_edge) == (1 / 8, True)
    nll = (math.log1p(math.exp(-16)) + math.log1p(math.exp(-8))) / 2
    assert estimate.nll_after == pytest.approx(nll, rel=1e-3)
    assert "edge" in estimate.warnings()[0]
    y = torch.arange(3).repeat(1, 1, 40)
    perfect = fit(10 * F.one_hot(y[:, 0], 3).movedim(-1, 1).double() - 1, y)
    # Rounded, the integral is a little more than the NLL before
    assert 0 <= perfect.nll_after < perfect.nll_before


def test_logits_that_say_nothing() -> None:
    logits, y = SEPARABLE
    estimate = fit((-logits - 1).repeat(2, 1, 1), y.repeat(2, 1, 1), ["a", "b"])
    assert {estimate.temperature, estimate.low, estimate.high} == {8}
    assert estimate.leave_one_out == {"a": 8, "b": 8}
    assert "confident" not in estimate.effect()
    assert estimate.summary().startswith("8.000 (the edge of its range), fitted on 2 patients;")
    for equal in (0 * logits - 1, (1e5 * F.one_hot(y[:, 0])).movedim(-1, 1)):
        with pytest.raises(InputError, match="No temperature changes the NLL"):
            fit(equal.float(), y)


@pytest.mark.parametrize("value", [True, "text", None, math.nan, 0, 0.0009999, 1000.1])
def test_what_is_no_temperature(value: Any) -> None:
    with pytest.raises(InputError, match=r"temperature must be a number from 0\.001 to 1000"):
        TemperatureScaling().set_state({"temperature": value})


def test_one_patient() -> None:
    estimate = fit(*draw((2, 3, 8, 8)), "a")
    assert (estimate.patients, estimate.leave_one_out) == (1, {})
    assert np.isnan([estimate.low, estimate.high]).all()
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


def test_interval_equals_that_of_all_possible_resamples() -> None:
    temperatures_of_patients = np.exp(np.random.default_rng(2).normal(0.5, 0.5, 4))
    pairs = [
        draw((1, 3, 8, 8), 1 / true, seed=20_000 + i)
        for i, true in enumerate(temperatures_of_patients)
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


def compared(*intervals: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """Fits over all voxels and where a structure is predicted."""
    names = "temperature", "low", "high", "nll_all", "nll_predicted"
    nll = (0.2, 0.45), (0.21, 0.4)
    fits = (
        dict(zip(names, one + two, strict=True)) for one, two in zip(intervals, nll, strict=True)
    )
    return dict(zip(("all", "predicted"), fits, strict=True))


LOW, HIGH = (1.1, 1.0, 1.2), (1.5, 1.3, 1.7)


class TestEstimate:
    ESTIMATE = TemperatureEstimate(1.1, 1.01, 1.3, {"a": 1.0, "b": 1.25}, 0.3, 0.2, 8, 100, False)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, []),
            (
                {"patients": 5, "low": 0.9},
                ["5 patients, fewer than 6", "0.900 to 1.300, includes 1"],
            ),
            (
                {"leave_one_out": {"a": 1.12, "b": 1.09, "c": 0.93, "d": 1.11}},
                [r"^T is 0\.93 without c: look at it first\.$"],
            ),
            ({"low": 0.125}, ["at the edge", "includes 1"]),
            (
                {"regions": compared(LOW, HIGH)},
                [r"1\.10 \[1\.00, 1\.20\] over all .* costs 0\.0100 .* 0\.0500 where .* ClassBias"],
            ),
            ({"regions": compared(HIGH, LOW)}, ["no single T"]),
            (
                {"regions": compared(LOW, (8.0, 8.0, 8.0))},
                [r", 8\.00 \(the edge of its range\) \[8\.00, 8\.00\] where a structure"],
            ),
            ({"regions": compared((1.1, 1.0, 1.3), HIGH)}, []),
        ],
    )
    def test_warnings(self, changes: dict[str, Any], words: list[str]) -> None:
        found = replace(self.ESTIMATE, **changes).warnings()
        assert len(found) == len(words)
        assert all(re.search(word, text) for word, text in zip(words, found, strict=True))

    def test_summary(self) -> None:
        assert self.ESTIMATE.summary() == (
            "1.100, fitted on 8 patients; 95 % interval 1.010 to 1.300; 1.000 to 1.250 without one"
            " of them"
        )
        assert repr(self.ESTIMATE) == f"TemperatureEstimate({self.ESTIMATE.summary()})"
        one = replace(self.ESTIMATE, leave_one_out={}, patients=1, regions=compared(LOW, HIGH))
        assert one.summary() == ("1.100, fitted on 1 patient; 1.500 if fitted to region predicted")

    def test_effect(self) -> None:
        """Words name the region that they are true of."""
        everywhere = "T > 1: the probabilities become softer. The model was overconfident over all"
        assert self.ESTIMATE.effect().startswith(everywhere)
        unsure = replace(self.ESTIMATE, low=0.9)
        assert "may have been overconfident" in unsure.effect()
        lower = replace(self.ESTIMATE, temperature=0.9, regions=compared((0.9, 0.8, 0.95), LOW))
        assert lower.effect() == (
            "T < 1: the probabilities become sharper. The model was underconfident over all voxels."
            " The model may have been overconfident where a structure is predicted."
        )
        # Of voxels that the ground truth chose
        assert "confident" not in lower.effect(by_prediction=False)

    @pytest.mark.parametrize(
        ("predicted", "words"),
        [
            ((1.5, 1.3, 1.7), "1.50 [1.30, 1.70] where a structure is predicted"),
            ((1.5, 0.9, 1.7), ""),
            ((0.8, 0.7, 0.9), ""),
        ],
    )
    def test_conflict(self, predicted: tuple[float, ...], words: str) -> None:
        fit = replace(self.ESTIMATE, temperature=0.8, regions=compared((0.8, 0.7, 0.9), predicted))
        assert words in fit.conflict()
        assert bool(words) == bool(fit.conflict())

    def test_json(self) -> None:
        for names in ("a", NAMES):
            estimate = fit(*draw(SHAPES[2]), names)
            values = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
            assert_same(TemperatureEstimate.from_dict(values), estimate)
            # Of version 0.3
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


def test_probabilities_in_place_of_logits() -> None:
    logits, y = draw(SHAPES[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(logits, y)
        fit(logits.softmax(1).log(), y)
    for p in (logits.softmax(1), logits.half().softmax(1)):
        with pytest.raises(InputError, match=r"p\.double\(\)\.clamp_min\(1e-12\)\.log\(\)"):
            fit(p, y)
    p, masks = logits.sigmoid(), (logits > 0).int()  # which no sum tells from logits
    with pytest.warns(UserWarning, match=r"p\.double\(\)\.logit"):
        TemperatureScaling(sigmoid=True).update(p, masks, "patient")
