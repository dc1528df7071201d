"""Finds the first tensor on which ONNX Runtime and the reference part, why, and a small file that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.causes import NOT_FUSED, cause_of
from gdfq_export.runtime_checks.compare import Difference, compare
from gdfq_export.runtime_checks.coverage import Coverage, coverage_of
from gdfq_export.runtime_checks.graph import Array, Graph
from gdfq_export.runtime_checks.inputs import verification_inputs
from gdfq_export.runtime_checks.instrument import Instrumented, instrument
from gdfq_export.runtime_checks.layers import Layer, layers_of
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY
from gdfq_export.runtime_checks.minimal import minimal_model
from gdfq_export.runtime_checks.opening import open_quantized
from gdfq_export.runtime_checks.quantizer_of import operator_of
from gdfq_export.runtime_checks.reference import reference_graph, run_reference
from gdfq_export.runtime_checks.sessions import Session


@dataclass(frozen=True, eq=False)
class BisectResult:
    """The first tensor that differs, in topological order."""

    tensor: str
    layer: str
    op: str
    cause: str
    detail: str
    level: str
    difference: Difference
    expected: Array = field(repr=False)
    found: Array = field(repr=False)
    inputs: Mapping[str, Array] = field(repr=False)
    model: onnx.ModelProto = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {
            "tensor": self.tensor,
            "layer": self.layer,
            "op": self.op,
            "cause": self.cause,
            "detail": self.detail,
            "level": self.level,
            **vars(self.difference),
        }

    def write_beside(self, path: Path) -> tuple[Path, Path]:
        """Writes `<stem>.first-difference.onnx` and `.npz` (its inputs, `expected` and `found`) beside `path`."""
        onnx_path = path.with_name(f"{path.stem}.first-difference.onnx")
        npz_path = onnx_path.with_suffix(".npz")
        onnx.save(self.model, onnx_path)
        arrays: dict[str, Any] = {f"input:{name}": array for name, array in self.inputs.items()}
        np.savez_compressed(npz_path, expected=self.expected, found=self.found, **arrays)
        return onnx_path, npz_path


def bisect_model(
    path: str | Path,
    *,
    samples: int = 16,
    level: str = "all",
    max_memory: int = DEFAULT_MAX_MEMORY,
    seed: int = 0,
) -> BisectResult | None:
    """Looks for the first differing tensor at `level`, on the images that `verify_model` uses; None if none differs."""
    file = open_quantized(path, max_memory)
    spec, golden = file.spec, file.golden.codes if file.golden else None
    feeds = verification_inputs(spec, file.graph, file.layers, golden, max(samples, 1), seed)
    copy = instrument(file.model, file.graph)
    model, graph = copy.base, reference_graph(copy.base)
    session = Session(copy.model, level)
    first: _Mismatch | None = None
    for index in range(len(feeds)):
        feed = np.repeat(feeds[index : index + 1], spec.batch or 1, axis=0)
        found = first_mismatch(graph, feed, session.run(feed), copy, level)
        if found is not None and (first is None or found.order < first.order):
            first = found
    if first is None:
        return None
    coverage = copy.coverage if level == "all" else coverage_of(copy.model, level)
    return explain(model, graph, {layer.node.name: layer for layer in layers_of(model, graph)}, coverage, first, level)


@dataclass(frozen=True, eq=False)
class _Mismatch:
    """A differing tensor, and the integer tensors that were known when it was computed."""

    order: int
    tensor: str
    expected: Array
    found: Array
    shown: Mapping[str, Array]


def first_mismatch(
    graph: Graph, feed: Array, shown: Mapping[str, Array], copy: Instrumented, level: str = "all"
) -> _Mismatch | None:
    """The first tensor of one image on which the reference, given the runtime's own inputs, differs from `shown`."""
    float_tensors = copy.coverage.float_tensors
    mismatches: list[_Mismatch] = []
    order = 0

    def observe(name: str, computed: Array) -> Array:
        nonlocal order
        order += 1
        if name not in shown:
            return computed
        promised = level != "all" or name not in float_tensors
        if promised and not mismatches and compare(computed, shown[name]).mismatches:
            mismatches.append(_Mismatch(order, name, computed, shown[name], {**shown, graph.input.name: feed}))
        return shown[name]

    run_reference(graph, feed, observe, float_tensors)
    return mismatches[0] if mismatches else None


def explain(
    model: onnx.ModelProto,
    graph: Graph,
    layers: Mapping[str, Layer],
    coverage: Coverage,
    mismatch: _Mismatch,
    level: str,
) -> BisectResult:
    """Names the operator and the cause, and cuts the kernel out."""
    node = operator_of(graph, mismatch.tensor)
    layer = layers.get(node.name)
    in_float = next((item for item in coverage.float_operators if item.name == node.name), None)
    if in_float is not None:
        cause = NOT_FUSED
        detail = in_float.reason if level == "all" else f"level {level} keeps it in float"
    else:
        cause, detail = cause_of(graph, node, layer, mismatch.shown, mismatch.expected, mismatch.found)
    small = minimal_model(model, mismatch.tensor, mismatch.shown)
    return BisectResult(
        tensor=mismatch.tensor,
        layer=node.name if layer is None else layer.name,
        op=node.op,
        cause=cause,
        detail=detail,
        level=level,
        difference=compare(mismatch.expected, mismatch.found),
        expected=mismatch.expected,
        found=mismatch.found,
        inputs={value.name: mismatch.shown[value.name] for value in small.graph.input},
        model=small,
    )
