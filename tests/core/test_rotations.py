"""The rotation in which a stream is rounded best."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from stages import folded, images
from test_auto import task_of
from test_mix_channels import bottlenecks
from torch import Tensor

from gdfq_export.methods import fitting
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.fitting import start_fitting
from gdfq_export.methods.task import Task
from gdfq_export.passes.mix_channels import find_streams
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram, run_taps
from gdfq_export.rotations import best_rotation, values_of
from gdfq_export.stopwatch import Stopwatch

UNEVEN = torch.diag(torch.tensor([50.0, 1.0, 1.0, 1.0, 1.0, 1.0]))


def normal(deviations: list[float], seed: int = 0) -> Tensor:
    noise = torch.randn(len(deviations), 4000, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(deviations)[:, None] * noise


def span(tensor: Tensor) -> float:
    return float(tensor.max() - tensor.min())


def test_what_a_wide_channel_holds_is_spread_over_all() -> None:
    given = [normal([8.0, *[0.1] * 15]), normal([4.0, *[0.1] * 15], seed=1)]
    found = best_rotation(given, seed=0)
    assert torch.allclose(found @ found.T, torch.eye(16), atol=1e-5)
    for tensor in given:
        assert span(found @ tensor) < 0.6 * span(tensor)  # evenly would be a quarter


def test_what_is_best_as_it_is_stays() -> None:
    corners = 2.0 * torch.eye(2) - 1.0  # of a square: turned, it is wider
    square = torch.cat([corners, -corners, torch.ones(2, 1), -torch.ones(2, 1)], 1)
    assert torch.equal(best_rotation([square], seed=0), torch.eye(2))
    assert torch.equal(best_rotation([torch.zeros(3, 10)], seed=0), torch.eye(3))


def test_the_same_seed_gives_the_same_rotation() -> None:
    given = [normal([3.0, 1.0, 0.2])]
    assert torch.equal(best_rotation(given, seed=5), best_rotation(given, seed=5))
    assert not torch.equal(best_rotation(given, seed=5), best_rotation(given, seed=6))


def test_values_are_taken_where_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, given = bottlenecks(), images(count=4)
    (stream,) = find_streams(graph)
    exact = run_taps(FloatProgram(graph), given, stream.tensors)
    found = values_of(graph, given, stream.tensors, seed=0)
    for name in stream.tensors:
        columns = exact[name].transpose(0, 1).flatten(1)
        assert found[name].shape == columns.shape
        assert torch.equal(found[name].sum(0).sort().values, columns.sum(0).sort().values)  # whole columns, each once
    monkeypatch.setattr("gdfq_export.rotations.POSITIONS", 40)
    assert all(value.shape[1] == 40 for value in values_of(graph, given, stream.tensors, seed=0).values())


def weighing(asked: Task) -> Task:
    return dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, weighing=8))


@pytest.mark.parametrize("bits", [BitWidths(8, 8), BitWidths(4, 4)])
def test_streams_are_rotated_where_the_answers_gain_and_answer_as_before(bits: BitWidths) -> None:
    graph = bottlenecks(first=10.0)
    (stream,) = find_streams(graph)
    asked, given = weighing(task_of(graph, bits)), images(count=8)
    found = start_fitting(asked, given)
    assert found.free == {"expand", "end", "fc"}  # of the makers batch norm tells nothing any more
    assert torch.allclose(FloatProgram(found.task.folded)(given), FloatProgram(graph)(given), atol=1e-3)
    left = start_fitting(asked, given, rotate=False)
    assert left.task is asked
    assert left.free == found.free | set(stream.makers)


def test_a_rotated_network_is_fitted_on() -> None:
    asked, given = weighing(task_of(bottlenecks(first=10.0), BitWidths(4, 4))), images(count=8)
    found = start_fitting(asked, given)
    state, exact = found.finish(quantize_to_nearest(found.task, [given]), [given])
    assert torch.allclose(FloatProgram(exact)(given), FloatProgram(asked.folded)(given), atol=1e-3)
    assert state.graph.nodes == exact.nodes


def test_a_stream_that_loses_by_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = weighing(task_of(bottlenecks(), BitWidths(4, 4)))
    monkeypatch.setattr(fitting, "best_rotation", lambda tensors, seed: UNEVEN)
    folded_then = start_fitting(asked, images(count=8)).task.folded
    assert all(torch.equal(value, folded_then.parameters[key]) for key, value in asked.folded.parameters.items())


def test_without_streams_or_without_time_nothing_is_rotated() -> None:
    asked = weighing(task_of(folded("plain"), BitWidths(4, 4)))
    assert start_fitting(asked, images()).task is asked
    asked = weighing(task_of(bottlenecks(first=10.0), BitWidths(4, 4)))
    assert "stem" in start_fitting(asked, images(), Stopwatch(0.0)).free
