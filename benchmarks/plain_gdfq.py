"""A plain GDFQ loop for `step_time.py` to compare with: fp32, contiguous, one PyTorch operator after the other.

Written from the facts about the authors' code: teacher and student are pytorchcv's modules with their batch norms
unfolded, batch-norm inputs are gathered by hooks, weights are quantized asymmetrically by their extremes at every
forward pass, activations after each ReLU with a frozen range, and gradients pass every rounding as they are. The
generator computes what ours does, so that both loops can be started from the same weights and compared.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.generator import EPS, ImageSpec

BETA, TEMPERATURE = 0.1, 20.0


class Quantize(torch.autograd.Function):
    """round(x * factor - offset), clipped to k bits and scaled back; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
        levels = 2**bits - 1
        factor = levels / torch.clamp(high - low, min=1e-8)
        offset = low * factor + 2 ** (bits - 1)
        codes = torch.round(x * factor - offset)
        codes = torch.clamp(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return (codes + offset) / factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weights are quantized at every pass, channel by channel."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int) -> None:
        super().__init__()
        self.layer, self.bits = layer, bits

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        flat = weight.detach().reshape(len(weight), -1)
        shape = (-1, *[1] * (weight.ndim - 1))
        quantized = Quantize.apply(weight, flat.min(1).values.view(shape), flat.max(1).values.view(shape), self.bits)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, quantized, self.layer.bias)
        layer = self.layer
        return F.conv2d(x, quantized, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class QuantizedReLU(nn.Module):
    """A ReLU whose output is quantized; its range grows while `observing`, and is frozen afterwards."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.observing = bits, True
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        if self.observing:
            self.low.copy_(torch.minimum(self.low, x.detach().min()))
            self.high.copy_(torch.maximum(self.high, x.detach().max()))
        return Quantize.apply(x, self.low, self.high, self.bits)


def quantized_copy(module: nn.Module, bits: int) -> nn.Module:
    """The network with every layer and every ReLU replaced."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return QuantizedLayer(copy.deepcopy(module), bits)
    if isinstance(module, nn.ReLU):
        return QuantizedReLU(bits)
    result = copy.copy(module)
    result._parameters = {
        k: None if p is None else nn.Parameter(p.detach().clone()) for k, p in module._parameters.items()
    }
    result._buffers = {key: buffer.clone() for key, buffer in module._buffers.items()}
    result._modules = {key: quantized_copy(child, bits) for key, child in module._modules.items()}
    return result


class PlainGenerator(nn.Module):
    """The generator for 32x32 images, layer after layer."""

    def __init__(self, spec: ImageSpec, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, 100)
        self.linear = nn.Linear(100, 128 * 8 * 8)
        self.first = nn.BatchNorm2d(128, EPS)
        self.convolutions = nn.ModuleList([nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 64, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(128, EPS), nn.BatchNorm2d(64, EPS)])
        self.last = nn.Conv2d(64, 3, 3, padding=1)
        self.whiten = nn.BatchNorm2d(3)
        self.low, self.high = (torch.tensor(bound).view(-1, 1, 1) for bound in (spec.low, spec.high))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = self.linear(self.embedding(labels) * noise).view(-1, 128, 8, 8)
        x = self.first(x)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.interpolate(x, scale_factor=2)
            x = F.leaky_relu(norm(convolution(x)), 0.2)
        x = self.whiten(torch.tanh(self.last(x)))
        return torch.minimum(torch.maximum(x, self.low), self.high)


@dataclass(frozen=True)
class Losses:
    """Of one iteration."""

    generator_cross_entropy: float
    statistics: float
    student_cross_entropy: float
    distillation: float


class PlainLoop:
    """Teacher, student and generator with their optimizers."""

    def __init__(self, network: nn.Module, spec: ImageSpec, num_classes: int, bits: int) -> None:
        self.teacher = copy.deepcopy(network).eval()
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        self.student = quantized_copy(network, bits).eval()  # statistics stay, gamma and beta are trained
        self.generator = PlainGenerator(spec, num_classes)
        self.inputs: list[tuple[nn.Module, Tensor]] = []
        for module in self.teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda norm, inputs, output: self.inputs.append((norm, inputs[0])))
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), 1e-3, (0.5, 0.999))
        self.student_optimizer = torch.optim.SGD(
            self.student.parameters(), 1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4
        )

    def freeze_ranges(self) -> None:
        """As after the fourth epoch."""
        for module in self.student.modules():
            if isinstance(module, QuantizedReLU):
                module.observing = False

    def iterate(self, noise: Tensor, labels: Tensor) -> Losses:
        """One update of the generator, then one of the student."""
        self.inputs.clear()
        images = self.generator(noise, labels)
        teacher_logits = self.teacher(images)
        cross_entropy = F.cross_entropy(teacher_logits, labels)
        statistics = torch.zeros(())
        for norm, value in self.inputs:
            mean = value.mean((0, 2, 3))
            variance = value.var((0, 2, 3), correction=0)
            statistics = statistics + F.mse_loss(mean, norm.running_mean) + F.mse_loss(variance, norm.running_var)
        statistics = statistics / len(self.inputs)
        self.generator_optimizer.zero_grad()
        (cross_entropy + BETA * statistics).backward()
        self.generator_optimizer.step()

        logits = self.student(images.detach())
        student_cross_entropy = F.cross_entropy(logits, labels)
        log_p = F.log_softmax(logits / TEMPERATURE, 1)
        p = F.softmax(teacher_logits.detach() / TEMPERATURE, 1)
        distillation = F.kl_div(log_p, p, reduction="sum") / p.numel() * TEMPERATURE**2  # over batch and classes
        self.student_optimizer.zero_grad()
        (student_cross_entropy + distillation).backward()
        self.student_optimizer.step()
        self.inputs.clear()
        return Losses(cross_entropy.item(), statistics.item(), student_cross_entropy.item(), distillation.item())
