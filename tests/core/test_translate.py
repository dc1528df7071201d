"""Each operator of PyTorch against the graph it becomes, and the ones that must be refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from network_parts import SHAPE, Net
from stages import images
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.capture import capture
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.passes import canonicalize
from gdfq_export.program import FloatProgram

Function = Callable[[Tensor], Tensor]


def graph_of(function: Function, **children: object):
    return canonicalize(capture(Net(lambda m, x: function(x), **children), SHAPE))


SUPPORTED: dict[str, Function] = {
    "addition of a number": lambda x: x + 2,
    "subtraction of a number": lambda x: x - 2,
    "product with a number": lambda x: 3 * x,
    "division by a number": lambda x: x / 4,
    "sum": lambda x: x + torch.relu(x),
    "sum with itself": lambda x: x + x,
    "sum over channels": lambda x: x.sum(1),
    "mean over channels": lambda x: x.mean(1, keepdim=True),
    "maximum over channels": lambda x: x.amax(1),
    "stack": lambda x: torch.stack([x, 2 * x], 2).flatten(1, 2),
    "softmax between layers": lambda x: torch.softmax(x, 1) + 1,
    "expansion": lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x),
    "channels padded behind": lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)),
    "uneven adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 3),
    "bilinear upsampling": lambda x: F.interpolate(x, size=(11, 16), mode="bilinear"),
    "choice of channels": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "product with itself": lambda x: x * x,
    "difference": lambda x: x - torch.relu(x),
    "maximum": lambda x: torch.maximum(x, x * 0.5),
    "clamp on both sides": lambda x: x.clamp(-0.5, 0.75),
    "clamp from below": lambda x: x.clamp(min=0.25),
    "clamp from above": lambda x: x.clamp(max=0.25),
    "clamp at zero": lambda x: x.clamp(min=0),
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.4),
    "relu6": F.relu6,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.5),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hard sigmoid": F.hardsigmoid,
    "hard swish": F.hardswish,
    "silu": F.silu,
    "tanh": torch.tanh,
    "max pool of one size": lambda x: F.max_pool2d(x, 2),
    "max pool of two sizes": lambda x: F.max_pool2d(x, (2, 3), (1, 2), (1, 0)),
    "max pool with dilation": lambda x: F.max_pool2d(x, 2, 1, 0, 3),
    "max pool with partial windows": lambda x: F.max_pool2d(x, 3, 2, 0, ceil_mode=True),
    "max pool with partial windows and padding": lambda x: F.max_pool2d(x, 3, 3, 1, ceil_mode=True),
    "max pool with partial windows and dilation": lambda x: F.max_pool2d(x, 2, 4, 0, 2, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool without padding in the mean": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool of the whole map": lambda x: F.avg_pool2d(x, 8),
    "adaptive average pool to a divisor": lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    "adaptive average pool to the same size": lambda x: F.adaptive_avg_pool2d(x, 8),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "mean of space": lambda x: x.mean((2, 3)),
    "mean of space from the end": lambda x: x.mean([-1, -2], keepdim=True),
    "slice of channels": lambda x: x[:, 1:],
    "one channel": lambda x: x[:, 1] + 1,
    "one column, counted from the end": lambda x: x[..., -2],
    "slice from the end": lambda x: x[:, :, :-2, ::3],
    "split in unequal parts": lambda x: torch.cat(torch.split(x, [1, 2], 1)[::-1], 1),
    "split of one size": lambda x: torch.split(x, 2, 1)[1],
    "chunk counted from the end": lambda x: x.chunk(3, 1)[-1],
    "padding": lambda x: F.pad(x, (1, 2, 3, 4)),
    "padding with a value": lambda x: F.pad(x, (1, 0), value=2.5),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, -1),
    "nearest upsampling": lambda x: F.interpolate(x, scale_factor=(2, 3), mode="nearest"),
    "upsampling to a size": lambda x: F.interpolate(x, size=(16, 8)),
    "view": lambda x: x.view(x.shape[0], -1),
    "flatten": lambda x: x.flatten(1),
    "squeeze and unsqueeze": lambda x: x.unsqueeze(2).squeeze(2),
    "softmax": lambda x: x.softmax(1),
    "log softmax from the end": lambda x: F.log_softmax(x, -1),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) + 1,
    "concatenation": lambda x: torch.cat([torch.relu(x), x], 1),
    "a detour": lambda x: x.clone().detach() * 2,
    "subtraction from a number": lambda x: 1 - x,
    "reversed subtraction of tensors": lambda x: torch.rsub(x, torch.relu(x)),
    "subtraction from a constant tensor": lambda x: torch.tensor([[[0.5]], [[1.0]], [[-2.0]]]) - x,
    "a negation": lambda x: -x,
    "mish": F.mish,
    "mish as it is written out": lambda x: x * torch.tanh(F.softplus(x)),
    "softplus with a slope": lambda x: F.softplus(5 * x, beta=2),
    "pixels stacked into channels": lambda x: F.pixel_unshuffle(x, 2),
    "channels spread over pixels": lambda x: F.pixel_shuffle(torch.cat([x, 2 * x, -x, x + 1], 1), 2),
    "repetition of channels": lambda x: x.repeat(1, 3, 1, 1),
    "repetition over space": lambda x: x.repeat(1, 1, 2, 3),
    "repetition of one position": lambda x: x.mean((2, 3), keepdim=True).repeat(1, 1, 8, 8) + x,
    "repetition once": lambda x: x.repeat(1, 1, 1, 1),
    "tiles": lambda x: x.tile(2, 1, 3),
    "tiles that repeat nothing": lambda x: x.tile(1, 1) + 1,
    "tiles of one position": lambda x: x.mean((2, 3), keepdim=True).tile(4, 4),
    "mean of space by pooling": lambda x: F.adaptive_avg_pool2d(x, 1),
    "average pool with partial windows": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "maximum over rows": lambda x: x.max(2)[0],
    "maximum by its other name": lambda x: torch.max(x, x * 0.5),
    "tiles of the last axes": lambda x: x.tile(3),
    "each channel twice": lambda x: x.repeat_interleave(2, 1),
    "each column thrice, counted from the end": lambda x: x.repeat_interleave(3, -1),
    "channels in groups, interleaved": lambda x: F.channel_shuffle(x.repeat(1, 2, 1, 1), 2),
}


@pytest.mark.parametrize("what", SUPPORTED)
def test_an_operator_keeps_its_meaning(what: str) -> None:
    x = images()
    # 1e-6: canonical forms multiply by 1/6 or 1/4 where the operator divides
    assert torch.allclose(FloatProgram(graph_of(SUPPORTED[what]))(x), SUPPORTED[what](x), atol=1e-6)


REFUSED: dict[str, tuple[Function, str]] = {
    "alpha of a sum": (lambda x: torch.add(x, x * 2, alpha=2), "alpha"),
    "a mean over rows": (lambda x: x.mean(2), "mean over axes"),
    "a sum over space": (lambda x: x.sum((2, 3)), "sum over axes"),
    "a moved batch": (lambda x: x.transpose(0, 1), "batch"),
    "channels padded in front": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)), "padding of channels"),
    "reflecting padding": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "reflect"),
    "uneven upsampling": (lambda x: F.interpolate(x, size=(12, 12)), "whole factor"),
    "a divisor of its own": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
    "selu": (F.selu, "operator selu"),
    "celu": (F.celu, "operator celu"),
    "a power": (lambda x: x**2, "operator pow"),
    "a matrix product": (lambda x: x @ x, "operator matmul"),
    "images repeated": (lambda x: x.repeat(2, 1, 1, 1), "repeat .* of the batch"),
    "an axis before the batch": (lambda x: x.repeat(1, 1, 1, 1, 1), "repeat .* of the batch"),
    "one image": (lambda x: x[0], "choice of images"),
    "each image twice": (lambda x: x.repeat_interleave(2, 0), "repeat_interleave .* of the batch"),
    "a softplus cut short": (lambda x: F.softplus(x, threshold=3), "threshold"),
    "alpha of a reversed subtraction": (lambda x: torch.rsub(x, 1, alpha=2), "alpha"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_operator_without_a_meaning_is_refused_by_name(what: str) -> None:
    function, words = REFUSED[what]
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        graph_of(function)
    assert " at " in str(caught.value)


def test_weights_that_depend_on_the_image_are_refused() -> None:
    class Dynamic(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * x.mean())

    with pytest.raises(UnsupportedModelError):
        capture(Net(lambda m, x: m.conv(x), conv=Dynamic(3, 4, 3)), SHAPE)


def test_weights_that_the_model_computes_of_its_parameters_are_constants() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.tanh(self.weight))

    net, x = Net(lambda m, x: m.conv(x), conv=Standardized(3, 4, 3)), images()
    assert torch.allclose(FloatProgram(capture(net, SHAPE))(x), net(x), atol=1e-6)  # one rounding of a convolution


@pytest.mark.parametrize("kernel", [2, 3, 4, (2, 5)])
def test_a_convolution_that_keeps_its_size_pads_as_pytorch_does(kernel: object) -> None:
    layer = nn.Conv2d(3, 4, kernel, padding="same", dilation=2)
    x = images()
    graph = capture(Net(lambda m, x: m.conv(x), conv=layer), SHAPE)
    # 1e-6: the padded copy is summed in another order
    assert torch.allclose(FloatProgram(graph)(x), layer(x), atol=1e-6)


def test_grouped_strided_dilated_convolutions_keep_their_attributes() -> None:
    layer = nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=3)
    node = capture(Net(lambda m, x: m.conv(x), conv=layer), SHAPE)["conv"]
    expected = {"stride": (2, 1), "pads": (1, 0, 1, 0), "dilation": (1, 2), "groups": 3}
    assert node.attributes == expected


def test_a_layer_without_bias_has_no_bias() -> None:
    layer = nn.Conv2d(3, 4, 3, bias=False)
    assert set(capture(Net(lambda m, x: m.conv(x), conv=layer), SHAPE)["conv"].parameters) == {"weight"}


def test_clamping_at_zero_is_a_relu() -> None:
    assert len(graph_of(lambda x: x.clamp(min=0)).of("relu")) == 1


def test_tensors_are_named_after_their_modules() -> None:
    model = Net(lambda m, x: m.block(x), block=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert [node.name for node in capture(model, SHAPE).nodes] == ["input", "block.0", "block.1.relu"]


def test_tensors_of_a_module_used_twice_have_two_names() -> None:
    model = Net(lambda m, x: m.act(m.act(x) + 1), act=nn.ReLU())
    names = [node.name for node in capture(model, SHAPE).nodes]
    assert len(set(names)) == len(names)


def test_a_module_called_input_does_not_hide_the_input() -> None:
    model = Net(lambda m, x: m.input(x), input=nn.Conv2d(3, 4, 3))
    x = images()
    assert torch.equal(FloatProgram(capture(model, SHAPE))(x), model(x))


def test_a_model_that_ignores_its_input_is_refused() -> None:
    with pytest.raises(UnsupportedModelError):
        capture(Net(lambda m, x: torch.relu(m.value), value=nn.Parameter(torch.zeros(2, 3))), SHAPE)
