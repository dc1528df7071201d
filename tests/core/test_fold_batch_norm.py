from __future__ import annotations

import pytest
import torch
from network_parts import SHAPE, Net, head, pooled
from small_networks import NETWORKS, shape_of
from stages import captured, folded, folded_from, images, network
from torch import nn
from torch.nn import functional as F

from gdfq_export.passes import canonicalize, fold_batch_norm
from gdfq_export.passes.fold_batch_norm import affine_of
from gdfq_export.program import FloatProgram


def one_channel(**changes: float) -> nn.BatchNorm2d:
    """gamma 6, beta 1, mean 2, variance 9 - eps: y = 2 x - 3."""
    norm = nn.BatchNorm2d(1, eps=0.5)
    for value, (name, default) in zip(
        (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var),
        (("gamma", 6.0), ("beta", 1.0), ("mean", 2.0), ("variance", 8.5)),
        strict=True,
    ):
        value.fill_(changes.get(name, default))
    return norm


def fold_of(conv: nn.Module, norm: nn.Module):
    return folded_from(Net(lambda m, x: m.norm(m.conv(x)), conv=conv, norm=norm), (1, 4, 4))


def layer(weight: float, bias: float | None = None) -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, 1, bias=bias is not None)
    conv.weight.data.fill_(weight)
    if bias is not None:
        conv.bias.data.fill_(bias)
    return conv


def test_the_folded_weight_is_w_gamma_over_sigma() -> None:
    graph = fold_of(layer(5.0), one_channel())
    assert graph.parameter(graph["conv"], "weight").item() == 5.0 * 6.0 / 3.0


def test_the_folded_bias_is_beta_plus_b_minus_mu_times_gamma_over_sigma() -> None:
    graph = fold_of(layer(5.0, 4.0), one_channel())
    assert graph.parameter(graph["conv"], "bias").item() == 1.0 + (4.0 - 2.0) * 6.0 / 3.0


def test_a_layer_without_bias_gets_one() -> None:
    graph = fold_of(layer(5.0), one_channel())
    assert graph.parameter(graph["conv"], "bias").item() == 1.0 - 2.0 * 6.0 / 3.0


def test_a_negative_gamma_turns_the_weights_sign() -> None:
    graph = fold_of(layer(5.0), one_channel(gamma=-6.0))
    assert graph.parameter(graph["conv"], "weight").item() == -10.0


def test_a_gamma_of_zero_leaves_the_bias_alone() -> None:
    graph = fold_of(layer(5.0), one_channel(gamma=0.0))
    assert graph.parameter(graph["conv"], "weight").item() == 0.0
    assert graph.parameter(graph["conv"], "bias").item() == 1.0


def test_batch_norm_as_an_affine_map_has_a_scale_and_a_shift() -> None:
    graph = canonicalize(captured("dense"))
    node = graph.of("batch_norm")[0]
    scale, shift = affine_of(graph, node)
    x = images((6, 2, 2)).double()
    held = {role: graph.parameters[key].double() for role, key in node.parameters.items()}
    expected = F.batch_norm(x, held["mean"], held["variance"], held["weight"], held["bias"], eps=1e-5)
    # 1e-12: both are computed in float64
    assert torch.allclose(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), expected, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_keeps_what_the_network_computes(name: str) -> None:
    x = images(shape_of(name))
    # 1e-5 of values near 1: each folded weight is rounded to float32 once
    assert torch.allclose(FloatProgram(folded(name))(x), network(name)(x), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_batch_norm_is_left(name: str) -> None:
    assert not folded(name).of("batch_norm")


def test_folding_adds_no_layer_where_every_batch_norm_follows_one() -> None:
    assert len(folded("residual").of("conv")) == len(captured("residual").of("conv"))


def test_a_batch_norm_before_its_layer_becomes_a_depthwise_layer() -> None:
    added = folded("dense")["norm_a"]
    assert added.op == "conv"
    assert added.attributes["groups"] == 6


def test_a_layer_with_another_reader_keeps_its_weights() -> None:
    model = Net(lambda m, x: m.norm(y := m.conv(x)) + y, conv=layer(5.0), norm=one_channel())
    graph = folded_from(model, (1, 4, 4))
    assert graph.parameter(graph["conv"], "weight").item() == 5.0
    assert FloatProgram(graph)(torch.ones(1, 1, 4, 4)).unique().tolist() == [2 * 5 - 3 + 5]


def test_a_second_batch_norm_in_a_row_becomes_a_layer_of_its_own() -> None:
    model = Net(lambda m, x: m.second(m.first(m.conv(x))), conv=layer(1.0), first=one_channel(), second=one_channel())
    graph = folded_from(model, (1, 4, 4))
    assert FloatProgram(graph)(torch.ones(1, 1, 4, 4)).unique().tolist() == [2 * (2 * 1 - 3) - 3]


def test_a_batch_norm_of_features_folds_into_the_linear_layer_before_it() -> None:
    assert [node.name for node in folded("dropout_and_view").of("linear")] == ["hidden", "fc"]
    assert not folded("dropout_and_view")["hidden"].parameters["weight"].startswith("hidden.weight")


def test_a_batch_norm_of_pooled_features_computes_the_same_as_a_layer() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    norm.weight.data.copy_(torch.tensor([1.0, -2.0, 0.5]))
    model = Net(lambda m, x: m.fc(m.norm(pooled(x))), norm=norm, fc=head(3)).eval()
    x = images()
    # 1e-6: one more rounding to float32
    assert torch.allclose(FloatProgram(folded_from(model))(x), model(x), atol=1e-6)


def test_layers_that_share_weights_are_folded_apart() -> None:
    model = Net(
        lambda m, x: m.first(m.conv(x)) + m.second(m.conv(x)),
        conv=layer(5.0),
        first=one_channel(),
        second=one_channel(gamma=-6.0),
    )
    graph = folded_from(model, (1, 4, 4))
    weights = sorted(graph.parameter(node, "weight").item() for node in graph.of("conv"))
    assert weights == [-10.0, 10.0]


def test_folding_leaves_the_captured_graph_as_it_was() -> None:
    graph = captured("plain")
    before = {key: value.clone() for key, value in graph.parameters.items()}
    fold_batch_norm(canonicalize(graph))
    assert all(torch.equal(graph.parameters[key], before[key]) for key in before)


def test_the_shape_of_the_input_is_that_of_the_captured_graph() -> None:
    assert folded("plain").input_shape == SHAPE
