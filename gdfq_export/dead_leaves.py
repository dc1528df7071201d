"""Images of nothing in particular: shapes that hide one another, as surfaces do in photographs ("dead leaves").

    the density of shapes of radius r falls as r^-3,  r_min < r < r_max        (Lee, Mumford and Huang 2001)

Optimised images are full of detail everywhere. A photograph has flat surfaces, shadows and sharp edges between them,
and there rounding is no noise: all of a surface is rounded the same way, and the layers behind see a step or none.
What is tuned on optimised images alone has never met that. These cost no gradient and need neither data nor the
network, which says for itself what it makes of them. Measured in `benchmarks/views.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.distilled import colour_axes
from gdfq_export.generator import ImageSpec

FEWEST, MOST = 10, 120  # shapes of an image
SMALLEST = 4.0  # radius in pixels
LARGEST = 0.65  # ... as a share of the shorter side
STRETCH = 0.8  # largest logarithm of a shape's elongation
COLOUR = 0.28  # deviation of colours around the image's own, as a share of the range
SHADING = 0.2  # largest change of light across a shape or the image
TEXTURE = 0.15  # largest deviation of a surface's texture
TEXTURES = 4  # of an image
CLOUDS = 0.25  # largest deviation of the light that falls on the image
NOISE = 0.02  # largest deviation of a pixel's noise


def dead_leaves(spec: ImageSpec, count: int, seed: int) -> Tensor:
    """(count, C, H, W), normalised, inside the bounds of pixels."""
    randomness = torch.Generator().manual_seed(seed)
    images = torch.stack([_Canvas(spec, randomness).paint() for _ in range(count)])
    low, high = (torch.tensor(bound).view(-1, 1, 1) for bound in (spec.low, spec.high))
    return low + (high - low) * images


def with_leaves(images: Tensor, spec: ImageSpec, share: float, seed: int) -> Tensor:
    """The images, and behind them `share` times as many of dead leaves."""
    count = round(share * len(images))
    return torch.cat([images, dead_leaves(spec, count, seed).to(images.device)]) if count else images


@dataclass(frozen=True, eq=False)
class _Window:
    """The part of an image that a shape can reach, with positions relative to the shape's middle."""

    rows: slice
    columns: slice
    down: Tensor
    right: Tensor


class _Canvas:
    """One image in the making, pixels in 0..1."""

    def __init__(self, spec: ImageSpec, randomness: torch.Generator) -> None:
        self.channels, self.height, self.width = spec.shape
        self.randomness = randomness
        self.colours = COLOUR * colour_axes(self.channels)
        self.base = 0.45 + 0.15 * torch.randn((), generator=randomness)
        self.strength = 0.5 + self._uniform()
        self.textures = torch.stack([self._clouds(1 + self._uniform()) for _ in range(TEXTURES)])

    def paint(self) -> Tensor:
        """(C, H, W): the ground, shapes upon it, then light and noise."""
        down = torch.arange(self.height)[:, None] / self.height - 0.5
        right = torch.arange(self.width) / self.width - 0.5
        ground = self._colour() + self._shading(down, right) + TEXTURE * self._uniform() * self.textures[0]
        image = ground.expand(self.channels, self.height, self.width).clone()
        shapes = int(FEWEST + (MOST - FEWEST) * self._uniform() ** 2)
        for _ in range(shapes):
            self._add_shape(image)
        image *= 1 + CLOUDS * self._uniform() * self._clouds(2.0)
        image += NOISE * self._uniform() * torch.randn(image.shape, generator=self.randomness)
        return image.clamp_(0, 1)

    def _add_shape(self, image: Tensor) -> None:
        """Hides what is below an ellipse, a rectangle or a rounded star."""
        radius = self._radius()
        stretch, angle = math.exp(STRETCH * (2 * self._uniform() - 1)), 2 * math.pi * self._uniform()
        window = self._window(1.5 * radius * max(stretch, 1 / stretch) + 2)
        along = (window.right * math.cos(angle) + window.down * math.sin(angle)) / stretch
        across = (window.down * math.cos(angle) - window.right * math.sin(angle)) * stretch
        kind = int(3 * self._uniform())
        distance = torch.maximum(along.abs(), across.abs()) if kind == 0 else torch.hypot(along, across)
        if kind == 1:
            around = torch.atan2(across, along)
            distance = distance / (1 + 0.3 * self._uniform() * torch.sin(3 * around + 6 * self._uniform()))
        softness = 0.7 + 3 * self._uniform() ** 4
        cover = torch.sigmoid(2 * (radius - distance) / softness)
        texture = self.textures[int(TEXTURES * self._uniform()), window.rows, window.columns]
        shading = self._shading(across / radius, along / radius)
        surface = self._colour() + shading + TEXTURE * self._uniform() ** 2 * texture
        below = image[:, window.rows, window.columns]
        below.lerp_(surface.expand_as(below), cover.expand_as(below))

    def _radius(self) -> float:
        """By inverting the distribution function of the density r^-3."""
        largest, share = LARGEST * min(self.height, self.width), self._uniform()
        smallest = min(SMALLEST, largest)
        return 1 / math.sqrt((1 - share) / smallest**2 + share / largest**2)

    def _window(self, reach: float) -> _Window:
        """Where a shape of this reach lies, its middle anywhere in the image."""
        parts, offsets = [], []
        for side in (self.height, self.width):
            middle = side * self._uniform()
            first, last = max(int(middle - reach), 0), min(int(middle + reach) + 1, side)
            parts.append(slice(first, last))
            offsets.append(torch.arange(first, last) - middle)
        return _Window(parts[0], parts[1], offsets[0][:, None], offsets[1])

    def _colour(self) -> Tensor:
        """(C, 1, 1): near the image's own; channels differ less than brightness does."""
        moved = self.colours @ torch.randn(self.colours.shape[1], generator=self.randomness)
        return (self.base + self.strength * moved).view(-1, 1, 1)

    def _shading(self, down: Tensor, right: Tensor) -> Tensor:
        """A change of light in a random direction."""
        angle = 2 * math.pi * self._uniform()
        return SHADING * self._uniform() * (down * math.sin(angle) + right * math.cos(angle))

    def _clouds(self, falloff: float) -> Tensor:
        """(H, W): waves whose amplitude falls with this power of the frequency; mean 0, deviation 1."""
        down, right = torch.fft.fftfreq(self.height), torch.fft.rfftfreq(self.width)
        frequency = torch.hypot(down[:, None], right).clamp(min=1 / max(self.height, self.width))
        waves = torch.view_as_complex(torch.randn(*frequency.shape, 2, generator=self.randomness))
        plane = torch.fft.irfft2(waves * frequency.pow(-falloff), s=(self.height, self.width))
        plane -= plane.mean()
        return torch.div(plane, plane.std().clamp_min(torch.finfo(torch.float32).tiny))

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.randomness))
