"""Files that must fail on other machines, so that the comparison is seen to be able to fail there.

Neither promises anything: they have no provenance. A processor with VNNI and FMA computes both as the reference does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE = 16, 16


@dataclass(frozen=True)
class KnownBad:
    """A file, how to write it, and the machines on which it must fail."""

    name: str
    write: Callable[[Path], None]
    fails_on: Callable[[str], bool]


def write_full_range(path: Path) -> None:
    """Input -> convolution 3x3 with weights of +127 and -127 -> codes.

    Two neighbouring weights of 127 times two codes of 255 are 64,770, which vpmaddubsw saturates to 32,767.
    """
    weight = np.where(np.random.default_rng(0).random((CHANNELS, CHANNELS, 3, 3)) < 0.6, 127, -127).astype(np.int8)
    constants: dict[str, ArrayLike] = {
        "x_scale": np.float32(1 / 255),
        "x_zero_point": np.uint8(0),
        "weight": weight,
        "weight_scale": np.full(CHANNELS, 1 / 127, np.float32),
        "weight_zero_point": np.zeros(CHANNELS, np.int8),
        "y_scale": np.float32(0.6),
        "y_zero_point": np.uint8(128),
    }
    nodes = [
        *_quantized("input", "x"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero_point"], ["w"], axis=0),
        helper.make_node("Conv", ["x_float", "w"], ["sum"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        *_quantized("sum", "y"),
    ]
    _save(nodes, constants, path)


def write_add(path: Path) -> None:
    """Input -> codes + transposed codes -> codes, at scales where the machines' sums differ.

    Of the 65,536 pairs of codes, 438 give another sum without a fused multiply-add, and 3,976 under NEON.
    """
    constants: dict[str, ArrayLike] = {
        "x_scale": np.float32(0.0378),
        "x_zero_point": np.uint8(100),
        "y_scale": np.float32(0.0432),
        "y_zero_point": np.uint8(140),
    }
    nodes = [
        *_quantized("input", "x"),
        helper.make_node("Transpose", ["x_float"], ["turned"], perm=[0, 1, 3, 2]),
        *_quantized("turned", "z", "x"),
        helper.make_node("Add", ["x_float", "z_float"], ["sum"]),
        *_quantized("sum", "y"),
    ]
    _save(nodes, constants, path)


KNOWN_BAD = (
    KnownBad("known_bad_range.onnx", write_full_range, lambda machine: machine == "haswell"),
    KnownBad("known_bad_add.onnx", write_add, lambda machine: machine not in ("native", "haswell")),
)


def _quantized(source: str, name: str, parameters: str | None = None) -> list[onnx.NodeProto]:
    """`source` -> codes `name` -> `name`_float."""
    scale = [f"{parameters or name}_scale", f"{parameters or name}_zero_point"]
    return [
        helper.make_node("QuantizeLinear", [source, *scale], [name]),
        helper.make_node("DequantizeLinear", [name, *scale], [f"{name}_float"]),
    ]


def _save(nodes: list[onnx.NodeProto], constants: Mapping[str, ArrayLike], path: Path) -> None:
    shape = [1, CHANNELS, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "known_bad",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y_float", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
