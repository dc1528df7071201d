"""onnx's own ReferenceEvaluator: each operator alone, in numpy, as the specification of the operator says."""

from __future__ import annotations

import importlib

import numpy as np
import onnx

from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.graph import Array
from gdfq_export.runtime_checks.runtimes.answer import Answer, joined


def run(model: onnx.ModelProto, feeds: Array) -> Answer:
    """Every image alone; nothing is fused, so each operator rounds by itself."""
    reference = importlib.import_module("onnx.reference")
    input_name, names = model.graph.input[0].name, [value.name for value in model.graph.output]
    try:
        evaluator = reference.ReferenceEvaluator(model)
        parts = []
        for feed in feeds:
            found = evaluator.run(names, {input_name: feed[None]})
            parts.append({name: np.asarray(value) for name, value in zip(names, found, strict=True)})
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:  # what its operators raise
        text = f"onnx's ReferenceEvaluator cannot run the model: {' '.join(str(error).split())[:300]}"
        raise UnsupportedGraphError(text) from error
    return Answer(str(onnx.__version__), "one operator at a time", joined(parts))
