"""All commands. Their signatures and docstrings are their options and help.

A command imports what it needs when it is called, so that help needs no PyTorch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calib_components.errors import InputError, check_choice, check_number, printable


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
            network); or a folder of trained weights, whose classes and geometry to follow, to
            calibrate or evaluate these (generic, msd and nnunet). Default: acdc, for msd and nnunet
            hippocampus.
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
    from calib_tools.prepare import prepare
    from calib_tools.prepare.facts import facts_of_dataset
    from calib_tools.prepare.split import SplitOptions

    check_choice("dataset", dataset, prepare.DATASETS)
    is_own = dataset in prepare.OWN
    if not is_own and any((labels, structures, like, in_channels)):
        raise InputError(
            f"{dataset}: labels, structures, like and in_channels are options of"
            f" {', '.join(prepare.OWN)}."
        )
    geometry: dict[str, Any] = {
        "image_size": image_size,
        "slice_axis": slice_axis,
        "spacing": spacing,
    }
    task = prepare.read_task(dataset, src)
    is_new = is_own and (like is None or like in prepare.LIKE)  # for a training
    if is_new:
        facts = facts_of_dataset(like or prepare.OWN[dataset], src, **geometry)
        facts = replace(facts, spacing=list(spacing) if spacing else None)  # else as acquired
        facts = prepare.with_own_classes(facts, task, src, labels, structures, in_channels)
    elif is_own:
        given = {**geometry, "in_channels": in_channels}
        facts = prepare.facts_of_weights(Path(str(like)), task, src, labels, structures, given)
    else:
        facts = facts_of_dataset(dataset, src, **geometry)
    cases, listed = prepare.list_cases(dataset, src, patient, split)
    options = SplitOptions(fractions, folds, seed, listed)
    prepare.prepare_cases(cases, facts, out, options, workers, skip_bad, fit_patch=is_new)
    if is_own and patient is None:
        print(
            "Each case counts as a patient of its own. If some are of the same patient, give"
            " --patient (see --help)."
        )


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

    A case that cannot be measured is named and left out, and the exit status is 3.

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
    from calib_tools.predictions import pairing
    from calib_tools.predictions.calibrate import describe_estimate, estimate_of
    from calib_tools.predictions.cases import SavedCases, find_case_images
    from calib_tools.predictions.classes import check_probabilities, check_volume, classes_of
    from calib_tools.predictions.evaluate import arguments_of, evaluate_cases, read_reference
    from calib_tools.predictions.quality import estimate_quality
    from calib_workflows.data.files import patients_of
    from calib_workflows.evaluate import Objects
    from calib_workflows.folders import OutputFolder
    from calib_workflows.options import LEFT_OUT
    from calib_workflows.pages.quality import Review

    check_number("--object_p", object_p, 1e-6, 1)
    check_number("--overlap", overlap, 0, 1)
    listed = Review.from_options(review, review_below)
    networks, labellers = pairing.read_folders(predictions, labels, members, raters, pairs)
    if labellers:
        labelled = pairing.find_pairs(networks, labellers, pairs)
        readers = {pair.name: pair.prediction for pair in labelled}
    else:
        if objects:
            raise InputError("--objects needs labels. Give their folder.")
        labelled, readers = [], pairing.find_members(networks)
        check_volume(next(iter(readers.values())), sigmoid)
    (folder, *_) = networks.values()
    firsts = [each.first for each in readers.values()]
    calibration = None if members else estimate_of(folder, firsts)
    run = {
        **pairing.places_of(networks, labellers),
        "images": images,
        "validation": validation,
        "structures": structures,
        "sigmoid": sigmoid,
        "ignore_index": ignore_index,
        "calibration": repr(calibration and calibration.to_dict()),
        "objects": {"structures": [*objects], "threshold": object_p, "overlap": overlap},
    }
    classes = classes_of([*readers.values()], structures, sigmoid, ignore_index)
    for name in objects:
        check_choice("--objects", name, classes.structures)
    patients = patients_of([*readers], patient_pattern) | pairing.named_patients(labelled)
    case_images = {} if images is None else find_case_images(images, readers)
    left_out: list[str] = []  # gets why cases cannot be measured
    about: dict[str, Any] = {
        "source": "predictions",
        "sigmoid": classes.sigmoid,
        "arguments": arguments_of(run, patient_pattern, pairs),
        "calibration": describe_estimate(calibration),
        "objects": run["objects"],
        "left_out": left_out,
    }
    reference = None
    if validation is not None:
        check_probabilities(next(iter(readers.values())), "--validation")
        by_name = not labellers  # with labels, the report compares these
        reference = read_reference(
            validation, readers, classes, about, patients, patient_pattern, by_name, workers
        )
    output = OutputFolder(out, run, overwrite=overwrite)
    if labellers:
        cases = SavedCases(labelled, classes, patients, case_images, workers, left_out=left_out)
        counted = Objects([*objects], object_p, overlap)
        evaluate_cases(cases, output, about, counted, validation)
    else:
        estimate_quality(
            readers, classes, case_images, output, reference, listed, patients, workers, left_out
        )
    if left_out:
        sys.exit(LEFT_OUT)


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
    calibrator: str | None = None,
    patient_pattern: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Compare calibrators on saved predictions, each patient left out, and apply the advised one to
    others.

    The logarithms of probabilities are the logits, up to one number for each voxel, which softmax
    ignores; with sigmoid channels, the logits are log p - log(1 - p). `out` gets a scaled map for
    each prediction in `apply_to`, float32 on its own grid: `NAME_probability.nii.gz` `(X, Y, Z,
    C)`, or where no file says where the voxels lie, `NAME.npz` `(C, Z, Y, X)` as nnU-Net writes it.
    They replace those of an earlier run once all are written; `calibrators.csv`, the comparison,
    and `temperature.json` come last. Of sigmoids, a temperature is fitted.

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
        region: Voxels to fit on, such as predicted, see `calib_components.metrics.regions`. Fitted
            to a region chosen by the ground truth, probabilities are not calibrated.
        calibrator: In place of the advised one: none; temperature; bias, a temperature and a bias
            for each class but the background; or vector, a scale and a bias for each class. The
            last two change labels.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as patient[0-9]+. Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether maps of other inputs or options in `out` are replaced.

    Raises:
        InputError: An argument or a file is unsuitable, another run writes to `out`, or it cannot
            be written. Maps of an earlier run stay.
    """
    from calib_components.metrics.regions import Region
    from calib_tools.predictions import calibrate, pairing
    from calib_tools.predictions.cases import SavedCases
    from calib_tools.predictions.classes import check_probabilities, classes_of
    from calib_tools.predictions.fit import fit_saved
    from calib_workflows.data.files import patients_of
    from calib_workflows.folders import OutputFolder

    fitted_on = Region.parse(region)
    networks, labellers = pairing.read_folders(predictions, labels, members, raters, pairs)
    if not labellers:
        raise InputError("labels: give a folder, or those of several raters to --raters.")
    targets = pairing.name_targets(apply_to, networks)
    labelled = pairing.find_pairs(networks, labellers, pairs)
    fit_readers = {pair.name: pair.prediction for pair in labelled}
    check_probabilities(labelled[0].prediction, "Calibration")
    readers = pairing.find_members(targets)
    classes = classes_of(
        [*fit_readers.values(), *readers.values()], structures, sigmoid, ignore_index
    )
    patients = patients_of([*fit_readers], patient_pattern) | pairing.named_patients(labelled)
    calibrate.refuse_calibrated(networks, fit_readers.values())
    calibrate.refuse_calibrated(targets, readers.values())
    run = {
        **pairing.places_of(networks, labellers),
        "apply_to": ",".join(map(str, targets.values())),
        "structures": structures,
        "sigmoid": sigmoid,
        "ignore_index": ignore_index,
        "region": fitted_on.name,
        "calibrator": calibrator,
    }
    output = OutputFolder(out, run, overwrite=overwrite)
    sources = (*networks.values(), *labellers.values(), *targets.values())
    calibrate.check_out(output, sources, calibrate.names_of_files(readers))
    target_patients = patients_of([*readers], patient_pattern)
    calibrate.tell_shared(readers, target_patients, fit_readers, patients)
    with output.claim():
        cases = SavedCases(labelled, classes, patients, workers=workers)
        fitted, estimate, compared = fit_saved(cases, fitted_on, calibrator)
        calibrate.write_maps(readers, classes, fitted, output, workers)
        calibrate.write_fit(out, estimate, compared)
    what = calibrate.AS_THEY_ARE if estimate is None else f"with this {estimate.name}"
    print(calibrate.NEXT.format(count=len(readers), what=what, out=printable(out)))


def probability_maps(
    *predictions: Path,
    out: Path,
    structures: Sequence[str] | None = None,
    sigmoid: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write saved probabilities as NIfTI maps on the grid of the image, of several networks or
    folds their mean.

    `out` gets, of each case, `NAME_probability.nii.gz` `(X, Y, Z, C)` and
    `NAME_uncertainty.nii.gz`, the entropy divided by its largest value, in steps of 1/65535. Of
    several networks, it also gets `agreement.csv`, the mean DSC over pairs of networks, and with a
    softmax, whose first channel is the background, the label map of the mean, `NAME_seg.nii.gz`.

    Args:
        predictions: Folders of probabilities: nnU-Net's .npz with its label maps beside them, NIfTI
            files, or .npy; one, or several of the same cases, such as of folds.
        out: Folder of the maps.
        structures: Names and label codes, such as liver=1,tumour=2; WT=1+2+4 is a structure of
            several codes. Default: the channels are label codes 0, 1, 2, and so on.
        sigmoid: Whether each channel is a structure with a sigmoid of its own.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether maps of other predictions in `out` are replaced.

    Raises:
        InputError: A folder or file is unsuitable, no file says where voxels lie, or `out` cannot
            be written.
    """
    from calib_tools.predictions import maps, pairing
    from calib_tools.predictions.calibrate import check_apart
    from calib_tools.predictions.classes import check_probabilities, classes_of
    from calib_workflows.folders import OutputFolder

    if not predictions:
        raise InputError("predictions: give a folder, or those of several networks.")
    networks = pairing.name_networks(predictions)
    found = pairing.find_members(networks)
    check_probabilities(next(iter(found.values())), "A map of probabilities")
    classes = classes_of([*found.values()], structures, sigmoid)
    run = {**pairing.places_of(networks, {}), "structures": structures, "sigmoid": sigmoid}
    output = OutputFolder(out, run, overwrite=overwrite)
    check_apart(out, networks.values())
    output.check(maps.names_of_maps(found))
    maps.write_maps(found, classes, output, workers)
    mean = f", means of {len(networks)} networks" if len(networks) > 1 else ""
    print(printable(f"{out}: maps of {len(found)} cases{mean}"))


def report_folders(
    *folders: Path,
    out: Path = Path("report"),
    validation: Path | None = None,
    object_threshold: str = "f1",
    paper: bool = False,
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
        paper: Whether to write, too, `means.tex`, the means as a LaTeX table; reliability diagrams
            as PDF and SVG; and `methods.txt`, a paragraph on methods.
        overwrite: Whether a report of other folders in `out` is replaced.

    Raises:
        InputError: A file is missing or broken, evaluations cannot be compared, an option is
            unknown or does not go with these folders, or `out` holds another report or cannot be
            written.
    """
    from calib_tools.report import report

    report.report_folders(
        *folders,
        out=out,
        validation=validation,
        object_threshold=object_threshold,
        paper=paper,
        overwrite=overwrite,
    )


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

    A share is a run of the bundle with `--shard i/n --skip_existing true`. The same command
    continues: images that have their maps are skipped. An image whose file or header is unsuitable
    is named and left out, and the exit status is 3.

    Any id of the bundle's inference.yaml is an option as well. Common ones: `--load_path FILE`,
    other weights, such as models/cross_entropy/ensemble.pt of the bundle; `--ckpt_dir FOLDER`,
    that of your own training; `--save label,dicom`, the maps to write, of label, uncertainty,
    probability, and of DICOM series also dicom and dicom_probability; `--review 20%` or
    `--review_below 0.8`, which scans to list for a look; `--device cpu`.

    Args:
        command: infer.
        bundle: Folder of the bundle.
        dataset_dir: Folder of NIfTI files or DICOM series, or one NIfTI file.
        output_dir: Folder for the maps, quality.csv and quality.html.
        executor: local, or slurm.
        workers: Number of processes on this machine, which share its cores.
        jobs: Number of Slurm jobs.
        slurm: Parameters of submitit for these jobs, such as "{time: 60, partition: gpu,
            gpus_per_node: 1}"; time is in minutes, by default 5. "array_parallelism: 4" runs no
            more than 4 at a time.
        overrides: Options of the bundle's inference.yaml, such as --save label.

    Raises:
        InputError: An option is unsuitable, or there are no images.
    """
    from calib_tools.run_cases import run_shares

    check_choice("command", command, ["infer"])
    for name in ("bundle_root", "shard", "skip_existing"):
        if name in overrides:
            raise InputError(f"--{name} is set for each share. Use --workers or --jobs.")
    options = {
        "bundle_root": str(bundle),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        **json.loads(json.dumps(overrides)),  # lists instead of tuples, as in YAML
        "skip_existing": True,
    }
    run_shares(bundle, options, executor, workers if executor == "local" else jobs, slurm)


def calibrate_model(
    model: Path,
    *,
    region: Any = "all",
    calibrator: str | None = None,
    patient_pattern: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Compare calibrators for all folds of a model, each patient left out, and write the advised
    one into copies of checkpoints.

    It is fitted on the probabilities that each fold saved of its own validation cases,
    `fold_N/validation/*.npz`, on the grid of the images: after mirroring, tiles and resampling, all
    of which average logits, so that dividing the network's logits by T divides these by T too. Each
    fold gets a `checkpoint_calibrated.pth`, with which nnU-Net predicts without this package, and
    the model's folder `calibrators.csv`, the comparison, and a `temperature.json`. If no calibrator
    helps, no checkpoint is written. The labels are those in
    `$nnUNet_preprocessed/DATASET/gt_segmentations`, the folds those of `splits_final.json` there.

    Args:
        model: Folder of the trained model, `$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION`.
        region: Voxels to fit on, such as predicted, see `calib_components.metrics.regions`. Fitted
            to a region chosen by the ground truth, probabilities are not calibrated.
        calibrator: In place of the advised one: temperature or bias, see `calibrate_predictions`.
        patient_pattern: Regular expression for the part of a case's name that names the patient,
            such as patient[0-9]+. Default: each case is a patient.
        workers: Number of processes, each with a case in memory. Default: one per core, at most 8.
        overwrite: Whether the files of a fit with other options are replaced.

    Raises:
        InputError: An argument or a file is not as expected; no fold is trained, or one has not
            saved all its probabilities; or the network has another architecture than nnU-Net's.
            Nothing is written then.
    """
    from calib_components.metrics.regions import Region
    from calib_components.posthoc import KINDS
    from calib_tools.nnunet import calibrate as nnunet
    from calib_tools.predictions.calibrate import write_fit
    from calib_tools.predictions.fit import fit_saved
    from calib_workflows.fit import COMPARISON
    from calib_workflows.folders import OutputFolder

    fitted_on = Region.parse(region)
    if calibrator is not None:
        check_choice("--calibrator", calibrator, nnunet.CHOICES)
    trained = nnunet.read_model(model)
    run = {"region": region, "calibrator": calibrator, "patient_pattern": patient_pattern}
    output = OutputFolder(model, run, overwrite=overwrite)
    names = {f"{fold.name}/{nnunet.CALIBRATED}" for fold in trained.folds.values()}
    names |= {f"{kind}.json" for kind in KINDS} | {COMPARISON}
    output.check(names)
    cases = nnunet.validation_cases(trained, patient_pattern, workers)
    fitted, estimate, compared = fit_saved(cases, fitted_on, calibrator)
    with output.claim(names):
        nnunet.write_model(trained, fitted, estimate)
        write_fit(model, estimate, compared)
    nnunet.print_next(trained, estimate)
