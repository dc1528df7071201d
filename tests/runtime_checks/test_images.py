"""Class folders, and the way from an image file to a network's input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.images import list_images, list_unlabelled, network_input
from gdfq_export.runtime_checks.input_spec import Preprocessing

PLAIN = Preprocessing(height=4, width=6, channels=3, resize=None, mean=(0.0,) * 3, std=(1.0,) * 3, raw=False)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_are_listed_by_class_and_name_and_other_files_left_out(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPEG", "a/x/deep.png", "a/.hidden.png"):
        save(tmp_path / name, noise(2, 2))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "labels.json").write_text("{}")
    listed = [(image.path.relative_to(tmp_path).as_posix(), image.label) for image in list_images(tmp_path, 2)]
    assert listed == [("a/x/deep.png", 0), ("b/1.JPEG", 1), ("b/2.png", 1)]
    named = [image.label for image in list_images(tmp_path, 3, ("b", "c", "a"))]
    assert named == [2, 0, 0]


def test_an_empty_class_folder_still_counts_as_a_class(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save(tmp_path / "b" / "1.png", noise(2, 2))
    assert [image.label for image in list_images(tmp_path, 2)] == [1]


def test_folders_that_do_not_tell_their_class_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", noise(2, 2))
    with pytest.raises(CheckError, match=rf"{tmp_path.name}: 1 folders for 2 classes"):
        list_images(tmp_path, 2)


def test_folders_without_images_are_one_sentence(tmp_path: Path) -> None:
    for listed in (lambda folder: list_images(folder, 1), list_unlabelled):
        with pytest.raises(CheckError, match="no such folder"):
            listed(tmp_path / "none")
    with pytest.raises(CheckError, match="no class folders in it"):
        list_images(tmp_path, 1)
    (tmp_path / "a").mkdir()
    with pytest.raises(CheckError, match="no images in its 1 folders"):
        list_images(tmp_path, 1)
    with pytest.raises(CheckError, match="no images in it"):
        list_unlabelled(tmp_path)


def test_without_labels_images_may_lie_anywhere(tmp_path: Path) -> None:
    for name in ("1.png", "b/2.png", "b/c/3.png", "b/.hidden.png"):
        save(tmp_path / name, noise(2, 2))
    (tmp_path / "notes.txt").write_text("no image")
    listed = [path.relative_to(tmp_path).as_posix() for path in list_unlabelled(tmp_path)]
    assert listed == ["1.png", "b/2.png", "b/c/3.png"]


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = noise(4, 6)
    path = save(tmp_path / "x.png", pixels)
    made = network_input(path, replace(PLAIN, resize=100))
    assert made.dtype == np.float32
    assert np.array_equal(made, (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1))


def test_mean_and_std_are_of_pixels_between_zero_and_one(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", np.full((4, 6, 3), (0, 255, 51), dtype=np.uint8))
    made = network_input(path, replace(PLAIN, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 1.0)))
    assert np.array_equal(made[:, 0, 0], np.float32([-1, 2, 0.2]))


def test_raw_input_is_the_pixels_with_channels_last(tmp_path: Path) -> None:
    pixels = noise(4, 6)
    made = network_input(save(tmp_path / "x.png", pixels), replace(PLAIN, raw=True))
    assert made.dtype == np.uint8
    assert np.array_equal(made, pixels)


def test_a_larger_image_is_cropped_in_the_middle_after_the_resize(tmp_path: Path) -> None:
    pixels = noise(10, 16)
    path = save(tmp_path / "x.png", pixels)
    made = network_input(path, replace(PLAIN, resize=10, raw=True))  # shorter side is 10 already: crop only
    assert np.array_equal(made, pixels[3:7, 5:11])


def test_the_shorter_side_is_resized_with_bilinear_averaging(tmp_path: Path) -> None:
    pixels = noise(16, 32)
    made = network_input(save(tmp_path / "x.png", pixels), replace(PLAIN, resize=8, raw=True))
    resized = np.asarray(Image.fromarray(pixels).resize((16, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(made, resized[2:6, 5:11])


def test_without_a_resize_the_image_just_covers_the_crop(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", noise(2, 2))
    assert network_input(path, replace(PLAIN, raw=True)).shape == (4, 6, 3)


def test_grey_and_transparent_images_become_what_the_network_takes(tmp_path: Path) -> None:
    grey = save(tmp_path / "g.png", noise(4, 6)[:, :, 0])
    assert network_input(grey, PLAIN).shape == (3, 4, 6)
    colour = save(tmp_path / "c.png", noise(4, 6))
    assert network_input(colour, replace(PLAIN, channels=1, mean=(0.0,), std=(1.0,))).shape == (1, 4, 6)
    Image.new("RGBA", (6, 4)).save(tmp_path / "t.png")
    assert network_input(tmp_path / "t.png", PLAIN).shape == (3, 4, 6)


@pytest.mark.parametrize("kept", [0, 100])
def test_an_unreadable_image_is_named(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path / "broken.png", noise(40, 60))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckError, match=r"broken\.png: cannot be read"):
        network_input(path, PLAIN)
