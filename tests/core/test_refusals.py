"""Graphs that would be wrong are refused in one sentence, and rounding follows the kernels: found by a bug hunt."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from network_parts import SHAPE, Net, conv_bn, head, pooled
from stages import folded_from, images, integer_logits, quantize_graph, run_onnx
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.capture import capture
from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph, Node
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.passes import canonicalize
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import Affine
from gdfq_export.saturation import breaking_channels

W8A8 = BitWidths(8, 8)
RIGHT_OR_REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "concat of a tensor with itself": lambda x: torch.cat([x, x], 1),
    "concat that repeats an operand": lambda x: torch.cat([x, x * 2, x], 1),
    "product with the batch size": lambda x: x * x.shape[0],
    "sum with the batch size": lambda x: x + x.shape[0],
    "rounding division": lambda x: torch.div(x, 0.1, rounding_mode="floor"),
    "cast to integers": lambda x: (x * 5).int().float(),
    "batch merged with rows": lambda x: x.reshape(-1, 4),
    "batch merged with channels": lambda x: x.reshape(x.shape[0] * 3, 1, 8, 8),
    "concat of batches": lambda x: torch.cat([x, x * 2], 0),
    "crop by negative padding": lambda x: F.pad(x, (-1, -1, -1, -1)),
    "maximum over space": lambda x: x.flatten(2).max(2)[0],
    "sum over channels": lambda x: x.sum(1),
    "sum over space": lambda x: x.sum((2, 3)),
    "difference of tensors": lambda x: x - F.relu(x),
    "average pool with partial windows": lambda x: F.avg_pool2d(x, 3, 2, 0, ceil_mode=True),
}
REFUSED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a mean over everything": lambda m, x: x - x.mean(),
    "the first of several results": lambda m, x: x.flatten(2).median(2)[0],
    "a position of the maximum": lambda m, x: x * x.max(1)[1].unsqueeze(1),
    "topk": lambda m, x: x.flatten(1).topk(5)[0],
    "unbind": lambda m, x: x.unbind(2)[0],
    "dropout that never ends": lambda m, x: F.dropout(x),
    "division by zero": lambda m, x: x / 0,
    "clamp by a tensor": lambda m, x: torch.clamp(x, min=torch.tensor(0.1)),
    "a parameter as the result": lambda m, x: m.value,
}


@pytest.mark.parametrize("what", RIGHT_OR_REFUSED)
def test_a_graph_is_right_or_refused(what: str) -> None:
    x = images()
    function = RIGHT_OR_REFUSED[what]
    try:
        graph = canonicalize(capture(Net(lambda m, x: function(x)), SHAPE))
    except UnsupportedModelError:
        return
    found = FloatProgram(graph)(x)
    assert found.shape == function(x).shape
    assert torch.allclose(found, function(x), atol=1e-6)  # one float rounding apart at most


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_captured_is_refused(what: str) -> None:
    with pytest.raises(UnsupportedModelError):
        capture(Net(REFUSED[what], value=nn.Parameter(torch.zeros(2, 3))), SHAPE)


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UnsupportedModelError, match="more than one input"):
        capture(Two(), SHAPE)


def test_a_refusal_prints_nothing() -> None:
    model = Net(lambda m, x: m.fc(pooled(x)) if x.sum() > 0 else pooled(x), fc=head(3))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(UnsupportedModelError):
        capture(model, SHAPE)
    assert out.getvalue() + err.getvalue() == ""


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 3)])
def test_layers_with_one_input_channel_a_group_are_safe_unless_depthwise(channels: int, groups: int) -> None:
    model = Net(lambda m, x: m.fc(pooled(F.relu(m.conv(x)))), conv=nn.Conv2d(channels, 6, 3, groups=groups), fc=head(6))
    with torch.no_grad():
        model.conv.weight.fill_(0.5)
    lowered = quantize_graph(folded_from(model.requires_grad_(False), (channels, 8, 8)), W8A8)
    assert not breaking_channels(lowered.layers["conv"].q_weight, 255).any()


def test_a_module_called_logits_does_not_hide_the_output() -> None:
    model = Net(lambda m, x: pooled(m.logits(F.relu(m.a(x)))), a=conv_bn(3, 8), logits=nn.Conv2d(8, 5, 1))
    lowered, x = quantize_graph(folded_from(model.requires_grad_(False)), W8A8), images()
    file = onnx_from_integer_model(lowered)
    onnx.checker.check_model(file, full_check=True)
    assert np.array_equal(run_onnx(file, x).outputs, integer_logits(lowered, x))


def test_ties_of_an_average_pool_round_as_the_runtime_does() -> None:
    window = {"kernel": (2, 2), "stride": (2, 2), "pads": (0,) * 4, "ceil": False, "count_include_pad": True}
    conv = {"stride": (1, 1), "pads": (0,) * 4, "dilation": (1, 1), "groups": 1}
    nodes = (
        Node("input", "input", (), (1, 16, 16)),
        Node("pool", "avg_pool", ("input",), (1, 8, 8), window),
        Node("end", "conv", ("pool",), (1, 8, 8), conv, {"weight": "w"}),
    )
    graph = Graph(nodes, {"w": torch.ones(1, 1, 1, 1)}, "end")
    affines = {"input": Affine(0.5, 10), "pool": Affine(0.5, 11), "end": Affine(0.5, 11)}
    quantized = Quantized(graph, make_plan(graph, W8A8), affines, {"end": torch.tensor([1 / 127])})
    model = integer_model_from_quantized(quantized, TARGETS["arm64"])
    x = torch.randint(0, 256, (4, 1, 16, 16), generator=torch.Generator().manual_seed(0)).float().sub(10).mul(0.5)
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, integer_logits(model, x))


def test_a_scale_raised_for_its_bias_leaves_no_breaking_pair() -> None:
    torch.manual_seed(0)
    fc = nn.Linear(8192, 1)
    weight = (torch.rand(8192) - 0.5) * 40
    weight[:4] = torch.tensor([67.0, 67.0, 127.0, -127.0])
    fc.weight.data.copy_(weight[None] * 2e-8)
    fc.bias.data.fill_(2.18)
    lowered = quantize_graph(folded_from(Net(lambda m, x: m.fc(x.mean((2, 3))), fc=fc), (8192, 1, 1)), W8A8)
    assert not breaking_channels(lowered.layers["fc"].q_weight, 255).any()


def test_unsigned_operands_of_a_concat_are_joined_whatever_made_them() -> None:
    model = Net(
        lambda m, x: torch.cat([F.relu(m.a(x)), F.relu(m.a(x)) + F.relu(m.b(x))], 1).mean((2, 3)),
        a=conv_bn(3, 8),
        b=conv_bn(3, 8),
    )
    assert "concat" not in make_plan(folded_from(model), W8A8).sources


def test_files_with_companions_have_the_same_bytes_wherever_they_are_written(tmp_path: Path) -> None:
    from stages import network
    from test_pipeline import SETTINGS, loaded

    from gdfq_export.pipeline import run

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(loaded(network("plain")), SETTINGS, tmp_path / name / "m.onnx")
    for name in ("m.fp32.onnx", "m.fakequant.pt2", "m.onnx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
