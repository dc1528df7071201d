"""Channels of zeros behind those of depthwise convolutions, up to a multiple of 16.

    w = 0,  b = 0   ->   acc = 0   ->   a constant code c,   and   acc' = acc + sum 0 * (c - z) = acc   in what reads it

ONNX Runtime's depthwise kernels take 16 channels at once, then 8, and what is left over one by one: 100 channels take
much longer than 112. A tensor shares its channels with all that it meets in operations that keep each channel to
itself. Such a set of tensors is widened as a whole, where each is made by a convolution, which gets filters of zeros,
and read by ones with windows of 1x1, which get inputs of weight zero. Squeeze-and-excitation stands inside one, with
the convolution that makes its factors. Larger windows would multiply the zeros that they read by their size, and lose
more than the depthwise kernel gains. Residual sums would take whole stages with them.

Requires: a lowered model, where nothing learns from the new channels or counts them. Every old channel keeps its codes,
and the pairs of weights that a kernel may add stay safe: zeros behind the last input channel meet no weight but it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gdfq_export.graph import Graph, Node
from gdfq_export.integer import IntegerModel, QLayer
from gdfq_export.ops import FUNCTIONS

AT_ONCE = 16  # channels in one step of the kernels
LARGEST_GROWTH = 2  # from 8 to 16 channels it still pays; fewer are mostly zeros
KEEPS_CHANNELS = FUNCTIONS | {
    *("relu", "clip", "add_scalar", "mul_scalar", "mul"),
    *("max_pool", "avg_pool", "global_avg_pool", "pad", "upsample"),
}
"""Operations whose channel c depends on channel c of their inputs alone; sums could be some, see above."""


def pad_depthwise(model: IntegerModel) -> IntegerModel:
    """The same codes with more channels around depthwise convolutions."""
    added = _added_channels(model)
    if not added:
        return model
    nodes, layers = [], dict(model.layers)
    for node in model.graph.nodes:
        made, attributes = added.get(node.name, 0), node.attributes
        if node.op == "conv" and _is_depthwise(model, node):
            attributes = {**attributes, "groups": attributes["groups"] + made}
            layers[node.name] = _wider(layers[node.name], made, 0)
        elif node.op == "conv":
            layers[node.name] = _wider(layers[node.name], made, added.get(node.inputs[0], 0))
        nodes.append(node.replace(shape=(node.shape[0] + made, *node.shape[1:]), attributes=attributes))
    graph = Graph(tuple(nodes), model.graph.parameters, model.graph.output)
    return dataclasses.replace(model, graph=graph, layers=layers)


def _wider(layer: QLayer, outputs: int, inputs: int) -> QLayer:
    """Filters and input channels of zeros behind those of a layer; a new filter has the scale of the last one."""
    window = [(0, 0)] * (layer.q_weight.ndim - 2)
    return dataclasses.replace(
        layer,
        q_weight=np.pad(layer.q_weight, [(0, outputs), (0, inputs), *window]),
        scale=np.pad(layer.scale, (0, outputs), mode="edge"),
        q_bias=np.pad(layer.q_bias, (0, outputs)),
    )


def _added_channels(model: IntegerModel) -> dict[str, int]:
    """Tensor -> how many channels it gets; what stays as it is, is left out."""
    graph = model.graph
    regions: dict[str, set[str]] = {}  # tensor -> those that share its channels
    fixed = {graph.output}
    for node in graph.nodes:
        region = {node.name}
        if _keeps_channels(model, node):
            region.update(*(regions[name] for name in node.inputs))
        else:
            fixed |= _tensors_to_leave(model, node)
        regions |= dict.fromkeys(region, region)
    added: dict[str, int] = {}
    for node in graph.of("conv"):
        missing = -node.shape[0] % AT_ONCE
        pays = _is_depthwise(model, node) and missing <= (LARGEST_GROWTH - 1) * node.shape[0]
        if pays and missing and not regions[node.name] & fixed:
            added |= dict.fromkeys(regions[node.name], missing)
    return added


def _keeps_channels(model: IntegerModel, node: Node) -> bool:
    if node.op == "conv":
        return _is_depthwise(model, node)
    shapes = [model.graph[name].shape for name in node.inputs]
    return node.op in KEEPS_CHANNELS and all(shape[0] == node.shape[0] and len(shape) == 3 for shape in shapes)


def _tensors_to_leave(model: IntegerModel, node: Node) -> set[str]:
    """Of what a node that mixes channels makes and reads, all that must keep its number of them."""
    if node.op != "conv" or node.attributes["groups"] != 1:
        return {node.name, *node.inputs}
    window = model.layers[node.name].q_weight.shape[2:]
    return set() if math.prod(window) == 1 else set(node.inputs)


def _is_depthwise(model: IntegerModel, node: Node) -> bool:
    return bool(node.attributes["groups"] == node.shape[0] > 1) and model.layers[node.name].q_weight.shape[1] == 1
