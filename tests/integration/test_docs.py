"""What README, the pages in `docs` and the bundles' pages show runs as it is written, at small
sizes.

Bash blocks of a page run one after another in one shell, as a reader pastes them. Python blocks of
a page share one session, and print the text blocks or, at the end of a line, the comments after
them. YAML blocks are MONAI configs, separated by comments. Blocks marked `sh` need an account, a
network or a server, and do not run here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import nibabel as nib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml
from nbclient import NotebookClient

import calib_components
from calib_workflows.data.facts import facts_beside
from calib_workflows.evaluation_files import Evaluation
from tests.calib_tools.predictions.made_up import (
    drawn_from,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
    softmax_of,
)
from tests.helpers import (
    ACDC,
    BUNDLES,
    HIPPOCAMPUS,
    ROOT,
    inference_config,
    run_bundle,
    save,
    snapshot,
)

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ACDC_PAGE, ACDC_COMMANDS = (ACDC / "docs" / name for name in ("README.md", "commands.md"))
# Of a command that may go on in the next line
TRAINING = r"monai\.bundle run(?=(?:\\\n|[^\n])*?train\.yaml)"
SMALL = {  # options that are added after a command
    r"prepare_data\.py \w+": "--image_size 32,32 --fractions 0.4,0.3,0.3 --workers 1",
    r"compare_losses\.py": "--max_epochs 1 --devices cpu --num_workers 0",
    r"(evaluate|calibrate)_predictions\.py": "--workers 2",
    r"run_cases\.py \w+": "--device cpu",
    r"monai\.bundle run": "--image_size [32,32] --device cpu --num_workers 0",
    TRAINING: "--max_epochs 1",
}
SMALL_3D = {
    r"prepare_data\.py \w+": "--workers 1",
    r"monai\.bundle run": "--crop_size [40,56,40] --device cpu --num_workers 0",
    TRAINING: "--max_epochs 1",
}
# The tests run in an environment that is set up
SET_UP = re.compile(r"^python3 -m venv .*$", re.MULTILINE)


def blocks(page: Path, language: str, sections: list[str] | None = None) -> list[str]:
    """The code blocks of a page, or of some of its sections, in a language."""
    text = page.read_text()
    if sections is not None:
        of_section = dict(
            re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        )
        text = "".join(of_section[section] for section in sections)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(
    scripts: list[str], folder: Path, places: dict[str, Path], small: dict[str, str] = SMALL
) -> str:
    """Run blocks of commands in one shell, with the reader's folders, and at a small size; return
    what they print.
    """
    script = SET_UP.sub("", "".join(scripts))
    for name, place in places.items():
        script = re.sub(rf"(?<![\w/]){name}\b", str(place), script)
    for command, options in small.items():
        script = re.sub(command, lambda found, options=options: f"{found[0]} {options}", script)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PATH": path}
    done = subprocess.run(
        ["bash", "-euxc", script],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the commands use, for them to write into, with an environment that is
    ready.
    """
    for name in ("bundles", "demo", "scripts", "study/compare"):
        if not (ROOT / name).is_dir():
            continue  # the study is absent from a copy of the product alone
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/activate", "ready-bundles"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


@pytest.fixture
def places(tmp_path: Path, phantoms: Path) -> dict[str, Path]:
    """The reader's folders, by the names that the pages give them."""
    mine, rng = tmp_path / "mine", np.random.default_rng(0)
    for index in range(5):
        label = np.zeros((24, 20, 5), np.uint8)
        label[4:8, 4:12, 1:-1], label[8:20, 4:12, 1:-1] = 1, 2
        image = (rng.normal(-80, 40, label.shape) + 120 * label).astype(np.int16)
        save(mine / "images" / f"scan{index}.nii.gz", image, np.eye(4))
        save(mine / "labels" / f"scan{index}.nii.gz", label, np.eye(4))
    task = ROOT / "demo" / "data" / "testing"
    return {"ACDC": phantoms, "TASK04": task, "MINE": mine, "NEW": mine / "images"}


@pytest.mark.slow
def test_commands_of_the_readme(repository: Path, places: dict[str, Path]) -> None:
    demo = repository / "scripts" / "helpers" / "demo.py"
    assert "EPOCHS = 20" in demo.read_text()
    demo.write_text(demo.read_text().replace("EPOCHS = 20", "EPOCHS = 2"))
    places["IMAGES"] = places["ACDC"] / "training" / "patient001"
    places |= save_predictions(repository)
    *commands, nnunet = re.findall(r"^\|[^|`]*\| `([^`]+)` \|", README.read_text(), re.MULTILINE)
    assert len(commands) == 5
    # Whose commands run with its page
    assert nnunet in "\n".join(blocks(ROOT / "docs/nnunet.md", "sh"))
    install, test = "".join(blocks(README, "bash")).splitlines()
    assert install.startswith("scripts/demo ")
    assert (ROOT / test).is_file()  # it runs this test
    install = install.replace("scripts/demo", "scripts/demo --train")
    printed = run([f"{command}\n" for command in (install, *commands)], repository, places)
    for row in (
        "CE + Dice",
        "CE + Dice with T = 1.49",
        "NACL",
        "NACL with T = 0.71",
        "CE + Dice, trained here",
    ):
        found = re.search(
            rf"^{re.escape(row)} +(0\.\d+) +([\d.]+ %) +([\d.]+ %)", printed, re.MULTILINE
        )
        assert found
        if "trained here" not in row:
            shown = f"| {' | '.join([row, *found.groups()])} |"
            assert shown in (ROOT / "docs" / "two_minutes.md").read_text()
    for picture in (repository / "demo_output", ROOT / "docs"):  # of the README: that of the demo
        assert 50_000 < (picture / "overview.png").stat().st_size < 300_000
    shares = []
    for name in ("CE + Dice", "CE + Dice with T"):
        bins = Evaluation.read(repository / "demo_output" / "evaluations" / name).regions[
            "predicted"
        ]["top_label"]
        shares += [
            f"{100 * share[0, 13].item():.0f} %" for share in (bins.confidence, bins.accuracy)
        ]
    sure, right, sure_after, right_after = shares
    assert sure == sure_after
    caption = "Where the network is {} sure, it is {} right; after a temperature: {}."
    assert caption.format(sure, right, right_after) in README.read_text()
    assert (repository / "evaluation" / "report" / "index.html").is_file()
    assert (repository / "estimates" / "quality.html").is_file()
    assert (repository / "scaled" / "calibrators.csv").is_file()
    assert (repository / "maps" / "patient001_frame01_uncertainty.nii.gz").is_file()
    assert (repository / "own" / "data" / "datalist.json").is_file()


def test_the_version_is_that_of_citation_and_changelog() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest
    assert latest[1] in (cited, "Unreleased")
    assert cited == calib_components.__version__


def test_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 72
    assert max(map(len, lines)) <= 200
    assert len(README.read_text().split()) <= 450


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calibrate", "scans"])
def test_tutorials_print_what_they_show(
    name: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)  # of what cells start
    folder = repository / "docs" / "tutorials"
    folder.mkdir(parents=True)
    file = ROOT / "docs" / "tutorials" / f"{name}.ipynb"
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(nbformat.read(file, 4), timeout=600, resources=place)
    shown, printed = (printed_by(each) for each in (nbformat.read(file, 4), client.execute()))
    numbers = re.compile(r"[-+]?\d*\.?\d+")
    assert numbers.sub("0", printed) == numbers.sub("0", shown)
    pairs = (np.array(numbers.findall(text), float) for text in (printed, shown))
    np.testing.assert_allclose(*pairs, atol=0.11)  # last digits, of percentages too


def printed_by(notebook: nbformat.NotebookNode) -> str:
    """What the cells of a notebook print, but for the progress, whose lines are as many as time
    has it.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    return re.sub(r"\d+ of \d+ scans, .* left\s+", "", text)


@pytest.mark.slow
def test_commands_for_own_data(repository: Path, places: dict[str, Path]) -> None:
    page = ROOT / "docs/own_data.md"
    commands, volumes, compare = blocks(page, "bash")
    assert [volumes] == blocks(page, "bash", ["Volumes"])
    losses = "--losses ce_dice,cross_entropy,nacl"
    assert losses in compare
    # Labels of a network that learned nothing seem to be of other images
    small = {key: options.replace("epochs 1", "epochs 20") for key, options in SMALL.items()}
    run([commands], repository, places, small)
    assert (repository / "own" / "eval" / "summary.json").is_file()
    seg = nib.load(repository / "own" / "predictions" / "scan0_seg.nii.gz")
    assert set(np.unique(seg.get_fdata())) <= {0, 1, 2}
    if (ROOT / "study").is_dir():  # the comparison is part of it
        alone = compare.replace(losses, "--losses nacl").replace(" --reference ce_dice", "")
        run([alone], repository, places, small)
        report = (repository / "runs" / "own" / "report" / "index.html").read_text()
        assert "<h1>Losses compared: liver, tumour</h1>" in report
        assert "paper" not in report
    (general,) = blocks(ROOT / "docs/comparison.md", "bash")
    names = {"acdc_mri": "flare_ct", "PREPARED": "own/data", "runs/losses": "runs/own"}
    for name, own in names.items():
        general = general.replace(name, own)
    assert general.replace("\\\n  ", "") == compare  # the page on comparisons has the same commands

    shutil.rmtree(repository / "own")
    task = shutil.copytree(places["TASK04"], repository / "task")
    names = {"0": "background", "1": "anterior", "2": "posterior"}
    (task / "dataset.json").write_text(json.dumps({"labels": names}))
    run([volumes], repository, {"TASK": task, "NEW": task / "imagesTr"}, SMALL_3D)
    facts = facts_beside(repository / "own" / "models" / "model.pt")
    assert facts is not None
    assert facts.spatial_dims == 3
    assert (repository / "own" / "eval" / "calibrators.csv").is_file()
    assert (repository / "own" / "eval" / "summary.json").is_file()
    assert len(maps(repository / "own" / "predictions")) == 3 * 16


def softened(p: np.ndarray) -> np.ndarray:
    """Probabilities `(C, X, Y, Z)` at a temperature of 2: labels that are drawn from them are of an
    overconfident network.
    """
    return np.sqrt(p) / np.sqrt(p).sum(0)


def save_predictions(folder: Path) -> dict[str, Path]:
    """Predictions as our inference, as nnU-Net and as a network of BraTS's regions save them, and
    their labels.
    """
    names = (
        "PREDICTIONS",
        "LABELS",
        "NNUNET",
        "REGIONS",
        "REGION_LABELS",
        "VALIDATION",
        "VALIDATION_LABELS",
    )
    places = {name: folder / name.lower() for name in names}
    for seed in range(2):
        p, name = softmax_of(seed, 4), f"patient{seed}_frame01"
        save_channels_last(places["PREDICTIONS"] / f"{name}_probability.nii.gz", p)
        save_nnunet(places["NNUNET"], name, softmax_of(9 + seed, 4))
        save_nifti(places["LABELS"] / f"{name}_gt.nii.gz", drawn_from(softened(p), seed))
        regions = np.concatenate(
            [p[:1], np.random.default_rng(seed).uniform(size=(3, *p.shape[1:])).astype("f4")]
        )
        save_channels_last(places["REGIONS"] / f"{name}_probability.nii.gz", regions)
        save_nifti(places["REGION_LABELS"] / f"{name}.nii.gz", label_of(seed, (0, 1, 2, 4)))
        p, name = softmax_of(20 + seed, 4), f"patient1{seed}_frame01"
        save_channels_last(places["VALIDATION"] / f"{name}_probability.nii.gz", p)
        save_nifti(places["VALIDATION_LABELS"] / f"{name}_gt.nii.gz", drawn_from(softened(p), seed))
    return places


@pytest.mark.slow
def test_commands_for_own_predictions(repository: Path) -> None:
    printed = run(
        blocks(ROOT / "docs/own_predictions.md", "bash"), repository, save_predictions(repository)
    )
    for name in ("evaluation", "evaluation_nnunet", "evaluation_scaled"):
        assert (repository / name / "report" / "index.html").is_file()
        patients = json.loads((repository / name / "summary.json").read_text())["patients"]
        assert patients == {f"patient{seed}_frame01": f"patient{seed}" for seed in range(2)}
    assert Evaluation.read(repository / "evaluation_brats").structures == ["ET", "TC", "WT"]
    assert "evaluation_nnunet" in (repository / "models_compared" / "index.html").read_text()
    assert "On patients that are left out of the fit:\n" in printed
    assert "\nAdvised: " in printed
    table = pd.read_csv(repository / "scaled" / "calibrators.csv")
    assert [*table["calibrator"]][:2] == ["none", "temperature"]
    assert "evaluation_scaled" in (repository / "temperature_report" / "index.html").read_text()


@pytest.mark.slow
def test_commands_of_questions(repository: Path) -> None:
    places = save_predictions(repository)
    for number in range(3):
        for seed in range(2):
            file = repository / f"fold{number}" / f"patient{seed}_frame01.nii.gz"
            save_channels_last(file, softmax_of(2 * number + seed, 4))
        places[f"FOLD{number}"] = repository / f"fold{number}"
    grid = nib.load(next(places["LABELS"].iterdir())).affine
    for seed in range(2):
        save_nnunet(places["NNUNET"], f"patient{seed}_frame01", softmax_of(seed, 4), grid)
    run(blocks(ROOT / "docs/questions.md", "bash"), repository, places)
    for folder in ("scaled", "unweighted"):
        assert (repository / folder / "calibrators.csv").is_file()
    for folder in ("evaluation", "lesions"):
        assert (repository / folder / "report" / "index.html").is_file()
    assert len(pd.read_csv(repository / "lesions" / "objects.csv"))
    assert (repository / "estimates" / "quality.html").is_file()
    assert (repository / "folds" / "agreement.csv").is_file()
    (name, *_) = maps(repository / "softmax")
    assert maps(repository / "softmax")[name].ndim == 4


@pytest.mark.slow
def test_commands_for_many_cases(repository: Path, places: dict[str, Path]) -> None:
    images = places["ACDC"] / "training" / "patient001"
    run(blocks(ROOT / "docs/segment.md", "bash"), repository, {"IMAGES": images})
    table = pd.read_csv(repository / "maps" / "quality.csv")
    names = {file.name.removesuffix(".nii.gz") for file in images.glob("*_frame??.nii.gz")}
    assert {*table["scan"]} == names


@pytest.mark.slow
def test_commands_for_several_networks_and_raters(
    repository: Path, phantoms: Path, prepared: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("FOLD0", "FOLD1", "FOLD2", "LABELS", "RATER1", "RATER2", "SEED0", "SEED1")
    places = {name: repository / "mine" / name for name in names}
    for patient, (number, name) in itertools.product(range(2), enumerate(names[:6])):
        file = places[name] / f"patient{patient}_frame01.nii.gz"
        seed = 2 * number + patient
        if name.startswith("FOLD"):
            save_channels_last(file, softmax_of(seed, 4))
        else:
            of_all = np.mean([softmax_of(2 * fold + patient, 4) for fold in range(3)], axis=0)
            save_nifti(file, drawn_from(softened(of_all), seed))
    for number, name in enumerate(names[6:]):
        shutil.copytree(trained, places[name])
        weights = torch.load(trained / "model.pt", weights_only=True)
        scaled = {key: values * (1 + number / 100) for key, values in weights.items()}
        torch.save(scaled, places[name] / "model.pt")
    places |= {"PREPARED": prepared, "SCANS": next(phantoms.rglob("*frame01.nii.gz"))}
    run_bundle = r"monai\.bundle run"
    monkeypatch.setitem(SMALL, run_bundle, SMALL[run_bundle].replace("[32,32]", "[64,64]"))
    run(blocks(ROOT / "docs/several.md", "bash"), repository, places)
    for table in ("to_check/quality.csv", "own/maps/quality.csv"):
        assert pd.read_csv(repository / table)["pairwise_dsc"].between(0, 1).all()
    for name in ("folds", "raters"):
        assert (repository / f"evaluation_{name}" / "report" / "index.html").is_file()
    for folder in ("scaled_to_raters", "own/fit"):
        assert (repository / folder / "calibrators.csv").is_file()
    evaluation = Evaluation.read(repository / "own" / "evaluation")
    fitted = [file.stem for file in (repository / "own" / "fit").glob("*.json")]
    calibration = evaluation.summary["calibration"]
    assert ([calibration["calibrator"]] if calibration else []) == fitted
    weights = torch.load(repository / "own" / "ensemble.pt", weights_only=True)
    assert "model.members.1.temperature" in weights


@pytest.mark.slow
def test_commands_for_another_scanner(repository: Path) -> None:
    """With patients of the demo, and the bundle that they are of."""
    source = ROOT / "demo" / "data" / "validation"
    for kind, folder in (("images", "imagesTr"), ("labels", "labelsTr")):
        (repository / "mine" / kind).mkdir(parents=True)
        for file in sorted((source / folder).iterdir())[:5]:
            shutil.copy(file, repository / "mine" / kind)
    (commands,) = blocks(ROOT / "docs/another_scanner.md", "bash")
    commands = commands.replace("acdc_mri", "hippocampus_mri").replace("cross_entropy/", "")
    places = {"IMAGES": next((ROOT / "demo/data/testing/imagesTr").iterdir())}
    models = repository / "bundles" / HIPPOCAMPUS.name / "models"
    before = {file.name: file.read_bytes() for file in models.glob("*.pt")}
    run([commands], repository, places, {})
    after = {file.name: file.read_bytes() for file in models.glob("*.pt")}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"mine.pt"}
    assert len(torch.load(models / "mine.pt", weights_only=True)["reference"]) == 5
    assert len(pd.read_csv(repository / "mine_fit" / "calibrators.csv")) == 4
    assert "there are 1 and 5." in (repository / "maps" / "quality.html").read_text()


def test_commands_of_packaging(repository: Path) -> None:
    for package in ("calib_components", "calib_workflows", "calib_tools"):
        shutil.copytree(ROOT / package, repository / package)
    run(blocks(ROOT / "docs/packaging.md", "bash"), repository, {})
    version = re.search(r"dist/\w+_v[\d.]+\.zip", (ROOT / "docs/packaging.md").read_text())
    assert version
    assert (repository / version[0]).is_file()


@pytest.mark.slow
def test_commands_of_a_bundle(
    repository: Path, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository / "bundles" / ACDC.name
    for weights in (folder / "models").glob("*.pt"):  # of crops of another size
        weights.unlink()
    places["IMAGES"] = places["ACDC"] / "training" / "patient001"
    data, infer = (blocks(ACDC_PAGE, "bash", [section]) for section in ("Data", "Inference"))
    training = blocks(ACDC_COMMANDS, "bash", ["Train", "Calibrate", "Evaluate"])
    run([*data, *training, *infer], folder, places)
    assert (folder / "models" / "model.pt").is_file()
    assert (folder / "eval" / "summary.json").is_file()
    names = {f"patient001_frame01_{kind}.nii.gz" for kind in ("seg", "probability", "uncertainty")}
    assert names <= maps(folder / "predictions").keys()
    (code,) = blocks(ACDC_COMMANDS, "python")
    monkeypatch.chdir(folder)
    exec(code.replace("IMAGES", str(places["IMAGES"])).replace('"predictions"', '"again"'), {})
    assert snapshot(folder / "again") == snapshot(folder / "predictions")


def test_pages_of_the_bundles_give_the_same_commands() -> None:
    """So that those of ACDC stand for all."""
    commands = ACDC_COMMANDS.read_bytes()
    for docs in (bundle / "docs" for bundle in BUNDLES):
        assert (docs / "commands.md").read_bytes() == commands
        page = docs / "README.md"
        assert blocks(page, "bash", ["Inference"]) == blocks(ACDC_PAGE, "bash", ["Inference"])
        (command,) = blocks(page, "bash", ["Data"])
        assert command.startswith("python ../../scripts/")  # scripts/ in a package


def maps(folder: Path) -> dict[str, np.ndarray]:
    return {
        file.name: np.asanyarray(nib.load(file).dataobj) for file in sorted(folder.glob("*.nii.gz"))
    }


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_and_exports_give_what_one_process_does(
    repository: Path, places: dict[str, Path]
) -> None:
    """Of five test cases, which two processes cannot share equally, and one validation case, which
    both validate.
    """
    folder = repository / "bundles" / ACDC.name
    places["IMAGES"] = places["ACDC"] / "training" / "patient001"
    run(blocks(ACDC_PAGE, "bash", ["Data"]), folder, places)
    datalist = json.loads((folder / "data" / "datalist.json").read_text())
    datalist |= {"validation": datalist["validation"][:1], "testing": datalist["testing"][:5]}
    (folder / "data" / "datalist.json").write_text(json.dumps(datalist))

    def alone(*configs: str, **options: Any) -> None:
        run_bundle(folder, *configs, image_size=[32, 32], output_dir=str(folder / "one"), **options)

    printed = run(blocks(ACDC_COMMANDS, "bash", ["Several GPUs"]), folder, places)
    assert printed.count("Epoch 1 of 1: ") == 1  # by one of the processes
    assert printed.count("Wrote the evaluation of 5 cases") == 1
    assert torch.load(folder / "models" / "last.ckpt", weights_only=True)["best_metric_epoch"] == 1
    alone("train.yaml", "evaluate.yaml")
    cases = [
        pd.read_csv(folder / name / "cases.csv", index_col="case").sort_index()
        for name in ("eval", "one")
    ]
    pd.testing.assert_frame_equal(*cases, check_exact=True)

    weights = torch.load(folder / "models" / "model.pt", weights_only=True)
    torch.save({**weights, "temperature": torch.tensor(0.5)}, folder / "models" / "model.pt")
    run(blocks(ACDC_COMMANDS, "bash", ["Export"]), folder, places)
    alone("inference.yaml", dataset_dir=str(places["IMAGES"]))
    # Without a GPU, MONAI warns and goes on with PyTorch.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inference = {"dataset_dir": str(places["IMAGES"]), "image_size": [32, 32], "device": device}
    run_bundle(
        folder, "inference.yaml", "inference_trt.yaml", output_dir=str(folder / "trt"), **inference
    )
    expected = maps(folder / "one")
    for name in ("predictions", "trt"):  # by TorchScript, and by TensorRT
        found = maps(folder / name)
        assert found.keys() == expected.keys()
        for file, values in expected.items():
            # Classes are equal except where two are equally probable up to rounding
            if "seg" in file:
                assert (found[file] != values).mean() <= 1e-4
            else:
                np.testing.assert_allclose(found[file], values, rtol=0, atol=1e-4)
    batch = torch.randn(3, 1, 144, 144, generator=torch.Generator().manual_seed(0))
    network = inference_config(folder).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    session = onnxruntime.InferenceSession(
        folder / "models" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"image": batch.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(logits).softmax(1), network(batch).softmax(1), rtol=0, atol=1e-4
        )
