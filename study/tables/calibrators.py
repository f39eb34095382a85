"""What calibrators do at home and elsewhere, from saved logits: `study/results/calibrators`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from calib_components.metrics import measures
from calib_components.metrics.measures import Case
from calib_components.posthoc import Calibrator, ClassBias, TemperatureScaling, VectorScaling

HOME, FITTED_ON = "home", "validation"
MEASURES = {  # of a case, and their titles
    "nll_all": "NLL all",
    "nll_predicted": "NLL predicted",
    "ece_predicted": "ECE predicted",
    "dsc_bias": "expected DSC - DSC",
    "volume_bias": "expected volume, %",
}
REGIONAL = ("nll", "ece")
MEASURED = [
    each
    for each in measures.MEASURES
    if each.name in (*REGIONAL, "dsc", "expected_dsc", "expected_volume", "true_volume")
]
NETWORKS = {
    "acdc_nacl": "ACDC, NACL softmax",
    "hippocampus_nacl": "hippocampus, NACL",
    "hippocampus_ce_dice": "hippocampus, CE + Dice",
}
SITES = {HOME: HOME, "bssfp": "bSSFP", "vendor_a": "vendor A", "vendor_b": "vendor B", "lge": "LGE"}
SITES |= {name: name for name in ("ghosting", "ringing")}
# Calibrator, region, and suffix of the set that it is fitted on
FITS: dict[str, tuple[type[Calibrator], str, str]] = {
    "T": (TemperatureScaling, "all", ""),
    "T predicted": (TemperatureScaling, "predicted", ""),
    "bias": (ClassBias, "all", ""),
    "vector": (VectorScaling, "all", ""),
    "vector predicted": (VectorScaling, "predicted", ""),
    "T perturbed": (TemperatureScaling, "all", "_strength1"),
    "T perturbed twice": (TemperatureScaling, "all", "_strength2"),
    "T predicted perturbed": (TemperatureScaling, "predicted", "_strength1"),
    "vector perturbed": (VectorScaling, "all", "_strength1"),
}


def ghosting(image: torch.Tensor, weaker: float = 0.8) -> torch.Tensor:
    """Ghosts half a field of view away: every other line of k-space along axis 2 is weaker, but for
    the central 4 %.
    """
    size = image.shape[2]
    line = torch.arange(size)
    factors = torch.where(
        (line % 2 == 0) & ((line - size // 2).abs() > max(1, int(0.02 * size))), 1 - weaker, 1.0
    )
    k_space = (
        torch.fft.fftshift(torch.fft.fftn(image, dim=(1, 2, 3)), dim=(1, 2, 3)) * factors[:, None]
    )
    changed = torch.fft.ifftn(torch.fft.ifftshift(k_space, dim=(1, 2, 3)), dim=(1, 2, 3)).real
    return (changed - changed.mean()) / changed.std() * image.std() + image.mean()


def read_logits(folder: Path) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """Yield case, patient, logits `(1, N, *S)` and labels `(1, 1, *S)` of the .npz files of a
    folder.
    """
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as saved:
            logits, y = (torch.from_numpy(saved[key])[None] for key in "ly")
            yield file.stem, str(saved["patient"]), logits, y[None]


def fit(kind: type[Calibrator], region: str, folder: Path) -> tuple[Calibrator, Any]:
    """Return a calibrator fitted on the logits of a folder, and its estimate."""
    calibrator = kind(region)
    for _ in calibrator.passes():
        for _, patient, logits, y in read_logits(folder):
            calibrator.update(logits, y, patient)
    return calibrator, calibrator.compute()


def measure(
    logits: torch.Tensor, y: torch.Tensor, structures: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Return the errors of the probabilities of a case, logits `(N, *S)` and labels `(*S)`."""
    p, predicted = logits.softmax(0), logits.argmax(0)
    case, inside = Case(y[None].long(), structures, p, predicted), predicted > 0
    sure = {
        "confidence": p.amax(0)[inside].mean().item(),
        "accuracy": (predicted == y)[inside].double().mean().item(),
    }
    return sure | {
        each.column(place): value
        for each in MEASURED
        for place, value in each.function(case).items()
        if each.name not in REGIONAL or place in ("all", "predicted")
    }


def compare_calibrators(
    logits: Path, out: Path, structures: Mapping[str, Mapping[str, Sequence[int]]]
) -> None:
    """Fit all calibrators on the validation cases of each network, and measure them on all other
    sets.

    Args:
        logits: Folders NETWORK/SET of .npz files with `l` `(N, *S)`, `y` `(*S)` and `patient`.
            `validation`, and `validation_strength1` and `validation_strength2`, of
            `configs/perturb.yaml`, are fitted on.
        out: Folder for `cases.csv.gz` and `fits.csv`.
        structures: Class indices by name, of each network.
    """
    rows, fits = [], []
    for network in sorted(path for path in logits.iterdir() if path.is_dir()):
        calibrators: dict[str, Calibrator] = {"none": TemperatureScaling()}
        for name, (kind, region, suffix) in FITS.items():
            calibrators[name], estimate = fit(kind, region, network / f"{FITTED_ON}{suffix}")
            row = {"network": network.name, "calibrator": name, "summary": estimate.summary()}
            row |= {key: getattr(estimate, key) for key in ("nll_before", "nll_after", "patients")}
            row |= {
                "effect": estimate.effect(),
                "nll_left_out": getattr(estimate, "nll_left_out", None),
            }
            fits.append(row)
            print(network.name, name, estimate.summary(), *estimate.warnings(), flush=True)
        sites = [path for path in sorted(network.iterdir()) if not path.name.startswith(FITTED_ON)]
        for site in sites:
            for case, patient, values, y in read_logits(site):
                keys = {
                    "network": network.name,
                    "site": site.name,
                    "case": case,
                    "patient": patient,
                }
                for name, calibrator in calibrators.items():
                    found = measure(calibrator(values)[0], y[0, 0], structures[network.name])
                    rows.append({**keys, "calibrator": name, **found})
            print(network.name, site.name, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(out / "cases.csv.gz", index=False, float_format="%.6g")
        pd.DataFrame(fits).to_csv(out / "fits.csv", index=False, float_format="%.6g")


def summarize(folder: Path) -> pd.DataFrame:
    """Return means over the cases of each network, site and calibrator, and their 95 % intervals
    over patients.

    The bias of the expected DSC is a mean over the structures that it is defined for; that of the
    expected volume, in percent, is of the sum over structures and cases.
    """
    cases = pd.read_csv(folder / "cases.csv.gz")
    for name in ("dsc", "expected_dsc", "expected_volume", "true_volume"):
        cases[name] = cases.filter(regex=f"^{name}_").mean(axis=1)
    cases["dsc_bias"] = cases["expected_dsc"] - cases["dsc"]
    records = []
    for keys, own in cases.groupby(["network", "site", "calibrator"], sort=False):
        patients, columns = (
            own.groupby("patient"),
            [*list(MEASURES)[:-1], "expected_volume", "true_volume"],
        )
        sums, counts = patients[columns].sum().to_numpy(), patients.size().to_numpy()[:, None]
        rng = np.random.default_rng(0)
        times = np.vstack(
            [
                np.ones(len(sums)),
                rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), 2000),
            ]
        )
        total = times @ sums
        values = np.column_stack(
            [total[:, :-2] / (times @ counts), 100 * (total[:, -2] / total[:, -1] - 1)]
        )
        low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
        for measure, *numbers in zip(MEASURES, values[0], low, high, strict=True):
            records.append([*keys, measure, *numbers])
    columns = ["network", "site", "calibrator", "measure", "mean", "low", "high"]
    return pd.DataFrame(records, columns=columns)


def tabulate(means: pd.DataFrame) -> str:
    """Return the means of all measures as a table in Markdown."""
    lines = [["network", "set", "calibrator", *MEASURES.values()], ["---"] * (3 + len(MEASURES))]
    for network, site, name, mean in _means(means):
        numbers = [
            f"{mean[key]:+.3f}" if key == "dsc_bias" else f"{mean[key]:.4f}"
            for key in [*MEASURES][:-1]
        ]
        lines.append(
            [NETWORKS[network], SITES[site], name, *numbers, f"{mean['volume_bias']:+.1f}"]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _means(means: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.Series]]:
    """Yield network, set, calibrator and means, in the order of tables."""
    groups = dict(list(means.groupby(["network", "site", "calibrator"])))
    for network, site, name in itertools.product(NETWORKS, SITES, ("none", *FITS)):
        if (network, site, name) in groups:
            yield network, site, name, groups[network, site, name].set_index("measure")["mean"]
