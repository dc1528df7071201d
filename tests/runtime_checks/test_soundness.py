"""Damaged graphs and metadata are refused in one sentence before anything is proved of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from damaged_files import mutations
from onnx import TensorProto, helper, numpy_helper
from qdq_builder import seal, small_network

from gdfq_export.cli import main

MUTATIONS = 300
Change = Callable[[onnx.ModelProto], None]


def put(name: str, value: Any) -> Change:
    """Another constant of the same name."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(item for item in model.graph.initializer if item.name == name)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, value) if np.isscalar(value) else value, name))

    return change


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def merge_dimensions(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "block.conv1/weight")
    tensor.dims[:] = [8, 72]


def swap_inputs(model: onnx.ModelProto) -> None:
    names = node(model, "stem.weight").input
    names[0], names[1] = names[1], names[0]


def change_axis(model: onnx.ModelProto) -> None:
    node(model, "stem.weight").attribute[0].i = 7


def rewire_scale(model: onnx.ModelProto) -> None:
    node(model, "classifier.bias").input[1] = "stem/weight_scale"


def empty_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, [0]))


def no_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 0


def one_block(model: onnx.ModelProto) -> None:
    node(model, "stem.codes.float").attribute.append(helper.make_attribute("block_size", 5))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("block.add/scale", 0.0), "the scale 'block.add/scale' holds 0, which is no positive number that float32"),
        (put("stem/weight_scale", -0.1), "the scale 'stem/weight_scale' holds -0.1"),
        (put("average/scale", 1e-45), "the scale 'average/scale' holds 1.4"),
        (put("pool/scale", 1e38), "with which codes stand for numbers beyond float32 (QuantizeLinear 'pool.codes')"),
        (put("pool/scale", np.nan), "the scale 'pool/scale' is not finite"),
        (put("pool/zero_point", np.zeros(3, np.uint8)), "the zero point 'pool/zero_point' has 3 values for 1 scales"),
        (put("stem/zero_point", np.array(0, np.float32)), "the zero point 'stem/zero_point' is not of integers"),
        (put("classifier/weight_zero_point", np.zeros(10, np.uint8)), "is UINT8, and its codes are INT8"),
        (merge_dimensions, "'block.conv1"),
        (swap_inputs, "stem.weight'"),
        (change_axis, "axis 7 of codes with 4 dimensions (DequantizeLinear 'stem.weight')"),
        (rewire_scale, "8 scales for 10 channels along axis 0 (DequantizeLinear 'classifier.bias')"),
        (empty_input, "it is no image"),
        (no_type, "input 'input' is of type UNDEFINED, and no image is"),
        (one_block, "blocks of 5 with a scale of 0 dimensions (DequantizeLinear 'stem.codes.float')"),
    ],
    ids=lambda item: item.__name__ if callable(item) and item.__name__ != "change" else None,
)
def test_a_graph_that_is_none_is_refused_with_the_place(
    change: Change, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_network()
    change(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    for command in ("verify", "inspect"):
        assert main([command, str(tmp_path / "m.onnx")]) in (3, 4)
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"output_step": None}, "its output_step is null, and has to be a positive number"),
        ({"output_step": 0}, "its output_step is 0"),
        ({"float_parts": "all"}, "has to be a list of names"),
        ({"fakequant_sha256": 7}, "has to be a checksum or null"),
        ({"target": None}, "has to be a name"),
        ({"input": {"shape": [0, 12, 12]}}, "an object whose shape is a list of sizes"),
        ({"input": {"shape": None}}, "an object whose shape is a list of sizes"),
        ({"simulation": {"images": True}}, "its simulation lacks a number"),
    ],
)
def test_facts_that_cannot_be_are_refused_with_their_name(
    facts: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(seal(small_network(), **facts), tmp_path / "m.onnx")
    assert main(["verify", str(tmp_path / "m.onnx"), "--samples", "1"]) == 4
    assert expected in capsys.readouterr().err


def test_no_damaged_file_ends_with_a_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them is refused, or checked like any other file, whatever comes of it."""
    path, codes = tmp_path / "m.onnx", []
    for index, (what, model) in enumerate(mutations(MUTATIONS)):
        path.write_bytes(model.SerializeToString())
        command = ["inspect"] if index % 7 == 6 else ["verify", "--samples", "1"]
        codes.append(main([*command, str(path), "--json"]))
        report = json.loads(capsys.readouterr().out)
        assert codes[-1] in (0, 1, 3, 4), (what, report)
        if command[0] == "verify" and codes[-1] < 2:
            assert report["passed"] == (codes[-1] == 0), what
    assert {0, 1, 3, 4} == set(codes)
