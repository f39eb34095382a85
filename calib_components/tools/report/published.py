"""What the paper reports: structures and tables."""

from __future__ import annotations

from collections.abc import Sequence

# The structures that the paper segments in each data set.
STRUCTURES = {
    "flare": ["liver", "kidneys", "spleen", "pancreas"],
    "acdc": ["RV", "MYO", "LV"],
    "brats": ["ET", "TC", "WT"],
}
# Murugesan et al., "Trust Your Neighbours", MICCAI 2023, Tables 1 to 3: data set -> method -> DSC, HD95, ECE, CECE.
PUBLISHED: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "flare": {
        "ce_dice": (0.846, 5.54, 0.058, 0.034),
        "focal": (0.834, 6.65, 0.053, 0.059),
        "entropy_penalty": (0.860, 5.30, 0.037, 0.027),
        "label_smoothing": (0.860, 5.33, 0.055, 0.049),
        "svls": (0.857, 5.72, 0.039, 0.036),
        "mbls": (0.836, 5.75, 0.046, 0.041),
        "nacl": (0.868, 4.88, 0.033, 0.031),
    },
    "acdc": {
        "ce_dice": (0.828, 3.14, 0.137, 0.084),
        "focal": (0.620, 7.30, 0.153, 0.179),
        "entropy_penalty": (0.782, 4.44, 0.130, 0.094),
        "label_smoothing": (0.809, 3.30, 0.083, 0.093),
        "svls": (0.824, 2.81, 0.091, 0.083),
        "mbls": (0.827, 2.99, 0.103, 0.081),
        "nacl": (0.854, 2.55, 0.048, 0.061),
        "nacl_softmax": (0.840, 2.66, 0.068, 0.071),
        "nacl_l2": (0.871, 1.78, 0.059, 0.080),
        "nacl_5x5": (0.813, 3.50, 0.078, 0.077),
        "nacl_gaussian": (0.876, 2.92, 0.042, 0.053),
        "nacl_max": (0.876, 1.74, 0.046, 0.054),
        "nacl_min": (0.881, 1.80, 0.040, 0.053),
        "nacl_median": (0.835, 3.29, 0.075, 0.075),
        "nacl_mode": (0.876, 1.62, 0.045, 0.056),
    },
    "brats": {
        "ce_dice": (0.777, 6.96, 0.178, 0.122),
        "focal": (0.848, 9.00, 0.097, 0.119),
        "entropy_penalty": (0.808, 8.71, 0.138, 0.099),
        "label_smoothing": (0.820, 7.78, 0.112, 0.108),
        "svls": (0.801, 8.44, 0.146, 0.111),
        "mbls": (0.838, 7.94, 0.127, 0.095),
        "nacl": (0.850, 5.78, 0.112, 0.097),
    },
}


def dataset_of(structures: Sequence[str]) -> str | None:
    """Return the paper's data set with these structures, whatever the images are; None if there is none."""
    return next((name for name, known in STRUCTURES.items() if known == structures), None)
