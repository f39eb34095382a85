"""Tables of the abdomen, from the rows of `study.abdomen.run`."""

from __future__ import annotations

from pathlib import Path

from calib_tools.report.data import derive
from study.compare.compact import read_compact
from study.tables.networks import markdown

RESULTS = Path(__file__).resolve().parents[1] / "results" / "abdomen"
ORGANS = ("liver", "kidneys", "spleen", "pancreas")


def patients_table() -> str:
    """Return the DSC of each organ of each patient of our regime, by the network that has not seen
    the patient; and by how much the voxels that are predicted as the organ are too sure.
    """
    cases = read_compact(RESULTS / "ours").cases
    tested = derive(cases[cases["test_set"] == ""], ORGANS).set_index("case").sort_index()
    rows = {
        case: [f"{row[f'dsc_{organ}']:.2f}" for organ in ORGANS] for case, row in tested.iterrows()
    }
    means = [tested[f"dsc_{organ}"].mean() for organ in ORGANS]
    rows["mean"] = [f"{mean:.2f}" for mean in means]
    gaps = [
        (tested[f"confidence_{organ}"] - tested[f"accuracy_{organ}"]).mean() for organ in ORGANS
    ]
    rows["too sure by, points"] = [f"{100 * gap:+.0f}" for gap in gaps]
    return markdown(rows, [*ORGANS])
