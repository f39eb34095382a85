"""The signatures and docstrings of all commands, which are their options and help.

A command imports what it runs when it is called, so that help needs no PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def prepare_data(
    dataset: str,
    src: Path,
    out: Path,
    labels: Sequence[str] | None = None,
    *,
    structures: Sequence[str] | None = None,
    like: str | None = None,
    in_channels: int | None = None,
    patient: str | None = None,
    image_size: Sequence[int] | None = None,
    slice_axis: int | None = None,
    spacing: Sequence[float] | None = None,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    split: Path | None = None,
    folds: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Prepare a data set: write its cases on the network's grid, their facts and the lists of the
    splits.

    The same command continues an interrupted run.

    Args:
        dataset: acdc (ACDC 2017, cardiac cine MR), flare (FLARE 2021, abdominal CT), brats (BraTS
            2019 to 2021, brain MR), hippocampus (Medical Segmentation Decathlon, Task04, brain MR),
            msd (another task of the Decathlon), nnunet (raw data of nnU-Net) or generic (your own
            images and labels).
        src: Folder of the data set as downloaded. acdc: holds `training`, or `patientNNN` folders.
            flare: holds `TrainingImg` and `TrainingMask`. brats: holds cases at any depth.
            hippocampus, msd, nnunet: holds `imagesTr` and `labelsTr`. generic: holds `images` and
            `labels` with files of the same names.
        out: Folder of the prepared cases.
        labels: Names of the structures, in the order of their values in the label files: 1, 2, ...,
            where 0 is the background (generic, msd and nnunet). Default: those in dataset.json of
            msd and nnunet.
        structures: In place of labels, names with their values, such as liver=6,tumour=255, or
            WT=1+2+4,TC=1+4,ET=4 for structures that consist of several (generic, msd and nnunet).
        like: Data set whose geometry and intensities to follow: acdc (MR, slices as stored), flare
            (abdominal CT), brats (brain MR without the skull) or hippocampus (MR, volumes for a 3D
            network) (generic, msd and nnunet). Default: acdc, for msd and nnunet hippocampus.
        in_channels: Channels of an image; if more than one, they are the fourth axis of the file
            (generic and msd). Default: the number in dataset.json of msd and nnunet, else 1.
        patient: Regular expression for the part of a case's name that names the patient, such as
            '[^_]+', so that all files of a patient stay in one split. Default: what the data set
            states, or else the whole name.
        image_size: In-plane size of the slices, such as 128,128, multiples of 16. Default: that of
            the bundle.
        slice_axis: Axis of the files along which the slices lie, 0, 1 or 2 (acdc, and generic like
            acdc). Default: that of the largest spacing; if equal, the shortest.
        spacing: Size of voxels, in mm, that volumes are resampled to, such as 1,1,1.5 (hippocampus,
            and generic, msd or nnunet like it). Default: 1 mm for hippocampus, as acquired for the
            others.
        fractions: Shares of the patients for training, validation and testing; 0,0,1 makes an
            external test set.
        split: In place of fractions, a file with your own lists: CSV with the columns case (or
            patient) and split, or JSON with lists of names under training, validation and testing.
            Cases that it does not list are left out.
        folds: Number of folds for cross-validation by patient: datalist_fold0.json and so on are
            written as well.
        seed: Seed of the split.
        workers: Number of cases that are prepared at a time. Default: one per core, at most 8.
        skip_bad: Leave bad cases out and list them at the end.
    """
    call("calib_tools.prepare.prepare", "prepare_data", locals())


def evaluate_predictions(
    predictions: Path | None = None,
    labels: Path | None = None,
    out: Path = Path("evaluation"),
    *,
    members: Sequence[Path] | None = None,
    raters: Sequence[Path] | None = None,
    pairs: Path | None = None,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    patient_pattern: str | None = None,
    images: Path | None = None,
    validation: Path | None = None,
    review: str = "20%",
    review_below: float | None = None,
    objects: Sequence[str] = (),
    object_p: float = 0.5,
    overlap: float = 0.0,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Evaluate saved predictions of any model: segmentation, calibration and volumes.

    `out` gets the files that `evaluate.yaml` writes, see
    `calib_workflows.evaluation_files.Evaluation`, and one page, `report/index.html`. HD95 is in
    millimetres, volumes in millilitres. Predictions that are label maps give the segmentation part
    only.

    The predictions of several networks are averaged: `members.csv` has a row for each of them
    beside their average, and `pairwise_dsc` says how far their segmentations agree, also without
    labels. With several raters, the files hold the means over them: a voxel and a rater are one
    observation. `raters.csv` has a row for each rater and one for all.

    With `objects`, such as lesions, `objects.csv` has a row for each candidate and each true
    object: see `calib_components.metrics.objects`.

    Without labels, `out` gets `quality.csv` and `quality.html`: what the probabilities say of the
    quality of each prediction, the worst first.

    Args:
        predictions: Folder of probabilities or label maps, see
            `calib_tools.predictions.formats`. With members, a folder given alone is that of
            the labels.
        labels: Folder of label maps, files of the same names, which may end in `_gt`, `_seg` or
            `_label`. Default: the predictions have no labels.
        out: Folder of the results.
        members: In place of predictions, folders of several networks' predictions of the same
            cases, such as of folds or seeds: P1,P2. Label maps are votes.
        raters: In place of labels, folders of several raters' label maps: R1,R2. Each case needs
            the label of one of them.
        pairs: CSV file with the columns case, prediction and label, relative to the two folders.
            Default: files of the same name are a pair.
        structures: Label codes of the structures, such as `liver=1,tumour=2`, or `WT=1+2+4` of
            several codes. Default: class1, class2 and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of
            its own.
        ignore_index: Label code of voxels to leave out.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as `patient[0-9]+`. Default: each case is a patient.
        images: Folder of the images, for the pictures. Default: pictures without them.
        validation: Folder of an evaluation of other cases, which gives limits of DSC and volume,
            and on which the page chooses a threshold of objects. Default: neither.
        review: Share of the predictions without labels to list, those of the lowest quality.
        review_below: Expected DSC below which predictions without labels are listed, in place of a
            share.
        objects: Structures whose objects are counted, such as `lesion`; default: none.
        object_p: Lowest probability of a voxel in a candidate.
        overlap: Lowest IoU of a right candidate with a true object; 0 asks for one voxel in common.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether results of other inputs or options in `out` are replaced.

    Raises:
        InputError: A file or option is unsuitable, files do not belong together, another run writes
            to `out`, or results cannot be written.
    """
    call("calib_tools.predictions.evaluate", "evaluate_predictions", locals())


def calibrate_predictions(
    predictions: Path | None = None,
    labels: Path | None = None,
    *,
    apply_to: Sequence[Path],
    out: Path,
    members: Sequence[Path] | None = None,
    raters: Sequence[Path] | None = None,
    pairs: Path | None = None,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    ignore_index: int | None = None,
    region: Any = "all",
    calibrator: str = "temperature",
    patient_pattern: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Fit a temperature, or another calibrator, on saved predictions, and apply it to others.

    The logarithms of probabilities are the logits, up to one number for each voxel, which softmax
    ignores; with sigmoid channels, the logits are log p - log(1 - p). `out` gets a scaled map for
    each prediction in `apply_to`, float32 on its own grid: `NAME_probability.nii.gz` `(X, Y, Z,
    C)`, or where no file says where the voxels lie, `NAME.npz` `(C, Z, Y, X)` as nnU-Net writes it.
    They replace those of an earlier run once all are written; `temperature.json` comes last.

    Args:
        predictions: Folder of predictions of validation cases: NIfTI files, nnU-Net's .npz, or
            .npy. With members, a folder given alone is that of the labels.
        labels: Folder of their labels, files of the same names, which may end in _gt, _seg or
            _label.
        apply_to: Folder of the predictions to scale, of the same model and format; with members,
            one of each, P1,P2.
        out: Folder for the scaled predictions.
        members: In place of predictions, folders of several networks' predictions of the same
            cases, V1,V2: the fit is to their average, which is what is scaled.
        raters: In place of labels, folders of several raters' labels, R1,R2: the fit is to all of
            them.
        pairs: CSV file with the columns case, prediction and label, relative to the two folders.
            Default: files of the same name are a pair.
        structures: Names and label codes, such as liver=1,tumour=2; WT=1+2+4 is a structure of
            several codes. Default: the channels are label codes 0, 1, 2, and so on.
        sigmoid: Whether each channel is one of these structures, in this order, with a sigmoid of
            its own.
        ignore_index: Label code of voxels to leave out of the fit.
        region: Voxels to fit the temperature on, such as predicted, see
            `calib_components.metrics.regions`. Fitted to a region chosen by the ground truth,
            probabilities are not calibrated.
        calibrator: temperature; vector, a scale and a bias for each class; or bias, a temperature
            and a bias for each class but the background. The last two change labels.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as patient[0-9]+. Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether maps of other inputs or options in `out` are replaced.

    Raises:
        InputError: An argument or a file is unsuitable, another run writes to `out`, or it cannot
            be written. Maps of an earlier run stay.
    """
    call("calib_tools.predictions.calibrate", "calibrate_predictions", locals())


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    validation: Path | None = None,
    object_threshold: str = "f1",
    overwrite: bool = False,
) -> None:
    """Write tables and figures of one or several evaluations.

    `index.html` is one page that holds all its figures and needs no network. It begins with what
    the numbers say and what to do next. CSV files hold the same tables, and PNG files the figures.

    Args:
        folders: One or several evaluation folders, which are compared with the first one on their
            common cases.
        out: Folder for the report.
        validation: Evaluation folder of validation cases of one network, whose limits are checked,
            and on which the threshold of objects is chosen; default: none.
        object_threshold: For what the threshold of the confidence of objects is chosen: `f1`, at
            most K false candidates a scan (`false=K`), or a recall of at least R (`recall=R`).
        overwrite: Whether a report of other folders in `out` is replaced.

    Raises:
        InputError: A file is missing or broken, evaluations cannot be compared, an option is
            unknown or does not go with these folders, or `out` holds another report or cannot be
            written.
    """
    call("calib_tools.report.report", "report_folders", locals())


def run_cases(
    command: str,
    bundle: Path,
    *,
    dataset_dir: Path,
    output_dir: Path,
    executor: str = "local",
    workers: int = 1,
    jobs: int = 10,
    slurm: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Segment images in shares: side by side, or as an array of Slurm jobs.

    A share is a run of the bundle with `--shard i/n --skip_existing true`. Any id of the bundle's
    inference.yaml is an option as well, such as --ckpt_dir or --save. The same command continues:
    images that have their maps are skipped. An image that cannot be segmented ends its share.

    Args:
        command: infer.
        bundle: Folder of the bundle.
        dataset_dir: One NIfTI file, or a folder of them.
        output_dir: Folder for the maps.
        executor: local, or slurm.
        workers: Number of processes on this machine, which share its cores.
        jobs: Number of Slurm jobs.
        slurm: Parameters of submitit for these jobs, such as "{time: 60, partition: gpu,
            gpus_per_node: 1}"; time is in minutes, by default 5. "array_parallelism: 4" runs no
            more than 4 at a time.
        overrides: Values for ids of the bundle.

    Raises:
        InputError: An option is unsuitable, or there are no images.
    """
    call("calib_tools.run_cases", "run_cases", locals())


def calibrate_model(
    model: Path,
    *,
    region: Any = "all",
    calibrator: str = "temperature",
    patient_pattern: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Fit one temperature, or another calibrator, for all folds of a model, and write it into
    copies of checkpoints.

    It is fitted on the probabilities that each fold saved of its own validation cases,
    `fold_N/validation/*.npz`, on the grid of the images: after mirroring, tiles and resampling, all
    of which average logits, so that dividing the network's logits by T divides these by T too. Each
    fold gets a `checkpoint_calibrated.pth`, with which nnU-Net predicts without this package, and
    the model's folder a `temperature.json`. The labels are those in
    `$nnUNet_preprocessed/DATASET/gt_segmentations`, the folds those of `splits_final.json` there.

    Args:
        model: Folder of the trained model, `$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        region: Voxels to fit the temperature on, such as predicted, see
            `calib_components.metrics.regions`. Fitted to a region chosen by the ground truth,
            probabilities are not calibrated.
        calibrator: temperature, vector or bias, see `calibrate_predictions`.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as patient[0-9]+. Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether the files of a fit with other options are replaced.

    Raises:
        InputError: An argument or a file is not as expected; no fold is trained, or one has not
            saved all its probabilities; or the network has another architecture than nnU-Net's.
            Nothing is written then.
    """
    call("calib_tools.nnunet.calibrate", "calibrate_model", locals())


def call(module: str, name: str, given: Mapping[str, Any]) -> None:
    """Call the function of a command with what was given to it."""
    options = {**given}
    folders, overrides = options.pop("folders", ()), options.pop("overrides", {})
    getattr(importlib.import_module(module), name)(*folders, **options, **overrides)
