"""Batch-norm statistics of networks with random weights."""

from __future__ import annotations

import torch
from torch import nn

from gdfq_export.models.random_weights import IMAGES, has_untouched_statistics, set_batch_norm_statistics


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))


def test_statistics_are_those_of_the_layer_input_with_earlier_layers_normalised() -> None:
    module = network()
    set_batch_norm_statistics(module, (3, 9, 9), seed=5)
    images = torch.randn(IMAGES, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    first = module[0](images)
    # The variance of batch norm's running statistics is the unbiased one; float32 sums differ in their order.
    torch.testing.assert_close(module[1].running_mean, first.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module[1].running_var, first.var((0, 2, 3)), atol=1e-5, rtol=1e-5)
    normalised = nn.functional.batch_norm(first, None, None, module[1].weight, module[1].bias, training=True)
    second = module[3](normalised)
    torch.testing.assert_close(module[4].running_mean, second.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_the_network_ends_in_eval_mode_with_its_momentum_back() -> None:
    module = network().train()
    set_batch_norm_statistics(module, (3, 9, 9), seed=0)
    assert not any(layer.training for layer in module.modules())
    assert module[1].momentum == 0.1


def test_the_same_seed_gives_the_same_statistics_and_another_seed_others() -> None:
    means = []
    for seed in (0, 0, 1):
        module = network()
        set_batch_norm_statistics(module, (3, 9, 9), seed)
        means.append(module[4].running_mean)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


def test_a_network_without_batch_norm_is_left_alone() -> None:
    module = nn.Linear(3, 2)
    set_batch_norm_statistics(module, (1, 1, 3), seed=0)
    assert not module.training


def test_untouched_statistics_are_recognised() -> None:
    module = network()
    assert has_untouched_statistics(module)
    set_batch_norm_statistics(module, (3, 9, 9), seed=0)
    assert not has_untouched_statistics(module)
    assert not has_untouched_statistics(nn.Linear(2, 2))
