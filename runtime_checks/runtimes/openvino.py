"""OpenVINO's CPU plugin (package `openvino`), set to answer one request as fast as it can."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.runtimes.answer import Answer, joined

_LAYERS = ("Convolution", "FullyConnected", "MatMul")


def run(model: onnx.ModelProto, feeds: Array) -> Answer:
    """Every image alone; what stays in float is computed in the precision that the plugin chooses for the processor."""
    try:
        openvino = importlib.import_module("openvino")
    except ImportError as error:
        text = f"OpenVINO is not installed ({error}): pip install 'gdfq-export[openvino]'"
        raise CheckError(text) from error
    core = openvino.Core()
    try:
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"PERFORMANCE_HINT": "LATENCY"}
        )
    except RuntimeError as error:
        raise UnsupportedGraphError(
            f"OpenVINO does not load the model: {' '.join(str(error).split())[:300]}"
        ) from error
    names = [value.name for value in model.graph.output]
    parts = []
    for feed in feeds:
        found = compiled([feed[None]])
        parts.append({name: np.array(found[index]) for index, name in enumerate(names)})
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    settings = f"CPU plugin, {_layers_on_8_bits(compiled)} layers on 8 bits, the rest in {chosen}"
    return Answer(str(openvino.__version__), settings, joined(parts))


def _layers_on_8_bits(compiled: Any) -> str:
    """How many of the convolutions and matrix products the plugin runs on integers, as "21 of 22"."""
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    layers = [fact for fact in facts if "layerType" in fact and fact["layerType"].astype(str) in _LAYERS]
    integer = sum(fact["runtimePrecision"].astype(str) in ("u8", "i8") for fact in layers)
    return f"{integer} of {len(layers)}"
