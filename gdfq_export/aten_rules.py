"""What each ATen operator means in our vocabulary: one small rule for each, in `RULES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from gdfq_export.fx_nodes import Arguments, shape_of, unsupported, value_of
from gdfq_export.ops import MOST_TERMS

PLAIN_THRESHOLD = 20  # of softplus, above which it is x to the last bit of a float
Meaning = tuple[str, dict[str, Any]]  # operation and attributes
Rule = Callable[[Arguments], Meaning]


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    """A scalar or short list as one integer for each axis."""
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return tuple(values * rank if len(values) == 1 else values)


def _window(a: Arguments, kernel: str = "kernel_size") -> dict[str, Any]:
    rank = len(a.in_shape) - 1
    size = _tuple(a[kernel], rank)
    stride = _tuple(a["stride"], rank) if a["stride"] else size
    padding = _tuple(a["padding"], rank)
    return {"kernel": size, "stride": stride, "pads": padding + padding}


def _conv(a: Arguments) -> Meaning:
    rank = len(a.in_shape) - 1
    dilation = _tuple(a["dilation"], rank)
    if isinstance(a["padding"], str):
        kernel = shape_of(a["weight"])[1:]
        total = [0 if a["padding"] == "valid" else d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple(t // 2 for t in total) + tuple(t - t // 2 for t in total)
    else:
        pads = _tuple(a["padding"], rank) * 2
    return "conv", {
        "stride": _tuple(a["stride"], rank),
        "pads": pads,
        "dilation": dilation,
        "groups": int(a["groups"]),
    }


def _max_pool(a: Arguments) -> Meaning:
    window = _window(a)
    rank = len(window["kernel"])
    window["dilation"] = _tuple(a["dilation"], rank)
    begin, end = list(window["pads"][:rank]), list(window["pads"][rank:])
    if a["ceil_mode"]:  # the same windows in floor mode need more padding behind
        for i in range(rank):
            reach = (a.out_shape[1 + i] - 1) * window["stride"][i] + window["dilation"][i] * (window["kernel"][i] - 1)
            end[i] = max(end[i], reach + 1 - a.in_shape[1 + i] - begin[i])
    window["pads"] = tuple(begin + end)
    return "max_pool", window


def _avg_pool(a: Arguments) -> Meaning:
    window = _window(a)
    if a["divisor_override"] is not None:
        raise unsupported(a.node, "its divisor_override")
    if window["kernel"] == a.in_shape[1:] and not any(window["pads"]):
        return "global_avg_pool", {}
    reaches = zip(a.in_shape[1:], window["kernel"], window["stride"], window["pads"], strict=False)
    over = any((size + 2 * pad - kernel) % stride for size, kernel, stride, pad in reaches)
    ceil = bool(a["ceil_mode"]) and over
    if ceil and a["count_include_pad"]:  # the runtime's integer kernel divides by the full window
        axes = iter(zip(window["kernel"], window["stride"], window["pads"], strict=False))
        return _resample(a.in_shape[1:], a.out_shape[1:], lambda x, out: F.avg_pool1d(x, *next(axes), ceil_mode=True))
    return "avg_pool", {**window, "ceil": ceil, "count_include_pad": bool(a["count_include_pad"])}


def _adaptive_avg_pool(a: Arguments) -> Meaning:
    sizes, goal = a.in_shape[1:], a.out_shape[1:]
    if all(size == 1 for size in goal):
        return "global_avg_pool", {}
    if sizes == goal:
        return "identity", {}
    if any(size % out for size, out in zip(sizes, goal, strict=True)):
        return _resample(sizes, goal, lambda x, out: F.adaptive_avg_pool1d(x, out))
    kernel = tuple(size // out for size, out in zip(sizes, goal, strict=True))
    pads = (0,) * (2 * len(kernel))
    return "avg_pool", {"kernel": kernel, "stride": kernel, "pads": pads, "ceil": False, "count_include_pad": True}


def _resample(sizes: Sequence[int], goal: Sequence[int], along: Callable[[torch.Tensor, int], torch.Tensor]) -> Meaning:
    """A linear map of space that treats its axes apart, as one matrix (out, in) for each.

    `along` is the operation on one axis of (rows, 1, size); what it makes of the unit vectors is the matrix.
    """
    pairs = zip(sizes, goal, strict=True)
    matrices = tuple(along(torch.eye(size)[:, None], out)[:, 0].T.contiguous() for size, out in pairs)
    return "resample", {"matrices": matrices}


def _adaptive_max_pool(a: Arguments) -> Meaning:
    sizes, goal = a.in_shape[1:], a.out_shape[1:]
    if any(size % out for size, out in zip(sizes, goal, strict=True)):
        raise unsupported(a.node, f"pooling {sizes} to {goal}, which is no whole number of windows")
    kernel = tuple(size // out for size, out in zip(sizes, goal, strict=True))
    rank = len(kernel)
    return "max_pool", {"kernel": kernel, "stride": kernel, "pads": (0,) * (2 * rank), "dilation": (1,) * rank}


def _instance_norm(a: Arguments) -> Meaning:
    if not a["use_input_stats"]:
        raise unsupported(a.node, "running statistics (use batch norm)")
    return "instance_norm", {"eps": a["eps"]}


def _mean(a: Arguments) -> Meaning:
    rank = len(a.in_shape) + 1
    axes = sorted(axis % rank for axis in _tuple(a["dim"], 1))
    if axes == [1] and rank == 4:
        return "channel_mean", {}
    if axes != list(range(2, rank)):
        raise unsupported(a.node, f"a mean over axes {axes} (only those over all of space or over channels are)")
    return ("global_avg_pool" if a["keepdim"] else "global_avg_pool_flat"), {}


def _sum(a: Arguments) -> Meaning:
    rank = len(a.in_shape) + 1
    axes = sorted(axis % rank for axis in _tuple(a["dim"], 1))
    if len(axes) != 1 or axes[0] == 0 or a.in_shape[axes[0] - 1] > MOST_TERMS:
        raise unsupported(a.node, f"a sum over axes {axes} (only one axis of at most {MOST_TERMS} elements is)")
    return "sum", {"axis": axes[0]}


def _max(a: Arguments) -> Meaning:
    """max.other, max.dim and amax; positions are refused where something reads them."""
    if "other" in a.values:
        return "max", {}
    rank = len(a.in_shape) + 1
    axes = sorted(axis % rank for axis in _tuple(a["dim"], 1))
    if 0 in axes:
        raise unsupported(a.node, "a maximum over the batch")
    return "reduce_max", {"axes": tuple(axes), "keep": bool(a["keepdim"])}


def _index_select(a: Arguments) -> Meaning:
    axis = a["dim"] % (len(a.in_shape) + 1)
    if axis == 0:
        raise unsupported(a.node, "a choice of images")
    return "index_select", {"axis": axis}


def _select(a: Arguments) -> Meaning:
    axis = a["dim"] % (len(a.in_shape) + 1)
    if axis == 0:
        raise unsupported(a.node, "a choice of images")
    return "select", {"axis": axis, "index": a["index"] % a.in_shape[axis - 1]}


def _slice(a: Arguments) -> Meaning:
    rank = len(a.in_shape) + 1
    axis = a["dim"] % rank
    if axis == 0:
        return "identity", {}
    size = a.in_shape[axis - 1]
    start, end, _ = slice(a["start"], a["end"], a["step"]).indices(size)
    if (start, end, a["step"]) == (0, size, 1):
        return "identity", {}
    return "slice", {"axis": axis, "start": start, "end": end, "step": a["step"]}


def _pad(a: Arguments) -> Meaning:
    mode = a.values.get("mode", "constant")
    if mode != "constant":
        raise unsupported(a.node, f"padding mode {mode!r} (only constant padding is)")
    pad, rank = list(a["pad"]), len(a.in_shape)
    if min(pad) < 0:
        raise unsupported(a.node, "negative padding (slice the tensor instead)")
    pad += [0] * (2 * (rank - 1) - len(pad))
    channels = pad[2 * (rank - 1) :]
    if any(channels):
        if len(channels) != 2 or channels[0] or any(pad[: 2 * (rank - 1)]) or a["value"] or rank != 3:
            raise unsupported(a.node, "padding of channels other than with zeros behind the last")
        return "pad_channels", {"count": channels[1]}
    begin = [pad[2 * i] for i in reversed(range(rank - 1))]
    end = [pad[2 * i + 1] for i in reversed(range(rank - 1))]
    return "pad", {"pads": tuple(begin + end), "value": float(a["value"] or 0.0)}


def _upsample(a: Arguments) -> Meaning:
    scale = tuple(out // size for size, out in zip(a.in_shape[1:], a.out_shape[1:], strict=True))
    if tuple(size * s for size, s in zip(a.in_shape[1:], scale, strict=True)) != a.out_shape[1:]:
        raise unsupported(a.node, f"upsampling {a.in_shape[1:]} to {a.out_shape[1:]}, which is no whole factor")
    return "upsample", {"scale": scale}


def _upsample_linear(a: Arguments) -> Meaning:
    def along(x: torch.Tensor, out: int) -> torch.Tensor:
        return F.interpolate(x, size=out, mode="linear", align_corners=bool(a["align_corners"]))

    return _resample(a.in_shape[1:], a.out_shape[1:], along)


def _of_maps(op: str, **attributes: str) -> Rule:
    """A rule for what moves channels or pixels of (N, C, H, W)."""

    def rule(a: Arguments) -> Meaning:
        if len(a.in_shape) != 3:
            raise unsupported(a.node, f"an input of shape {list(a.in_shape)} (only channels, rows and columns are)")
        return op, {ours: int(a[theirs]) for ours, theirs in attributes.items()}

    return rule


def _repeat(a: Arguments) -> Meaning:
    """repeat and tile, which leaves out leading axes."""
    counts, rank = list(a["repeats"] if "repeats" in a.values else a["dims"]), len(a.in_shape) + 1
    counts = [1] * (rank - len(counts)) + counts
    if len(counts) > rank or counts[0] != 1:
        raise unsupported(a.node, "a repetition of the batch")
    repeats = tuple(int(count) for count in counts[1:])
    if set(repeats) == {1}:
        return "identity", {}
    single = all(size == 1 for size, count in zip(a.in_shape, repeats, strict=True) if count != 1)
    return ("expand", {}) if single else ("tile", {"repeats": repeats})


def _repeat_each(a: Arguments) -> Meaning:
    """repeat_interleave with one count for all elements."""
    rank = len(a.in_shape) + 1
    axis = a["dim"] % rank if a["dim"] is not None else 0
    if axis == 0:
        raise unsupported(a.node, "a repetition of the batch")
    count = int(a["repeats"])
    if rank == 4 and axis > 1:
        return "upsample", {"scale": tuple(count if axis == other else 1 for other in (2, 3))}
    return "gather", {"axis": axis, "order": tuple(i for i in range(a.in_shape[axis - 1]) for _ in range(count))}


def _transpose(a: Arguments) -> Meaning:
    rank = len(a.in_shape) + 1
    axes = list(range(rank))
    i, j = a["dim0"] % rank, a["dim1"] % rank
    axes[i], axes[j] = axes[j], axes[i]
    return _permutation(a, axes)


def _permutation(a: Arguments, axes: Sequence[int]) -> Meaning:
    if axes[0] != 0:
        raise unsupported(a.node, "moving the batch axis")
    return "transpose", {"axes": tuple(axes)}


def _binary(op: str) -> Rule:
    def rule(a: Arguments) -> Meaning:
        if a.values.get("alpha", 1) != 1:
            raise unsupported(a.node, "its alpha")
        if a.values.get("rounding_mode") is not None:
            raise unsupported(a.node, "a rounding division")
        other = a["other"]
        if isinstance(other, fx.Node) and not isinstance(value_of(other), torch.Tensor):
            raise unsupported(a.node, "the batch size as an operand")
        if isinstance(other, (int, float)) and not isinstance(other, bool):
            if op in ("add", "sub"):
                return "add_scalar", {"value": float(other) if op == "add" else -float(other)}
            return "mul_scalar", {"value": float(other) if op == "mul" else 1.0 / float(other)}
        return op, {}

    return rule


def _reversed_difference(a: Arguments) -> Meaning:
    """other - self."""
    if a["alpha"] != 1:
        raise unsupported(a.node, "its alpha")
    if isinstance(a["other"], fx.Node):
        return "rsub", {}
    return "rsub_scalar", {"value": float(a["other"])}


def _plain(op: str, **attributes: Any) -> Rule:
    """A rule that keeps the operation and copies attributes: ours=theirs."""
    return lambda a: (op, {ours: a[theirs] for ours, theirs in attributes.items()})


def _softplus(a: Arguments) -> Meaning:
    if a["threshold"] != PLAIN_THRESHOLD:
        raise unsupported(a.node, f"a threshold of {a['threshold']}")
    return "softplus", {"beta": float(a["beta"])}


def _clamp(a: Arguments) -> Meaning:
    low = -math.inf if a["min"] is None else float(a["min"])
    high = math.inf if a.values.get("max") is None else float(a["max"])
    return ("relu", {}) if (low, high) == (0.0, math.inf) else ("clip", {"low": low, "high": high})


def _linear(a: Arguments) -> Meaning:
    if len(a.in_shape) != 1:
        raise unsupported(a.node, f"an input of shape {list(a.in_shape)} (only vectors are; use a 1x1 convolution)")
    return "linear", {}


def _identity(a: Arguments) -> Meaning:
    return "identity", {}


def _dropout(a: Arguments) -> Meaning:
    if a["train"]:
        raise unsupported(a.node, "train=True, which stays random when the network is used")
    return "identity", {}


def _cast(a: Arguments) -> Meaning:
    if a["dtype"] not in (None, torch.float32):
        raise unsupported(a.node, f"a cast to {a['dtype']}")
    return "identity", {}


RULES: dict[str, Rule] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "linear": _linear,
    "_native_batch_norm_legit_no_training": _plain("batch_norm", eps="eps"),
    "batch_norm": _plain("batch_norm", eps="eps"),
    "instance_norm": _instance_norm,
    "relu": _plain("relu"),
    "hardtanh": lambda a: ("clip", {"low": float(a["min_val"]), "high": float(a["max_val"])}),
    "relu6": lambda a: ("clip", {"low": 0.0, "high": 6.0}),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "leaky_relu": lambda a: ("leaky_relu", {"slope": float(a["negative_slope"])}),
    "prelu": _plain("prelu"),
    "elu": lambda a: ("elu", {"alpha": float(a["alpha"])}),
    "sigmoid": _plain("sigmoid"),
    "tanh": _plain("tanh"),
    "mish": _plain("mish"),
    "softplus": _softplus,
    "gelu": _plain("gelu", approximate="approximate"),
    "hardsigmoid": _plain("hard_sigmoid"),
    "hardswish": _plain("hard_swish"),
    "silu": _plain("silu"),
    "softmax": lambda a: ("softmax", {"axis": a["dim"] % (len(a.in_shape) + 1)}),
    "_softmax": lambda a: ("softmax", {"axis": a["dim"] % (len(a.in_shape) + 1)}),
    "log_softmax": lambda a: ("log_softmax", {"axis": a["dim"] % (len(a.in_shape) + 1)}),
    "_log_softmax": lambda a: ("log_softmax", {"axis": a["dim"] % (len(a.in_shape) + 1)}),
    "add": _binary("add"),
    "sub": _binary("sub"),
    "rsub": _reversed_difference,
    "neg": lambda a: ("rsub_scalar", {"value": 0.0}),
    "mul": _binary("mul"),
    "div": _binary("div"),
    "maximum": _plain("max"),
    "max": _max,
    "amax": _max,
    "sum": _sum,
    "stack": lambda a: ("stack", {"axis": a["dim"] % (len(a.out_shape) + 1)}),
    "expand": _plain("expand"),
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat_each,
    "index_select": _index_select,
    "cat": lambda a: ("concat", {"axis": a["dim"] % (len(a.out_shape) + 1)}),
    "split": _plain("split", dim="dim"),
    "split_with_sizes": _plain("split", dim="dim"),
    "chunk": _plain("split", dim="dim"),
    "slice": _slice,
    "select": _select,
    "constant_pad_nd": _pad,
    "pad": _pad,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    "mean": _mean,
    "permute": lambda a: _permutation(a, [axis % (len(a.in_shape) + 1) for axis in a["dims"]]),
    "transpose": _transpose,
    "upsample_nearest2d": _upsample,
    "upsample_bilinear2d": _upsample_linear,
    "pixel_shuffle": _of_maps("pixel_shuffle", block="upscale_factor"),
    "pixel_unshuffle": _of_maps("pixel_unshuffle", block="downscale_factor"),
    "channel_shuffle": _of_maps("channel_shuffle", groups="groups"),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze"), _plain("reshape")),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "lift_fresh_copy"), _identity),
    "dropout": _dropout,
    "_to_copy": _cast,
}

ROLES = {
    "conv": ("input", {"weight": "weight", "bias": "bias"}),
    "linear": ("input", {"weight": "weight", "bias": "bias"}),
    "batch_norm": ("input", {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}),
    "instance_norm": ("input", {"weight": "weight", "bias": "bias"}),
    "prelu": ("self", {"slope": "weight"}),
    "index_select": ("self", {"order": "index"}),
}
"""Operation -> the argument that holds its data, and role -> argument that holds a parameter."""
