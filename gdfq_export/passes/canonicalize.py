"""Writes each idea in one way, so that later stages know fewer forms.

    hard_swish(x)            -> x * hard_sigmoid(x)
    hard_sigmoid(x)          -> clip(x + 3, 0, 6) * (1/6)
    silu(x)                  -> x * sigmoid(x)
    sub(x, y) by a constant  -> add_scalar
    x * a * b                -> x * (a b)
    pad with 0, then conv    -> conv with more padding
    conv on a 1x1 map        -> reshape, linear             (when the kernel is 1x1)
    reshape of a reshape     -> the last one
    reshape that changes nothing -> nothing

Requires: a captured graph. Exact, but for hard_sigmoid's division by 6, which becomes a product.
"""

from __future__ import annotations

import math

from gdfq_export.graph import Graph, Node, rebuild


def canonicalize(graph: Graph) -> Graph:
    """The same function with fewer forms; each step is its own small function."""
    for step in (_expand_activations, _drop_identities, _absorb_padding, _linear_from_pointwise, _drop_identities):
        graph = step(graph)
    return graph


def _expand(node: Node) -> list[Node]:
    """A node as simpler nodes; the last one keeps its name."""
    shape, place, source = node.shape, node.place, node.inputs

    def make(suffix: str, op: str, inputs: tuple[str, ...], **attributes: float) -> Node:
        return Node(f"{node.name}.{suffix}" if suffix else node.name, op, inputs, shape, attributes, place=place)

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
        pooled = Node(f"{node.name}.pool", "global_avg_pool", source, (shape[0], 1, 1), place=place)
        return [pooled, make("", "reshape", (pooled.name,))]
    return [node]


def _expand_activations(graph: Graph) -> Graph:
    return rebuild(graph, [part for node in graph.nodes for part in _expand(node)])


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
        if same_shape or no_limits:
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


def _linear_from_pointwise(graph: Graph) -> Graph:
    """A 1x1 convolution of a 1x1 map that ends the network as a linear layer: its logits need no rounding."""
    users = graph.users()
    parameters, nodes = {}, []
    for node in graph.nodes:
        ends = [user for user in users[node.name] if user.op == "reshape" and user.name == graph.output]
        if node.op == "conv" and ends and len(users[node.name]) == 1 and _is_pointwise(graph, node):
            weight = graph.parameters[node.parameters["weight"]]
            key = f"{node.name}/matrix"
            parameters[key] = weight.flatten(1)
            flat = f"{node.name}.flatten"
            nodes.append(Node(flat, "reshape", node.inputs, (weight.shape[1],), place=node.place))
            keys = {**node.parameters, "weight": key}
            nodes.append(Node(node.name, "linear", (flat,), (weight.shape[0],), {}, keys, node.place))
        else:
            nodes.append(node)
    return rebuild(graph, nodes, parameters=parameters)


def _is_pointwise(graph: Graph, node: Node) -> bool:
    weight = graph.parameters[node.parameters["weight"]]
    source = graph[node.inputs[0]].shape
    return all(n == 1 for n in (*weight.shape[2:], *source[1:])) and node.attributes["groups"] == 1
