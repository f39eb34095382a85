"""Labels of several raters, as cases and as soft labels: sums are means over the raters."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from calib_components.errors import InputError
from calib_components.metrics import CalibrationMetric, Region
from calib_components.metrics.case import Case, measure_case
from calib_components.metrics.raters import RatedCase
from calib_components.metrics.region_measures import RegionMeasures, measure_regions
from calib_components.posthoc import ClassBias, TemperatureScaling, VectorScaling

REGIONS = [*map(Region, ("all", "predicted", "foreground")), Region.parse([2])]
MEASURES = ["top_label", "classwise", "if_true", "nll", "brier"]


def draw(seed: int, raters: int, sigmoid: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits `(1, 3, 4, 5, 3)`, and the labels of each rater, who agree with most of the others."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, 3, 4, 5, 3, generator=generator)
    labels = []
    for _ in range(raters):
        noisy = logits + torch.randn(logits.shape, generator=generator)
        labels.append((noisy > 0).long() if sigmoid else noisy.argmax(1, keepdim=True))
    return logits, labels


def soft(labels: list[torch.Tensor], sigmoid: bool = False) -> torch.Tensor:
    if sigmoid:
        return torch.stack(labels).float().mean(0)
    return torch.stack([F.one_hot(y[:, 0], 3).movedim(-1, 1).float() for y in labels]).mean(0)


@given(st.integers(0, 1000), st.integers(2, 5), st.booleans())
def test_sums_of_soft_labels_are_means_over_the_raters(
    seed: int, raters: int, sigmoid: bool
) -> None:
    logits, labels = draw(seed, raters, sigmoid)
    p = (logits.sigmoid() if sigmoid else logits.softmax(1)).double()
    measures = dict.fromkeys(REGIONS[:3] if sigmoid else REGIONS, MEASURES)
    of_raters = [measure_regions(p, y, measures, sigmoid=sigmoid) for y in labels]
    for region, found in measure_regions(
        p, soft(labels, sigmoid), measures, sigmoid=sigmoid
    ).items():
        check_mean(found, [each[region] for each in of_raters])
    case = RatedCase.of(
        {str(i): Case(y[0], {}, p[0], sigmoid=sigmoid) for i, y in enumerate(labels)}
    )
    for region, measured in case.region_measures.items():
        check_mean(measured, [each.region_measures[region] for each in case.raters.values()])


def check_mean(whole: RegionMeasures, parts: list[RegionMeasures]) -> None:
    counts = np.array([part.count.item() for part in parts])
    assert whole.count.item() == pytest.approx(counts.mean())
    for name, score in whole.scores.items():  # the mean of the voxels of all raters
        sums = np.nansum([n * part.scores[name] for n, part in zip(counts, parts, strict=True)])
        if counts.any():
            assert score.item() == pytest.approx(sums / counts.sum(), rel=1e-6)
    for name, bins in whole.bins.items():
        for field, total in vars(bins).items():
            mean = np.mean([getattr(part.bins[name], field).numpy() for part in parts], 0)
            np.testing.assert_allclose(total.numpy(), mean, rtol=1e-6, atol=1e-6)


def test_metrics_take_soft_labels() -> None:
    logits, labels = draw(0, 3)
    p, q = logits.softmax(1), soft(labels)
    metric = CalibrationMetric(region="all")
    metric(p, q)
    nll = -(q * p.double().log()).sum(1).mean()
    brier = (p.double().square() - 2 * p.double() * q + q).sum(1).mean()  # sum q = 1
    assert metric.nll.aggregate().item() == pytest.approx(nll.item())
    assert metric.brier.aggregate().item() == pytest.approx(brier.item())


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_temperature_fits_soft_labels_and_all_raters_alike(sigmoid: bool) -> None:
    logits, labels = draw(1, 4, sigmoid)
    of_soft, of_raters = TemperatureScaling(sigmoid=sigmoid), TemperatureScaling(sigmoid=sigmoid)
    of_soft.update(logits, soft(labels, sigmoid), "a")
    for y in labels:
        of_raters.update(logits, y, "a")
    of_raters.scale(1 / len(labels))
    assert of_soft.compute().temperature == pytest.approx(of_raters.compute().temperature, rel=1e-6)


def test_biases_fit_all_raters_alike() -> None:
    logits, labels = draw(1, 4)
    fit = ClassBias()
    for y in labels:
        fit.update(logits, y, "a")
    fit.scale(1 / len(labels))
    estimate = fit.compute()
    assert estimate.voxels == labels[0].numel()
    for values, nll in ((logits, estimate.nll_before), (fit(logits), estimate.nll_after)):
        assert F.cross_entropy(values, soft(labels)).item() == pytest.approx(nll, rel=1e-6)


def test_what_has_no_meaning_for_soft_labels_is_refused() -> None:
    logits, labels = draw(2, 3)
    p, q = logits.softmax(1), soft(labels)
    with pytest.raises(InputError, match="y must hold class indices"):
        VectorScaling().update(logits, q, "a")
    with pytest.raises(InputError, match="near needs class indices"):
        CalibrationMetric(region="near")(p, q)
    with pytest.raises(InputError, match="ignore_index must be None"):
        CalibrationMetric(region="all", ignore_index=255)(p, q)
    with pytest.raises(InputError, match="y must hold"):
        CalibrationMetric(region="all")(p, q / 2)


def test_raters_are_compared_on_the_voxels_that_both_count() -> None:
    logits, labels = draw(4, 3)
    p, structures = logits.softmax(1)[0], {"a": [1], "b": [1, 2]}
    for number, y in enumerate(labels):
        y[..., number] = 9
    cases = {
        str(i): Case(y[0], structures, p, p.argmax(0), ignore_index=9) for i, y in enumerate(labels)
    }
    found = RatedCase.of(cases).agreement()
    for (name, classes), (i, j) in itertools.product(
        structures.items(), itertools.combinations(range(3), 2)
    ):
        both = (labels[i] != 9) & (labels[j] != 9)
        one, other = (np.isin(labels[k][both], classes) for k in (i, j))
        dsc = 2 * (one & other).sum() / (one.sum() + other.sum())
        assert found[name][i, j] == found[name][j, i] == pytest.approx(dsc)


def test_values_of_a_rated_case() -> None:
    """Errors follow from the mean sums, and measures of masks are means over the raters."""
    logits, labels = draw(3, 3)
    p = logits.softmax(1)[0]
    cases = {
        str(i): Case(y[0], {"a": [1], "b": [1, 2]}, p, p.argmax(0)) for i, y in enumerate(labels)
    }
    found, rows = measure_case(RatedCase.of(cases)), [measure_case(each) for each in cases.values()]
    for name in ("dsc_a", "hd95_b", "true_volume_b", "expected_dsc_a", "nll_all", "confidence_a"):
        assert found[name] == pytest.approx(np.mean([row[name] for row in rows])), name
    assert found["ece_all"] < np.mean([row["ece_all"] for row in rows])
    assert set(found) == set(rows[0])
    nothing = replace(cases["1"], label=torch.full_like(cases["1"].label, 9))
    with_nothing = {
        name: replace(each, ignore_index=9) for name, each in {**cases, "none": nothing}.items()
    }
    assert measure_case(RatedCase.of(with_nothing)) == pytest.approx(found, nan_ok=True)
    one = RatedCase.of({"only": cases["0"]})
    assert measure_case(one) == pytest.approx(rows[0], nan_ok=True)
