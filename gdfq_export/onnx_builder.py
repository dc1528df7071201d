"""Collects ONNX nodes and initializers under readable names, each initializer once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gdfq_export import __version__
from gdfq_export.graph import INPUT, OUTPUT, unused_name

OPSET = 21
IR_VERSION = 10


class OnnxBuilder:
    """A graph in the making."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.taken = {INPUT, OUTPUT}

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One node with one output, named after its output; the name, with a number behind it where it is taken."""
        output = unused_name(output, self.taken)
        self.taken.add(output)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{output}:{op}", **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """An initializer; its name, with a number behind it where that name holds another value."""
        tensor = numpy_helper.from_array(np.asarray(value, dtype), name)
        count = 0
        while tensor.name in self.taken and self.initializers.get(tensor.name) != tensor:
            count += 1
            tensor.name = f"{name}_{count}"
        self.taken.add(tensor.name)
        self.initializers[tensor.name] = tensor
        return str(tensor.name)

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
