"""Two processes, on the CPU: they evaluate as one does, and train weights that one process can use."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import ACDC, BUNDLES, SIZE, copy_with_weights, inference_config, make_prepared, run_bundle

pytestmark = pytest.mark.slow
CASES = 5  # not a multiple of two


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ACDC bundle with weights and prepared cases."""
    bundle = copy_with_weights(BUNDLES[0], tmp_path_factory.mktemp("bundle"))
    make_prepared(bundle, bundle / "data", CASES)
    return bundle


def run_two(bundle: Path, *configs: str, **options: Any) -> str:
    """Run a bundle in two processes as the pages say, and give what they printed."""
    files = [f"configs/{name}.yaml" for name in configs]
    options |= {"config_file": files, "image_size": list(SIZE), "num_workers": 0, "device": "cpu"}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "monai.bundle", "run", *arguments],
        cwd=bundle,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as torchrun sets it
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(statistics: Any) -> list[float]:
    """The values of an entry of summary.json; NaN where there is none."""
    values = statistics.values() if isinstance(statistics, dict) else [statistics]
    return [np.nan if value is None else value for value in values]


@pytest.mark.usefixtures("one_thread")
def test_evaluation_equals_that_of_one_process(bundle: Path) -> None:
    run_bundle(bundle, "train.yaml", "evaluate.yaml", image_size=list(SIZE), output_dir=str(bundle / "one"))
    printed = run_two(bundle, "train", "evaluate", "multi_gpu_evaluate", output_dir="two")
    assert printed.count("Wrote the evaluation of 5 cases") == 1

    def rows(output_dir: str) -> dict[str, list[str]]:
        with open(bundle / output_dir / "cases.csv") as file:
            return {case: values for case, *values in csv.reader(file)}

    assert len(rows("one")) == CASES + 1  # and the header
    assert rows("two") == rows("one")

    one, two = (json.loads((bundle / name / "summary.json").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        if name in ("missed", "spurious"):
            assert sorted(map(str, two[name])) == sorted(map(str, expected))
        elif name in ("patients", "unit", "volume_unit"):
            assert two[name] == expected
        else:
            assert numbers(two[name]) == pytest.approx(numbers(expected), rel=0, abs=1e-12, nan_ok=True)
    one, two = (json.loads((bundle / name / "calibration.json").read_text()) for name in ("one", "two"))
    assert len(one["regions"]) == 10  # with the foreground and three structures
    order = [two["cases"].index(case) for case in one["cases"]]
    for region, kinds in {"pooled": one["pooled"], **one["regions"]}.items():
        for kind, bins in kinds.items():
            for field, values in bins.items():
                found = np.array({"pooled": two["pooled"], **two["regions"]}[region][kind][field])
                found = found[order] if kind == "top_label_per_case" else found
                np.testing.assert_allclose(found, values, rtol=1e-12, atol=0)
    for name in ("worst", "median", "best"):
        assert (bundle / "two" / "cases" / f"{name}.png").is_file()


def test_training_gives_weights_that_one_process_can_use(bundle: Path) -> None:
    printed = run_two(bundle, "train", "multi_gpu_train", max_epochs=1, ckpt_dir="run", output_dir="run")
    assert printed.count("Epoch[1] Complete") == 2  # of training and of validation
    assert len(list((bundle / "run").glob("events.out.tfevents.*"))) == 2

    weights = torch.load(bundle / "run" / "model.pt", weights_only=True)
    inference_config(bundle).get_parsed_content("network_def").load_state_dict(weights)
    torch.testing.assert_close(torch.load(bundle / "run" / "last.ckpt", weights_only=True)["network"], weights)


@pytest.mark.parametrize("validated", [0, 1])
def test_training_with_fewer_validation_cases_than_processes(validated: int, tmp_path: Path) -> None:
    """Each process validates all of them."""
    data = make_prepared(ACDC, tmp_path / "data")
    datalist = json.loads((data / "datalist.json").read_text())
    datalist["validation"] = datalist["validation"][:validated]
    (data / "datalist.json").write_text(json.dumps(datalist))
    places = {"dataset_dir": data, "ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "eval"}
    run_two(ACDC, "train", "multi_gpu_train", max_epochs=1, **places)
    last = torch.load(tmp_path / "models" / "last.ckpt", weights_only=True)
    assert last["best_metric_epoch"] == (1 if validated else -1)
    assert (tmp_path / "models" / "model.pt").is_file()
