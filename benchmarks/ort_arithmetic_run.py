"""Runs every `N.onnx` of a folder on its `N.npz` and writes `N.out.npy`; needs numpy and onnxruntime only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for path in sorted(folder.glob("*.onnx")):
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        with np.load(path.with_suffix(".npz")) as feeds:
            np.save(path.with_suffix(".out.npy"), session.run(None, dict(feeds))[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
