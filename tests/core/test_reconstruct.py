"""Reconstruction: what is trained, what stays, and that what it returns is what the file will hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_networks import NETWORKS
from stages import calibrated, folded, images
from torch import Tensor

from gdfq_export.block_program import BlockProgram, LearnedRounding, largest_step
from gdfq_export.blocks import find_blocks
from gdfq_export.checkpoint import Checkpoint
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.graph import INPUT, Graph
from gdfq_export.lower import Quantized
from gdfq_export.plan import BitWidths, without_endings
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.quantizers import quantize_weight
from gdfq_export.reconstruct import BLOCKS_STAGE, Kept, reconstruct, run_block
from gdfq_export.settings import Reconstruction
from gdfq_export.stopwatch import Stopwatch

W4A4 = BitWidths(4, 4)
SHORT = Reconstruction(steps=6, batch=4)


def start(name: str, bits: BitWidths = W4A4) -> Quantized:
    return calibrated(without_endings(folded(name))[0], bits)


def error(quantized: Quantized, x: Tensor) -> float:
    """Of the simulated logits against the float ones."""
    with torch.no_grad():
        program = FakeQuantProgram(quantized, learned_steps=False)
        return float((program(x) - FloatProgram(quantized.graph)(x)).square().mean())


def test_rounding_starts_at_the_float_weights_and_ends_on_the_grid() -> None:
    weight = torch.tensor([[0.31, -0.49, 1.9, -7.0], [0.0, 0.2, 0.04, -0.2]])
    scale = torch.tensor([0.5, 0.1])
    rounding = LearnedRounding(weight, scale, 7)
    clipped = torch.minimum(torch.maximum(weight, -7 * scale[:, None]), 7 * scale[:, None])
    # 1e-6: logit and sigmoid in float32
    torch.testing.assert_close(rounding(), clipped, rtol=0, atol=1e-6)
    nearest = quantize_weight(weight, scale, 7) * scale[:, None]
    torch.testing.assert_close(rounding(hard=True), nearest, rtol=0, atol=1e-6)


def test_the_regulariser_is_zero_when_everything_is_decided_and_one_for_each_weight_in_between() -> None:
    rounding = LearnedRounding(torch.tensor([[0.25, 0.75]]), torch.tensor([0.5]), 7)  # both half way
    assert float(rounding.undecided(2.0).detach()) == pytest.approx(2.0, abs=1e-6)  # 1e-6: float32
    with torch.no_grad():
        rounding.v.copy_(torch.tensor([[9.0, -9.0]]))
    assert float(rounding.undecided(2.0).detach()) == 0.0


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_in_turn_compute_what_the_whole_program_computes(name: str) -> None:
    quantized, x = start(name), images(folded(name).input_shape, count=4)
    values = {INPUT: x}
    with torch.no_grad():
        for block in find_blocks(quantized.graph, quantized.plan):
            values |= run_block(BlockProgram(block, quantized), values, batch=2)
        expected = FakeQuantProgram(quantized, learned_steps=False)(x)
    # half a step of rounding may fall the other way where float sums differ in order
    torch.testing.assert_close(values[quantized.graph.output], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "leaky", "squeeze_excite", "dense", "shuffle", "learned_scale"])
def test_what_is_learned_lies_on_the_grid_that_it_returns(name: str) -> None:
    quantized = reconstruct(start(name), images(folded(name).input_shape, count=8), SHORT, 0, silent)
    for layer, spec in quantized.plan.weights.items():
        weight = quantized.graph.parameters[quantized.graph[layer].parameters["weight"]]
        scale = quantized.weight_scales[layer]
        codes = weight / scale.view(-1, *[1] * (weight.ndim - 1))
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)  # 1e-4: float32 division
        assert float(codes.abs().max()) <= spec.qmax + 1e-4


def test_the_same_seed_learns_the_same_and_another_seed_does_not() -> None:
    x = images(folded("residual").input_shape, count=8)
    runs = [reconstruct(start("residual"), x, SHORT, seed, silent) for seed in (0, 0, 1)]
    same = [run.graph.parameters for run in runs]
    assert all(torch.equal(same[0][key], same[1][key]) for key in same[0])
    assert any(not torch.equal(same[0][key], same[2][key]) for key in same[0])


def test_training_brings_the_logits_closer_to_the_float_ones() -> None:
    x = images(folded("residual").input_shape, count=64)
    before = start("residual", BitWidths(3, 4))
    after = reconstruct(before, x, Reconstruction(steps=150, batch=16), 0, silent)
    reference = dataclasses.replace(before)
    assert error(reference, x) > 0
    with torch.no_grad():
        floats = FloatProgram(before.graph)(x)
        found = FakeQuantProgram(after, learned_steps=False)(x)
    assert float((found - floats).square().mean()) < 0.7 * error(before, x)


@pytest.mark.parametrize("factor", [2.0**-12, 2.0**12])
def test_the_size_of_a_layers_values_does_not_matter(factor: float) -> None:
    x, before = images(folded("plain").input_shape, count=16), start("plain")
    (layer,) = before.graph.of("linear")
    keys = layer.parameters.values()
    parameters = {key: value * factor if key in keys else value for key, value in before.graph.parameters.items()}
    scales = {name: value * factor if name == layer.name else value for name, value in before.weight_scales.items()}
    graph = Graph(before.graph.nodes, parameters, before.graph.output)
    other = dataclasses.replace(before, graph=graph, weight_scales=scales)
    one, two = (reconstruct(state, x, SHORT, 0, silent) for state in (before, other))
    for key in keys:
        found, wanted = two.graph.parameters[key] / factor, one.graph.parameters[key]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)  # 1e-5: Adam's epsilon
        assert not torch.equal(wanted, before.graph.parameters[key])


def test_what_is_kept_comes_back_with_eleven_bits_whatever_its_size() -> None:
    for size in (1e-9, 1.0, 1e9):
        value = size * torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        kept = Kept(value)
        assert len(kept) == 6
        assert kept.halves.element_size() == 2
        torch.testing.assert_close(kept[torch.tensor([4, 1])], value[[4, 1]], rtol=2**-10, atol=2**-24 * 5 * size)
    assert torch.equal(Kept(torch.zeros(2, 3))[:1], torch.zeros(1, 3))


def test_scales_stay_below_what_the_clip_they_stand_for_allows() -> None:
    x = images(folded("linear_bottleneck").input_shape, count=8)
    schedule = Reconstruction(steps=12, batch=4, scale_lr=60.0)  # far too large: the limit must hold
    quantized = reconstruct(start("linear_bottleneck"), x, schedule, 0, silent)
    bounded = [spec for spec in quantized.plan.tensors.values() if spec.high == 6.0]
    assert bounded
    for spec in bounded:
        affine = quantized.affines[spec.group]
        assert affine.scale <= largest_step([spec], affine)
        assert (spec.qmax - affine.zero_point) * affine.scale <= 6.0 + 1e-5


def test_without_time_nothing_changes() -> None:
    before = start("residual")
    after = reconstruct(before, images(count=8), SHORT, 0, silent, Stopwatch(0.0))
    assert after.affines == before.affines
    assert all(torch.equal(after.graph.parameters[k], v) for k, v in before.graph.parameters.items())


def test_every_block_gets_its_part_of_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(Stopwatch, "left", lambda self, share=1.0: asked.append(share) or 60.0)
    reconstruct(start("residual"), images(count=8), SHORT, 0, silent, Stopwatch(1e9), share=0.65)
    assert len(asked) > 1
    assert set(asked) == {0.65}


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_between_blocks_ends_with_the_same_values(tmp_path: Path) -> None:
    x = images(folded("residual").input_shape, count=8)
    whole = reconstruct(start("residual"), x, SHORT, 0, silent)
    checkpoint = Checkpoint(tmp_path / "work")
    checkpoint.is_due = lambda: True  # type: ignore[method-assign]

    def kill(what: str, done: float, total: float) -> None:
        if done > 2.5:
            raise KilledError

    with pytest.raises(KilledError):
        reconstruct(start("residual"), x, SHORT, 0, kill, checkpoint=checkpoint)
    saved = checkpoint.load(BLOCKS_STAGE)
    assert saved is not None
    assert saved["finished"] == 2
    resumed = reconstruct(start("residual"), x, SHORT, 0, silent, checkpoint=checkpoint)
    assert resumed.affines == whole.affines
    assert all(torch.equal(resumed.graph.parameters[k], v) for k, v in whole.graph.parameters.items())
