"""Signed activations as the runtime sees them: it turns an INT8 pair of Q and DQ into UINT8, code + 128.

It does so only where nothing else reads the codes. An instrumented copy reads all codes, so it makes the same change
first. The numbers that codes stand for do not change, (c + 128) - (z + 128) = c - z, but the rounding of an Add can.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

_OFFSET = 128
_SUFFIX = "#unsigned"


def with_unsigned_pairs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, frozenset[str]]:
    """A copy with those pairs in UINT8, and the names of their tensors of codes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {item.name: item for item in copy.graph.initializer}
    outputs = {value.name for value in copy.graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in copy.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    changed: set[str] = set()
    for node in copy.graph.node:
        codes = node.output[0] if node.output else ""
        reading = readers.get(codes, [])
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or len(reading) != 1 or codes in outputs:
            continue
        if reading[0].op_type != "DequantizeLinear" or len(reading[0].input) < 3:
            continue
        if len(readers.get(reading[0].output[0], [])) > 1:  # the runtime gives each reader a DQ of its own first
            continue
        zero_points = [constants.get(node.input[2]), constants.get(reading[0].input[2])]
        if any(item is None or item.data_type != onnx.TensorProto.INT8 for item in zero_points):
            continue
        for user in (node, reading[0]):
            user.input[2] = _unsigned_zero_point(copy, constants, user.input[2])
        changed.add(codes)
    return copy, frozenset(changed)


def _unsigned_zero_point(model: onnx.ModelProto, constants: dict[str, onnx.TensorProto], name: str) -> str:
    renamed = name + _SUFFIX
    if renamed not in constants:
        array = (numpy_helper.to_array(constants[name]).astype(np.int16) + _OFFSET).astype(np.uint8)
        constants[renamed] = numpy_helper.from_array(array, renamed)
        model.graph.initializer.append(constants[renamed])
    return renamed
