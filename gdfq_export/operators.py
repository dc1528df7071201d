"""Which operators of PyTorch are supported and how each runs in the file, by the tables that decide it.

`RULES` says what is supported, `MEANINGS` which operations of our vocabulary a rule can give, and the sets of `ops.py`
and of the passes how these run. `docs/operators.md` is `page()`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdfq_export.aten_rules import RULES
from gdfq_export.ops import ENDINGS, FLOAT_ONLY, LOOKUPS, MOST_TERMS, MOVEMENT
from gdfq_export.plan import CODE_CLIPS

KERNEL, TABLE, MOVED, FOLDED, LEFT_OUT = "integer kernel", "table", "moved codes", "folded", "left out"
COMPOSED, CLIPPED, ENDING, FLOAT = "built from others", "saturation", "ending in float", "float on request"
KINDS = {
    KERNEL: "one kernel of ONNX Runtime that computes with integers",
    TABLE: "a function of one number: 256 codes are computed when the file is made, a Gather reads them",
    MOVED: "codes of 8 bits change their places and not their values",
    CLIPPED: "done by the rounding of the layer before, or a Clip on codes",
    FOLDED: "becomes part of the layer before, or a depthwise layer where there is none",
    COMPOSED: "written with operators that run on integers",
    LEFT_OUT: "changes nothing",
    ENDING: "in float behind the last integer, where it ends the network",
    FLOAT: "refused, or left in float where `--allow-float` names it",
}
KERNELS_OF = {
    "conv": "QLinearConv",
    "linear": "QGemm",
    "add": "QLinearAdd",
    "add_scalar": "QLinearAdd",
    "mul": "QLinearMul",
    "avg_pool": "QLinearAveragePool",
    "global_avg_pool": "QLinearGlobalAveragePool",
    "leaky_relu": "QLinearLeakyRelu",
    "sigmoid": "QLinearSigmoid",
}
BUILT_FROM = {
    "prelu": "clips, product and sum; leaky_relu where all slopes are one",
    "sum": "a sum of slices",
    "softmax": "maximum, tables for exp and 1 / x, sum and product",
    "log_softmax": "",
    "stack": "reshape and concat",
    "channel_mean": "a 1x1 convolution",
    "resample": "two 1x1 convolutions",
    "sub": "a sum with -1 times the second",
    "rsub": "a sum with -1 times the first",
    "mul_scalar": "another scale for the same codes; a product where the factor is not positive",
    "index_select": "Gather",
    "select": "slice and reshape",
    "pixel_unshuffle": "reshape and transpose",
    "pixel_shuffle": "reshape and transpose",
    "silu": "sigmoid and product",
    "hard_sigmoid": "sum, clip and another scale",
    "hard_swish": "sum, clip, another scale and product",
    "global_avg_pool_flat": "mean and reshape",
}
SPLIT = "split"  # several slices
MEANINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), ("conv",)),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "batch_norm"), ("batch_norm",)),
    **dict.fromkeys(("hardtanh", "relu6"), ("clip",)),
    **dict.fromkeys(("clamp", "clamp_min"), ("relu", "clip")),
    "hardsigmoid": ("hard_sigmoid",),
    "hardswish": ("hard_swish",),
    "_softmax": ("softmax",),
    "_log_softmax": ("log_softmax",),
    "add": ("add", "add_scalar"),
    "sub": ("sub", "add_scalar"),
    "rsub": ("rsub", "rsub_scalar"),
    "neg": ("rsub_scalar",),
    "mul": ("mul", "mul_scalar"),
    "div": ("mul_scalar", "div"),
    "maximum": ("max",),
    "max": ("max", "reduce_max"),
    "amax": ("reduce_max",),
    "repeat": ("expand", "tile", "identity"),
    "tile": ("expand", "tile", "identity"),
    "repeat_interleave": ("gather", "upsample"),
    "cat": ("concat",),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), (SPLIT,)),
    "slice": ("slice", "identity"),
    **dict.fromkeys(("constant_pad_nd", "pad"), ("pad", "pad_channels")),
    "max_pool2d": ("max_pool",),
    "avg_pool2d": ("avg_pool", "global_avg_pool", "resample"),
    "adaptive_avg_pool2d": ("avg_pool", "global_avg_pool", "resample", "identity"),
    "adaptive_max_pool2d": ("max_pool",),
    "mean": ("global_avg_pool", "global_avg_pool_flat", "channel_mean"),
    "permute": ("transpose",),
    "upsample_nearest2d": ("upsample",),
    "upsample_bilinear2d": ("resample",),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze"), ("reshape",)),
    **dict.fromkeys(
        ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "dropout", "_to_copy"), ("identity",)
    ),
}
"""ATen operator -> what its rule can give; the operation of the same name where it is not here."""

LIMITS = {
    "linear": "of vectors",
    "softmax": f"between layers over at most {MOST_TERMS} elements",
    "_softmax": f"between layers over at most {MOST_TERMS} elements",
    "log_softmax": "at the end alone",
    "_log_softmax": "at the end alone",
    "div": "by a number; by a tensor in float alone",
    "max": "of two tensors, or the values over an axis",
    "sum": f"over one axis of at most {MOST_TERMS} elements",
    "mean": "over all of space, or over channels",
    "repeat": "not of the batch",
    "tile": "not of the batch",
    "repeat_interleave": "one count for all elements",
    "pad": "with a constant",
    "adaptive_max_pool2d": "a whole number of windows",
    "upsample_nearest2d": "by a whole factor",
    "softplus": "with the threshold 20",
    "instance_norm": "of the image's own statistics",
    "max_pool2d": "without positions",
    "avg_pool2d": "without a divisor of its own",
    "index_select": "by fixed positions",
    "_to_copy": "to float32",
}


@dataclass(frozen=True)
class Operator:
    """One operator of PyTorch, as its ATen name, and how it can run."""

    name: str
    runs: tuple[str, ...]  # keys of KINDS
    details: tuple[str, ...]
    limit: str

    def to_json(self) -> dict[str, object]:
        """One object of `models --operators --json`."""
        return {"operator": self.name, "runs": list(self.runs), "details": list(self.details), "limit": self.limit}


def kinds_of(op: str) -> tuple[str, ...]:
    """How an operation of the vocabulary runs."""
    if op in ENDINGS:
        return (ENDING, COMPOSED) if BUILT_FROM[op] else (ENDING,)
    if op in FLOAT_ONLY:
        return (FLOAT,)
    if op in BUILT_FROM:
        return (COMPOSED,)
    if op in LOOKUPS:
        return (TABLE,)
    if op == "concat":
        return MOVED, KERNEL
    if op == "max":
        return MOVED, TABLE
    if op in MOVEMENT or op == SPLIT:
        return (MOVED,)
    if op in CODE_CLIPS:
        return (CLIPPED,)
    return ({"identity": LEFT_OUT, "batch_norm": FOLDED}.get(op, KERNEL),)


def supported() -> list[Operator]:
    """Every operator that has a rule, by name."""
    found = []
    for name in sorted(RULES, key=lambda name: name.lstrip("_")):
        ops = MEANINGS.get(name, (name,))
        runs = tuple(dict.fromkeys(kind for op in ops for kind in kinds_of(op)))
        details = {"concat": "QLinearConcat where ranges differ", **KERNELS_OF, **BUILT_FROM}
        said = tuple(dict.fromkeys(details[op] for op in ops if details.get(op)))
        found.append(Operator(name, runs, said, LIMITS.get(name, "")))
    return found


def page() -> str:
    """`docs/operators.md`."""
    lines = [
        "# Operators",
        "",
        "What a network may be made of. Names are ATen's, as `torch.export` gives them and as a refusal names them:",
        "`nn.Mish` is `mish`, `x.repeat(...)` is `repeat`. Anything else is refused with its place in the model, all",
        "of it at once. `gdfq-export models --operators` prints the same list. This page is made from the tables that",
        "decide it:",
        "",
        "```console",
        "python scripts/operators_page.py --write",
        "```",
        "",
        "| runs as | means |",
        "|---|---|",
        *(f"| {kind} | {meaning} |" for kind, meaning in KINDS.items()),
        "",
        "| operator | runs as | by | only |",
        "|---|---|---|---|",
        *(f"| `{o.name}` | {', '.join(o.runs)} | {'; '.join(o.details)} | {o.limit} |" for o in supported()),
    ]
    return "\n".join(lines) + "\n"
