"""A bundle of one's own training: the common configs with its facts; metadata, page and licences
from what was trained, measured and told.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from calib_components.errors import InputError, make_folder, reading, writing_folder
from calib_workflows.data.facts import Facts, facts_beside, write_facts
from calib_workflows.folders import OutputFolder
from calib_workflows.options import LAST
from calib_workflows.weights import load_weights, read_weights
from scripts.helpers.bundle_files import BODIES, BUNDLES, REPOSITORY, generate, with_block
from scripts.helpers.packages import METADATA, PAGE, WEIGHTS, render

# Columns of the evaluation whose means over cases are stated, and their titles
METRICS = {
    "dsc": "DSC",
    "hd95": "HD95 in {}",
    "nll_all": "NLL, all voxels",
    "ece_all": "ECE, all voxels",
    "nll_predicted": "NLL, predicted foreground",
    "ece_predicted": "ECE, predicted foreground",
}
TERMS = """The weights in models/model.pt are under {weights_license}. They are by {authors}, and
were trained on: {data_source}.
"""
CODE = "The licence of the code and the configurations follows; that of the weights is in\n{}.\n\n"
DATA_LICENSE = "docs/data_license.txt"


@dataclass(frozen=True)
class _Training:
    """What was trained and measured.

    Attributes:
        facts: Facts of the data.
        weights: File of the weights.
        checksum: Its SHA-256.
        summary: Summary of the evaluation.
        split: Split of the evaluation.
        settings: Settings of the training; empty if they are not known.
    """

    facts: Facts
    weights: Path
    checksum: str
    summary: Mapping[str, Any]
    split: str
    settings: Mapping[str, Any]

    @property
    def loss(self) -> str:
        """Class of the loss; empty if it is not known."""
        return self.settings.get("loss", {}).get("_target_", "").rpartition(".")[2]

    def measured(self) -> dict[str, Mapping[str, Any]]:
        """Return mean, standard deviation and number of cases of each measure, by its title."""
        titles = {name: title.format(self.summary["unit"]) for name, title in METRICS.items()}
        titles |= {f"dsc_{name}": f"DSC, {name}" for name in self.facts.structures}
        values = {title: self.summary[name] for name, title in titles.items()}
        return {title: value for title, value in values.items() if value["n"]}


def new_bundle(
    trained: Path,
    out: Path,
    *,
    name: str = "",
    bundle_version: str = "",
    authors: str = "",
    modality: str = "",
    data_source: str = "",
    weights_license: str = "",
    terms: Path | None = None,
    weights: Path | None = None,
    evaluation: Path | None = None,
) -> None:
    """See `scripts.helpers.commands.new_bundle`."""
    asked = {
        "name": name,
        "bundle_version": bundle_version,
        "authors": authors,
        "modality": modality,
        "data_source": data_source,
        "weights_license": weights_license,
    }
    missing = [f"--{option}" for option, value in asked.items() if not value.strip()]
    if missing:
        raise InputError(f"Pass {', '.join(missing)}, which metadata, page and licence state.")
    if not (re.fullmatch(r"\w+", out.name) and re.match(r"\d+\.\d+\.\d+", bundle_version)):
        raise InputError(
            "out: the name of a bundle has letters, digits and _ alone, and --bundle_version three"
            " numbers, such as 0.1.0."
        )
    if out.exists():
        raise InputError(f"{out} exists. Choose another folder, or delete it.")
    training = _read_training(weights or trained / WEIGHTS, evaluation or trained / "eval")
    metadata = _describe(training, asked)
    text = TERMS.format(**asked) if terms is None else terms.read_text(encoding="utf-8")
    make_folder(out.parent)
    with writing_folder(out) as folder:
        _write_configs(training, folder)
        _write(folder / METADATA, json.dumps(metadata, indent=4, ensure_ascii=False) + "\n")
        about = {
            "training": training,
            "temperature": read_weights(training.weights).get("temperature"),
            "facts": training.facts,
            "scripts": os.path.relpath(REPOSITORY / "scripts", out.resolve()),
            "structures": _structures_option(training.facts),
        }
        _write(folder / PAGE, render("page.md.jinja", {**metadata, **about}))
        _write(folder / DATA_LICENSE, text)
        code = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
        _write(folder / "LICENSE", CODE.format(DATA_LICENSE) + code)
    print(f"{out}: read {PAGE} and {METADATA}, and add what they do not say. Then pack it:")
    command = ["python", REPOSITORY / "scripts" / "package_bundle.py", out, "--out", "dist"]
    print(shlex.join(map(str, command)))


def _structures_option(facts: Facts) -> str:
    """Return the structures with their label codes, as `prepare_data` takes them."""
    parts = [
        f"{name}={'+'.join(str(facts.label_codes[k]) for k in classes)}"
        for name, classes in facts.structures.items()
    ]
    return shlex.quote(",".join(parts))


def _read_training(weights: Path, evaluation: Path) -> _Training:
    """Read weights, their facts and their evaluation, and check that they belong together."""
    facts = facts_beside(weights)
    if facts is None or not weights.is_file():
        raise InputError(f"{weights} is missing, or has no facts.yaml beside it. Train first.")
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    runs = [run for run, files in OutputFolder(evaluation).runs() if "summary.json" in files]
    if not (runs and checksum.startswith(runs[0].get("weights", "none"))):
        raise InputError(
            f"{evaluation} has no evaluation of {weights} as they are now. Evaluate them, after"
            " calibration: docs/own_data.md has the command. --evaluation names another folder,"
            " such as eval_calibrated."
        )
    with reading(evaluation / "summary.json", "the summary of an evaluation") as file:
        summary = json.loads(file.read_bytes())
    state, settings = weights.with_name(LAST), {}
    if state.is_file():
        with reading(state, "a checkpoint of a training"):
            settings = torch.load(state, "cpu", weights_only=True, mmap=True)["settings"]
    without_place = replace(facts, source="")  # of the data on this machine
    return _Training(without_place, weights, checksum, summary, runs[0]["split"], settings)


def _describe(training: _Training, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata; what a training cannot tell is that of the bundle of the data set that
    the cases were prepared like.
    """
    facts, summary = training.facts, training.summary
    file = REPOSITORY / "bundles" / BUNDLES[facts.dataset] / METADATA
    like = json.loads(file.read_text(encoding="utf-8"))
    structures, dims = ", ".join(facts.structures), f"{facts.spatial_dims}D"
    classes = dict(zip(map(str, facts.label_codes), facts.class_names, strict=True))
    channels = like["network_data_format"]
    common = {
        "spatial_shape": facts.crop_size,
        "is_patch_data": facts.spatial_dims == 3 or facts.crop_size != facts.image_size,
    }
    inputs = {"num_channels": facts.in_channels, "modality": asked["modality"], **common}
    if facts.in_channels != channels["inputs"]["image"]["num_channels"]:
        inputs["channel_def"] = {str(k): f"channel {k}" for k in range(facts.in_channels)}
    channels["inputs"]["image"] |= inputs
    outputs = {"num_channels": facts.num_classes, "channel_def": classes, **common}
    channels["outputs"]["pred"] |= outputs
    packages = {package: version_of(package) for package in like["required_packages_version"]}
    versions = {
        f"{package}_version": version_of(library).partition("+")[0]
        for package, library in (("monai", "monai"), ("pytorch", "torch"), ("numpy", "numpy"))
    }
    listed = ", ".join(f"{code} {name}" for code, name in classes.items())
    patients = len({*summary["patients"].values()})
    return {
        **{name: like[name] for name in ("schema", "supported_apps", "data_type")},
        **{name: text for name, text in asked.items() if name != "bundle_version"},
        "version": asked["bundle_version"],
        "changelog": {asked["bundle_version"]: "first version"},
        **versions,
        "required_packages_version": packages,
        "task": f"Segmentation of {structures} in {asked['modality']}",
        "description": f"A {dims} network that segments {structures}, and gives probabilities and a"
        " map of uncertainty.",
        "copyright": f"Copyright (c) {asked['authors']}",
        "image_classes": f"{facts.in_channels} channel(s) of {asked['modality']}, as prepare_data"
        f" --like {facts.dataset} normalises them",
        "label_classes": f"single channel: {listed}",
        "pred_classes": f"{facts.num_classes} channels, logits: {', '.join(facts.class_names)}",
        "weights_sha256": training.checksum,
        "tags": ["monai", "medical", "segmentation", asked["modality"].lower(), dims.lower()],
        "eval_data": {
            "type": facts.dataset,
            "name": f"split {training.split}: {patients} patients, {summary['cases']} cases",
        },
        "eval_metrics": {
            f"mean_{re.sub(r'[^a-z0-9]+', '_', title.lower())}": round(value["mean"], 4)
            for title, value in training.measured().items()
        },
        "intended_use": "Research. Not for clinical use.",
        "references": like["references"][:1] if training.loss == "NACLLoss" else [],
        "network_data_format": channels,
    }


def _write_configs(training: _Training, folder: Path) -> None:
    """Write weights and configs, and check that the network takes the weights."""
    facts = training.facts
    network = training.settings.get("network_def")
    for file, content in generate(facts.dataset, folder, facts).items():
        content = content.partition("\n")[2]  # without the line on where it is edited
        if network and file.name in BODIES:
            content = with_block(content, "network_def", network)
        _write(file, content)
    (folder / WEIGHTS).parent.mkdir()
    shutil.copyfile(training.weights, folder / WEIGHTS)
    write_facts(facts, folder / "models")
    config = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
    config["bundle_root"] = str(folder)
    load_weights(config.get_parsed_content("network_def"), training.weights)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
