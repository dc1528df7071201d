"""Gives real images from folders to the exporter, read as `evaluate` reads them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gdfq_export.models.sources import LoadedModel
from gdfq_export.runtime_checks.images import LabelledImage, list_images, list_unlabelled, network_input
from gdfq_export.runtime_checks.input_spec import Preprocessing

NO_CLASS = -1  # no loss takes it for a label


class ImageFolder:
    """All images below a folder; those with classes lie in one folder a class, which `labels` may name."""

    def __init__(self, folder: Path, loaded: LoadedModel, labels: Sequence[str] | None = None) -> None:
        channels, height, width = loaded.input_size
        self.folder, self.name, self.labels = folder, str(folder), labels
        self.images = [LabelledImage(path, NO_CLASS) for path in list_unlabelled(folder)]
        self.preprocessing = Preprocessing(height, width, channels, loaded.resize, loaded.mean, loaded.std, raw=False)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def for_classes(self, classes: int) -> ImageFolder:
        """The same images with their classes, as far as they lie in class folders."""
        labelled = copy.copy(self)
        labelled.images = list_images(self.folder, classes, self.labels)
        return labelled

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Normalised images (N, C, H, W) and their classes (N,)."""
        chosen = [self.images[index] for index in indices]
        pixels = np.stack([network_input(image.path, self.preprocessing) for image in chosen])
        return torch.from_numpy(pixels), torch.tensor([image.label for image in chosen])
