"""One operator computed in float32 by onnx's reference evaluator, for whatever has no integer kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array, Node


def evaluate_node(node: Node, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of `node` on `inputs`; None stands for an input that is left out."""
    names = [f"input{index}" if value is not None else "" for index, value in enumerate(inputs)]
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    outputs = [f"output{index}" if name else "" for index, name in enumerate(node.outputs)]
    attributes = {name: value for name, value in node.attributes.items() if value is not None}
    proto = helper.make_node(node.op, names, outputs, domain=node.domain, **attributes)
    graph = helper.make_graph(
        [proto],
        "one operator",
        [helper.make_tensor_value_info(name, _element_type(value), value.shape) for name, value in feeds.items()],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        results = ReferenceEvaluator(model).run(None, feeds)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        text = f"operator {node.op} (node '{node.name}') cannot be computed here: {error}"
        raise UnsupportedGraphError(text) from error
    computed = iter(results)
    return [np.asarray(next(computed)) if name else np.empty(0) for name in outputs]


def _element_type(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
