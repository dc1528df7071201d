"""Add and Mul on all 65,536 pairs of codes: x86 against the runtime, arm64 against its definition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from gdfq_export.runtime_checks import pairs
from gdfq_export.runtime_checks.arithmetic import Quantization

SCALES = st.floats(2.0**-9, 2.0**2, width=32)
ZERO_POINTS = st.integers(0, 255)


def quantization(scale: float, zero_point: int, dtype: type = np.uint8) -> Quantization:
    offset = np.iinfo(dtype).min
    return Quantization(np.full((), scale, np.float32), np.full((), zero_point + offset, dtype), np.dtype(dtype))


PARAMETERS = st.tuples(SCALES, ZERO_POINTS)


def run(op: str, params: list[Quantization], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    constants, nodes = [], []
    for name, item in zip("abc", params, strict=True):
        constants.append(numpy_helper.from_array(item.scale, f"{name}_scale"))
        constants.append(numpy_helper.from_array(item.zero_point, f"{name}_zero"))
    for name in "ab":
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_float"]))
    nodes.append(helper.make_node(op, ["a_float", "b_float"], ["c_float"]))
    nodes.append(helper.make_node("QuantizeLinear", ["c_float", "c_scale", "c_zero"], ["c"]))
    kind = helper.np_dtype_to_tensor_dtype(a.dtype)
    inputs = [helper.make_tensor_value_info(name, kind, array.shape) for name, array in (("a", a), ("b", b))]
    graph = helper.make_graph(nodes, op, inputs, [helper.make_tensor_value_info("c", kind, [None, None])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"a": a, "b": b})[0]


def every_pair(dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    codes = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)
    return np.repeat(codes, 256).reshape(256, 256), np.tile(codes, 256).reshape(256, 256)


@settings(max_examples=25)
@given(PARAMETERS, PARAMETERS, PARAMETERS, st.sampled_from([np.uint8, np.int8]))
def test_add_is_what_the_runtime_computes(a: tuple, b: tuple, c: tuple, dtype: type) -> None:
    params = [quantization(*item, dtype) for item in (a, b, c)]
    assert np.array_equal(run("Add", params, *every_pair(dtype)), pairs.add_fma(*params))


@settings(max_examples=25)
@given(PARAMETERS, PARAMETERS, PARAMETERS, st.sampled_from([np.uint8, np.int8]))
def test_mul_is_what_the_runtime_computes(a: tuple, b: tuple, c: tuple, dtype: type) -> None:
    params = [quantization(*item, dtype) for item in (a, b, c)]
    assert np.array_equal(run("Mul", params, *every_pair(dtype)), pairs.mul_x86(*params))


@settings(max_examples=15)
@given(PARAMETERS, PARAMETERS, PARAMETERS)
def test_a_broadcast_scalar_on_the_left_exchanges_the_operands_of_add(a: tuple, b: tuple, c: tuple) -> None:
    params = [quantization(*item) for item in (a, b, c)]
    left, right = every_pair()
    assert np.array_equal(run("Add", params, left[:, :1].copy(), right), pairs.swapped(pairs.add_fma)(*params))
    assert np.array_equal(run("Add", params, left, right[:1].copy()), pairs.add_fma(*params))


@settings(max_examples=20)
@given(PARAMETERS, PARAMETERS, PARAMETERS, st.integers(0, 255), st.integers(0, 255))
def test_neon_add_is_fixed_point_with_ties_away_from_zero(a: tuple, b: tuple, c: tuple, left: int, right: int) -> None:
    params = [quantization(*item) for item in (a, b, c)]
    ratios = [Fraction(float(item.scale / params[2].scale)) for item in params[:2]]
    shift = 21
    while max(ratios) * 2 ** (shift - 21) >= 2:
        shift -= 1
    while max(ratios) * 2 ** (shift - 21) < 1:
        shift += 1
    multipliers = [round(ratio * 2**shift) for ratio in ratios]  # half to even, as lrint
    exponent_too_far = not 13 <= shift <= 31 or min(ratios) < Fraction(1, 2**14) or max(multipliers) >= 2**22
    if exponent_too_far:
        return
    total = Fraction((left - a[1]) * multipliers[0] + (right - b[1]) * multipliers[1], 2**shift)
    magnitude = (abs(total) + Fraction(1, 2)).__floor__()
    expected = min(max((magnitude if total >= 0 else -magnitude) + c[1], 0), 255)
    assert pairs.add_neon(*params)[left, right] == expected


@pytest.mark.parametrize(("ratio_a", "ratio_b"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_whole_ratios_agree_on_all_instruction_sets(ratio_a: float, ratio_b: float) -> None:
    params = [quantization(ratio_a / 32, 0), quantization(ratio_b / 32, 120), quantization(1 / 32, 3)]
    tables = [formula(*params) for formula in pairs.ADD_FORMULAS.values()]
    assert all(np.array_equal(table, tables[0]) for table in tables)


def test_a_ratio_of_one_half_does_not_agree_because_of_ties() -> None:
    params = [quantization(1 / 64, 0), quantization(1 / 64, 0), quantization(1 / 32, 0)]
    assert np.count_nonzero(pairs.add_fma(*params) != pairs.add_neon(*params)) == 16384
    assert np.array_equal(pairs.add_fma(*params), pairs.add_sse(*params))
