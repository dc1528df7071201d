"""Pads the image from 3 to 4 channels in front of the first convolution, with weights of zero: faster kernels.

    sum_c (q_c - z) w_c  =  sum_c (q_c - z) w_c + (z - z) 0

The new channel holds zero, whose code is the zero point, so every accumulator stays what it was. Kernels that read four
codes at a time then need no special case for the last ones. With a large window this pays only where products are
added by one instruction (VNNI); elsewhere what the zeros cost is more than what the kernel gains. Requires: a folded
graph without shared parameters. It stands before lowering, since which weights kernels add in pairs depends on the
number of channels (`saturation.py`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gdfq_export.graph import INPUT, Graph, Node, derived, rebuild

LANES = 4
SMALL_WINDOW = 9
PADDED = derived(INPUT, "padded")


def pad_input(graph: Graph, *, large_windows: bool = True) -> Graph:
    """The same function of the same image; unchanged where something else than a plain convolution reads it."""
    channels, *space = graph.input_shape
    readers = graph.users()[INPUT]
    missing = -channels % LANES
    plain = all(node.op == "conv" and node.attributes["groups"] == 1 and len(space) == 2 for node in readers)
    if plain and not large_windows:
        plain = all(graph.parameters[node.parameters["weight"]][0, 0].numel() <= SMALL_WINDOW for node in readers)
    if not missing or channels == 1 or not readers or not plain:
        return graph
    parameters: dict[str, Tensor] = {}
    nodes = []
    for node in graph.nodes:
        if INPUT in node.inputs:
            key = node.parameters["weight"]
            parameters[key] = F.pad(graph.parameters[key], (0, 0, 0, 0, 0, missing))  # (O, C, kh, kw)
            node = node.replace(inputs=(PADDED,))
        nodes.append(node)
        if node.name == INPUT:
            nodes.append(Node(PADDED, "pad_channels", (INPUT,), (channels + missing, *space), {"count": missing}))
    return rebuild(graph, nodes, parameters=parameters)
