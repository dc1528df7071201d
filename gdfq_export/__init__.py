"""Data-free quantization of PyTorch image classifiers to verified integer ONNX files."""

from __future__ import annotations

__version__ = "0.1.0"
