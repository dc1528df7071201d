"""Opens a quantized file for a check: read, found to be sound, and run once, in this order.

Everything that is proved or computed of a file starts from what stands here, so that nothing is proved of a graph that
is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from gdfq_export.runtime_checks.golden import Golden, read_golden
from gdfq_export.runtime_checks.graph import Graph, graph_from_model, with_unique_names
from gdfq_export.runtime_checks.input_spec import InputSpec, input_spec
from gdfq_export.runtime_checks.layers import Layer, layers_of
from gdfq_export.runtime_checks.loading import load_model
from gdfq_export.runtime_checks.metadata import read_provenance
from gdfq_export.runtime_checks.quantized_files import require_quantized
from gdfq_export.runtime_checks.reference import reference_graph
from gdfq_export.runtime_checks.soundness import require_feedable, require_runs, require_sound_quantizers


@dataclass(frozen=True, eq=False)
class QuantizedFile:
    """A statically quantized network that ONNX Runtime runs."""

    stored: onnx.ModelProto  # as it stands in the file
    model: onnx.ModelProto  # with a name for every node
    kind: str
    graph: Graph  # that the reference runs
    layers: list[Layer]
    spec: InputSpec
    provenance: dict[str, Any]
    golden: Golden | None


def open_quantized(path: str | Path, max_memory: int) -> QuantizedFile:
    """The file at `path`; raises CheckError with one sentence where it cannot be checked."""
    name = Path(path).name
    stored = load_model(path, max_memory)
    model = with_unique_names(stored)
    as_written = graph_from_model(model)
    kind = require_quantized(as_written, name)
    require_feedable(as_written, name)
    provenance = read_provenance(model)
    require_runs(model, input_spec(as_written, provenance), name)
    graph = reference_graph(model)
    require_sound_quantizers(graph, name)  # once more, with the scales that the graph computes of constants
    spec = input_spec(graph, provenance)
    return QuantizedFile(stored, model, kind, graph, layers_of(model, graph), spec, provenance, read_golden(model))
