"""How far another runtime's outputs are from those of ONNX Runtime on the CPU, the one that the promise is for.

Nothing is promised for the others: they may requantize with other roundings, keep what we quantize in float, or add in
another order. The numbers say what a deployment on them would see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.comparison import PROMISED_LEVEL
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.graph import Array, Graph
from gdfq_export.runtime_checks.inputs import verification_inputs
from gdfq_export.runtime_checks.layers import Layer
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY
from gdfq_export.runtime_checks.movement import MOVES
from gdfq_export.runtime_checks.opening import open_quantized
from gdfq_export.runtime_checks.output_spec import answers, output_spec
from gdfq_export.runtime_checks.runtimes import openvino, ort_web, reference_evaluator
from gdfq_export.runtime_checks.runtimes.answer import Answer, joined
from gdfq_export.runtime_checks.sessions import Session, runtime_version

RUNTIMES: Mapping[str, Callable[[onnx.ModelProto, Array], Answer]] = {
    "openvino": openvino.run,
    "ort-web": ort_web.run,
    "reference": reference_evaluator.run,
}


@dataclass(frozen=True)
class RuntimeComparison:
    """The outputs of `runtime` against ONNX Runtime's at level `all`; a step is the distance of two neighbours."""

    runtime: str
    version: str
    settings: str
    against: str
    images: int
    elements: int
    mismatches: int
    max_steps: int
    step: float  # of a code: 1; of a float output: what one unit of the last accumulator, or the last code, stands for
    max_difference: float
    spread: float  # of the outputs, largest less smallest: what the difference is to be seen against
    top1_agreement: float  # in percent
    seconds_per_image: float

    def to_json(self) -> dict[str, Any]:
        """One flat object."""
        return asdict(self)


def compare_runtime(
    path: str | Path,
    runtime: str,
    samples: int = 16,
    *,
    seed: int = 0,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> RuntimeComparison:
    """Runs the file at `path` on `samples` images in both; CheckError where the other runtime is not installed."""
    if runtime not in RUNTIMES:
        raise CheckError(f"unknown runtime '{runtime}'; there are {', '.join(RUNTIMES)}")
    file = open_quantized(path, max_memory)
    model, graph, layers, spec, golden = file.model, file.graph, file.layers, file.spec, file.golden
    if spec.batch not in (None, 1):
        raise CheckError(f"{path}: a batch of {spec.batch} is fixed; other runtimes are compared image by image")
    stored = None if golden is None else golden.codes
    feeds = verification_inputs(spec, graph, layers, stored, max(samples, 1), seed)
    session = Session(model)
    expected = joined([session.run(feed[None]) for feed in feeds])
    start = time.perf_counter()
    answer = RUNTIMES[runtime](model, feeds)
    seconds = time.perf_counter() - start
    name = graph.outputs[0]
    step = output_step(graph, layers, name, expected[name])
    threshold = output_spec(graph, file.provenance, expected[name][0].size).threshold
    mismatches, steps, largest = _differences(expected, answer.outputs, step)
    return RuntimeComparison(
        runtime=runtime,
        version=answer.version,
        settings=answer.settings,
        against=f"onnxruntime {runtime_version()}, level {PROMISED_LEVEL}",
        images=len(feeds),
        elements=sum(array.size for array in expected.values()),
        mismatches=mismatches,
        max_steps=steps,
        step=step,
        max_difference=largest,
        spread=float(np.ptp(expected[name])),
        top1_agreement=_agreement(expected[name], answer.outputs[name], threshold),
        seconds_per_image=seconds / len(feeds),
    )


def output_step(graph: Graph, layers: list[Layer], name: str, values: Array) -> float:
    """The distance of two neighbouring values of output `name`; for a float result the runtime's last digit."""
    if values.dtype.kind in "iu":
        return 1.0
    while (node := graph.producers.get(name)) is not None and node.op in MOVES:
        name = node.inputs[0]
    if node is not None and node.op == "DequantizeLinear" and node.input(1) in graph.constants:
        return float(graph.constants[node.input(1)].min())
    for layer in layers:
        if node is not None and layer.node.name == node.name:
            return float((layer.source.scale * layer.weight_params.scale).min())
    return float(np.spacing(np.abs(values).max(initial=0)))


def _differences(expected: Mapping[str, Array], found: Mapping[str, Array], step: float) -> tuple[int, int, float]:
    """Elements that differ in any bit, and the largest difference in steps (at least one) and as a number."""
    mismatches, largest = 0, 0.0
    for name, values in expected.items():
        other = found[name].reshape(values.shape)
        with np.errstate(invalid="ignore"):
            distance = np.abs(values.astype(np.float64) - other.astype(np.float64))
        mismatches += int(np.count_nonzero(values != other))
        largest = max(largest, float(np.nan_to_num(distance, nan=np.inf).max(initial=0)))
    steps = max(round(largest / step), 1) if mismatches and np.isfinite(largest) else 0
    return mismatches, steps, largest


def _agreement(expected: Array, found: Array, threshold: float | None) -> float:
    """Images that both give the same class, or decisions that are the same, in percent."""
    return 100 * float(np.mean(answers(expected, threshold) == answers(found, threshold)))
