"""ONNX Runtime sessions at the optimization levels that we compare, and what they really run.

`all` is the default of every deployment and fuses QDQ into integer kernels, and so does `extended`, below which it
differs by layout only; `basic` and `disabled` run DequantizeLinear, a float operator and QuantizeLinear one by one.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array

LEVELS: Mapping[str, str] = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
_FATAL_ONLY = 4  # the runtime's log level; what is an error is raised as well


class Session:
    """One model at one level, on the CPU provider."""

    def __init__(self, model: onnx.ModelProto, level: str = "all", *, threads: int = 0) -> None:
        self._session = _open(model, level, {"intra_op_num_threads": threads})
        self.input_name: str = self._session.get_inputs()[0].name

    def run(self, feed: Array, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The named outputs (all by default) on `feed`."""
        names = [item.name for item in self._session.get_outputs()] if outputs is None else list(outputs)
        return dict(zip(names, _run(self._session, names, {self.input_name: feed}), strict=True))


def runtime_version() -> str:
    """The installed ONNX Runtime's version."""
    return str(_runtime().__version__)


def optimized_model(model: onnx.ModelProto, level: str = "all") -> onnx.ModelProto:
    """The graph that the runtime executes in place of `model`'s."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        _open(model, level, {"optimized_model_filepath": str(path)})
        return onnx.load(path)


def profile_events(model: onnx.ModelProto, feed: Array, *, threads: int = 0, runs: int = 1) -> list[dict[str, Any]]:
    """The events of the runtime's own profile of `runs` runs on `feed`."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        options = {"enable_profiling": True, "profile_file_prefix": prefix, "intra_op_num_threads": threads}
        session = _open(model, "all", options)
        for _ in range(runs):
            _run(session, None, {session.get_inputs()[0].name: feed})
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def instrumented(model: onnx.ModelProto, tensors: Mapping[str, int]) -> onnx.ModelProto:
    """A copy in which `tensors` (name -> element type) are graph outputs as well."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    for name, element_type in tensors.items():
        if name not in present:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, element_type, None))
    return copy


def kernel_histogram(optimized: onnx.ModelProto) -> Counter[str]:
    """How many kernels of each kind run.

    Layout changes (Transpose, channels-last variants) do not count, nor does it that the runtime gives each reader a
    DequantizeLinear of its own.
    """
    counted: Counter[str] = Counter()
    dequantized: set[tuple[str, ...]] = set()
    for node in optimized.graph.node:
        inputs = tuple(node.input)
        if node.op_type == "Transpose" or (node.op_type == "DequantizeLinear" and inputs in dequantized):
            continue
        if node.op_type == "DequantizeLinear":
            dequantized.add(inputs)
        counted[node.op_type.removeprefix("Nhwc")] += 1
    return counted


def _open(model: onnx.ModelProto, level: str, options: Mapping[str, Any]) -> Any:
    runtime = _runtime()
    if level not in LEVELS:
        raise CheckError(f"unknown optimization level '{level}'; there are {', '.join(LEVELS)}")
    settings = runtime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    settings.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, LEVELS[level])
    for name, value in options.items():
        setattr(settings, name, value)
    try:
        return runtime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base of their own
        text = f"ONNX Runtime {runtime.__version__} does not load the model: {_sentence(error)}"
        raise UnsupportedGraphError(text) from error


def _run(session: Any, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> Any:
    try:
        return session.run(names, feeds)
    except Exception as error:  # the runtime's exceptions share no base of their own
        raise CheckError(f"ONNX Runtime fails while it runs the model: {_sentence(error)}") from error


def _runtime() -> Any:
    """onnxruntime, imported when it is first needed because that takes a while."""
    return importlib.import_module("onnxruntime")


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
