"""Why one tensor of ONNX Runtime differs from the reference: recognised by computing the suspects' arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gdfq_export.runtime_checks import pairs
from gdfq_export.runtime_checks.accumulators import accumulators_at
from gdfq_export.runtime_checks.arithmetic import Quantization, requantize
from gdfq_export.runtime_checks.graph import Array, Graph, Node
from gdfq_export.runtime_checks.layers import Layer, dequantized_tensor
from gdfq_export.runtime_checks.quantizer_of import quantizer_behind

NOT_FUSED = "not fused"
SATURATION = "saturation"
OVERFLOW = "overflow"
CLIPPED_BIAS = "clipped bias"
TIE = "tie"
OTHER = "other arithmetic"

_MOST_ELEMENTS = 4096  # of those that differ, looked at to find the cause
_TIE_DISTANCE = 2.0**-20  # relative: a few roundings to float32
_INT32_MAX = 2**31 - 1


def cause_of(
    graph: Graph,
    node: Node,
    layer: Layer | None,
    codes: Mapping[str, Array],
    expected: Array,
    found: Array,
) -> tuple[str, str]:
    """(cause, detail) for the result of `node`, `found` in the runtime where the reference has `expected`.

    `codes` are the integer tensors that `node` reads through DequantizeLinear, as the runtime had them.
    """
    different = expected != found
    positions = tuple(axis[:_MOST_ELEMENTS] for axis in np.nonzero(different))
    if layer is not None and layer.input in codes:
        return _cause_in_layer(graph, layer, codes[layer.input], positions, expected, found)
    result = quantizer_behind(graph, node)
    operands = [dequantized_tensor(graph, name) for name in node.inputs if name]
    known = [operand for operand in operands if operand is not None]
    if result is not None and len(known) == len(operands) and node.op in ("Add", "Mul"):
        return _cause_in_pairs(graph, node, known, result, codes, found)
    return _by_steps(expected, found)


def _cause_in_layer(
    graph: Graph, layer: Layer, codes: Array, positions: tuple[Array, ...], expected: Array, found: Array
) -> tuple[str, str]:
    sums = accumulators_at(layer, codes, positions)
    scale = np.broadcast_to(layer.source.scale * layer.weight_params.scale, len(layer.weight))
    scale = scale[positions[1] if layer.node.op == "Conv" else positions[-1]].astype(np.float32)
    result = quantizer_behind(graph, layer.node)
    actual = found[positions]

    def explains(accumulators: Array) -> bool:
        if result is None:
            return bool(np.array_equal(accumulators.astype(np.float32) * scale, actual))
        return bool(np.array_equal(requantize(accumulators, scale, result), actual))

    if explains(sums.wrapped):
        return OVERFLOW, "the accumulator left int32"
    if explains(sums.saturated):
        if (sums.exact != sums.wrapped).any():
            return OVERFLOW, "the accumulator left int32, and sums of two products left int16 as well"
        return SATURATION, "the sum of two products left int16"
    if layer.bias is not None and np.abs(layer.bias.astype(np.int64)).max(initial=0) >= _INT32_MAX:
        return CLIPPED_BIAS, "a bias stands at the end of int32"
    if result is not None and _all_ties(sums.exact, scale, result) and _largest_step(expected, found) == 1:
        return TIE, "the exact value lies on the tie between two codes"
    return _by_steps(expected, found)


def _all_ties(accumulators: Array, scale: Array, result: Quantization) -> bool:
    """Whether each exact value lies within float32 rounding of the middle between two codes."""
    scaled = accumulators.astype(np.float64) * scale / np.float64(result.scale)
    distance = np.abs(scaled - np.floor(scaled) - 0.5)
    return bool((distance <= _TIE_DISTANCE * np.maximum(np.abs(scaled), 1)).all())


def _cause_in_pairs(
    graph: Graph,
    node: Node,
    operands: list[tuple[str, Quantization]],
    result: Quantization,
    codes: Mapping[str, Array],
    found: Array,
) -> tuple[str, str]:
    """Whether another instruction set's formula gives what the runtime gave."""
    (name_a, a), (name_b, b) = operands
    left, right = (codes.get(name, graph.constants.get(name)) for name in (name_a, name_b))
    if left is not None and right is not None:
        formulas = pairs.ADD_FORMULAS if node.op == "Add" else pairs.MUL_FORMULAS
        for name, formula in formulas.items():
            if np.array_equal(pairs.look_up(formula(a, b, result), left, right, a.qmin), found):
                return OTHER, f"{name} arithmetic: {node.op} is not the same on all machines"
    return OTHER, f"no known formula of {node.op} gives this"


def _by_steps(expected: Array, found: Array) -> tuple[str, str]:
    return OTHER, f"up to {_largest_step(expected, found)} steps apart"


def _largest_step(expected: Array, found: Array) -> int:
    return int(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max(initial=0))
