"""How much memory a check takes, from the file alone, so that a huge model is refused and nothing dies.

    estimate = 4 * weights + sum(tensors kept for comparison) + 4 * (largest float tensors)

The runtime and the reference each keep the weights, and float32 copies of the layer in work.
"""

from __future__ import annotations

import math

import onnx

from gdfq_export.runtime_checks.errors import CheckError, MemoryLimitError

_COPIES_OF_WEIGHTS = 4
_COPIES_IN_WORK = 4
_BYTES_PER_ELEMENT = 4
_INFERENCE_LIMIT = 1 << 30  # shape inference serializes the model; larger ones are judged by their weights alone


def estimate_memory(model: onnx.ModelProto) -> int:
    """Bytes for one image through the runtime and the reference."""
    weights = int(model.ByteSize())
    total = largest = 0
    for value in _typed_values(model):
        elements = _elements(value)
        total += elements
        largest = max(largest, elements)
    return _COPIES_OF_WEIGHTS * weights + total + _COPIES_IN_WORK * _BYTES_PER_ELEMENT * largest


def require_memory(model: onnx.ModelProto, max_memory: int, name: str) -> None:
    """Raises MemoryLimitError where the estimate exceeds `max_memory`."""
    estimate = estimate_memory(model)
    if estimate > max_memory:
        raise MemoryLimitError(
            f"{name}: checking it takes about {estimate / 2**20:.0f} MiB, more than the limit of "
            f"{max_memory / 2**20:.0f} MiB; raise --max-memory to check it"
        )


def _typed_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    if model.ByteSize() > _INFERENCE_LIMIT:
        return [*model.graph.input, *model.graph.output]
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise CheckError(f"a damaged ONNX file: its shapes do not fit ({error})") from error
    return [*graph.input, *graph.value_info, *graph.output]


def _elements(value: onnx.ValueInfoProto) -> int:
    """Elements for one image; a dimension that only the caller knows counts as one."""
    shape = value.type.tensor_type.shape
    return math.prod(max(dimension.dim_value, 1) for dimension in shape.dim)
