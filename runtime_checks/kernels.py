"""What each operator makes of dequantized inputs: the integer kernels that ONNX Runtime has, and nothing else.

A function here takes a node and its input values and returns the output values, or None where the runtime has no
integer kernel for these inputs; the caller then computes the operator in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gdfq_export.runtime_checks import pairs, pooling, tables
from gdfq_export.runtime_checks.arithmetic import Quantization, quantize_bias
from gdfq_export.runtime_checks.graph import Array, Node
from gdfq_export.runtime_checks.linear import convolve, multiply
from gdfq_export.runtime_checks.values import Clamp, Pending, Quantized, Value, accumulator

Inputs = Sequence[Value | None]
Kernel = Callable[[Node, Inputs], list[Value] | None]


def convolution(node: Node, inputs: Inputs) -> list[Value] | None:
    """Conv on codes: int32 bias in the accumulator, one weight scale per tensor or per output channel."""
    x, weight = inputs[0], inputs[1]
    if not isinstance(x, Quantized) or not isinstance(weight, Quantized) or x.params.axis is not None:
        return None
    scale = _product_scale(x, weight, output_axis=0)
    bias = None if scale is None else _integer_bias(inputs, scale)
    if scale is None or (bias is None and len(inputs) > 2 and inputs[2] is not None):
        return None
    integers = convolve(_centred(x), _centred(weight), bias, node.attributes)
    return [accumulator(integers, scale.reshape(1, -1, *[1] * (integers.ndim - 2)))]


def gemm(node: Node, inputs: Inputs) -> list[Value] | None:
    """Gemm with alpha = beta = 1."""
    a, b = inputs[0], inputs[1]
    attributes = node.attributes
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
    if not plain or not isinstance(a, Quantized) or not isinstance(b, Quantized) or a.params.axis is not None:
        return None
    transposed = bool(attributes.get("transB", 0))
    scale = _product_scale(a, b, output_axis=0 if transposed else 1)
    bias = None if scale is None else _integer_bias(inputs, scale)
    if scale is None or (bias is None and len(inputs) > 2 and inputs[2] is not None):
        return None
    left = _centred(a).T if attributes.get("transA", 0) else _centred(a)
    right = _centred(b).T if transposed else _centred(b)
    return [accumulator(multiply(left, right, bias), scale)]


def matmul(node: Node, inputs: Inputs) -> list[Value] | None:
    """MatMul of two quantized tensors."""
    a, b = inputs[0], inputs[1]
    if not isinstance(a, Quantized) or not isinstance(b, Quantized) or a.params.axis is not None:
        return None
    scale = _product_scale(a, b, output_axis=b.codes.ndim - 1)
    if scale is None:
        return None
    return [accumulator(multiply(_centred(a), _centred(b), None), scale)]


def _centred(value: Quantized) -> Array:
    """Codes less their zero point, as int16 or wider."""
    _, zero_point = value.params.along(value.codes.ndim)
    dtype = np.int16 if value.codes.dtype.itemsize == 1 else np.int32
    return np.asarray(value.codes.astype(dtype) - zero_point.astype(dtype))


def _product_scale(x: Quantized, weight: Quantized, output_axis: int) -> Array | None:
    """f32(sx * sw), per output channel where the weights have it."""
    axis = weight.params.axis
    if axis is not None and axis % weight.codes.ndim != output_axis:
        return None
    return np.asarray(x.params.scale * weight.params.scale, np.float32)


def _integer_bias(inputs: Inputs, scale: Array) -> Array | None:
    """The int32 bias, the file's own or what the runtime makes of a float one."""
    bias = inputs[2] if len(inputs) > 2 else None
    if isinstance(bias, Quantized) and bias.codes.dtype == np.int32:
        return bias.codes
    if isinstance(bias, np.ndarray) and bias.dtype == np.float32 and bias.ndim == 1:
        return quantize_bias(bias, scale)
    return None


def addition(node: Node, inputs: Inputs) -> list[Value] | None:
    """Add of two quantized tensors; a broadcast scalar on the left swaps the operands."""
    a, b = _operands(inputs)
    if a is None or b is None:
        return None
    formula = pairs.swapped(pairs.add_fma) if _left_is_scalar(a.codes, b.codes) else pairs.add_fma
    return [_pair_value(a, b, formula, np.add)]


def multiplication(node: Node, inputs: Inputs) -> list[Value] | None:
    """Mul of two quantized tensors."""
    a, b = _operands(inputs)
    return None if a is None or b is None else [_pair_value(a, b, pairs.mul_x86, np.multiply)]


def _operands(inputs: Inputs) -> tuple[Quantized | None, Quantized | None]:
    """Both inputs where they are 8-bit codes of one type with one scale each."""
    a, b = inputs[0], inputs[1]
    if not isinstance(a, Quantized) or not isinstance(b, Quantized):
        return None, None
    fits = a.codes.dtype == b.codes.dtype and a.codes.dtype.itemsize == 1
    return (a, b) if fits and a.params.axis is None and b.params.axis is None else (None, None)


def _left_is_scalar(a: Array, b: Array) -> bool:
    """Whether the innermost loop of the broadcast repeats one element of `a`."""
    if a.size == 1 or b.size == 1:
        return a.size == 1 and b.size > 1
    left = (1,) * (b.ndim - a.ndim) + a.shape
    right = (1,) * (a.ndim - b.ndim) + b.shape
    for one, other in zip(reversed(left), reversed(right), strict=True):
        if one != 1 or other != 1:
            return one == 1 and other > 1
    return False


def _pair_value(a: Quantized, b: Quantized, formula: pairs.PairFormula, function: Callable[..., Any]) -> Pending:
    def quantized(result: Quantization) -> Array:
        return pairs.look_up(formula(a.params, b.params, result), a.codes, b.codes, a.params.qmin)

    return Pending(quantized, lambda: np.asarray(function(a.to_float(), b.to_float())))


def concatenation(node: Node, inputs: Inputs) -> list[Value] | None:
    """Concat: each part is rescaled by a table."""
    parts = [value for value in inputs if isinstance(value, Quantized) and value.params.axis is None]
    if len(parts) != len(inputs):
        return None
    axis = int(node.attributes["axis"])
    return [
        Pending(
            lambda result: np.concatenate([part.to_codes(result) for part in parts], axis),
            lambda: np.concatenate([part.to_float() for part in parts], axis),
        )
    ]


def average_pool(node: Node, inputs: Inputs) -> list[Value] | None:
    """AveragePool without dilation or ceil_mode."""
    x = _plain(inputs)
    if x is None or node.attributes.get("ceil_mode", 0) or set(node.attributes.get("dilations", [1])) != {1}:
        return None
    return [
        Pending(
            lambda result: pooling.average(x.codes, node.attributes, x.params, result),
            lambda: pooling.float_average(x.to_float(), node.attributes),
        )
    ]


def global_average_pool(node: Node, inputs: Inputs) -> list[Value] | None:
    """GlobalAveragePool."""
    x = _plain(inputs)
    if x is None:
        return None
    axes = tuple(range(2, x.codes.ndim))
    return [
        Pending(
            lambda result: pooling.global_average(x.codes, x.params, result),
            lambda: x.to_float().mean(axis=axes, keepdims=True, dtype=np.float32),
        )
    ]


def max_pool(node: Node, inputs: Inputs) -> list[Value] | None:
    """MaxPool: order is kept, so it runs on codes whatever the scale."""
    x = inputs[0]
    if len(node.outputs) > 1 or not isinstance(x, Quantized | np.ndarray):
        return None
    if isinstance(x, np.ndarray):
        return [pooling.maximum(x, node.attributes)]
    if x.params.axis is not None:
        return None
    return [Quantized(pooling.maximum(x.codes, node.attributes), x.params)]


def leaky_relu(node: Node, inputs: Inputs) -> list[Value] | None:
    """LeakyRelu by table."""
    return _tabulated(inputs, tables.leaky_relu(float(node.attributes.get("alpha", 0.01))))


def sigmoid(node: Node, inputs: Inputs) -> list[Value] | None:
    """Sigmoid by table."""
    return _tabulated(inputs, tables.logistic)


def _tabulated(inputs: Inputs, function: tables.Function) -> list[Value] | None:
    x = _plain(inputs)
    if x is None or x.codes.dtype.itemsize > 1:
        return None

    def quantized(result: Quantization) -> Array:
        return tables.apply_table(tables.tabulate(function, x.params, result), x.codes, x.params)

    return [Pending(quantized, lambda: function(x.to_float()))]


def softmax(node: Node, inputs: Inputs) -> list[Value] | None:
    """Softmax as of opset 13."""
    x = _plain(inputs)
    if x is None or x.codes.dtype.itemsize > 1:
        return None
    axis = int(node.attributes.get("axis", -1))

    def float_value() -> Array:
        values = x.to_float()
        powers = np.exp(values - values.max(axis=axis, keepdims=True))
        return np.asarray(powers / powers.sum(axis=axis, keepdims=True))

    return [Pending(lambda result: tables.softmax(x.codes, axis, x.params, result), float_value)]


def _plain(inputs: Inputs) -> Quantized | None:
    """The first input where it is codes with one scale."""
    x = inputs[0]
    return x if isinstance(x, Quantized) and x.params.axis is None else None


def relu(node: Node, inputs: Inputs) -> list[Value] | None:
    """Relu: waits for the QuantizeLinear that may make it redundant."""
    return _clamped(inputs[0], Clamp(0.0, np.inf))


def clip(node: Node, inputs: Inputs) -> list[Value] | None:
    """Clip with constant bounds, in attributes (before opset 11) or inputs."""
    bounds = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = inputs[index] if len(inputs) > index else node.attributes.get(name)
        if isinstance(value, Quantized):
            value = value.to_float()
        if isinstance(value, Pending):
            return None
        bounds.append(default if value is None else float(np.asarray(value).reshape(())))
    return _clamped(inputs[0], Clamp(bounds[0], bounds[1]))


def _clamped(x: Value | None, clamp: Clamp) -> list[Value] | None:
    if isinstance(x, Pending):
        return [x.clamped(clamp)]
    if isinstance(x, Quantized):
        return [clamp.apply(x.to_float())]
    if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer):
        info = np.iinfo(x.dtype)
        return [np.clip(x, max(clamp.low, info.min), min(clamp.high, info.max)).astype(x.dtype)]
    return None if x is None else [clamp.apply(x)]


KERNELS: Mapping[str, Kernel] = {
    "Add": addition,
    "AveragePool": average_pool,
    "Clip": clip,
    "Concat": concatenation,
    "Conv": convolution,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "LeakyRelu": leaky_relu,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": multiplication,
    "Relu": relu,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
}
