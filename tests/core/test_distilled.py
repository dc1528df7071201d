"""Distilled images come to match the statistics, stay valid, and depend on the seed alone."""

from __future__ import annotations

import pytest
import torch
from small_networks import plain
from torch import nn

from gdfq_export.capture import capture
from gdfq_export.distilled import distil_images
from gdfq_export.generator import ImageSpec, image_spec
from gdfq_export.losses import run_with_statistics, statistics_loss
from gdfq_export.passes import canonicalize
from gdfq_export.progress import silent
from gdfq_export.synthesis import Teacher

SPEC: ImageSpec = image_spec((3, 8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Its statistics are those of images, so that images can match them."""
    torch.manual_seed(0)
    module = plain().train()
    for norm in (child for child in module.modules() if isinstance(child, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        module(torch.rand(64, 3, 1, 1) * 2 - 1 + 0.1 * torch.randn(64, 3, 8, 8))  # images of one colour, nearly
    return Teacher(canonicalize(capture(module.eval().requires_grad_(False), (3, 8, 8))), "cpu")


def distance(teacher: Teacher, images: torch.Tensor) -> float:
    _, found = run_with_statistics(teacher.program, images, teacher.names)
    return float(statistics_loss(found, teacher.statistics, "code"))


def test_more_steps_come_closer_to_the_statistics(teacher: Teacher) -> None:
    none, some = (torch.cat(distil_images(teacher, SPEC, 16, steps, 0, silent)) for steps in (0, 60))
    assert distance(teacher, some) < 0.5 * distance(teacher, none)


def test_batches_have_the_count_and_valid_pixels(teacher: Teacher) -> None:
    batches = distil_images(teacher, SPEC, 70, 3, 0, silent)
    assert [len(batch) for batch in batches] == [64, 6]
    for batch in batches:
        assert batch.min() >= SPEC.low[0]
        assert batch.max() <= SPEC.high[0]
        assert not batch.requires_grad


def test_the_seed_decides_the_images(teacher: Teacher) -> None:
    first, again, other = (torch.cat(distil_images(teacher, SPEC, 4, 3, seed, silent)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_limit_in_seconds_ends_each_batch_early(teacher: Teacher) -> None:
    seen: list[float] = []
    distil_images(teacher, SPEC, 8, 10_000, 0, lambda what, done, total: seen.append(done), seconds=0.05)
    assert seen[-1] == 1
    assert len(seen) < 1_000
