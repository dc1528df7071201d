"""One operation of the vocabulary -> its ONNX nodes, on floats or (for data movement) on codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gdfq_export.graph import Graph, Node
from gdfq_export.onnx_builder import OnnxBuilder

Emit = Callable[[OnnxBuilder, Node, Sequence[str], str, Mapping[str, str]], str]


def _conv(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    a = node.attributes
    inputs = [x[0], p["weight"], *([p["bias"]] if "bias" in p else [])]
    return b.add("Conv", inputs, out, strides=a["stride"], pads=a["pads"], dilations=a["dilation"], group=a["groups"])


def _linear(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    inputs = [x[0], p["weight"], *([p["bias"]] if "bias" in p else [])]
    return b.add("Gemm", inputs, out, transB=1)


def _clip(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    limits = []
    for key in ("low", "high"):
        value = node.attributes[key]
        limits.append(b.constant(f"{node.name}/{key}", value, np.float32) if math.isfinite(value) else "")
    return b.add("Clip", [x[0], *limits], out)


def _max_pool(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    a = node.attributes
    return b.add(
        "MaxPool", x, out, kernel_shape=a["kernel"], strides=a["stride"], pads=a["pads"], dilations=a["dilation"]
    )


def _avg_pool(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    a = node.attributes
    return b.add(
        "AveragePool",
        x,
        out,
        kernel_shape=a["kernel"],
        strides=a["stride"],
        pads=a["pads"],
        ceil_mode=int(a["ceil"]),
        count_include_pad=int(a["count_include_pad"]),
    )


def _slice(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    a = node.attributes
    names = [
        b.constant(f"{node.name}/{key}", [value], np.int64)
        for key, value in (("start", a["start"]), ("end", a["end"]), ("axis", a["axis"]), ("step", a["step"]))
    ]
    return b.add("Slice", [x[0], *names], out)


def _pad(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    pads = node.attributes["pads"]
    rank = len(pads) // 2
    full = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
    value = p.get("value") or b.constant(f"{node.name}/value", node.attributes["value"], np.float32)
    return b.add("Pad", [x[0], b.constant(f"{node.name}/pads", full, np.int64), value], out)


def _pad_channels(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    pads = b.constant(f"{node.name}/pads", [0, 0, 0, 0, 0, node.attributes["count"], 0, 0], np.int64)
    value = p.get("value") or b.constant(f"{node.name}/value", 0.0, np.float32)
    return b.add("Pad", [x[0], pads, value], out)


def _reshape(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    return b.add("Reshape", [x[0], b.constant(f"{node.name}/shape", [-1, *node.shape], np.int64)], out)


def _upsample(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    scales = b.constant(f"{node.name}/scales", [1, 1, *node.attributes["scale"]], np.float32)
    return b.add(
        "Resize",
        [x[0], "", scales],
        out,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _channel_shuffle(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    channels, groups = node.shape[0], node.attributes["groups"]
    order = np.arange(channels).reshape(groups, channels // groups).T.reshape(-1)
    # The same for all shuffles of its kind; the runtime's Gather reads 32-bit indices as they are.
    return b.add("Gather", [x[0], b.constant(f"shuffle/{channels}in{groups}", order, np.int32)], out, axis=1)


def _gather(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    order = b.constant(f"{node.name}/order", node.attributes["order"], np.int64)
    return b.add("Gather", [x[0], order], out, axis=node.attributes["axis"])


def _expand(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    return b.add("Expand", [x[0], b.constant(f"{node.name}/shape", [1, *node.shape], np.int64)], out)


def _tile(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    repeats = b.constant(f"{node.name}/repeats", [1, *node.attributes["repeats"]], np.int64)
    return b.add("Tile", [x[0], repeats], out)


def _reduce_max(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    axes = b.constant(f"{node.name}/axes", node.attributes["axes"], np.int64)
    return b.add("ReduceMax", [x[0], axes], out, keepdims=int(node.attributes["keep"]))


def _scalar(op: str) -> Emit:
    def emit(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
        value = p.get("value") or b.constant(f"{node.name}/value", node.attributes["value"], np.float32)
        return b.add(op, [x[0], value], out)

    return emit


def _reversed_scalar(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    return b.add("Sub", [b.constant(f"{node.name}/value", node.attributes["value"], np.float32), x[0]], out)


def _mish(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    """x tanh(softplus(x)): the runtime has no kernel for the whole."""
    gate = b.add("Tanh", [b.add("Softplus", x, f"{out}.softplus")], f"{out}.gate")
    return b.add("Mul", [x[0], gate], out)


def _softplus(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    beta = node.attributes["beta"]
    if beta == 1.0:
        return b.add("Softplus", x, out)
    factor = b.constant(f"{node.name}/beta", beta, np.float32)
    value = b.add("Softplus", [b.add("Mul", [x[0], factor], f"{out}.scaled")], f"{out}.softplus")
    return b.add("Div", [value, factor], out)


def _batch_norm(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    inputs = [x[0], p["weight"], p["bias"], p["mean"], p["variance"]]
    return b.add("BatchNormalization", inputs, out, epsilon=node.attributes["eps"])


def _instance_norm(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
    channels = node.shape[0]
    weight = p.get("weight") or b.constant(f"{node.name}/weight", np.ones(channels), np.float32)
    bias = p.get("bias") or b.constant(f"{node.name}/bias", np.zeros(channels), np.float32)
    return b.add("InstanceNormalization", [x[0], weight, bias], out, epsilon=node.attributes["eps"])


def _same(op: str, **attributes: str) -> Emit:
    """An operation whose ONNX form has the same inputs; attributes are theirs=ours."""

    def emit(b: OnnxBuilder, node: Node, x: Sequence[str], out: str, p: Mapping[str, str]) -> str:
        return b.add(op, x, out, **{theirs: node.attributes[ours] for theirs, ours in attributes.items()})

    return emit


EMIT: dict[str, Emit] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "relu": _same("Relu"),
    "clip": _clip,
    "leaky_relu": _same("LeakyRelu", alpha="slope"),
    "elu": _same("Elu", alpha="alpha"),
    "sigmoid": _same("Sigmoid"),
    "tanh": _same("Tanh"),
    "exp": _same("Exp"),
    "reciprocal": _same("Reciprocal"),
    "mish": _mish,
    "softplus": _softplus,
    "gelu": _same("Gelu", approximate="approximate"),
    "add": _same("Add"),
    "sub": _same("Sub"),
    "mul": _same("Mul"),
    "div": _same("Div"),
    "max": _same("Max"),
    "add_scalar": _scalar("Add"),
    "mul_scalar": _scalar("Mul"),
    "rsub_scalar": _reversed_scalar,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _same("GlobalAveragePool"),
    "concat": _same("Concat", axis="axis"),
    "slice": _slice,
    "pad": _pad,
    "pad_channels": _pad_channels,
    "space_to_depth": _same("SpaceToDepth", blocksize="block"),
    "reshape": _reshape,
    "transpose": _same("Transpose", perm="axes"),
    "upsample": _upsample,
    "channel_shuffle": _channel_shuffle,
    "gather": _gather,
    "expand": _expand,
    "tile": _tile,
    "reduce_max": _reduce_max,
    "softmax": _same("Softmax", axis="axis"),
    "log_softmax": _same("LogSoftmax", axis="axis"),
}


def float_parameters(b: OnnxBuilder, graph: Graph, node: Node) -> dict[str, str]:
    """A node's float parameters as initializers, by role."""
    held = {}
    for role, key in node.parameters.items():
        value = graph.parameters[key].detach().cpu().numpy()
        held[role] = b.constant(f"{node.name}/{role}", value, np.float32)
    return held
