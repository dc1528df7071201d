"""What one rounding alone does to the answers, and the ranges and pairs that follow from it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from network_parts import Net, head, pooled
from stages import calibrated, folded, folded_from, images
from test_equalize import chain
from torch import nn
from torch.nn import functional as F

from gdfq_export.graph import Graph
from gdfq_export.lower import Quantized
from gdfq_export.meaning import ONE_CLASS
from gdfq_export.passes import equalize
from gdfq_export.passes.equalize import find_pairs
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import Affine, over_channels, quantize_weight
from gdfq_export.score import LogitError
from gdfq_export.separate_errors import (
    EVIDENCE,
    FACTOR,
    LARGER,
    NARROWEST,
    SeparateErrors,
    _largest,
    fit_ranges,
    pairs_worth_scaling,
)
from gdfq_export.stopwatch import Stopwatch

W4A4, W4A8 = BitWidths(4, 4), BitWidths(4, 8)


def with_ignored_peaks() -> Graph:
    """A network whose first layer has one channel with values ten times as large, which nothing reads."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
    first.weight.data[0] *= 10
    second.weight.data[:, 0] = 0
    return folded_from(Net(lambda m, x: m.fc(pooled(F.relu(m.b(F.relu(m.a(x)))))), a=first, b=second, fc=head(4)))


def group_behind(state: Quantized, layer: str) -> str:
    """The group of the first rounded tensor behind a layer."""
    name = state.plan.absorbed.get(layer, layer)
    return state.plan.tensors[name].group


def scaled_and_plain(activation: nn.Module, bits: BitWidths) -> tuple[Quantized, Quantized]:
    graph = folded_from(chain(activation))
    values: dict[str, torch.Tensor] = {}
    FloatProgram(graph)(images(count=16), values.__setitem__)
    spans = {pair.first: values[pair.first].abs().amax((0, 2, 3)) for pair in find_pairs(graph)}
    return calibrated(equalize(graph, {}, spans).graph, bits), calibrated(graph, bits)


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "shuffle", "linear_bottleneck", "squeeze_excite"])
def test_a_fine_grid_costs_nothing_and_a_coarse_one_does(name: str) -> None:
    state = calibrated(folded(name), W4A8)
    errors, affines = SeparateErrors(state, images(state.graph.input_shape)), state.affines
    fine = sum(errors.of_group(group, affines[group]) for group in errors.members)
    much = {group: Affine(affines[group].scale * 32, affines[group].zero_point) for group in errors.members}
    coarse = sum(errors.of_group(group, affine) for group, affine in much.items())
    assert fine < 0.01
    assert coarse > 3 * fine


def test_only_the_weights_of_one_layer_are_rounded() -> None:
    state = calibrated(folded("plain"), W4A4)
    given = images()
    errors = SeparateErrors(state, given)
    last = state.graph.of("linear")[-1]
    key = last.parameters["weight"]
    scale, weight = state.weight_scales[last.name], state.graph.parameters[key]
    rounded = quantize_weight(weight, scale, state.plan.weights[last.name].qmax) * over_channels(scale, weight)
    graph = Graph(state.graph.nodes, {**state.graph.parameters, key: rounded}, state.graph.output)
    found, exact = FloatProgram(graph)(given), FloatProgram(state.graph)(given)
    error = LogitError(ONE_CLASS)
    error.add(found + (exact - found).mean(0), exact)  # a bias that puts the means back
    assert errors.of_weights(last.name) == pytest.approx(error.value, rel=1e-5)
    assert errors.of_weights(last.name) > 1e-6


def test_weights_on_their_grid_cost_nothing() -> None:
    state = calibrated(folded("plain"), W4A4)
    parameters = dict(state.graph.parameters)
    for layer, spec in state.plan.weights.items():
        key, scale = state.graph[layer].parameters["weight"], state.weight_scales[layer]
        parameters[key] = quantize_weight(parameters[key], scale, spec.qmax) * over_channels(scale, parameters[key])
    done = dataclasses.replace(state, graph=Graph(state.graph.nodes, parameters, state.graph.output))
    errors = SeparateErrors(done, images())
    assert max(map(errors.of_weights, done.plan.weights)) < 1e-9


def test_a_range_leaves_out_what_the_answers_do_not_need() -> None:
    state = calibrated(with_ignored_peaks(), W4A4)
    group = group_behind(state, state.graph.of("conv")[0].name)
    fitted = fit_ranges(state, images(count=16))
    assert fitted.affines[group].scale == pytest.approx(state.affines[group].scale * FACTOR**NARROWEST)
    assert fitted.affines[group].zero_point == state.affines[group].zero_point


def test_a_range_that_is_too_narrow_grows() -> None:
    state = calibrated(folded("plain"), W4A8)
    group = group_behind(state, state.graph.of("conv")[0].name)
    narrow = {**state.affines, group: Affine(state.affines[group].scale / 8, state.affines[group].zero_point)}
    fitted = fit_ranges(dataclasses.replace(state, affines=narrow), images(count=16))
    assert fitted.affines[group].scale > narrow[group].scale


def test_no_range_grows_beyond_the_clip_that_it_stands_for() -> None:
    state = calibrated(folded("linear_bottleneck"), W4A8)
    group = next(group for group, specs in state.plan.groups().items() if specs[0].high == 6.0)
    qmax = state.plan.tensors[group].qmax
    narrow = {**state.affines, group: Affine(5.5 / qmax, 0)}
    given = 10 * images(count=16)  # most of what is above the range is above the clip, too
    fitted = fit_ranges(dataclasses.replace(state, affines=narrow), given)
    assert fitted.affines[group].scale * qmax == pytest.approx(6.0)


def test_answers_that_are_rounded_keep_their_range() -> None:
    state = calibrated(folded("squeeze_end"), W4A4)
    group = state.plan.tensors[state.graph.output].group
    wide = {**state.affines, group: Affine(state.affines[group].scale * 4, state.affines[group].zero_point)}
    given, whole = images(count=16), dataclasses.replace(state, affines=wide)
    assert SeparateErrors(whole, given).answers == group
    assert fit_ranges(whole, given).affines[group] == wide[group]


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "silu"])
def test_no_range_answers_worse_than_before_on_these_images_and_larger_ones(name: str) -> None:
    state, given = calibrated(folded(name), W4A4), images(folded(name).input_shape)
    fitted = fit_ranges(state, given)
    errors = SeparateErrors(state, given)

    def cost(group: str, affine: Affine) -> float:
        narrower = Affine(affine.scale / FACTOR, affine.zero_point)
        return errors.of_group(group, affine) + LARGER * errors.of_group(group, narrower)

    for group in errors.members:
        assert cost(group, fitted.affines[group]) <= cost(group, state.affines[group]) * (1 + 1e-6)
    pixels = set(state.plan.groups()) - set(errors.members)
    assert pixels
    assert all(fitted.affines[group] == state.affines[group] for group in pixels)


def test_a_range_leaves_room_for_values_larger_than_those_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Error of a narrow range 1, then 0.9, and steeply up: the least is at the edge, where a little more ruins it."""
    state, given = calibrated(folded("plain"), W4A8), images()
    group = group_behind(state, state.graph.of("conv")[0].name)
    start = state.affines[group].scale
    found = {-4: 40.0, -3: 20.0, -2: 9.0, -1: 0.9, 0: 1.0, 1: 1.5, 2: 2.3, 3: 3.4}

    def of_group(self: SeparateErrors, name: str, affine: Affine) -> float:
        return found[round(math.log(affine.scale / start, FACTOR))] if name == group else 0.0

    monkeypatch.setattr(SeparateErrors, "of_group", of_group)
    assert fit_ranges(state, given).affines[group].scale == start
    found[-2] = 0.8  # no edge: the next one is at -3
    assert fit_ranges(state, given).affines[group].scale == pytest.approx(start / FACTOR)


def test_a_range_becomes_narrower_only_where_that_saves_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower range lowers an error that is large or small beside that of all other tensors."""
    state, given = calibrated(folded("plain"), W4A8), images()
    group = group_behind(state, state.graph.of("conv")[0].name)
    others = next(name for name in SeparateErrors(state, given).members if name != group)
    start, beside = state.affines[group].scale, {others: 0.0}

    def of_group(self: SeparateErrors, name: str, affine: Affine) -> float:
        return 2.0 ** (affine.scale / start) if name == group else beside.get(name, 0.0)

    monkeypatch.setattr(SeparateErrors, "of_group", of_group)
    assert fit_ranges(state, given).affines[group].scale == pytest.approx(start * FACTOR**NARROWEST)
    saved = 2.0 - 2.0 ** (1 / FACTOR) + LARGER * (2.0 ** (1 / FACTOR) - 2.0 ** (1 / FACTOR**2))
    beside[others] = 1.1 * saved / EVIDENCE
    assert fit_ranges(state, given).affines[group].scale == start
    beside[others] = 0.9 * (saved / EVIDENCE - 2.0)
    assert fit_ranges(state, given).affines[group].scale < start


def test_a_pair_is_scaled_where_the_answers_gain_by_it() -> None:
    scaled, plain = scaled_and_plain(nn.ReLU(), W4A4)
    pairs = find_pairs(plain.graph)
    assert len(pairs) == 2
    worth = pairs_worth_scaling(plain, scaled, pairs, images(count=16))
    assert [pair.first for pair in worth][:1] == [pairs[0].first]
    turned = pairs_worth_scaling(scaled, plain, pairs, images(count=16))  # the other way round, the others are
    assert {pair.first for pair in worth}.isdisjoint(pair.first for pair in turned)


def test_a_pair_that_gains_nothing_is_left_alone() -> None:
    _, plain = scaled_and_plain(nn.ReLU(), W4A4)
    assert pairs_worth_scaling(plain, plain, find_pairs(plain.graph), images(count=16)) == []


@pytest.mark.parametrize(
    ("share", "names"), [(0.0, []), (0.5, ["b"]), (0.7, ["b", "c"]), (0.95, ["b", "c", "a"]), (1.0, ["b", "c", "a"])]
)
def test_the_largest_errors_are_searched(share: float, names: list[str]) -> None:
    assert _largest({"a": 1.0, "b": 6.0, "c": 3.0}, share) == names


def test_without_any_error_nothing_is_searched() -> None:
    assert _largest({"a": 0.0, "b": 0.0}, 0.98) == []


def test_without_time_nothing_is_weighed() -> None:
    state, given = calibrated(folded("plain"), W4A4), images(count=4)
    assert fit_ranges(state, given, stopwatch=Stopwatch(0.0)).affines == state.affines
    scaled, plain = scaled_and_plain(nn.ReLU(), W4A4)
    pairs = find_pairs(plain.graph)
    assert pairs
    assert pairs_worth_scaling(plain, scaled, pairs, given, stopwatch=Stopwatch(0.0)) == []


def test_what_there_is_no_time_for_any_more_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    state, given = calibrated(folded("plain"), W4A4), images(count=16)
    groups = len(SeparateErrors(state, given).members)
    calls = itertools.count()
    stopwatch = Stopwatch(None)
    monkeypatch.setattr(stopwatch, "is_over", lambda: next(calls) > groups)  # after the first search
    whole, short = fit_ranges(state, given), fit_ranges(state, given, stopwatch=stopwatch)
    moved = [group for group in state.affines if short.affines[group] != state.affines[group]]
    assert len(moved) <= 1
    assert all(short.affines[group] == whole.affines[group] for group in moved)
