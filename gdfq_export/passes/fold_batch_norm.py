"""Folds batch norm into the convolution or linear layer before it; one that has none becomes a depthwise layer.

    y = gamma * (W x + b - mu) / sqrt(var + eps) + beta
    W_folded = W * (gamma / sqrt(var + eps))                   per output channel
    b_folded = beta + (b - mu) * (gamma / sqrt(var + eps))

Exact in real numbers while the statistics are fixed. Requires: a captured graph. Afterwards: no `batch_norm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdfq_export.graph import Graph, Node, derived, rebuild
from gdfq_export.ops import LAYERS


def affine_of(graph: Graph, node: Node) -> tuple[Tensor, Tensor]:
    """Batch norm as y = scale * x + shift, each (C,), computed in float64."""
    mean, variance = (graph.parameters[node.parameters[role]].double() for role in ("mean", "variance"))
    gamma, beta = graph.parameter(node, "weight"), graph.parameter(node, "bias")
    scale = torch.rsqrt(variance + node.attributes["eps"])
    scale = scale if gamma is None else scale * gamma.double()
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta.double()


def fold_batch_norm(graph: Graph) -> Graph:
    """A graph without batch norm that computes the same function."""
    users = graph.users()
    parameters: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    folded: dict[str, Node] = {}
    extra: dict[str, list[Node]] = {}
    for node in graph.of("batch_norm"):
        scale, shift = affine_of(graph, node)
        source = graph[node.inputs[0]]
        by_channel = source.op == "conv" or len(source.shape) == 1  # a linear layer of rows is normalised otherwise
        if source.op in LAYERS and by_channel and len(users[source.name]) == 1 and source.name != graph.output:
            weight = graph.parameters[source.parameters["weight"]]
            bias = graph.parameter(source, "bias")
            shape = (-1, *[1] * (weight.ndim - 1))
            keys = {"weight": f"{source.name}/weight", "bias": f"{source.name}/bias"}
            parameters[keys["weight"]] = (weight.double() * scale.view(shape)).to(weight.dtype)
            shift = shift if bias is None else shift + bias.double() * scale
            parameters[keys["bias"]] = shift.to(weight.dtype)
            folded[source.name] = source.replace(parameters=keys)
            aliases[node.name] = source.name
        else:
            extra[node.name] = _as_depthwise(node, scale, shift, parameters)
    nodes = [n for node in graph.nodes for n in extra.get(node.name, [folded.get(node.name, node)])]
    return rebuild(graph, [n for n in nodes if n.name not in aliases], parameters=parameters, aliases=aliases)


def _as_depthwise(node: Node, scale: Tensor, shift: Tensor, parameters: dict[str, Tensor]) -> list[Node]:
    """The same affine map as a 1x1 depthwise convolution, whose integer form is exact to its output's rounding."""
    channels, space = node.shape[0], node.shape[1:]
    rank = max(len(space), 1)
    keys = {"weight": f"{node.name}/weight", "bias": f"{node.name}/bias"}
    parameters[keys["weight"]] = scale.float().view(channels, 1, *[1] * rank)
    parameters[keys["bias"]] = shift.float()
    attributes = {"stride": (1,) * rank, "pads": (0,) * (2 * rank), "dilation": (1,) * rank, "groups": channels}
    layer = node.replace(op="conv", attributes=attributes, parameters=keys)
    if space:
        return [layer]
    before, inside = derived(node.name, "expand"), derived(node.name, "affine")
    return [
        Node(before, "reshape", node.inputs, (channels, 1), place=node.place),
        layer.replace(name=inside, inputs=(before,), shape=(channels, 1)),
        Node(node.name, "reshape", (inside,), (channels,), place=node.place),
    ]
