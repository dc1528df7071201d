"""Says whether a file is a graph that can be checked, before anything is proved of it or computed with it.

    scales            finite, positive, no subnormal number, and the largest code still stands for a finite number
    zero points       integers, as many as there are scales
    a scale a channel along an axis that the codes have, and as many as there are channels there
    blocks            of a size that fits
    the whole         ONNX Runtime loads it and runs one image of zeros

What the runtime runs has shapes and types that fit, so that the checks behind this one need not look at them again.
"""

from __future__ import annotations

import numpy as np
import onnx

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array, Graph, Node
from gdfq_export.runtime_checks.input_spec import InputSpec
from gdfq_export.runtime_checks.sessions import Session
from gdfq_export.runtime_checks.tensor_types import CODE_TYPES, FLOAT_TYPES, INDEX_TYPES, element_types

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)
_MOST_CODES = {np.dtype(kind): float(np.iinfo(kind).max) for kind in (np.uint8, np.int8, np.uint16, np.int16)}


def require_sound_quantizers(graph: Graph, name: str) -> None:
    """Raises for the first QuantizeLinear or DequantizeLinear whose constants cannot be; `name` is the file's."""
    types = element_types(graph)
    for node in graph.nodes:
        if node.op in QUANTIZERS and node.domain in ("", "com.microsoft") and node.input(1) in graph.constants:
            fault = _fault_of_scale(node, graph, types) or _fault_of_zero_point(node, graph, types)
            if fault := fault or _fault_of_axis(node, graph):
                raise CheckError(f"{name}: a damaged ONNX file: {fault} ({node.op} '{node.name}')")


def require_feedable(graph: Graph, name: str) -> None:
    """Raises where the input is of no numbers that an image can be given in."""
    kind = graph.input.type.tensor_type.elem_type
    if kind not in (*FLOAT_TYPES, *CODE_TYPES, *INDEX_TYPES):
        found = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else str(kind)
        raise UnsupportedGraphError(f"{name}: input '{graph.input.name}' is of type {found}, and no image is")


def require_runs(model: onnx.ModelProto, spec: InputSpec, name: str) -> None:
    """Raises where the runtime does not load the model or cannot run it on zeros."""
    if not spec.shape:
        raise UnsupportedGraphError(f"{name}: input '{spec.name}' has no dimension beside the batch: it is no image")
    try:
        Session(model).run(np.zeros((spec.batch or 1, *spec.shape), spec.dtype))
    except (UnsupportedGraphError, CheckError) as error:
        raise type(error)(f"{name}: {error}") from error


def _fault_of_scale(node: Node, graph: Graph, types: dict[str, int]) -> str | None:
    scale, what = graph.constants[node.input(1)], f"the scale '{node.input(1)}'"
    if types.get(node.input(1)) not in FLOAT_TYPES:
        return f"{what} is not of floats"
    if scale.size == 0:
        return f"{what} is empty"
    values = scale.astype(np.float64)
    if not np.isfinite(values).all():
        return f"{what} is not finite"
    least, most = float(values.min()), float(values.max())
    if least < _SMALLEST:
        return f"{what} holds {least:.9g}, which is no positive number that float32 keeps in full"
    zero_point = graph.constants.get(node.input(2))
    codes = zero_point if zero_point is not None else graph.constants.get(node.input(0))
    largest = _MOST_CODES.get(np.dtype(np.uint8) if codes is None else codes.dtype, 1.0)
    if most * largest > _LARGEST:
        return f"{what} holds {most:.9g}, with which codes stand for numbers beyond float32"
    return None


def _fault_of_zero_point(node: Node, graph: Graph, types: dict[str, int]) -> str | None:
    if not node.input(2):
        return None
    what, zero_point = f"the zero point '{node.input(2)}'", graph.constants.get(node.input(2))
    if zero_point is None:
        return f"{what} is not a constant"
    if zero_point.dtype.kind not in "iu":
        return f"{what} is not of integers"
    if zero_point.size != graph.constants[node.input(1)].size:
        return f"{what} has {zero_point.size} values for {graph.constants[node.input(1)].size} scales"
    codes = node.input(0)
    if node.op == "DequantizeLinear" and codes in types and types[codes] != types[node.input(2)]:
        names = [onnx.TensorProto.DataType.Name(types[name]) for name in (node.input(2), codes)]
        return f"{what} is {names[0]}, and its codes are {names[1]}"
    return None


def _fault_of_axis(node: Node, graph: Graph) -> str | None:
    """Of constants only: what is computed has its shape when the runtime runs it."""
    scale, codes = graph.constants[node.input(1)], graph.constants.get(node.input(0))
    block = int(node.attributes.get("block_size", 0))
    if block < 0 or (block and scale.ndim < 2):
        return f"blocks of {block} with a scale of {scale.ndim} dimensions"
    if codes is None or (scale.size == 1 and not block):
        return None
    axis = int(node.attributes.get("axis", 1))
    if not -codes.ndim <= axis < codes.ndim:
        return f"axis {axis} of codes with {codes.ndim} dimensions"
    if block:
        return _fault_of_blocks(codes, scale, axis % codes.ndim, block)
    if scale.size != codes.shape[axis]:
        return f"{scale.size} scales for {codes.shape[axis]} channels along axis {axis}"
    return None


def _fault_of_blocks(codes: Array, scale: Array, axis: int, block: int) -> str | None:
    wanted = tuple(-(-size // block) if index == axis else size for index, size in enumerate(codes.shape))
    return None if scale.shape == wanted else f"blocks of {block} need scales of shape {list(wanted)}"
