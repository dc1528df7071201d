"""Sensitivities, and the widths that a budget leads to."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from stages import folded, images
from torch import nn

from gdfq_export.allocation import Curve
from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.errors import UsageError
from gdfq_export.file_size import bytes_beside_weights
from gdfq_export.models.random_weights import set_batch_norm_statistics
from gdfq_export.models.sources import LoadedModel
from gdfq_export.packing import weight_bytes
from gdfq_export.pipeline import Exported, Prepared, prepare, quantize_model, write_files
from gdfq_export.plan import BitWidths, make_plan, with_weight_bits
from gdfq_export.program import FloatProgram
from gdfq_export.runtime_checks.verify import verify_model
from gdfq_export.sensitivity import (
    Sensitivity,
    bit_operations_of,
    widths_worth_asking,
)
from gdfq_export.settings import Distillation, Schedule, Settings

SHORT = Schedule(batch=16, warmup_steps=1, steps=1, steps_per_epoch=1)
EIGHT = BitWidths(8, 8)
FEW = Distillation(images=32, batch=32, steps=3, shift=1)


@cache
def prepared(bits: BitWidths) -> Prepared:
    """Three layers, the second and third large."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)),
    )
    set_batch_norm_statistics(module, (3, 16, 16), 0)
    half = (0.5, 0.5, 0.5)
    loaded = LoadedModel("small", module.eval(), (3, 16, 16), half, half, 5, None, "random", None)
    return prepare(loaded, settings(bits=bits))


def settings(**changes: object) -> Settings:
    asked = Settings("zeroq", BitWidths(8, 8), SHORT, "mse", "portable", seed=0, distillation=FEW)
    return dataclasses.replace(asked, **changes)  # type: ignore[arg-type]


def quantized(**changes: object) -> Exported:
    asked = settings(**changes)
    return quantize_model(prepared(asked.bits), asked)


def curve_of(exported: Exported) -> Curve:
    assert exported.outcome.curve is not None
    return exported.outcome.curve


def file_bytes(exported: Exported) -> int:
    return len(onnx_from_integer_model(exported.integer).SerializeToString())


def test_a_layer_is_less_sensitive_at_more_bits_and_is_left_as_it_was() -> None:
    graph, x = folded("residual"), images()
    sensitivity = Sensitivity(graph, x, "cpu")
    before = FloatProgram(graph)(x)
    for layer in make_plan(graph, BitWidths(8, 8)).weights:
        found = [sensitivity(layer, bits) for bits in (2, 4, 8)]
        assert found[0] > found[1] > found[2] >= 0
    assert torch.equal(sensitivity.program(x), before)


def test_a_width_is_not_asked_for_where_a_wider_one_costs_the_same() -> None:
    assert widths_worth_asking([(2, 10), (3, 10), (4, 10), (5, 20), (8, 20)]) == [(4, 10), (8, 20)]
    assert widths_worth_asking([(2, 5), (3, 8), (4, 10)]) == [(2, 5), (3, 8), (4, 10)]


def test_bit_operations_are_multiplications_times_both_widths() -> None:
    graph = prepared(EIGHT).folded
    first = graph.of("conv")[0]
    plan = make_plan(graph, BitWidths(8, 4))
    channels, pixel = 4, 8  # the image is padded from three channels, and keeps its 8 bits
    assert bit_operations_of(graph, plan, first, 3) == channels * 32 * 9 * 8 * 8 * 3 * pixel


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_predicted_size_of_a_uniform_file_is_its_size_but_for_the_facts(bits: int) -> None:
    asked = settings(bits=BitWidths(bits, 8))
    exported = quantize_model(prepared(asked.bits), asked)
    size = bytes_beside_weights(quantized().integer, range(2, 9), exported.outcome.held_back)
    layers = exported.integer.layers.values()
    predicted = size.beside([bits]) + sum(weight_bytes(layer.q_weight.size, bits) + size.each[bits] for layer in layers)
    with TemporaryDirectory() as folder:
        written = write_files(exported, asked, Path(folder) / "m.onnx", companions=False)["file_bytes"]
    # 3,100: three kilobytes are set aside for the facts of the run, a little over two are used
    assert 0 <= predicted - written <= 3100


def test_without_a_budget_every_layer_has_the_asked_width() -> None:
    exported = quantized(bits=BitWidths(5, 8))
    assert {layer.bits for layer in exported.integer.layers.values()} == {5}
    assert exported.outcome.curve is None


def test_the_file_keeps_the_size_budget_and_a_larger_one_is_used() -> None:
    least = min(cost for cost, _ in curve_of(quantized(size_budget=10**9)).front)
    small, middle, large = (quantized(size_budget=budget) for budget in (least, least + 1000, 10**9))
    assert {layer.bits for layer in large.integer.layers.values()} == {8}
    assert len({layer.bits for layer in middle.integer.layers.values()}) > 1
    assert file_bytes(small) < file_bytes(middle) < file_bytes(large)
    for exported, budget in ((small, least), (middle, least + 1000)):
        assert file_bytes(exported) <= budget
        assert curve_of(exported).chosen[0] <= budget
    assert curve_of(small).chosen[1] > curve_of(middle).chosen[1] > curve_of(large).chosen[1]


def test_a_compute_budget_gives_mixed_widths() -> None:
    uniform = {bits: cost for bits, cost, _ in curve_of(quantized(bit_operations_budget=10**15)).uniform}
    exported = quantized(bit_operations_budget=uniform[4])
    curve = curve_of(exported)
    assert curve.chosen[0] <= uniform[4]
    assert curve.chosen[1] <= next(sensitivity for bits, _, sensitivity in curve.uniform if bits == 4)


def test_the_first_and_last_layer_keep_a_width_that_was_asked_for_them() -> None:
    exported = quantized(bits=BitWidths(8, 8, first_last=8), bit_operations_budget=10**7)
    widths = [layer.bits for layer in exported.integer.layers.values()]
    assert widths[0] == widths[-1] == 8
    assert widths[1] < 8


@pytest.mark.parametrize("budget", [{"size_budget": 100}, {"bit_operations_budget": 100}])
def test_a_budget_below_the_narrowest_network_is_refused_with_what_would_do(budget: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="give at least"):
        quantized(**budget)


def test_wide_first_weights_of_narrow_padded_pixels_are_proved_not_to_saturate(tmp_path: Path) -> None:
    asked = settings(bits=BitWidths(8, 4), size_budget=10**9)
    out = tmp_path / "m.onnx"
    write_files(quantize_model(prepared(asked.bits), asked), asked, out, companions=False)
    report = verify_model(out, samples=2).to_json()
    assert (report["passed"], report["saturation_safe"], report["float_ops"]) == (True, True, [])


def test_the_plan_says_why_a_layer_has_its_width() -> None:
    plan = with_weight_bits(make_plan(folded("plain"), BitWidths(8, 8)), {"fc": 3})
    assert plan.weights["fc"].bits == 3
    assert "mixed precision" in plan.weights["fc"].reason
    assert {spec.bits for layer, spec in plan.weights.items() if layer != "fc"} == {8}
