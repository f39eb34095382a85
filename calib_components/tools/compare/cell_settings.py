"""`settings.json` of a cell: what it is made with, and what keeps two cells from being compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from calib_components.errors import InputError, reading, writing
from calib_components.handlers.fingerprint import differing

__all__ = [
    "OWN",
    "CellSettings",
    "Condition",
    "cell_name",
    "check_fields",
    "is_count",
    "is_name",
    "is_set_name",
    "is_texts",
    "read_json",
    "read_settings",
    "write_settings",
]


class Condition(NamedTuple):
    """What a trained network is evaluated on, and whether its logits are divided by its temperature.

    Attributes:
        test_set: Name of a further test set; empty for the split that is compared.
        scaled: Whether with the temperature that was fitted on its own validation split, or on those of all folds.
    """

    test_set: str = ""
    scaled: bool = False

    @property
    def folder(self) -> str:
        """Its folder in that of the cell, such as "on_scanner/temperature"; empty for the cell's own."""
        return "/".join([*([f"on_{self.test_set}"] * bool(self.test_set)), *(["temperature"] * self.scaled)])


OWN = Condition()


@dataclass(frozen=True)
class CellSettings:
    """What a cell is made with: the content of its `settings.json`.

    Attributes:
        method: Name of the method.
        label: Name of the method in tables and figures.
        seed: Seed of the training.
        bundle: Name of the bundle's folder.
        datalist: SHA-256 of the list of prepared cases.
        patients: The patient of each case that is evaluated.
        training: Fingerprint of the training.
        evaluation: Fingerprint of the evaluation.
        overrides: Options whose effect the fingerprints do not show, as they were given.
        commands: The commands that train and evaluate.
        made_with: Versions and device, once the cell is finished.
        fold: Number of the fold that is evaluated, from 0; None without cross-validation.
        folds: Number of folds; None without cross-validation.
        calibration: Split and region that the temperature is fitted on, and the number of folds if it is that of all;
            empty without a temperature, or as long as not all folds are finished.
        evaluate_on: Further test sets by their names: the SHA-256 of the list of prepared cases, `datalist`, the
            fingerprint of what these hold, `cases`, and the patient of each case, `patients`.
        cases: Fingerprint of what the prepared cases hold; None where it was not recorded.
    """

    method: str
    label: str
    seed: int
    bundle: str
    datalist: str
    patients: dict[str, str]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    overrides: dict[str, Any]
    commands: list[str]
    made_with: dict[str, str]
    fold: int | None = None
    folds: int | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    evaluate_on: dict[str, dict[str, Any]] = field(default_factory=dict)
    cases: str | None = None

    @property
    def folder(self) -> str:
        """Its folder in those of the results and the work."""
        return f"{self.method}/seed{self.seed}" + ("" if self.fold is None else f"_fold{self.fold}")

    @property
    def name(self) -> str:
        """Its name in messages."""
        return cell_name(self.method, self.seed, self.fold)

    @property
    def conditions(self) -> list[Condition]:
        """What its network is evaluated on."""
        scaled = (False, True) if self.calibration else (False,)
        return [Condition(name, with_temperature) for name in ("", *self.evaluate_on) for with_temperature in scaled]

    def patients_of(self, test_set: str) -> dict[str, str]:
        """Return the patient of each case of a test set, or of the split that is compared if the name is empty."""
        return self.evaluate_on[test_set]["patients"] if test_set else self.patients

    def changes(self, other: CellSettings, evaluated: bool) -> list[str]:
        """Return what another run of the same cell would do differently.

        Args:
            other: Settings of the other run.
            evaluated: Whether the evaluation counts, too. Test sets that only one of the runs has do not.
        """
        parts = ("training", "evaluation", "overrides") if evaluated else ("training", "overrides")
        data = ["the data"] if self.datalist != other.datalist or _known_to_differ(self.cases, other.cases) else []
        if evaluated:
            data += [*self._other_calibration(other), *self._other_test_sets(other)]
        return _unique(data, *(differing(getattr(self, part), getattr(other, part)) for part in parts))

    def differences(self, other: CellSettings) -> list[str]:
        """Return what keeps two cells from being compared: all that differs except the loss, the seed and the fold."""
        here, there = ({**cell.training, "loss": None, "seed": None} for cell in (self, other))
        data = ("bundle", "folds", "datalist") if self.fold == other.fold else ("bundle", "folds")
        return _unique(
            [name for name in data if getattr(self, name) != getattr(other, name)],
            ["cases"] if _known_to_differ(self.cases, other.cases) else [],
            differing(self.evaluation, other.evaluation),
            differing(here, there),
            differing(self.overrides, other.overrides),
            self._other_calibration(other) if self.folds == other.folds else [],
            self._other_test_sets(other),
        )

    def _other_calibration(self, other: CellSettings) -> list[str]:
        """Return whether the temperature is fitted on others, unless this follows from what is evaluated.

        A finished fold may not have its temperature yet.
        """
        to_come = self.folds is not None and {} in (self.calibration, other.calibration)
        same = self.calibration == other.calibration or self.evaluation != other.evaluation
        return [] if same or to_come else ["calibration"]

    def _other_test_sets(self, other: CellSettings) -> list[str]:
        """Return which test sets of the same name have other data."""
        both = [
            (name, self.evaluate_on[name], other.evaluate_on[name])
            for name in self.evaluate_on.keys() & other.evaluate_on
        ]
        return sorted(
            f"test set {name}"
            for name, here, there in both
            if {**here, "cases": None} != {**there, "cases": None}
            or _known_to_differ(here.get("cases"), there.get("cases"))
        )


def _known_to_differ(here: str | None, there: str | None) -> bool:
    """Whether two fingerprints differ; one that was not recorded may be the same."""
    return None not in (here, there) and here != there


def cell_name(method: str, seed: int, fold: int | None) -> str:
    """Return the name of a cell in messages, such as "nacl, seed 0, fold 2"."""
    return f"{method}, seed {seed}" + ("" if fold is None else f", fold {fold}")


def _unique(*lists: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def write_settings(settings: CellSettings, folder: Path) -> None:
    """Write `settings.json`, with one setting per line.

    Raises:
        InputError: It cannot be written.
    """
    texts = {
        name: _lines(value) if name in ("training", "evaluation", "commands", "evaluate_on") else json.dumps(value)
        for name, value in asdict(settings).items()
    }
    lines = ",\n".join(f" {json.dumps(name)}: {text}" for name, text in texts.items())
    with writing(folder / "settings.json") as file:
        file.write_text(f"{{\n{lines}\n}}\n")


def _lines(value: dict[str, Any] | list[Any]) -> str:
    if not value:
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ",".join(f"\n  {json.dumps(part)}" for part in value) + "\n ]"
    return "{" + ",".join(f"\n  {json.dumps(name)}: {json.dumps(part)}" for name, part in value.items()) + "\n }"


def read_settings(folder: Path) -> CellSettings:
    """Read `settings.json`. Nothing in it is evaluated.

    Raises:
        InputError: The file is missing or broken.
    """
    file = folder / "settings.json"
    content = read_json(file)
    required = [field.name for field in fields(CellSettings) if field.default is field.default_factory is MISSING]
    check_fields(content, required, CHECKS, str(file))
    fold, folds = content.get("fold"), content.get("folds")
    if (fold is None) != (folds is None) or (fold is not None and fold >= folds):
        raise InputError(f"{file}: expected fold and folds such as 0 of 5, got {fold} of {folds}")
    return CellSettings(**{name: content[name] for name in CHECKS if name in content})


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 0."""
    return type(value) is int and value >= 0


def is_name(value: Any) -> bool:
    """Whether a value is a name: some text of one line."""
    return isinstance(value, str) and value != "" and value.isprintable()


def is_set_name(value: Any) -> bool:
    """Whether a value can name a test set: it is a part of the names of folders and files."""
    return isinstance(value, str) and re.fullmatch(r"[\w-][\w.-]{0,63}", value) is not None


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _are_test_sets(value: Any) -> bool:
    return _is_dict(value) and all(
        is_set_name(name)
        and _is_dict(data)
        and isinstance(data.get("datalist"), str)
        and _are_texts(data.get("patients"))
        for name, data in value.items()
    )


Checks = Mapping[str, tuple[str, Callable[[Any], bool]]]
CHECKS: Checks = {
    "method": ("a name of one line", is_name),
    "label": ("a name of one line", is_name),
    "seed": ("a whole number of at least 0", is_count),
    "bundle": ("text", lambda value: isinstance(value, str)),
    "datalist": ("text", lambda value: isinstance(value, str)),
    "patients": ("the patient of each case", _are_texts),
    "training": ("settings by their names", _is_dict),
    "evaluation": ("settings by their names", _is_dict),
    "overrides": ("options by their names", _is_dict),
    "commands": ("a list of commands", is_texts),
    "made_with": ("versions and device by their names", _are_texts),
    "fold": ("a whole number of at least 0 or null", lambda value: value is None or is_count(value)),
    "folds": ("a whole number of at least 2 or null", lambda value: value is None or (is_count(value) and value >= 2)),
    "calibration": ("settings by their names", _is_dict),
    "evaluate_on": ("the datalist and the patients of each test set", _are_test_sets),
    "cases": ("text or null", lambda value: value is None or isinstance(value, str)),
}


def check_fields(content: Any, required: Sequence[str], checks: Checks, name: str) -> None:
    """Check values that were read from a file.

    Args:
        content: Values by their names.
        required: Names that must be there.
        checks: What the value of each name is expected to be; other names are not looked at.
        name: Where they are from, for messages.

    Raises:
        InputError: A value is missing or another one than expected.
    """
    if not isinstance(content, dict):
        raise InputError(f"{name}: expected {', '.join(required)}, got {content!r:.60}")
    if lacking := [key for key in required if key not in content]:
        raise InputError(f"{name}: expected {', '.join(required)}, got no {', '.join(lacking)}")
    for key, (described, is_right) in checks.items():
        if key in content and not is_right(content[key]):
            raise InputError(f"{name}: expected {key} to be {described}, got {content[key]!r:.60}")


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: It is missing or broken, or holds a number that is none.
    """
    with reading(file, "a JSON file"):
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the number {constant}")
