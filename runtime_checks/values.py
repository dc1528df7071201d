"""What flows along the edges of the graph: a tensor, or a result that waits for the QuantizeLinear that ends it.

The runtime fuses DequantizeLinear -> operator -> QuantizeLinear into one integer kernel. So a DequantizeLinear gives
`Quantized`, an operator on it gives `Pending`, and the QuantizeLinear asks for codes; whatever has no integer kernel
asks for float32 instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gdfq_export.runtime_checks.arithmetic import Float, Quantization, dequantize, quantize, requantize
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.tables import rescale


@dataclass(frozen=True)
class Clamp:
    """A Relu or Clip between an operator and its QuantizeLinear."""

    low: float
    high: float

    def apply(self, values: Array) -> Array:
        """The clamped values."""
        return np.clip(values, np.float32(self.low), np.float32(self.high))

    def redundant_before(self, params: Quantization) -> bool:
        """Whether saturation to the codes' range already does it: the runtime then drops the node."""
        if params.axis is not None:
            return False
        scale, zero_point = np.float32(params.scale), int(params.zero_point)
        if self.high == np.inf:
            return self.low <= 0 and (self.low == -np.inf or zero_point == params.qmin)
        low = -np.inf if self.low == -np.inf else np.rint(np.float32(self.low) / scale) + zero_point
        high = np.rint(np.float32(self.high) / scale) + zero_point
        return bool(low <= params.qmin and high >= params.qmax)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A DequantizeLinear's result: codes and what they mean."""

    codes: Array
    params: Quantization

    def to_float(self) -> Float:
        """The numbers."""
        return dequantize(self.codes, self.params)

    def to_codes(self, params: Quantization) -> Array:
        """The same numbers as codes of `params`."""
        return rescale(self.codes, self.params, params)


@dataclass(frozen=True, eq=False)
class Pending:
    """An operator on codes before its QuantizeLinear: what its integer kernel gives, and what it is in float32."""

    quantized: Callable[[Quantization], Array]
    float_value: Callable[[], Array]
    clamps: tuple[Clamp, ...] = ()

    def to_float(self) -> Float:
        """The operator computed in float32."""
        values = self.float_value()
        for clamp in self.clamps:
            values = clamp.apply(values)
        return values

    def to_codes(self, params: Quantization) -> Array:
        """The integer kernel's codes; through float where a clamp cuts inside the codes' range."""
        if params.axis is not None or not all(clamp.redundant_before(params) for clamp in self.clamps):
            return quantize(self.to_float(), params)
        return self.quantized(params)

    def clamped(self, clamp: Clamp) -> Pending:
        """The same followed by a Relu or Clip."""
        return replace(self, clamps=(*self.clamps, clamp))


Value = Array | Quantized | Pending


def accumulator(integers: Array, scale: Float) -> Pending:
    """A Conv, Gemm or MatMul: exact integers times f32(sx*sw), which broadcasts over them."""
    return Pending(
        lambda result: requantize(integers, scale, result),
        lambda: np.asarray(integers.astype(np.float32) * scale),  # f32(acc) * f32(sx*sw), as the float kernels do
    )


def as_array(value: Value) -> Array:
    """The tensor itself, or the float32 numbers that it stands for."""
    return value if isinstance(value, np.ndarray) else value.to_float()


def as_codes(value: Value, params: Quantization) -> Array:
    """What QuantizeLinear makes of `value`."""
    return quantize(value, params) if isinstance(value, np.ndarray) else value.to_codes(params)
