"""Makes weights fit the target before anything is learned from them, so that training sees the weights of the file.

Lowering would do the same afterwards, but then biases and roundings have been learned for other weights: of an 8-bit
network nearly every channel has a pair that could saturate (see `saturation.py`).
"""

from __future__ import annotations

import dataclasses

import torch

from gdfq_export.graph import Graph
from gdfq_export.lower import Quantized, Target, is_depthwise
from gdfq_export.quantizers import over_channels, quantize_weight
from gdfq_export.saturation import make_safe


def fit_to_target(quantized: Quantized, target: Target) -> Quantized:
    """The same network with scales, and where that is not enough weights, that the target need not change."""
    if not target.pair_sums:
        return quantized
    graph, plan = quantized.graph, quantized.plan
    parameters, scales, coarser = dict(graph.parameters), dict(quantized.weight_scales), dict(quantized.coarser)
    for name, spec in plan.weights.items():
        node = graph[name]
        if is_depthwise(graph, node):
            continue
        key = node.parameters["weight"]
        weight, scale = parameters[key].detach().double().cpu(), scales[name].detach().double().cpu()
        codes = quantize_weight(weight, scale, spec.qmax).numpy().astype("int64")
        amax = plan.tensors[node.inputs[0]].qmax
        safe, grown, broken = make_safe(weight.numpy(), scale.numpy(), codes, amax, spec.qmax)
        if not broken.any():
            continue
        scale = torch.from_numpy(grown).float().double()
        clipped = torch.from_numpy(safe).double() * over_channels(scale, weight)
        moved = torch.from_numpy(safe) != quantize_weight(weight, scale, spec.qmax)
        parameters[key] = torch.where(moved, clipped, weight).to(parameters[key])
        scales[name] = scale.to(scales[name])
        coarser[name] = int((grown > quantized.weight_scales[name].double().cpu().numpy()).sum())
    return dataclasses.replace(
        quantized, graph=Graph(graph.nodes, parameters, graph.output), weight_scales=scales, coarser=coarser
    )
