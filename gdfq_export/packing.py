"""Weights of few bits as small initializers, and the nodes that unpack them when the file is loaded.

    5 to 8 bits    int8
    4 bits         INT4, two a byte, and a Cast
    2 and 3 bits   planes of bits, eight weights a byte: plane k holds bit k of every (code + 2^(bits-1) - 1)

    code = sum_k (((plane_k >> [7 .. 0]) & 1) << k)  -  (2^(bits-1) - 1)

All of it reads constants only, so that ONNX Runtime folds it into int8 and runs the same kernels. Planes are 1/4 and
3/8 of int8, in operators that every runtime has had since opset 18 (the type INT2 needs opset 25).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from gdfq_export.onnx_builder import OnnxBuilder

Int8 = npt.NDArray[np.int8]
PACKED_BITS = 4  # and fewer
PLANE_BITS = 3  # and fewer
BYTE = 8


def weight_constant(b: OnnxBuilder, group: str, q_weight: Int8, bits: int) -> str:
    """The name of the int8 weights of a layer, stored as small as its bits allow."""
    if bits > PACKED_BITS:
        return b.constant(f"{group}/weight", q_weight, np.int8)
    if bits > PLANE_BITS:
        packed = b.constant(f"{group}/weight", q_weight, ml_dtypes.int4)
        return b.add("Cast", [packed], f"{group}.weight8", to=TensorProto.INT8)
    return _unpack_planes(b, group, q_weight, bits)


def weight_bytes(count: int, bits: int) -> int:
    """Bytes that so many weights of one layer take in the file."""
    if bits > PACKED_BITS:
        return count
    return -(-count // 2) if bits > PLANE_BITS else bits * -(-count // BYTE)


def bit_planes(q_weight: Int8, bits: int) -> npt.NDArray[np.uint8]:
    """Codes as bytes (bits, ceil(N / 8)); the last byte is filled with zeros."""
    shifted = (q_weight.reshape(-1) + largest_code(bits)).astype(np.uint8)
    return np.stack([np.packbits((shifted >> plane) & 1) for plane in range(bits)])


def largest_code(bits: int) -> int:
    """Codes of the narrow symmetric range lie in plus and minus this."""
    return (1 << (bits - 1)) - 1


def _unpack_planes(b: OnnxBuilder, group: str, q_weight: Int8, bits: int) -> str:
    planes = b.constant(f"{group}/weight", bit_planes(q_weight, bits)[:, :, None], np.uint8)  # (bits, bytes, 1)
    downwards = b.constant("bits/downwards", np.arange(BYTE - 1, -1, -1), np.uint8)
    upwards = b.constant(f"bits/upwards{bits}", np.arange(bits)[:, None, None], np.uint8)
    axis, one = b.constant("bits/axis", [0], np.int64), b.constant("bits/one", 1, np.uint8)
    offset = b.constant(f"bits/offset{bits}", largest_code(bits), np.int32)
    name = b.add("BitShift", [planes, downwards], f"{group}.spread", direction="RIGHT")  # (bits, bytes, 8)
    name = b.add("BitwiseAnd", [name, one], f"{group}.bits")
    name = b.add("BitShift", [name, upwards], f"{group}.placed", direction="LEFT")
    name = b.add("Cast", [name], f"{group}.wide", to=TensorProto.INT32)
    name = b.add("ReduceSum", [name, axis], f"{group}.sum", keepdims=0)  # (bytes, 8)
    name = b.add("Sub", [name, offset], f"{group}.codes")
    name = b.add("Cast", [name], f"{group}.codes8", to=TensorProto.INT8)
    if q_weight.size % BYTE:
        name = b.add("Reshape", [name, b.constant("bits/flat", [-1], np.int64)], f"{group}.flat")
        ends = [b.constant("bits/begin", [0], np.int64), b.constant(f"{group}/count", [q_weight.size], np.int64)]
        name = b.add("Slice", [name, *ends, axis], f"{group}.cut")
    return b.add("Reshape", [name, b.constant(f"{group}/shape", q_weight.shape, np.int64)], f"{group}.weight8")
