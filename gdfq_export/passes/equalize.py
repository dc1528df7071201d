"""Cross-layer range equalization (DFQ, Nagel et al. 2019): channels between two layers get similar ranges.

    f(x / s) = f(x) / s  for s > 0           ReLU, LeakyReLU, pooling, and what only moves channels
    W1' = W1 / s,  b1' = b1 / s,  W2' = W2 * s                       the same function
    s_i = sqrt(r1_i / r2_i)                                          makes both ranges sqrt(r1_i * r2_i)

r2 is the range of the weights that read channel i. r1 is the range of the weights that make it (the paper, whose
weights have one scale for a tensor) or, where `spans` are given, of the channel itself: weights with a scale for
each output channel do not care how their rows are scaled, but the activation between them has one scale. For the
same reason r2 is then taken relative to each row's largest weight, and is constant for a depthwise second layer,
whose channels have a scale each.

A clip such as ReLU6 is no such function. A channel behind one is scaled only where its batch-norm statistics keep it
`CAP_DEVIATIONS` standard deviations inside the limits, before and after; where there are none, it is left alone.

Requires: a folded graph. Exact in real numbers, but for values beyond those deviations behind a clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.graph import Graph, Node, rebuild
from gdfq_export.moments import Moments
from gdfq_export.ops import LAYERS
from gdfq_export.quantizers import over_channels

CAP_DEVIATIONS = 6.0
SWEEPS = 40
SETTLED = 1e-3  # largest |log s| of a sweep that ends the iteration

JOINING = frozenset({"add", "sub", "max"})
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "max_pool", "avg_pool", "global_avg_pool", "upsample", "mul_scalar"})


@dataclass(frozen=True)
class Pair:
    """Two layers, and the operations between them, all of which commute with a positive factor for each channel."""

    first: str
    path: tuple[str, ...]  # in graph order; they may part and join again, as a PReLU does
    second: str


@dataclass(frozen=True, eq=False)
class Equalized:
    """The graph, and what each changed tensor was divided by, (C,) each."""

    graph: Graph
    factors: Mapping[str, Tensor]


def carry(graph: Graph, pair: Pair, values: Tensor) -> dict[str, Tensor]:
    """Per-channel values of the first layer, as each tensor on the path has them."""
    found = {pair.first: values}
    for name in pair.path:
        carried = _step(graph, graph[name], found)
        assert carried is not None  # find_pairs walked the same way
        found[name] = carried
    return found


def carry_over(graph: Graph, pair: Pair, values: Tensor) -> Tensor:
    """Per-channel values of the first layer, as the second layer's input channels see them."""
    return carry(graph, pair, values)[graph[pair.second].inputs[0]]


def _step(graph: Graph, node: Node, found: Mapping[str, Tensor]) -> Tensor | None:
    """Values behind `node` from those before it; None where channels are mixed or factors do not pass."""
    others = [name for name in node.inputs if name not in found]
    inputs = [found[name] for name in node.inputs if name in found]
    same = all(torch.equal(values, inputs[0]) for values in inputs)
    before = len(inputs[0])
    if node.op in JOINING:
        return inputs[0] if same and not others else None
    if node.op == "mul":  # by a constant or a gate, whatever that is
        return inputs[0] if len(others) == 1 and node.shape[0] == before else None
    if others:
        return None
    if node.op == "channel_shuffle":
        return inputs[0].view(node.attributes["groups"], -1).T.reshape(-1)
    if node.op == "reshape" and (len(node.shape) == 1 or node.shape[0] == before):
        return inputs[0].repeat_interleave(node.shape[0] // before)
    plain = node.op in HOMOGENEOUS | {"clip"} or (node.op == "pad" and node.attributes["value"] == 0.0)
    return inputs[0] if plain and node.shape[0] == before else None


def find_pairs(graph: Graph) -> list[Pair]:
    """Every layer whose result reaches exactly one other layer, through homogeneous operations alone."""
    pairs = [_pair_from(graph, node) for node in graph.of(*LAYERS) if node.op == "conv" or len(node.shape) == 1]
    return [pair for pair in pairs if pair is not None]


def _pair_from(graph: Graph, first: Node) -> Pair | None:
    """Follows a layer's result through the graph until every reader is a layer."""
    found: dict[str, Tensor] = {first.name: torch.arange(first.shape[0])}  # channels by number, to see them move
    second: str | None = None
    for node in graph.nodes:
        if not any(name in found for name in node.inputs):
            continue
        if node.op in LAYERS:
            if second is not None or not (node.op == "conv" or len(node.shape) == 1):
                return None
            second = node.name
            continue
        carried = _step(graph, node, found)
        if carried is None:
            return None
        found[node.name] = carried
    if second is None or graph.output in found:
        return None
    return Pair(first.name, tuple(name for name in found if name != first.name), second)


def equalize(graph: Graph, moments: Mapping[str, Moments], spans: Mapping[str, Tensor] | None = None) -> Equalized:
    """Equalizes all pairs in turns until nothing moves; `moments` are batch norm's, `spans` the channels' ranges."""
    pairs = [pair for pair in find_pairs(graph) if spans is None or pair.first in spans]
    weights = {node.name: graph.parameters[node.parameters["weight"]].double() for node in graph.of(*LAYERS)}
    totals = {pair.first: torch.ones(len(weights[pair.first]), dtype=torch.float64) for pair in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            total = totals[pair.first]
            if spans is None:
                first = weights[pair.first].flatten(1).abs().amax(1)
            else:
                first = spans[pair.first].double() / total
            second = _read_ranges(graph, pair, weights[pair.second], relative=spans is not None)
            alive = (first > 0) & (second > 0)
            if not bool(alive.any()):
                continue
            scale = torch.where(alive, (first / second).sqrt(), 1.0)
            if spans is not None and _is_depthwise(weights[pair.second], graph[pair.second]):
                scale = torch.where(alive, first / first[alive].log().mean().exp(), 1.0)
            scale = _within_caps(graph, pair, total * scale, moments) / total
            _apply(graph, pair, weights, scale)
            totals[pair.first] = total * scale
            moved = max(moved, float(scale.log().abs().max()))
        if moved < SETTLED:
            break
    return _with_factors(graph, pairs, totals)


def _is_depthwise(weight: Tensor, node: Node) -> bool:
    return node.op == "conv" and node.attributes["groups"] > 1 and weight.shape[1] == 1


def _grouped(node: Node, weight: Tensor) -> Tensor:
    """A layer's weight as (groups, outputs, inputs, positions)."""
    groups = node.attributes["groups"] if node.op == "conv" else 1
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _read_ranges(graph: Graph, pair: Pair, weight: Tensor, *, relative: bool) -> Tensor:
    """The range of the weights that read each channel of the first layer, (C,)."""
    grouped = _grouped(graph[pair.second], weight).abs()
    if relative:
        grouped = grouped / grouped.amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    by_input = grouped.amax((1, 3)).reshape(-1)
    channels = graph[pair.first].shape[0]
    owner = carry_over(graph, pair, torch.arange(channels))
    return torch.zeros(channels, dtype=torch.float64).scatter_reduce(0, owner, by_input, "amax")


def _within_caps(graph: Graph, pair: Pair, total: Tensor, moments: Mapping[str, Moments]) -> Tensor:
    """The factor where the limits of a clip allow it: 1 where they can act, and never so small that they will."""
    found = moments.get(pair.first)
    for name in pair.path:
        node = graph[name]
        if node.op != "clip":
            continue
        low, high = node.attributes["low"], node.attributes["high"]
        if {low, high} <= {0.0, math.inf, -math.inf}:
            continue  # as homogeneous as a ReLU
        # Anything but a layer straight before the clip has no statistics of its own.
        if found is None or node.inputs[0] != pair.first or low > 0 or high <= 0:
            return torch.ones_like(total)
        use = (found.mean + CAP_DEVIATIONS * found.std) / high  # the share of the limit that the channel needs
        if low < 0:
            use = torch.maximum(use, (found.mean - CAP_DEVIATIONS * found.std) / low)
        total = torch.where(use > 1, 1.0, torch.maximum(total, use))
    return total


def _apply(graph: Graph, pair: Pair, weights: dict[str, Tensor], scale: Tensor) -> None:
    """Divides the rows of the first layer and multiplies the columns of the second."""
    first = weights[pair.first]
    weights[pair.first] = first / over_channels(scale, first)
    second = weights[pair.second]
    grouped = _grouped(graph[pair.second], second)
    columns = carry_over(graph, pair, scale).view(len(grouped), 1, -1, 1)
    weights[pair.second] = (grouped * columns).reshape(second.shape)


def _with_factors(graph: Graph, pairs: list[Pair], totals: Mapping[str, Tensor]) -> Equalized:
    """The graph with every factor applied once, from the original weights."""
    weights = {node.name: graph.parameters[node.parameters["weight"]].double() for node in graph.of(*LAYERS)}
    parameters: dict[str, Tensor] = {}
    changed: dict[str, Node] = {}
    factors: dict[str, Tensor] = {}

    def store(name: str, role: str, value: Tensor) -> None:
        node = changed.get(name, graph[name])
        key = f"{name}/{role}"
        parameters[key] = value.to(graph.parameters[graph[name].parameters[role]].dtype)
        changed[name] = node.replace(parameters={**node.parameters, role: key})

    for pair in pairs:
        total = totals[pair.first]
        _apply(graph, pair, weights, total)
        factors |= carry(graph, pair, total)
        bias = graph.parameter(graph[pair.first], "bias")
        if bias is not None:
            store(pair.first, "bias", bias.double() / total)
    for name in dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)):
        store(name, "weight", weights[name])
    nodes = [changed.get(node.name, node) for node in graph.nodes]
    return Equalized(rebuild(graph, nodes, parameters=parameters), factors)
