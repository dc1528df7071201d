"""Random weights that behave: batch-norm statistics measured in one pass over random images.

A fresh network has running mean 0 and variance 1, so its activations grow or vanish with depth. One pass in which each
batch norm sees the output of the normalised layers before it gives activations of ordinary size. For graph, size and
latency work only.
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

IMAGES = 16  # enough for a variance in layers of one pixel, few enough for the largest networks


@torch.no_grad()
def set_batch_norm_statistics(module: torch.nn.Module, input_size: tuple[int, int, int], seed: int) -> None:
    """Sets running mean and variance of every batch norm to those of one batch of normal images; ends in eval mode."""
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    images = torch.randn(IMAGES, *input_size, generator=torch.Generator().manual_seed(seed))  # (N, C, H, W)
    module.eval()
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average: one batch in, its statistics out
        layer.train()
    try:
        if norms:
            module(images)
    finally:
        module.eval()
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum


def has_untouched_statistics(module: torch.nn.Module) -> bool:
    """Whether the network has batch norms and all of them still hold mean 0 and variance 1, as before training."""
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    return bool(norms) and all(_is_untouched(layer) for layer in norms)


def _is_untouched(layer: _BatchNorm) -> bool:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return not bool(layer.running_mean.any()) and bool((layer.running_var == 1).all())
