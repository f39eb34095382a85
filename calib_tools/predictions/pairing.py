"""Files of predictions and labels: found in folders, and paired by the name of their case."""

from __future__ import annotations

import csv
import logging
import operator
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib_components.errors import InputError, reading
from calib_tools.predictions.classes import PROBABILITY
from calib_tools.predictions.formats import (
    FORMATS,
    Prediction,
    Reader,
    Volume,
    find_volumes,
    make_reader,
)
from calib_workflows.data.files import LABEL_SUFFIXES
from calib_workflows.data.nifti import Grid, turn_onto
from calib_workflows.parts import ALL, AVERAGE

UNFINISHED = ".unfinished-calibration"  # in a folder while calibrated maps replace others there
UNCERTAINTY = "_uncertainty"
SHOWN = 5  # of many names in a message


@dataclass(frozen=True)
class LabelledPrediction:
    """The prediction of a case, and its label by each rater; of one rater without a name, by ""."""

    name: str
    prediction: Prediction
    labels: Mapping[str, Reader]
    patient: str = ""  # if a table of pairs names it

    @property
    def label(self) -> Reader:
        """The first label, on whose voxels the case is measured."""
        return next(iter(self.labels.values()))

    def grid(self) -> Grid:
        """Return where the voxels of the label lie; if its files do not say it, those of the
        prediction do. Where no file says it, voxels have sides of 1 mm.
        """
        label, prediction = self.label.header(), self.prediction.first.header()
        affine = prediction.affine if label.affine is None else label.affine
        return Grid(np.eye(4) if affine is None else affine, label.shape, self.label.file)


def find_pairs(
    predictions: Mapping[str, Path], raters: Mapping[str, Path], table: Path | None = None
) -> list[LabelledPrediction]:
    """Find the predictions of one network or several, and the labels of each case, sorted by name,
    and check by the files' headers that they have the same voxels.

    Labels without a prediction are left out. Axes of a prediction may be in another order or
    direction than those of its label. A case needs the label of one of the raters.

    Args:
        predictions: Folder of the predictions of each network, by name.
        raters: Folder of the labels of each rater, by name.
        table: CSV file of the pairs of one network and rater, see `read_pairs`. Default: files of
            the same name are a pair.

    Raises:
        InputError: A prediction has no label, a rater none of the cases, or a file is unsuitable.
    """
    if table is not None:
        (folder,), ((rater, labels),) = predictions.values(), raters.items()
        pairs = read_pairs(table, folder, labels, rater)
    else:
        labels_by_rater = {rater: find_labels(labels) for rater, labels in raters.items()}
        pairs = pair_by_name(find_members(predictions), labels_by_rater)
        _check_labels({pair.name for pair in pairs}, labels_by_rater, raters)
    check_grids(pairs)
    return pairs


def _check_labels(
    cases: Collection[str],
    labels_by_rater: Mapping[str, Mapping[str, Reader]],
    folders: Mapping[str, Path],
) -> None:
    """Refuse a rater who labelled none of the cases, and warn of labels that are left out."""
    left_out = set()
    for rater, labels in labels_by_rater.items():
        if not labels.keys() & cases:
            raise InputError(f"{folders[rater]}: no label has the name of a prediction.")
        left_out |= labels.keys() - cases
    if left_out:
        names = sorted(left_out)[:SHOWN] + ["..."] * (len(left_out) > SHOWN)
        logging.getLogger(__name__).warning(
            "%d case(s) have a label and no prediction, left out: %s",
            len(left_out),
            ", ".join(names),
        )


def read_pairs(
    table: Path, predictions: Path, labels: Path, rater: str = ""
) -> list[LabelledPrediction]:
    """Read which files are a pair from a CSV file with the columns case, prediction and label, and
    perhaps patient.

    Paths are relative to the two folders.
    """
    pairs: dict[str, LabelledPrediction] = {}
    with reading(table, "a table of case, prediction and label") as file:
        if not file.is_file():  # such as a device, which has no end
            raise FileNotFoundError("no such file")
        for row in csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()):
            case, patient = row["case"], row.get("patient") or ""
            _check_row(row, pairs, table)
            prediction = Prediction({"": make_reader(predictions / row["prediction"])})
            label = make_reader(labels / row["label"])
            pairs[case] = LabelledPrediction(case, prediction, {rater: label}, patient)
    if not pairs:
        raise InputError(f"{table} has no rows.")
    _check_pairs(pairs.values(), table)
    return [pairs[case] for case in sorted(pairs)]


def _check_row(row: Mapping[str, str], pairs: Collection[str], table: Path) -> None:
    """Check a row of a table, after those of other cases."""
    case = row["case"]
    if not (case and row["prediction"] and row["label"]):
        raise InputError(f"{table}: a row lacks its case, prediction or label: {row}.")
    if case in pairs or Path(case).name != case or case == "..":
        raise InputError(f"{table}: {case!r} occurs twice, or is no file name.")


def _check_pairs(pairs: Collection[LabelledPrediction], table: Path) -> None:
    """Check that no file is that of two cases, and that all cases have a patient, or none."""
    files = Counter(
        reader.file.resolve()
        for pair in pairs
        for reader in (*pair.labels.values(), *pair.prediction.members.values())
    )
    file, count = files.most_common(1)[0]
    if count > 1:
        raise InputError(f"{table}: {file} stands in {count} places.")
    without = [pair.name for pair in pairs if not pair.patient]
    if 0 < len(without) < len(pairs):
        raise InputError(f"{table}: case {without[0]} has no patient, and others have one.")


def named_patients(pairs: Iterable[LabelledPrediction]) -> dict[str, str]:
    """Return the patients that a table of pairs names, by case."""
    return {pair.name: pair.patient for pair in pairs if pair.patient}


def pair_by_name(
    predictions: Mapping[str, Prediction], labels_by_rater: Mapping[str, Mapping[str, Reader]]
) -> list[LabelledPrediction]:
    """Pair predictions with the labels of the same case, each of which a rater may lack."""
    pairs = []
    for name, prediction in predictions.items():
        labels = {
            rater: labels[name] for rater, labels in labels_by_rater.items() if name in labels
        }
        if not labels:
            raise InputError(
                f"{prediction.file}: no label for {name}. Give each prediction a label of the same"
                " name, or list the pairs in a file for --pairs. Channels lie along the fourth axis"
                " of one file."
            )
        pairs.append(LabelledPrediction(name, prediction, labels))
    return pairs


def read_folders(
    predictions: Path | None,
    labels: Path | None,
    members: Sequence[Path] | None,
    raters: Sequence[Path] | None,
    pairs: Path | None = None,
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the folders of networks and of raters by name; of one, the name is ""."""
    if pairs is not None and (members or raters or not labels):
        raise InputError("--pairs needs one folder of predictions and one of labels.")
    if members and labels is None:  # a folder given alone
        predictions, labels = None, predictions
    networks = _one_or_several("predictions", predictions, "--members", members, AVERAGE)
    if not networks:
        raise InputError("predictions: give a folder, or those of several networks to --members.")
    return networks, _one_or_several("labels", labels, "--raters", raters, ALL)


def name_networks(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders of one network, called "", or of several by name."""
    if len(folders) == 1:
        return {"": folders[0]}
    return _name_folders(folders, "predictions", AVERAGE)


def _one_or_several(
    name: str, folder: Path | None, option: str, folders: Sequence[Path] | None, reserved: str
) -> dict[str, Path]:
    if folder is not None and folders:
        raise InputError(f"{name}: give one folder, or several to {option}.")
    if folders:
        return _name_folders(folders, option, reserved)
    return {} if folder is None else {"": folder}


def _name_folders(folders: Sequence[Path], option: str, reserved: str) -> dict[str, Path]:
    """Return folders by their names, or by their paths where names are equal.

    Raises:
        InputError: There are less than two, two are the same, or one is called like the row of all.
    """
    named = {folder.name: folder for folder in folders}
    if len(named) < len(folders):
        named = {str(folder): folder for folder in folders}
    different = {folder.resolve() for folder in folders}
    if len(different) < max(2, len(folders)) or reserved in named:
        raise InputError(
            f"{option}: give two folders or more, all different and none called {reserved!r}."
        )
    return named


def name_targets(folders: Sequence[Path], networks: Mapping[str, Path]) -> dict[str, Path]:
    """Return the folders of the predictions to scale by the names of the networks of the fit."""
    if len(folders) != len(networks):
        raise InputError(
            f"--apply_to: give {len(networks)} folder(s), as many as there are networks, in their"
            " order."
        )
    return dict(zip(networks, folders, strict=True))


def places_of(networks: Mapping[str, Path], raters: Mapping[str, Path]) -> dict[str, str]:
    """Return folders of predictions and labels as the arguments of a command."""
    places = {}
    for one, several, folders in (
        ("predictions", "members", networks),
        ("labels", "raters", raters),
    ):
        if folders:
            name = one if len(folders) == 1 else several
            places[name] = ",".join(map(str, folders.values()))
    return places


def find_members(folders: Mapping[str, Path]) -> dict[str, Prediction]:
    """Find the predictions of one network, see `find_predictions`, or of several for the same
    cases.
    """
    found = {name: find_predictions(folder) for name, folder in folders.items()}
    cases = next(iter(found.values()))
    for name, readers in found.items():
        if missing := sorted(cases.keys() ^ readers.keys()):
            raise InputError(
                f"{folders[name]} and {next(iter(folders.values()))} hold predictions of other"
                f" cases, such as {missing[0]}. Several networks predict the same ones."
            )
    return {
        case: Prediction({name: readers[case] for name, readers in found.items()}) for case in cases
    }


def find_predictions(folder: Path) -> dict[str, Reader]:
    """Find the predictions in a folder and its subfolders, by the names of their cases, sorted.

    Uncertainty maps are left out. Beside the probabilities of a case, so are its label map, and
    beside those of several channels, a file of one, such as its image.
    """
    if (folder / UNFINISHED).exists():
        raise InputError(
            f"{folder}: a calibration ended while it wrote these predictions, not all of which are"
            " calibrated. Run calibrate_predictions again."
        )
    found = find_volumes(folder, (PROBABILITY, UNCERTAINTY, *LABEL_SUFFIXES))
    volumes = [volume for volume in found if volume.suffix != UNCERTAINTY]
    return _one_for_each_case(_prefer_channels(volumes), folder)


def find_labels(folder: Path) -> dict[str, Reader]:
    """Find the labels in a folder and its subfolders, by the names of their cases, sorted.

    If names end in `_gt`, `_seg` or `_label`, only these are labels: images may lie beside them.
    """
    volumes = find_volumes(folder, (PROBABILITY, *LABEL_SUFFIXES))
    labels = [volume for volume in volumes if volume.suffix in LABEL_SUFFIXES]
    return _one_for_each_case(labels or volumes, folder)


def check_grids(pairs: Sequence[LabelledPrediction]) -> None:
    """Check by the headers that predictions have the voxels of their labels."""
    for pair in pairs:
        for reader in (*pair.prediction.members.values(), *pair.labels.values()):
            find_turn(reader, pair.grid())
    unknown = [pair for pair in pairs if pair.prediction.first.header().affine is None]
    if not unknown:
        return
    text = "Their axes may be flipped or swapped unnoticed."
    if any(pair.label.header().affine is None for pair in unknown):
        text += " Voxels of 1 mm are assumed: distances are in voxels, 1 ml is 1000 voxels."
    logging.getLogger(__name__).warning(
        "%s: no file says where the voxels of %d prediction(s) lie. %s",
        unknown[0].prediction.file.parent,
        len(unknown),
        text,
    )


def find_turn(reader: Reader, grid: Grid) -> np.ndarray | None:
    """Return how to turn the axes of a volume to those of a grid, see
    `nibabel.orientations.apply_orientation`; None if they are the same.

    Without an affine of the volume, only shapes are compared.
    """
    header = reader.header()
    if header.affine is not None:
        return turn_onto(Grid(header.affine, header.shape, reader.file), grid)
    if header.shape != grid.shape:
        remedy = "Check the order of the axes."
        if (*header.shape[1:], 1) == grid.shape:
            remedy = f"If it is (C, X, Y), save it as (C, X, Y, 1), {(*header.shape, 1)}."
        raise InputError(
            f"{reader.file}: shape {header.shape} is not that of {grid.name}, {grid.shape}."
            f" {remedy}"
        )
    return None


def _prefer_channels(volumes: Sequence[Volume]) -> list[Volume]:
    """Leave out label maps of cases that have probabilities, and files of one channel where there
    are several.
    """
    most: dict[str, int] = {}
    kinds = [min(volume.reader.header().channels, 2) for volume in volumes]
    for volume, kind in zip(volumes, kinds, strict=True):
        most[volume.case] = max(kind, most.get(volume.case, 0))
    return [each for each, kind in zip(volumes, kinds, strict=True) if kind == most[each.case]]


def _one_for_each_case(volumes: Iterable[Volume], folder: Path) -> dict[str, Reader]:
    reader_by_case: dict[str, Reader] = {}
    for case, _, reader in sorted(volumes, key=operator.attrgetter("case")):
        first = reader_by_case.setdefault(case, reader)
        if first is not reader:
            raise InputError(
                f"Two files are called {case}: {first.file} and {reader.file}. Move one"
                " away, or list the pairs in a file for --pairs."
            )
    if not reader_by_case:
        raise InputError(f"{folder}: no file ends in {', '.join(FORMATS)}.")
    return reader_by_case
