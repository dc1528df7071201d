"""Dead leaves are images of surfaces with edges between them, the same ones for the same seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdfq_export.dead_leaves import dead_leaves
from gdfq_export.generator import image_spec

SPEC = image_spec((3, 64, 48), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def as_pixels(x: torch.Tensor) -> torch.Tensor:
    low, high = (torch.tensor(values).view(1, 3, 1, 1) for values in (SPEC.low, SPEC.high))
    return (x - low) / (high - low)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_every_pixel_is_one_of_a_real_image(seed: int) -> None:
    x = as_pixels(dead_leaves(SPEC, 2, seed))
    assert x.shape == (2, 3, 64, 48)
    assert bool(((x >= -1e-5) & (x <= 1 + 1e-5)).all())


def test_a_seed_decides_them() -> None:
    assert torch.equal(dead_leaves(SPEC, 3, 5), dead_leaves(SPEC, 3, 5))
    assert not torch.equal(dead_leaves(SPEC, 3, 5), dead_leaves(SPEC, 3, 6))


def test_no_image_is_like_another() -> None:
    x = as_pixels(dead_leaves(SPEC, 24, 0))
    means = x.mean((1, 2, 3))
    assert means.max() - means.min() > 0.3
    assert bool((x.std((2, 3)).mean(1) > 0.01).all())


def test_most_neighbours_are_alike_and_some_are_far_apart() -> None:
    x = as_pixels(dead_leaves(SPEC, 24, 0)).mean(1)
    steps = (x[:, :, 1:] - x[:, :, :-1]).abs().flatten()
    assert steps.median() < 0.03  # surfaces
    assert steps.quantile(0.999) > 0.25  # edges


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 17, 9), (3, 2, 2)])
def test_any_channels_and_size(shape: tuple[int, int, int]) -> None:
    spec = image_spec(shape, (0.0,) * shape[0], (1.0,) * shape[0])
    x = dead_leaves(spec, 2, 0)
    assert x.shape == (2, *shape)
    assert bool(x.isfinite().all())
