"""Images in folders, and what happens to an image before a network sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from gdfq_export.runtime_checks.class_folders import class_indices
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.input_spec import Preprocessing

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class LabelledImage:
    """An image file and the index of its class."""

    path: Path
    label: int


def list_images(folder: Path, classes: int, labels: Sequence[str] | None = None) -> list[LabelledImage]:
    """All images of a model's classes, in the order of class folder and file name; `class_folders.py` has the rule."""
    _require_folder(folder)
    directories = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not directories:
        raise CheckError(f"{folder}: no class folders in it; it needs one folder of images for each class")
    try:
        indices = class_indices([entry.name for entry in directories], classes, labels)
    except CheckError as error:
        raise CheckError(f"{folder}: {error}") from error
    images = [
        LabelledImage(file, label)
        for directory, label in zip(directories, indices, strict=True)
        for file in _images_below(directory)
    ]
    if not images:
        known = ", ".join(sorted(SUFFIXES))
        raise CheckError(f"{folder}: no images in its {len(directories)} folders; known are {known}")
    return images


def list_unlabelled(folder: Path) -> list[Path]:
    """All images below `folder`, whatever its folders stand for."""
    _require_folder(folder)
    images = _images_below(folder)
    if not images:
        raise CheckError(f"{folder}: no images in it; known are {', '.join(sorted(SUFFIXES))}")
    return images


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: not a folder")


def _images_below(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]


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
