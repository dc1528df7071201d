from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gdfq_export.emit_ops import EMIT
from gdfq_export.graph import Node
from gdfq_export.ops import ENDINGS, KERNELS, LAYERS, MOVEMENT, convolve, max_pool, torch_padding


def run(op: str, *x: torch.Tensor, shape: tuple[int, ...] = (), **attributes: object) -> torch.Tensor:
    return KERNELS[op](Node("n", op, tuple("ab"[: len(x)]), shape, attributes), list(x), {})


def counting(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def test_padding_turns_from_onnx_order_into_torch_order() -> None:
    top, left, bottom, right = 1, 2, 3, 4
    assert torch_padding((top, left, bottom, right)) == [left, right, top, bottom]


def test_a_convolution_with_asymmetric_padding_pads_each_side_as_it_says() -> None:
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 2, 3)
    node = Node("n", "conv", ("x",), (), {"stride": (1, 2), "pads": (0, 2, 1, 0), "dilation": (1, 1), "groups": 1})
    expected = F.conv2d(F.pad(x, (2, 0, 0, 1)), weight, None, (1, 2))
    assert torch.equal(convolve(node, x, weight, None), expected)


def test_a_padded_max_pool_never_returns_its_padding() -> None:
    window = {"kernel": (3, 3), "stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1)}
    x = -1 - counting(1, 1, 3, 3)
    node = Node("n", "max_pool", ("x",), (), window)
    assert torch.equal(max_pool(node, x, float("-inf")), F.max_pool2d(x, 3, 1, 1))


def test_a_slice_takes_every_step_between_start_and_end() -> None:
    sliced = run("slice", counting(1, 6, 1, 1), axis=1, start=1, end=6, step=2)
    assert sliced.flatten().tolist() == [1.0, 3.0, 5.0]


def test_a_channel_shuffle_of_two_groups_interleaves_them() -> None:
    assert run("channel_shuffle", counting(1, 6, 1, 1), groups=2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_padding_fills_with_its_value() -> None:
    padded = run("pad", torch.zeros(1, 1, 1, 1), pads=(0, 1, 0, 0), value=7.0)
    assert padded.flatten().tolist() == [7.0, 0.0]


def test_a_global_mean_keeps_the_axes_of_space() -> None:
    assert run("global_avg_pool", counting(1, 2, 2, 2)).flatten().tolist() == [1.5, 5.5]


def test_a_reshape_keeps_the_batch_of_its_input() -> None:
    assert run("reshape", torch.zeros(7, 2, 3), shape=(6,)).shape == (7, 6)


def test_a_transpose_moves_the_axes_it_names() -> None:
    assert run("transpose", torch.zeros(1, 2, 3, 4), axes=(0, 2, 3, 1)).shape == (1, 3, 4, 2)


def test_upsampling_repeats_each_value() -> None:
    assert run("upsample", counting(1, 1, 1, 2), scale=(1, 2)).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("groups", [LAYERS, MOVEMENT, ENDINGS])
def test_every_class_of_operations_names_operations_of_the_vocabulary(groups: frozenset[str]) -> None:
    assert groups <= KERNELS.keys()


def test_every_operation_that_survives_canonicalization_has_an_onnx_form() -> None:
    assert KERNELS.keys() - EMIT.keys() == {"constant", "hard_sigmoid", "hard_swish"}
