"""Real images that the user passes on purpose: for ranges (Table 5), or to fine-tune as an upper bound (FT, Table 1).

The core reads no image file; the command line brings a reader of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gdfq_export.errors import InputFileError

FEWEST = 4
HELD_BACK_SHARE = 4  # at most one image of so many is kept from training


class ImageSource(Protocol):
    """Images that are read when they are needed."""

    @property
    def name(self) -> str:
        """Where they come from, for messages and for the record."""

    def __len__(self) -> int:
        """How many there are."""

    def for_classes(self, classes: int) -> ImageSource:
        """The same images with the classes of a network that has so many; an error where they are not its classes."""

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Normalised images (N, C, H, W) and their classes (N,), which nobody may use before `for_classes`."""


@dataclass(frozen=True, eq=False)
class RealImages:
    """What the user passed; nothing, in a data-free run."""

    calibration: ImageSource | None = None
    training: ImageSource | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """The images in a random order, and those that nothing may be fitted to."""

    fitted: list[int]
    held_back: list[int]


def split(source: ImageSource, held_back: int, seed: int) -> Split:
    """Holds back that many images, or a quarter of them where there are few."""
    if len(source) < FEWEST:
        raise InputFileError(f"{source.name} has {len(source)} images: give at least {FEWEST}")
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(held_back, len(source) // HELD_BACK_SHARE)
    return Split(order[count:], order[:count])


def read_batches(source: ImageSource, indices: Sequence[int], batch: int) -> list[Tensor]:
    """The images alone, in batches."""
    return [source.read(indices[first : first + batch])[0] for first in range(0, len(indices), batch)]
