"""Makes what a machine replays: images, and the codes that the integer reference computes from them, on this machine.

Where a file has operators in float, the reference goes on from this machine's own tensor behind them: such a tensor is
not promised to the last bit and is left out of the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.inputs import verification_inputs
from gdfq_export.runtime_checks.instrument import instrument
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY
from gdfq_export.runtime_checks.opening import open_quantized
from gdfq_export.runtime_checks.reference import reference_graph, run_reference
from gdfq_export.runtime_checks.sessions import Session


@dataclass(frozen=True)
class Job:
    """A folder that machines replay, and what its file promises."""

    name: str
    folder: Path
    target: str | None  # of the file's provenance; "portable" promises the same codes everywhere
    float_tensors: int  # left out, because an operator in float computes them


def make_job(path: Path, folder: Path, samples: int, seed: int = 0) -> Job:
    """Writes plain.onnx, shown.onnx and vectors.npz for `samples` images into `folder`."""
    file = open_quantized(path, DEFAULT_MAX_MEMORY)
    graph, spec, golden = file.graph, file.spec, file.golden
    if spec.batch not in (None, 1):
        raise ValueError(f"{path}: a batch of {spec.batch} is fixed, and images are replayed one by one")
    stored = None if golden is None else golden.codes[: max(1, samples // 2)]
    feeds = verification_inputs(spec, graph, file.layers, stored, samples, seed)
    copy = instrument(file.model, graph)
    graph = reference_graph(copy.base)
    in_float = copy.coverage.float_tensors
    session = Session(copy.model)
    parts: dict[str, list[Array]] = {}
    for index in range(len(feeds)):
        feed = feeds[index : index + 1]
        shown = session.run(feed) if in_float else {}

        def observe(name: str, computed: Array, shown: dict[str, Array] = shown) -> Array:
            if name in in_float:
                return shown[name]
            if name in copy.tensors or name in graph.outputs:
                parts.setdefault(name, []).append(computed)
            return computed

        run_reference(graph, feed, observe, in_float)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plain.onnx").write_bytes(file.model.SerializeToString())
    (folder / "shown.onnx").write_bytes(copy.model.SerializeToString())
    arrays: dict[str, Any] = {f"tensor{index}": np.concatenate(items) for index, items in enumerate(parts.values())}
    np.savez(folder / "vectors.npz", feeds=feeds, names=np.array(list(parts)), **arrays)
    return Job(path.name, folder, file.provenance.get("target"), len(in_float))
