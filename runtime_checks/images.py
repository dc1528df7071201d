"""Labelled images in folders, and what happens to an image before a network sees it.

DIR has one folder a class, sorted by name: the class index is the position in that order. But when every folder's name
starts with an integer that ends there or is followed by `_` (`7`, `0012_n01443537`), that integer is the class index,
so that a part of the classes can be evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from gdfq_export.runtime_checks.errors import CheckError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
NUMBERED = re.compile(r"(\d+)(?:_|$)")


@dataclass(frozen=True)
class LabelledImage:
    """An image file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to a network's input."""

    height: int
    width: int
    channels: int  # 1 (grey) or 3 (RGB)
    resize: int | None  # shorter side before the centre crop; None: the smallest that covers the crop
    mean: tuple[float, ...]  # of pixels in [0, 1], one a channel
    std: tuple[float, ...]
    raw: bool  # uint8 (H, W, C) as it is, normalised inside the network, instead of float (C, H, W)


def list_images(folder: Path) -> list[LabelledImage]:
    """All images below `folder`, in the order of class folder and file name."""
    if not folder.is_dir():
        raise CheckError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: not a folder")
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise CheckError(f"{folder}: no class folders in it; it needs one folder of images for each class")
    images = [
        LabelledImage(file, label)
        for directory, label in zip(classes, class_indices([entry.name for entry in classes]), strict=True)
        for file in sorted(directory.rglob("*"))
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]
    if not images:
        raise CheckError(f"{folder}: no images in its {len(classes)} folders; known are {', '.join(sorted(SUFFIXES))}")
    return images


def class_indices(names: Sequence[str]) -> list[int]:
    """The class index of each folder, by the rule above."""
    numbers = [NUMBERED.match(name) for name in names]
    if all(numbers):
        return [int(match.group(1)) for match in numbers if match]
    return list(range(len(names)))


def network_input(path: Path, preprocessing: Preprocessing) -> npt.NDArray[Any]:
    """One image as the network takes it, without the batch dimension."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(_cropped(image.convert("L" if preprocessing.channels == 1 else "RGB"), preprocessing))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise CheckError(f"{path}: cannot be read: {reason}") from error
    pixels = pixels.reshape(preprocessing.height, preprocessing.width, preprocessing.channels)
    if preprocessing.raw:
        return pixels
    mean, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)
    return ((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)


def _cropped(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resized by the shorter side and cropped in the middle; an image of the right size is taken as it is."""
    height, width = preprocessing.height, preprocessing.width
    if image.size == (width, height):
        return image
    wanted = (preprocessing.resize or 0) / min(image.size)
    scale = max(wanted, width / image.width, height / image.height)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)  # PIL averages over the pixels it drops
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
