"""Static proofs, from the file alone: what can be promised for every input and every machine.

    saturation   for each pair (2j, 2j+1) of K: amax * (sum of its positive weights) <= 32767, and
                 amax * (sum of its negative weights) >= -32768; else vpmaddubsw (x86 without VNNI) clips
    overflow     sum_k max(w * (lo - zx), w * (hi - zx)) + b, and the smallest, fit int32
    bias         |b| < 2^31 - 1: the exporter did not clip it
    bias_scale   the bias counts in units of sx * sw, which is what the kernels assume
    isa          each Add, Mul and Sigmoid gives one result under all instruction sets' formulas

amax is the largest activation code. All other kernels are the same everywhere (docs/ort-arithmetic.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from gdfq_export.runtime_checks import pairs, tables
from gdfq_export.runtime_checks.arithmetic import Quantization
from gdfq_export.runtime_checks.code_ranges import CodeRange, code_ranges
from gdfq_export.runtime_checks.graph import Array, Graph, Node
from gdfq_export.runtime_checks.layers import Layer, dequantized_tensor, layers_of
from gdfq_export.runtime_checks.quantizer_of import quantizer_behind

INT16_MAX, INT16_MIN = 32767, -32768
INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)
_BIAS_SCALE_TOLERANCE = 1e-6  # a product rounded once to float32 or computed in float64 first


@dataclass(frozen=True)
class Proof:
    """One property of one layer."""

    layer: str
    property: str
    proved: bool
    number: float
    detail: str


def prove(model: onnx.ModelProto, graph: Graph, shapes: Mapping[str, tuple[int | None, ...]]) -> list[Proof]:
    """All proofs for `model`, whose reference graph is `graph`; `shapes` are those that inference finds."""
    rows: list[Proof] = []
    ranges = code_ranges(graph)
    for layer in layers_of(model, graph):
        rows += [prove_saturation(layer), prove_overflow(layer)]
        if layer.bias is not None:
            rows.append(prove_bias(layer))
        if layer.bias_scale is not None:
            rows.append(prove_bias_scale(layer))
    with np.errstate(all="ignore"):  # extreme scales overflow in the formulas as well
        ranges = code_ranges(graph)
        for node in graph.nodes:
            rows += _prove_isa(node, graph, shapes, ranges)
    return rows


def holds(rows: Iterable[Proof], *properties: str) -> bool:
    """Whether each of `properties` is proved for every layer that has it."""
    return all(row.proved for row in rows if row.property in properties)


def prove_saturation(layer: Layer) -> Proof:
    """The worst pair sum of u8 x s8 kernels without VNNI."""
    if layer.depthwise:
        return Proof(layer.name, "saturation", True, 0, "depthwise kernels widen before they add")
    if layer.weight.dtype != np.int8:
        return Proof(layer.name, "saturation", True, 0, "unsigned weights take a kernel that does not saturate")
    signed = layer.source.dtype == np.int8
    largest = layer.codes.high + (128 if signed else 0)  # the runtime turns signed activations into unsigned ones
    high, low = pair_extremes(layer.weight, largest)
    proved = high <= INT16_MAX and low >= INT16_MIN
    worst = high if high - INT16_MAX >= INT16_MIN - low else low
    return Proof(layer.name, "saturation", proved, worst, f"largest pair sum of int16 with codes up to {largest}")


def pair_extremes(weight: Array, largest: int) -> tuple[int, int]:
    """The largest and smallest sum of a pair's two products, over all pairs (2j, 2j+1) of the rows of `weight`."""
    wide = weight.astype(np.int64)
    if wide.shape[1] % 2:
        wide = np.pad(wide, ((0, 0), (0, 1)))
    paired = wide.reshape(wide.shape[0], -1, 2)
    positive = np.maximum(paired, 0).sum(axis=2)
    negative = np.minimum(paired, 0).sum(axis=2)
    return int(positive.max(initial=0)) * largest, int(negative.min(initial=0)) * largest


def prove_overflow(layer: Layer) -> Proof:
    """The extremes of accumulator plus bias, padding (a zero) included."""
    zero_point = int(layer.source.zero_point)
    low, high = min(layer.codes.low - zero_point, 0), max(layer.codes.high - zero_point, 0)
    weight = layer.centred_weight
    positive, negative = np.maximum(weight, 0).sum(axis=1), np.minimum(weight, 0).sum(axis=1)
    bias = np.zeros(1, np.int64) if layer.bias is None else layer.bias.astype(np.int64).reshape(-1)
    largest = int((positive * high + negative * low + bias).max())
    smallest = int((positive * low + negative * high + bias).min())
    proved = largest <= INT32_MAX and smallest >= INT32_MIN
    worst = largest if largest >= -smallest else smallest
    return Proof(layer.name, "overflow", proved, worst, "largest accumulator plus bias")


def prove_bias(layer: Layer) -> Proof:
    """No bias at the end of int32, where a larger one would have been clipped."""
    assert layer.bias is not None
    largest = int(np.abs(layer.bias.astype(np.int64)).max(initial=0))
    return Proof(layer.name, "bias", largest < INT32_MAX, largest, "largest bias code")


def prove_bias_scale(layer: Layer) -> Proof:
    """The kernels add the bias codes to the accumulator, whatever scale the file states for them."""
    assert layer.bias_scale is not None
    expected = layer.source.scale.astype(np.float64) * layer.weight_params.scale.astype(np.float64)
    stated = layer.bias_scale.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = float(np.max(np.abs(stated / expected - 1), initial=0))
    proved = bool(error <= _BIAS_SCALE_TOLERANCE)
    return Proof(layer.name, "bias_scale", proved, error, "relative error of the bias scale against sx * sw")


def _prove_isa(
    node: Node, graph: Graph, shapes: Mapping[str, tuple[int | None, ...]], ranges: Mapping[str, CodeRange]
) -> list[Proof]:
    """The proof for `node` where instruction sets could differ on it."""
    quantizer = quantizer_behind(graph, node)
    if quantizer is None or node.op not in _ISA_PROOFS:
        return []
    sources = [dequantized_tensor(graph, name) for name in node.inputs if name]
    operands = [source for source in sources if source is not None]
    if len(operands) != len(sources) or any(params.dtype.itemsize > 1 for _, params in operands):
        return []
    if node.op in ("Add", "Mul"):
        different = _differing_pairs(node.op, operands, graph, quantizer, shapes, ranges)
        return [Proof(node.name, "isa", different == 0, different, "pairs of codes on which instruction sets differ")]
    if node.op == "Sigmoid":
        return [_prove_sigmoid(node, operands[0][1], quantizer)]
    return [Proof(node.name, "isa", False, np.nan, "Softmax depends on the machine's exponential function")]


_ISA_PROOFS = ("Add", "Mul", "Sigmoid", "Softmax")


def _differing_pairs(
    op: str,
    operands: list[tuple[str, Quantization]],
    graph: Graph,
    result: Quantization,
    shapes: Mapping[str, tuple[int | None, ...]],
    ranges: Mapping[str, CodeRange],
) -> int:
    """On how many pairs of codes that can occur the instruction sets' formulas differ."""
    (name_a, a), (name_b, b) = operands
    formulas = dict(pairs.ADD_FORMULAS if op == "Add" else pairs.MUL_FORMULAS)
    shape_a, shape_b = shapes.get(name_a), shapes.get(name_b)
    if op == "Add" and (shape_a is None or shape_b is None or shape_a[1:] != shape_b[1:]):
        formulas["SSE, scalar"] = pairs.add_sse_scalar
        formulas |= {f"{name}, swapped": pairs.swapped(formula) for name, formula in formulas.items()}
    results = [formula(a, b, result) for formula in formulas.values()]
    different = np.zeros(results[0].shape, bool)
    for other in results[1:]:
        different |= other != results[0]
    for axis, (name, params) in enumerate(operands):
        if graph.is_constant(name):
            codes = np.unique(graph.constants[name].astype(np.int64))
        else:  # fewer than 256 behind a Clip on codes
            possible = ranges.get(name, CodeRange(params.qmin, params.qmax))
            codes = np.arange(possible.low, possible.high + 1)
        different = np.take(different, codes - params.qmin, axis)
    return int(different.sum())


def _prove_sigmoid(node: Node, source: Quantization, result: Quantization) -> Proof:
    fused = tables.tabulate(tables.logistic, source, result)
    plain = tables.tabulate(tables.logistic_without_fma, source, result)
    different = int((fused != plain).sum())
    return Proof(node.name, "isa", different == 0, different, "codes on which instruction sets differ")
