"""onnxruntime-web, the WebAssembly build that runs in browsers, here in Node (npm package `onnxruntime-web`)."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.runtimes.answer import Answer

_SCRIPT = Path(__file__).with_name("ort_web.cjs")
_NOT_INSTALLED = 3  # the script's exit code


def run(model: onnx.ModelProto, feeds: Array, level: str = "all") -> Answer:
    """Every image alone, on one thread; `level` is onnxruntime's optimization level."""
    node = shutil.which("node")
    if node is None:
        raise CheckError("onnxruntime-web needs Node.js: install it, then run npm install onnxruntime-web")
    names = [value.name for value in model.graph.output]
    request = {
        "input": model.graph.input[0].name,
        "type": str(feeds.dtype),
        "dims": [1, *feeds.shape[1:]],
        "count": len(feeds),
        "outputs": names,
        "level": level,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        (folder / "feeds.bin").write_bytes(np.ascontiguousarray(feeds).tobytes())
        done = subprocess.run([node, str(_SCRIPT), str(folder)], capture_output=True, text=True)
        if done.returncode == _NOT_INSTALLED:
            raise CheckError(
                "Node.js finds no onnxruntime-web: run npm install onnxruntime-web in the current folder, or set "
                f"NODE_PATH to the node_modules that has it ({done.stderr.strip()})"
            )
        if done.returncode:
            raise UnsupportedGraphError(f"onnxruntime-web does not run the model: {_sentence(done.stderr)}")
        answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        outputs = {}
        for index, output in enumerate(names):
            found = answer["outputs"][output]
            data = np.frombuffer((folder / f"output{index}.bin").read_bytes(), np.dtype(found["type"]))
            outputs[output] = data.reshape(-1, *found["dims"][1:])
    return Answer(str(answer["version"]), f"WebAssembly in Node, level {level}", outputs)


def _sentence(text: str) -> str:
    return " ".join(text.split())[:300] or "it says nothing"
