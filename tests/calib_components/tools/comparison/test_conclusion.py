"""What a report begins with, by exact sentences for made-up numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from calib_components.metrics import CalibrationBins
from calib_components.tools.comparison.conclusion import conclude, worst_cases
from calib_components.tools.comparison.measured import Comparison, Evaluation, Method, Run


def bins(confidence: Sequence[float], accuracy: Sequence[float], count: Sequence[int] | None = None) -> CalibrationBins:
    """All voxels of each case in the last of two bins."""
    of_cases = torch.tensor([1000] * len(confidence) if count is None else count)
    sums = (of_cases * torch.tensor(values, dtype=torch.float64) for values in (confidence, accuracy))
    return CalibrationBins(*(torch.stack([0 * field, field], 1) for field in (of_cases, *sums)))


def method(
    name: str, columns: Mapping[str, Sequence[float]], regions: Mapping[str, CalibrationBins] | None = None
) -> Method:
    """A method with a patient for each value of its columns; DSC and HD95 are made up where they are not given."""
    cases = [f"case{i}" for i in range(len(next(iter(columns.values()))))]
    table = {"dsc_heart": np.linspace(0.7, 0.9, len(cases)), "hd95_heart": np.ones(len(cases))}
    table |= {column: np.array(values, float) for column, values in columns.items()}
    evaluation = Evaluation(
        Path(name), {case: f"p_{case}" for case in cases}, cases, table, [], [], dict(regions or {})
    )
    return Method(name, name, [Run([evaluation])])


def one(
    errors: Sequence[float],
    gaps: Sequence[float],
    expected: Sequence[float] | None = None,
    count: Sequence[int] | None = None,
) -> str:
    """The conclusion about one network of accuracy 0.8; a quarter of the error over all voxels."""
    values = np.array(errors)
    columns = {"ece": values, "ece_all": values / 4, "ece_predicted": values}
    if expected is not None:
        columns["expected_dsc_heart"] = np.array(expected)
    of_cases = bins([0.8 + gap for gap in gaps], [0.8] * len(gaps), count)
    return conclude(Comparison([method("net", columns, {"all": of_cases, "predicted": of_cases})]))


ERRORS = [0.09, 0.1, 0.11, 0.09, 0.1, 0.11, 0.1, 0.1]
RISING = np.linspace(0.5, 0.9, 8)
BRACKETS = "in brackets: 95 % intervals over patients"
ORIGIN = f"These 8 patients cannot tell how it is for patients of another origin ({BRACKETS})."


def numbers(error: str = "0.100 [0.095, 0.105]", over_all: str = "0.025 [0.024, 0.026]") -> str:
    return f"the ECE of a case is {error} there and {over_all} over all voxels, of which chance is a part."


@pytest.mark.parametrize(
    ("sign", "confidence", "kind"), [(1, "0.900", "overconfident"), (-1, "0.700", "underconfident")]
)
def test_network_that_is_far_off_and_knows_its_bad_cases(sign: int, confidence: str, kind: str) -> None:
    """All eight patients are off to one side, as 2 of 2^8 choices of signs are; 0.008 by those that are drawn."""
    assert one(ERRORS, sign * np.array(ERRORS), RISING) == (
        f"Not well calibrated (p = 0.008): in the predicted foreground, the model is {kind} (mean confidence "
        f"{confidence}, accuracy 0.800); {numbers()} Low confidence finds the bad cases: Spearman's correlation "
        "of expected and true DSC is 1.000 [1.000, 1.000], and the worst case is that of lowest expected DSC (by "
        f"chance: 1 in 8). {ORIGIN}"
    )


def test_large_errors_to_both_sides_are_no_miscalibration_shown() -> None:
    """Voxels of a case depend on each other: each case can be far off by chance, and the large ones by many voxels."""
    gaps = np.array(ERRORS) * [1, -1, 1, 1, -1, 1, -1, -1]
    text = one(ERRORS, gaps, np.roll(RISING, 4), count=[10**6, *[1000] * 7])
    assert text.startswith("No miscalibration shown (p = 0.9")
    assert "in the predicted foreground, the mean confidence is 0.800 and the accuracy 0.800; " in text
    assert text.endswith(
        f"{numbers()} Whether low confidence finds the bad cases cannot be told: Spearman's correlation of expected "
        "and true DSC is -0.524 [-0.644, 0.291], and the worst case is not that of lowest expected DSC (by chance: 1 "
        f"in 8). {ORIGIN}"
    )


def test_each_patient_counts_the_same_whatever_its_size() -> None:
    """One patient of a thousand times the voxels does not decide for the others."""
    assert one(ERRORS, ERRORS, count=[1000] * 8) == one(ERRORS, ERRORS, count=[10**6, *[1000] * 7])


def test_bins_that_are_off_to_both_sides() -> None:
    """Half of the voxels of each case are too confident by 0.25, half too little: the means are equal."""
    count = torch.full((8, 2), 500)
    of_cases = CalibrationBins(
        count, count * torch.tensor([0.5, 0.75]).double(), count * torch.tensor([0.75, 0.5]).double()
    )
    columns = {"ece": ERRORS, "ece_all": ERRORS, "ece_predicted": ERRORS}
    text = conclude(Comparison([method("net", columns, {"all": of_cases, "predicted": of_cases})]))
    assert text.startswith(
        "Not well calibrated (p = 0.008): in the predicted foreground, it cannot be told whether the model is over- or "
        "underconfident (mean confidence 0.625, accuracy 0.625); "
    )


def test_bins_of_an_earlier_version_are_pooled() -> None:
    columns = {"ece": ERRORS, "ece_all": np.array(ERRORS) / 4, "ece_predicted": ERRORS}
    pooled = bins([0.9], [0.8])
    text = conclude(Comparison([method("net", columns, {"all": pooled, "predicted": pooled})]))
    assert text == f"Files of this earlier version do not tell whether the model is calibrated: {numbers()} {ORIGIN}"


def test_network_that_is_most_confident_about_its_bad_cases() -> None:
    text = one(ERRORS, ERRORS, RISING[::-1])
    assert (
        "Low confidence does not find the bad cases: Spearman's correlation of expected and true DSC is -1.000 ["
        in text
    )


@pytest.mark.parametrize(
    ("expected", "answer", "found"),
    [
        # Of 20 cases, a fifth is 4; by chance 4 * 4 / 20 of them.
        (np.arange(20), "Low confidence finds the bad cases: ", "4 are"),
        ([*range(3, 14), 0, 1, 2, *range(14, 20)], "Low confidence finds the bad cases somewhat: ", "1 is"),
        (
            [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7, *range(12, 20)],
            "Low confidence goes with a lower DSC, but does not find the worst cases: ",
            "0 are",
        ),
    ],
)
def test_how_well_low_confidence_finds_bad_cases(expected: Sequence[float], answer: str, found: str) -> None:
    text = one([0.1] * 20, [0.1] * 20, np.array(expected) / 20)
    assert answer in text
    assert f"of the 4 worst cases, {found} among the 4 of lowest expected DSC (by chance: 0.8)." in text


def test_worst_cases() -> None:
    """Undefined cases do not count: six are left, of which a fifth is one."""
    expected = np.array([0.1, math.nan, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    true = np.array([math.nan, 0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert worst_cases(expected, true) == (1, 1, 6)
    assert worst_cases(np.arange(10), np.arange(10)[::-1]) == (0, 2, 10)


def test_few_patients() -> None:
    assert one(ERRORS[:2], [0.1, 0.1], RISING[:2]) == (
        "Too few patients to tell whether the model is calibrated: in the predicted foreground, the mean confidence is "
        f"0.900 and the accuracy 0.800; {numbers('0.095', '0.024')} 2 patients are too few to tell how it is for "
        "others."
    )
    assert one(ERRORS[:1], [0.1]).endswith("1 patient is too few to tell how it is for others.")


def test_no_predicted_foreground() -> None:
    regions = {"all": bins([0.9] * 6, [0.8] * 6), "predicted": bins([0] * 6, [0] * 6, [0] * 6)}
    nothing = [math.nan] * 6
    network = method("net", {"ece": [0.1] * 6, "ece_all": [0.1] * 6, "ece_predicted": nothing}, regions)
    assert conclude(Comparison([network])) == (
        "No foreground is predicted; the ECE of a case is 0.100 [0.100, 0.100] over all voxels. "
        f"{ORIGIN.replace('8', '6', 1)}"
    )


def test_case_without_predicted_foreground_does_not_count() -> None:
    assert one([*ERRORS, math.nan], [*ERRORS, 0.5], count=[*[1000] * 8, 0]).startswith(
        "Not well calibrated (p = 0.008): in the predicted foreground, the model is overconfident (mean confidence "
        "0.900, accuracy 0.800)"
    )


def test_seeds_are_no_larger_cases() -> None:
    """Two seeds have twice the voxels in the same cases."""
    columns = {"ece": ERRORS, "ece_all": ERRORS, "ece_predicted": ERRORS}
    network = method("net", columns, dict.fromkeys(("all", "predicted"), bins([0.9] * 8, [0.8] * 8)))
    twice = Method("net", "net", [*network.runs, *network.runs])
    assert conclude(Comparison([twice])) == conclude(Comparison([network]))


def test_label_maps() -> None:
    assert conclude(Comparison([method("net", {"dsc_heart": [0.8] * 6})])) == (
        "The mean DSC of 6 patients is 0.800 [0.800, 0.800]. There are no probabilities, so nothing can be said about "
        "calibration."
    )


def test_evaluation_of_the_ground_truth_foreground_alone() -> None:
    assert conclude(Comparison([method("net", {"ece": [0.1] * 6})])) == (
        "The ECE of a case is 0.100 [0.100, 0.100] over the ground-truth foreground, which does not measure "
        "calibration: the ground truth chooses its voxels. These 6 patients cannot tell how it is for patients of "
        f"another origin ({BRACKETS})."
    )


STEPS = np.array([-0.002, -0.001, 0, 0.001, 0.002, 0.003, 0.004, 0.005])


def several(columns: Mapping[str, Mapping[str, Sequence[float]]], reference: str = "old") -> str:
    methods = [method(name, of_method) for name, of_method in columns.items()]
    return conclude(Comparison(methods), next(each for each in methods if each.name == reference))


def calibration(all_voxels: Sequence[float], predicted: Sequence[float]) -> dict[str, Sequence[float]]:
    return {"ece": predicted, "ece_all": all_voxels, "ece_predicted": predicted}


def test_which_is_better_calibrated_than_the_reference() -> None:
    """All eight patients agree: p = 2 / 2^8, times 6 by Holm's correction over three methods and two regions."""
    old = np.full(8, 0.1)
    assert several(
        {
            "old": calibration(old, old),
            "new": calibration(old - 0.05 - STEPS, old - 0.05),
            "other": calibration(old - 0.01 + 0.02 * np.sign(STEPS - 0.0005), old),
            "worse": calibration(old + 0.05 + STEPS, old),
        }
    ) == (
        "Compared with old, new is better calibrated over all voxels (ECE -0.0515 [-0.0531, -0.0499], p = 0.047) and "
        "in the predicted foreground (ECE -0.0500 [-0.0500, -0.0500], p = 0.047); worse is worse calibrated over all "
        "voxels (ECE +0.0515 [+0.0499, +0.0531], p = 0.047). These 8 patients cannot tell other from old; "
        f"{BRACKETS}, p-values Holm-corrected for 6 comparisons."
    )


def test_better_in_one_region_and_worse_in_another() -> None:
    old = np.full(8, 0.1)
    further = {"ece_plausible": old, "ece_predicted_band": old}
    mixed = {"ece_plausible": old + 8 * STEPS - 0.01, "ece_predicted_band": old + 0.04}
    text = several({"old": calibration(old, old) | further, "new": calibration(old - 0.008, old - 0.01) | mixed})
    assert text == (
        "Compared with old, new is better calibrated over all voxels (ECE -0.0080 [-0.0080, -0.0080], p = 0.031) and "
        "in the predicted foreground (ECE -0.0100 [-0.0100, -0.0100], p = 0.031), but is worse calibrated near borders "
        "between predicted classes (ECE +0.0400 [+0.0400, +0.0400], p = 0.031). These 8 patients cannot tell new from "
        f"old in the plausible foreground (ECE +0.0020 [-0.0110, +0.0150], p = 0.844); {BRACKETS}, p-values Holm-"
        "corrected for 4 comparisons."
    )


def test_interval_without_zero_that_the_test_does_not_confirm() -> None:
    """Five patients of eight agree by much, three differ a little the other way."""
    old = np.full(8, 0.1)
    steps = np.array([-0.05, -0.05, -0.05, -0.05, -0.05, 0.015, 0.016, 0.017])
    text = several({"old": calibration(old, old), "new": calibration(old + steps, old - 0.01)})
    assert text == (
        "Compared with old, new is better calibrated in the predicted foreground (ECE -0.0100 [-0.0100, -0.0100], p = "
        "0.016) and perhaps over all voxels (ECE -0.0253 [-0.0419, -0.0006], p = 0.102); perhaps means an interval "
        f"without 0 but p > 0.05; {BRACKETS}, p-values Holm-corrected for 2 comparisons."
    )
    text = several({"old": calibration(old, old), "new": calibration(old, old + steps)})
    assert "Compared with old, new is perhaps better calibrated in the predicted foreground (ECE -0.0253 [" in text


def test_ground_truth_foreground_is_not_called_calibration() -> None:
    old = np.full(8, 0.1)
    assert several({"old": {"ece": old}, "new": {"ece": old / 2}}) == (
        "Compared with old over the ground-truth foreground, new has a lower ECE (-0.0500 [-0.0500, -0.0500], p = "
        f"0.008); {BRACKETS}. The ground truth chooses these voxels, so a lower ECE there does not mean better "
        "calibration."
    )


def test_label_maps_are_compared_by_dsc() -> None:
    old = np.full(8, 0.8)
    assert several({"old": {"dsc_heart": old}, "maps": {"dsc_heart": old + 0.1}}) == (
        "Compared with old on the common cases, maps has a higher DSC (+0.1000 [+0.1000, +0.1000], p = 0.008); "
        f"{BRACKETS}. There are no probabilities in common, so nothing can be said about calibration."
    )


def test_methods_that_cannot_be_told_apart() -> None:
    old = np.full(8, 0.8)
    assert several({"old": {"dsc_heart": old}, "maps": {"dsc_heart": old}}).startswith(
        "These 8 patients cannot tell maps from old on the common cases (DSC +0.0000 [+0.0000, +0.0000], p = 1.000); "
    )


def test_too_few_patients_to_compare() -> None:
    columns = calibration([0.1] * 5, [0.1] * 5)
    text = "5 patients are too few to tell which method is better calibrated."
    assert several({"old": columns, "new": calibration([0.01] * 5, [0.01] * 5)}) == text
    assert several({"old": {"dsc_heart": [0.8]}, "new": {"dsc_heart": [0.9]}}) == (
        "1 patient is too few to tell which method segments better."
    )


def test_several_without_a_reference_have_no_conclusion() -> None:
    columns = calibration([0.1] * 8, [0.1] * 8)
    assert conclude(Comparison([method("a", columns), method("b", columns)])) == ""
