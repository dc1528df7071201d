"""Verifies a quantized ONNX file: ONNX Runtime against the integer reference, tensor by tensor, to the last bit.

A file passes when nothing differs at level `all`, its stored vectors and hashes hold, and, for a file that calls
itself portable, the static proofs do; `rows.py` has each check, and what of it was promised. Operators that ran in
float are named but do not fail it: what they computed is reported apart, and the reference goes on from the runtime's
own tensor, so that all behind it is still checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.compare import Difference, compare
from gdfq_export.runtime_checks.comparison import PROMISED_LEVEL, Comparison, LevelResult
from gdfq_export.runtime_checks.coverage import Coverage, coverage_of
from gdfq_export.runtime_checks.endings import before_endings
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.golden import Golden
from gdfq_export.runtime_checks.graph import Array, overridable_constants
from gdfq_export.runtime_checks.hashes import changed_groups, unhashed_metadata
from gdfq_export.runtime_checks.input_spec import InputSpec
from gdfq_export.runtime_checks.inputs import verification_inputs
from gdfq_export.runtime_checks.instrument import instrument
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY
from gdfq_export.runtime_checks.metadata import GOLDEN_KEY, missing_facts, read_simulation, says_it_is_ours
from gdfq_export.runtime_checks.opening import open_quantized
from gdfq_export.runtime_checks.proofs import Proof, holds, prove
from gdfq_export.runtime_checks.range_use import RangeUse, range_use
from gdfq_export.runtime_checks.rows import PROOFS, passes, rows_of
from gdfq_export.runtime_checks.sessions import LEVELS, runtime_version
from gdfq_export.runtime_checks.shapes import elements_per_image, known_shapes
from gdfq_export.runtime_checks.user_names import user_names

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
    golden_tensor: str | None  # that the vectors hold, where it is not the output
    before_ending: str | None  # the last exact tensor, where an ending in float stands behind it
    same_kernels: bool  # the instrumented copy runs the same kernels as the file
    same_outputs: bool  # and gives the same outputs
    activations: tuple[RangeUse, ...]
    simulation: dict[str, Any] | None  # training's float simulation against the integers, as `quantize` measured it
    portable: bool
    ours: bool  # the file says that this tool made it
    float_parts: tuple[str, ...]  # what the file says that it leaves in float
    missing: tuple[str, ...]  # what a file of this tool states, and this one does not
    overridable: tuple[str, ...]  # constants that are inputs as well
    names: dict[str, str]  # of layers and tensors, by what the file calls them, where that is not the user's name
    strict: bool  # what is missing fails the file
    kind: str
    runtime: str
    inputs: Array = field(repr=False)
    outputs: dict[str, Array] = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether everything that the file promises holds."""
        return passes(rows_of(self))

    def named(self, name: str) -> str:
        """What the user calls a layer or tensor of the file."""
        return self.names.get(name, name)

    @property
    def exact_outputs(self) -> Array:
        """What the runtime gave for the output, or for what stands before its ending."""
        return self.outputs[self.golden_tensor or self.before_ending or next(iter(self.outputs))]

    def to_json(self) -> dict[str, Any]:
        """The keys of the command line's contract (`torch` is the caller's), and the details behind them."""
        return {
            "passed": self.passed,
            "rows": [row.to_json() for row in rows_of(self)],
            "levels": {name: level.to_json() for name, level in self.levels.items()},
            "float_ops": [operator.name for operator in self.coverage.float_operators],
            "endings": [operator.name for operator in self.coverage.endings],
            **{key: holds(self.proofs, *properties) for key, properties, _ in PROOFS},
            "samples": len(self.inputs),
            "runtime": {"version": self.runtime, "level": PROMISED_LEVEL},
            "kind": self.kind,
            "portable": self.portable,
            "instrumented": {"same_kernels": self.same_kernels, "same_outputs": self.same_outputs},
            "hashes": None if self.changed_groups is None else {"changed": list(self.changed_groups)},
            "golden": None if self.golden is None else vars(self.golden),
            "missing": list(self.missing),
            "overridable": list(self.overridable),
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
    strict: bool = False,
    progress: Progress | None = None,
) -> VerifyResult:
    """Verifies the file at `path` on `samples` images; `all` is always among the levels.

    With `strict` a file of this tool that lacks something of what this tool writes fails.
    """
    wanted = tuple(dict.fromkeys((PROMISED_LEVEL, *levels)))
    if unknown := [level for level in wanted if level not in LEVELS]:
        raise CheckError(f"unknown optimization level '{unknown[0]}'; there are {', '.join(LEVELS)}")
    file = open_quantized(path, max_memory)
    model, graph, spec, golden = file.model, file.graph, file.spec, file.golden
    changed, shapes = changed_groups(file.stored), known_shapes(model)
    vectors = None if golden is None else golden.codes
    feeds = verification_inputs(spec, graph, file.layers, vectors, max(samples, 1), seed)
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
        golden_tensor=None if golden is None else golden.tensor,
        before_ending=before_endings(graph).get(graph.outputs[0]),
        same_kernels=copy.same_kernels,
        same_outputs=comparison.same_outputs,
        activations=range_use(graph, results[PROMISED_LEVEL]),
        simulation=read_simulation(file.provenance),
        portable=file.provenance.get("target") == PORTABLE,
        ours=says_it_is_ours(file.stored),
        float_parts=tuple(file.provenance.get("float_parts", ())),
        names=user_names(file.provenance),
        missing=tuple(_missing(file.stored)),
        overridable=tuple(overridable_constants(file.stored)),
        strict=strict,
        kind=file.kind,
        runtime=runtime_version(),
        inputs=feeds,
        outputs=outputs,
    )


def _missing(stored: onnx.ModelProto) -> list[str]:
    """What a file of this tool has to state and does not."""
    missing = missing_facts(stored)
    if says_it_is_ours(stored) and (unhashed := unhashed_metadata(stored)):
        missing.append(f"the hashes of its metadata ({', '.join(unhashed)}), as files from before they existed do")
    return missing


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
    name = golden.tensor or next(iter(outputs))
    if name not in outputs:
        raise CheckError(f"metadata '{GOLDEN_KEY}' is damaged: no ending of this file is computed from '{name}'")
    found = outputs[name][: len(golden.outputs)]
    return compare(golden.outputs[: len(found)], found)
