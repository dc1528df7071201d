"""Gives real images from class folders to the exporter, read as `evaluate` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gdfq_export.models.sources import LoadedModel
from gdfq_export.runtime_checks.images import Preprocessing, list_images, network_input


class ImageFolder:
    """One folder of images for each class."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        channels, height, width = loaded.input_size
        self.name = str(folder)
        self.images = list_images(folder)
        self.num_classes = 1 + max(image.label for image in self.images)
        self.preprocessing = Preprocessing(height, width, channels, loaded.resize, loaded.mean, loaded.std, raw=False)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Normalised images (N, C, H, W) and their labels (N,)."""
        chosen = [self.images[index] for index in indices]
        pixels = np.stack([network_input(image.path, self.preprocessing) for image in chosen])
        return torch.from_numpy(pixels), torch.tensor([image.label for image in chosen])
