"""How much memory a session takes, measured in a process of its own where nothing but the runtime has been loaded.

    python -m gdfq_export.runtime_checks.session_memory '{"path": ..., "input": ..., "shape": ..., "dtype": ...}'

The growth of the process's peak from before the session is made to after its first run: the weights as the runtime
packs them, and the activations.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.graph import Array


def session_memory_mb(path: Path, name: str, feed: Array, threads: int) -> float | None:
    """In megabytes; None where the system has no /proc to read it from."""
    task = {"path": str(path), "input": name, "shape": feed.shape, "dtype": str(feed.dtype), "threads": threads}
    command = [sys.executable, "-m", "gdfq_export.runtime_checks.session_memory", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def measure(task: dict[str, Any]) -> float:
    """Runs in the new process."""
    runtime: Any = importlib.import_module("onnxruntime")
    feed = np.ones(task["shape"], task["dtype"])
    options = runtime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    options.log_severity_level = 3
    before = _peak()
    session = runtime.InferenceSession(task["path"], options, providers=["CPUExecutionProvider"])
    session.run(None, {task["input"]: feed})
    return (_peak() - before) / 1e6


def _peak() -> float:
    """The largest resident size so far in bytes; getrusage would count what this process was forked from."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


if __name__ == "__main__":
    print(measure(json.loads(sys.argv[1])))
