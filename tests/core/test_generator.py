from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gdfq_export.generator import (
    NOISE,
    ConditionalNorm,
    Generator,
    ImageSpec,
    default_doublings,
    image_spec,
    map_sizes,
    sample,
    upsample_and_convolve,
)

SMALL = image_spec((3, 16, 12), (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))


def made(spec: ImageSpec, count: int = 4, doublings: int | None = None) -> torch.Tensor:
    generator = Generator(spec, 10, doublings)
    batch = sample(count, 10, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return generator(batch.noise, batch.labels)


def test_black_and_white_are_normalised_pixels() -> None:
    spec = image_spec((1, 4, 5), (0.5,), (0.25,))
    assert (spec.shape, spec.low, spec.high) == ((1, 4, 5), (-2.0,), (2.0,))


def test_sizes_double_from_the_smallest_map_to_the_image() -> None:
    assert map_sizes(32, 2) == [8, 16, 32]


def test_odd_sizes_are_halved_upwards() -> None:
    assert map_sizes(7, 2) == [2, 4, 7]


@pytest.mark.parametrize(
    ("size", "doublings", "smallest"), [(32, 2, 8), (224, 5, 7), (299, 6, 5), (8, 2, 2), (64, 3, 8)]
)
def test_large_images_start_from_small_maps(size: int, doublings: int, smallest: int) -> None:
    assert default_doublings(size) == doublings
    assert map_sizes(size, doublings)[0] == smallest


@pytest.mark.parametrize("shape", [(3, 16, 12), (1, 9, 9), (4, 70, 66), (3, 1, 1)])
def test_images_have_the_shape_that_was_asked_for(shape: tuple[int, int, int]) -> None:
    spec = image_spec(shape, (0.5,) * shape[0], (0.25,) * shape[0])
    assert made(spec).shape == (4, *shape)


def test_no_pixel_is_darker_than_black_or_brighter_than_white() -> None:
    images = made(SMALL, 16)
    for channel in range(3):
        assert images[:, channel].min() >= torch.tensor(SMALL.low[channel])
        assert images[:, channel].max() <= torch.tensor(SMALL.high[channel])


def test_doublings_can_be_fixed_as_in_the_paper() -> None:
    assert Generator(image_spec((3, 224, 224), (0.5,) * 3, (0.5,) * 3), 10, 2).sizes[0] == (56, 56)


def test_small_images_bring_the_label_in_by_its_embedding() -> None:
    generator = Generator(SMALL, 10)
    noise = torch.randn(4, NOISE)
    first, second = (generator(noise, torch.full((4,), label)) for label in (1, 2))
    assert not torch.equal(first, second)


def test_large_images_bring_the_label_in_by_conditional_batch_norm() -> None:
    generator = Generator(image_spec((3, 72, 72), (0.5,) * 3, (0.5,) * 3), 10)
    assert any(isinstance(module, ConditionalNorm) for module in generator.modules())
    assert not any(isinstance(module, ConditionalNorm) for module in Generator(SMALL, 10).modules())


def test_conditional_batch_norm_scales_and_shifts_by_label() -> None:
    norm = ConditionalNorm(1, 2)
    norm.scale.weight.data.copy_(torch.tensor([[1.0], [3.0]]))
    norm.shift.weight.data.copy_(torch.tensor([[0.0], [5.0]]))
    x = torch.randn(2, 1, 3, 3)
    first, second = (norm(x, torch.tensor([label, label])) for label in (0, 1))
    # 1e-6: one float32 multiplication and addition
    assert torch.allclose(second, first * 3 + 5, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    generator = Generator(SMALL, 10)
    batch = sample(4, 10, torch.Generator().manual_seed(0))
    generator(batch.noise, batch.labels).sum().backward()
    missing = [name for name, value in generator.named_parameters() if value.grad is None]
    assert missing == []


def test_samples_depend_on_their_seed_alone() -> None:
    first, second = (sample(5, 7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.noise, second.noise)
    assert torch.equal(first.labels, second.labels)


def test_labels_are_drawn_from_all_classes() -> None:
    labels = sample(500, 7, torch.Generator().manual_seed(0)).labels
    assert labels.unique().tolist() == list(range(7))


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_upsampling_and_convolution_are_one_operation_where_the_size_doubles(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 4, 5)
    expected = convolution(F.interpolate(x, size=size))
    # 1e-5: sums of 27 products in another order
    assert torch.allclose(upsample_and_convolve(x, convolution, size), expected, atol=1e-5)
