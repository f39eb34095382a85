"""What a report begins with, by exact sentences for made-up numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from calib_components.metrics import CalibrationBins
from calib_components.tools.report.conclusion import conclude, worst_cases
from calib_components.tools.report.measured import Comparison, Evaluation, Method, Run


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
    over_all: Sequence[float] | None = None,
) -> str:
    """The conclusion about one network of accuracy 0.8; over all voxels a quarter of the errors, by default no gap."""
    values = np.array(errors)
    columns = {"ece": values, "ece_all": values / 4, "ece_predicted": values}
    if expected is not None:
        columns["expected_dsc_heart"] = np.array(expected)
    signs = [0.05 * (-1) ** i for i in range(len(gaps))] if over_all is None else over_all
    regions = {
        name: bins([0.8 + gap for gap in of_region], [0.8] * len(gaps), count if name == "predicted" else None)
        for name, of_region in (("predicted", gaps), ("all", signs))
    }
    return conclude(Comparison([method("net", columns, regions)]))


ERRORS = [0.09, 0.1, 0.11, 0.09, 0.1, 0.11, 0.1, 0.1]
RISING = np.linspace(0.5, 0.9, 8)
BRACKETS = "in brackets: 95 % intervals over patients"
ORIGIN = (
    "These 8 patients cannot tell how it is for patients of another origin, nor of failures too rare to be among them "
    f"({BRACKETS})."
)
CHANCE = "Chance alone gives a case an ECE above 0."
NONE = (
    "over all voxels, no miscalibration is shown (confidence 0.800, accuracy 0.800, p = 1.000, ECE of a case 0.025 "
    "[0.024, 0.026])"
)
ERROR = "ECE of a case 0.100 [0.095, 0.105]"


@pytest.mark.parametrize(("sign", "confidence", "kind"), [(1, "0.900", "over"), (-1, "0.700", "under")])
def test_network_that_is_far_off_and_knows_its_bad_cases(sign: int, confidence: str, kind: str) -> None:
    """All eight patients are off to one side, as 2 of 2^8 choices of signs are; times 2 by Holm's correction."""
    assert one(ERRORS, sign * np.array(ERRORS), RISING) == (
        f"Not well calibrated: in the predicted foreground, the model is {kind}confident (confidence {confidence}, "
        f"accuracy 0.800, p = 0.016, {ERROR}); {NONE}. {CHANCE} Low confidence points to bad cases: Spearman's "
        "correlation of expected and true DSC is 1.000 [1.000, 1.000], and the worst case is that of lowest expected "
        f"DSC (by chance: 1 in 8). {ORIGIN}"
    )


def test_large_errors_to_both_sides_are_no_miscalibration_shown() -> None:
    """Voxels of a case depend on each other: each case can be far off by chance, and the large ones by many voxels."""
    gaps = np.array(ERRORS) * [1, -1, 1, 1, -1, 1, -1, -1]
    text = one(ERRORS, gaps, np.roll(RISING, 4), count=[10**6, *[1000] * 7])
    assert text.startswith(
        "No miscalibration shown: in the predicted foreground, no miscalibration is shown (confidence 0.800, accuracy "
        f"0.800, p = 1.000, {ERROR}); {NONE}. {CHANCE} Whether low confidence finds the bad cases cannot be told: "
    )
    assert text.endswith(
        "correlation of expected and true DSC is -0.524 [-0.644, 0.291], and the worst case is not that of lowest "
        f"expected DSC (by chance: 1 in 8). {ORIGIN}"
    )


def test_each_patient_counts_the_same_whatever_its_size() -> None:
    """One patient of a thousand times the voxels does not decide for the others."""
    assert one(ERRORS, ERRORS, count=[1000] * 8) == one(ERRORS, ERRORS, count=[10**6, *[1000] * 7])


def test_slight_miscalibration_is_called_slight() -> None:
    text = one(ERRORS, np.array(ERRORS) / 20)
    assert text.startswith(
        "Slightly miscalibrated: in the predicted foreground, the model is slightly overconfident (confidence 0.805, "
        "accuracy 0.800, p = 0.016, "
    )


def test_miscalibration_over_all_voxels_alone() -> None:
    """The predicted foreground is right: what is missed lies outside of it."""
    gaps = np.array(ERRORS) * [1, -1, 1, 1, -1, 1, -1, -1]
    text = one(ERRORS, gaps, over_all=-np.array(ERRORS))
    assert text.startswith("Not well calibrated: in the predicted foreground, no miscalibration is shown (")
    assert "; over all voxels, the model is underconfident (confidence 0.700, accuracy 0.800, p = 0.016, " in text


@pytest.mark.parametrize(
    ("gaps", "answer", "means"),
    [
        ((0.25, -0.25), "Not well calibrated: in the predicted foreground, the model is ", "0.625, accuracy 0.625"),
        ((0.2, -0.19), "Not well calibrated: in the predicted foreground, the model is ", "0.630, accuracy 0.625"),
        ((0.003, -0.003), "Slightly miscalibrated: in the predicted foreground, the model is slightly ", "0.625, acc"),
    ],
)
def test_bins_that_are_off_to_both_sides(gaps: tuple[float, float], answer: str, means: str) -> None:
    """Half of the voxels of each case are too confident, half too little: the means are equal, or nearly so."""
    count, accuracy = torch.full((8, 2), 500), torch.tensor([0.5, 0.75]).double()
    of_cases = CalibrationBins(count, count * (accuracy + torch.tensor(gaps)), count * accuracy)
    columns = {"ece": ERRORS, "ece_all": ERRORS, "ece_predicted": ERRORS}
    text = conclude(Comparison([method("net", columns, {"all": of_cases, "predicted": of_cases})]))
    both = "too confident in some bins and not confident enough in others"
    assert text.startswith(f"{answer}{both} (confidence {means}")


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
        (np.arange(20), "Low confidence points to bad cases: ", "4 are"),
        ([*range(3, 14), 0, 1, 2, *range(14, 20)], "Low confidence points to bad cases: ", "1 is"),
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


def test_ties_leave_open_which_cases_are_the_worst() -> None:
    """Three of ten have DSC 0: two of them are the worst, but nobody can say which."""
    tied = np.array([0, 0, 0, *range(1, 8)])
    assert worst_cases(np.arange(10), tied) == worst_cases(tied, np.arange(10)) == (0, 0, 10)
    assert worst_cases(np.arange(10), np.array([0, 0, *range(1, 9)])) == (2, 2, 10)
    text = one([0.1] * 8, [0.1] * 8, [0.1, 0.1, *RISING[2:]])
    assert "Low confidence points to bad cases: Spearman's correlation of expected and true DSC is 0.994 [" in text
    assert "worst case" not in text


def test_few_patients() -> None:
    assert one(ERRORS[:2], [0.1, 0.1], RISING[:2]) == (
        "Too few patients to tell whether the model is calibrated: in the predicted foreground, that cannot be told "
        "(confidence 0.900, accuracy 0.800, ECE of a case 0.095); over all voxels, that cannot be told (confidence "
        f"0.800, accuracy 0.800, ECE of a case 0.024). {CHANCE} 2 patients are too few to tell how it is for others."
    )
    assert one(ERRORS[:1], [0.1]).endswith("1 patient is too few to tell how it is for others.")


def test_no_predicted_foreground() -> None:
    regions = {"all": bins([0.9] * 6, [0.8] * 6), "predicted": bins([0] * 6, [0] * 6, [0] * 6)}
    nothing = [math.nan] * 6
    network = method("net", {"ece": [0.1] * 6, "ece_all": [0.1] * 6, "ece_predicted": nothing}, regions)
    assert conclude(Comparison([network])) == (
        "Not well calibrated: in the predicted foreground, there is no voxel; over all voxels, the model is "
        "overconfident (confidence 0.900, accuracy 0.800, p = 0.031, ECE of a case 0.100 [0.100, 0.100]). "
        f"{CHANCE} {ORIGIN.replace('8', '6', 1)}"
    )


def test_case_without_predicted_foreground_does_not_count() -> None:
    assert one([*ERRORS, math.nan], [*ERRORS, 0.5], count=[*[1000] * 8, 0]).startswith(
        "Not well calibrated: in the predicted foreground of the 8 of 9 cases that have one, the model is "
        "overconfident (confidence 0.900, accuracy 0.800, p = 0.016, "
    )


def test_seeds_are_no_larger_cases() -> None:
    """Two seeds have twice the voxels in the same cases."""
    columns = {"ece": ERRORS, "ece_all": ERRORS, "ece_predicted": ERRORS}
    network = method("net", columns, dict.fromkeys(("all", "predicted"), bins([0.9] * 8, [0.8] * 8)))
    twice = Method("net", "net", [*network.runs, *network.runs])
    said = conclude(Comparison([twice]))
    assert said.replace("over seeds and patients", "over patients") == conclude(Comparison([network])) != said


def test_label_maps() -> None:
    assert conclude(Comparison([method("net", {"dsc_heart": [0.8] * 6})])) == (
        "The mean DSC of 6 patients is 0.800 [0.800, 0.800]. There are no probabilities, so nothing can be said about "
        "calibration."
    )


def test_evaluation_of_the_ground_truth_foreground_alone() -> None:
    assert conclude(Comparison([method("net", {"ece": [0.1] * 6})])) == (
        "The ECE of a case is 0.100 [0.100, 0.100] over the ground-truth foreground, which does not measure "
        "calibration: the ground truth chooses its voxels. "
        f"{ORIGIN.replace('8', '6', 1)}"
    )


STEPS = np.array([-0.002, -0.001, 0, 0.001, 0.002, 0.003, 0.004, 0.005])
SCORES = "The NLL scores probabilities as a whole; part of an ECE is chance, a larger one in a less confident model."


def several(columns: Mapping[str, Mapping[str, Sequence[float]]], reference: str = "old") -> str:
    regions = dict.fromkeys(("all", "predicted"), bins([0.9] * 8, [0.8] * 8))
    methods = [
        method(name, of_method, regions if "ece_all" in of_method else None) for name, of_method in columns.items()
    ]
    return conclude(Comparison(methods), next(each for each in methods if each.name == reference))


def calibration(
    all_voxels: Sequence[float], predicted: Sequence[float], nll: float = 0.2
) -> dict[str, Sequence[float]]:
    return {"ece": predicted, "ece_all": all_voxels, "ece_predicted": predicted, "nll_all": [nll] * len(predicted)}


def test_which_has_better_probabilities_than_the_reference() -> None:
    """All eight patients agree: p = 2 / 2^8, times 9 by Holm's correction over three methods and measures at first."""
    old = np.full(8, 0.1)
    assert several(
        {
            "old": calibration(old, old),
            "new": calibration(old - 0.05 - STEPS, old - 0.05, nll=0.1),
            "other": calibration(old - 0.01 + 0.02 * np.sign(STEPS - 0.0005), old),
        }
    ) == (
        "Compared with old, new has a lower NLL over all voxels (-0.1000 [-0.1000, -0.1000], p = 0.047), a lower ECE "
        "over all voxels (-0.0515 [-0.0531, -0.0499], p = 0.047) and a lower ECE in the predicted foreground (-0.0500 "
        "[-0.0500, -0.0500], p = 0.047). These 8 patients cannot tell other from old; "
        f"{BRACKETS}, p-values Holm-corrected for 6 comparisons. {SCORES}"
    )


def test_better_by_one_measure_and_worse_by_another() -> None:
    old = np.full(8, 0.1)
    text = several({"old": calibration(old, old), "new": calibration(old + 8 * STEPS - 0.01, old - 0.01, nll=0.3)})
    assert text == (
        "Compared with old, new has a lower ECE in the predicted foreground (-0.0100 [-0.0100, -0.0100], p = 0.023), "
        "but a higher NLL over all voxels (+0.1000 [+0.1000, +0.1000], p = 0.023). These 8 patients cannot tell new "
        "from old by ECE over all voxels (+0.0020 [-0.0110, +0.0150], p = 0.805); "
        f"{BRACKETS}, p-values Holm-corrected for 3 comparisons. {SCORES}"
    )


def test_p_values_are_those_of_the_table() -> None:
    old = np.full(8, 0.1)
    columns = {"old": calibration(old, old), "new": calibration(old - 0.05, old + STEPS)}
    regions = dict.fromkeys(("all", "predicted"), bins([0.9] * 8, [0.8] * 8))
    compared = Comparison([method(name, of_method, regions) for name, of_method in columns.items()])
    text = conclude(compared, compared.methods[0])
    (_, p_value) = compared.differences("ece_all", compared.methods[0])[compared.methods[1]]
    assert p_value == pytest.approx(3 * 2 / 2**8)
    assert f"p = {p_value:.3f}" in text
    (_, alone) = compared.differences("dsc", compared.methods[0])[compared.methods[1]]
    assert alone == 1


def test_cases_without_predicted_foreground_are_counted_out() -> None:
    old = np.full(8, 0.1)
    new = np.array([*[0.05] * 7, math.nan])
    assert "a lower ECE in the predicted foreground (-0.0500 [-0.0500, -0.0500], p = 0.047, 7 cases)" in several(
        {"old": calibration(old, old), "new": calibration(old, new)}
    )


def test_ground_truth_foreground_is_not_called_calibration() -> None:
    old = np.full(8, 0.1)
    assert several({"old": {"ece": old}, "new": {"ece": old / 2}}) == (
        "Compared with old, new has a lower ECE over the ground-truth foreground (-0.0500 [-0.0500, -0.0500], p = "
        f"0.008); {BRACKETS}. The ground truth chooses these voxels, so a lower ECE there does not mean better "
        "calibration."
    )


def test_label_maps_are_compared_by_dsc() -> None:
    old = np.full(8, 0.8)
    assert several({"old": {"dsc_heart": old}, "maps": {"dsc_heart": old + 0.1}}) == (
        "Compared with old, maps has a higher DSC on the common cases (+0.1000 [+0.1000, +0.1000], p = 0.008); "
        f"{BRACKETS}. There are no probabilities in common, so nothing can be said about calibration."
    )


def test_methods_that_cannot_be_told_apart() -> None:
    old = np.full(8, 0.8)
    assert several({"old": {"dsc_heart": old}, "maps": {"dsc_heart": old}}).startswith(
        "These 8 patients cannot tell maps from old by DSC on the common cases (+0.0000 [+0.0000, +0.0000], p = "
        "1.000); "
    )


def test_too_few_patients_to_compare() -> None:
    assert several({"old": {"dsc_heart": [0.8]}, "new": {"dsc_heart": [0.9]}}) == (
        "1 patient is too few to tell which method is better."
    )


def test_several_without_a_reference_have_no_conclusion() -> None:
    columns = calibration([0.1] * 8, [0.1] * 8)
    assert conclude(Comparison([method("a", columns), method("b", columns)])) == ""
