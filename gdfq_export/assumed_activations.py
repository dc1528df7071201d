"""What every tensor is taken to hold where there is no data: normal channels with the moments of batch norm (DFQ).

    f(y), f pointwise                      expectation over y ~ N(mean, std), on quantiles
    x1 + x2                                means and variances add up, as if independent
    W x + b without batch norm             W E[x] + b,  variance W^2 Var[x]
    mean over n positions                  variance / sqrt(n): between independent positions and equal ones

Pixels are taken to have the mean and the spread of photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gdfq_export.generator import ImageSpec
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.moments import Moments, reads
from gdfq_export.ops import FUNCTIONS, KERNELS, LAYERS
from gdfq_export.program import FloatProgram

PHOTOGRAPH_MEAN, PHOTOGRAPH_STD = 0.45, 0.25  # of the way from black to white
POINTS = 1024  # for expectations
SHOWN_POINTS = 16_384  # for ranges: many, so that the two at the end of the tail weigh as little as the tail
TAIL = 6.0  # deviations at which the paper ends an activation's range

POINTWISE = FUNCTIONS | {"relu", "clip", "add_scalar", "mul_scalar"}


def propagate(graph: Graph, known: Mapping[str, Moments], image: ImageSpec) -> dict[str, Moments]:
    """Moments of every tensor of a folded graph; those that are `known` are taken as they are."""
    low, high = (torch.tensor(values, dtype=torch.float64) for values in (image.low, image.high))
    pixels = Moments(low + PHOTOGRAPH_MEAN * (high - low), PHOTOGRAPH_STD * (high - low))
    found: dict[str, Moments] = {}
    for node in graph.nodes:
        if node.op == INPUT:
            found[node.name] = pixels
        elif node.name in known:
            found[node.name] = known[node.name]
        else:
            found[node.name] = _moments_of(graph, node, [found[name] for name in node.inputs])
    return found


def quantiles(count: int = POINTS) -> Tensor:
    """Equally likely values of N(0, 1)."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    points: Tensor = torch.special.ndtri(share)
    return points


def _pointwise(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """A pointwise operation on values (P, C)."""
    held = {role: graph.parameters[key].to(x.dtype) for role, key in node.parameters.items()}
    value: Tensor = KERNELS[node.op](node, [x], held)
    return value


def _moments_of(graph: Graph, node: Node, inputs: list[Moments]) -> Moments:
    """Moments of one tensor from those of its inputs."""
    first = inputs[0] if inputs else None
    if node.op == "constant":
        value = graph.parameters[node.parameters["value"]].double()  # (1, C, ...), or one number
        channels = value.reshape(value.shape[1] if value.ndim > 1 else 1, -1)
        return Moments(channels.mean(1), channels.std(1, correction=0))
    assert first is not None  # only the input and constants have none
    if node.op in LAYERS:
        return _moments_of_layer(graph, node, first)
    if node.op in POINTWISE:
        y = _pointwise(graph, node, first.mean + quantiles()[:, None] * first.std)  # (P, C)
        return Moments(y.mean(0), y.std(0, correction=0))
    if node.op in ("add", "sub"):
        sign = 1.0 if node.op == "add" else -1.0
        second = inputs[1]
        return _spread(Moments(first.mean + sign * second.mean, torch.hypot(first.std, second.std)), node)
    if node.op == "mul":
        second = inputs[1]
        product = first.mean * second.mean
        square = (first.mean.square() + first.std.square()) * (second.mean.square() + second.std.square())
        return _spread(Moments(product, (square - product.square()).clamp_min(0.0).sqrt()), node)
    if node.op == "max":
        return Moments(torch.maximum(first.mean, inputs[1].mean), torch.maximum(first.std, inputs[1].std))
    if node.op == "concat" and node.attributes["axis"] == 1:
        return Moments(torch.cat([m.mean for m in inputs]), torch.cat([m.std for m in inputs]))
    return _moved(graph, node, first)


def _moments_of_layer(graph: Graph, node: Node, source: Moments) -> Moments:
    weight = graph.parameters[node.parameters["weight"]].double()
    bias = graph.parameter(node, "bias")
    mean, variance = reads(node, weight, source.mean), reads(node, weight.square(), source.std.square())
    return Moments(mean if bias is None else mean + bias.double(), variance.sqrt())


def _pooled(graph: Graph, node: Node, source: Moments) -> Moments:
    count = math.prod(node.attributes.get("kernel", graph[node.inputs[0]].shape[1:]))
    return Moments(source.mean, source.std / count**0.25)


def _moved(graph: Graph, node: Node, source: Moments) -> Moments:
    """Data movement and pooling: channels keep their moments where they can be followed."""
    channels = len(source.mean)
    if node.op in ("avg_pool", "global_avg_pool"):
        return _pooled(graph, node, source)
    if node.op == "channel_shuffle":
        return _each(source, lambda v: v.view(node.attributes["groups"], -1).T.reshape(-1))
    if node.op == "pad_channels":
        return _each(source, lambda v: torch.cat([v, v.new_zeros(node.attributes["count"])]))
    if node.op == "space_to_depth":
        return _each(source, lambda v: v.repeat(node.attributes["block"] ** 2))
    if node.op == "gather" and node.attributes["axis"] == 1:
        return _each(source, lambda v: v[torch.tensor(node.attributes["order"])])
    if node.op == "tile":
        return _each(source, lambda v: v.repeat(node.attributes["repeats"][0]))
    if node.op == "slice" and node.attributes["axis"] == 1:
        index = slice(node.attributes["start"], node.attributes["end"], node.attributes["step"])
        return _each(source, lambda v: v[index])
    if node.op == "reshape" and node.shape[0] % channels == 0 and graph[node.inputs[0]].shape[0] == channels:
        return _each(source, lambda v: v.repeat_interleave(node.shape[0] // channels))
    return _spread(source, node)


def _each(source: Moments, move: Callable[[Tensor], Tensor]) -> Moments:
    return Moments(move(source.mean), move(source.std))


def _spread(source: Moments, node: Node) -> Moments:
    """The moments for each channel of `node`; where channels cannot be followed, those of all together."""
    if len(source.mean) == node.shape[0]:
        return source
    mean = source.mean.mean()
    variance = source.std.square().mean() + source.mean.var(correction=0)
    return Moments(mean.expand(node.shape[0]), variance.sqrt().expand(node.shape[0]))


class AssumedActivations(FloatProgram):
    """Shows what each tensor is taken to hold instead of running images, so that ranges can be found from it.

    Every channel is shown at equally likely values of its normal distribution and at `TAIL` deviations, the end of
    the paper's ranges; a pointwise function is shown its values there.
    """

    def __init__(self, graph: Graph, moments: Mapping[str, Moments]) -> None:
        super().__init__(graph)
        self.moments = moments

    def forward(self, x: Tensor, visit: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """Calls `visit` with (P, C) values of every tensor; the images themselves are not read."""
        points = torch.cat([quantiles(SHOWN_POINTS), torch.tensor([-TAIL, TAIL], dtype=torch.float64)])[:, None].float()
        values = x
        for node in self.graph.nodes:
            of_normal = node.op in POINTWISE and _reads_a_sum(self.graph, node)
            moments = self.moments[node.inputs[0] if of_normal else node.name]
            values = moments.mean.float() + points * moments.std.float()  # (P, C)
            values = _pointwise(self.graph, node, values) if of_normal else values
            if visit is not None:
                visit(node.name, values)
        return values


def _reads_a_sum(graph: Graph, node: Node) -> bool:
    """Whether a pointwise operation reads a sum of many terms, which is close to normal."""
    return graph[node.inputs[0]].op in LAYERS | {"add", "sub", INPUT}
