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


def gradients(x: torch.Tensor, *results: torch.Tensor) -> list[torch.Tensor]:
    """Of x, for each result, weighed at random."""
    weights = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(1))
    return [torch.autograd.grad((y.float() * weights).sum(), x, retain_graph=True)[0] for y in results]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("groups", "pads"), [(1, (1, 1, 1, 1)), (4, (0, 2, 1, 0))])
def test_a_frozen_convolution_has_the_gradient_of_any_other(
    groups: int, pads: tuple[int, ...], layout: torch.memory_format, autocast: bool
) -> None:
    x = torch.randn(2, 8, 7, 6).contiguous(memory_format=layout).requires_grad_()
    frozen, bias = torch.randn(4, 8 // groups, 3, 3), torch.randn(4)
    trained = frozen.clone().requires_grad_()
    window = {"stride": (2, 1), "pads": pads, "dilation": (1, 1), "groups": groups}
    node = Node("n", "conv", ("x",), (), window)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = [convolve(node, x, weight, bias) for weight in (frozen, trained)]
    assert torch.equal(*results)
    assert torch.equal(*gradients(x, *results))


def test_a_frozen_convolution_of_any_rank_has_a_gradient() -> None:
    for rank in (1, 3):
        x, weight = torch.randn(2, 3, *[5] * rank).requires_grad_(), torch.randn(4, 3, *[3] * rank)
        window = {"stride": (1,) * rank, "pads": (1,) * 2 * rank, "dilation": (1,) * rank, "groups": 1}
        node = Node("n", "conv", ("x",), (), window)
        results = [convolve(node, x, weights, None) for weights in (weight, weight.clone().requires_grad_())]
        assert torch.equal(*gradients(x, *results))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_has_the_gradient_of_its_formula(affine: bool) -> None:
    x = torch.randn(2, 3, 4, 4).requires_grad_()
    p = {"mean": torch.randn(3), "variance": torch.rand(3) + 0.1}
    p |= {"weight": torch.randn(3), "bias": torch.randn(3)} if affine else {}
    found = KERNELS["batch_norm"](Node("n", "batch_norm", ("x",), (), {"eps": 1e-3}), [x], p)
    wanted = F.batch_norm(x, p["mean"], p["variance"], p.get("weight"), p.get("bias"), eps=1e-3)
    assert torch.equal(found, wanted)
    # 1e-6 relative: the factors are multiplied in another order
    assert torch.allclose(*gradients(x, found, wanted), rtol=1e-6, atol=1e-6)


def test_a_clip_passes_gradients_between_its_limits_alone() -> None:
    x = torch.tensor([-1.0, 0.5, 5.0, 7.0]).requires_grad_()
    run("clip", x, low=0.0, high=6.0).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
