"""Scales on which all processors agree are found in few tries, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from network_parts import Net, conv_bn, head, pooled, randomize
from stages import calibrated, compare_with_runtime, folded, folded_from, images
from test_kernel_limits import clipped, far_apart
from torch import nn
from torch.nn import functional as F

from gdfq_export import agreement
from gdfq_export.agreement import MAX_NUDGES
from gdfq_export.arithmetic import is_invariant
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.integer import IntegerModel, QTensor, operands_of
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.plan import BitWidths

W8A8 = BitWidths(8, 8)
FEW = 30  # eight steps are the most that were seen on a real network


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each triple of scales that is tried."""
    made: list[int] = []

    def counted(function: Callable[..., bool]) -> Callable[..., bool]:
        def call(*arguments: Any, **options: Any) -> bool:
            made.append(1)
            return function(*arguments, **options)

        return call

    for name in ("is_invariant", "is_sigmoid_invariant", "mean_is_clear_of_ties"):
        monkeypatch.setattr(agreement, name, counted(getattr(agreement, name)))
    return made


def lowered(quantized: Quantized) -> IntegerModel:
    return integer_model_from_quantized(quantized, TARGETS["portable"])


@pytest.mark.parametrize("factor", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("act", [F.hardswish, F.hardsigmoid, F.relu6, F.silu])
def test_huge_values_before_an_activation_take_few_tries(
    act: Callable[..., Any], factor: float, tries: list[int]
) -> None:
    net = randomize(Net(lambda m, x: m.fc(pooled(act(m.a(x)))), a=conv_bn(3, 8), fc=head(8)))
    norm = next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d))
    norm.weight.data.fill_(factor)
    model = lowered(calibrated(folded_from(net), W8A8))
    assert len(tries) <= FEW
    expected, found = compare_with_runtime(model, images())
    assert np.array_equal(expected, found)


@pytest.mark.parametrize("name", ["residual", "linear_bottleneck", "hard_swish"])
def test_networks_of_every_day_take_few_tries(name: str, tries: list[int]) -> None:
    model = lowered(calibrated(folded(name), W8A8))
    assert len(tries) <= FEW * len(model.graph.of("add", "mul", "add_scalar", "avg_pool"))
    assert model.report.largest_nudge < agreement.NUDGE**FEW - 1


@pytest.mark.parametrize("kind", ["add", "mul", "add_scalar", "sigmoid", "avg_pool"])
@pytest.mark.parametrize("exponent", [-40, -20, 9, 20, 40])
def test_scales_far_apart_take_few_tries(kind: str, exponent: int, tries: list[int]) -> None:
    lowered(far_apart(kind, exponent))
    assert len(tries) <= FEW


def never(*arguments: Any, **options: Any) -> bool:
    return False


def unless_exact(op: str, a: QTensor, b: QTensor, c: QTensor, *, broadcast: bool = False) -> bool:
    """Chance never helps: only scales for which no rounding is left agree."""
    ratios = [a.scale * b.scale / c.scale] if op == "mul" else [a.scale / c.scale, b.scale / c.scale]
    powers = all(float(np.log2(ratio)).is_integer() for ratio in ratios)
    return powers and (op == "mul" or min(ratios) >= 1) and is_invariant(op, a, b, c, broadcast=broadcast)


@pytest.mark.parametrize("op", ["add", "mul"])
def test_where_steps_are_in_vain_scales_are_chosen_that_leave_no_rounding(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(*arguments: Any, **options: Any) -> bool:
        made.append(1)
        return unless_exact(*arguments, **options)

    monkeypatch.setattr(agreement, "is_invariant", counted)
    model = lowered(far_apart(op, 3))
    operands = operands_of(model.graph["c"], model.tensors)
    assert operands is not None
    assert is_invariant(op, *operands, model.tensors["c"])
    assert MAX_NUDGES < len(made) <= MAX_NUDGES + 3


def test_a_clip_keeps_its_place_where_scales_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "is_invariant", unless_exact)
    model = lowered(clipped("add", 3))
    assert model.tensors["d"].scale == np.float32(6 / 255)
    expected, found = compare_with_runtime(model, images((2, 4, 4)))
    assert np.array_equal(expected, found)


def test_a_sum_with_a_constant_becomes_a_table_where_steps_are_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "is_invariant", never)
    model = lowered(far_apart("add_scalar", 3))
    assert model.report.scales_nudged == 0
    expected, found = compare_with_runtime(model, images((2, 4, 4)))
    assert np.array_equal(expected, found)


@pytest.mark.parametrize("op", ["add", "mul", "sigmoid"])
def test_an_operator_that_never_agrees_is_refused_by_its_place_after_a_bounded_number_of_tries(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    for name in ("is_invariant", "is_sigmoid_invariant"):
        monkeypatch.setattr(agreement, name, lambda *arguments, **options: bool(made.append(1)))
    with pytest.raises(UnsupportedModelError, match="the same integers at c: use --target"):
        lowered(far_apart(op, 3))
    assert len(made) <= MAX_NUDGES + 10


def test_a_mean_that_never_keeps_clear_of_ties_keeps_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "mean_is_clear_of_ties", never)
    quantized = far_apart("avg_pool", 3)
    assert lowered(quantized).tensors["c"].scale == np.float32(quantized.affines["c"].scale)
