"""Tells what a quantized file holds and what ONNX Runtime makes of it: each operator's bits, parameters and kernel."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.code_ranges import CodeRange, code_ranges
from gdfq_export.runtime_checks.coverage import Coverage, FloatOperator, Kernel, coverage_of, with_names
from gdfq_export.runtime_checks.folding import fold_constants
from gdfq_export.runtime_checks.graph import Graph, Node, graph_from_model
from gdfq_export.runtime_checks.input_spec import InputSpec
from gdfq_export.runtime_checks.layers import Layer
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY
from gdfq_export.runtime_checks.opening import open_quantized
from gdfq_export.runtime_checks.profile import profiled_kernels
from gdfq_export.runtime_checks.quantizer_of import quantizer_behind, quantizer_node
from gdfq_export.runtime_checks.sessions import runtime_version
from gdfq_export.runtime_checks.user_names import user_names

_BOUNDARY = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class NodeReport:
    """One operator as it runs; `scale` and `zero_point` are those of its result."""

    name: str
    op: str
    kernel: str
    integer: bool
    weight_bits: int | None
    activation_bits: int | None
    scale: float | None
    zero_point: int | None

    def to_json(self) -> dict[str, Any]:
        """One entry of `nodes`."""
        return {
            "name": self.name,
            "op": self.op,
            "kernel": self.kernel,
            "integer": self.integer,
            "bits": {"weight": self.weight_bits, "activation": self.activation_bits},
            "scale": self.scale,
            "zero_point": self.zero_point,
        }


@dataclass(frozen=True)
class InspectResult:
    """What `inspect` reports."""

    nodes: tuple[NodeReport, ...]
    float_operators: tuple[FloatOperator, ...]
    endings: tuple[FloatOperator, ...]
    warnings: tuple[str, ...]
    kind: str
    opset: int
    file_bytes: int
    runtime: str
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The keys of the command line's contract, and more."""
        return {
            "nodes": [node.to_json() for node in self.nodes],
            "integer_ops": [node.name for node in self.nodes if node.integer],
            "float_ops": [asdict(operator) for operator in self.float_operators],
            "endings": [asdict(operator) for operator in self.endings],
            "file_bytes": self.file_bytes,
            "warnings": list(self.warnings),
            "kind": self.kind,
            "opset": self.opset,
            "runtime": {"version": self.runtime, "level": "all"},
            "provenance": self.provenance,
        }


def inspect_model(path: str | Path, *, max_memory: int = DEFAULT_MAX_MEMORY) -> InspectResult:
    """Reads the file at `path`, and the graph that ONNX Runtime runs in its place."""
    file = open_quantized(path, max_memory)
    model, graph, provenance = file.model, file.graph, file.provenance
    source, coverage = fold_constants(graph_from_model(model)), coverage_of(model)
    ranges, layers = code_ranges(graph), {layer.node.name: layer for layer in file.layers}
    by_name = {node.name: node for node in graph.nodes}
    names = user_names(provenance)
    nodes = [
        _report(kernel, names, by_name.get(kernel.name), graph, ranges, layers.get(kernel.name))
        for kernel in coverage.kernels
        if kernel.op not in _BOUNDARY
    ]
    return InspectResult(
        nodes=tuple(nodes),
        float_operators=with_names(coverage.float_operators, names),
        endings=with_names(coverage.endings, names),
        warnings=(*_warnings(source, coverage), *_not_profiled(model, coverage, file.spec)),
        kind=file.kind,
        opset=graph.opset,
        file_bytes=Path(path).stat().st_size,
        runtime=runtime_version(),
        provenance=provenance,
    )


def _report(
    kernel: Kernel,
    names: dict[str, str],
    node: Node | None,
    graph: Graph,
    ranges: dict[str, CodeRange],
    layer: Layer | None,
) -> NodeReport:
    params = None if node is None else quantizer_behind(graph, node)
    return NodeReport(
        name=names.get(kernel.name, kernel.name),
        op=kernel.op if node is None else node.op,
        kernel=kernel.op,
        integer=kernel.integer,
        weight_bits=None if layer is None else _signed_bits(layer),
        activation_bits=None if node is None else _activation_bits(node, graph, ranges),
        scale=None if params is None else float(params.scale),
        zero_point=None if params is None else int(params.zero_point),
    )


def _signed_bits(layer: Layer) -> int:
    """The narrowest two's complement type that holds all weight codes."""
    codes = layer.centred_weight
    largest = max(int(codes.max(initial=0)), -int(codes.min(initial=0)) - 1)
    return max(largest, 0).bit_length() + 1


def _activation_bits(node: Node, graph: Graph, ranges: dict[str, CodeRange]) -> int | None:
    """Bits of the result's codes, after the Clip that may follow its QuantizeLinear."""
    quantizer = quantizer_node(graph, node)
    name = node.outputs[0] if quantizer is None else quantizer.outputs[0]
    reader = graph.only_consumer(name)
    if reader is not None and reader.op == "Clip":
        name = reader.outputs[0]
    found = ranges.get(name)
    return None if found is None else (found.high - found.low).bit_length()


def _warnings(source: Graph, coverage: Coverage) -> list[str]:
    """What runs on integers, but not as the file says."""
    fused = {kernel.name for kernel in coverage.kernels if kernel.integer}
    found = []
    for node in source.nodes:
        if node.name not in fused or node.op not in ("Conv", "Gemm"):
            continue
        for index, what in ((1, "weight"), (2, "bias")):
            constant = source.constants.get(node.input(index))
            if constant is not None and constant.dtype == np.float32:
                found.append(f"{node.op} '{node.name}': ONNX Runtime quantizes its float {what} when it loads the file")
    return found


def _not_profiled(model: onnx.ModelProto, coverage: Coverage, spec: InputSpec) -> list[str]:
    """Where the kernels that ran are not those of the optimized graph, on which the report rests."""
    ran = profiled_kernels(model, np.zeros((spec.batch or 1, *spec.shape), spec.dtype))
    stated = Counter(kernel.op for kernel in coverage.kernels)
    if ran == stated:
        return []
    other = ", ".join(sorted({*(ran - stated), *(stated - ran)}))
    return [f"the runtime's profile and its optimized graph name different kernels ({other})"]
