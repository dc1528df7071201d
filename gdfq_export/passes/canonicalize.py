"""Writes each idea in one way, so that later stages know fewer forms.

    hard_swish(x)            -> x * hard_sigmoid(x)
    hard_sigmoid(x)          -> clip(x + 3, 0, 6) * (1/6)
    silu(x)                  -> x * sigmoid(x)
    prelu(x)                 -> max(x, 0) + slope * min(x, 0), or leaky_relu where all slopes are one
    sub(x, y) by a constant  -> add_scalar
    x - y                    -> x + y * (-1)
    x * c, c <= 0            -> x * a constant tensor
    sum over an axis         -> the sum of its slices
    stack                    -> reshape, concat
    slice of a concat        -> the operand that it cuts out
    mean over channels, bilinear upsampling, uneven average pooling -> 1x1 convolutions
    x * a * b                -> x * (a b)
    pad with 0, then conv    -> conv with more padding
    mean over space of a 1x1 conv that ends the network -> the conv of the mean
    conv on a 1x1 map that ends the network -> reshape, linear (when the kernel is 1x1)
    transpose that only moves axes of length 1 -> reshape   (a channel shuffle of one group does nothing)
    reshape of a reshape     -> the last one
    reshape that changes nothing, x + 0 -> nothing

Requires: a captured graph. Exact, but for hard_sigmoid's division by 6, which becomes a product, and for the order of
the sums of a mean that moved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gdfq_export.graph import Graph, Node, derived, rebuild
from gdfq_export.passes.integer_forms import INTEGER_FORMS
from gdfq_export.plan import quantized_part

EXPANDED = frozenset({"silu", "hard_sigmoid", "hard_swish", "global_avg_pool_flat"})
"""What `_expand` takes apart."""


SMALLEST_CONSTANT = 255 * torch.finfo(torch.float32).tiny  # what a code behind a scale can hold


def canonicalize(graph: Graph) -> Graph:
    """The same function with fewer forms; each step is its own small function."""
    steps = (
        *(_expand_nodes, _drop_identities, _cut_concats, _drop_identities, _drop_zeros, _drop_broadcasts),
        *(_absorb_padding, _pool_first, _linear_from_pointwise, _reshape_from_transpose, _drop_identities),
    )
    for step in steps:
        graph = step(graph)
    return graph


def _expand(node: Node) -> list[Node]:
    """An activation as simpler nodes; the last one keeps its name."""
    shape, place, source = node.shape, node.place, node.inputs

    def make(suffix: str, op: str, inputs: tuple[str, ...], **attributes: float) -> Node:
        name = derived(node.name, suffix) if suffix else node.name
        return Node(name, op, inputs, shape, attributes, place=place)

    if node.op == "silu":
        gate = make("sigmoid", "sigmoid", source)
        return [gate, make("", "mul", (source[0], gate.name))]
    if node.op in ("hard_sigmoid", "hard_swish"):
        shifted = make("shift", "add_scalar", source, value=3.0)
        clipped = make("clip", "clip", (shifted.name,), low=0.0, high=6.0)
        if node.op == "hard_sigmoid":
            return [shifted, clipped, make("", "mul_scalar", (clipped.name,), value=1 / 6)]
        gate = make("gate", "mul_scalar", (clipped.name,), value=1 / 6)
        return [shifted, clipped, gate, make("", "mul", (source[0], gate.name))]
    if node.op == "global_avg_pool_flat":
        pooled = Node(derived(node.name, "pool"), "global_avg_pool", source, (shape[0], 1, 1), place=place)
        return [pooled, make("", "reshape", (pooled.name,))]
    return [node]


def _expand_nodes(graph: Graph) -> Graph:
    parameters: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        expand = INTEGER_FORMS.get(node.op)
        nodes += _expand(node) if expand is None else expand(graph, node, parameters)
    return rebuild(graph, nodes, parameters=parameters)


def _cut_concats(graph: Graph) -> Graph:
    """A slice that is exactly one operand of a concat is that operand."""
    aliases: dict[str, str] = {}
    for node in graph.of("slice"):
        source = graph[node.inputs[0]]
        cut = node.attributes
        if source.op != "concat" or source.attributes["axis"] != cut["axis"] or cut["step"] != 1:
            continue
        start = 0
        for name in source.inputs:
            end = start + graph[name].shape[cut["axis"] - 1]
            if (start, end) == (cut["start"], cut["end"]) and graph[name].op != "constant":
                aliases[node.name] = name
            start = end
    return rebuild(graph, [node for node in graph.nodes if node.name not in aliases], aliases=aliases)


def _drop_zeros(graph: Graph) -> Graph:
    """x + 0 -> x, where 0 is a constant tensor; a product with one is 0 itself."""
    aliases: dict[str, str] = {}
    zeros = {node.name for node in graph.of("constant") if not bool(graph.parameters[node.parameters["value"]].any())}
    for node in graph.of("add", "mul"):
        inputs = [aliases.get(name, name) for name in node.inputs]
        none = [name for name in inputs if name in zeros]
        others = [name for name in inputs if name not in zeros]
        if node.op == "mul" and none and graph[none[0]].shape == (1, *node.shape):
            aliases[node.name] = none[0]
            zeros.add(node.name)
        elif node.op == "add" and none and others and graph[others[0]].shape == node.shape:
            aliases[node.name] = others[0]
    return rebuild(graph, [node for node in graph.nodes if node.name not in aliases], aliases=aliases)


def _drop_broadcasts(graph: Graph) -> Graph:
    """expand before an operator that broadcasts by itself goes away."""
    users = graph.users()
    aliases = {}
    for node in graph.of("expand"):
        readers = users[node.name]
        partners = [[graph[name].shape for name in reader.inputs if name != node.name] for reader in readers]
        whole = all(reader.op in ("add", "mul") for reader in readers) and all(node.shape in p for p in partners)
        if whole and len(graph[node.inputs[0]].shape) == len(node.shape):
            aliases[node.name] = node.inputs[0]
    return rebuild(graph, [node for node in graph.nodes if node.name not in aliases], aliases=aliases)


def _drop_identities(graph: Graph) -> Graph:
    """Merges chains of reshapes and of products with constants; drops clips and reshapes that change nothing."""
    users = graph.users()
    aliases: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        source = nodes.get(node.inputs[0]) if node.inputs else None
        if node.op == "reshape" and source is not None and source.op == "reshape":
            node = node.replace(inputs=source.inputs)
            source = nodes[node.inputs[0]]
        if (
            node.op == "mul_scalar"
            and source is not None
            and source.op == "mul_scalar"
            and len(users[source.name]) == 1
        ):
            value = node.attributes["value"] * source.attributes["value"]
            node = node.replace(inputs=source.inputs, attributes={"value": value})
        same_shape = node.op == "reshape" and source is not None and source.shape == node.shape
        no_limits = node.op == "clip" and node.attributes["low"] == -math.inf and node.attributes["high"] == math.inf
        nothing = node.op == "add_scalar" and abs(node.attributes["value"]) < SMALLEST_CONSTANT
        if same_shape or no_limits or nothing:
            aliases[node.name] = node.inputs[0]
        nodes[node.name] = node
    return rebuild(graph, [node for node in nodes.values() if node.name not in aliases], aliases=aliases)


def _absorb_padding(graph: Graph) -> Graph:
    """pad(0) before a convolution moves into its padding; the pad goes when nobody else reads it."""
    nodes = []
    for node in graph.nodes:
        source = graph[node.inputs[0]] if node.op == "conv" else None
        if source is not None and source.op == "pad" and source.attributes["value"] == 0.0:
            pads = tuple(a + b for a, b in zip(node.attributes["pads"], source.attributes["pads"], strict=True))
            node = node.replace(inputs=source.inputs, attributes={**node.attributes, "pads": pads})
        nodes.append(node)
    return rebuild(graph, nodes)


def _pool_first(graph: Graph) -> Graph:
    """The mean of a last 1x1 convolution as the convolution of the mean.

    One position is computed in place of all, and `_linear_from_pointwise` makes logits of it that need no rounding: on
    the grid of what they are the mean of, the best two classes of an image may be equal.
    """
    ending = _ending(graph, "conv", "global_avg_pool", "reshape")
    if not ending or not _is_pointwise(graph, ending[0]):
        return graph
    conv, pool, flat = ending
    channels = graph[conv.inputs[0]].shape[0]
    moved = {
        conv.name: pool.replace(inputs=conv.inputs, shape=(channels, *pool.shape[1:])),
        pool.name: conv.replace(inputs=(pool.name,), shape=pool.shape),
        flat.name: flat.replace(inputs=(conv.name,)),
    }
    return rebuild(graph, [moved.get(node.name, node) for node in graph.nodes])


def _linear_from_pointwise(graph: Graph) -> Graph:
    """A 1x1 convolution of a 1x1 map that ends the network as a linear layer: its logits need no rounding."""
    ending = _ending(graph, "conv", "reshape")
    if not ending or not _is_pointwise(graph, ending[0]) or math.prod(ending[0].shape[1:]) != 1:
        return graph
    conv, _ = ending
    weight = graph.parameters[conv.parameters["weight"]].flatten(1)
    key, flat = f"{conv.name}/matrix", derived(conv.name, "flatten")
    linear = [
        Node(flat, "reshape", conv.inputs, (weight.shape[1],), place=conv.place),
        Node(conv.name, "linear", (flat,), (weight.shape[0],), {}, {**conv.parameters, "weight": key}, conv.place),
    ]
    nodes = [part for node in graph.nodes for part in (linear if node.name == conv.name else [node])]
    return rebuild(graph, nodes, parameters={key: weight})


def _ending(graph: Graph, *ops: str) -> tuple[Node, ...]:
    """The nodes of these operations that make the logits one after the other, or none: nothing else can read them."""
    _, name = quantized_part(graph)
    found: list[Node] = []
    for op in reversed(ops):
        node = graph[name]
        if node.op != op:
            return ()
        found.insert(0, node)
        name = node.inputs[0]
    return tuple(found)


def _is_pointwise(graph: Graph, conv: Node) -> bool:
    """Whether each result of a convolution comes from one position, and every position has one."""
    a, kernel = conv.attributes, graph.parameters[conv.parameters["weight"]].shape[2:]
    return {*kernel, *a["stride"], a["groups"]} == {1} and not any(a["pads"])


def _reshape_from_transpose(graph: Graph) -> Graph:
    """A transpose that keeps the order of all axes longer than 1 moves nothing."""
    nodes = []
    for node in graph.nodes:
        if node.op == "transpose":
            sizes = (None, *graph[node.inputs[0]].shape)  # None: the batch
            longer = [axis for axis in node.attributes["axes"] if sizes[axis] != 1]
            if longer == sorted(longer):
                node = node.replace(op="reshape", attributes={})
        nodes.append(node)
    return rebuild(graph, nodes)
