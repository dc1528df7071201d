"""What small random networks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A network given by a function of itself and the images."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **children: object) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = False, **options: int) -> nn.Sequential:
    padding = options.pop("padding", kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=bias, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with statistics and affine parameters that differ in every channel, negative scales among them."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            size = (child.num_features,)
            if child.running_mean is not None:
                child.running_mean.copy_(torch.randn(size, generator=generator) * 0.3)
                child.running_var.copy_(torch.rand(size, generator=generator) + 0.3)
            if child.affine:
                child.weight.data.copy_(torch.randn(size, generator=generator) * 0.5 + 0.7)
                child.bias.data.copy_(torch.randn(size, generator=generator) * 0.3)
    return module.eval()


def head(channels: int, classes: int = 5) -> nn.Linear:
    return nn.Linear(channels, classes)


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
