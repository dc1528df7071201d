"""Collects ONNX nodes and initializers under readable names, each initializer once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gdfq_export import __version__

OPSET = 21
IR_VERSION = 10


class OnnxBuilder:
    """A graph in the making."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One node with one output, named after its output."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{output}:{op}", **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """An initializer; the same name always holds the same value."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def model(
        self,
        name: str,
        source: tuple[str, int, Sequence[int | str]],
        result: tuple[str, int, Sequence[int | str]],
    ) -> onnx.ModelProto:
        """The finished model; `source` and `result` are name, element type and shape."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(*source)],
            [helper.make_tensor_value_info(*result)],
            initializer=list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        model.producer_name, model.producer_version = "gdfq-export", __version__
        return model


FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
