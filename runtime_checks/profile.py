"""Where the time goes: the runtime's own profile, kernel by kernel, and which of the kernels are islands in float."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.coverage import FloatOperator, coverage_of, name_in_file, with_names
from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array, graph_from_model, with_unique_names
from gdfq_export.runtime_checks.input_spec import input_spec, random_batch
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY, load_model
from gdfq_export.runtime_checks.metadata import read_provenance
from gdfq_export.runtime_checks.quantized_files import require_quantized
from gdfq_export.runtime_checks.sessions import profile_events
from gdfq_export.runtime_checks.user_names import user_names

SLOWEST = 10
_WARM_UP, _RUNS = 3, 20
_KERNEL_TIME = re.compile(r"_kernel_time$")


@dataclass(frozen=True)
class KernelTime:
    """One kernel by its name in the file; `in_float` marks an island between quantized tensors."""

    name: str
    op: str
    median_us: float
    share: float  # of all kernels' time
    in_float: bool


@dataclass(frozen=True)
class Profile:
    """All kernels, the slowest first, and the float operators with their reasons."""

    threads: int
    kernels: tuple[KernelTime, ...]
    float_operators: tuple[FloatOperator, ...]

    def to_json(self) -> dict[str, Any]:
        """The slowest kernels, and every float island."""
        return {
            "threads": self.threads,
            "kernels": len(self.kernels),
            "slowest": [asdict(kernel) for kernel in self.kernels[:SLOWEST]],
            "float_ops": [asdict(operator) for operator in self.float_operators],
        }


def profile_model(
    path: str | Path, *, threads: int = 1, seed: int = 0, max_memory: int = DEFAULT_MAX_MEMORY
) -> Profile:
    """Profiles the file at `path` at batch 1 on random input."""
    model = with_unique_names(load_model(path, max_memory))
    spec = input_spec(graph_from_model(model), read_provenance(model))
    feed = random_batch(spec, 1, np.random.default_rng(seed))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in _kernel_events(model, feed, threads=threads, runs=_WARM_UP + _RUNS):
        times[_KERNEL_TIME.sub("", event["name"]), event["args"]["op_name"]].append(float(event["dur"]))
    medians = {key: median(values[_WARM_UP:]) for key, values in times.items()}
    total = sum(medians.values()) or 1.0
    floats = _float_operators(model, Path(path).name)
    islands = {operator.name for operator in floats}
    names = user_names(read_provenance(model))
    kernels = [
        KernelTime(_shown(name, names), op, time, time / total, name_in_file(name) in islands)
        for (name, op), time in medians.items()
    ]
    return Profile(threads, tuple(sorted(kernels, key=lambda kernel: -kernel.median_us)), with_names(floats, names))


def _shown(name: str, names: Mapping[str, str]) -> str:
    """The user's name of a node of the optimized graph."""
    return names.get(name_in_file(name), name_in_file(name))


def profiled_kernels(model: onnx.ModelProto, feed: Array) -> Counter[str]:
    """How often each kernel ran on `feed`."""
    return Counter(event["args"]["op_name"] for event in _kernel_events(model, feed))


def _kernel_events(model: onnx.ModelProto, feed: Array, *, threads: int = 0, runs: int = 1) -> list[dict[str, Any]]:
    events = profile_events(model, feed, threads=threads, runs=runs)
    return [event for event in events if event.get("cat") == "Node" and _KERNEL_TIME.search(event["name"])]


def _float_operators(model: onnx.ModelProto, name: str) -> tuple[FloatOperator, ...]:
    """Those between quantized tensors; a float network has none."""
    try:
        require_quantized(graph_from_model(model), name)
    except UnsupportedGraphError:
        return ()
    return coverage_of(model).float_operators
