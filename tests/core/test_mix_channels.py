"""A stream of channels in another basis is the same network."""

from __future__ import annotations

import pytest
import torch
from network_parts import Net, conv_bn, head, pooled
from stages import folded, folded_from, images
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.graph import Graph
from gdfq_export.passes.mix_channels import Stream, find_streams, mix_channels
from gdfq_export.program import FloatProgram


def bottlenecks(first: float = 1.0) -> Graph:
    """Residuals on 6 channels, the first so much larger; one has a layer that reads and makes the stream."""
    torch.manual_seed(0)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.project(F.relu6(m.expand(x)))
        x = x + m.inside(x)
        return m.fc(pooled(F.relu(m.end(x))))

    parts = {
        "stem": nn.Conv2d(3, 6, 3, padding=1),
        "expand": nn.Conv2d(6, 12, 1),
        "project": nn.Conv2d(12, 6, 1),
        "inside": nn.Conv2d(6, 6, 3, padding=1),
        "end": nn.Conv2d(6, 8, 3, padding=1, stride=2),
    }
    for name in ("stem", "project"):
        parts[name].weight.data[0] *= first
    return folded_from(Net(forward, **parts, fc=head(8)))


def a_basis(channels: int, seed: int = 3) -> Tensor:
    return torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sums_join_the_layers_around_them_to_one_stream() -> None:
    (stream,) = find_streams(bottlenecks())
    assert stream.makers == ("stem", "project", "inside")
    assert stream.readers == ("expand", "inside", "end")
    assert set(stream.tensors) == {"stem", "project", "inside", "add", "add_1"}


def test_the_network_answers_the_same_and_its_stream_is_mixed() -> None:
    graph = bottlenecks()
    (stream,) = find_streams(graph)
    basis, given = a_basis(6), images()
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    exact = FloatProgram(graph)(given, before.__setitem__)
    mixed = FloatProgram(mix_channels(graph, stream, basis))(given, after.__setitem__)
    assert torch.allclose(mixed, exact, atol=1e-4)
    for name in stream.tensors:
        expected = torch.einsum("kc,nchw->nkhw", basis.float(), before[name])
        assert torch.allclose(after[name], expected, atol=1e-4)
    for name in set(before) - set(stream.tensors):
        assert torch.allclose(after[name], before[name], atol=1e-4)


@pytest.mark.parametrize(
    "name", ["linear_bottleneck", "residual", "plain", "shuffle", "squeeze_excite", "pointwise_end"]
)
def test_every_stream_of_a_network_can_be_mixed(name: str) -> None:
    graph = folded(name)
    mixed = graph
    for stream in find_streams(graph):
        mixed = mix_channels(mixed, stream, a_basis(graph[stream.tensors[0]].shape[0]))
    given = images(graph.input_shape)
    assert torch.allclose(FloatProgram(mixed)(given), FloatProgram(graph)(given), atol=1e-3)


def between(first: nn.Module, act: nn.Module, second: nn.Module) -> list[Stream]:
    net = Net(lambda m, x: m.fc(pooled(F.relu(m.b(m.act(m.a(x)))))), a=first, act=act, b=second, fc=head(8))
    return find_streams(folded_from(net))


def test_two_layers_with_nothing_between_them_are_a_stream() -> None:
    (stream,) = between(conv_bn(3, 6), nn.Identity(), conv_bn(6, 8))
    assert (stream.makers, stream.readers) == (("a.0",), ("b.0",))


@pytest.mark.parametrize(
    ("first", "act", "second"),
    [
        (conv_bn(3, 6), nn.ReLU(), conv_bn(6, 8)),
        (conv_bn(3, 6), nn.MaxPool2d(2), conv_bn(6, 8)),
        (conv_bn(3, 6, groups=3), nn.Identity(), conv_bn(6, 8)),
        (conv_bn(3, 8), nn.Identity(), conv_bn(8, 8, groups=8)),
    ],
    ids=["activation", "max pool", "grouped maker", "grouped reader"],
)
def test_channels_that_something_tells_apart_are_no_stream(first: nn.Module, act: nn.Module, second: nn.Module) -> None:
    assert between(first, act, second) == []


def test_fixed_maps_keep_their_weights() -> None:
    """A mean over the channels is a convolution with weights that 8 bits hold exactly, until it is rotated."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(pooled(F.relu(m.b(m.a(x).mean(1, keepdim=True)))))

    graph = folded_from(Net(forward, a=conv_bn(3, 6), b=conv_bn(1, 8), fc=head(8)))
    assert any("bits" in node.attributes for node in graph.nodes)
    assert find_streams(graph) == []


def test_answers_and_images_are_left_alone() -> None:
    net = Net(
        lambda m, x: m.fc(pooled(m.a(x))), a=nn.Conv2d(3, 6, 3), fc=nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 5))
    )
    assert [stream.tensors for stream in find_streams(folded_from(net))] == [("fc.0",)]
