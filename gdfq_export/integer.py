"""The integer model: everything that the ONNX file will hold, as plain numpy values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gdfq_export.graph import Graph, Node
from gdfq_export.plan import Plan
from gdfq_export.quantizers import Affine

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QTensor:
    """An activation tensor: codes 0..qmax in a uint8."""

    scale: np.float32
    zero_point: int
    qmax: int


@dataclass(frozen=True, eq=False)
class QLayer:
    """A convolution or linear layer on integers."""

    q_weight: Int8
    scale: Float32  # (O,)
    q_bias: Int32  # (O,), scale = input's scale * scale
    bits: int


@dataclass(frozen=True, eq=False)
class PixelInput:
    """Bytes of an image in, codes of the normalised image out: a depthwise layer with one weight a channel.

    (byte / 255 - mean) / std  =  (1 / std) * byte / 255  +  (-mean / std)
    """

    node: Node
    layer: QLayer
    source: QTensor  # of the bytes: scale 1/255, zero point 0


@dataclass(frozen=True)
class TargetReport:
    """What the target cost: coarser weights from the start, and what differs from what training chose."""

    target: str
    channels_coarser: int = 0  # larger scales for their weights, before anything is learned
    channels_total: int = 0
    weights_changed: int = 0  # after everything is learned
    weights_total: int = 0
    scales_nudged: int = 0
    largest_nudge: float = 0.0


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """A graph with its integer layers and the scale and zero point of every quantized tensor."""

    graph: Graph
    plan: Plan
    tensors: Mapping[str, QTensor]
    layers: Mapping[str, QLayer]
    report: TargetReport
    pixels: PixelInput | None = None  # where the input is bytes (N, H, W, C)

    def is_absorbed(self, node: Node) -> bool:
        """Whether this activation is done by the saturation of its own quantizer."""
        return bool(node.inputs) and self.plan.absorbed.get(node.inputs[0]) == node.name

    def moves_codes(self, name: str) -> bool:
        """Whether a tensor's codes are taken over from its inputs unchanged."""
        return name in self.tensors and name not in self.plan.sources


def tensors_from_scales(
    plan: Plan, affines: Mapping[str, Affine], scales: Mapping[str, np.float32]
) -> dict[str, QTensor]:
    """Every tensor with its group's zero point, and its group's scale times its factor."""
    tensors = {}
    for name, spec in plan.tensors.items():
        scale = np.float32(scales[spec.group] * np.float32(spec.factor))
        tensors[name] = QTensor(scale, affines[spec.group].zero_point, spec.qmax)
    return tensors


def operands_of(node: Node, tensors: Mapping[str, QTensor]) -> tuple[QTensor, QTensor] | None:
    """The two operands of a sum or product; the constant of `add_scalar` is one code with a scale of its own."""
    if node.op == "add_scalar":
        return tensors[node.inputs[0]], constant_tensor(node.attributes["value"])
    if any(name not in tensors for name in node.inputs):
        return None
    return tensors[node.inputs[0]], tensors[node.inputs[1]]


def constant_tensor(value: float) -> QTensor:
    """A constant c as a code of its own: c = (255 - 0) * c/255, or (0 - 255) * |c|/255 for a negative c."""
    return QTensor(np.float32(abs(value) / 255), 0 if value >= 0 else 255, 255)
