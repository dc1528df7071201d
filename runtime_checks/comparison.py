"""Runs batches through the runtime and the reference side by side, and adds up where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.compare import Difference, compare
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.instrument import Instrumented
from gdfq_export.runtime_checks.reference import reference_graph, run_reference
from gdfq_export.runtime_checks.sessions import Session

PROMISED_LEVEL = "all"


@dataclass(frozen=True)
class TensorResult:
    """One tensor at one level, over all images."""

    name: str
    difference: Difference
    in_float: bool
    low: float
    high: float


@dataclass(frozen=True)
class LevelResult:
    """The quantized tensors and the outputs at one optimization level, in topological order."""

    tensors: tuple[TensorResult, ...]

    @property
    def total(self) -> Difference:
        """Over the tensors that are promised exactly."""
        return sum((item.difference for item in self.tensors if not item.in_float), Difference())

    @property
    def float_total(self) -> Difference:
        """Over the tensors that a float operator computed."""
        return sum((item.difference for item in self.tensors if item.in_float), Difference())

    def to_json(self) -> dict[str, Any]:
        """The counts, and the tensors that differ, in topological order."""
        exact = [item for item in self.tensors if not item.in_float]
        return {
            "tensors": len(exact),
            "elements": self.total.elements,
            "mismatches": self.total.mismatches,
            "max_steps": self.total.max_steps,
            "differing": [item.name for item in exact if item.difference.mismatches],
            "in_float": {
                "tensors": len(self.tensors) - len(exact),
                "mismatches": self.float_total.mismatches,
                "max_steps": self.float_total.max_steps,
            },
        }


class Comparison:
    """Sessions at each level, and the differences found so far.

    At level `all` the reference goes on from the runtime's tensor wherever the two differ, so that each kernel is
    judged on the inputs that it really had. Other levels are compared with the reference's own tensors: what they
    show is how far a deployment at that level drifts.
    """

    def __init__(self, model: onnx.ModelProto, copy: Instrumented, levels: Sequence[str], threads: int = 0) -> None:
        self._graph = reference_graph(copy.base)
        self._float_tensors = copy.coverage.float_tensors
        self._plain = Session(model, PROMISED_LEVEL, threads=threads)
        self._sessions = {level: Session(copy.model, level, threads=threads) for level in levels}
        self._found: dict[str, dict[str, TensorResult]] = {level: {} for level in levels}
        self._outputs: dict[str, list[Array]] = {name: [] for name in self._graph.outputs}
        self.same_outputs = True

    def run(self, batch: Array, count: int) -> None:
        """Compares one batch, of which the first `count` images matter."""
        plain = self._plain.run(batch)
        shown = self._sessions[PROMISED_LEVEL].run(batch)
        for name, output in plain.items():
            self.same_outputs &= compare(output, shown[name]).mismatches == 0
            self._outputs[name].append(output[:count])
        for name in self._outputs.keys() - plain.keys():  # what stands before an ending
            self._outputs[name].append(shown[name][:count])
        expected: dict[str, Array] = {}

        def observe(name: str, computed: Array) -> Array:
            if name not in shown:
                return computed
            self._add(PROMISED_LEVEL, name, computed[:count], shown[name][:count])
            expected[name] = shown[name] if name in self._float_tensors else computed
            return shown[name]

        with np.errstate(all="ignore"):  # extreme scales overflow in the runtime as well
            run_reference(self._graph, batch, observe, self._float_tensors)
        for level, session in self._sessions.items():
            if level != PROMISED_LEVEL:
                for name, tensor in session.run(batch).items():
                    if name in expected:
                        self._add(level, name, expected[name][:count], tensor[:count])

    def results(self) -> dict[str, LevelResult]:
        """The differences at each level."""
        return {level: LevelResult(tuple(found.values())) for level, found in self._found.items()}

    def outputs(self) -> dict[str, Array]:
        """What the runtime gave for the model itself, over all images."""
        return {name: np.concatenate(parts) for name, parts in self._outputs.items()}

    def _add(self, level: str, name: str, expected: Array, found: Array) -> None:
        low, high = float(found.min()), float(found.max())
        difference = compare(expected, found)
        known = self._found[level].get(name)
        if known is not None:
            difference += known.difference
            low, high = min(low, known.low), max(high, known.high)
        self._found[level][name] = TensorResult(name, difference, name in self._float_tensors, low, high)
