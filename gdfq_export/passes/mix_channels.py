"""Another basis for the channels between layers, where nothing but sums stands between them.

    W1' = R W1,   b1' = R b1,   W2' = W2 R^-1          the same function, for any invertible R

holds where layers make a tensor and layers alone read it, as in the linear bottlenecks of MobileNetV2. A residual sum
of such tensors asks for one R for all of them: they are a *stream*. Padding with zeros stays padding with zeros.

Requires: a folded graph. Exact in real numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.graph import Graph, Node, rebuild
from gdfq_export.groups import Groups
from gdfq_export.ops import LAYERS


@dataclass(frozen=True)
class Stream:
    """Tensors with the same channels, the layers that make them, and the layers that read them."""

    tensors: tuple[str, ...]  # in graph order
    makers: tuple[str, ...]
    readers: tuple[str, ...]


def find_streams(graph: Graph) -> list[Stream]:
    """All of them, in graph order."""
    groups = Groups(node.name for node in graph.nodes)
    for node in graph.nodes:
        if _sums_like(graph, node):
            for name in node.inputs:
                groups.join(node.name, name)
    members: dict[str, set[str]] = {}
    for node in graph.nodes:
        members.setdefault(groups.find(node.name), set()).add(node.name)
    users = graph.users()
    streams = (_stream_of(graph, users, names) for names in members.values())
    return [stream for stream in streams if stream is not None]


def _stream_of(graph: Graph, users: dict[str, list[Node]], members: set[str]) -> Stream | None:
    """The stream of these tensors; None where something else makes or reads one."""
    tensors = [node for node in graph.nodes if node.name in members]
    makers = [node for node in tensors if not _sums_like(graph, node)]
    around = [user for node in tensors for user in users[node.name] if not _sums_like(graph, user)]
    if not around or graph.output in members or not all(_mixes_all_channels(node) for node in (*makers, *around)):
        return None
    return Stream(_names(tensors), _names(makers), _names(around))


def _names(nodes: Iterable[Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.name for node in nodes))


def _sums_like(graph: Graph, node: Node) -> bool:
    """Whether the node adds tensors of one shape and nothing else."""
    return node.op == "add" and not node.parameters and all(graph[name].shape == node.shape for name in node.inputs)


def _mixes_all_channels(node: Node) -> bool:
    """Whether it is a layer without groups whose weights are the network's own and no fixed map."""
    if node.op not in LAYERS or "bits" in node.attributes:
        return False
    return bool(node.attributes["groups"] == 1) if node.op == "conv" else len(node.shape) == 1


def mix_channels(graph: Graph, stream: Stream, basis: Tensor) -> Graph:
    """The same network, whose stream holds `basis` (C, C) times the channels that it held."""
    parameters = dict(graph.parameters)
    nodes = {node.name: node for node in graph.nodes}

    def change(name: str, role: str, left: Tensor | None, right: Tensor | None) -> None:
        node = nodes[name]
        before = parameters[node.parameters[role]]
        value = before.double()
        if left is not None:
            value = torch.tensordot(left, value, 1)
        if right is not None:
            value = torch.tensordot(value, right, ([1], [0])).movedim(-1, 1)
        parameters[f"{name}/{role}"] = value.to(before.dtype)
        nodes[name] = node.replace(parameters={**node.parameters, role: f"{name}/{role}"})

    basis = basis.double()
    inverse = torch.linalg.inv(basis)
    for name in stream.makers:
        for role in nodes[name].parameters:
            change(name, role, basis, None)
    for name in stream.readers:
        change(name, "weight", None, inverse)
    return rebuild(graph, nodes.values(), parameters=parameters)
