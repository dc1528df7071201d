"""Poolings that became convolutions compute the same integers, and those that would not stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from network_parts import Net, conv_bn, head, pooled
from stages import folded_from, images, integer_logits, quantize_graph, run_onnx
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.arithmetic import mean_is_clear_of_ties
from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.integer import IntegerModel, QTensor
from gdfq_export.plan import BitWidths
from gdfq_export.pool_as_conv import pool_as_conv

Pool = Callable[[Tensor], Tensor]


def lowered(pool: Pool, bits: int = 8, *, concat: bool = False) -> IntegerModel:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        y = pool(x)
        if concat:  # whose range is another one than the pooling's input has
            y = torch.cat([F.relu(m.side(y)), y], 1)
        return m.fc(pooled(F.relu(m.last(y))))

    torch.manual_seed(0)
    module = Net(forward, stem=conv_bn(3, 6), side=conv_bn(6, 4), last=conv_bn(10 if concat else 6, 8), fc=head(8))
    return quantize_graph(folded_from(module), BitWidths(bits, bits))


def codes_of(model: IntegerModel, x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    IntegerProgram(model).eval().run_codes(x, seen.__setitem__)
    return seen


KEPT: Sequence[tuple[str, Pool]] = (
    ("padded", lambda x: F.avg_pool2d(x, 3, 1, 1)),
    ("strided", lambda x: F.avg_pool2d(x, 3, 2, 1)),
    ("without padding, so nothing to count", lambda x: F.avg_pool2d(x, 3, 1, 0, count_include_pad=False)),
    ("not square", lambda x: F.avg_pool2d(x, (1, 3), 1, (0, 1))),
    ("even", lambda x: F.avg_pool2d(x, 2)),
)


@pytest.mark.parametrize("concat", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("pool", [pool for _, pool in KEPT], ids=[name for name, _ in KEPT])
def test_every_tensor_keeps_its_integers_in_the_runtime_too(pool: Pool, bits: int, concat: bool) -> None:
    plain, x = lowered(pool, bits, concat=concat), images(count=8)
    model = pool_as_conv(plain)
    assert plain.graph.of("avg_pool")
    assert not model.graph.of("avg_pool")
    before, after = codes_of(plain, x), codes_of(model, x)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], codes) for name, codes in before.items())
    assert np.array_equal(run_onnx(onnx_from_integer_model(model), x).outputs, integer_logits(plain, x))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    ],
    ids=["padding is not counted", "windows that stand out"],
)
def test_others_stay(pool: Pool) -> None:
    model = lowered(pool)
    assert pool_as_conv(model) is model


@pytest.mark.parametrize(("pool", "ratio"), [(KEPT[0][1], 2 / 9), (KEPT[-1][1], 1)])
def test_scales_that_meet_a_tie_stay_poolings(pool: Pool, ratio: float) -> None:
    plain = lowered(pool, concat=True)
    (node,) = plain.graph.of("avg_pool")
    source = plain.tensors[node.inputs[0]]
    tied = dataclasses.replace(plain.tensors[node.name], scale=np.float32(source.scale * np.float32(ratio)))
    model = dataclasses.replace(plain, tensors={**plain.tensors, node.name: tied})
    assert pool_as_conv(model) is model


scales = st.floats(2**-10, 8.0, width=32)


@given(scales, scales, st.integers(0, 255), st.integers(0, 255), st.sampled_from([3, 9]), st.integers(0, 2**31))
def test_what_is_clear_of_ties_is_rounded_as_exact_fractions_are(
    source_scale: float, result_scale: float, source_zero: int, result_zero: int, count: int, seed: int
) -> None:
    source, result = (
        QTensor(np.float32(source_scale), source_zero, 255),
        QTensor(np.float32(result_scale), result_zero, 255),
    )
    if not mean_is_clear_of_ties(source, result, count):
        return
    codes = np.random.default_rng(seed).integers(0, 256, (200, count))
    ratio = Fraction(float(source.scale)) / Fraction(float(result.scale))
    exact = [round(ratio * int(row.sum() - source_zero * count) / count) for row in codes]
    expected = np.clip(np.array(exact, dtype=object) + result_zero, 0, 255).astype(np.int64)
    values = (codes - source_zero).astype(np.float32) * source.scale
    total = np.zeros(len(values), np.float32)
    for column in values.T:
        total += column
    pooling = np.rint(total / np.float32(count) / result.scale + np.float32(result_zero))
    one_over = np.float32(1 / count)
    layer = np.rint((codes - source_zero).sum(1).astype(np.float32) * (source.scale * one_over / result.scale))
    assert np.array_equal(np.clip(pooling, 0, 255), expected)
    assert np.array_equal(np.clip(layer + result_zero, 0, 255), expected)
