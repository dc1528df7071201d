"""The knowledge matching generator x = G(z | y), z ~ N(0, 1) (GDFQ, eq. 3).

Small images follow ACGAN: the label's embedding times the noise, a linear layer to 128 small maps, then upsampling
and convolutions. Large images use categorical conditional batch norm to bring the label in. The paper upsamples
twice, whatever the image size; here the number of doublings follows from the size, unless `doublings` says 2, so
that a 224x224 image starts from 7x7 and costs a fraction.

Deviation: the last batch norm has a learned scale, and pixels are clamped to what a real image can hold. The
authors whiten each batch instead, which only suits networks whose inputs have unit variance.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.distributed import size, sum_over_all

NOISE = 100
CONTRAST = 0.2  # deviation of a pixel at the start, as a share of its range
BASE_CHANNELS = 128
LARGE_IMAGE = 64
SMALLEST_MAP = 8
EPS = 0.8  # of the inner batch norms, as in the authors' code


@dataclass(frozen=True)
class ImageSpec:
    """What a valid input is: shape and the least and largest value of each channel, as the network is fed."""

    shape: tuple[int, int, int]
    low: tuple[float, ...]
    high: tuple[float, ...]


def image_spec(
    shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    input_range: tuple[float, float] | None = None,
) -> ImageSpec:
    """Pixels of 0 and 1 after normalisation, unless a range is given."""
    channels, height, width = shape
    if input_range is not None:
        return ImageSpec((channels, height, width), (input_range[0],) * channels, (input_range[1],) * channels)
    low = tuple((0.0 - m) / s for m, s in zip(mean, std, strict=True))
    high = tuple((1.0 - m) / s for m, s in zip(mean, std, strict=True))
    return ImageSpec((channels, height, width), low, high)


def map_sizes(length: int, doublings: int) -> list[int]:
    """Sizes of the maps from the smallest to the image: 32 with 2 doublings is [8, 16, 32]."""
    sizes = [length]
    for _ in range(doublings):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes[::-1]


def default_doublings(length: int) -> int:
    """As many as it takes to start from maps of at most 8 x 8, and at least the paper's two."""
    count = 0
    while (length + (1 << count) - 1) >> count > SMALLEST_MAP:
        count += 1
    return max(count, 2)


def _doubled(kernel: Tensor, axis: int) -> Tensor:
    """Three taps on a signal whose values stand twice -> four taps of a transposed convolution of stride 2."""
    a, b, c = kernel.unbind(axis)
    return torch.stack([c, b + c, a + b, a], axis)


def upsample_and_convolve(x: Tensor, convolution: nn.Module, shape: tuple[int, int]) -> Tensor:
    """Nearest-neighbour upsampling to `shape`, then a 3x3 convolution with padding 1: (N, I, h, w) -> (N, O, H, W).

    Where the size doubles, both are one transposed convolution: 16 products a value in place of 36.
    """
    if shape != (2 * x.shape[2], 2 * x.shape[3]):
        return torch.as_tensor(convolution(F.interpolate(x, size=shape)))
    assert isinstance(convolution, nn.Conv2d)
    weight = _doubled(_doubled(convolution.weight, 2), 3).transpose(0, 1)  # (I, O, 4, 4)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv_transpose2d(x, weight, convolution.bias, stride=2, padding=1)


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """`norm` with the statistics of the whole batch, of which other processes may hold parts."""
    if size() == 1:
        return torch.as_tensor(norm(x))
    values = x.float()
    count = size() * values.numel() // values.shape[1]
    mean = sum_over_all(values.sum((0, 2, 3), keepdim=True)) / count
    centred = values - mean
    variance = sum_over_all(centred.square().sum((0, 2, 3), keepdim=True)) / count
    y = centred * torch.rsqrt(variance + norm.eps)
    if norm.affine:
        y = y * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    result: Tensor = y.to(x.dtype)
    return result


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift are looked up by label (categorical conditional batch norm)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, eps=EPS, track_running_stats=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(N, C, H, W), (N,) -> (N, C, H, W)."""
        scale, shift = self.scale(labels)[:, :, None, None], self.shift(labels)[:, :, None, None]
        return torch.as_tensor(batch_norm(x, self.norm) * scale + shift)


class PlainNorm(nn.Module):
    """Batch norm that ignores the label."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=EPS, track_running_stats=False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(N, C, H, W), (N,) -> (N, C, H, W)."""
        return batch_norm(x, self.norm)


class Generator(nn.Module):
    """Noise and labels -> normalised images."""

    def __init__(self, spec: ImageSpec, num_classes: int, doublings: int | None = None) -> None:
        super().__init__()
        channels, height, width = spec.shape
        count = default_doublings(max(height, width)) if doublings is None else doublings
        self.sizes = list(zip(map_sizes(height, count), map_sizes(width, count), strict=True))
        self.conditional = max(height, width) > LARGE_IMAGE
        # 128 maps up to the second doubling, then half as many at each: 128, 128, 64 for the paper's two.
        widths = [max(BASE_CHANNELS >> max(i - 1, 0), 16) for i in range(count + 1)]
        self.widths = widths

        def norm(count: int) -> nn.Module:
            return ConditionalNorm(count, num_classes) if self.conditional else PlainNorm(count)

        if not self.conditional:
            self.embedding = nn.Embedding(num_classes, NOISE)
        self.linear = nn.Linear(NOISE, widths[0] * self.sizes[0][0] * self.sizes[0][1])
        self.first = norm(widths[0])
        pairs = list(itertools.pairwise(widths))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(norm(b) for _, b in pairs)
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.whiten = nn.BatchNorm2d(channels, track_running_stats=False)
        with torch.no_grad():  # one, as in the paper, would leave the range of pixels where their mean and std are 0.5
            self.whiten.weight.copy_(CONTRAST * (torch.tensor(spec.high) - torch.tensor(spec.low)))
        self.register_buffer("low", torch.tensor(spec.low).view(-1, 1, 1))
        self.register_buffer("high", torch.tensor(spec.high).view(-1, 1, 1))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """(N, 100), (N,) -> (N, C, H, W)."""
        hidden = noise if self.conditional else self.embedding(labels) * noise
        height, width = self.sizes[0]
        x = self.linear(hidden).view(-1, self.widths[0], height, width)  # (N, 128, h, w)
        x = self.first(x.contiguous(memory_format=torch.channels_last), labels)
        for shape, convolution, norm in zip(self.sizes[1:], self.convolutions, self.norms, strict=True):
            x = F.leaky_relu(norm(upsample_and_convolve(x, convolution, shape), labels), 0.2)
        x = batch_norm(torch.tanh(self.last(x)).float(), self.whiten)
        return torch.minimum(torch.maximum(x, self.get_buffer("low")), self.get_buffer("high"))


@dataclass(frozen=True, eq=False)
class Batch:
    """Noise with the labels that the images made of it should have."""

    noise: Tensor  # (N, 100)
    labels: Tensor  # (N,)


def sample(count: int, num_classes: int, generator: torch.Generator) -> Batch:
    """z ~ N(0, 1) and labels uniform over the classes."""
    noise = torch.randn(count, NOISE, generator=generator)
    labels = torch.randint(0, num_classes, (count,), generator=generator)
    return Batch(noise, labels)
