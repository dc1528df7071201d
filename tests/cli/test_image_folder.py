"""Real images for `quantize`: classes only where they are needed, and by the rule of `evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from gdfq_export.cli.image_folder import NO_CLASS, ImageFolder
from gdfq_export.models.sources import LoadedModel
from gdfq_export.runtime_checks.errors import CheckError

HALF = (0.5, 0.5, 0.5)
LOADED = LoadedModel("small", nn.Identity(), (3, 4, 4), HALF, HALF, None, None, "factory", None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("bird", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), "red").save(tmp_path / name / "x.png")
    return tmp_path


def test_images_for_ranges_need_no_classes(data: Path) -> None:
    Image.new("RGB", (4, 4)).save(data / "loose.png")
    source = ImageFolder(data, LOADED)
    images, classes = source.read(range(3))
    assert images.shape == (3, 3, 4, 4)
    assert classes.tolist() == [NO_CLASS] * 3


def test_images_to_learn_from_are_of_the_networks_classes(data: Path) -> None:
    source = ImageFolder(data, LOADED)
    assert source.for_classes(2).read([0, 1])[1].tolist() == [0, 1]
    with pytest.raises(CheckError, match="2 folders for 3 classes"):
        source.for_classes(3)
    named = ImageFolder(data, LOADED, ("ant", "bird", "cat"))
    assert named.for_classes(3).read([0, 1])[1].tolist() == [1, 2]
    assert source.read([0])[1].tolist() == [NO_CLASS]  # which stays without
