"""What `onnxruntime.quantization.quantize_static` makes of a float file: uint8 activations, int8 weights per channel.

Its defaults otherwise: ranges are the extremes over the calibration images.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from gdfq_export.runtime_checks.evaluate import preprocessing_of
from gdfq_export.runtime_checks.image_input import image_input
from gdfq_export.runtime_checks.images import list_images, network_input


class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Prepared images (1, C, H, W), one after the other."""

    def __init__(self, images: Iterable[np.ndarray], name: str = "input") -> None:
        self.rest = iter(images)
        self.name = name

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.rest, None)
        return None if image is None else {self.name: image}


def quantize_statically(source: Path, images: Images) -> Path:
    """The quantized file, beside its source and with its metadata."""
    ready, static = source.with_suffix(".ready.onnx"), source.with_suffix(".static.onnx")
    shape_inference.quant_pre_process(str(source), str(ready))
    quantization.quantize_static(
        str(ready),
        str(static),
        images,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    model = onnx.load(static)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(source).metadata_props)
    onnx.save(model, static)
    return static


def images_of(folder: Path, count: int, source: Path) -> Images:
    """Images spread evenly over a folder, as `evaluate` prepares them for this file."""
    spec = image_input(onnx.load(source), source)
    preprocessing, _ = preprocessing_of(spec, source, None, None, None)
    found = list_images(folder)
    chosen = [found[index] for index in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]
    return Images((network_input(image.path, preprocessing)[None] for image in chosen), spec.name)


def top1_without_saturation(static: Path, folder: Path) -> float:
    """Accuracy in percent where no processor adds products in 16 bits, which may saturate: as with VNNI."""
    spec = image_input(onnx.load(static), static)
    preprocessing, _ = preprocessing_of(spec, static, None, None, None)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(static), options, providers=["CPUExecutionProvider"])
    found = list_images(folder)
    hits = 0
    for image in found:
        (outputs,) = session.run(None, {spec.name: network_input(image.path, preprocessing)[None]})
        hits += int(np.argmax(outputs) == image.label)
    return 100 * hits / len(found)
