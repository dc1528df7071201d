"""A copy of a model that shows its quantized tensors, shown to run the same kernels as the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from gdfq_export.runtime_checks.coverage import Coverage, coverage_from_optimized
from gdfq_export.runtime_checks.endings import before_endings
from gdfq_export.runtime_checks.graph import Graph
from gdfq_export.runtime_checks.sessions import instrumented, kernel_histogram, optimized_model
from gdfq_export.runtime_checks.tensor_types import code_tensors, element_types
from gdfq_export.runtime_checks.unsigned_pairs import with_unsigned_pairs


@dataclass(frozen=True, eq=False)
class Instrumented:
    """The copy, the tensors that it shows, and what the runtime makes of it."""

    model: onnx.ModelProto
    tensors: Mapping[str, int]  # name -> element type
    coverage: Coverage
    same_kernels: bool
    base: onnx.ModelProto  # without the tensors of codes as outputs, with signed activations as the runtime takes them


def instrument(model: onnx.ModelProto, graph: Graph) -> Instrumented:
    """Shows every tensor of codes, and what endings are computed from.

    Where that changes the kernels, other ways are tried that may not.
    """
    plain = kernel_histogram(optimized_model(model))
    types = element_types(graph)
    model = instrumented(model, {name: types[name] for name in before_endings(graph).values()})
    in_file = {name for node in model.graph.node for name in node.output}
    every = {name: kind for name, kind in code_tensors(graph).items() if name in in_file}
    result = _instrumented(model, every, plain)
    if result.same_kernels:
        return result
    quantized = {name: kind for name, kind in every.items() if graph.producers[name].op == "QuantizeLinear"}
    unsigned_model, unsigned = with_unsigned_pairs(model)
    for base, changed in ((model, frozenset[str]()), (unsigned_model, unsigned)):
        for tensors in (every, quantized):
            types = {name: onnx.TensorProto.UINT8 if name in changed else kind for name, kind in tensors.items()}
            other = _instrumented(base, types, plain)
            if other.same_kernels:
                return other
    return result


def _instrumented(model: onnx.ModelProto, tensors: Mapping[str, int], plain: Mapping[str, int]) -> Instrumented:
    copy = instrumented(model, tensors)
    optimized = optimized_model(copy)
    same = kernel_histogram(optimized) == plain
    return Instrumented(copy, tensors, coverage_from_optimized(copy, optimized), same, model)
