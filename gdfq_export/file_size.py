"""How large a file will be, before its layers have their widths.

    bytes of the file = fixed + sum over layers of (bytes of the weights + what unpacking them adds at that width)

Read off files in which all layers have the same width. A file with a packed layer has short names throughout
(`compact.py`); where all layers are wide, long names come on top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gdfq_export.emit import onnx_with_names
from gdfq_export.exact import IntegerProgram
from gdfq_export.integer import IntegerModel, QLayer
from gdfq_export.packing import PACKED_BITS, weight_bytes
from gdfq_export.plan import MAX_BITS
from gdfq_export.provenance import golden_vectors, names_fact, stamp

FACTS = 3000  # of the metadata that says how the file was made, and of bytes as input
FACTS_PER_LAYER = 32


@dataclass(frozen=True)
class FileSize:
    """What stands beside the weights: for the whole file, for each layer of a width, and for long names."""

    fixed: int
    each: Mapping[int, int]
    long_names: int

    def beside(self, widths: Collection[int]) -> int:
        """What does not depend on which layer has which of the widths."""
        return self.fixed + (self.long_names if min(widths) > PACKED_BITS else 0)


def bytes_beside_weights(model: IntegerModel, widths: Collection[int], images: Tensor) -> FileSize:
    """Bounds from above, a few kilobytes beyond what it will be; `images` are those of the golden vectors."""
    golden, count = golden_vectors(IntegerProgram(model).eval(), images), len(model.plan.weights)
    smallest = min(model.plan.weights, key=lambda name: model.layers[name].q_weight.size)

    def beside(bits: int, packed: Collection[str] = ()) -> int:
        asked = {name: PACKED_BITS if name in packed else bits for name in model.plan.weights}
        layers = {name: _narrowed(model.layers[name], width) for name, width in asked.items()}
        proto, names = onnx_with_names(dataclasses.replace(model, layers={**model.layers, **layers}))
        stamp(proto, names_fact(names), golden)
        weights = sum(weight_bytes(layer.q_weight.size, layer.bits) for layer in layers.values())
        return len(proto.SerializeToString()) - weights

    short = {bits: beside(bits, [smallest] if bits > PACKED_BITS else []) for bits in widths}
    least = min(short.values())
    each = {bits: -(-(size - least) // count) for bits, size in short.items()}
    long_names = max(beside(MAX_BITS) - least - count * each.get(MAX_BITS, 0), 0)
    return FileSize(least + FACTS + FACTS_PER_LAYER * count, each, long_names)


def _narrowed(layer: QLayer, bits: int) -> QLayer:
    """The layer with another width; only its size matters here."""
    largest = (1 << (bits - 1)) - 1
    return dataclasses.replace(layer, q_weight=np.clip(layer.q_weight, -largest, largest), bits=bits)
