"""Views stay what a real image can hold, and are those that their seed asks for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gdfq_export.generator import image_spec
from gdfq_export.views import enlarged_crops, in_other_light, with_views

SPEC = image_spec((3, 12, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
LOW, HIGH = (torch.tensor(values).view(1, 3, 1, 1) for values in (SPEC.low, SPEC.high))


def images(count: int = 5) -> torch.Tensor:
    return LOW + (HIGH - LOW) * torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@given(st.integers(0, 3), st.integers(0, 1000))
def test_every_view_is_an_image(count: int, seed: int) -> None:
    x = with_views(images(), SPEC, count, seed)
    assert x.shape == (5 * (count + 1), 3, 12, 16)
    assert bool(((x >= LOW - 1e-6) & (x <= HIGH + 1e-6)).all())


def test_the_images_themselves_are_kept() -> None:
    x = with_views(images(), SPEC, 2, 0)
    assert all(any(torch.equal(image, found) for found in x) for image in images())
    assert torch.equal(with_views(images(), SPEC, 0, 0), images())


def test_a_seed_decides_them() -> None:
    assert torch.equal(with_views(images(), SPEC, 2, 3), with_views(images(), SPEC, 2, 3))
    assert not torch.equal(with_views(images(), SPEC, 2, 3), with_views(images(), SPEC, 2, 4))


def test_a_crop_is_part_of_its_own_image_and_smoother() -> None:
    x = images(20)
    crops = enlarged_crops(x, torch.Generator().manual_seed(0))
    steps, before = ((each[..., 1:] - each[..., :-1]).abs().mean((1, 2, 3)) for each in (crops, x))
    assert crops.shape == x.shape
    assert bool((steps < before).all())
    flat = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 12, 16)
    assert torch.allclose(enlarged_crops(flat, torch.Generator().manual_seed(0)), flat)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_tiny_images_have_crops_too(side: int) -> None:
    assert enlarged_crops(torch.rand(3, 3, side, side), torch.Generator().manual_seed(0)).shape == (3, 3, side, side)


def test_other_light_has_less_contrast_and_another_brightness() -> None:
    x = images(50)
    found = in_other_light(x, SPEC, torch.Generator().manual_seed(0))
    assert bool((found.std((2, 3)) <= x.std((2, 3)) + 1e-6).all())
    moved = ((found - x).mean((2, 3)) / (HIGH - LOW).flatten()).mean(1)
    assert moved.max() > 0.1
    assert moved.min() < -0.1
