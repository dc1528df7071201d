"""How large a file will be, before its weights have their widths: what stands beside the weights, measured once.

    bytes of the file = bytes of the weights at their widths + everything else

Everything else (nodes, scales, biases, metadata) hardly depends on the widths, so it is read off a file with the
narrowest ones, which has the most nodes.
"""

from __future__ import annotations

from torch import Tensor

from gdfq_export.emit import onnx_from_integer_model, weight_bytes
from gdfq_export.exact import IntegerProgram
from gdfq_export.integer import IntegerModel
from gdfq_export.provenance import golden_vectors, stamp

FACTS = 3000  # of the metadata that says how the file was made, and of bytes as input
FACTS_PER_LAYER = 32


def bytes_beside_weights(model: IntegerModel, images: Tensor) -> int:
    """An upper bound, a few kilobytes above what it will be; `images` are those of the golden vectors."""
    proto = onnx_from_integer_model(model)
    stamp(proto, {}, golden_vectors(IntegerProgram(model).eval(), images))
    weights = sum(weight_bytes(layer.q_weight.size, layer.bits) for layer in model.layers.values())
    return len(proto.SerializeToString()) - weights + FACTS + FACTS_PER_LAYER * len(model.layers)
