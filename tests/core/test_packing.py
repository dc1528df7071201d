"""Weights of few bits take few bytes, and every reader of the file gets the same codes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import shape_of
from stages import images, integer_logits, integer_model, run_onnx

from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.onnx_builder import OnnxBuilder
from gdfq_export.packing import bit_planes, largest_code, weight_constant
from gdfq_export.runtime_checks.folding import fold_constants
from gdfq_export.runtime_checks.graph import graph_from_model
from gdfq_export.runtime_checks.verify import verify_model

BYTES = {8: 8.0, 5: 8.0, 4: 4.0, 3: 3.0, 2: 2.0}  # bits a weight takes in the file


@pytest.mark.parametrize("bits", BYTES)
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (5, 3, 3, 3), (7, 1)])
def test_codes_come_back(bits: int, shape: tuple[int, ...]) -> None:
    limit = largest_code(bits)
    codes = np.random.default_rng(bits).integers(-limit, limit + 1, shape).astype(np.int8)
    b = OnnxBuilder()
    name = weight_constant(b, "layer", codes, bits)
    b.add("Identity", ["input"], "logits")
    b.add("Cast", [name], "unused", to=onnx.TensorProto.INT32)
    value = ("input", onnx.TensorProto.FLOAT, [1])
    graph = fold_constants(graph_from_model(b.model("test", value, ("logits", onnx.TensorProto.FLOAT, [1]))))
    assert np.array_equal(graph.constants["unused"], codes)
    size = len(b.initializers["layer/weight"].raw_data)
    assert size <= np.ceil(codes.size * BYTES[bits] / 8) + (bits if bits < 4 else 0)


def test_planes_hold_one_bit_of_each_code() -> None:
    codes = np.array([-3, 3, 0, 1, -1, -2, 2, 3, -3], np.int8)
    planes = bit_planes(codes, 3)
    assert planes.shape == (3, 2)
    bits = np.unpackbits(planes, axis=1)[:, : codes.size].astype(np.int64)
    assert np.array_equal(bits.T @ [1, 2, 4] - 3, codes)


@pytest.mark.parametrize("bits", [2, 3])
def test_narrow_weights_run_exactly_and_in_integers(bits: int, tmp_path: Path) -> None:
    model = integer_model("linear_bottleneck", bits, bits)
    proto, x = onnx_from_integer_model(model), images(shape_of("linear_bottleneck"), 8)
    ran = run_onnx(proto, x, tmp_path)
    assert np.array_equal(ran.outputs, integer_logits(model, x))
    assert {"BitShift", "Cast", "Conv"}.isdisjoint(ran.kernels)
    onnx.save(proto, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=2)
    assert result.levels["all"].total.mismatches == 0
    assert result.coverage.float_operators == ()
