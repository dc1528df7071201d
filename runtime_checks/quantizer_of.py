"""Which QuantizeLinear ends an operator, directly or behind a Relu or Clip; and back from its codes."""

from __future__ import annotations

from gdfq_export.runtime_checks.arithmetic import Quantization
from gdfq_export.runtime_checks.folding import quantization_from_constants
from gdfq_export.runtime_checks.graph import Graph, Node


def quantizer_node(graph: Graph, node: Node) -> Node | None:
    """The QuantizeLinear that alone reads `node`'s result, possibly through one Relu or Clip."""
    reader = graph.only_consumer(node.outputs[0]) if node.outputs else None
    if reader is not None and reader.op in ("Relu", "Clip"):
        reader = graph.only_consumer(reader.outputs[0])
    return reader if reader is not None and reader.op == "QuantizeLinear" else None


def quantizer_behind(graph: Graph, node: Node) -> Quantization | None:
    """Its parameters; None where there is none, or where they are not constants for the whole tensor."""
    reader = quantizer_node(graph, node)
    if reader is None or reader.input(1) not in graph.constants:
        return None
    params = quantization_from_constants(graph.constants[reader.input(1)], graph.constants.get(reader.input(2)), reader)
    return None if params.axis is not None else params


def operator_of(graph: Graph, tensor: str) -> Node:
    """The operator behind a quantized tensor: past Clip on codes, QuantizeLinear, and a Relu or Clip before it."""
    node = graph.producers[tensor]
    while node.op in ("QuantizeLinear", "Clip", "Relu"):
        previous = graph.producers.get(node.input(0))
        if previous is None or previous.op == "DequantizeLinear":
            break
        node = previous
    return node
