"""integer model -> QDQ ONNX graph in the forms that ONNX Runtime fuses, and the float network as its baseline.

- Activations are uint8 with rank-0 scale and zero point; weights int8 per output channel without zero point.
- A kernel stands between DequantizeLinear and exactly one QuantizeLinear; ReLU and Clip before it are left out,
  because its saturation does their work.
- Below 8 bits a Clip on the uint8 tensor follows; weights of 4 bits and fewer are stored packed and unpacked when the
  file is loaded (`packing.py`).
- Files of packed weights have short names (`compact.py`).
- Data movement works on the uint8 tensor itself: it is integer by construction. Only SpaceToDepth on the image stands
  before its quantizer, where the codes become the same: ONNX Runtime has it on bytes only in its latest versions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from torch import Tensor

from gdfq_export.compact import compact_names
from gdfq_export.emit_ops import EMIT, float_parameters
from gdfq_export.exact import code_limits, function_table, requantize_table
from gdfq_export.graph import INPUT, OUTPUT, Graph, Node
from gdfq_export.integer import IntegerModel, PixelInput, QLayer, QTensor, constant_tensor
from gdfq_export.onnx_builder import FLOAT, UINT8, OnnxBuilder
from gdfq_export.ops import LAYERS, is_lookup
from gdfq_export.packing import PACKED_BITS, weight_constant
from gdfq_export.plan import CODE_CLIPS, quantized_part

BATCH = "batch"


class _Emitter:
    """The builder together with what each tensor is called so far."""

    def __init__(self, model: IntegerModel) -> None:
        self.model = model
        self.b = OnnxBuilder()
        self.codes: dict[str, str] = {}
        self.floats: dict[str, str] = {}

    def scale_names(self, name: str) -> list[str]:
        """Initializers with the scale and zero point of a tensor; members of a group share them."""
        spec, tensor = self.model.plan.tensors[name], self.model.tensors[name]
        owner = spec.group if spec.factor == 1.0 else name
        return [
            self.b.constant(f"{owner}/scale", tensor.scale, np.float32),
            self.b.constant(f"{owner}/zero_point", tensor.zero_point, np.uint8),
        ]

    def dequantized(self, name: str) -> str:
        """The tensor as floats, through one DequantizeLinear however many readers it has."""
        if name not in self.floats:
            self.floats[name] = self.b.add(
                "DequantizeLinear", [self.codes[name], *self.scale_names(name)], f"{name}.dq"
            )
        return self.floats[name]

    def quantize(self, value: str, name: str) -> None:
        """Codes of a freshly computed tensor, clipped when they have fewer than 8 bits."""
        tensor = self.model.tensors[name]
        codes = self.b.add("QuantizeLinear", [value, *self.scale_names(name)], f"{name}.q")
        self.codes[name] = codes if tensor.qmax == 255 else self.clip(codes, name, 0, tensor.qmax)

    def clip(self, codes: str, name: str, low: int, high: int) -> str:
        """A Clip on uint8 codes."""
        limits = [self.b.constant(f"limits/{value}", value, np.uint8) for value in (low, high)]
        return self.b.add("Clip", [codes, *limits], f"{name}.clip")

    def layer_parameters(self, node: Node, layer: QLayer, source: QTensor, source_scale: str) -> dict[str, str]:
        """Dequantized weight and bias of a layer; `source_scale` is the initializer with the scale of `source`."""
        b, name = self.b, node.name
        weight = weight_constant(b, name, layer.q_weight, layer.bits)
        scales = [b.constant(f"{name}/weight_scale", layer.scale, np.float32)]
        if node.op == "linear":  # ONNX Runtime fuses Gemm only where the weight's zero point is written down
            scales.append(b.constant(f"{name}/weight_zero_point", np.zeros(len(layer.scale)), np.int8))
        bias = b.constant(f"{name}/bias", layer.q_bias, np.int32)
        if layer.bits <= PACKED_BITS:  # computed on loading: a small file has no room for it
            bias_scale = b.add("Mul", [source_scale, scales[0]], f"{name}.bias_scale")
        else:
            bias_scale = b.constant(f"{name}/bias_scale", (source.scale * layer.scale).astype(np.float32), np.float32)
        return {
            "weight": b.add("DequantizeLinear", [weight, *scales], f"{name}.weight", axis=0),
            "bias": b.add("DequantizeLinear", [bias, bias_scale], f"{name}.bias", axis=0),
        }

    def constant_operand(self, node: Node) -> str:
        """The constant of `add_scalar` behind a DequantizeLinear."""
        tensor = constant_tensor(node.attributes["value"])
        code = 255 if node.attributes["value"] >= 0 else 0
        names = [
            self.b.constant(f"{node.name}/code", code, np.uint8),
            self.b.constant(f"{node.name}/code_scale", tensor.scale, np.float32),
            self.b.constant(f"{node.name}/code_zero_point", tensor.zero_point, np.uint8),
        ]
        return self.b.add("DequantizeLinear", names, f"{node.name}.constant")

    def float_input(self) -> None:
        """Codes of the image, or of what moves its pixels before anything else reads them."""
        value = name = INPUT
        readers = self.model.graph.users()[INPUT]
        if [node.op for node in readers] == ["space_to_depth"]:
            name = readers[0].name
            value = EMIT["space_to_depth"](self.b, readers[0], [INPUT], name, {})
        self.quantize(value, name)

    def bytes_input(self, pixels: PixelInput) -> None:
        """Bytes (N, H, W, C) to codes of the normalised image, by one depthwise integer layer."""
        moved = self.b.add("Transpose", [INPUT], f"{INPUT}.nchw", perm=[0, 3, 1, 2])
        names = [
            self.b.constant("bytes/scale", pixels.source.scale, np.float32),
            self.b.constant("bytes/zero_point", pixels.source.zero_point, np.uint8),
        ]
        value = self.b.add("DequantizeLinear", [moved, *names], f"{INPUT}.pixels")
        held = self.layer_parameters(pixels.node, pixels.layer, pixels.source, names[0])
        self.quantize(EMIT["conv"](self.b, pixels.node, [value], pixels.node.name, held), INPUT)

    def movement(self, node: Node, source: QTensor) -> str:
        """Data movement on the codes themselves."""
        codes = [self.codes[name] for name in node.inputs]
        if node.op == "mul_scalar":
            return codes[0]
        if node.op in CODE_CLIPS:
            return self.clip(codes[0], node.name, *code_limits(node, self.model.tensors[node.name]))
        held = {}
        if node.op == "pad":
            code = np.clip(np.rint(node.attributes["value"] / source.scale) + source.zero_point, 0, source.qmax)
            held["value"] = self.b.constant(f"{node.name}/value", code, np.uint8)
        if node.op == "pad_channels":
            held["value"] = self.b.constant(f"{node.name}/value", source.zero_point, np.uint8)
        return EMIT[node.op](self.b, node, codes, f"{node.name}.q", held)

    def look_up(self, node: Node, name: str) -> str:
        """Codes of any function of one number: the code is the index into a table of codes."""
        source, result = (self.model.tensors[tensor] for tensor in (node.inputs[0], name))
        return self.read_table(function_table(node, source, result), node.inputs[0], node.name, f"{name}.q")

    def read_table(self, table: Tensor, source: str, name: str, result: str) -> str:
        """table[code] for each code of the tensor `source`."""
        held = self.b.constant(f"{name}/table", table.numpy(), np.uint8)
        index = self.b.add("Cast", [self.codes[source]], f"{name}.index", to=TensorProto.INT32)
        return self.b.add("Gather", [held, index], result, axis=0)

    def maximum(self, node: Node, name: str) -> str:
        """The greater of tensors on different grids, behind a table that brings each to the result's."""
        operands = []
        for index, source in enumerate(node.inputs):
            table = requantize_table(self.model.tensors[source], self.model.tensors[name])
            part = f"{node.name}.operand{index}"
            operands.append(self.read_table(table, source, part, part))
        return self.b.add("Max", operands, f"{name}.q")

    def kernel(self, node: Node) -> str:
        """A computing operation on dequantized inputs; its float result is read by one QuantizeLinear."""
        if node.op in LAYERS:
            source = node.inputs[0]
            scale = self.scale_names(source)[0]
            held = self.layer_parameters(node, self.model.layers[node.name], self.model.tensors[source], scale)
        elif node.op == "add_scalar":
            held = {"value": self.constant_operand(node)}
        else:
            held = float_parameters(self.b, self.model.graph, node)
        inputs = [self.dequantized(name) for name in node.inputs]
        return EMIT[node.op](self.b, node, inputs, node.name, held)


def onnx_from_integer_model(model: IntegerModel) -> onnx.ModelProto:
    """The QDQ graph with a dynamic batch."""
    return onnx_with_names(model)[0]


def onnx_with_names(model: IntegerModel) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The QDQ graph, and where its names are short, what stands for which name."""
    emitter, graph = _Emitter(model), model.graph
    nodes, last = quantized_part(graph)
    result = ""
    for node in nodes:
        if node.op == INPUT and model.pixels is not None:
            emitter.bytes_input(model.pixels)
        elif node.op == INPUT:
            emitter.float_input()
        elif model.is_absorbed(node) or node.name in emitter.codes:
            continue
        elif node.op == "constant":
            emitter.codes[node.name] = _constant_codes(emitter, node)
        elif model.moves_codes(node.name):
            emitter.codes[node.name] = emitter.movement(node, model.tensors[node.inputs[0]])
        elif is_lookup(node):
            name = model.plan.absorbed.get(node.name, node.name)
            emitter.codes[name] = emitter.look_up(node, name)
        elif node.op == "max":
            name = model.plan.absorbed.get(node.name, node.name)
            emitter.codes[name] = emitter.maximum(node, name)
        else:
            result = emitter.kernel(node)
            name = model.plan.absorbed.get(node.name, node.name)
            if name in model.tensors:
                emitter.quantize(result, name)
    value = emitter.dequantized(last) if last in model.tensors else result
    channels, height, width = graph.input_shape
    bytes_in: tuple[str, int, Sequence[int | str]] = (INPUT, UINT8, [BATCH, height, width, channels])
    proto = _finish(emitter.b, graph, nodes, value, "integer", bytes_in if model.pixels else None)
    if any(layer.bits <= PACKED_BITS for layer in model.layers.values()):
        return proto, compact_names(proto)
    return proto, {}


def _constant_codes(emitter: _Emitter, node: Node) -> str:
    tensor = emitter.model.tensors[node.name]
    value = emitter.model.graph.parameters[node.parameters["value"]].detach().cpu().numpy()
    codes = np.clip(np.rint(value / tensor.scale) + tensor.zero_point, 0, tensor.qmax)
    return emitter.b.constant(f"{node.name}/codes", codes, np.uint8)


def float_onnx_from_graph(graph: Graph) -> onnx.ModelProto:
    """The float network itself, emitted by the same rules."""
    b, names = OnnxBuilder(), {INPUT: INPUT}
    nodes, last = quantized_part(graph)
    for node in nodes:
        if node.op == INPUT:
            continue
        if node.op == "constant":
            names[node.name] = b.constant(f"{node.name}/value", _array(graph, node), np.float32)
            continue
        inputs = [names[name] for name in node.inputs]
        names[node.name] = EMIT[node.op](b, node, inputs, node.name, float_parameters(b, graph, node))
    return _finish(b, graph, nodes, names[last], "float")


def _array(graph: Graph, node: Node) -> npt.NDArray[np.float32]:
    value: npt.NDArray[np.float32] = graph.parameters[node.parameters["value"]].detach().cpu().numpy()
    return value


def _finish(
    b: OnnxBuilder,
    graph: Graph,
    nodes: Sequence[Node],
    value: str,
    name: str,
    source: tuple[str, int, Sequence[int | str]] | None = None,
) -> onnx.ModelProto:
    """Adds what stays in float behind the logits and names the output."""
    done = {node.name for node in nodes}
    for node in graph.nodes:
        if node.name not in done:
            value = EMIT[node.op](b, node, [value], node.name, {})
    for proto in b.nodes:
        for index, output in enumerate(proto.output):
            if output == value:
                proto.output[index] = OUTPUT
        for index, read in enumerate(proto.input):
            if read == value:
                proto.input[index] = OUTPUT
    shape = graph[graph.output].shape
    return b.model(name, source or (INPUT, FLOAT, [BATCH, *graph.input_shape]), (OUTPUT, FLOAT, [BATCH, *shape]))
