"""What a model takes: shape, type, and how codes of the first quantized tensor become its input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.arithmetic import Quantization, dequantize
from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.folding import quantization_from_constants
from gdfq_export.runtime_checks.graph import Array, Graph, Node
from gdfq_export.runtime_checks.movement import MOVES

_UNKNOWN_SIZE = 224  # of an image whose size the file leaves open and no metadata states
_UNKNOWN_CHANNELS = 3
_REARRANGING = ("SpaceToDepth",)  # a permutation of the elements, given by attributes alone
_FLOAT_CODES = Quantization(np.full((), 1 / 64, np.float32), np.full((), 128, np.uint8), np.dtype(np.uint8))


@dataclass(frozen=True, eq=False)
class InputSpec:
    """The model's input for one image, and the batch that it insists on (None where any will do)."""

    name: str
    shape: tuple[int, ...]  # without the batch
    dtype: np.dtype[Any]
    batch: int | None
    params: Quantization  # of the first quantized tensor; a guess of [-2, 2) where nothing quantizes the input
    channels_last: bool
    moves: tuple[Node, ...] = ()  # what rearranges the pixels before they are quantized

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of one image's codes, channels first."""
        return (self.shape[-1], *self.shape[:-1]) if self.channels_last else self.shape

    @property
    def read_shape(self) -> tuple[int, ...]:
        """The shape of the first quantized tensor for one image."""
        return self._order().shape

    def _order(self) -> Array:
        """Where each element of the first quantized tensor stands among the image's codes."""
        order = np.arange(math.prod(self.code_shape)).reshape(1, *self.code_shape)
        for node in self.moves:
            (order,) = MOVES[node.op](node, order, (), 1)
        return np.asarray(order[0])

    def image_from_read(self, codes: Array) -> Array:
        """The image's codes that become `codes` where the first quantized tensor is made, both of one image."""
        image = np.empty(codes.size, codes.dtype)
        image[self._order().reshape(-1)] = codes.reshape(-1)
        return image.reshape(self.code_shape)

    def feed(self, codes: Array) -> Array:
        """The model's input whose pixels are quantized to `codes` (N, C, H, W)."""
        if self.channels_last:
            codes = np.ascontiguousarray(np.moveaxis(codes, 1, -1))
        if np.issubdtype(self.dtype, np.integer):
            return codes.astype(self.dtype)
        return dequantize(codes, self.params).astype(self.dtype)


def input_spec(graph: Graph, provenance: Mapping[str, Any]) -> InputSpec:
    """Read from the graph; sizes that it leaves open come from the metadata, or are guessed."""
    tensor = graph.input.type.tensor_type
    sizes = [item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in tensor.shape.dim]
    if not sizes:
        raise UnsupportedGraphError(f"input '{graph.input.name}' has no shape: it cannot be fed")
    stated = provenance.get("input", {})
    channels_last = stated.get("format") == "uint8-nhwc" or (len(sizes) == 4 and sizes[3] in (1, 3) != sizes[1])
    known = list(stated.get("shape", []))
    if channels_last and known:
        known = [*known[1:], known[0]]
    shape = []
    for index, size in enumerate(sizes[1:]):
        is_channel = index == (len(sizes) - 2 if channels_last else 0)
        guess = known[index] if len(known) == len(sizes) - 1 else _UNKNOWN_CHANNELS if is_channel else _UNKNOWN_SIZE
        shape.append(int(size if size is not None else guess))
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    moves = () if channels_last else _moves_before_quantizer(graph)
    params = _first_params(graph, moves[-1].outputs[0] if moves else graph.input.name, dtype)
    return InputSpec(graph.input.name, tuple(shape), dtype, sizes[0], params, channels_last, moves)


def _moves_before_quantizer(graph: Graph) -> tuple[Node, ...]:
    """The operators that rearrange the whole image, one after the other, before anything else reads it."""
    moves: list[Node] = []
    name = graph.input.name
    while (reader := graph.only_consumer(name)) is not None and reader.op in _REARRANGING:
        moves.append(reader)
        name = reader.outputs[0]
    return tuple(moves)


def _first_params(graph: Graph, name: str, dtype: np.dtype[Any]) -> Quantization:
    """How the float tensor `name` is quantized."""
    if np.issubdtype(dtype, np.integer):
        return Quantization(np.ones((), np.float32), np.zeros((), np.uint8), np.dtype(np.uint8))
    for node in graph.consumers.get(name, ()):
        if node.op == "QuantizeLinear" and node.input(1) in graph.constants:
            zero_point = graph.constants.get(node.input(2))
            params = quantization_from_constants(graph.constants[node.input(1)], zero_point, node)
            if params.axis is None and params.dtype.itemsize == 1:
                return params
    return _FLOAT_CODES
