"""Range equalization: the function stays, the ranges meet, and limits are respected."""

from __future__ import annotations

import pytest
import torch
from network_parts import Net, conv_bn, head, pooled, randomize
from small_networks import NETWORKS, shape_of
from stages import captured, folded, folded_from, images
from torch import nn
from torch.nn import functional as F

from gdfq_export.capture import capture
from gdfq_export.graph import Graph
from gdfq_export.moments import Moments, batch_norm_outputs, divided, peak
from gdfq_export.passes import canonicalize, equalize, find_channel_shuffle, fold_batch_norm
from gdfq_export.passes.equalize import find_pairs
from gdfq_export.program import FloatProgram, run_taps


def moments_of(name: str) -> dict[str, Moments]:
    return batch_norm_outputs(canonicalize(captured(name)), folded(name))


def spans_of(name: str) -> dict[str, torch.Tensor]:
    return {tensor: peak(m, 3.0) for tensor, m in moments_of(name).items()}


def row_ranges(graph: Graph, name: str) -> torch.Tensor:
    return graph.parameters[graph[name].parameters["weight"]].flatten(1).abs().amax(1)


def column_ranges(graph: Graph, name: str) -> torch.Tensor:
    return graph.parameters[graph[name].parameters["weight"]].transpose(0, 1).flatten(1).abs().amax(1)


def chain(activation, *, kernel: int = 3, pool=lambda x: x) -> nn.Module:
    """Two layers whose channels differ a hundredfold, with an activation between them."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, kernel, padding=kernel // 2)
    first.weight.data *= torch.logspace(-1, 1, 6).view(-1, 1, 1, 1)
    return Net(lambda m, x: m.fc(pooled(m.b(pool(m.act(m.a(x)))))), a=first, act=activation, b=second, fc=head(4))


@pytest.mark.parametrize("measured", ["weights", "channels"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_computes_what_it_did(name: str, measured: str) -> None:
    graph = folded(name)
    done = equalize(graph, moments_of(name), spans_of(name) if measured == "channels" else None)
    x = images(shape_of(name))
    # 1e-4 of logits near 1: every weight is rounded to float32 once more, with factors of up to a hundred
    assert torch.allclose(FloatProgram(done.graph)(x), FloatProgram(graph)(x), atol=1e-4)


def test_a_gate_is_passed_by_what_it_multiplies() -> None:
    first, gate, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3)
    net = Net(
        lambda m, x: m.fc(pooled(m.b(m.a(x) * torch.sigmoid(m.gate(x))))), a=first, gate=gate, b=second, fc=head(4)
    )
    graph = folded_from(net)
    pairs = find_pairs(graph)
    assert [(pair.first, pair.second) for pair in pairs if pair.second == "b"] == [("a", "b")]
    x, spans = images(), {"a": torch.logspace(-1, 1, 6)}
    done = equalize(graph, {}, spans).graph
    assert not torch.allclose(row_ranges(done, "a"), row_ranges(graph, "a"))
    assert torch.allclose(row_ranges(done, "gate"), row_ranges(graph, "gate"))
    assert torch.allclose(FloatProgram(done)(x), FloatProgram(graph)(x), atol=1e-5)


def test_what_makes_its_own_gate_is_no_pair() -> None:
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3)
    gated = Net(lambda m, x: m.fc(pooled(m.b((y := m.a(x)) * torch.sigmoid(y)))), a=first, b=second, fc=head(4))
    assert "b" not in {pair.second for pair in find_pairs(folded_from(gated))}
    squeezed = Net(
        lambda m, x: m.fc(pooled(m.b((y := m.a(x)) * torch.sigmoid(m.s(F.adaptive_avg_pool2d(y, 1)))))),
        **{"a": nn.Conv2d(3, 6, 3), "s": nn.Conv2d(6, 6, 1), "b": nn.Conv2d(6, 4, 3), "fc": head(4)},
    )
    assert "a" not in {pair.first for pair in find_pairs(folded_from(squeezed))}


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(6)],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("pool", [lambda x: x, lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 3, 1, 1)])
def test_homogeneous_chains_are_found_and_their_ranges_meet(activation: nn.Module, pool) -> None:
    graph = folded_from(chain(activation, pool=pool))
    done = equalize(graph, {})
    assert "a" in done.factors
    assert done.factors["a"].max() / done.factors["a"].min() > 10
    # 1e-2: the iteration ends when no factor moves by a thousandth
    assert torch.allclose(row_ranges(done.graph, "a"), column_ranges(done.graph, "b"), rtol=1e-2)
    x = images()
    assert torch.allclose(FloatProgram(done.graph)(x), FloatProgram(graph)(x), atol=1e-5)


def test_every_tensor_on_the_way_is_divided_by_its_factor() -> None:
    graph = folded_from(chain(nn.ReLU(), pool=lambda x: F.max_pool2d(x, 2)))
    done = equalize(graph, {})
    x, names = images(), list(done.factors)
    before, after = run_taps(FloatProgram(graph), x, names), run_taps(FloatProgram(done.graph), x, names)
    assert names == ["a", "act.relu", "max_pool", "b", "global_avg_pool", "reshape"]
    for name in names:
        factor = done.factors[name].float()
        expected = before[name] / factor.view(1, -1, *[1] * (before[name].ndim - 2))
        assert torch.allclose(after[name], expected, atol=1e-5)  # float32


def test_a_depthwise_chain_has_two_pairs() -> None:
    pairs = [(pair.first, pair.path, pair.second) for pair in find_pairs(folded("linear_bottleneck"))]
    assert pairs == [("expand.0", ("clip_1",), "depthwise.0"), ("depthwise.0", ("clip_2",), "project.0")]


def test_a_layer_with_two_readers_is_in_no_pair() -> None:
    stem, *_ = folded("residual").of("conv")
    assert stem.name not in {pair.first for pair in find_pairs(folded("residual"))}


def test_an_activation_that_is_not_homogeneous_ends_the_chain() -> None:
    assert find_pairs(folded_from(chain(nn.Tanh())))[0].first == "b"


def test_flattening_gives_each_channel_its_columns() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.fc(F.relu(m.a(x)).flatten(1)), a=nn.Conv2d(3, 4, 3, stride=4), fc=nn.Linear(16, 5))
    graph = folded_from(model)
    done = equalize(graph, {})
    columns = done.graph.parameters[done.graph["fc"].parameters["weight"]].view(5, 4, 4).abs().amax((0, 2))
    assert torch.allclose(row_ranges(done.graph, "a"), columns, rtol=1e-2)
    x = images()
    assert torch.allclose(FloatProgram(done.graph)(x), FloatProgram(graph)(x), atol=1e-5)


def capped() -> nn.Module:
    """ReLU6 behind a layer whose second channel reaches the cap; the others stay far below."""
    torch.manual_seed(0)
    model = Net(lambda m, x: m.fc(pooled(m.b(F.relu6(m.a(x))))), a=conv_bn(3, 4), b=nn.Conv2d(4, 4, 1), fc=head(4))
    randomize(model)
    model.a[1].weight.data.copy_(torch.tensor([0.2, 3.0, 0.02, 0.4]))
    model.a[1].bias.data.zero_()
    return model


def test_a_channel_that_reaches_the_cap_of_relu6_is_left_alone_and_no_other_is_brought_to_it() -> None:
    source = canonicalize(capture(capped(), (3, 8, 8)))
    graph = fold_batch_norm(source)
    moments = batch_norm_outputs(source, graph)
    (first, *_) = graph.of("conv")
    factors = equalize(graph, moments).factors[first.name]
    assert factors[1] == 1.0
    after = divided(moments, {first.name: factors})[first.name]
    open_channels = torch.tensor([0, 2, 3])
    assert (after.mean + 6 * after.std)[open_channels].max() <= 6.0 + 1e-9
    assert (factors[open_channels] != 1.0).all()


def test_without_statistics_nothing_passes_a_cap() -> None:
    graph = fold_batch_norm(canonicalize(capture(capped(), (3, 8, 8))))
    (first, *_) = graph.of("conv")
    done = equalize(graph, {})
    assert (done.factors[first.name] == 1.0).all()


def test_a_dead_channel_is_left_alone() -> None:
    model = chain(nn.ReLU())
    model.a.weight.data[2] = 0.0
    done = equalize(folded_from(model), {})
    assert done.factors["a"][2] == 1.0
    assert all(torch.isfinite(value).all() for value in done.graph.parameters.values())


def test_channels_before_a_depthwise_layer_get_one_range_where_ranges_of_channels_are_given() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.fc(pooled(m.b(F.relu(m.a(x))))),
        a=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(6, 6, 3, padding=1, groups=6),
        fc=head(6),
    )
    spans = torch.logspace(-1, 1, 6, dtype=torch.float64)
    factors = equalize(folded_from(model), {}, {"a": spans}).factors["a"]
    assert torch.allclose(spans / factors, torch.ones(6, dtype=torch.float64), rtol=1e-6)


def test_shuffled_channels_keep_their_factors() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(m.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return m.fc(pooled(m.b(x)))

    torch.manual_seed(0)
    model = Net(forward, a=nn.Conv2d(3, 12, 3), b=nn.Conv2d(12, 12, 1, groups=3), fc=head(12)).eval()
    model.a.weight.data *= torch.logspace(-1, 1, 12).view(-1, 1, 1, 1)
    graph = fold_batch_norm(find_channel_shuffle(canonicalize(capture(model, (3, 8, 8)))))
    done = equalize(graph, {})
    assert done.factors["a"].max() / done.factors["a"].min() > 5
    x = images()
    assert torch.allclose(FloatProgram(done.graph)(x), model(x), atol=1e-5)


def test_batch_norm_states_the_moments_of_its_output() -> None:
    norm = nn.BatchNorm2d(2, eps=0.0)
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    norm.weight.data.copy_(torch.tensor([-3.0, 0.5]))
    norm.bias.data.copy_(torch.tensor([0.25, -1.0]))
    source = canonicalize(capture(Net(lambda m, x: m.n(m.a(x)), a=nn.Conv2d(1, 2, 1), n=norm).eval(), (1, 4, 4)))
    (found,) = batch_norm_outputs(source, fold_batch_norm(source)).values()
    # 1e-9: float64, rounded by the square root
    assert torch.allclose(found.mean, torch.tensor([0.25, -1.0], dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found.std, torch.tensor([3.0, 0.5], dtype=torch.float64), atol=1e-9)
