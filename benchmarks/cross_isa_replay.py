"""Runs on the (emulated) machine: replays vectors and counts the codes that differ. Needs numpy and onnxruntime only.

    python cross_isa_replay.py JOB_FOLDER RESULT.json

The job folder holds plain.onnx, shown.onnx (the same network with its quantized tensors as outputs) and vectors.npz
(`feeds`, `names`, and the expected tensors `tensor0`, `tensor1`, ... in the order of `names`). Beside the result the
optimized graphs are left, so that the caller sees which kernels ran here.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

onnxruntime: Any = importlib.import_module("onnxruntime")
X86_FEATURES = ("SSE42", "AVX2", "FMA3", "AVX512F", "AVX512_ICL")  # the last one has VNNI
ARM_FEATURES = ("asimd", "asimddp", "i8mm", "sve", "sme")  # as /proc/cpuinfo names them


def session(path: Path, optimized: Path) -> Any:
    """The defaults of every deployment but for one thread; the graph that runs is written to `optimized`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def differing(expected: Any, found: Any) -> tuple[int, int]:
    """Elements whose bits differ, and the largest difference of integers (0 for floats, which have no step)."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return max(expected.size, found.size), 0
    if expected.dtype.kind == "f":
        return int(np.count_nonzero(expected.view(np.uint32) != found.view(np.uint32))), 0
    steps = np.abs(expected.astype(np.int64) - found.astype(np.int64))
    return int(np.count_nonzero(steps)), int(steps.max(initial=0))


def replay(job: Path, result: Path) -> dict[str, Any]:
    """Every image alone, as a deployment runs it."""
    with np.load(job / "vectors.npz") as data:
        vectors = {name: data[name] for name in data.files}
    names = [str(name) for name in vectors["names"]]
    expected = {name: vectors[f"tensor{index}"] for index, name in enumerate(names)}
    plain = session(job / "plain.onnx", result.with_suffix(".plain.onnx"))
    shown = session(job / "shown.onnx", result.with_suffix(".shown.onnx"))
    input_name = plain.get_inputs()[0].name
    outputs = [item.name for item in plain.get_outputs() if item.name in expected]  # without those of float operators
    mismatches, steps, elements = dict.fromkeys(names, 0), dict.fromkeys(names, 0), 0
    output_mismatches = 0
    start = time.perf_counter()
    for index, feed in enumerate(vectors["feeds"]):
        for name, found in zip(outputs, plain.run(outputs, {input_name: feed[None]}) if outputs else (), strict=True):
            output_mismatches += differing(expected[name][index : index + 1], found)[0]
        for name, found in zip(names, shown.run(names, {input_name: feed[None]}), strict=True):
            count, largest = differing(expected[name][index : index + 1], found)
            mismatches[name] += count
            steps[name] = max(steps[name], largest)
            elements += found.size
    return {
        "machine": platform.machine(),
        "features": features(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "images": len(vectors["feeds"]),
        "tensors": len(names),
        "elements": elements,
        "mismatches": sum(mismatches.values()),
        "max_steps": max(steps.values(), default=0),
        "output_mismatches": output_mismatches,
        "first_differing": next((name for name in names if mismatches[name]), None),
        "differing_tensors": sum(count > 0 for count in mismatches.values()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def features() -> list[str]:
    """What this processor says that it can do, so that the emulation is seen to be the one asked for."""
    if platform.machine() == "aarch64":
        text = Path("/proc/cpuinfo").read_text(encoding="ascii")
        found = next(line for line in text.splitlines() if line.startswith("Features")).split()
        return [name for name in ARM_FEATURES if name in found]
    found = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__  # read with CPUID
    return [name for name in X86_FEATURES if found.get(name)]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(replay(Path(sys.argv[1]), Path(sys.argv[2]))), encoding="utf-8")
