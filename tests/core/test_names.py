"""What users call their layers never meets what we call ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from network_parts import conv_bn, head, pooled, randomize
from stages import calibrated, integer_logits, run_onnx, with_passes
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export import passes
from gdfq_export.capture import capture
from gdfq_export.emit import float_onnx_from_graph, onnx_from_integer_model
from gdfq_export.graph import INPUT, SUFFIXES, Node, unshared, without_clashes
from gdfq_export.lower import lower, with_pixel_input
from gdfq_export.passes import pad_input
from gdfq_export.plan import BitWidths
from gdfq_export.runtime_checks.hashes import group_hashes

EMITTED = ["q", "dq", "clip", "weight", "bias", "bias_scale", "weight8", "spread", "codes", "constant", "index"]
OURS = ["pixels", "bytes", "limits", "bits", "shuffle", "input", "logits", "output", "input_1", "batch"]
PATHS = [
    *OURS,
    *("input.padded", "input.nchw", "input.pixels", "input.pixels:DequantizeLinear", "input.padded.q"),
    *(f"pixels.{name}" for name in EMITTED),
    *("pixels/weight", "pixels/scale", "input/scale", "a/weight", "a b", "a:Conv", "x_nchwc", "limits/0", "bits/one"),
]


class Chain(nn.Module):
    """Layers one after the other at paths that the test gives, each with an activation behind it."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = [path.split(".") for path in paths]
        self.stem, self.fc, self.act = conv_bn(3, 4), head(4), Act()
        for path in self.paths:
            holder: nn.Module = self
            for name in path[:-1]:
                if name not in dict(holder.named_children()):
                    holder.add_module(name, nn.Module())
                holder = getattr(holder, name)
            layer = conv_bn(4, 4, 1)
            for name, child in dict(holder.named_children()).get(path[-1], nn.Module()).named_children():
                layer.add_module(name, child)
            holder.add_module(path[-1], layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for path in self.paths:
            layer: Any = self
            for name in path:
                layer = getattr(layer, name)
            x = F.relu(layer[1](layer[0](x)))
        return self.fc(pooled(x))


class Act(nn.Module):
    """An activation that passes take apart; its tensor is called `act.hardswish`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


def check(module: nn.Module, bits: int, *, pixels: bool) -> onnx.ModelProto:
    """The file runs, computes what the program computes, and has no name twice."""
    graph = pad_input(unshared(with_passes(capture(randomize(module).eval().requires_grad_(False), (3, 8, 8)))))
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    model = lower(calibrated(graph, BitWidths(bits, 8)), "portable")
    x = torch.randn(2, 3, 8, 8)
    if pixels:
        model = with_pixel_input(model, (0.5,) * 3, (0.25,) * 3)
        x = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    proto = onnx_from_integer_model(model)
    onnx.checker.check_model(proto, full_check=True)
    assert np.array_equal(integer_logits(model, x), run_onnx(proto, x).outputs)
    names = [*(t.name for t in proto.graph.initializer), *(name for node in proto.graph.node for name in node.output)]
    assert len(set(names)) == len(names)
    operators = [node.name for node in proto.graph.node if node.name]
    assert len(set(operators)) == len(operators)
    assert group_hashes(proto)
    onnx.checker.check_model(float_onnx_from_graph(graph), full_check=True)
    return proto


@pytest.mark.parametrize(("bits", "pixels"), [(8, True), (2, True)])
def test_layers_may_be_called_like_what_the_file_calls_its_own(bits: int, pixels: bool) -> None:
    check(Chain(PATHS), bits, pixels=pixels)


def test_layers_may_be_called_like_what_passes_make() -> None:
    suffixes = sorted(SUFFIXES)
    paths = [f"{base}.{suffix}" for base in ("act.hardswish", "input") for suffix in suffixes]
    check(Chain(paths), 8, pixels=False)


def test_a_name_that_meets_none_of_ours_stays() -> None:
    nodes = [Node(name, "relu", (), ()) for name in (INPUT, "input.conv", "a", "a.clip", "b.clip", "a.clips")]
    named = [node.name for node in without_clashes(nodes)]
    assert named == [INPUT, "input.conv", "a", "a_clip", "b.clip", "a.clips"]


def test_renamed_layers_keep_names_of_their_own_and_their_readers() -> None:
    nodes = [Node("a", "relu", (), ()), Node("a_clip", "relu", (), ()), Node("a.clip", "relu", ("a",), ())]
    nodes.append(Node("a.clip.pool3.x", "relu", ("a.clip",), ()))
    first, second, third, last = without_clashes(nodes)
    assert (first.name, second.name) == ("a", "a_clip")
    assert len({node.name for node in (first, second, third, last)}) == 4
    assert third.name == "a_clip_1"
    assert last.inputs == (third.name,)


def test_a_parameter_may_be_called_like_one_of_ours() -> None:
    """Folding stores the weights of the layer a as `a/weight`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = conv_bn(3, 8), conv_bn(8, 8), head(8)
            self.register_parameter("fc/weight", nn.Parameter(torch.full((1, 8, 1, 1), 3.0)))
            self.register_parameter("fc_weight", nn.Parameter(torch.full((1, 8, 1, 1), 5.0)))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x)) * getattr(self, "fc/weight") + self.fc_weight
            return self.fc(pooled(F.relu(self.b(x))))

    check(Net(), 8, pixels=False)


@pytest.mark.parametrize("path", sorted(Path(passes.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_passes_name_what_they_make_by_the_one_function_that_capture_knows(path: Path) -> None:
    """`derived` takes no suffix but those that capture keeps free; a name put together by hand escapes that."""
    assert not re.search(r'f"\{[^}]*name\}\.', path.read_text())
