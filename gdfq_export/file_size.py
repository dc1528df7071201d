"""How large a file will be, before its layers have their widths.

    bytes of the file = fixed + sum over layers of (bytes of the weights + what unpacking them adds at that width)

Read off files in which all layers have the same width: for those the sum is exact, and for a mixture it is near.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.integer import IntegerModel, QLayer
from gdfq_export.packing import weight_bytes
from gdfq_export.provenance import golden_vectors, stamp

FACTS = 3000  # of the metadata that says how the file was made, and of bytes as input
FACTS_PER_LAYER = 32


@dataclass(frozen=True)
class FileSize:
    """What stands beside the weights: for the whole file, and for each layer of a width."""

    fixed: int
    each: dict[int, int]


def bytes_beside_weights(model: IntegerModel, widths: Collection[int], images: Tensor) -> FileSize:
    """Bounds from above, a few kilobytes beyond what it will be; `images` are those of the golden vectors."""
    golden, count = golden_vectors(IntegerProgram(model).eval(), images), len(model.layers)
    beside = {}
    for bits in widths:
        uniform = dataclasses.replace(model, layers={name: _narrowed(q, bits) for name, q in model.layers.items()})
        proto = onnx_from_integer_model(uniform)
        stamp(proto, {}, golden)
        weights = sum(weight_bytes(layer.q_weight.size, bits) for layer in uniform.layers.values())
        beside[bits] = len(proto.SerializeToString()) - weights
    least = min(beside.values())
    each = {bits: -(-(size - least) // count) for bits, size in beside.items()}
    return FileSize(least + FACTS + FACTS_PER_LAYER * count, each)


def _narrowed(layer: QLayer, bits: int) -> QLayer:
    """The layer with another width; only its size matters here."""
    largest = (1 << (bits - 1)) - 1
    return dataclasses.replace(layer, q_weight=np.clip(layer.q_weight, -largest, largest), bits=bits)
