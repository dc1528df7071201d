"""High bias absorption (DFQ, Nagel et al. 2019): moves what a channel always exceeds into the next layer.

    relu(W1 x + b1 - c) = relu(W1 x + b1) - c      where W1 x + b1 >= c >= 0
    b1' = b1 - c,   b2' = b2 + W2 c                 c = max(0, mean - 3 std), by the statistics of batch norm

Deviation: a second layer that pads with zeros is left alone, because the padding does not carry c; the paper lets the
edges be wrong. A clip is left alone, because its upper limit would move.

Requires: a folded graph. The function stays, but for values below those three deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.graph import Graph, Node, rebuild
from gdfq_export.moments import Moments, reads
from gdfq_export.passes.equalize import Pair, carry_over, find_pairs

DEVIATIONS = 3.0
RECTIFIERS = frozenset({"relu", "leaky_relu"})


@dataclass(frozen=True, eq=False)
class Absorbed:
    """The graph, and what was taken off each channel of the changed layers' outputs, (C,) each."""

    graph: Graph
    shifts: Mapping[str, Tensor]


def absorb_bias(graph: Graph, moments: Mapping[str, Moments]) -> Absorbed:
    """Absorbs the bias of every pair of layers that allows it."""
    biases: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}
    for pair in find_pairs(graph):
        first, second = graph[pair.first], graph[pair.second]
        if first.name not in moments or "bias" not in first.parameters or not _passes(graph, pair):
            continue
        shift = (moments[first.name].mean - DEVIATIONS * moments[first.name].std).clamp_min(0.0)
        if not bool(shift.any()):
            continue
        carried = carry_over(graph, pair, shift)
        weight = graph.parameters[second.parameters["weight"]].double()
        biases[first.name] = _bias(graph, first, biases) - shift
        biases[second.name] = _bias(graph, second, biases) + reads(second, weight, carried)
        shifts[first.name] = shift
    parameters = {f"{name}/bias": bias.float() for name, bias in biases.items()}
    nodes = [
        node.replace(parameters={**node.parameters, "bias": f"{node.name}/bias"}) if node.name in biases else node
        for node in graph.nodes
    ]
    return Absorbed(rebuild(graph, nodes, parameters=parameters), shifts)


def _passes(graph: Graph, pair: Pair) -> bool:
    """Whether a constant that is subtracted before the path can be added behind it."""
    path, second = [graph[name] for name in pair.path], graph[pair.second]
    movers = RECTIFIERS | {"max_pool", "avg_pool", "global_avg_pool", "upsample", "channel_shuffle", "reshape"}
    padded = any(any(node.attributes.get("pads", ())) for node in [*path, second])
    rectified = any(node.op in RECTIFIERS for node in path)
    return rectified and not padded and all(node.op in movers for node in path)


def _bias(graph: Graph, node: Node, biases: Mapping[str, Tensor]) -> Tensor:
    """The layer's bias as changed so far; a layer without one has zeros."""
    if node.name in biases:
        return biases[node.name]
    bias = graph.parameter(node, "bias")
    return torch.zeros(node.shape[0], dtype=torch.float64) if bias is None else bias.double()
