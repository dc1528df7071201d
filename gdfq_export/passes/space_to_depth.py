"""Stacks the image's 2x2 squares into channels, so that a large window of stride 2 becomes a small one of stride 1.

    y[i] = sum_k w[k] x[2 i - p + k]                             one axis; pads p before, a window of size k
    l = p rounded up to even,   K = l - p + k rounded up to even
    w'[l - p + k] = w[k], zero elsewhere in 0..K-1
    y[i] = sum_b sum_j w'[2 j + b] x_b[i - l / 2 + j],           x_b[i] = x[2 i + b]

The new window has K / 2 positions and four times the channels, which stand in ONNX's order (row, column, channel of
the square). Every accumulator stays what it was: what is added has weights of zero. Kernels gather an image of three
channels in many short pieces; these are longer and fewer, and a multiple of four, as `pad_input` makes them for small
windows. Quantization is elementwise, so the file may move the float image before it is quantized (`emit.py`), which
all versions of the runtime can.

Requires: a folded graph without shared parameters. It stands before lowering, since which weights kernels add in pairs
depends on the layout (`saturation.py`). What is learned later may also use the places that the zeros stand for: they
see the image as the others do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from gdfq_export.graph import INPUT, Graph, Node, derived, rebuild
from gdfq_export.passes.pad_input import SMALL_WINDOW

BLOCK = 2
MOST_CHANNELS = 4  # kernels gather more of them well enough
MOST_GROWTH = 1.5  # of the window: zeros are multiplied too
DEEP = derived(INPUT, "deep")


@dataclass(frozen=True)
class Axis:
    """The new window along one axis, in positions of the image until it is halved."""

    offset: int  # zeros before the weights
    size: int  # K
    before: int  # pads of the halved axis
    after: int


def space_to_depth(graph: Graph) -> Graph:
    """The same function of the same image; unchanged where no single convolution of the right kind reads it."""
    readers = graph.users()[INPUT]
    if len(readers) != 1 or not _is_large_of_stride_two(graph, readers[0]):
        return graph
    (first,) = readers
    key = first.parameters["weight"]
    weight = graph.parameters[key]  # (O, C, kh, kw)
    rows, columns = _axes(graph, first)
    if rows.size * columns.size > MOST_GROWTH * weight[0, 0].numel():
        return graph
    channels, height, width = graph.input_shape
    shape = (channels * BLOCK**2, height // BLOCK, width // BLOCK)
    pads = (rows.before, columns.before, rows.after, columns.after)
    conv = first.replace(inputs=(DEEP,), attributes={**first.attributes, "stride": (1, 1), "pads": pads})
    nodes = []
    for node in graph.nodes:
        nodes.append(conv if node is first else node)
        if node.name == INPUT:
            nodes.append(Node(DEEP, "space_to_depth", (INPUT,), shape, {"block": BLOCK}))
    return rebuild(graph, nodes, parameters={key: _stacked(weight, rows, columns)})


def _is_large_of_stride_two(graph: Graph, node: Node) -> bool:
    channels, *space = graph.input_shape
    if node.op != "conv" or len(space) != 2 or channels > MOST_CHANNELS or any(side % BLOCK for side in space):
        return False
    a = node.attributes
    plain = a["groups"] == 1 and set(a["dilation"]) == {1} and min(a["pads"]) >= 0
    window = math.prod(graph.parameters[node.parameters["weight"]].shape[2:])
    return plain and set(a["stride"]) == {BLOCK} and window > SMALL_WINDOW


def _axes(graph: Graph, node: Node) -> list[Axis]:
    kernel = graph.parameters[node.parameters["weight"]].shape[2:]
    begin = node.attributes["pads"][:2]
    return [_axis(*sizes) for sizes in zip(graph.input_shape[1:], kernel, begin, node.shape[1:], strict=True)]


def _axis(side: int, kernel: int, pad: int, outputs: int) -> Axis:
    """The last window ends at most one position before image and pads do, so `after` is never negative."""
    reach = pad + pad % BLOCK  # l
    size = reach - pad + kernel
    size += size % BLOCK
    before = reach // BLOCK
    return Axis(reach - pad, size, before, outputs - 1 + size // BLOCK - before - side // BLOCK)


def _stacked(weight: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """(O, C, kh, kw) -> (O, 4 C, K / 2, K / 2)"""
    outputs, channels, height, width = weight.shape
    right = columns.size - columns.offset - width
    below = rows.size - rows.offset - height
    wide = F.pad(weight, (columns.offset, right, rows.offset, below))
    parts = wide.reshape(outputs, channels, rows.size // BLOCK, BLOCK, columns.size // BLOCK, BLOCK)
    moved = parts.permute(0, 3, 5, 1, 2, 4)  # (O, row, column, C, K / 2, K / 2)
    return moved.reshape(outputs, -1, rows.size // BLOCK, columns.size // BLOCK)
