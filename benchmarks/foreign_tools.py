"""Quantized files made by other tools, as their own documentation says to make them, calibrated on given images."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Source:
    """The network to quantize, in both forms, and the images (N, C, H, W)."""

    module: nn.Module
    fp32: Path
    images: Tensor

    def feeds(self) -> list[dict[str, Any]]:
        """One image each, as ONNX Runtime takes them."""
        name = onnx.load(self.fp32).graph.input[0].name
        return [{name: image[None].numpy().astype(np.float32)} for image in self.images]


@dataclass(frozen=True, eq=False)
class Tool:
    """A way to make a file; `packages` must be installed."""

    name: str
    packages: tuple[str, ...]
    make: Callable[[Source, Path], None]

    @property
    def version(self) -> str | None:
        """Such as "nncf 3.4.0"; None where a package is missing."""
        try:
            installed = [f"{package} {version(package)}" for package in self.packages]
        except PackageNotFoundError:
            return None
        return installed[0]


def quantize_static(source: Source, out: Path, **options: Any) -> None:
    """ONNX Runtime's own quantizer; `options` as quantize_static takes them."""
    quantization = importlib.import_module("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = iter(source.feeds())

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    named = {key: getattr(getattr(quantization, kind), value) for key, (kind, value) in options.items()}
    quantization.quantize_static(str(source.fp32), str(out), Reader(), **named)


def nncf(source: Source, out: Path) -> None:
    """Intel's NNCF on the ONNX graph."""
    module = importlib.import_module("nncf")
    feeds = source.feeds()
    quantized = module.quantize(onnx.load(source.fp32), module.Dataset(feeds), subset_size=len(feeds))
    onnx.save(quantized, out)


def brevitas(source: Source, out: Path) -> None:
    """Brevitas' graph quantization of the PyTorch module, exported as QCDQ."""
    graph = importlib.import_module("brevitas.graph.quantize")
    calibrate = importlib.import_module("brevitas.graph.calibrate")
    export = importlib.import_module("brevitas.export")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantized = graph.quantize(graph.preprocess_for_quantize(source.module.eval()))
        with calibrate.calibration_mode(quantized):
            quantized(source.images)
        quantized.eval()
        # The exporter that is the default since torch 2.9 has no quantized biases (Brevitas 0.13 says so).
        export.export_onnx_qcdq(quantized, args=source.images[:1], export_path=str(out), opset_version=17, dynamo=False)


UINT8: dict[str, Any] = {"activation_type": ("QuantType", "QUInt8"), "weight_type": ("QuantType", "QInt8")}
TOOLS = (
    Tool("quantize_static_default", ("onnxruntime",), quantize_static),
    Tool("quantize_static_uint8", ("onnxruntime",), partial(quantize_static, **UINT8)),
    Tool(
        "quantize_static_qoperator",
        ("onnxruntime",),
        partial(quantize_static, **UINT8, quant_format=("QuantFormat", "QOperator")),
    ),
    Tool("nncf", ("nncf",), nncf),
    Tool("brevitas_qcdq", ("brevitas", "onnxoptimizer"), brevitas),
)
