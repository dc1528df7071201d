"""Draws small convolutional networks of every shape that classifiers have, and brings them to a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.capture import capture
from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.passes import canonicalize, find_channel_shuffle, fold_batch_norm, hoist_activations
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.program import FloatProgram
from gdfq_export.provenance import golden_vectors, stamp
from gdfq_export.quantizers import weight_scales
from gdfq_export.ranges import affines_from_ranges, observe

KINDS = ("plain", "residual", "concat", "depthwise", "grouped", "shuffled")
LAYERS = {"plain": 1, "residual": 2, "concat": 2, "depthwise": 2, "grouped": 1, "shuffled": 1}
ACTIVATIONS = ("relu", "relu6", "leaky_relu")
DEPTHS = (1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 12)  # layers; mostly few, because capturing one takes a tenth of a second
SWITCHES = ("negative_gamma", "zero_variance", "dead_channels", "pooled")
GROUPS = 3


@dataclass(frozen=True)
class Block:
    """One block; its channels are a multiple of 3 where it has groups."""

    kind: str
    channels: int
    kernel: int
    stride: int
    activation: str


@dataclass(frozen=True)
class Spec:
    """Everything that makes a network and its file; `seed` draws the weights."""

    size: tuple[int, int, int]
    blocks: tuple[Block, ...]
    weight_bits: int
    act_bits: int
    negative_gamma: bool
    zero_variance: bool
    dead_channels: bool
    pooled: bool  # a max pool behind the first block
    seed: int

    def features(self) -> Iterator[str]:
        """What a run has to have seen."""
        yield from (f"{block.kind}" for block in self.blocks)
        yield from (f"{block.activation}" for block in self.blocks)
        yield f"W{self.weight_bits}"
        yield f"A{self.act_bits}"
        yield from (name for name in SWITCHES if getattr(self, name))
        yield "odd channels" if any(block.channels % 2 for block in self.blocks) else "even channels"
        yield "odd size" if self.size[1] % 2 else "even size"
        depth = sum(LAYERS[block.kind] for block in self.blocks)
        yield "deep" if depth > 6 else "shallow"


@st.composite
def specs(draw: st.DrawFn, kinds: Sequence[str] = KINDS, bits: tuple[int, int] | None = None) -> Spec:
    """Networks of 1 to 12 layers, without the classifier; `kinds` says with which block they begin."""
    depth, blocks = draw(st.sampled_from(DEPTHS)), []
    while depth > 0:
        fitting = [kind for kind in (KINDS if blocks else kinds) if LAYERS[kind] <= depth]
        kind = draw(st.sampled_from(fitting or ["plain"]))
        depth -= LAYERS[kind]
        blocks.append(
            Block(
                kind,
                draw(st.integers(1, 6)) * GROUPS if kind in ("grouped", "shuffled") else draw(st.integers(1, 17)),
                draw(st.sampled_from([1, 3, 3, 5])),
                draw(st.sampled_from([1, 1, 2])),
                draw(st.sampled_from(ACTIVATIONS)),
            )
        )
    weight_bits, act_bits = bits or (draw(st.integers(2, 8)), draw(st.integers(2, 8)))
    return Spec(
        size=(draw(st.sampled_from([1, 3, 5])), draw(st.integers(5, 19)), draw(st.integers(5, 19))),
        blocks=tuple(blocks),
        weight_bits=weight_bits,
        act_bits=act_bits,
        negative_gamma=draw(st.booleans()),
        zero_variance=draw(st.booleans()),
        dead_channels=draw(st.booleans()),
        pooled=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class BlockModule(nn.Module):
    """One block of a network."""

    def __init__(self, block: Block, inputs: int) -> None:
        super().__init__()
        self.block, outputs = block, block.channels
        self.short: nn.Module | None = None
        self.entry: nn.Module | None = None  # brings the channels to a multiple of the groups
        if block.kind in ("grouped", "shuffled"):
            if inputs % GROUPS:
                self.entry = conv_bn(inputs, outputs, 1)
                inputs = outputs
            self.first = conv_bn(inputs, outputs, block.kernel, block.stride, GROUPS)
        elif block.kind == "depthwise":
            self.first = conv_bn(inputs, inputs, block.kernel, block.stride, inputs)
            self.second = conv_bn(inputs, outputs, 1)
        else:
            self.first = conv_bn(inputs, outputs, block.kernel, block.stride)
        if block.kind == "residual":
            self.second = conv_bn(outputs, outputs, block.kernel)
            if block.stride > 1 or inputs != outputs:
                self.short = conv_bn(inputs, outputs, 1, block.stride)
        if block.kind == "concat":
            self.second = conv_bn(inputs, outputs, 1, block.stride)
        self.outputs = 2 * outputs if block.kind == "concat" else outputs

    def forward(self, x: Tensor) -> Tensor:
        act = getattr(F, self.block.activation)
        if self.entry is not None:
            x = act(self.entry(x))
        if self.block.kind == "shuffled":
            n, c, h, w = x.shape
            x = x.view(n, GROUPS, c // GROUPS, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        if self.block.kind == "residual":
            return act(self.second(act(self.first(x))) + (x if self.short is None else self.short(x)))
        if self.block.kind == "concat":
            return torch.cat([act(self.first(x)), act(self.second(x))], 1)
        if self.block.kind == "depthwise":
            return self.second(act(self.first(x)))  # linear, as MobileNetV2's
        return act(self.first(x))


class RandomNetwork(nn.Module):
    """The blocks, and a classifier over their mean."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        channels = spec.size[0]
        self.pooled = spec.pooled
        self.blocks = nn.ModuleList()
        for block in spec.blocks:
            self.blocks.append(BlockModule(block, channels))
            channels = self.blocks[-1].outputs  # type: ignore[assignment]
        self.classifier = nn.Linear(channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.pooled and index == 0:
                x = F.max_pool2d(x, 3, 2, 1)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def network_from_spec(spec: Spec) -> nn.Module:
    """Weights and batch norms from the seed, with the nasty cases that the spec asks for."""
    state = torch.get_rng_state()
    torch.manual_seed(spec.seed)
    module = RandomNetwork(spec).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(spec.seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            size = (child.num_features,)
            child.running_mean.copy_(torch.randn(size, generator=generator) * 0.3)
            child.running_var.copy_(torch.rand(size, generator=generator) + 0.3)
            child.weight.copy_(torch.rand(size, generator=generator) + 0.4)
            child.bias.copy_(torch.randn(size, generator=generator) * 0.3)
            if spec.negative_gamma:
                child.weight[::2] *= -1
            if spec.zero_variance:
                child.running_var[size[0] // 2] = 0
            if spec.dead_channels:
                child.weight[-1] = 0
                child.bias[-1] = -0.1
    torch.set_rng_state(state)
    return module


def file_from_spec(spec: Spec, path: Path) -> IntegerProgram:
    """Quantizes with ranges from random images and writes the file; returns the PyTorch program."""
    graph = fold_batch_norm(
        hoist_activations(find_channel_shuffle(canonicalize(capture(network_from_spec(spec), spec.size))))
    )
    plan = make_plan(graph, BitWidths(spec.weight_bits, spec.act_bits), (-2.0, 2.0))
    images = torch.randn(8, *spec.size, generator=torch.Generator().manual_seed(spec.seed))
    ranges = observe(FloatProgram(graph), plan, [images], method="ema")
    scales = {
        layer: weight_scales(graph.parameters[graph[layer].parameters["weight"]], weight.qmax)
        for layer, weight in plan.weights.items()
    }
    quantized = Quantized(graph, plan, affines_from_ranges(plan, ranges), scales)
    integer = integer_model_from_quantized(quantized, TARGETS["portable"])
    program = IntegerProgram(integer).eval()
    model = onnx_from_integer_model(integer)
    facts = {"target": "portable", "input": {"format": "float-nchw", "shape": list(spec.size)}}
    stamp(model, facts, golden_vectors(program, images))
    path.write_bytes(model.SerializeToString(deterministic=True))
    return program
