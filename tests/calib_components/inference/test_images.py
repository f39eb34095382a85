"""Images that inference finds, checks and names; no network is needed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from calib_components.errors import InputError
from calib_components.inference.images import (
    Image,
    ImageFolder,
    check_images,
    find_images,
    result_name,
)

MODALITIES = ("_flair", "_t1", "_t1ce", "_t2")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def save(path: Path, *shape: int, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4) if affine is None else affine), path)
    return path


class TestFindImages:
    def test_only_nifti_files_count_in_any_case(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.nii", "a.nii.gz", "sub/C.NII.GZ", "d.Nii", "e.f.nii.gz", "two words.nii")
        (tmp_path / "folder.nii").mkdir()
        touch(
            tmp_path, "._a.nii.gz", ".hidden.nii", ".nii", "a.nii.gz.part", "a.nii.bak", "notes.txt", "nii", "x.niigz"
        )
        assert {image.name for image in find_images(tmp_path)} == {"a", "b", "C", "d", "e.f", "two words"}

    def test_labels_and_own_maps_are_left_out(self, tmp_path: Path) -> None:
        touch(
            tmp_path,
            *(f"a{kind}.nii.gz" for kind in ("", "_gt", "_seg", "_SEG", "_label", "_probability", "_uncertainty")),
        )
        assert find_images(tmp_path) == [Image("a", (tmp_path / "a.nii.gz",))]

    def test_one_file(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.nii.gz", "b.nii.gz", "c.png")
        assert find_images(tmp_path / "b.nii.gz") == [Image("b", (tmp_path / "b.nii.gz",))]
        assert find_images(tmp_path / "c.png") == []
        assert find_images(tmp_path / "missing") == []

    def test_files_of_one_image_in_the_order_of_its_channels(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"{folder}/x{s}.nii.gz" for folder in "pq" for s in reversed(MODALITIES)), "p/whole.nii")
        touch(tmp_path, "p/x_seg.nii.gz")
        whole, *split = find_images(tmp_path, MODALITIES)
        assert whole == Image("whole", (tmp_path / "p/whole.nii",))
        assert split == [Image("x", tuple(tmp_path / f"{f}/x{s}.nii.gz" for s in MODALITIES)) for f in "pq"]

    def test_endings_may_differ_within_an_image(self, tmp_path: Path) -> None:
        touch(tmp_path, "x_flair.nii", "x_t1.nii.gz", "x_t2.nii.gz")
        (image,) = find_images(tmp_path, MODALITIES)
        assert [file.name for file in image.files] == ["x_flair.nii", "x_t1.nii.gz", "x_t1ce.nii", "x_t2.nii.gz"]

    def test_hidden_folders_are_skipped_below_the_given_one(self, tmp_path: Path) -> None:
        touch(tmp_path, ".studies/a.nii.gz", ".studies/.trash/b.nii.gz", ".studies/sub/c.nii.gz")
        assert [image.name for image in find_images(tmp_path / ".studies")] == ["a", "c"]

    def test_both_endings_of_one_image_are_two_images_of_one_name(self, tmp_path: Path) -> None:
        for ending in ("nii", "nii.gz"):
            for suffix in MODALITIES:
                save(tmp_path / f"x{suffix}.{ending}", 4, 4, 3)
        images = find_images(tmp_path, MODALITIES)
        assert [image.name for image in images] == ["x", "x"]
        with pytest.raises(InputError, match=r"^dataset_dir: expected a name of its own .* several called x, whose"):
            check_images(images, 4, tmp_path / "out")

    def test_links_to_folders_are_followed_once(self, tmp_path: Path) -> None:
        touch(tmp_path, "store/sub/a.nii", "in/b.nii")
        (tmp_path / "in" / "link").symlink_to(tmp_path / "store")
        (tmp_path / "in" / "link_again").symlink_to(tmp_path / "store")
        (tmp_path / "store" / "sub" / "loop").symlink_to(tmp_path / "store")
        assert [image.files for image in find_images(tmp_path / "in")] == [
            (tmp_path / "in/b.nii",),
            (tmp_path / "in/link/sub/a.nii",),
        ]

    def test_broken_links_and_names_of_several_lines_are_not_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
        touch(tmp_path, "b\nc.nii")
        assert [image.name for image in find_images(tmp_path)] == ["a", "b\nc"]

    def test_folder_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def scandir(path: str) -> None:  # root may read everything
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr("os.scandir", scandir)
        with pytest.raises(
            InputError, match=f"^{tmp_path}: expected a folder that can be read, got Permission denied$"
        ):
            find_images(tmp_path)

    def test_longest_suffix_counts_and_a_name_is_never_empty(self, tmp_path: Path) -> None:
        touch(tmp_path, "x_t1.nii", "x_ce_t1.nii", "_t1.nii")
        images = find_images(tmp_path, ("_t1", "_ce_t1"))
        assert [(image.name, [file.name for file in image.files]) for image in images] == [
            ("_t1", ["_t1.nii"]),
            ("x", ["x_t1.nii", "x_ce_t1.nii"]),
        ]

    def test_one_file_of_several_finds_the_others(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"x{s}.nii.gz" for s in MODALITIES), "y_t1.nii.gz")
        assert [image.name for image in find_images(tmp_path / "x_t1.nii.gz", MODALITIES)] == ["x"]


class TestCheckImages:
    def test_files_of_one_image_on_different_grids(self, tmp_path: Path) -> None:
        affine = np.diag([2.0, 2, 5, 1])
        rounded, shifted = affine + 1e-3, affine.copy()
        shifted[0, 3] = 3
        for name, other, fits in (("rounded", rounded, True), ("shifted", shifted, False)):
            files = (
                save(tmp_path / f"{name}_t1.nii", 4, 4, 3, affine=affine),
                save(tmp_path / f"{name}_t2.nii", 4, 4, 3, affine=other),
            )
            if fits:
                check_images([Image(name, files)], 2, tmp_path / "out")
            else:
                message = f"^{files[1]}: expected the voxels of {files[0]}, .*, got others, up to 3 mm away$"
                with pytest.raises(InputError, match=message):
                    check_images([Image(name, files)], 2, tmp_path / "out")

    def test_suitable_images_pass(self, tmp_path: Path) -> None:
        images = [
            Image("a", (save(tmp_path / "in/a.nii", 4, 4, 3),)),
            Image("b", (save(tmp_path / "in/b.nii", 5, 4, 1, 1),)),
        ]
        check_images(images, 1, tmp_path / "out")
        four = Image("c", (save(tmp_path / "in/c.nii.gz", 4, 4, 3, 4),))
        split = Image("d", tuple(save(tmp_path / f"in/d{s}.nii.gz", 4, 4, 3) for s in MODALITIES))
        check_images([four, split], 4, tmp_path / "out")

    @pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3, 2), (4, 4, 3, 5), (4, 4, 3, 1, 2)])
    def test_other_shapes(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        file = save(tmp_path / "a.nii", *shape)
        with pytest.raises(InputError) as error:
            check_images([Image("a", (file,))], 1, tmp_path / "out")
        assert str(error.value) == f"{file}: expected a 3D image with 1 channel(s), got shape {shape}"

    def test_each_file_of_several_is_one_channel(self, tmp_path: Path) -> None:
        files = tuple(save(tmp_path / f"a{s}.nii", 4, 4, 3, 4) for s in MODALITIES)
        with pytest.raises(InputError, match=r"a_flair.nii: expected a 3D image with 1 channel\(s\), got .*4, 4, 3, 4"):
            check_images([Image("a", files)], 4, tmp_path / "out")

    def test_missing_file_of_several(self, tmp_path: Path) -> None:
        files = tuple(tmp_path / f"a{s}.nii" for s in MODALITIES)
        for file in files[:2]:
            save(file, 4, 4, 3)
        with pytest.raises(InputError, match=f"^{files[2]}: expected a file for each channel of a, got none$"):
            check_images([Image("a", files)], 4, tmp_path / "out")

    def test_same_name_twice(self, tmp_path: Path) -> None:
        images = [Image("a", (save(tmp_path / name, 4, 4, 3),)) for name in ("p/a.nii", "q/a.nii", "p/a.nii.gz")]
        with pytest.raises(InputError, match=r"dataset_dir: expected a name of its own .* several called a, whose"):
            check_images(images, 1, tmp_path / "out")

    def test_folder_of_images_as_output(self, tmp_path: Path) -> None:
        images = [Image("a", (save(tmp_path / "in/a.nii", 4, 4, 3),))]
        with pytest.raises(InputError, match=r"^output_dir: expected a folder without images"):
            check_images(images, 1, tmp_path / "out" / ".." / "in")

    def test_folder_of_links_as_output(self, tmp_path: Path) -> None:
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "a.nii").symlink_to(save(tmp_path / "store/a.nii", 4, 4, 3))
        for output_dir in ("links", "store"):
            with pytest.raises(InputError, match=r"^output_dir: expected a folder without images"):
                check_images([Image("a", (tmp_path / "links/a.nii",))], 1, tmp_path / output_dir)

    def test_nothing_is_read_but_headers(self, tmp_path: Path) -> None:
        file = save(tmp_path / "in/a.nii.gz", 40, 40, 30)
        file.write_bytes(file.read_bytes()[:200])  # enough for the header
        check_images([Image("a", (file,))], 1, tmp_path / "out")

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 50), (3, 3, 3), (1, 50, 1), (50, 3, 2)])
    def test_slices_of_almost_no_pixels(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        file = save(tmp_path / "a.nii", *shape)
        with pytest.raises(InputError) as error:
            check_images([Image("a", (file,))], 1, tmp_path / "out")
        assert str(error.value) == f"{file}: expected slices of at least 4 x 4 pixels, got shape {shape}"

    def test_name_of_several_lines(self, tmp_path: Path) -> None:
        file = save(tmp_path / "a\nb.nii", 4, 4, 3)
        with pytest.raises(InputError, match=r"expected a name that is one line of text, got 'a\\nb'$"):
            check_images([Image("a\nb", (file,))], 1, tmp_path / "out")

    def test_name_too_long_for_its_results(self, tmp_path: Path) -> None:
        for length, fits in ((224, True), (225, False)):  # .unfinished-NAME_probability.nii.gz has 255 bytes
            image = Image("ä" + "a" * (length - 2), (save(tmp_path / f"{length}.nii", 4, 4, 3),))
            if fits:
                check_images([image], 1, tmp_path / "out")
            else:
                with pytest.raises(InputError, match=r"225.nii: expected a shorter name"):
                    check_images([image], 1, tmp_path / "out")

    def test_broken_link(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii").symlink_to("gone.nii")
        with pytest.raises(
            InputError, match=r"a.nii: expected an image, got a link to gone.nii, which does not exist$"
        ):
            check_images([Image("a", (tmp_path / "a.nii",))], 1, tmp_path / "out")

    @pytest.mark.parametrize("out", ["file", "file/out", "link"])
    def test_output_that_cannot_be_a_folder(self, out: str, tmp_path: Path) -> None:
        image = Image("a", (save(tmp_path / "in/a.nii", 4, 4, 3),))
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("gone")
        message = (
            f"^output_dir: expected a folder that can be written, got {tmp_path / out}: (Not a|No such file or) dir"
        )
        with pytest.raises(InputError, match=message):
            check_images([image], 1, tmp_path / out)

    def test_output_that_cannot_be_written(self, tmp_path: Path) -> None:
        image = Image("a", (save(tmp_path / "in/a.nii", 4, 4, 3),))
        message = r"^output_dir: expected a folder that can be written, got /proc/x/y: .+"  # root may write elsewhere
        with pytest.raises(InputError, match=message):
            check_images([image], 1, "/proc/x/y")

    def test_file_that_is_no_nifti(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").write_bytes(b"not an image")
        with pytest.raises(InputError, match=r"a.nii.gz: expected a readable NIfTI file, got ") as error:
            check_images([Image("a", (tmp_path / "a.nii.gz",))], 1, tmp_path / "out")
        assert "\n" not in str(error.value)


class TestImageFolder:
    def test_touches_nothing_before_it_is_asked(self, tmp_path: Path) -> None:
        folder = ImageFolder(tmp_path / "later", 1, [], tmp_path / "out")
        assert folder.items() == []
        file = save(tmp_path / "later" / "a.nii.gz", 4, 4, 3)
        assert folder.items() == [{"image": [str(file)]}]
        folder.check()

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, "dataset_dir: expected a NIfTI file or a folder, got {path}, which is neither"),
            (lambda path: path.mkdir(), "dataset_dir: expected .nii or .nii.gz images, got none in {path}"),
            (lambda path: path.touch(), "dataset_dir: expected .nii or .nii.gz images, got none in {path}"),
            (
                lambda path: save(path / "a.nii", 4, 4, 3, 7),
                "{path}/a.nii: expected a 3D image with 1 channel(s), got shape (4, 4, 3, 7)",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, make: object, message: str, tmp_path: Path) -> None:
        path = tmp_path / "images"
        make(path)  # type: ignore[operator]
        with pytest.raises(InputError) as error:
            ImageFolder(path, 1, [], tmp_path / "out").check()
        assert str(error.value) == message.format(path=path)

    @pytest.mark.parametrize(
        ("name", "value"), [("dataset_dir", 20241125), ("output_dir", [1]), ("dataset_dir", ""), ("output_dir", None)]
    )
    def test_number_that_monai_made_of_a_name(self, name: str, value: object, tmp_path: Path) -> None:
        places = {"path": tmp_path, "output_dir": tmp_path / "out", {"dataset_dir": "path"}.get(name, name): value}
        folder = ImageFolder(in_channels=1, file_suffixes=[], **places)  # type: ignore[arg-type]
        assert folder.items() == []
        with pytest.raises(InputError) as error:
            folder.check()
        assert str(error.value) == f"{name}: expected a path, got {value!r}; write ./NAME if it reads as a number"

    @pytest.mark.parametrize("dataset_dir", [".", "a.nii.gz"])
    def test_folder_of_the_images_is_no_place_for_results(self, dataset_dir: str, tmp_path: Path) -> None:
        save(tmp_path / "a.nii.gz", 4, 4, 3)
        with pytest.raises(InputError, match=r"^output_dir: expected a folder without images"):
            ImageFolder(tmp_path / dataset_dir, 1, [], tmp_path).check()


@pytest.mark.parametrize("name", ["a.nii.gz", "a_t1.nii.gz", "A.NII.GZ", "x.y.nii", "two words.nii.gz", "x$_$y.nii"])
def test_results_are_named_after_the_image(name: str, tmp_path: Path) -> None:
    save(tmp_path / name, 4, 4, 3)
    (found,) = find_images(tmp_path / name, MODALITIES)
    assert result_name(tmp_path / name, MODALITIES) == found.name
