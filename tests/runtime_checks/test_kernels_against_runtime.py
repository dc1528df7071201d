"""Every kernel of the reference against ONNX Runtime, bit for bit, on graphs of one or a few operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_builder import Builder, small_network

from gdfq_export.runtime_checks.verify import VerifyResult, verify_model

UINT8 = TensorProto.UINT8
Network = Callable[[], onnx.ModelProto]


def verified(model: onnx.ModelProto, folder: Path, samples: int = 9) -> VerifyResult:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return verify_model(path, samples=samples)


def assert_exact(result: VerifyResult) -> None:
    assert result.levels["all"].total.mismatches == 0
    assert result.levels["all"].total.elements > 0
    assert result.same_kernels
    assert result.same_outputs


def convolution(
    shape: tuple[int, ...] = (3, 12, 12),
    channels: tuple[int, int] = (3, 8),
    kernel: tuple[int, ...] = (3, 3),
    **settings: Any,
) -> Network:
    def build() -> onnx.ModelProto:
        net = Builder()
        y = net.conv(net.quantize("input", "in", 0.02, 128), "layer", channels, kernel, **settings)
        return net.model(y.codes, shape, output_type=UINT8, output_rank=len(shape) + 1)

    return build


CONVOLUTIONS = {
    "padded": convolution(),
    "without bias": convolution(with_bias=False),
    "without Relu": convolution(relu=False, zero_point=117),
    "strided": convolution(strides=[2, 2]),
    "dilated": convolution(dilations=[2, 2], pads=[2, 2, 2, 2]),
    "padded unevenly": convolution(pads=[0, 1, 2, 1]),
    "padded automatically": convolution(auto_pad="SAME_UPPER", strides=[2, 2], pads=None),
    "1x1": convolution(kernel=(1, 1)),
    "5x3": convolution(kernel=(5, 3)),
    "grouped": convolution((6, 9, 9), (6, 12), group=3),
    "depthwise": convolution((6, 9, 9), (6, 6), group=6),
    "depthwise with multiplier": convolution((6, 9, 9), (6, 12), group=6),
    "beyond float32's exact integers": convolution((320, 9, 9), (320, 16), largest=64),
    "INT4 weights": convolution(largest=7, element_type=TensorProto.INT4),
    "4-bit activations": convolution(bits=4),
    "1-D": convolution((4, 30), (4, 6), (3,)),
    "3-D": convolution((2, 6, 6, 6), (2, 4), (3, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_exact_and_runs_on_integers(name: str, tmp_path: Path) -> None:
    result = verified(CONVOLUTIONS[name](), tmp_path)
    assert_exact(result)
    assert not result.coverage.float_operators


def unary(op: str, scale: float | None = None, zero: int = 3, rank: int = 4, **attributes: Any) -> Network:
    def build() -> onnx.ModelProto:
        net = Builder()
        x = net.quantize("input", "in", 0.02, 3)
        y = net.unary(op, x, "layer", scale, zero, **attributes)
        return net.model(y.codes, (4, 10, 10), output_type=UINT8, output_rank=rank)

    return build


UNARY = {
    "GlobalAveragePool": unary("GlobalAveragePool", 0.011, 50),
    "AveragePool with padding": unary("AveragePool", 0.013, 0, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool that counts padding": unary(
        "AveragePool", 0.013, 7, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "AveragePool over the whole map": unary("AveragePool", 0.013, 0, kernel_shape=[10, 10]),
    "AveragePool of equal scales": unary("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "MaxPool": unary("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool with ceil_mode": unary("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool with dilation": unary("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
    "LeakyRelu": unary("LeakyRelu", 0.018, 10, alpha=0.1),
    "Sigmoid": unary("Sigmoid", 1 / 256, 0),
    "Softmax over channels": unary("Softmax", 1 / 256, 0, axis=1),
    "Softmax over the last axis": unary("Softmax", 1 / 256, 0, axis=-1),
    "Transpose": unary("Transpose", perm=[0, 2, 3, 1]),
    "Flatten": unary("Flatten", rank=2),
    "DepthToSpace": unary("DepthToSpace", blocksize=2),
    "DepthToSpace, CRD": unary("DepthToSpace", blocksize=2, mode="CRD"),
}


@pytest.mark.parametrize("name", UNARY)
def test_an_operator_on_codes_is_exact_and_runs_on_integers(name: str, tmp_path: Path) -> None:
    result = verified(UNARY[name](), tmp_path)
    assert_exact(result)
    assert not result.coverage.float_operators


@pytest.mark.parametrize("op", ["HardSigmoid", "HardSwish", "Tanh", "Erf", "GlobalMaxPool", "Elu"])
def test_an_operator_without_integer_kernel_is_reported_and_all_behind_it_is_exact(op: str, tmp_path: Path) -> None:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "before", (3, 8))
    x = net.unary(op, x, "island", 1 / 100, 100)
    x = net.conv(x, "after", (8, 4))
    result = verified(net.model(x.codes, output_type=UINT8, output_rank=4), tmp_path)
    assert_exact(result)
    assert op in {operator.op for operator in result.coverage.float_operators}
    assert [item.name for item in result.levels["all"].tensors if item.in_float] == ["island.codes"]


def squeeze_and_excite() -> onnx.ModelProto:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    gate = net.unary("GlobalAveragePool", x, "squeeze", 0.01)
    gate = net.conv(gate, "excite", (8, 8), (1, 1), relu=False, zero_point=100)
    gate = net.unary("Sigmoid", gate, "gate", 1 / 256)
    y = net.binary("Mul", x, gate, "scaled", 0.02)
    y = net.binary("Mul", gate, y, "scaled again", 0.02)
    y = net.binary("Add", gate, y, "shifted", 0.03, 5)
    return net.model(y.codes, output_type=UINT8, output_rank=4)


def concatenation() -> onnx.ModelProto:
    net = Builder()
    x = net.quantize("input", "in", 0.02, 128)
    a, b = net.conv(x, "a", (3, 8)), net.conv(x, "b", (3, 8), relu=False, zero_point=99, scale=0.021)
    joined = net.node("Concat", [a.name, b.name, a.name], "joined", axis=1)
    return net.model(net.quantize(joined, "concat", 0.025, 30).codes, output_type=UINT8, output_rank=4)


def constant_operands() -> onnx.ModelProto:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    net.constant("constant/codes", np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1) * 20)
    net.constant("constant/scale", np.float32(0.01))
    net.constant("constant/zero_point", np.uint8(5))
    constant = net.dequantize("constant/codes", "constant", 0.01)
    y = net.binary("Mul", x, constant, "mul", 0.02)
    y = net.binary("Add", y, constant, "right", 0.03, 9)
    y = net.binary("Add", constant, y, "left", 0.04, 9)
    return net.model(y.codes, output_type=UINT8, output_rank=4)


def channel_shuffle() -> onnx.ModelProto:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    net.constant("order", np.array([0, 4, 1, 5, 2, 6, 3, 7]))
    shuffled = net.node("Gather", [x.name, "order"], "shuffled", axis=1)
    y = net.conv(net.quantize(shuffled, "shuffle", float(x.scale)), "after", (8, 4))
    net.constant("two", np.array([3, 1]))
    net.node("Gather", [y.codes, "two"], "chosen", axis=1)
    return net.model("chosen", output_type=UINT8, output_rank=4)


def split() -> onnx.ModelProto:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    net.constant("sizes", np.array([3, 5]))
    net.nodes.append(helper.make_node("Split", [x.name, "sizes"], ["left", "right"], axis=1, name="split"))
    left, right = (net.quantize(name, f"{name}_half", float(x.scale)) for name in ("left", "right"))
    y = net.binary("Add", net.conv(left, "a", (3, 4)), net.conv(right, "b", (5, 4)), "sum", 0.05)
    return net.model(y.codes, output_type=UINT8, output_rank=4)


def operators_on_integers() -> onnx.ModelProto:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    net.constant("pads", np.array([0, 0, 1, 1, 0, 0, 0, 2]))
    for name, value in {"fill": 0, "most": 200, "least": 7}.items():
        net.constant(name, np.uint8(value))
    codes = net.node("Pad", [x.codes, "pads", "fill"], "padded")
    codes = net.node("Min", [codes, "most"], "limited")
    codes = net.node("Max", [codes, "least"], "raised")
    codes = net.node("MaxPool", [codes], "pooled", kernel_shape=[2, 2])
    y = net.conv(net.dequantize(codes, "conv", x.scale), "after", (8, 4))
    return net.model(y.codes, output_type=UINT8, output_rank=4)


def nearest_resize() -> onnx.ModelProto:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    net.constant("scales", np.array([1, 1, 2, 2], np.float32))
    modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    large = net.node("Resize", [x.name, "", "scales"], "large", mode="nearest", **modes)
    return net.model(net.quantize(large, "resize", float(x.scale)).codes, output_type=UINT8, output_rank=4)


def channels_last_bytes() -> onnx.ModelProto:
    net = Builder()
    net.constant("in/scale", np.float32(1 / 64))
    net.constant("in/zero_point", np.uint8(120))
    codes = net.node("Transpose", ["input"], "channels first", perm=[0, 3, 1, 2])
    y = net.conv(net.dequantize(codes, "in", 1 / 64), "conv", (3, 8))
    return net.model(y.codes, (12, 12, 3), input_type=UINT8, output_type=UINT8, output_rank=4)


def product_of_activations() -> onnx.ModelProto:
    net = Builder()
    x = net.quantize("input", "in", 0.02, 128)
    turned = net.unary("Transpose", x, "turned", None, 128, perm=[0, 1, 3, 2])
    product = net.node("MatMul", [x.name, turned.name], "product")
    return net.model(net.quantize(product, "result", 0.2, 100).codes, output_type=UINT8, output_rank=4)


def reshaped_before_quantization() -> onnx.ModelProto:
    net = Builder()
    y = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    quantizer = next(node for node in net.nodes if node.output[0] == "conv.codes")
    net.constant("shape", np.array([0, 8, -1]))
    reshape = helper.make_node("Reshape", [quantizer.input[0], "shape"], ["reshaped"], name="reshape")
    net.nodes.insert(net.nodes.index(quantizer), reshape)
    quantizer.input[0] = "reshaped"
    return net.model(y.codes, output_type=UINT8, output_rank=3)


def float_bias() -> onnx.ModelProto:
    net = Builder()
    y = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    net.constant("float bias", np.random.default_rng(0).normal(0, 1, 8).astype(np.float32))
    next(node for node in net.nodes if node.op_type == "Conv").input[2] = "float bias"
    net.nodes = [node for node in net.nodes if node.output[0] != "conv.bias"]
    return net.model(y.codes, output_type=UINT8, output_rank=4)


def weights_packed_in_bytes() -> onnx.ModelProto:
    """2-bit codes, four to a byte, unpacked by BitShift, BitwiseAnd, Cast and Sub."""
    net = Builder()
    y = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8), largest=1)
    weight = numpy_helper.to_array(net.constants["conv/weight"])
    unsigned = (weight.reshape(-1, 4) + 2).astype(np.uint8)
    packed = unsigned[:, 0] | unsigned[:, 1] << 2 | unsigned[:, 2] << 4 | unsigned[:, 3] << 6
    net.constant("conv/weight", packed.reshape(-1, 1))
    for name, value in {
        "shifts": np.array([[0, 2, 4, 6]], np.uint8),
        "mask": np.uint8(3),
        "offset": np.int8(2),
        "weight shape": np.array(weight.shape),
    }.items():
        net.constant(name, value)
    use = next(node for node in net.nodes if node.output[0] == "conv.weight")
    steps = [
        helper.make_node("BitShift", ["conv/weight", "shifts"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["signed"], to=TensorProto.INT8),
        helper.make_node("Sub", ["signed", "offset"], ["centred"]),
        helper.make_node("Reshape", ["centred", "weight shape"], ["unpacked"]),
    ]
    net.nodes[net.nodes.index(use) : net.nodes.index(use)] = steps
    use.input[0] = "unpacked"
    return net.model(y.codes, output_type=UINT8, output_rank=4)


COMBINATIONS = [
    squeeze_and_excite,
    concatenation,
    constant_operands,
    channel_shuffle,
    split,
    operators_on_integers,
    nearest_resize,
    channels_last_bytes,
    product_of_activations,
    reshaped_before_quantization,
    float_bias,
    weights_packed_in_bytes,
    small_network,
]


@pytest.mark.parametrize("build", COMBINATIONS, ids=lambda build: build.__name__)
def test_a_combination_is_exact_and_runs_on_integers(build: Network, tmp_path: Path) -> None:
    result = verified(build(), tmp_path)
    assert_exact(result)
    assert not result.coverage.float_operators


@pytest.mark.parametrize("opset", [13, 17, 19, 25])
def test_other_operator_versions_are_exact(opset: int, tmp_path: Path) -> None:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    x = net.unary("GlobalAveragePool", x, "pool", 0.02)
    x = net.unary("Flatten", x, "flat")
    model = net.model(net.gemm(x, "classifier", (8, 5)), opset=opset)
    model.ir_version = 8 if opset < 21 else 13
    assert_exact(verified(model, tmp_path))


@pytest.mark.parametrize("seed", range(6))
def test_whole_networks_are_exact_at_8_and_4_bits(seed: int, tmp_path: Path) -> None:
    assert_exact(verified(small_network(seed, bits=8 if seed % 2 else 4), tmp_path))
