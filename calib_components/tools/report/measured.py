"""What was measured, as the sections of a report read it: evaluations of methods on the same cases."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calib_components.errors import reading
from calib_components.metrics import CalibrationBins
from calib_components.tools.report.statistics import (
    Array,
    Difference,
    holm,
    mean_of_defined,
    paired_difference,
)

__all__ = ["TOLERANCE", "WHERE_SEVERAL", "Comparison", "Evaluation", "Method", "Run", "same_cases"]

T = TypeVar("T", bound=Hashable)
TOLERANCE = 1e-6  # of values in files
CONCLUDED = ("nll_all", "ece_all", "ece_predicted")
WHERE_SEVERAL = "patients, and seeds where a method has several"  # what intervals are over
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network evaluated on some cases: the files of one evaluation.

    Attributes:
        folder: Folder that it was read from.
        patients: The patient of each case.
        cases: Names of the cases.
        columns: `(cases,)` for each column of `cases.csv`, NaN where a measure is undefined.
        missed: The case of each structure that only the ground truth has.
        spurious: The case of each structure that only the prediction has.
        regions: Bins of the predicted class in each region, by its name: of each case, `(cases, bins)`, over all voxels
            and the predicted foreground, else pooled over cases, `(1, bins)`; none in evaluations of label maps.
    """

    folder: Path
    patients: dict[str, str]
    cases: list[str]
    columns: dict[str, Array]
    missed: list[str]
    spurious: list[str]
    regions: dict[str, CalibrationBins]

    def picture(self, name: str) -> bytes | None:
        """Return a picture of the folder, such as "cases/best.png"; None where it was not kept.

        Raises:
            InputError: The file is no picture.
        """
        if not (self.folder / name).exists():
            return None
        with reading(self.folder / name, "a PNG file") as file:
            content = file.read_bytes()
            if not content.startswith(PNG) or len(content) < 24:
                raise ValueError(f"{len(content)} bytes of something else")
            return content


def same_cases(evaluation: Evaluation, other: Evaluation) -> set[str]:
    """Return the cases of two evaluations that have the same name and, where known, the same voxels and volumes."""
    names = {*evaluation.cases} & {*other.cases}
    volumes = [name for name in evaluation.columns if name.startswith("true_volume_") and name in other.columns]
    counts = [_voxels(each) for each in (evaluation, other)]
    known = all(count is not None for count in counts)
    here, there = (
        {
            case: np.array([*(each.columns[name][i] for name in volumes), *(count[i : i + 1] if known else ())])
            for i, case in enumerate(each.cases)
        }
        for each, count in zip((evaluation, other), counts, strict=True)
    )
    return {case for case in names if np.allclose(here[case], there[case], rtol=TOLERANCE, atol=0, equal_nan=True)}


def _voxels(evaluation: Evaluation) -> Any:
    """Return the number of voxels of each case, `(cases,)`; None where all voxels were not measured."""
    bins = evaluation.regions.get("all")
    return None if bins is None else bins.count.sum(1).numpy()


@dataclass(frozen=True, eq=False)
class Run:
    """Evaluations whose cases are joined: those of one network, or of the networks of all folds.

    Attributes:
        evaluations: What was measured.
    """

    evaluations: Sequence[Evaluation]

    @property
    def cases(self) -> list[str]:
        """Names of the cases."""
        return [case for evaluation in self.evaluations for case in evaluation.cases]

    @property
    def patients(self) -> list[str]:
        """The patient of each case."""
        return [evaluation.patients[case] for evaluation in self.evaluations for case in evaluation.cases]

    @cached_property
    def columns(self) -> dict[str, Array]:
        """`(cases,)` for each column of `cases.csv`, NaN where a measure is undefined."""
        tables = [evaluation.columns for evaluation in self.evaluations]
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    @property
    def structures(self) -> list[str]:
        """Names of the structures that are segmented."""
        return [name.removeprefix("dsc_") for name in self.columns if name.startswith("dsc_")]

    def with_columns(self, *measures: str) -> list[str]:
        """Return the structures that have a column of each of these measures."""
        return [name for name in self.structures if all(f"{measure}_{name}" in self.columns for measure in measures)]

    def values(self, measure: str) -> Array:
        """Return a column, `(cases,)`; for `dsc` and `hd95`, the mean over the structures that have a value."""
        if measure in self.columns:
            return self.columns[measure]
        return mean_of_defined([self.columns[f"{measure}_{name}"] for name in self.structures])

    def comparable(self, measure: str) -> Array:
        """As `values`, but the DSC is 1 where there is nothing to find and nothing is found."""
        values = self.values(measure)
        return np.where(np.isnan(values), 1, values) if measure == "dsc" else values

    @property
    def finds_nothing(self) -> NDArray[np.bool_]:
        """Whether there is nothing to find in a case and nothing is found, `(cases,)`."""
        return np.isnan(self.values("dsc"))

    @property
    def found_in_one(self) -> tuple[float, float]:
        """How many structures only the ground truth has (missed), and only the prediction (spurious)."""
        missed, spurious = (
            sum(len(getattr(evaluation, name)) for evaluation in self.evaluations) for name in ("missed", "spurious")
        )
        return missed, spurious

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Whether no structure of a case is missed or spurious, `(cases,)`."""
        scored = np.array([~np.isnan(self.columns[f"dsc_{name}"]) for name in self.structures])
        measured = np.array([~np.isnan(self.columns[f"hd95_{name}"]) for name in self.structures])
        return (scored == measured).all(0)


@dataclass(frozen=True, eq=False)
class Method:
    """What is compared: all runs of one network or setting.

    Attributes:
        name: Name in files.
        label: Name in tables and figures.
        runs: One for each seed.
    """

    name: str
    label: str
    runs: Sequence[Run]

    @property
    def evaluations(self) -> Sequence[Evaluation]:
        """What was measured, for all runs."""
        return [evaluation for run in self.runs for evaluation in run.evaluations]

    @property
    def variants(self) -> dict[str, Method]:
        """What is drawn of the method, by what its label ends with: the method alone."""
        return {"": self}

    def by_run(self, measure: str) -> Array:
        """Return a column or measure of each run, `(runs, cases)`."""
        return np.stack([run.values(measure) for run in self.runs])

    def values(self, measure: str) -> Array:
        """Return a column or measure as the mean over runs, `(cases,)`, for means over cases."""
        return mean_of_defined(self.by_run(measure))

    def comparable(self, measure: str) -> Array:
        """As `by_run`, for differences and ranks.

        There is no HD95 where a run misses a structure or adds one, and the DSC is 1 where there is nothing to find and
        a run finds nothing: otherwise, a run that adds a structure there would be no worse.
        """
        values = np.stack([run.comparable(measure) for run in self.runs])
        if not measure.startswith("hd95"):
            return values
        return np.where(np.all([run.complete for run in self.runs], axis=0), values, np.nan)

    def expected_and_true(self) -> tuple[Array, Array]:
        """Return the expected and the true DSC of each case, `(cases,)`, over the structures that have both."""
        expected, true = (
            np.stack([self.values(f"{measure}_{name}") for name in self.runs[0].with_columns("expected_dsc")])
            for measure in ("expected_dsc", "dsc")
        )
        both = ~np.isnan(expected) & ~np.isnan(true)
        return mean_of_defined(np.where(both, expected, np.nan)), mean_of_defined(np.where(both, true, np.nan))

    def bins(self, region: str) -> CalibrationBins:
        """Return the bins of a region, of all cases and seeds together, `(1, bins)`."""
        first, *rest = (evaluation.regions[region].pooled() for evaluation in self.evaluations)
        return sum(rest, first)

    def confidence_and_accuracy(self, region: str) -> tuple[Array, Array]:
        """Return the mean confidence and the accuracy of each case, split into bins.

        Args:
            region: "all" or "predicted", of which there are bins of each case.

        Returns:
            Each `(cases, bins)`, mean over seeds: what the voxels of a bin add to the mean over all voxels of the case
            in the region; NaN where it has none.
        """
        confidence, accuracy = [], []
        for run in self.runs:
            of_run = [evaluation.regions[region] for evaluation in run.evaluations]
            count = np.concatenate([bins.count.sum(1, keepdim=True).numpy() for bins in of_run])
            share = np.where(count > 0, 1 / np.maximum(count, 1), np.nan)
            confidence.append(share * np.concatenate([bins.confidence_sum.numpy() for bins in of_run]))
            accuracy.append(share * np.concatenate([bins.num_correct.numpy() for bins in of_run]))
        return mean_of_defined(confidence), mean_of_defined(accuracy)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods that were evaluated on the same cases.

    Attributes:
        methods: Methods in the order in which they are shown.
    """

    methods: Sequence[Method]

    @property
    def first(self) -> Run:
        """A run, for what all have in common."""
        return self.methods[0].runs[0]

    @property
    def patients(self) -> list[str]:
        """The patient of each case."""
        return self.first.patients

    @property
    def patient_count(self) -> str:
        """How many patients there are, as text; or cases, if each is its own patient."""
        count, kind = len(set(self.patients)), "case" if self.patients == self.first.cases else "patient"
        return f"1 {kind}" if count == 1 else f"{count} {kind}s"

    @property
    def has_several_runs(self) -> bool:
        """Whether a method has several runs, so that intervals are over them, too."""
        return any(len(method.runs) > 1 for method in self.methods)

    @property
    def resampled(self) -> str:
        """What intervals are over, as text."""
        several = [len(method.runs) > 1 for method in self.methods]
        if all(several):
            return "seeds and patients"
        return WHERE_SEVERAL if any(several) else "patients"

    @property
    def has_regions(self) -> bool:
        """Whether all voxels and the predicted foreground were measured."""
        bins = {"all", "predicted"} <= self.first.evaluations[0].regions.keys()
        return bins and {"ece_all", "ece_predicted"} <= self.first.columns.keys()

    def measured(self, measures: Iterable[str]) -> list[str]:
        """Return which of some measures there are."""
        return [name for name in measures if name in self.first.columns or name in ("dsc", "hd95")]

    def differences(self, measure: str, reference: Method) -> dict[Method, tuple[Difference, float]]:
        """Compare every other method with the reference on the same cases.

        Returns:
            For each, the difference to the reference and the p-value after Holm's correction: over the methods, and for
            a measure that a conclusion is drawn from also over the others of these, see `concluded`.
        """
        others = [method for method in self.methods if method is not reference]
        return self.corrected(
            [measure],
            others,
            lambda name, method: paired_difference(method.comparable(name), reference.comparable(name), self.patients),
        )[measure]

    def corrected(
        self, measures: Sequence[str], compared: Sequence[T], difference: Callable[[str, T], Difference]
    ) -> dict[str, dict[T, tuple[Difference, float]]]:
        """Return differences with p-values after Holm's correction.

        They are corrected over what is compared, and those of the measures that a conclusion is drawn from, see
        `concluded`, also over these measures, even those that are not asked for.

        Args:
            measures: The measures.
            compared: What is compared, such as methods.
            difference: Gives the difference of a measure.

        Returns:
            For each measure and all that is compared, the difference and its p-value.
        """
        concluded = self.concluded
        together = concluded if any(measure in concluded for measure in measures) else []
        found: dict[tuple[str, T], tuple[Difference, float]] = {}
        for family in (together, *([measure] for measure in measures if measure not in concluded)):
            differences = {(name, of): difference(name, of) for name in family for of in compared}
            adjusted = holm([each.p_value for each in differences.values()]).tolist()
            found.update(zip(differences, zip(differences.values(), adjusted, strict=True), strict=True))
        return {measure: {of: found[measure, of] for of in compared} for measure in measures}

    @property
    def concluded(self) -> list[str]:
        """Measures that a conclusion about calibration is drawn from, the proper score first."""
        return [measure for measure in CONCLUDED if measure in self.first.columns] if self.has_regions else []
