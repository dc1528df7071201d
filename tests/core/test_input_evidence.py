"""Batch-norm statistics tell whether the network was trained on values of the range that is assumed."""

from __future__ import annotations

import logging

import pytest
import torch
from network_parts import conv_bn, head, randomize
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.errors import UsageError
from gdfq_export.generator import image_spec
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.input_evidence import CONTRADICTION, Evidence, check_evidence, input_evidence

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
UNIT = ((0.0,) * 3, (1.0,) * 3)


def network(channels: int = 3, **options: int) -> nn.Module:
    torch.manual_seed(0)
    first = conv_bn(channels, 16, options.pop("kernel", 3), **options)
    return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(16))


def shown(module: nn.Module, inputs: Tensor) -> nn.Module:
    """The module with the statistics of these inputs."""
    for child in module.modules():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            child.momentum = None
    module.train()
    with torch.no_grad():
        module(inputs)
    return module.eval()


def graph_of(module: nn.Module, shape: tuple[int, int, int]) -> Graph:
    """The first layer and its batch norm, as capture would have them."""
    layers = [child for child in module.modules() if not list(child.children())]
    first = next(child for child in layers if isinstance(child, (nn.Conv2d, nn.Linear)))
    norm = layers[layers.index(first) + 1]
    nodes, parameters = [Node(INPUT, INPUT, (), shape)], {"weight": first.weight.detach()}
    if isinstance(first, nn.Conv2d):
        places = tuple(first(torch.zeros(1, *shape)).shape[1:])
        nodes.append(Node("first", "conv", (INPUT,), places, {"groups": first.groups}, {"weight": "weight"}))
    else:
        nodes.append(Node("flat", "reshape", (INPUT,), (shape[0] * shape[1] * shape[2],)))
        roles = {"weight": "weight", "bias": "bias"}
        nodes.append(Node("first", "linear", ("flat",), (first.out_features,), {}, roles))
        parameters["bias"] = first.bias.detach()
    if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        held = {"mean": "running_mean", "variance": "running_var"}
        nodes.append(Node("norm", "batch_norm", ("first",), nodes[-1].shape, {}, held))
        parameters |= {key: norm.get_buffer(key) for key in held.values()}
    return Graph(tuple(nodes), parameters, nodes[-1].name)


def smooth(values: Tensor) -> Tensor:
    """Neighbours are alike, as in photographs: (N, C, H, W)."""
    return F.interpolate(values, scale_factor=4, mode="bilinear")


def photographs(count: int = 64) -> Tensor:
    """Pixels in 0..1 whose mean and deviation are those of photographs."""
    generator = torch.Generator().manual_seed(0)
    grey = torch.randn(count, 1, 8, 8, generator=generator) * 0.3
    return (smooth(grey + 0.1 * torch.randn(count, 3, 8, 8, generator=generator)) + 0.45).clamp(0, 1)


def normalised(pixels: Tensor, normalisation: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in normalisation)
    return (pixels - mean) / std


def evidence(
    module: nn.Module, shape: tuple[int, int, int], normalisation: tuple[tuple[float, ...], tuple[float, ...]]
) -> Evidence:
    found = input_evidence(graph_of(module, shape), image_spec(shape, *normalisation))
    assert found is not None
    return found


def check(module: nn.Module, shape: tuple[int, int, int] = (3, 32, 32), *, is_image: bool = True) -> None:
    unit = ((0.0,) * shape[0], (1.0,) * shape[0])
    check_evidence(graph_of(module, shape), image_spec(shape, *unit), is_image=is_image)


@pytest.mark.parametrize("kind", ["uniform", "normal", "smooth", "narrow"])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_around_zero_contradict_pixels_in_0_to_1(kind: str, channels: int) -> None:
    noise = torch.randn(64, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    inputs = {
        "uniform": (noise * 10).sin() * 2,
        "normal": (noise * 0.8).clamp(-2, 2),
        "smooth": smooth(noise[:, :, :8, :8]).clamp(-2, 2),
        "narrow": noise * 0.4,
    }[kind]
    module = shown(network(channels), inputs)
    with pytest.raises(UsageError, match=r"batch norm behind first .* from 0 to 1 .*--input-range LOW,HIGH"):
        check(module, (channels, 32, 32))


def test_the_same_features_fit_their_own_range() -> None:
    noise = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 4 - 2
    graph = graph_of(shown(network(), noise), (3, 32, 32))
    spec = image_spec((3, 32, 32), *UNIT, (-2.0, 2.0))
    found = input_evidence(graph, spec)
    assert found is not None
    assert found.share < 0.5
    check_evidence(graph, spec, is_image=False)


@pytest.mark.parametrize("trained", [IMAGENET, HALF, UNIT])
def test_photographs_fit_the_normalisation_of_the_training(
    trained: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    module = shown(network(stride=2, padding=0), normalised(photographs(), trained))
    found = evidence(module, (3, 32, 32), trained)
    assert 0.1 < found.share < 0.6
    assert found.misfit < 0.05


@pytest.mark.parametrize(("trained", "assumed"), [(IMAGENET, UNIT), (HALF, UNIT), (IMAGENET, ((0.0,) * 3, (1.0,) * 3))])
def test_photographs_contradict_a_narrower_normalisation(
    trained: tuple[tuple[float, ...], tuple[float, ...]], assumed: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    module = shown(network(), normalised(photographs(), trained))
    assert evidence(module, (3, 32, 32), assumed).share > CONTRADICTION


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 32, 32), {}),
        ((1, 8, 8), {}),
        ((3, 64, 64), {"kernel": 7, "stride": 2}),
        ((1, 40, 40), {"kernel": 20, "padding": 0}),
        ((16, 8, 8), {}),
        ((16, 1, 1), {"kernel": 1}),
        ((4, 16, 16), {"groups": 4}),
    ],
)
@pytest.mark.parametrize("kind", ["uniform", "binary", "sparse", "whole", "ramp", "dark", "first"])
def test_no_input_in_0_to_1_is_taken_for_another(
    kind: str, shape: tuple[int, int, int], options: dict[str, int]
) -> None:
    uniform = torch.rand(64, *shape, generator=torch.Generator().manual_seed(2))
    ramp = torch.linspace(0, 1, shape[1]).view(1, 1, -1, 1)
    inputs = {
        "uniform": uniform,
        "binary": (uniform > 0.5).float(),
        "sparse": (uniform > 0.95).float(),
        "whole": (uniform[:, :1, :1, :1] > 0.5).float().expand_as(uniform),
        "ramp": ramp + 0 * uniform,
        "dark": ramp**6 * uniform,
        "first": torch.cat([(uniform[:, :1] > 0.5).float(), uniform[:, 1:] * 0.1], 1),
    }[kind]
    module = shown(network(shape[0], **options), inputs)
    found = input_evidence(graph_of(module, shape), image_spec(shape, (0.0,) * shape[0], (1.0,) * shape[0]))
    assert found is None or found.share < 1


def test_statistics_that_belong_to_no_input_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check(randomize(network()))
    assert "as far as its statistics can be read" in caplog.text


def test_images_that_use_little_of_the_range_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    module = shown(network(), photographs() * 0.1)
    with caplog.at_level(logging.WARNING):
        check(module, is_image=False)
        assert not caplog.text
        check(module)
    assert "little of the range" in caplog.text


def test_an_untrained_network_says_nothing() -> None:
    assert input_evidence(graph_of(network().eval(), (3, 32, 32)), image_spec((3, 32, 32), *UNIT)) is None


def test_pruned_outputs_with_old_statistics_do_not_count() -> None:
    module = shown(network(), photographs())
    module[0][0].weight.data[:4] = 0  # type: ignore[index,union-attr]
    module[0][0].weight.data[4] *= 1e-4  # type: ignore[index,union-attr]
    assert evidence(module, (3, 32, 32), UNIT).share < 0.6


def test_a_linear_layer_on_features_is_read_too() -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), head(48))

    generator = torch.Generator().manual_seed(3)
    with pytest.raises(UsageError, match="--input-range"):
        check(shown(made(), torch.rand(512, 16, 1, 1, generator=generator) * 4 - 2), (16, 1, 1))
    check(shown(made(), torch.rand(512, 16, 1, 1, generator=generator)), (16, 1, 1))


def test_a_network_without_batch_norm_behind_its_first_layer_says_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(8)).eval()
    assert input_evidence(graph_of(module, (3, 8, 8)), image_spec((3, 8, 8), *UNIT)) is None
