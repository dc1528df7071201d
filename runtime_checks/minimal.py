"""Cuts one kernel out of a model: a stand-alone ONNX file with its inputs as codes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from gdfq_export.runtime_checks.graph import Array

_IR_VERSION = 10


def minimal_model(model: onnx.ModelProto, tensor: str, known: Mapping[str, Array]) -> onnx.ModelProto:
    """The part of `model` that computes `tensor` from the tensors in `known`, which become its inputs."""
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {item.name: item for item in model.graph.initializer}
    outer = {value.name: value for value in model.graph.input if value.name not in constants}
    nodes: dict[int, onnx.NodeProto] = {}
    inputs: dict[str, onnx.ValueInfoProto] = {}
    used: dict[str, onnx.TensorProto] = {}
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        if name in constants:
            used[name] = constants[name]
        elif name in known and name != tensor:
            array = known[name]
            inputs[name] = helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
        elif name in outer:
            inputs[name] = outer[name]
        elif name in producers and id(producers[name]) not in nodes:
            nodes[id(producers[name])] = producers[name]
            waiting += [item for item in producers[name].input if item]
    ordered = [node for node in model.graph.node if id(node) in nodes]
    output = helper.make_value_info(tensor, onnx.TypeProto())
    graph = helper.make_graph(ordered, "kernel that differs", list(inputs.values()), [output], list(used.values()))
    result = helper.make_model(graph, opset_imports=list(model.opset_import))
    result.ir_version = min(model.ir_version, _IR_VERSION) if model.ir_version else _IR_VERSION
    inferred = onnx.shape_inference.infer_shapes(result)
    return inferred if inferred.graph.output[0].type.HasField("tensor_type") else result
