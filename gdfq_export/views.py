"""Views of optimised images: crops that are enlarged, every second one in other light.

    view = clamp(m + a (crop - m) + b),    m: the crop's mean colour,  a ~ U(0.2, 1),  b ~ U(-0.3, 0.3) of the range

An optimised image is full of detail and leaves the network in no doubt; a photograph has smooth surfaces, shadows and
classes that are hard to tell. What is fitted to optimised images alone rounds such images badly: signals that are weak
in a photograph are strong in all of them. A view costs no optimisation. Measured in `benchmarks/views.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gdfq_export.generator import ImageSpec

CLOSEST = 3  # a crop has at least this part of the image's sides
FAINTEST = 0.2  # share of the contrast that is left at least
LIGHT = 0.3  # change of brightness at most, as a share of the range


def with_views(images: Tensor, spec: ImageSpec, count: int, seed: int) -> Tensor:
    """The images and `count` views of each, in an order that mixes them."""
    randomness = torch.Generator().manual_seed(seed)
    parts = [images]
    for index in range(count):
        crops = enlarged_crops(images, randomness)
        parts.append(in_other_light(crops, spec, randomness) if index % 2 else crops)
    if count == 0:
        return images
    return torch.cat(parts)[torch.randperm(len(images) * (count + 1), generator=randomness)]


def enlarged_crops(images: Tensor, randomness: torch.Generator) -> Tensor:
    """A random crop of each image, as large as the image was."""
    height, width = images.shape[2:]
    crops = []
    for image in images:
        share = 1 / CLOSEST + (1 - 1 / CLOSEST) * float(torch.rand((), generator=randomness))
        rows, columns = max(int(height * share), 1), max(int(width * share), 1)
        top = int(torch.randint(0, height - rows + 1, (), generator=randomness))
        left = int(torch.randint(0, width - columns + 1, (), generator=randomness))
        crop = image[None, :, top : top + rows, left : left + columns]
        crops.append(F.interpolate(crop, size=(height, width), mode="bilinear", align_corners=False))
    return torch.cat(crops)


def in_other_light(images: Tensor, spec: ImageSpec, randomness: torch.Generator) -> Tensor:
    """Each image with less contrast, and darker or brighter."""
    low, high = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.low, spec.high))
    mean = images.mean((2, 3), keepdim=True)
    contrast, light = (torch.rand(len(images), 1, 1, 1, generator=randomness) for _ in range(2))
    contrast = FAINTEST + (1 - FAINTEST) * contrast
    moved = mean + contrast * (images - mean) + (2 * light - 1) * LIGHT * (high - low)
    return torch.maximum(torch.minimum(moved, high), low)
