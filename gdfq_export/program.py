"""Runs a graph in PyTorch: the float network, unfolded or folded, with any of its tensors tapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.ops import KERNELS

MOST_VALUES = 1 << 26


class FloatProgram(nn.Module):
    """A graph as a module; its parameters are frozen buffers, so that only its input can be trained."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._slots = {key: f"p{index}" for index, key in enumerate(graph.parameters)}
        for key, slot in self._slots.items():
            self.register_buffer(slot, graph.parameters[key].detach().clone(), persistent=False)
        self._last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}

    def parameter(self, node: Node, role: str) -> Tensor:
        """The program's own copy of a node's parameter."""
        return self.get_buffer(self._slots[node.parameters[role]])

    def forward(self, x: Tensor, visit: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """The logits; `visit` sees every tensor by name as soon as it exists."""
        values: dict[str, Tensor] = {}
        for index, node in enumerate(self.graph.nodes):
            if node.op == INPUT:
                value = x
            else:
                held = {role: getattr(self, self._slots[key]) for role, key in node.parameters.items()}
                value = KERNELS[node.op](node, [values[name] for name in node.inputs], held)
            values[node.name] = value
            if visit is not None:
                visit(node.name, value)
            for name in node.inputs:  # free what nothing reads any more
                if self._last_use[name] == index and name != self.graph.output:
                    values.pop(name, None)
        return values[self.graph.output]


def as_many_as_fit(graph: Graph, images: Tensor) -> Tensor:
    """The first images, as many as one pass takes: no tensor over all of them has more than `MOST_VALUES` numbers."""
    largest = max(math.prod(node.shape) for node in graph.nodes)
    return images[: max(MOST_VALUES // largest, 1)]


@torch.no_grad()
def run_taps(program: FloatProgram, x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """The named tensors of one forward pass."""
    wanted, found = set(names), {}

    def keep(name: str, value: Tensor) -> None:
        if name in wanted:
            found[name] = value

    program(x, keep)
    return found
