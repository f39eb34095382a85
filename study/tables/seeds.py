"""What changed when the seeds of two losses became blocks, on 2 December 2026.

Until then, seeds of two losses were taken as independent. They are not: networks of a seed start
from the same weights and see the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from calib_tools.report.statistics import LEVEL, Array
from study.compare.statistics import by_patient, paired_difference
from study.heart.tables import networks_on
from study.raters.tables import brains
from study.tables.fill_tables import values_of_cases
from study.tables.networks import markdown, text

COLUMNS = ("blocks", "independent", "means of seeds alone")


def independent(values: Array, reference: Array, patients: Sequence[str]) -> tuple[float, float]:
    """Return the interval of a difference of means if the seeds of both are independent.

    Args:
        values: A measure of cases, `(seeds, cases)`, without NaN.
        reference: That of the other method.
        patients: The patient of each case.
    """
    tables = [by_patient(table, patients) for table in (values, reference)]
    parts, degrees, residual = [], [], 0.0
    for table in tables:
        parts.append(table.mean(1).var(ddof=1) / len(table))
        degrees.append(len(table) - 1)
        left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        residual += (left**2).sum() / np.subtract(table.shape, 1).prod() / table.size
    of_patients = tables[0].mean(0) - tables[1].mean(0)
    parts.append(of_patients.var(ddof=1) / of_patients.size)
    degrees.append(of_patients.size - 1)
    variance = max(sum(parts) - residual, parts[2], parts[0] + parts[1])
    freedom = variance**2 / (np.square(parts) / degrees).sum()
    low, high = stats.t.interval(LEVEL, freedom, of_patients.mean(), variance**0.5)
    return float(low), float(high)


def of_seeds(values: Array, reference: Array) -> tuple[float, float]:
    """Return the t interval of the mean differences of seeds."""
    means = (values - reference).mean(1)
    low, high = stats.t.interval(LEVEL, len(means) - 1, means.mean(), stats.sem(means))
    return float(low), float(high)


def cells(values: Array, reference: Array, patients: Sequence[str]) -> list[str]:
    """Return the mean difference with its interval of blocks, and the other two intervals."""
    others = independent(values, reference, patients), of_seeds(values, reference)
    blocks = text(paired_difference(values, reference, patients), "+")
    return [blocks, *(f"[{low:+.4f}, {high:+.4f}]" for low, high in others)]


def values_of(source: str) -> tuple[Array, Array, list[str]]:
    """Return the values of both methods and the patients.

    Args:
        source: `nacl+T - svls+T lge nll_all`, of the comparisons of losses; `heart nacl+T -
            cross_entropy+T acdc nll_all`; or `raters nacl mean - nacl majority nll_all`.
    """
    kind, *words = source.split()
    one, other = " ".join(words).split(" - ") if kind in ("heart", "raters") else ("", "")
    if kind == "heart":
        other, name, measure = other.split()
        networks = networks_on(name)
        settings: list[Any] = [each.partition("+")[::2] for each in (one, other)]
    elif kind == "raters":
        *rest, measure = other.split()
        networks = brains()
        settings = [(*each[1::-1], len(each) > 2) for each in (one.split(), rest)]
    else:
        _, reference, test_set, measure = words
        (values, patients), (others, _) = (
            values_of_cases(each, test_set, measure) for each in (kind, reference)
        )
        return values, others, patients
    values, others = (networks.values(setting, measure) for setting in settings)
    return values, others, networks.patients


def changed_table(*sources: str) -> str:
    """Return differences with their three intervals, see `values_of`."""
    return markdown({source: cells(*values_of(source)) for source in sources}, COLUMNS)
