"""Saved probabilities are read in every form that people have, and checked."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.tools.evaluate.formats import (
    Prediction,
    read_header,
    read_label_map,
    read_probabilities,
    turn_onto,
)
from calib_components.tools.evaluate.plain_pickle import load_plain
from tests.calib_components.tools.evaluate.made_up import (
    AFFINE,
    SHAPE,
    label_of,
    nibabel_properties,
    save_channels_last,
    save_nifti,
    save_nnunet,
    save_rounded,
    sitk_properties,
    softmax_of,
)

P = softmax_of(0)

TINY = float(np.finfo(np.float32).tiny)


def one(kind: str, *files: Path, grid: Path | None = None) -> Prediction:
    return Prediction("case", kind, files, () if grid is None else (grid,))  # type: ignore[arg-type]


def read(prediction: Prediction, sigmoid: bool = False) -> np.ndarray:
    return read_probabilities(prediction, sigmoid).values


def save_npy(file: Path, values: np.ndarray) -> Path:
    np.save(file, values)
    return file


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, Prediction]:
    """The same probabilities in every form."""
    separate = [save_nifti(tmp_path / f"case_{index}.nii", channel) for index, channel in enumerate(P)]
    properties = nibabel_properties(original_affine=AFFINE)
    return {
        "4D": one("probability", save_channels_last(tmp_path / "case.nii.gz", P)),
        "4D, uncompressed, 64 bits": one("probability", save_channels_last(tmp_path / "c64.nii", P.astype(np.float64))),
        "channels": one("channels", *separate),
        "npz": one("npz", save_nnunet(tmp_path, "a", P, properties, dtype=np.float32), grid=tmp_path / "a.pkl"),
        "npz of version 1": one("npz", save_nnunet(tmp_path, "b", P, key="softmax", dtype=np.float32)),
        "npy": one("npy", save_npy(tmp_path / "case.npy", P)),
    }


def test_every_form_gives_the_same_probabilities(everything: dict[str, Prediction]) -> None:
    for form, prediction in everything.items():
        stored = read_probabilities(prediction, sigmoid=False)
        np.testing.assert_allclose(stored.values, P, atol=1e-7, err_msg=form)
        assert (stored.values.dtype, stored.step, stored.lowest) == (np.float32, 0, TINY), form
        header = read_header(prediction)
        assert (header.channels, header.shape) == (3, SHAPE), form
        if form in ("npy", "npz of version 1"):
            assert header.affine is None is stored.affine
        else:
            np.testing.assert_allclose(header.affine, AFFINE, atol=1e-4, err_msg=form)
            np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-4, err_msg=form)


@pytest.mark.parametrize("form", ["nii", "npy"])
def test_three_axes_are_one_channel(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"case.{form}"
    if form == "nii":
        save_nifti(file, P[1])
    else:
        np.save(file, P[1])
    prediction = one("npy" if form == "npy" else "probability", file)
    assert read_header(prediction).channels == 1
    np.testing.assert_array_equal(read(prediction, sigmoid=True), P[1:2])


def test_the_background_before_structures_can_be_skipped(tmp_path: Path) -> None:
    prediction = one("probability", save_channels_last(tmp_path / "case_probability.nii", P))
    np.testing.assert_array_equal(read_probabilities(prediction, sigmoid=True, skip=1).values, P[1:])


@pytest.mark.parametrize(("dtype", "slope"), [(np.uint8, 1 / 255), (np.uint16, 1 / 65535), (np.int16, 1 / 32767)])
def test_rounded_probabilities_add_up_again(dtype: type, slope: float, tmp_path: Path) -> None:
    p = softmax_of(1, channels=8)
    stored = read_probabilities(one("probability", save_rounded(tmp_path / "case.nii", p, dtype, slope)), False)
    assert stored.step == pytest.approx(slope, rel=1e-6)
    assert (stored.lowest, stored.highest) == (stored.step / 2, 1 - stored.step / 2)
    np.testing.assert_allclose(stored.values.sum(0), 1, atol=1e-6)
    rounded = np.rint(p / slope)
    np.testing.assert_allclose(stored.values, rounded / rounded.sum(0), atol=1e-6)


def test_cut_off_instead_of_rounded_bytes_are_accepted(tmp_path: Path) -> None:
    p = np.full((20, *SHAPE), 0.05, np.float32)  # 12.75 of 255: the sum of 20 times 12 is 0.94
    file = save_rounded(tmp_path / "case.nii", np.floor(p * 255) / 255, np.uint8, 1 / 255)
    np.testing.assert_allclose(read(one("probability", file)), 0.05, atol=1e-6)


def test_half_precision_says_what_its_zeros_can_have_been(tmp_path: Path) -> None:
    tiny = np.zeros((2, *SHAPE), np.float32)
    tiny[0], tiny[1] = 1 - 1e-9, 1e-9
    stored = read_probabilities(one("npz", save_nnunet(tmp_path, "case", tiny)), sigmoid=False)
    assert (stored.values[1].max(), stored.step) == (0, 0)
    assert stored.lowest == np.finfo(np.float16).smallest_subnormal / 2
    assert stored.highest == (1 + np.nextafter(np.float16(1), np.float16(0))) / 2


def test_sigmoids_are_left_as_they_are(tmp_path: Path) -> None:
    p = np.stack([P[0], np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.float32)])
    np.testing.assert_array_equal(read(one("npy", save_npy(tmp_path / "case.npy", p)), sigmoid=True), p)


def test_values_slightly_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    p = np.stack([np.full(SHAPE, 1.0005), np.full(SHAPE, -0.0005)]).astype(np.float32)
    stored = read(one("npy", save_npy(tmp_path / "case.npy", p)))
    assert (stored[0].min(), stored[1].max()) == (1, 0)


@pytest.mark.parametrize(
    ("values", "sigmoid", "expected"),
    [
        (4 * P - 2, False, r"from 0 to 1, got -.*, logits\?; apply softmax"),
        (4 * P - 2, True, "apply sigmoid"),
        (100 * P, False, r"percentages\?; divide them by 100"),
        (np.round(3 * P + 1), False, "label codes stored as floating-point numbers"),
        (np.where(P[0, 0, 0, 0] == P, np.nan, P), False, "expected finite probabilities, got NaN or infinity"),
        (P[:2], False, "2 classes that add up to 1 in every voxel, got sums from .*; --sigmoid reads"),
        (np.where(np.arange(4) == 1, 0, P), False, "25 % of voxels have no probability at all; give the background 1"),
        ((255 * P).astype(np.uint8), False, "as floating-point numbers or as integers with a scale factor"),
        (P > 0.5, True, "as floating-point numbers or .*, got bool"),
        (P.astype(np.complex64), False, "got complex64"),
        (P[None], False, r"expected an array of shape \(C, X, Y, Z\), got \(1, 3, 6, 5, 4\)"),
        (np.array([[[[{}]]]]), False, "expected an array of numbers, as numpy saves it"),
    ],
)
def test_what_is_no_probability_is_refused(values: np.ndarray, sigmoid: bool, expected: str, tmp_path: Path) -> None:
    file = save_npy(tmp_path / "case.npy", values)
    with pytest.raises(InputError, match=f"^{file}: .*{expected}"):
        read(one("npy", file), sigmoid)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", logits=P)
    with pytest.raises(InputError, match=r"other.npz: expected an array called probabilities, .* got logits"):
        read_header(one("npz", tmp_path / "other.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"text.npz: expected an array of numbers, .* not a zip file"):
        read_header(one("npz", tmp_path / "text.npz"))
    with pytest.raises(InputError, match=r"5d.nii: expected a volume of shape \(X, Y, Z, C\) or \(X, Y, Z\), got"):
        read_header(one("probability", save_nifti(tmp_path / "5d.nii", P[:, None])))
    integers = save_nifti(tmp_path / "integers.nii", (255 * P).astype(np.uint8))
    with pytest.raises(InputError, match=r"integers.nii: .*scale factor.* got uint8 without one"):
        read(one("probability", integers))
    whole = save_channels_last(tmp_path / "cut.nii", P)
    whole.write_bytes(whole.read_bytes()[:-50])
    with pytest.raises(InputError, match="it is truncated"):
        read(one("probability", whole))
    first = save_nifti(tmp_path / "case_0.nii", P[0])
    for other in (
        save_nifti(tmp_path / "shape.nii", P[1, 1:]),
        save_nifti(tmp_path / "place.nii", P[1], AFFINE + np.eye(4)[:, [3, 3, 3, 0]]),
    ):
        with pytest.raises(InputError, match=rf"{other}: expected the voxels of {first}"):
            read_header(one("channels", first, other))


def test_properties_of_both_readers_give_the_affine(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(save_nifti(tmp_path / "image.nii", P[0])))
    theirs = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    for properties, expected in (
        ({"sitk_stuff": theirs}, AFFINE),
        (sitk_properties(), AFFINE),
        (nibabel_properties(original_affine=AFFINE), AFFINE),
        (nibabel_properties(original_affine=AFFINE, reoriented_affine=flipped), flipped),  # the array's own axes
    ):
        file = save_nnunet(tmp_path, "case", P, properties)
        header = read_header(one("npz", file, grid=tmp_path / "case.pkl"))
        np.testing.assert_allclose(header.affine, expected, atol=1e-4)
    file = save_nnunet(tmp_path, "case", P, {"spacing": [1.0, 1.0, 1.0]})  # of a reader that records no affine
    assert read_header(one("npz", file, grid=tmp_path / "case.pkl")).affine is None


@pytest.mark.parametrize("protocol", range(6))
def test_properties_of_every_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    file = save_nnunet(tmp_path, "case", P)
    (tmp_path / "case.pkl").write_bytes(pickle.dumps(sitk_properties() | {"more": AFFINE}, protocol))
    header = read_header(one("npz", file, grid=tmp_path / "case.pkl"))
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-6)


class Harmful:
    """Its pickle runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_data_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = save_nnunet(tmp_path, "case", P, sitk_properties() | {"more": Harmful(mark)})
    with pytest.raises(InputError, match=r"case.pkl: expected the properties .*mkdir, which is no plain value"):
        read_header(one("npz", file, grid=tmp_path / "case.pkl"))
    assert not mark.exists()
    pickle.loads((tmp_path / "case.pkl").read_bytes())
    assert mark.exists()  # so the file was harmful


class Forged:
    """Its pickle makes a dtype of objects, with which numpy would take bytes of the file for an address."""

    def __init__(self, state: tuple) -> None:
        self.state = state

    def __reduce__(self) -> tuple:
        return np.dtype, ("f8", False, True), self.state


@pytest.mark.parametrize(
    "more",
    [
        np.array([None]),
        np.array(["text"]),
        np.zeros(2, "f8,f8"),
        np.dtype("O"),
        Forged((3, "O", None, None, None, -1, -1, 63)),
    ],
    ids=["objects", "texts", "fields", "dtype", "forged"],
)
def test_arrays_of_something_else_than_numbers_are_refused(more: object, tmp_path: Path) -> None:
    file = save_nnunet(tmp_path, "case", P, sitk_properties() | {"more": more})
    with pytest.raises(InputError, match=r"case.pkl: expected the properties of an image that nnU-Net saves, got "):
        read_header(one("npz", file, grid=tmp_path / "case.pkl"))


@pytest.mark.parametrize(
    "values", [np.float32(1.5), np.int64(3), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2), ">i2")]
)
def test_numbers_of_a_pickle(values: np.ndarray) -> None:
    for protocol in range(6):
        found = load_plain(pickle.dumps({"a": [values]}, protocol))["a"][0]
        np.testing.assert_array_equal(found, values)


def test_lists_within_lists_are_read_once_each() -> None:
    """Read wherever they appear, they would take 2 ** 60 steps."""
    lists: list = [1.5]
    for _ in range(60):
        lists = [lists, lists]
    found = load_plain(pickle.dumps({"a": lists}))["a"]
    for _ in range(60):
        found = found[1]
    assert found == [1.5]


class Vast:
    """Its pickle makes an array of as many bytes as a number says, without having them."""

    def __reduce__(self) -> tuple:
        return np.arange(3).__reduce_ex__(5)[0], (10**6, np.dtype("u1"), (10**6,), "C")


def test_an_array_without_its_bytes_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="an array of something else than numbers"):
        load_plain(pickle.dumps(Vast()))


def test_bytes_that_are_not_there_take_no_memory() -> None:
    """For so many, Python's own reader ends with a MemoryError."""
    with pytest.raises(pickle.UnpicklingError, match="truncated"):
        load_plain(b"\x80\x05" + pickle.BYTEARRAY8 + (2**60).to_bytes(8, "little"))


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (3, 0, 5, 4)])
def test_arrays_without_a_voxel_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", probabilities=np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"case.npz: expected every side of the array to be at least 1, got \("):
        read_header(one("npz", tmp_path / "case.npz"))


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps([1]), pickle.dumps({"sitk_stuff": {"spacing": (1, 1)}})]
)
def test_broken_properties_are_named(content: bytes, tmp_path: Path) -> None:
    file = save_nnunet(tmp_path, "case", P)
    (tmp_path / "case.pkl").write_bytes(content)
    if content == pickle.dumps([1]):
        assert read_header(one("npz", file, grid=tmp_path / "case.pkl")).affine is None
        return
    with pytest.raises(InputError, match=r"case.pkl: expected the properties of an image"):
        read_header(one("npz", file, grid=tmp_path / "case.pkl"))


def test_a_segmentation_beside_an_array_gives_its_grid(tmp_path: Path) -> None:
    grid = save_nifti(tmp_path / "case.nii.gz", label_of(0))
    header = read_header(one("npz", save_nnunet(tmp_path, "case", P), grid=grid))
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-4)
    cropped = save_nnunet(tmp_path, "case", P[:, 1:], key="softmax")
    with pytest.raises(InputError, match=r"case.npz: expected the shape of .*case.nii.gz beside it, \(6, 5, 4\), got"):
        read_header(one("npz", cropped, grid=grid))


def test_changed_byte_of_a_compressed_file(tmp_path: Path) -> None:
    """nibabel does not look at the checksum at the end."""
    noise = np.random.default_rng(0).integers(0, 3, (20, 20, 20)).astype(np.uint8)
    label, probability = save_nifti(tmp_path / "label.nii.gz", noise), save_nifti(tmp_path / "p.nii.gz", noise / 2)
    for file in (label, probability):
        content = bytearray(file.read_bytes())
        content[-8] ^= 1  # of the checksum, so that all is read before
        file.write_bytes(content)
    with pytest.raises(InputError, match=f"^{label}: expected a complete NIfTI file, got CRC check failed"):
        read_label_map(label)
    prediction = one("probability", probability)
    with pytest.raises(InputError, match=f"^{probability}: expected a complete NIfTI file, got CRC check failed"):
        read_probabilities(prediction, sigmoid=True)


def test_label_maps_are_whole_numbers(tmp_path: Path) -> None:
    label = label_of(0)
    for dtype in (np.uint8, np.int32, np.float32):
        codes, affine = read_label_map(save_nifti(tmp_path / "label.nii", label.astype(dtype)))
        np.testing.assert_array_equal(codes, label)
        assert codes.dtype.kind in "iu"
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
    np.testing.assert_array_equal(read_label_map(save_nifti(tmp_path / "4d.nii", label[..., None]))[0], label)
    with pytest.raises(InputError, match=r"label.nii: expected label codes of at most 64 bits, got -1e\+30$"):
        read_label_map(save_nifti(tmp_path / "label.nii", np.where(label == 2, -1e30, label).astype(np.float32)))
    for wrong in (label + 0.5, np.full(SHAPE, np.nan), label[..., 0]):
        with pytest.raises(InputError, match=r"label.nii: expected (whole numbers|a label of shape)"):
            read_label_map(save_nifti(tmp_path / "label.nii", wrong.astype(np.float32)))


def test_turning_is_found_between_two_axes(tmp_path: Path) -> None:
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=np.pi / 4) @ np.diag([1.5, 1.25, 8.0]))
    for axes in ([[1, 1], [0, 1], [2, 1]], [[1, -1], [0, 1], [2, 1]], [[0, -1], [1, -1], [2, 1]]):
        turned = nib.Nifti1Image(P[0], affine).as_reoriented(np.array(axes))
        file = save_nifti(tmp_path / "case.nii", np.array(turned.dataobj), turned.affine)
        turn = turn_onto(read_header(one("probability", file)), affine, SHAPE, ("prediction", "label"))
        np.testing.assert_array_equal(nib.orientations.apply_orientation(np.array(turned.dataobj), turn), P[0])


def test_turning_is_found_from_the_affines(tmp_path: Path) -> None:
    image = nib.Nifti1Image(P[0], AFFINE)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    header = read_header(one("probability", save_nifti(tmp_path / "case.nii", np.array(turned.dataobj), turned.affine)))
    names = ("prediction", "label")
    turn = turn_onto(header, AFFINE, SHAPE, names)
    np.testing.assert_array_equal(nib.orientations.apply_orientation(np.array(turned.dataobj), turn), P[0])
    same = read_header(one("probability", save_nifti(tmp_path / "same.nii", P[0])))
    assert turn_onto(same, AFFINE, SHAPE, names) is None
    shifted = AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 2
    with pytest.raises(InputError, match="prediction: expected the voxels of label, got some that lie up to 2 mm off"):
        turn_onto(same, shifted, SHAPE, names)
    with pytest.raises(InputError, match=r"prediction: expected shape \(6, 5, 3\) as in label, got \(6, 5, 4\)"):
        turn_onto(same, AFFINE, (6, 5, 3), names)


def test_reversed_axes_of_an_array_are_named(tmp_path: Path) -> None:
    header = read_header(one("npy", save_npy(tmp_path / "case.npy", P.transpose(0, 3, 2, 1))))
    with pytest.raises(InputError, match=r"case: expected shape .* got \(4, 5, 6\); its axes are in reverse order"):
        turn_onto(header, AFFINE, SHAPE, ("case", "label"))
