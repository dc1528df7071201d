"""The graph that every stage reads: a straight list of named operations with their meaning spelled out.

`torch.export` gives an FX graph whose nodes keep positional ATen arguments and symbolic batch sizes. We translate
it once into this closed vocabulary (see `ops.py`), so that passes, plan, training, lowering and emission all read
the same few attributes. A graph is a value: a pass returns a new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

INPUT = "input"
OUTPUT = "logits"
SUFFIXES = frozenset(
    {
        *("sigmoid", "shift", "clip", "gate", "pool", "flatten", "hoisted", "positive", "negative", "slope", "scaled"),
        *("part", "term", "sum", "max", "below", "distance", "power", "total", "inverse", "mean", "factor"),
        *("turned", "rows", "across", "columns", "expand", "affine", "padded", "deep", "split", "moved"),
    }
)
"""What passes append to a name; capture renames what a user calls like that (see `without_clashes`)."""


@dataclass(frozen=True)
class Node:
    """One operation and the tensor it makes; the tensor has the node's name."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]  # of one image: the batch axis is left out
    attributes: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)  # role -> key in Graph.parameters
    place: str = ""  # where it stands in the user's module

    def replace(self, **changes: Any) -> Node:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Graph:
    """Operations in execution order; the first is the input, `output` names the logits."""

    nodes: tuple[Node, ...]
    parameters: Mapping[str, torch.Tensor]
    output: str

    def __getitem__(self, name: str) -> Node:
        return self._index[name]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input image, (C, H, W)."""
        return self.nodes[0].shape

    @property
    def num_outputs(self) -> int:
        """Number of classes, read off the logits."""
        return self[self.output].shape[-1]

    @property
    def _index(self) -> dict[str, Node]:
        cached = self.__dict__.get("_cache")
        if cached is None:
            cached = {node.name: node for node in self.nodes}
            object.__setattr__(self, "_cache", cached)
        return cached

    def users(self) -> dict[str, list[Node]]:
        """Tensor name -> the nodes that read it."""
        table: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                table[name].append(node)
        return table

    def of(self, *ops: str) -> list[Node]:
        """The nodes of the given operations, in order."""
        return [node for node in self.nodes if node.op in ops]

    def parameter(self, node: Node, role: str) -> torch.Tensor | None:
        """A node's parameter by role, or None where it has none."""
        key = node.parameters.get(role)
        return None if key is None else self.parameters[key]


def derived(name: str, suffix: str, *indices: int) -> str:
    """The name of a tensor that a pass makes on the way to the tensor `name`."""
    assert suffix in SUFFIXES, f"{suffix} is missing from SUFFIXES"
    return ".".join([f"{name}.{suffix}", *map(str, indices)])


def without_clashes(nodes: Sequence[Node]) -> list[Node]:
    """The same nodes, none of which has a name that `derived` gives to what comes of another one.

    A module may be called `input.padded`, and then becomes `input_padded`.
    """
    taken = {node.name for node in nodes} | {INPUT, OUTPUT}
    renamed: dict[str, str] = {}
    for node in nodes:
        name = node.name
        while (base := _derived_from(name, taken)) is not None:
            name = f"{base}_{name[len(base) + 1 :]}"
        if name != node.name:
            renamed[node.name] = name = unused_name(name, taken)
            taken.add(name)
    return [
        node.replace(
            name=renamed.get(node.name, node.name), inputs=tuple(renamed.get(name, name) for name in node.inputs)
        )
        for node in nodes
    ]


def _derived_from(name: str, taken: Collection[str]) -> str | None:
    """The name that `name` could be derived from, by one suffix or several."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        base = ".".join(parts[:count])
        if parts[count].rstrip(string.digits) in SUFFIXES and base in taken:
            return base
    return None


def unused_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, with a number behind it where it is taken."""
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    return name


def rebuild(
    graph: Graph,
    nodes: Iterable[Node],
    *,
    parameters: Mapping[str, torch.Tensor] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Graph:
    """A graph of `nodes` where each removed tensor is read from its alias; what nothing reads is dropped."""
    aliases = aliases or {}

    def resolve(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    renamed = [node.replace(inputs=tuple(resolve(name) for name in node.inputs)) for node in nodes]
    output = resolve(graph.output)
    needed, kept = {output}, []
    for node in reversed(renamed):
        if node.name in needed or node.op == INPUT:
            needed.update(node.inputs)
            kept.append(node)
    kept.reverse()
    pool = {**graph.parameters, **(parameters or {})}
    used = {key for node in kept for key in node.parameters.values()}
    return Graph(tuple(kept), {key: pool[key] for key in pool if key in used}, output)


def digest_of(graph: Graph) -> str:
    """A checksum of what the network computes: its operations with their attributes, and its parameters."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        facts = (node.name, node.op, node.inputs, node.shape, sorted(node.attributes.items()), sorted(node.parameters))
        digest.update(repr(facts).encode())
    for key, value in sorted(graph.parameters.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def map_parameters(graph: Graph, change: Callable[[torch.Tensor], torch.Tensor]) -> Graph:
    """The same graph with `change` applied to every parameter (a move to a device, say)."""
    return Graph(graph.nodes, {key: change(value) for key, value in graph.parameters.items()}, graph.output)


def unshared(graph: Graph) -> Graph:
    """The same network in which no two nodes share a parameter, so that each can be trained on its own."""
    users = Counter(key for node in graph.nodes for key in node.parameters.values())
    parameters: dict[str, torch.Tensor] = {}
    nodes = []
    for node in graph.nodes:
        own = {role: f"{node.name}/{role}" for role, key in node.parameters.items() if users[key] > 1}
        parameters |= {key: graph.parameters[node.parameters[role]].clone() for role, key in own.items()}
        nodes.append(node.replace(parameters={**node.parameters, **own}) if own else node)
    return rebuild(graph, nodes, parameters=parameters)
