"""Store what the draws of the protocol's eighth round need of each scan of a set.

    python -m study.labels.logits OUT NAME BUNDLE DATA WEIGHTS [--views]

BUNDLE's network runs with WEIGHTS over the test split of the prepared DATA, as calibrate.yaml runs
it, in one view or averaged over flips and quarter turns. `OUT/NAME.pt` gets the logits of some of
its voxels, and what the calibrators collect.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy.ndimage import distance_transform_edt

from calib_components.posthoc import ClassBias, TemperatureScaling, find_calibrator, set_calibrator
from calib_components.posthoc.network import find_reference
from calib_workflows.cases import LabelledCase, NetworkCase, NetworkCases
from calib_workflows.fit import unscaled
from calib_workflows.inference.crops import cut
from calib_workflows.weights import load_weights

SURE = 0.99  # probability of the background where a voxel is drawn
SURE_OF_NACL = 0.02  # in place of it, the highest of a structure: NACL's background has 97.5 %
RATE = 10  # of how many such voxels one is drawn
NEAR = 5.0  # mm


def main(out: Path, name: str, bundle: Path, data: Path, weights: Path, *views: str) -> None:
    files = [str(bundle / "configs" / f"{each}.yaml") for each in ("train", "calibrate")]
    config = ConfigParser(ConfigParser.load_config_files(files))
    places = {"bundle_root": str(bundle), "dataset_dir": str(data), "load_path": str(weights)}
    config.update({**places, "device": "cpu", "split": "testing"})
    config["validate::inferer::average"] = bool(views)
    network, structures = map(config.get_parsed_content, ("network", "structures"))
    evaluator = config.get_parsed_content("validate::evaluator")
    load_weights(network, weights)
    shipped = find_calibrator(network)
    assert shipped is not None
    before = {key: values.clone() for key, values in shipped.state().items()}, shipped.name
    reference = find_reference(network).clone()
    set_calibrator(network, unscaled())
    use = Stored("nacl" in name, structures)
    with torch.no_grad():
        scans = NetworkCases(evaluator, structures).map(use)
    stored = {"cases": scans, "before": before, "structures": dict(structures)}
    torch.save(stored | {"reference": reference}, out / f"{name}.pt")


class Stored:
    """Gives what is stored of a scan."""

    def __init__(self, is_nacl: bool, structures: dict[str, list[int]]) -> None:
        self.is_nacl, self.structures = is_nacl, structures
        self.generator = np.random.default_rng(0)

    def __call__(self, case: LabelledCase) -> dict[str, Any]:
        assert isinstance(case, NetworkCase)
        whole = case.labels[0]
        logits, label = cut(case.crop, case.logits), cut(case.crop, whole)[0].long()
        p, flat = logits.flatten(1).softmax(0), label.flatten()
        is_sure = p[1:].amax(0) <= SURE_OF_NACL if self.is_nacl else p[0] >= SURE
        is_sure &= flat == 0
        kept = ~is_sure | torch.from_numpy(self.generator.random(len(flat)) < 1 / RATE)
        weight = torch.ones(len(flat))
        weight[is_sure] = float(is_sure.sum()) / max(1, int((kept & is_sure).sum()))
        distances = distance_transform_edt(
            whole[0].numpy() == 0, sampling=case.output["label"].pixdim.tolist()
        )
        near = cut(case.crop, torch.from_numpy(distances <= NEAR)[None])[0].flatten()
        fits = TemperatureScaling(), ClassBias()
        for fit in fits:
            fit.update(logits[None], label[None, None], case.patient)
        codes = [torch.tensor(each) for each in self.structures.values()]
        return {
            "case": case.name,
            "patient": case.patient,
            "logits": logits.flatten(1)[:, kept].half().float(),
            "label": flat[kept].to(torch.uint8),
            "near": near[kept],
            "weight": weight[kept],
            "outside": [
                int(torch.isin(whole, each).sum() - torch.isin(label, each).sum()) for each in codes
            ],
            "t": fits[0]._patients[case.patient],
            "sample": fits[1]._patients[case.patient],
        }


if __name__ == "__main__":
    folder, title, *places = sys.argv[1:]
    first, second, third = map(Path, places[:3])
    main(Path(folder), title, first, second, third, *places[3:])
