"""A read-only view of an ONNX graph: named nodes, constants as arrays, who makes and who reads each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]

_FIRST_IR_WITH_OPTIONAL_INPUTS = 4
_WIDENED: dict[int, type[np.integer[Any]]] = {  # types that numpy does not have are kept in the next one that it has
    onnx.TensorProto.INT4: np.int8,
    onnx.TensorProto.INT2: np.int8,
    onnx.TensorProto.UINT4: np.uint8,
    onnx.TensorProto.UINT2: np.uint8,
}


@dataclass(frozen=True)
class Node:
    """One operator; `name` is unique in its graph even where the file leaves it empty."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(hash=False)

    def input(self, index: int) -> str:
        """The name of input `index`, or "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, and the constants (initializers and Constant nodes) as arrays."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    constant_types: Mapping[str, int]  # ONNX element types: INT4 is kept in int8 arrays
    input: onnx.ValueInfoProto
    outputs: tuple[str, ...]
    opset: int
    producers: Mapping[str, Node]
    consumers: Mapping[str, tuple[Node, ...]]

    def is_constant(self, name: str) -> bool:
        """Whether tensor `name` is known without running the network."""
        return name in self.constants

    def only_consumer(self, name: str) -> Node | None:
        """The single reader of tensor `name`; None where there are several, none, or it is a graph output."""
        readers = self.consumers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def with_unique_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose every node has a name of its own, so that the runtime's nodes can be traced back to the file's."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        name = node.name or (node.output[0] if node.output else node.op_type)
        node.name = name if name not in taken else f"{name}#{index}"
        taken.add(node.name)
    return copy


def graph_from_model(model: onnx.ModelProto) -> Graph:
    """The view of `model`; constants are decoded, nothing is computed (see folding)."""
    model = with_unique_names(model)
    constants: dict[str, Array] = {}
    types: dict[str, int] = {}
    for tensor in model.graph.initializer:
        constants[tensor.name] = array_from_tensor(tensor)
        types[tensor.name] = tensor.data_type
    nodes = []
    for proto in model.graph.node:
        node = node_from_proto(proto)
        if node.op == "Constant":
            constants[node.outputs[0]], types[node.outputs[0]] = _constant_value(node)
        else:
            nodes.append(node)
    inputs = [value for value in model.graph.input if value.name not in constants]
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return make_graph(nodes, constants, types, inputs[0], tuple(value.name for value in model.graph.output), opset)


def overridable_constants(model: onnx.ModelProto) -> list[str]:
    """Initializers that are inputs of the graph as well, so that a caller may pass others.

    Old files have to list all of them there, and the runtime takes them as constants.
    """
    if model.ir_version < _FIRST_IR_WITH_OPTIONAL_INPUTS:
        return []
    inputs = {value.name for value in model.graph.input}
    return [tensor.name for tensor in model.graph.initializer if tensor.name in inputs]


def make_graph(
    nodes: list[Node],
    constants: Mapping[str, Array],
    types: Mapping[str, int],
    graph_input: onnx.ValueInfoProto,
    outputs: tuple[str, ...],
    opset: int,
) -> Graph:
    """A Graph with its producers and consumers worked out."""
    producers: dict[str, Node] = {}
    consumers: dict[str, list[Node]] = {}
    for node in nodes:
        producers.update((name, node) for name in node.outputs if name)
        for name in dict.fromkeys(node.inputs):
            if name:
                consumers.setdefault(name, []).append(node)
    readers = {name: tuple(nodes) for name, nodes in consumers.items()}
    return Graph(tuple(nodes), constants, types, graph_input, outputs, opset, producers, readers)


def node_from_proto(proto: onnx.NodeProto) -> Node:
    """`proto` with its attributes as Python values (subgraphs and tensors stay protos)."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute}
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    return Node(proto.name, proto.op_type, domain, tuple(proto.input), tuple(proto.output), attributes)


def array_from_tensor(tensor: onnx.TensorProto) -> Array:
    """The tensor's values; 2- and 4-bit integers widen to 8 bits."""
    array = numpy_helper.to_array(tensor)
    if tensor.data_type in _WIDENED:
        array = array.astype(_WIDENED[tensor.data_type])
    return np.asarray(array)


def _constant_value(node: Node) -> tuple[Array, int]:
    """The value of a Constant node, in whichever of its attributes it stands."""
    name, value = next(iter(node.attributes.items()))
    if name == "value":
        return array_from_tensor(value), value.data_type
    if "string" in name:
        return np.asarray(value, object), onnx.TensorProto.STRING
    if "float" in name:
        return np.asarray(value, np.float32), onnx.TensorProto.FLOAT
    return np.asarray(value, np.int64), onnx.TensorProto.INT64
