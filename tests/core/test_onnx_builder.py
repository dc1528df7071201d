from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from gdfq_export import __version__
from gdfq_export.onnx_builder import FLOAT, OPSET, OnnxBuilder


def doubled() -> onnx.ModelProto:
    b = OnnxBuilder()
    b.add("Mul", ["x", b.constant("two", 2.0, np.float32)], "y")
    return b.model("g", ("x", FLOAT, ["n", 3]), ("y", FLOAT, ["n", 3]))


def test_a_model_passes_the_full_check() -> None:
    onnx.checker.check_model(doubled(), full_check=True)


def test_a_node_returns_its_output_and_is_named_after_it() -> None:
    b = OnnxBuilder()
    assert b.add("Relu", ["x"], "y") == "y"
    assert b.nodes[0].name == "y:Relu"


def test_a_constant_is_stored_once() -> None:
    b = OnnxBuilder()
    b.constant("c", 1, np.int64)
    b.constant("c", 1, np.int64)
    assert list(b.initializers) == ["c"]


def test_a_scalar_constant_has_rank_0() -> None:
    b = OnnxBuilder()
    b.constant("c", 3, np.uint8)
    assert numpy_helper.to_array(b.initializers["c"]).shape == ()


def test_a_model_says_who_made_it_for_which_opset() -> None:
    model = doubled()
    assert (model.producer_name, model.producer_version) == ("gdfq-export", __version__)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
