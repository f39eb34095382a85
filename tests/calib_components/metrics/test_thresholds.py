from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from calib_components.metrics import ThresholdCounts, ThresholdMetric, threshold_counts

STRUCTURES = {"a": [1], "bc": [2, 3]}


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y_pred = (3 * torch.randn(3, 4, 9, 8, 7, generator=generator)).softmax(1)
    return y_pred, torch.randint(4, (3, 1, 9, 8, 7), generator=generator)


def test_counts_by_numpy() -> None:
    y_pred, y = example()
    counts = threshold_counts(y_pred, y, STRUCTURES)
    label = y.numpy()[:, 0]
    assert counts.thresholds.tolist() == [i / 100 for i in range(1, 100)]
    for number, classes in enumerate([(1,), (2, 3)]):
        p = y_pred.double().numpy()[:, classes].sum(1).astype(np.float32)
        truth = np.isin(label, classes)
        for i, threshold in enumerate(counts.thresholds.tolist()):
            mask = p > threshold  # numpy compares in float32
            np.testing.assert_array_equal(counts.predicted[:, number, i], mask.sum((1, 2, 3)))
            np.testing.assert_array_equal(counts.true_positive[:, number, i], (mask & truth).sum((1, 2, 3)))
        np.testing.assert_array_equal(counts.true[:, number], truth.sum((1, 2, 3)))
    assert counts.voxels.tolist() == [[504, 504]] * 3
    assert {field.dtype for name, field in vars(counts).items() if name != "thresholds"} == {torch.int64}


def test_table_by_scikit_learn() -> None:
    y_pred, y = example()
    metric = ThresholdMetric(STRUCTURES)
    metric(y_pred, y)
    for number, classes in enumerate([(1,), (2, 3)]):
        table = metric.counts.table(number)
        p = y_pred.double()[:, classes].sum(1).float().numpy()
        truth = np.isin(y.numpy()[:, 0], classes)
        for i in range(0, 99, 7):
            mask = p > (i + 1) / 100
            tn, fp, fn, tp = sklearn.confusion_matrix(truth.ravel(), mask.ravel()).ravel()
            assert table.specificity[i].item() == tn / (tn + fp)
            assert table.sensitivity[i].item() == sklearn.recall_score(truth.ravel(), mask.ravel()) == tp / (tp + fn)
            assert table.ppv[i].item() == sklearn.precision_score(truth.ravel(), mask.ravel())
            f1 = [sklearn.f1_score(truth[case].ravel(), mask[case].ravel()) for case in range(3)]
            assert table.dsc[i].item() == pytest.approx(np.mean(f1), rel=1e-12)
    assert metric.aggregate("none")[1, 0].item() == pytest.approx(metric.counts.dsc[1, 0, 49].item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_probability_at_a_threshold_is_not_above_it(dtype: torch.dtype) -> None:
    thresholds = torch.arange(1, 100, dtype=torch.float64) / 100
    at = thresholds.to(dtype)[None, None]
    counts = threshold_counts(at, torch.ones(1, 1, 99), {"a": [0]})
    assert counts.predicted[0, 0].tolist() == list(range(98, -1, -1))  # the thresholds above each
    for i, threshold in enumerate(thresholds.tolist()):
        assert counts.predicted[0, 0, i] == (at > threshold).sum()  # as PyTorch compares
    above = torch.nextafter(at, torch.ones_like(at)) if dtype in (torch.float32, torch.float64) else None
    if above is not None:
        counts = threshold_counts(above, torch.ones(1, 1, 99), {"a": [0]})
        assert counts.predicted[0, 0].tolist() == list(range(99, 0, -1))


def test_zero_and_one() -> None:
    counts = threshold_counts(torch.tensor([[[0.0, 1, 1, 0.005]]]), torch.tensor([[[1, 1, 0, 0]]]), {"a": [0]})
    assert counts.predicted[0, 0].tolist() == [2] * 99
    table = counts.table(0)
    assert table.sensitivity.tolist() == table.ppv.tolist() == table.dsc.tolist() == [0.5] * 99
    assert table.specificity.tolist() == [0.5] * 99


def counts_of(true_positive: list, predicted: list, true: list) -> ThresholdCounts:
    return ThresholdCounts(
        torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64),
        *(torch.tensor(field) for field in (true_positive, predicted, true)),
        torch.full(torch.tensor(true).shape, 10),
    )


def test_cases_without_the_structure() -> None:
    # The second case has none: it has no DSC at any threshold, so that their means are over the same cases.
    counts = counts_of([[[4, 3, 2]], [[0, 0, 0]]], [[[6, 4, 2]], [[2, 0, 0]]], [[4], [0]])
    table = counts.table(0)
    assert table.dsc.tolist() == pytest.approx([8 / 10, 6 / 8, 4 / 6])
    assert table.sensitivity.tolist() == [1, 0.75, 0.5]
    assert table.ppv.tolist() == pytest.approx([4 / 8, 3 / 4, 1])
    assert table.specificity.tolist() == pytest.approx([12 / 16, 15 / 16, 1])
    assert counts.best().tolist() == [counts.thresholds[0]]


def test_ratios_of_cases_give_the_table() -> None:
    counts = counts_of(
        [[[4, 3, 2]], [[0, 0, 0]], [[1, 1, 0]]], [[[6, 4, 2]], [[2, 0, 0]], [[1, 1, 0]]], [[4], [0], [2]]
    )
    ratios = counts.ratios(0)
    assert [field.tolist() for field in ratios["sensitivity"]] == [
        [[4, 3, 2], [0] * 3, [1, 1, 0]],
        [[4] * 3, [0] * 3, [2] * 3],
    ]
    assert [field.tolist() for field in ratios["specificity"]] == [
        [[4, 5, 6], [8, 10, 10], [8] * 3],
        [[6] * 3, [10] * 3, [8] * 3],
    ]
    assert [field.tolist() for field in ratios["ppv"]] == [
        [[4, 3, 2], [0] * 3, [1, 1, 0]],
        [[6, 4, 2], [2, 0, 0], [1, 1, 0]],
    ]
    dsc, has = ratios["dsc"]
    np.testing.assert_allclose(dsc, [[8 / 10, 6 / 8, 4 / 6], [0] * 3, [2 / 3, 2 / 3, 0]])
    assert has.tolist() == [[1] * 3, [0] * 3, [1] * 3]  # the second case has no DSC, though something is predicted
    table = counts.table(0)
    for name, (above, below) in ratios.items():
        np.testing.assert_array_equal(getattr(table, name), above.sum(0) / below.sum(0).double())


def test_best_threshold() -> None:
    equal = counts_of([[[2, 2, 2], [0, 0, 0], [1, 2, 2]]], [[[2, 2, 2], [0, 0, 0], [2, 3, 2]]], [[2, 0, 2]])
    assert equal.best()[[0, 2]].tolist() == [0.5, 0.7]  # the nearest to 0.5; the highest
    assert equal.best()[1].isnan()
    table = equal.table(1)
    assert table.sensitivity.isnan().all()
    assert table.ppv.isnan().all()
    assert table.specificity.tolist() == [1, 1, 1]


def test_a_result_changed_in_place_does_not_change_the_next() -> None:
    metric = ThresholdMetric({"heart": [1]})
    metric(torch.tensor([[[0.9, 0.2], [0.1, 0.8]]]), torch.tensor([[[0, 1]]]))
    metric.counts.thresholds.mul_(100)
    metric.counts.table(0).thresholds.mul_(100)
    assert metric.aggregate() == 1


def test_json() -> None:
    y_pred, y = example()
    counts = threshold_counts(y_pred, y, STRUCTURES)
    read = ThresholdCounts.from_dict(json.loads(json.dumps(counts.to_dict())))
    for name, field in vars(counts).items():
        assert torch.equal(field, getattr(read, name))
        assert field.dtype == getattr(read, name).dtype


GOOD = counts_of([[[2, 1, 0]]], [[[3, 2, 0]]], [[2]]).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"true": None}, r"^fields: expected thresholds, true_positive, predicted, true, voxels, got none .* true$"),
        ({"true": [["a"]]}, r"^true: expected nested lists of numbers, got "),
        ({"true": [[1.5]]}, r"^true: expected whole numbers, got others$"),
        ({"thresholds": [1, 2, 3]}, r"^thresholds: expected numbers with a decimal point, got others$"),
        ({"true": [2]}, r"^thresholds, true and voxels: expected shapes .* got \(3,\), \(1,\) and \(1, 1\)$"),
        ({"predicted": [[[3, 2]]]}, r"^predicted: expected shape .* \(1, 1, 3\), got \(1, 1, 2\)$"),
        ({"true_positive": [[[3, 1, 0]]]}, r"^true_positive, predicted: expected no more voxels than there are"),
        ({"true_positive": [[[2, 1, -1]]]}, r"^true_positive, predicted: expected no more voxels than there are"),
        ({"predicted": [[[11, 2, 0]]]}, r"^true_positive, predicted: expected no more voxels than there are"),
        ({"predicted": [[[1, 2, 0]]]}, r"^true_positive, predicted: expected no more voxels than there are"),
    ],
)
def test_broken_json(change: dict[str, Any], message: str) -> None:
    ThresholdCounts.from_dict(GOOD)
    fields = {name: field for name, field in {**GOOD, **change}.items() if field is not None}
    with pytest.raises(ValueError, match=message):
        ThresholdCounts.from_dict(fields)


def test_only_dictionaries_and_tensors() -> None:
    with pytest.raises(ValueError, match=r"^fields: expected a dictionary of nested lists, got list$"):
        ThresholdCounts.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^thresholds: expected a torch\.Tensor, got list$"):
        ThresholdCounts(**GOOD)
