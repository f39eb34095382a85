"""Claims of the pages about results: the words hold for the tables in `results`, from which the
numbers are filled.

`fill_tables.py --check` compares the numbers. Here, each claim in words is recomputed.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from study.abdomen.run import Network
from study.abdomen.tables import mean_magnitudes
from study.compare.published import PUBLISHED
from study.glioma.tables import SETS as GLIOMA_SETS
from study.glioma.tables import T, order_of, rows_of
from study.heart.tables import LOSSES as HEART_LOSSES
from study.heart.tables import differences, read_heart
from study.tables.fill_tables import (
    LOSSES,
    LOSSES_3D,
    NUMBER,
    PAPER,
    TABLE,
    TABLE1,
    TEXT,
    calibration,
    corrected,
    difference,
    numbers,
    results,
)
from study.tables.shipped import HEART
from tests.helpers import ROOT

CE, DICE, DICE_T = "cross_entropy", "ce_dice", "ce_dice+T"
SETS, SHIFTED, TASK04, FEW = ("acdc", "bssfp", "lge"), ("bssfp", "lge"), "hippocampus", "few"
AUTHORS = "acdc_authors"
ABDOMEN = "flare_authors"
REGIMES = ("acdc", TASK04, FEW, AUTHORS)
PENALTIES = [name for name in LOSSES if name != CE]
UNDERCONFIDENT = ("focal", "label_smoothing", "mbls", "nacl")
CALIBRATED = ("entropy_penalty", "svls", "nacl_softmax")
PREDICTED = ("nll_predicted", "ece_predicted")
PENALTIES_3D = LOSSES_3D[1:]
PRIORS = ("gaussian", "max", "min", "mode")


def if_true(method: str) -> float:
    """The ECE over the true foreground of ACDC if the probabilities were true."""
    return float(results("cases").loc[("acdc", method), "ece_if_true"].mean())


def change(*of: str) -> int:
    """-1 or 1 if a difference is significant, and that sign; 0 if it is not."""
    found = difference(*of)
    return int(np.sign(found.mean)) if corrected(*of) < 0.05 and found.low * found.high > 0 else 0


def changes(
    methods: Iterable[str], reference: str, sets: Iterable[str], measures: Iterable[str]
) -> set[int]:
    return {
        change(name, reference, *of) for name, *of in itertools.product(methods, sets, measures)
    }


def lowest(reference: str, test_set: str, measure: str) -> set[str]:
    """Which losses are significantly below the reference."""
    others = LOSSES if reference == CE else (*LOSSES, "l1_ace")
    return {
        name
        for name in others
        if name != reference and change(name, reference, test_set, measure) < 0
    }


def sign(*of: str) -> int:
    """-1 or 1 if the interval of a difference leaves out 0, and that sign; 0 if it holds it."""
    found = difference(*of)
    return int(np.sign(found.mean)) if found.low * found.high > 0 else 0


def no_penalty_has_a_lower_nll(sets: Iterable[str] = SETS) -> bool:
    """Whether no penalty has a significantly lower NLL over all voxels than cross-entropy."""
    return -1 not in changes(PENALTIES, CE, sets, ["nll_all"])


def no_penalty_is_better_in_3d(measures: Iterable[str] = ("nll_all", *PREDICTED)) -> bool:
    """Whether no penalty is below cross-entropy on the hippocampus, without correction."""
    pairs = itertools.product(PENALTIES_3D, measures)
    return -1 not in {sign(name, CE, TASK04, measure) for name, measure in pairs}


def underconfident_ones_are_better_on_lge() -> bool:
    """Whether these have a significantly lower NLL where a structure is predicted, and NACL and ECP
    a lower ECE.
    """
    found = [lowest(CE, "lge", measure) for measure in PREDICTED]
    return found == [{*UNDERCONFIDENT}, {"nacl", "entropy_penalty"}]


def no_penalty_differs_on_lge() -> bool:
    return changes(PENALTIES, CE, ["lge"], ["nll_all"]) == {0}


def rank(method: str, test_set: str, kind: str = "rank") -> float:
    """The place by sum-rank of the seven losses; ties share the better one."""
    sums = {name: float(numbers(f"{kind} {name} {test_set}")[0]) for name in TABLE1}
    return 1 + sum(value < sums[method] for value in sums.values())


def published_rank_on(dataset: str) -> float:
    table = PUBLISHED.loc[dataset].loc[TABLE1] * [-1, 1, 1, 1]
    sums = table.rank().sum(axis=1)
    return 1 + (sums < sums["nacl"]).sum()


def means_of(home: str, measure: str, end: str = "") -> pd.Series[float]:
    """The mean of each of the seven losses on a test set."""
    means = results("cases").loc[home].groupby(level=0)[measure].mean()
    return means[[f"{name}{end}" for name in TABLE1]]


def sum_of_columns(kind: str, method: str) -> float:
    """The sum of a loss's sum-ranks on ACDC and the abdomen, in the authors' regime."""
    return sum(float(numbers(f"{kind} {method} {home}")[0]) for home in (AUTHORS, ABDOMEN))


def lead(kind: str) -> float:
    """How much lower NACL's sum-rank is than the next, in the authors' regime or the paper."""
    sums = {name: float(numbers(f"{kind} {name} {AUTHORS}")[0]) for name in TABLE1}
    nacl = sums.pop("nacl")
    return min(sums.values()) - nacl


def share_of_first_places(method: str, resamples: int = 1000) -> float:
    """How often a loss has the lowest sum-rank in the authors' regime, over resampled patients."""
    cases = results("cases").loc[AUTHORS].set_index("patient", append=True)
    means = cases.groupby(level=[0, 1])[PAPER].mean().unstack("patient").loc[TABLE1]
    values = means.to_numpy().reshape(len(TABLE1), len(PAPER), -1)
    drawn = np.random.default_rng(0).integers(values.shape[-1], size=(resamples, values.shape[-1]))
    costs = values[..., drawn].mean(-1) * np.array([-1, 1, 1, 1])[:, None]
    sums = rankdata(costs, axis=0).sum(1)
    return float(np.mean(sums[TABLE1.index(method)] == sums.min(0)))


def gap(method: str, test_set: str) -> int:
    """Confidence minus accuracy where a structure is predicted, in percentage points."""
    confidence, accuracy = map(int, numbers(f"confidence {method} {test_set}"))
    return confidence - accuracy


def closed(method: str) -> float:
    """How much of the gap to the perfect order of the scans of LGE the expected DSC closes."""
    return float(results("cases").loc[("lge", method), "gap_closed"].mean())


def temperatures(method: str, home: str = "acdc") -> list[float]:
    return [*map(float, numbers(f"T {method} {home}"))]


def needs_none(method: str) -> bool:
    return 0.95 < temperatures(method)[0] < temperatures(method)[-1] < 1.05


def corrected_heart(one: str, other: str, name: str, calibrator: str = "") -> float:
    """The p-value of a difference of the fifth round's NLL over all voxels, by Holm's method."""
    title = f"{HEART_LOSSES[one]} - {HEART_LOSSES[other]}, {name}"
    return differences("nll_all", calibrator)[title].p_value


def far(network: str, test_set: str) -> int:
    """In how many scans of a set a network of the fifth round marks voxels far from the heart."""
    rows = read_heart()[lambda t: (t["network"] == network) & (t["calibrator"] == "T")]
    return int((rows.loc[rows["set"] == test_set, "far_voxels"] > 0).sum())


def ensemble_gains() -> pd.DataFrame:
    """Of three losses on five sets of the fifth round, with a temperature each: the NLL of three
    networks together over the mean of one, and how much higher their DSC is, means over patients.
    """
    rows = read_heart()[lambda t: (t["calibrator"] == "T") & t["set"].isin(HEART)]
    rows = rows.assign(loss=rows["network"].str.rsplit("_", n=1).str[0])
    rows = rows.assign(is_one=~rows["network"].str.endswith("_ensemble"))
    keys = ["loss", "set", "is_one"]
    means = rows.groupby([*keys, "patient"])[["nll_all", "dsc"]].mean().groupby(keys).mean()
    one, three = (means.xs(is_one, level="is_one") for is_one in (True, False))
    return pd.DataFrame(
        {"nll": three["nll_all"] / one["nll_all"], "dsc": three["dsc"] - one["dsc"]}
    )


CLAIMS: dict[str, dict[str, Callable[[], bool]]] = {
    "evidence": {
        "seed 2 of each loss in all of its scans": lambda: (
            all(
                far(name, test_set) == 20
                for name in ("nacl_seed2", "cross_entropy_seed2", "ce_dice_seed2")
                for test_set in SHIFTED
            )
            and far("cross_entropy_ensemble", "bssfp") + far("cross_entropy_ensemble", "lge") == 0
        ),
        (
            "All others have a significantly lower NLL where a structure is predicted; with a "
            "temperature each, only cross-entropy and SVLS have"
        ): lambda: (
            [
                {
                    name
                    for name in LOSSES_3D
                    if change(name + end, DICE + end, TASK04, "nll_predicted") < 0
                }
                for end in ("", "+T")
            ]
            == [{*LOSSES_3D}, {CE, "svls"}]
        ),
        "Cross-entropy is calibrated as trained, and no penalty was shown to be better": lambda: (
            calibration(CE, TASK04).low < 0 < calibration(CE, TASK04).high
            and no_penalty_is_better_in_3d()
        ),
        "The expected DSC is not shown to order them, with any loss": lambda: all(
            float(numbers(f"interval {name} {TASK04} gap_closed")[1]) <= 0
            for name in (DICE, *LOSSES_3D)
        ),
        (
            "As trained, NACL and SVLS are better calibrated** than CE + Dice and cross-entropy"
        ): lambda: (
            {
                change(name, to, FEW, of)
                for name in ("nacl", "svls")
                for to in (DICE, CE)
                for of in PREDICTED
            }
            == {-1}
        ),
        (
            "NACL and SVLS are better calibrated** than CE + Dice and cross-entropy, by both "
            "measures. They are still overconfident"
        ): lambda: min(calibration(name, FEW).low for name in ("nacl", "svls", CE)) > 0,
        "With a temperature each, NACL is not shown to be better than cross-entropy": lambda: (
            {change("nacl+T", "cross_entropy+T", FEW, of) for of in PREDICTED} == {0}
        ),
        "**SVLS is the best of the four,** without and with a temperature": lambda: all(
            sign(f"svls{end}", name + end, FEW, "nll_predicted") < 0
            for end in ("", "+T")
            for name in (DICE, CE, "nacl")
        ),
        (
            "Over all voxels, no loss was shown to be better than cross-entropy; where networks "
            "overfit, SVLS was"
        ): lambda: (
            no_penalty_has_a_lower_nll()
            and no_penalty_is_better_in_3d(["nll_all"])
            and sign("svls", CE, FEW, "nll_all") < 0
        ),
        "CE + Dice is overconfident": lambda: (
            temperatures(DICE)[0] > temperatures("l1_ace")[1] > 1.2
        ),
        "are underconfident, each at one untuned setting": lambda: all(
            max(temperatures(name)) < 0.75 for name in UNDERCONFIDENT
        ),
        "and NACL on the softmax (0.99 to 1.04) need none": lambda: all(
            map(needs_none, CALIBRATED)
        ),
        "raised the NLL where a structure is predicted for NACL": lambda: all(
            sign(f"{name}+T", name, "lge", "nll_predicted") > 0 for name in UNDERCONFIDENT
        ),
        "**Over all voxels**, no penalty has a significantly lower NLL": no_penalty_has_a_lower_nll,
        "FL, LS, MbLS and NACL have a higher one on ACDC, and all but MbLS on bSSFP": lambda: (
            changes(UNDERCONFIDENT, CE, ["acdc"], ["nll_all"]) == {1}
            and {name for name in UNDERCONFIDENT if change(name, CE, "bssfp", "nll_all") == 0}
            == {"mbls"}
        ),
        (
            "have a significantly lower NLL on LGE, NACL and ECP a lower ECE; on ACDC and bSSFP "
            "none has"
        ): lambda: (
            underconfident_ones_are_better_on_lge()
            and not any(lowest(CE, name, of) for name in ("acdc", "bssfp") for of in PREDICTED)
        ),
        "**NACL on the softmax** differs significantly in nothing": lambda: (
            changes(["nacl_softmax"], CE, SETS, ("nll_all", *PREDICTED, "dsc")) == {0}
        ),
        "**On LGE,** over all voxels, none is better": lambda: (
            lowest(DICE_T, "lge", "nll_all") == set()
        ),
        "FL has a significantly lower NLL, LS, MbLS and NACL a lower ECE": lambda: (
            [lowest(DICE_T, "lge", measure) for measure in PREDICTED]
            == [{"focal"}, {"label_smoothing", "mbls", "nacl"}]
        ),
        "**DSC:** none differs significantly, on any test set": lambda: (
            changes((*LOSSES, "l1_ace"), DICE, SETS, ["dsc"])
            | changes(PENALTIES, CE, SETS, ["dsc"])
            == {0}
        ),
        "**L1-ACE** lowers the ECE of CE + Dice": lambda: (
            (
                sign("l1_ace", DICE, "acdc", "ece_predicted"),
                sign("l1_ace", DICE, "lge", "ece_predicted"),
            )
            == (-1, 0)
            and change("l1_ace", DICE_T, "lge", "nll_all") > 0
        ),
        "none differs significantly from CE + Dice in the gap closed": lambda: (
            {
                change(f"{name}{end}", f"{DICE}{end}", place, "gap_closed")
                for name in (*LOSSES, "l1_ace")
                for end in ("", "+T")
                for place in SETS
            }
            == {0}
        ),
        "**The value** follows the confidence": lambda: all(
            sign("nacl", CE, place, "dsc_bias") < 0 < sign("nacl+T", "nacl", place, "dsc_bias")
            for place in SETS
        ),
        "is not bound by it": lambda: sign("ensemble_of_ce_dice", DICE, "acdc", "dsc") > 0,
        "Averaging makes NACL more underconfident": lambda: all(
            gap("ensemble_of_nacl", name) < gap("nacl", name) for name in SETS
        ),
        "Temperatures point the same way as in the heart": lambda: (
            temperatures(DICE, "chaos")[0] > 1 > temperatures("nacl", "chaos")[0]
        ),
        "SVLS and NACL have a lower DSC than CE + Dice": lambda: all(
            sign(name, DICE, "chaos", "dsc") < 0 for name in ("svls", "nacl")
        ),
    },
    "results": {
        "it lowered the NLL over all voxels by": lambda: all(
            sign(DICE_T, DICE, name, "nll_all") < 0 for name in SETS
        ),
        (
            "On ACDC and bSSFP, no penalty had a significantly lower NLL than cross-entropy, nor a "
            "lower calibration error where a structure is predicted"
        ): lambda: -1 not in changes(PENALTIES, CE, ("acdc", "bssfp"), ("nll_all", *PREDICTED)),
        (
            "the NLL over all voxels of no penalty differs significantly from that of cross-entropy"
        ): no_penalty_differs_on_lge,
        "So it is with [networks of two hospitals]": lambda: (
            corrected_heart("nacl", CE, "LGE") > 0.05
        ),
        "three networks of each loss": lambda: (
            {
                results("cases").loc[("acdc", name), "seed"].nunique()
                for name in (*LOSSES, "ce_dice", "l1_ace")
            }
            == {3}
        ),
        "Test patients are 16 others of ACDC": lambda: (
            [results("cases").loc[(name, "nacl"), "patient"].nunique() for name in SETS]
            == [16, 20, 20]
        ),
        "or cross-entropy, which hardly needed one": lambda: max(temperatures(CE)) < 1.1,
        "With a temperature each, their NLL over all voxels of ACDC differs by": lambda: (
            (sign("cross_entropy+T", DICE_T, "acdc", "nll_all"), sign(CE, DICE, "acdc", "dsc"))
            == (0, 0)
        ),
        "**NACL is less sure there:**": lambda: (
            no_penalty_has_a_lower_nll(SHIFTED) and gap("nacl", "lge") < gap(CE, "lge")
        ),
        (
            "the average of three networks had a lower NLL and a higher DSC than its networks in "
            "the mean"
        ): lambda: (
            len(ensemble_gains()) == 15
            and ensemble_gains()["nll"].max() < 1
            and ensemble_gains()["dsc"].min() > 0
        ),
        "all voxels was lower than that of one network, by": lambda: all(
            sign("ensemble_of_ce_dice+T", DICE_T, name, "nll_all") < 0 for name in SETS
        ),
        "On LGE, it closed": lambda: all(
            closed("label_smoothing") <= closed(name + end) <= closed(DICE_T)
            for name in (*LOSSES, DICE, "l1_ace")
            for end in ("", "+T")
        ),
        "costs an NLL of 0.025": lambda: round(-np.log(1 - 0.1 / 4), 3) == 0.025,
        "On few patients without augmentation, SVLS had": lambda: (
            {sign("svls", CE, FEW, of) for of in ("nll_all", *PREDICTED)} == {-1}
        ),
    },
    "README": {
        (
            "Averaging three networks of hearts helped everywhere: NLL 7 to 13 % lower on average"
        ): lambda: (
            len(ensemble_gains()) == 15
            and (round(100 * (1 - ensemble_gains()["nll"])).agg(["min", "max"]) == [7, 13]).all()
            and ensemble_gains()["dsc"].between(0.005, 0.0145).all()
        ),
        "where networks overfit, SVLS was": lambda: all(
            sign(f"svls{end}", f"cross_entropy{end}", FEW, "nll_all") < 0 for end in ("", "+T")
        ),
        (
            "+ Dice made networks too sure, in 2D and 3D. A temperature reduced that on all test "
            "sets"
        ): lambda: all(gap(DICE, name) > gap(DICE_T, name) > 0 for name in (*SETS, TASK04)),
        "At home, cross-entropy was hardly too sure, and no penalty shown to be better": lambda: (
            max(temperatures(CE)) < 1.1
            and -1 not in changes(PENALTIES, CE, ["acdc"], ("nll_all", *PREDICTED))
            and no_penalty_is_better_in_3d()
            and 1 not in changes(PENALTIES, CE, ["acdc"], ["dsc"])
        ),
        (
            "As trained, NACL, the paper's loss, was less sure of another sequence, not shown to be"
            " better"
        ): lambda: gap("nacl", "lge") < gap(CE, "lge") and sign("nacl", CE, "lge", "nll_all") == 0,
    },
    "quality": {
        "the order is right, too. The value is too high by 0.09 and 0.07 on the 22 test": lambda: (
            all(order_of("ce_dice", name, "expected DSC").low > 0 for name in GLIOMA_SETS)
            and [
                round(rows_of("ce_dice", T, name).eval("expected_dsc - dsc").mean(), 2)
                for name in GLIOMA_SETS
            ]
            == [0.09, 0.07]
        ),
    },
    "paper": {
        "The paper ranks NACL first of seven losses on each data set": lambda: (
            {published_rank_on(name) for name in ("flare", "acdc", "brats")} == {1}
        ),
        "trained with augmentation, NACL is sixth by the same sum-rank": lambda: (
            rank("nacl", "acdc") == 6
        ),
        "its ECE is below that of CE + Dice, its CECE is above, and its DSC is no higher": lambda: (
            [sign("nacl", DICE, "acdc", name) for name in ("ece", "cece", "dsc")] == [-1, 1, 0]
        ),
        (
            "On both, its ECE is lower than that of CE + Dice, ECP and SVLS, but FL and LS have a "
            "lower one, and CE + Dice has the highest DSC"
        ): lambda: all(
            {sign("nacl", name, home, "ece") for name in (DICE, "entropy_penalty", "svls")} == {-1}
            and {*means_of(home, "ece").nsmallest(2).index} == {"focal", "label_smoothing"}
            and means_of(home, "dsc").idxmax() == DICE
            for home in (AUTHORS, ABDOMEN)
        ),
        (
            "By the sum-rank, NACL and MbLS share the second place on bSSFP and the third on LGE"
        ): lambda: (
            [rank(loss, name) for name in SHIFTED for loss in ("nacl", "mbls")] == [2, 2, 3, 3]
        ),
        "192 x 192 without a crop: 40 epochs in bfloat16": lambda: (
            {*pd.read_csv(ROOT / "study/results/abdomen/authors/cells.csv")["epochs"]} == {40}
            and Network("authors", "nacl", 0).options["bfloat16"]
        ),
        "augmentation, crop and schedule are theirs on ACDC": lambda: (
            {*pd.read_csv(ROOT / "study/results/acdc/authors/cells.csv")["epochs"]} == {100}
        ),
        "Its mean case rank is the lowest": lambda: (
            min(TABLE1, key=lambda name: float(numbers(f"case_rank {name} {AUTHORS}")[0])) == "nacl"
        ),
        "**NACL's ECE is below those of CE + Dice, ECP and SVLS and above that of LS.**": lambda: (
            {name: change(name, "nacl", ABDOMEN, "ece") for name in TABLE1[:-1]}
            == dict.fromkeys(TABLE1[:-1], 0)
            | {DICE: 1, "entropy_penalty": 1, "svls": 1, "label_smoothing": -1}
        ),
        "Against CE + Dice, its DSC is lower and its CECE higher": lambda: (
            [change(DICE, "nacl", ABDOMEN, name) for name in ("dsc", "cece")] == [1, -1]
        ),
        "**NACL's logits are the smallest,** as in the paper's Fig. 2": lambda: (
            mean_magnitudes().idxmin(axis=1) == "nacl"
        ).all(),
        "the larger the less confident they are": lambda: (
            if_true("label_smoothing")
            > if_true("nacl")
            > if_true("mbls")
            > if_true("svls")
            > if_true(DICE)
        ),
        (
            "NACL has a lower NLL than CE + Dice and cross-entropy, also than CE + Dice with a "
            "temperature"
        ): lambda: (
            {sign("nacl", name, FEW, "nll_predicted") for name in (DICE, CE, DICE_T)} == {-1}
        ),
        (
            "NACL is not shown to differ from CE + Dice with a temperature, and cross-entropy is "
            "calibrated"
        ): lambda: all(
            sign("nacl", DICE_T, name, "nll_predicted") == 0
            and calibration(CE, name).low < 0 < calibration(CE, name).high
            for name in ("acdc", TASK04)
        ),
        (
            "NACL's CECE is lower than that of CE + Dice on ACDC in the authors' regime alone, and "
            "its DSC is not higher in any"
        ): lambda: (
            [sign("nacl", DICE, name, "cece") for name in REGIMES] == [1, 1, 1, -1]
            and all(sign("nacl", DICE, name, "dsc") <= 0 for name in REGIMES)
        ),
        "NACL is first by the same sum-rank on ACDC, by 1, not by 8": lambda: (
            [lead(kind) for kind in ("rank", "paper_rank")] == [1, 8]
        ),
        "Over resampled test patients, its sum-rank is the lowest in fewer than half": lambda: (
            0.3 < share_of_first_places("nacl") < 0.5
        ),
        "NACL's CECE is lower than that of each other loss": lambda: all(
            sign("nacl", name, AUTHORS, "cece") < 0 for name in TABLE1[:-1]
        ),
        "**NACL does not lead here.** Its sum-rank is third, behind CE + Dice and MbLS": lambda: (
            [rank(name, ABDOMEN) for name in ("mbls", "nacl")] == [2, 3]
            and rank("ce_dice", ABDOMEN) == 1 == published_rank_on("flare")
        ),
        (
            "the sum-ranks of both columns add up to 26 of NACL and of CE + Dice, and to 29 of "
            "MbLS; the paper's to 9, 35 and 33"
        ): lambda: (
            [sum_of_columns("rank", name) for name in ("nacl", DICE, "mbls")] == [26, 26, 29]
            and [sum_of_columns("paper_rank", name) for name in ("nacl", DICE, "mbls")]
            == [9, 35, 33]
            and min(sum_of_columns("rank", name) for name in TABLE1) == 26
        ),
        "Its DSC is third, its HD95 sixth; in the paper, both are first": lambda: (
            means_of(AUTHORS, "dsc").rank(ascending=False)["nacl"] == 3
            and means_of(AUTHORS, "hd95").rank()["nacl"] == 6
            and PUBLISHED.loc["acdc"].loc[TABLE1, "hd95"].idxmin() == "nacl"
            and PUBLISHED.loc["acdc"].loc[TABLE1, "dsc"].idxmax() == "nacl"
        ),
        "SVLS has the lowest NLL over all voxels,** as on the hippocampus": lambda: (
            {means_of(AUTHORS, "nll_all", end).idxmin() for end in ("", "+T")} == {"svls", "svls+T"}
            and sign("svls", CE, FEW, "nll_all") < 0
        ),
        "| no, the softmax is lower |": lambda: (
            [sign("nacl_softmax", "nacl", "acdc", name) for name in ("ece", "cece")] == [0, -1]
        ),
        "for squared minus absolute | yes |": lambda: sign("nacl_l2", "nacl", "acdc", "ece") > 0,
        "for 5 x 5 minus 3 x 3 | not shown |": lambda: sign("nacl_5x5", "nacl", "acdc", "ece") == 0,
        "higher, 0.003 lower | not shown |": lambda: (
            {sign(f"nacl_{name}", "nacl", "acdc", "ece") for name in PRIORS} == {0}
            and [np.sign(difference(f"nacl_{name}", "nacl", "acdc", "ece").mean) for name in PRIORS]
            == [1, 1, 1, -1]
        ),
    },
}


@functools.cache
def words(page: str) -> str:
    folders = (ROOT, ROOT / "docs", ROOT / "study" / "pages")
    (file,) = (file for folder in folders if (file := folder / f"{page}.md").is_file())
    text = re.sub("<!--.*?-->", "", file.read_text())
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("page", "claim"), [(page, claim) for page, claims in CLAIMS.items() for claim in claims]
)
def test_claims_hold(page: str, claim: str) -> None:
    assert claim in words(page)
    assert CLAIMS[page][claim]()


@pytest.mark.parametrize("page", ["results", "evidence", "paper"])
def test_each_number_has_a_source(page: str) -> None:
    """Numbers with decimals and percentages are in a table, or in a paragraph that says where they
    are from.
    """
    *parts, last = TEXT.split(TABLE.sub("", (ROOT / f"study/pages/{page}.md").read_text()))
    without = [re.split(r"\n\n|\n- ", text) for text in parts[::3]]
    for paragraph in (
        part
        for paragraphs in [*(each[:-1] for each in without), last.split("\n\n")]
        for part in paragraphs
    ):
        assert not NUMBER.findall(paragraph), paragraph
