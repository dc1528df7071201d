"""What each operation of the vocabulary computes in PyTorch.

Every function takes the node, its input tensors and its parameters by role. The vocabulary is closed: an operation
that is not here never gets into a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gdfq_export.graph import Node

MOST_TERMS = 16  # of a sum over an axis, which is taken apart
SMALLEST_DIVISOR = 1e-6  # the code of zero has a reciprocal too, which nothing should read
Kernel = Callable[[Node, Sequence[Tensor], Mapping[str, Tensor]], Tensor]


def torch_padding(pads: Sequence[int]) -> list[int]:
    """ONNX order (begin of each axis, then end of each axis) -> F.pad order (last axis first, begin and end)."""
    rank = len(pads) // 2
    return [value for axis in reversed(range(rank)) for value in (pads[axis], pads[rank + axis])]


def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution of any rank with ONNX-style padding, symmetric or not."""
    a = node.attributes
    rank = len(a["stride"])
    begin, end = list(a["pads"][:rank]), list(a["pads"][rank:])
    if begin != end:
        x, begin = F.pad(x, torch_padding(a["pads"])), [0] * rank
    window = (a["stride"], begin, a["dilation"], a["groups"])
    if x.requires_grad and not weight.requires_grad and (bias is None or not bias.requires_grad):
        return torch.as_tensor(_FrozenConvolution.apply(x, weight, bias, window))  # type: ignore[no-untyped-call]
    return _FUNCTIONS[rank](x, weight, bias, *window)


_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose weights nothing trains: its gradient needs the input's form, and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: tuple[Any, ...]) -> Tensor:
        """`window`: stride, padding, dilation, groups."""
        y = _FUNCTIONS[weight.ndim - 2](x, weight, bias, *window)
        ctx.save_for_backward(weight.to(y.dtype))  # which autocast may have changed
        ctx.window, ctx.form, ctx.dtype = window, (x.shape, x.stride()), x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Of x alone."""
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        stride, padding, dilation, groups = ctx.window
        like = gradient.new_empty_strided(*ctx.form)  # whose values nobody reads
        no_output_padding = (False, [0] * len(padding))
        found = torch.ops.aten.convolution_backward(
            *(gradient, like, weight, None, stride, padding, dilation, *no_output_padding, groups),
            (True, False, False),
        )
        return found[0].to(ctx.dtype), None, None, None


def max_pool(node: Node, x: Tensor, fill: float) -> Tensor:
    """Max pooling with ONNX-style padding; `fill` is below every value that x can take."""
    a = node.attributes
    if any(a["pads"]):
        x = F.pad(x, torch_padding(a["pads"]), value=fill)
    return F.max_pool2d(x, a["kernel"], a["stride"], 0, a["dilation"])


def avg_pool(node: Node, x: Tensor) -> Tensor:
    """Average pooling with symmetric padding."""
    a = node.attributes
    rank = len(a["kernel"])
    return F.avg_pool2d(x, a["kernel"], a["stride"], a["pads"][:rank], a["ceil"], a["count_include_pad"])


def take_slice(node: Node, x: Tensor) -> Tensor:
    """x[start:end:step] along one axis."""
    a = node.attributes
    index: list[slice] = [slice(None)] * x.ndim
    index[a["axis"]] = slice(a["start"], a["end"], a["step"])
    return x[tuple(index)]


def shuffle_channels(node: Node, x: Tensor) -> Tensor:
    """Channel shuffle: view as (groups, C / groups), transpose, flatten."""
    g = node.attributes["groups"]
    n, c, h, w = x.shape
    return x.view(n, g, c // g, h, w).transpose(1, 2).reshape(n, c, h, w)


def stack_squares(node: Node, x: Tensor) -> Tensor:
    """Squares of pixels into channels, in ONNX's order: row, column, channel."""
    b = node.attributes["block"]
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


class _BatchNorm(torch.autograd.Function):
    """Batch norm with stored statistics that nothing trains: the gradient is one pass over memory instead of three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, node: Node, p: Mapping[str, Tensor]) -> Tensor:
        """`p` are its parameters by role."""
        eps, weight = node.attributes["eps"], p.get("weight")
        ctx.slope = torch.rsqrt(p["variance"] + eps) if weight is None else weight * torch.rsqrt(p["variance"] + eps)
        return F.batch_norm(x, p["mean"], p["variance"], weight, p.get("bias"), False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of x alone."""
        (gradient,) = gradients
        return gradient * ctx.slope.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 2)), None, None


def _batch_norm(node: Node, x: Sequence[Tensor], p: Mapping[str, Tensor]) -> Tensor:
    return torch.as_tensor(_BatchNorm.apply(x[0], node, p))  # type: ignore[no-untyped-call]


KERNELS: dict[str, Kernel] = {
    "conv": lambda n, x, p: convolve(n, x[0], p["weight"], p.get("bias")),
    "linear": lambda n, x, p: F.linear(x[0], p["weight"], p.get("bias")),
    "batch_norm": _batch_norm,
    "constant": lambda n, x, p: p["value"],
    # pointwise
    "relu": lambda n, x, p: F.relu(x[0]),
    "clip": lambda n, x, p: F.hardtanh(x[0], n.attributes["low"], n.attributes["high"]),  # its gradient needs no mask
    "leaky_relu": lambda n, x, p: F.leaky_relu(x[0], n.attributes["slope"]),
    "exp": lambda n, x, p: torch.exp(x[0]),
    "reciprocal": lambda n, x, p: x[0].clamp_min(SMALLEST_DIVISOR).reciprocal(),
    "elu": lambda n, x, p: F.elu(x[0], n.attributes["alpha"]),
    "sigmoid": lambda n, x, p: torch.sigmoid(x[0]),
    "tanh": lambda n, x, p: torch.tanh(x[0]),
    "mish": lambda n, x, p: F.mish(x[0]),
    "softplus": lambda n, x, p: F.softplus(x[0], n.attributes["beta"]),
    "gelu": lambda n, x, p: F.gelu(x[0], approximate=n.attributes["approximate"]),
    "hard_sigmoid": lambda n, x, p: F.hardsigmoid(x[0]),
    "hard_swish": lambda n, x, p: F.hardswish(x[0]),
    "add_scalar": lambda n, x, p: x[0] + n.attributes["value"],
    "rsub_scalar": lambda n, x, p: n.attributes["value"] - x[0],
    "mul_scalar": lambda n, x, p: x[0] * n.attributes["value"],
    "instance_norm": lambda n, x, p: F.instance_norm(
        x[0], weight=p.get("weight"), bias=p.get("bias"), eps=n.attributes["eps"]
    ),
    # two tensors
    "add": lambda n, x, p: x[0] + x[1],
    "sub": lambda n, x, p: x[0] - x[1],
    "mul": lambda n, x, p: x[0] * x[1],
    "div": lambda n, x, p: x[0] / x[1],
    "max": lambda n, x, p: torch.maximum(x[0], x[1]),
    # pooling
    "max_pool": lambda n, x, p: max_pool(n, x[0], float("-inf")),
    "avg_pool": lambda n, x, p: avg_pool(n, x[0]),
    "global_avg_pool": lambda n, x, p: x[0].mean(tuple(range(2, x[0].ndim)), keepdim=True),
    # data movement
    "concat": lambda n, x, p: torch.cat(list(x), n.attributes["axis"]),
    "slice": lambda n, x, p: take_slice(n, x[0]),
    "pad": lambda n, x, p: F.pad(x[0], torch_padding(n.attributes["pads"]), value=n.attributes["value"]),
    "pad_channels": lambda n, x, p: F.pad(x[0], (0, 0, 0, 0, 0, n.attributes["count"])),
    "space_to_depth": lambda n, x, p: stack_squares(n, x[0]),
    "reshape": lambda n, x, p: x[0].reshape(x[0].shape[0], *n.shape),
    "transpose": lambda n, x, p: x[0].permute(n.attributes["axes"]),
    "upsample": lambda n, x, p: F.interpolate(x[0], scale_factor=n.attributes["scale"], mode="nearest"),
    "channel_shuffle": lambda n, x, p: shuffle_channels(n, x[0]),
    "gather": lambda n, x, p: x[0].index_select(
        n.attributes["axis"], torch.tensor(n.attributes["order"], device=x[0].device)
    ),
    "expand": lambda n, x, p: x[0].expand(x[0].shape[0], *n.shape),
    "tile": lambda n, x, p: x[0].repeat(1, *n.attributes["repeats"]),
    "reduce_max": lambda n, x, p: x[0].amax(n.attributes["axes"], n.attributes["keep"]),
    "softmax": lambda n, x, p: F.softmax(x[0], n.attributes["axis"]),
    "log_softmax": lambda n, x, p: F.log_softmax(x[0], n.attributes["axis"]),
}

MOVEMENT = frozenset(
    {
        *("concat", "slice", "pad", "reshape", "transpose", "upsample", "channel_shuffle", "gather", "expand", "tile"),
        *("max_pool", "reduce_max", "pad_channels", "space_to_depth"),
    }
)
"""Operations that only move or select codes, so that input and output share one scale."""

LAYERS = frozenset({"conv", "linear"})
"""Operations with integer weights."""

LOOKUPS = frozenset({"tanh", "elu", "gelu", "mish", "softplus", "exp", "reciprocal", "rsub_scalar"})
"""Functions of one number without an integer kernel: a table of codes, and a Gather that reads it."""

TABLE = "table"
"""Attribute of another function of one number that is such a table too, because its kernel does not take its scales."""

FUNCTIONS = LOOKUPS | {"leaky_relu", "sigmoid", "hard_sigmoid", "hard_swish"}
"""Functions of one number, without parameters."""

FLOAT_ONLY = frozenset({"instance_norm", "div"})
"""Operations without an exact integer form: refused unless the user lets them stay float."""

STAND_IN = "unsupported"
"""What stands for an operator that cannot be, until all of them are known: no graph that is used has one."""

ENDINGS = frozenset({"softmax", "log_softmax"})
"""Operations that stay in float after the last dequantize."""


def is_lookup(node: Node) -> bool:
    """Whether the codes of a node are looked up in a table."""
    return node.op in LOOKUPS or TABLE in node.attributes
