"""relu(concat(x, y)) -> concat(relu(x), relu(y)), and the same for other movement of values and for every clip.

Behind a layer an activation is the saturation of the layer's quantizer and costs nothing. Behind data movement it is
an operator of its own on codes whose range holds what the activation cuts away: half of it, where what comes in has
both signs.

Requires: a canonical graph. Exact: what moves, repeats and selects values commutes with a function that never falls.
"""

from __future__ import annotations

from gdfq_export.graph import Graph, Node, derived, rebuild
from gdfq_export.plan import CODE_CLIPS, non_negative_tensors

MOVERS = frozenset({"concat", "reshape", "transpose", "upsample", "channel_shuffle", "tile", "max_pool", "reduce_max"})


def hoist_activations(graph: Graph) -> Graph:
    """Moves each ReLU and clip in front of the movement before it, where nothing else reads what is moved."""
    while (found := _find(graph)) is not None:
        graph = _hoisted(graph, *found)
    return graph


def _find(graph: Graph) -> tuple[Node, Node] | None:
    """An activation, and the movement that it stands behind."""
    users = graph.users()
    for node in graph.nodes:
        if node.op not in CODE_CLIPS:
            continue
        mover = graph[node.inputs[0]]
        movable = mover.op in MOVERS and mover.name != graph.output and len(users[mover.name]) == 1
        if movable and all(len(users[name]) == 1 for name in mover.inputs):
            return node, mover
    return None


def _hoisted(graph: Graph, activation: Node, mover: Node) -> Graph:
    """The movement takes the activation's name, so that its readers need not change."""
    positive = non_negative_tensors(graph) if activation.op == "relu" else set()
    before: dict[str, Node] = {}
    for name in mover.inputs:
        if name not in positive:
            made = derived(activation.name, "hoisted", *([len(before)] if len(mover.inputs) > 1 else []))
            before[name] = activation.replace(name=made, inputs=(name,), shape=graph[name].shape)
    moved = mover.replace(
        name=activation.name, inputs=tuple(before[name].name if name in before else name for name in mover.inputs)
    )
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name == mover.name:
            nodes += [*before.values(), moved]
        elif node.name != activation.name:
            nodes.append(node)
    return rebuild(graph, nodes)
