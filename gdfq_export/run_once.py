"""Runs a file in ONNX Runtime before it appears: what a user cannot run is not written."""

from __future__ import annotations

import numpy as np
import onnx

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.sessions import Session, runtime_version

COUNT = 2  # images, so that a fixed batch of one is found too


def run_once(model: onnx.ModelProto, what: str) -> None:
    """Runs `model` in a default session on black images; `what` it is, for the error where that fails."""
    (source,) = model.graph.input
    shape = [dimension.dim_value for dimension in source.type.tensor_type.shape.dim[1:]]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
    try:
        outputs = Session(model, threads=1).run(np.zeros((COUNT, *shape), dtype))
    except CheckError as error:
        raise UnsupportedModelError(
            f"ONNX Runtime {runtime_version()} does not run the {what} of this network, so nothing was written: "
            f"change the part that its message names, or report the network ({error})"
        ) from error
    if not all(np.isfinite(value).all() for value in outputs.values()):
        raise UnsupportedModelError(
            f"the {what} of this network gives outputs that are not finite for a black image, so nothing was written: "
            "look for infinite or very large weights"
        )
