"""Builds small QDQ networks by hand, named and sealed with metadata like the files of `quantize`."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from gdfq_export.runtime_checks.hashes import group_hashes, metadata_hashes

OPSET = 21
IR_VERSION = 10


@dataclass(frozen=True)
class Tensor:
    """A dequantized tensor: its float name, the name of its codes, and its scale."""

    name: str
    codes: str
    scale: np.float32


@dataclass
class Builder:
    """Collects nodes and initializers; every method adds one layer and returns its result."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def constant(self, name: str, array: Any, element_type: int | None = None) -> str:
        if element_type is None:
            self.constants[name] = numpy_helper.from_array(np.asarray(array), name)
        else:
            array = np.asarray(array)
            self.constants[name] = helper.make_tensor(name, element_type, array.shape, array.flatten().tolist())
        return name

    def node(self, op: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=name or output, **attributes))
        return output

    def dequantize(self, codes: str, group: str, scale: Any) -> Tensor:
        name = self.node("DequantizeLinear", [codes, f"{group}/scale", f"{group}/zero_point"], f"{codes}.float")
        return Tensor(name, codes, np.float32(scale))

    def quantize(
        self, x: str, group: str, scale: float, zero_point: int = 0, bits: int = 8, dtype: Any = np.uint8
    ) -> Tensor:
        self.constant(f"{group}/scale", np.float32(scale))
        self.constant(f"{group}/zero_point", np.array(zero_point, dtype))
        codes = self.node("QuantizeLinear", [x, f"{group}/scale", f"{group}/zero_point"], f"{group}.codes")
        if bits < 8:
            bounds = {"low": 0, "high": 2**bits - 1}
            names = [self.constant(f"{group}/{name}", np.array(value, dtype)) for name, value in bounds.items()]
            codes = self.node("Clip", [codes, *names], f"{group}.clipped")
        return self.dequantize(codes, group, scale)

    def weight(
        self, group: str, codes: np.ndarray, scale: np.ndarray, axis: int = 0, element_type: int | None = None
    ) -> str:
        name = self.constant(f"{group}/weight", codes if element_type else codes.astype(np.int8), element_type)
        if element_type is not None:
            name = self.node("Cast", [name], f"{group}.weight8", to=TensorProto.INT8)
        self.constant(f"{group}/weight_scale", scale)
        zero_point = self.constant(f"{group}/weight_zero_point", np.zeros(len(scale), np.int8))
        return self.node("DequantizeLinear", [name, f"{group}/weight_scale", zero_point], f"{group}.weight", axis=axis)

    def bias(self, group: str, codes: np.ndarray, scale: np.ndarray) -> str:
        self.constant(f"{group}/bias", codes.astype(np.int32))
        self.constant(f"{group}/bias_scale", scale.astype(np.float32))
        inputs = [f"{group}/bias", f"{group}/bias_scale"]
        return self.node("DequantizeLinear", inputs, f"{group}.bias", axis=0)

    def conv(
        self,
        x: Tensor,
        group: str,
        channels: tuple[int, int],
        kernel: tuple[int, ...] = (3, 3),
        /,
        *,
        scale: float = 1 / 32,
        zero_point: int = 0,
        relu: bool = True,
        largest: int = 60,
        bits: int = 8,
        element_type: int | None = None,
        with_bias: bool = True,
        **attributes: Any,
    ) -> Tensor:
        inputs, outputs = channels
        groups = attributes.get("group", 1)
        shape = (outputs, inputs // groups, *kernel)
        codes = self.rng.integers(-largest, largest + 1, shape)
        codes.flat[0], codes.flat[1] = largest, -largest
        fan = np.prod(shape[1:])
        weight_scale = (self.rng.uniform(0.5, 1.5, outputs) / largest / np.sqrt(fan)).astype(np.float32)
        names = [x.name, self.weight(group, codes, weight_scale, 0, element_type)]
        if with_bias:
            product = x.scale * weight_scale
            names.append(self.bias(group, self.rng.normal(0, 0.3, outputs) / product, product))
        attributes.setdefault("pads", [size // 2 for size in kernel] * 2)
        y = self.node("Conv", names, f"{group}.sum", group, kernel_shape=list(kernel), **attributes)
        if relu:
            y = self.node("Relu", [y], f"{group}.relu")
        return self.quantize(y, group, scale, zero_point, bits)

    def gemm(self, x: Tensor, group: str, channels: tuple[int, int], largest: int = 60) -> str:
        inputs, outputs = channels
        codes = self.rng.integers(-largest, largest + 1, (outputs, inputs))
        weight_scale = self.rng.uniform(0.001, 0.01, outputs).astype(np.float32)
        product = x.scale * weight_scale
        bias = self.bias(group, self.rng.normal(0, 1, outputs) / product, product)
        return self.node("Gemm", [x.name, self.weight(group, codes, weight_scale), bias], "logits", group, transB=1)

    def unary(
        self, op: str, x: Tensor, group: str, scale: float | None = None, zero: int = 0, **attributes: Any
    ) -> Tensor:
        y = self.node(op, [x.name], f"{group}.float_result", group, **attributes)
        return self.quantize(y, group, x.scale if scale is None else scale, zero)

    def binary(self, op: str, a: Tensor, b: Tensor, group: str, scale: float, zero: int = 0) -> Tensor:
        y = self.node(op, [a.name, b.name], f"{group}.float_result", group)
        return self.quantize(y, group, scale, zero)

    def model(self, output: str, shape: tuple[int, ...] = (3, 12, 12), **options: Any) -> onnx.ModelProto:
        """The network from float `input` to `output` (of type options["output_type"], FLOAT by default)."""
        kind = options.get("output_type", TensorProto.FLOAT)
        inputs = [helper.make_tensor_value_info("input", options.get("input_type", TensorProto.FLOAT), ["n", *shape])]
        outputs = [helper.make_tensor_value_info(output, kind, [None] * options.get("output_rank", 2))]
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", options.get("opset", OPSET))])
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model


def small_network(seed: int = 0, bits: int = 8, largest: int = 60) -> onnx.ModelProto:
    """A residual network with a depthwise layer, pools and a classifier: safe on every machine (weights up to 60)."""
    net = Builder(seed)
    x = net.quantize("input", "input_quantizer", 0.02, 128)
    x = net.conv(x, "stem", (3, 8), bits=bits, largest=largest)
    y = net.conv(x, "block.conv1", (8, 8), bits=bits, largest=largest)
    y = net.conv(y, "block.conv2", (8, 8), relu=False, zero_point=120, scale=1 / 64, largest=largest)
    x = net.binary("Add", x, y, "block.add", 0.0613)
    x = net.conv(x, "depthwise", (8, 8), group=8, largest=largest)
    x = net.unary("MaxPool", x, "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.unary("GlobalAveragePool", x, "average", scale=float(x.scale) * 0.7137)
    x = net.unary("Flatten", x, "flatten")
    return net.model(net.gemm(x, "classifier", (8, 10), largest))


def seal(
    model: onnx.ModelProto, shape: tuple[int, ...] = (3, 12, 12), target: str = "portable", **facts: Any
) -> onnx.ModelProto:
    """Writes provenance, hashes and golden vectors as the exporter does (from the contract, for tests)."""
    sealed = onnx.ModelProto()
    sealed.CopyFrom(model)
    del sealed.metadata_props[:]
    codes = np.random.default_rng(7).integers(0, 256, (2, 3, -(-shape[1] // 2), -(-shape[2] // 2))).astype(np.uint8)
    images = np.repeat(np.repeat(codes, 2, axis=2), 2, axis=3)[:, :, : shape[1], : shape[2]]
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale, zero_point = constants[first.input[1]], constants[first.input[2]]
    feed = (images.astype(np.float32) - zero_point.astype(np.float32)) * scale
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    outputs = onnxruntime.InferenceSession(model.SerializeToString(), settings).run(None, {"input": feed})[0]
    provenance = {
        "format": 1,
        "target": target,
        "input": {"format": "float-nchw", "shape": list(shape), "mean": [0.5] * 3, "std": [0.25] * 3},
        "output_step": 0.01,
        "float_ending": False,
        "float_parts": [],
        "fakequant_sha256": None,
        **facts,
    }
    golden = {
        "codes": _pack(codes),
        "shape": list(codes.shape),
        "repeat": 2,
        "outputs": _pack(outputs),
        "output_dtype": str(outputs.dtype),
        "output_shape": list(outputs.shape),
    }
    hashes = {**group_hashes(sealed), **metadata_hashes(provenance)}
    entries = {"gdfq_export": provenance, "gdfq_export.hashes": hashes, "gdfq_export.golden": golden}
    for key, value in entries.items():
        sealed.metadata_props.add(key=key, value=json.dumps(value))
    return sealed


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()
