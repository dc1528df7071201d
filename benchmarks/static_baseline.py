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

from gdfq_export.runtime_checks.golden import read_provenance
from gdfq_export.runtime_checks.graph import graph_from_model
from gdfq_export.runtime_checks.images import list_images, list_unlabelled, network_input
from gdfq_export.runtime_checks.input_spec import InputSpec, Preprocessing, input_spec, preprocessing_of


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


def _input_of(path: Path) -> tuple[InputSpec, Preprocessing]:
    model = onnx.load(path)
    spec = input_spec(graph_from_model(model), read_provenance(model))
    return spec, preprocessing_of(spec, path.name, None, None, None)[0]


def images_of(folder: Path, count: int, source: Path) -> Images:
    """Images spread evenly over a folder, as `evaluate` prepares them for this file."""
    spec, preprocessing = _input_of(source)
    found = list_unlabelled(folder)
    chosen = [found[index] for index in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]
    return Images((network_input(path, preprocessing)[None] for path in chosen), spec.name)


def top1_without_saturation(static: Path, folder: Path) -> float:
    """Accuracy in percent where no processor adds products in 16 bits, which may saturate: as with VNNI."""
    spec, preprocessing = _input_of(static)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(static), options, providers=["CPUExecutionProvider"])
    found = list_images(folder, session.get_outputs()[0].shape[-1])
    hits = 0
    for image in found:
        (outputs,) = session.run(None, {spec.name: network_input(image.path, preprocessing)[None]})
        hits += int(np.argmax(outputs) == image.label)
    return 100 * hits / len(found)
