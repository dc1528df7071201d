"""Verifies a quantized ONNX file: ONNX Runtime against the integer reference, tensor by tensor, to the last bit.

A file passes when nothing differs at level `all`, its stored vectors and hashes hold, and, for a file that calls
itself portable, the static proofs do. Operators that ran in float are named but do not fail it: what they computed is
reported apart, and the reference goes on from the runtime's own tensor, so that all behind it is still checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.compare import Difference, compare
from gdfq_export.runtime_checks.comparison import PROMISED_LEVEL, Comparison, LevelResult
from gdfq_export.runtime_checks.coverage import Coverage, coverage_of
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.golden import (
    Golden,
    changed_groups,
    read_golden,
    read_provenance,
    read_simulation,
)
from gdfq_export.runtime_checks.graph import Array, graph_from_model, with_unique_names
from gdfq_export.runtime_checks.inputs import verification_inputs
from gdfq_export.runtime_checks.instrument import instrument
from gdfq_export.runtime_checks.layers import layers_of
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY, load_model
from gdfq_export.runtime_checks.model_inputs import InputSpec, input_spec
from gdfq_export.runtime_checks.proofs import Proof, holds, prove
from gdfq_export.runtime_checks.quantized_files import require_quantized
from gdfq_export.runtime_checks.range_use import RangeUse, range_use
from gdfq_export.runtime_checks.reference import reference_graph
from gdfq_export.runtime_checks.sessions import LEVELS, runtime_version
from gdfq_export.runtime_checks.shapes import elements_per_image, known_shapes

PORTABLE = "portable"
Progress = Callable[[int, int], None]
"""(images done, images in all)."""

_ELEMENTS_AT_ONCE = 1 << 25  # of all tensors of a batch, each kept as codes by the runtime and by the reference
_LARGEST_BATCH = 8


@dataclass(frozen=True, eq=False)
class VerifyResult:
    """What verification found; `inputs` and `outputs` let a caller compare another program on the same images."""

    levels: dict[str, LevelResult]
    coverage: Coverage
    proofs: tuple[Proof, ...]
    changed_groups: tuple[str, ...] | None  # None where the file has no hashes
    golden: Difference | None  # None where the file has no vectors
    same_kernels: bool  # the instrumented copy runs the same kernels as the file
    same_outputs: bool  # and gives the same outputs
    activations: tuple[RangeUse, ...]
    simulation: dict[str, Any] | None  # training's float simulation against the integers, as `quantize` measured it
    portable: bool
    kind: str
    runtime: str
    inputs: Array = field(repr=False)
    outputs: dict[str, Array] = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether everything that the file promises holds."""
        exact = self.levels[PROMISED_LEVEL].total.mismatches == 0
        stored = not self.changed_groups and (self.golden is None or self.golden.mismatches == 0)
        return exact and stored and self.same_outputs and (not self.portable or self.proved)

    @property
    def proved(self) -> bool:
        """Whether every static proof holds."""
        return all(row.proved for row in self.proofs)

    def to_json(self) -> dict[str, Any]:
        """The keys of the command line's contract (`torch` is the caller's), and the details behind them."""
        return {
            "passed": self.passed,
            "levels": {name: level.to_json() for name, level in self.levels.items()},
            "float_ops": [operator.name for operator in self.coverage.float_operators],
            "saturation_safe": holds(self.proofs, "saturation"),
            "overflow_safe": holds(self.proofs, "overflow", "bias", "bias_scale"),
            "isa_invariant": holds(self.proofs, "isa"),
            "samples": len(self.inputs),
            "runtime": {"version": self.runtime, "level": PROMISED_LEVEL},
            "kind": self.kind,
            "portable": self.portable,
            "instrumented": {"same_kernels": self.same_kernels, "same_outputs": self.same_outputs},
            "hashes": None if self.changed_groups is None else {"changed": list(self.changed_groups)},
            "golden": None if self.golden is None else vars(self.golden),
            "simulation": self.simulation,
            "activations": [item.to_json() for item in self.activations],
            "not_proved": [
                {
                    "layer": row.layer,
                    "property": row.property,
                    "number": row.number if math.isfinite(row.number) else None,
                    "detail": row.detail,
                }
                for row in self.proofs
                if not row.proved
            ],
        }


def verify_model(
    path: str | Path,
    *,
    samples: int = 16,
    levels: Sequence[str] = (PROMISED_LEVEL,),
    max_memory: int = DEFAULT_MAX_MEMORY,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> VerifyResult:
    """Verifies the file at `path` on `samples` images; `all` is always among the levels."""
    wanted = tuple(dict.fromkeys((PROMISED_LEVEL, *levels)))
    if unknown := [level for level in wanted if level not in LEVELS]:
        raise CheckError(f"unknown optimization level '{unknown[0]}'; there are {', '.join(LEVELS)}")
    stored = load_model(path, max_memory)
    model = with_unique_names(stored)
    kind = require_quantized(graph_from_model(model), Path(path).name)
    graph, shapes = reference_graph(model), known_shapes(model)
    provenance, changed, golden = read_provenance(model), changed_groups(stored), read_golden(model)
    spec = input_spec(graph, provenance)
    layers = layers_of(model, graph)
    vectors = None if golden is None else golden.codes
    feeds = verification_inputs(spec, graph, layers, vectors, max(samples, 1), seed)
    copy = instrument(model, graph)
    comparison = Comparison(model, copy, wanted, threads)
    done = 0
    for batch, count in _batches(feeds, spec, elements_per_image(shapes)):
        comparison.run(batch, count)
        done += count
        if progress:
            progress(done, len(feeds))
    outputs, results = comparison.outputs(), comparison.results()
    return VerifyResult(
        levels=results,
        coverage=coverage_of(model),
        proofs=tuple(prove(model, graph, shapes)),
        changed_groups=None if changed is None else tuple(changed),
        golden=None if golden is None else _compare_golden(golden, outputs),
        same_kernels=copy.same_kernels,
        same_outputs=comparison.same_outputs,
        activations=range_use(graph, results[PROMISED_LEVEL]),
        simulation=read_simulation(provenance),
        portable=provenance.get("target") == PORTABLE,
        kind=kind,
        runtime=runtime_version(),
        inputs=feeds,
        outputs=outputs,
    )


def _batches(feeds: Array, spec: InputSpec, elements: int) -> Iterator[tuple[Array, int]]:
    """Batches that bound the memory, each with the number of its images that count (a fixed batch is filled up)."""
    size = spec.batch or max(1, min(_LARGEST_BATCH, _ELEMENTS_AT_ONCE // max(elements, 1)))
    for first in range(0, len(feeds), size):
        batch = feeds[first : first + size]
        count = len(batch)
        if spec.batch and count < size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)])
        yield batch, count


def _compare_golden(golden: Golden, outputs: dict[str, Array]) -> Difference:
    """The stored outputs against those of the runtime; the stored images were the first ones fed."""
    found = next(iter(outputs.values()))[: len(golden.outputs)]
    return compare(golden.outputs[: len(found)], found)
