"""Bounds on codes: what stays within the codes that it reads keeps their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from qdq_builder import Builder

from gdfq_export.runtime_checks.code_ranges import CodeRange, code_ranges
from gdfq_export.runtime_checks.reference import reference_graph

SHAPE = (3, 8, 8)


def bounds(op: str, inputs: int = 1, *, more: dict[str, Any] | None = None, **attributes: Any) -> CodeRange:
    """The range of `op` on codes 3..9 and, as second input, 5..12."""
    net = Builder()
    x = net.quantize("input", "input_quantizer", 0.02, 128)
    names = []
    for index, (low, high) in enumerate([(3, 9), (5, 12)][:inputs]):
        limits = [net.constant(f"limits/{index}{name}", np.uint8(value)) for name, value in (("a", low), ("b", high))]
        names.append(net.node("Clip", [x.codes, *limits], f"clipped{index}"))
    names += [net.constant(name, value) if value is not None else "" for name, value in (more or {}).items()]
    model = net.model(net.node(op, names, "result", **attributes), SHAPE, output_type=TensorProto.UINT8, output_rank=4)
    return code_ranges(reference_graph(model))["result"]


@pytest.mark.parametrize(
    ("op", "expected"), [("Max", CodeRange(5, 12)), ("Min", CodeRange(3, 9)), ("Concat", CodeRange(3, 12))]
)
def test_an_operator_that_chooses_among_its_inputs_has_the_range_that_they_give(op: str, expected: CodeRange) -> None:
    assert bounds(op, 2, **({"axis": 1} if op == "Concat" else {})) == expected


@pytest.mark.parametrize(
    ("op", "more", "attributes"),
    [
        ("ReduceMax", {"axes": np.array([1])}, {}),
        ("ReduceMin", {"axes": np.array([1])}, {}),
        ("MaxPool", None, {"kernel_shape": [2, 2]}),
        ("Transpose", None, {"perm": [0, 1, 3, 2]}),
        ("Resize", {"": None, "scales": np.array([1, 1, 2, 2], np.float32)}, {"mode": "nearest"}),
    ],
    ids=lambda item: item if isinstance(item, str) else None,
)
def test_an_operator_that_keeps_elements_keeps_their_range(op: str, more: Any, attributes: dict[str, Any]) -> None:
    assert bounds(op, more=more, **attributes) == CodeRange(3, 9)


def dequantized_bounds(op: str, inputs: int = 1, zero_point: int = 0, **attributes: Any) -> CodeRange:
    """The same between DequantizeLinear and QuantizeLinear of equal parameters."""
    net = Builder()
    x = net.quantize("input", "input_quantizer", 0.02, zero_point)
    names = []
    for index, (low, high) in enumerate([(3, 9), (5, 12)][:inputs]):
        limits = [net.constant(f"limits/{index}{name}", np.uint8(value)) for name, value in (("a", low), ("b", high))]
        clipped = net.node("Clip", [x.codes, *limits], f"clipped{index}")
        names.append(net.dequantize(clipped, "input_quantizer", 0.02).name)
    y = net.quantize(net.node(op, names, "computed", **attributes), "result", 0.02, zero_point)
    return code_ranges(reference_graph(net.model(y.name, SHAPE, output_rank=4)))[y.codes]


@pytest.mark.parametrize(("op", "expected"), [("Max", CodeRange(5, 12)), ("Min", CodeRange(3, 9))])
def test_so_it_is_between_dequantize_and_quantize(op: str, expected: CodeRange) -> None:
    assert dequantized_bounds(op, 2) == expected


def test_a_mean_over_padding_may_leave_the_codes_that_it_reads() -> None:
    pool = {"kernel_shape": [3, 3], "pads": [1] * 4}
    assert dequantized_bounds("AveragePool", **pool) == CodeRange(3, 9)
    assert dequantized_bounds("AveragePool", **pool, count_include_pad=1) == CodeRange(0, 255)


def test_what_overshoots_may_leave_them_too() -> None:
    more = {"": None, "scales": np.array([1, 1, 2, 2], np.float32)}
    assert bounds("Resize", more=more, mode="cubic") == CodeRange(0, 255)
