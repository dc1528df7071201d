"""Bias correction (DFQ, Nagel et al. 2019): rounded weights move a layer's mean, the bias moves it back.

e = W_hat - W                                        error of the rounded weights
analytic    b' = b - e E[x]                          E[x] by the statistics of batch norm
empirical   b' = b - (E[y_hat] - E[y])               over images, one layer after the other
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.graph import Graph, rebuild
from gdfq_export.lower import Quantized
from gdfq_export.moments import Moments, reads
from gdfq_export.program import FloatProgram, as_many_as_fit
from gdfq_export.quantizers import over_channels, quantize_weight


def correct_by_moments(quantized: Quantized, moments: Mapping[str, Moments]) -> Quantized:
    """Analytic correction of every layer."""
    shifts = {}
    for name, spec in quantized.plan.weights.items():
        node = quantized.graph[name]
        weight = quantized.graph.parameters[node.parameters["weight"]].double()
        scale = quantized.weight_scales[name].double()
        rounded = quantize_weight(weight, scale, spec.qmax) * over_channels(scale, weight)
        shifts[name] = reads(node, rounded - weight, moments[node.inputs[0]].mean)
    return _with_shifts(quantized, shifts)


@torch.no_grad()
def correct_by_images(quantized: Quantized, images: Tensor) -> Quantized:
    """Empirical correction: each layer's mean output over the images becomes that of the float network.

    One pass, which runs where the images are, does for all layers: a layer is corrected before the next one sees its
    output.
    """
    wanted: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> None:
        if name in quantized.plan.weights:
            wanted[name] = value.mean((0, *range(2, value.ndim)))

    images = as_many_as_fit(quantized.graph, images)
    FloatProgram(quantized.graph).to(images.device)(images, note)
    program = _Corrected(quantized, wanted).to(images.device)
    program(images)
    return _with_shifts(quantized, {name: shift.cpu() for name, shift in program.shifts.items()})


class _Corrected(FakeQuantProgram):
    """Moves the mean of each layer's output to the wanted one, and remembers by how much."""

    def __init__(self, quantized: Quantized, wanted: Mapping[str, Tensor]) -> None:
        super().__init__(quantized, learned_steps=False)
        self.wanted = wanted
        self.shifts: dict[str, Tensor] = {}

    def finish_layer(self, name: str, value: Tensor) -> Tensor:
        """The layer's result with the wanted mean."""
        self.shifts[name] = value.mean((0, *range(2, value.ndim))) - self.wanted[name]
        return value - self.shifts[name].view(-1, *[1] * (value.ndim - 2))


def _with_shifts(quantized: Quantized, shifts: Mapping[str, Tensor]) -> Quantized:
    """The same network with each layer's output moved down by its shift."""
    graph, parameters, nodes = quantized.graph, {}, []
    for node in graph.nodes:
        if node.name in shifts:
            bias = graph.parameter(node, "bias")
            moved = -shifts[node.name].double() if bias is None else bias.double() - shifts[node.name].double()
            parameters[f"{node.name}/bias"] = moved.float()
            node = node.replace(parameters={**node.parameters, "bias": f"{node.name}/bias"})
        nodes.append(node)
    corrected: Graph = rebuild(graph, nodes, parameters=parameters)
    return dataclasses.replace(quantized, graph=corrected)
