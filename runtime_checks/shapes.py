"""Tensor shapes that ONNX shape inference finds in the file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

_INFERENCE_LIMIT = 1 << 30  # bytes; inference serializes the whole model

Shape = tuple[int | None, ...]


def known_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of each tensor that inference can tell; None for a dimension that only the caller knows."""
    graph = model.graph
    if model.ByteSize() <= _INFERENCE_LIMIT:
        graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}


def elements_per_image(shapes: Mapping[str, Shape]) -> int:
    """Elements of all tensors for one image; open dimensions count as one."""
    return sum(math.prod(size or 1 for size in shape) for shape in shapes.values())


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dimensions = value.type.tensor_type.shape.dim
    return tuple(item.dim_value if item.HasField("dim_value") and item.dim_value > 0 else None for item in dimensions)
