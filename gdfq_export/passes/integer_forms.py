"""What has no integer kernel, as layers, sums, products, tables and data movement, which all have one.

    prelu(x)             max(x, 0) + slope * min(x, 0)
    x - y                x + (-1) y;  a reversed difference with the two exchanged
    x * c, c <= 0        x * a constant tensor
    sum over an axis     x[0] + x[1] + ...
    pixel (un)shuffle    reshape, transpose, reshape: SpaceToDepth takes codes only in the runtime's latest versions
    x[:, index]          slice, reshape
    stack(x, y)          concat of x and y with an axis of one element each
    softmax              e = exp(x - max(x));  e * (1 / sum(e)), with tables for exp and 1 / x
    mean over channels   1x1 convolution with the weights 1 / C
    resample             Y = A X B^T: two 1x1 convolutions, each with its axis of space in the place of channels

Each function gets the graph, the node, and the dictionary that its new parameters go into, and returns the nodes that
take the node's place; the last one keeps its name. The weights of a resampling are not the network's: they stay at 8
bits however narrow its own are (attribute `bits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gdfq_export.errors import Reason
from gdfq_export.graph import Graph, Node, derived
from gdfq_export.ops import ENDINGS, MOST_TERMS, STAND_IN
from gdfq_export.reasons import refusal

Form = Callable[[Graph, Node, dict[str, Tensor]], list[Node]]
FIXED_BITS = 8


def _pointwise(name: str, source: str, shape: tuple[int, ...], weight: Tensor, into: dict[str, Tensor]) -> Node:
    """A 1x1 convolution with a weight (out, in) that the network does not own."""
    key = f"{name}/weight"
    into[key] = weight[:, :, None, None]
    attributes = {"stride": (1, 1), "pads": (0,) * 4, "dilation": (1, 1), "groups": 1, "bits": FIXED_BITS}
    return Node(name, "conv", (source,), shape, attributes, {"weight": key})


def _prelu(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    slope = graph.parameters[node.parameters["slope"]].detach()
    if slope.numel() == 1:
        return [node.replace(op="leaky_relu", attributes={"slope": float(slope)}, parameters={})]
    above, below, factor, scaled = (derived(node.name, part) for part in ("positive", "negative", "slope", "scaled"))
    into[f"{factor}/value"] = slope.view(1, -1, *[1] * (len(node.shape) - 1))
    limits = {"low": -math.inf, "high": 0.0}
    return [
        Node(above, "relu", node.inputs, node.shape, place=node.place),
        Node(below, "clip", node.inputs, node.shape, limits, place=node.place),
        Node(factor, "constant", (), tuple(into[f"{factor}/value"].shape), {}, {"value": f"{factor}/value"}),
        Node(scaled, "mul", (below, factor), node.shape, place=node.place),
        Node(node.name, "add", (above, scaled), node.shape, place=node.place),
    ]


def _sum(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    axis, source = node.attributes["axis"], graph[node.inputs[0]]
    nodes, total = [], ""
    count = source.shape[axis - 1]
    for index in range(count):
        part, term = (f"{derived(node.name, what)}{index}" for what in ("part", "term"))
        cut = {"axis": axis, "start": index, "end": index + 1, "step": 1}
        whole = (*source.shape[: axis - 1], 1, *source.shape[axis:])
        nodes.append(Node(part, "slice", node.inputs, whole, cut, place=node.place))
        nodes.append(Node(term, "reshape", (part,), node.shape, place=node.place))
        if total:
            name = node.name if index == count - 1 else f"{derived(node.name, 'sum')}{index}"
            nodes.append(Node(name, "add", (total, term), node.shape, place=node.place))
            total = name
        else:
            total = term
    return nodes if count > 1 else [*nodes[:-1], nodes[-1].replace(name=node.name)]


def _stack(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    axis = node.attributes["axis"]
    nodes, parts = [], []
    for index, name in enumerate(node.inputs):
        part = f"{derived(node.name, 'part')}{index}"
        shape = graph[name].shape
        nodes.append(Node(part, "reshape", (name,), (*shape[: axis - 1], 1, *shape[axis - 1 :]), place=node.place))
        parts.append(part)
    return [*nodes, node.replace(op="concat", inputs=tuple(parts))]


def _softmax(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    """Not at the end of the network: there it stays in float (see `plan.quantized_part`)."""
    if _is_ending(graph, node):
        return [node]
    if reasons := form_reasons(graph, [node]):
        raise refusal(reasons)
    axis, shape = node.attributes["axis"], node.shape
    one = (*shape[: axis - 1], 1, *shape[axis:])
    names = ("max", "below", "distance", "power", "total", "inverse")
    peak, below, distance, power, total, inverse = (derived(node.name, part) for part in names)
    negative = Node(below, "mul_scalar", (peak,), one, {"value": -1.0}, place=node.place)
    whole = Node(total, "sum", (power,), one, {"axis": axis}, place=node.place)
    powers = Node(power, "exp", (distance,), shape, place=node.place)
    return [
        Node(peak, "reduce_max", node.inputs, one, {"axes": (axis,), "keep": True}, place=node.place),
        *_scale(graph, negative, into),
        Node(distance, "add", (node.inputs[0], below), shape, place=node.place),
        powers,
        *_sum(Graph((powers,), {}, power), whole, into),
        Node(inverse, "reciprocal", (total,), one, place=node.place),
        Node(node.name, "mul", (power, inverse), shape, place=node.place),
    ]


def _log_softmax(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    if _is_ending(graph, node):
        return [node]
    raise refusal(form_reasons(graph, [node]))


def form_reasons(graph: Graph, nodes: Iterable[Node]) -> list[Reason]:
    """Why nodes of the vocabulary have no integer form where they stand."""
    reasons = []
    for node in nodes:
        if node.op not in ENDINGS or _is_ending(graph, node):
            continue
        problem, terms = "is not supported before the end of the network", node.shape[node.attributes["axis"] - 1]
        if node.op == "softmax" and terms > MOST_TERMS:
            problem = f"over {terms} elements {problem} (at most {MOST_TERMS} are)"
        elif node.op == "softmax":
            continue
        reasons.append(Reason(node.op, node.place, problem, "replace it in the model"))
    return reasons


def _is_ending(graph: Graph, node: Node) -> bool:
    name = graph.output
    while graph[name].op in ENDINGS or (graph[name].op == STAND_IN and graph[name].inputs):
        if name == node.name:
            return True
        name = graph[name].inputs[0]
    return False


def _channel_mean(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    channels, *space = graph[node.inputs[0]].shape
    mean = derived(node.name, "mean")
    weight = torch.full((1, channels), 1 / channels)
    layer = _pointwise(mean, node.inputs[0], (1, *space), weight, into)
    return [layer, Node(node.name, "reshape", (mean,), node.shape, place=node.place)]


def _resample(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    rows, columns = node.attributes["matrices"]  # (H', H), (W', W)
    channels, height, width = graph[node.inputs[0]].shape
    new_height, new_width = len(rows), len(columns)
    turned, tall, across, wide = (derived(node.name, part) for part in ("turned", "rows", "across", "columns"))
    return [
        Node(turned, "transpose", node.inputs, (height, channels, width), {"axes": (0, 2, 1, 3)}, place=node.place),
        _pointwise(tall, turned, (new_height, channels, width), rows, into),
        Node(across, "transpose", (tall,), (width, channels, new_height), {"axes": (0, 3, 2, 1)}, place=node.place),
        _pointwise(wide, across, (new_width, channels, new_height), columns, into),
        Node(node.name, "transpose", (wide,), node.shape, {"axes": (0, 2, 3, 1)}, place=node.place),
    ]


def _sub(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    minus = graph[node.inputs[1]]
    scaled = Node(
        derived(node.name, "negative"), "mul_scalar", (minus.name,), minus.shape, {"value": -1.0}, place=node.place
    )
    return [*_scale(graph, scaled, into), node.replace(op="add", inputs=(node.inputs[0], scaled.name))]


def _select(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    axis, index, part = node.attributes["axis"], node.attributes["index"], derived(node.name, "part")
    cut = {"axis": axis, "start": index, "end": index + 1, "step": 1}
    whole = (*node.shape[: axis - 1], 1, *node.shape[axis - 1 :])
    return [
        Node(part, "slice", node.inputs, whole, cut, place=node.place),
        Node(node.name, "reshape", (part,), node.shape, place=node.place),
    ]


def _reversed_sub(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    return _sub(graph, node.replace(inputs=node.inputs[::-1]), into)


def _pixel_unshuffle(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    (channels, height, width), b = graph[node.inputs[0]].shape, node.attributes["block"]
    return _rearranged(node, (channels, height // b, b, width // b, b), (0, 1, 3, 5, 2, 4))


def _pixel_shuffle(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    (channels, height, width), b = graph[node.inputs[0]].shape, node.attributes["block"]
    return _rearranged(node, (channels // b**2, b, b, height, width), (0, 1, 4, 2, 5, 3))


def _rearranged(node: Node, split: tuple[int, ...], axes: tuple[int, ...]) -> list[Node]:
    """The elements in another order: axes taken apart, exchanged, and joined again."""
    parts, moved = derived(node.name, "split"), derived(node.name, "moved")
    return [
        Node(parts, "reshape", node.inputs, split, place=node.place),
        Node(moved, "transpose", (parts,), tuple(split[axis - 1] for axis in axes[1:]), {"axes": axes}, {}, node.place),
        Node(node.name, "reshape", (moved,), node.shape, place=node.place),
    ]


def _scale(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    """A positive factor only changes a scale; any other is one code of a constant tensor."""
    value = float(node.attributes["value"])
    if value > 0:
        return [node]
    factor = derived(node.name, "factor")
    into[f"{factor}/value"] = torch.tensor([value])
    constant = Node(factor, "constant", (), (1,), {}, {"value": f"{factor}/value"}, node.place)
    return [constant, node.replace(op="mul", inputs=(*node.inputs, factor), attributes={})]


def _gather(graph: Graph, node: Node, into: dict[str, Tensor]) -> list[Node]:
    """The order as an attribute: it is no number that training may change."""
    order = tuple(int(index) for index in graph.parameters[node.parameters["order"]].tolist())
    return [node.replace(op="gather", attributes={**node.attributes, "order": order}, parameters={})]


INTEGER_FORMS: dict[str, Form] = {
    "prelu": _prelu,
    "sum": _sum,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "stack": _stack,
    "channel_mean": _channel_mean,
    "resample": _resample,
    "sub": _sub,
    "rsub": _reversed_sub,
    "pixel_unshuffle": _pixel_unshuffle,
    "pixel_shuffle": _pixel_shuffle,
    "mul_scalar": _scale,
    "index_select": _gather,
    "select": _select,
}
