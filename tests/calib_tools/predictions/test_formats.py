"""Saved probabilities are read in every format that people have, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib_components.errors import InputError
from calib_tools.predictions.formats import (
    Nifti,
    NnUNetArray,
    PlainArray,
    Reader,
)
from tests.calib_tools.predictions.made_up import (
    AFFINE,
    SHAPE,
    label_of,
    save_channels_last,
    save_nifti,
    save_nnunet,
    save_rounded,
    softmax_of,
)

P = softmax_of(0)
TINY = float(np.finfo(np.float32).tiny)


def array(folder: Path, values: np.ndarray) -> PlainArray:
    folder.mkdir(exist_ok=True)
    np.save(folder / "case.npy", values)
    return PlainArray(folder / "case.npy")


def nnunet(folder: Path, p: np.ndarray, *arguments: Any, **options: Any) -> NnUNetArray:
    return NnUNetArray(save_nnunet(folder, "case", p, *arguments, **options))


def nifti(file: Path) -> Nifti:
    return Nifti(file)


def test_every_format_gives_the_same_probabilities(tmp_path: Path) -> None:
    everything: dict[str, Reader] = {
        "4D": nifti(save_channels_last(tmp_path / "case.nii.gz", P)),
        "64 bits": nifti(save_channels_last(tmp_path / "c64.nii", P.astype(np.float64))),
        "npz": nnunet(tmp_path / "a", P, AFFINE, dtype=np.float32),
        "npy": array(tmp_path / "alone", P),
    }
    for name, prediction in everything.items():
        stored, header = prediction.probabilities(sigmoid=False), prediction.header()
        np.testing.assert_allclose(stored.values, P, atol=1e-7, err_msg=name)
        assert (stored.values.dtype, stored.lowest) == (np.float32, TINY), name
        assert (header.channels, header.shape) == (3, SHAPE), name
        if name == "npy":
            assert header.affine is None
        else:
            np.testing.assert_allclose(header.affine, AFFINE, atol=1e-4, err_msg=name)
    assert nifti(save_nifti(tmp_path / "map.nii", label_of(0))).header().channels == 0


def test_three_axes_are_one_channel_and_the_first_can_be_skipped(tmp_path: Path) -> None:
    for prediction in (array(tmp_path, P[1]), nifti(save_nifti(tmp_path / "case.nii", P[1]))):
        assert prediction.header().channels == 1
        np.testing.assert_array_equal(prediction.probabilities(sigmoid=True).values, P[1:2])
    np.testing.assert_array_equal(
        array(tmp_path, P).probabilities(sigmoid=True, skip=1).values, P[1:]
    )


@pytest.mark.parametrize(
    ("dtype", "slope"), [(np.uint8, 1 / 255), (np.uint16, 1 / 65535), (np.int16, 1 / 32767)]
)
def test_rounded_probabilities_add_up_again(dtype: type, slope: float, tmp_path: Path) -> None:
    p = softmax_of(1, channels=8)
    stored = nifti(save_rounded(tmp_path / "case.nii", p, dtype, slope)).probabilities(
        sigmoid=False
    )
    # What 0 and 1 can have been
    assert (stored.lowest, stored.highest) == pytest.approx((slope / 2, 1 - slope / 2))
    rounded = np.rint(p / slope)
    np.testing.assert_allclose(stored.values, rounded / rounded.sum(0), atol=1e-6)


def test_values_slightly_beyond_the_range_are_clipped_and_half_precision_has_limits(
    tmp_path: Path,
) -> None:
    p = np.stack([np.full(SHAPE, 1.0005), np.full(SHAPE, -0.0005)])
    stored = nnunet(tmp_path, p).probabilities(sigmoid=False)
    assert (stored.values[0].min(), stored.values[1].max()) == (1, 0)
    assert stored.lowest == np.finfo(np.float16).smallest_subnormal / 2
    assert stored.highest == (1 + np.nextafter(np.float16(1), np.float16(0))) / 2


@pytest.mark.parametrize(
    ("values", "sigmoid", "expected"),
    [
        (4 * P - 2, False, "softmax"),
        (4 * P - 2, True, "sigmoid"),
        (100 * P, False, "percentages"),
        (np.where(P[0, 0, 0, 0] == P, np.nan, P), False, "NaN"),
        (P[:2], False, "--sigmoid"),
        (P, True, "sum to 1 along C.* --sigmoid"),
        (np.where(np.arange(4) == 1, 0, P), False, "background 1"),
        ((255 * P).astype(np.uint8), False, "scale factor"),
        (P > 0.5, True, "bool"),
        (P[None], False, "5 axes"),
        (np.array([[[[{}]]]]), False, "array of numbers"),
    ],
)
def test_what_is_no_probability_is_refused(
    values: np.ndarray, sigmoid: bool, expected: str, tmp_path: Path
) -> None:
    prediction = array(tmp_path, values)
    with pytest.raises(InputError, match=f"case.npy.*{expected}"):  # noqa: PT012
        prediction.header()
        prediction.probabilities(sigmoid)


@pytest.mark.parametrize(
    ("dtype", "slope"), [(np.float32, 0), (np.float16, 0), (np.uint8, 1 / 255)]
)
def test_classes_of_a_softmax_are_no_slices(dtype: type, slope: float, tmp_path: Path) -> None:
    p = softmax_of(0, channels=12, shape=(20, 16))
    if slope:
        last = nifti(save_rounded(tmp_path / "last.nii", p[None], dtype, slope))
        readers: list[Reader] = [last]
    else:
        p = p.astype(dtype)
        readers = [array(tmp_path / str(each.shape), each) for each in (p, p[None], p[..., None])]
        readers[2] = nifti(save_channels_last(tmp_path / "last.nii", p.astype(np.float32)))
    for reader in readers:
        assert reader.header().channels == 1
        with pytest.raises(InputError, match=r"sum to 1 along [XZ], .* \(C, X, Y, 1\)"):
            reader.probabilities(sigmoid=True)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", logits=P)
    (tmp_path / "text.npz").write_text("no archive")
    cut = save_channels_last(tmp_path / "cut.nii", P)
    cut.write_bytes(cut.read_bytes()[:-50])
    for prediction, expected in (
        (NnUNetArray(tmp_path / "other.npz"), "other.npz.*probabilities"),
        (NnUNetArray(tmp_path / "text.npz"), "text.npz"),
        (nifti(save_nifti(tmp_path / "5d.nii", P[:, None])), "5d.nii"),
        (nifti(cut), "cut.nii"),
    ):
        with pytest.raises(InputError, match=expected):
            prediction.header()


def test_a_segmentation_beside_an_array_gives_its_grid(tmp_path: Path) -> None:
    save_nifti(tmp_path / "case.nii.gz", label_of(0))
    beside = nnunet(tmp_path, P)
    np.testing.assert_allclose(beside.header().affine, AFFINE, atol=1e-4)
    save_nnunet(tmp_path, "case", P[:, 1:])
    with pytest.raises(InputError, match="shape"):
        beside.header()


def test_label_maps_are_whole_numbers_in_any_format(tmp_path: Path) -> None:
    label = label_of(0)
    for reader in (
        nifti(save_nifti(tmp_path / "a.nii", label.astype(np.float32)[..., None])),
        # By a scale factor
        nifti(save_nifti(tmp_path / "b.nii", label * np.float32(1.000015))),
        array(tmp_path, label),
    ):
        np.testing.assert_array_equal(reader.label_codes(), label)
    for values in (P[0], np.full(SHAPE, np.nan, np.float32), P):
        with pytest.raises(InputError, match=r"a\.nii"):
            nifti(save_nifti(tmp_path / "a.nii", values)).label_codes()
