"""A user's folder, for all tests of commands that need a quantized network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from user_folder import GOOD, HEAD, NO_NORM, ODD, SIZE, SOFTMAX


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a model file and one quantized model."""
    path = tmp_path_factory.mktemp("user")
    (path / "net.py").write_text(HEAD + GOOD + SOFTMAX + NO_NORM + ODD)
    words = ["quantize", "--model", f"{path}/net.py:build", *SIZE, "--bits", "8", "--out", str(path / "model.onnx")]
    done = subprocess.run(
        [sys.executable, "-m", "gdfq_export", *words, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path / "result.json").write_text(done.stdout)
    return path
