"""Images optimised against batch-norm statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from stages import captured

from gdfq_export.checkpoint import Checkpoint
from gdfq_export.costs import LEAST_IMAGES
from gdfq_export.distilled import (
    FEWEST_STEPS,
    IMAGES_STAGE,
    Waves,
    distil_batch,
    distil_images,
    fit_to_time,
    jitter,
)
from gdfq_export.errors import DivergedError
from gdfq_export.generator import ImageSpec
from gdfq_export.graph import Graph
from gdfq_export.losses import run_with_statistics, statistics_loss
from gdfq_export.passes import canonicalize
from gdfq_export.progress import silent
from gdfq_export.settings import Distillation
from gdfq_export.synthesis import Teacher

SPEC = ImageSpec((3, 8, 8), (-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
SHORT = Distillation(images=24, batch=16, steps=30, shift=1)


def teacher() -> Teacher:
    return Teacher(canonicalize(captured("residual")), "cpu")


def test_images_fit_the_statistics_and_labels_better_than_noise() -> None:
    network = teacher()
    begun = distil_batch(network, SPEC, dataclasses.replace(SHORT, steps=0), 16, torch.Generator().manual_seed(0))
    done = distil_batch(network, SPEC, SHORT, 16, torch.Generator().manual_seed(0))
    assert torch.equal(begun.labels, done.labels)
    losses = []
    for images in (begun, done):
        logits, found = run_with_statistics(network.program, images.pixels, network.names)
        statistics = statistics_loss(found, network.statistics, "code")
        losses.append((float(statistics), float(torch.nn.functional.cross_entropy(logits, images.labels))))
    assert losses[1][0] < losses[0][0]
    assert losses[1][1] < losses[0][1]


def test_pixels_are_those_of_a_real_image_and_there_are_as_many_as_asked_for() -> None:
    images = distil_images(teacher(), SPEC, SHORT, 0, silent)
    assert images.pixels.shape == (24, 3, 8, 8)
    assert images.labels.shape == (24,)
    assert float(images.pixels.abs().max()) <= 2.0


def test_the_same_seed_makes_the_same_images() -> None:
    runs = [distil_images(teacher(), SPEC, dataclasses.replace(SHORT, steps=3), seed, silent) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].pixels, runs[1].pixels)
    assert not torch.equal(runs[0].pixels, runs[2].pixels)


def of_shape(*shape: int) -> ImageSpec:
    return ImageSpec(shape, (-2.0,) * shape[0], (2.0,) * shape[0])


@pytest.mark.parametrize("size", [(32, 32), (17, 9), (8, 31)])
def test_images_start_with_the_contrast_that_was_asked_for(size: tuple[int, int]) -> None:
    waves = Waves(of_shape(1, *size), dataclasses.replace(SHORT, contrast=0.1), "cpu")
    images = waves.image(torch.randn(2000, *waves.shape, generator=torch.Generator().manual_seed(0)))
    assert float(images.std()) == pytest.approx(0.1 * 4.0, rel=0.03)


def test_neighbouring_pixels_are_alike_where_amplitudes_fall_with_the_frequency() -> None:
    likeness = []
    for falloff in (0.0, 1.0, 2.0):
        waves = Waves(of_shape(1, 16, 16), dataclasses.replace(SHORT, falloff=falloff), "cpu")
        x = waves.image(torch.randn(200, *waves.shape, generator=torch.Generator().manual_seed(0)))
        likeness.append(float((x[..., 1:] * x[..., :-1]).mean() / x.square().mean()))
    assert abs(likeness[0]) < 0.1
    assert likeness[0] + 0.3 < likeness[1] < likeness[2] - 0.1


def test_the_three_colours_of_a_pixel_are_alike_and_other_channels_are_not() -> None:
    for channels, least, most in ((3, 0.8, 1.0), (4, -0.1, 0.1)):
        waves = Waves(of_shape(channels, 16, 16), SHORT, "cpu")
        x = waves.image(torch.randn(400, *waves.shape, generator=torch.Generator().manual_seed(0)))
        alike = torch.corrcoef(x.movedim(1, 0).flatten(1))[0, 1]
        assert least < float(alike) < most


def test_a_pixel_beyond_white_learns_only_to_come_back() -> None:
    waves = Waves(of_shape(1, 4, 4), SHORT, "cpu")
    z = torch.zeros(1, *waves.shape)
    z[0, 0, 0, 0, 0] = 1e3
    z.requires_grad_(True)
    (darker,) = torch.autograd.grad(waves.image(z).sum(), z)
    (brighter,) = torch.autograd.grad(-waves.image(z).sum(), z)
    assert float(waves.image(z).detach().amin()) == 2.0
    assert float(darker.abs().sum()) > 0.0
    assert float(brighter.abs().sum()) == 0.0


def test_jitter_only_moves_and_mirrors() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    randomness = torch.Generator().manual_seed(0)
    for _ in range(8):
        moved = jitter(x, 1, randomness)
        assert torch.equal(moved.flatten(2).sort(2).values, x.flatten(2).sort(2).values)


def test_damaged_statistics_are_reported_with_the_step() -> None:
    graph = canonicalize(captured("residual"))
    broken = {k: torch.full_like(v, torch.nan) if "running_mean" in k else v for k, v in graph.parameters.items()}
    with pytest.raises(DivergedError, match="at step 1"):
        distil_images(Teacher(Graph(graph.nodes, broken, graph.output), "cpu"), SPEC, SHORT, 0, silent)


def test_time_decides_the_number_of_images_first_and_then_the_steps() -> None:
    schedule = Distillation(images=512, batch=256, steps=200)
    assert fit_to_time(schedule, 1e9, 0.01) == schedule
    half = fit_to_time(schedule, 512 * 200 * 0.01 / 2, 0.01)
    assert (half.images, half.steps) == (256, 200)
    short = fit_to_time(schedule, 64 * 100 * 0.01, 0.01)
    assert (short.images, short.batch, short.steps) == (64, 64, 100)
    fewer = fit_to_time(schedule, 32 * FEWEST_STEPS * 0.01, 0.01)
    assert (fewer.images, fewer.steps) == (32, FEWEST_STEPS)
    hurried = fit_to_time(schedule, LEAST_IMAGES * 5 * 0.01, 0.01)
    assert (hurried.images, hurried.steps) == (LEAST_IMAGES, 5)
    least = fit_to_time(schedule, 0.0, 0.01)
    assert (least.images, least.batch, least.steps) == (LEAST_IMAGES, LEAST_IMAGES, 0)
    few = fit_to_time(schedule, 1e9, 0.01, most=100)  # later work has no time for more
    assert (few.images, few.steps) == (100, 200)


def test_a_killed_run_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    schedule = Distillation(images=40, batch=16, steps=2)
    whole = distil_images(teacher(), SPEC, schedule, 0, silent)
    checkpoint = Checkpoint(tmp_path / "work")
    checkpoint.save(IMAGES_STAGE, {"pixels": whole.pixels[:16], "labels": whole.labels[:16]})
    steps: list[float] = []
    resumed = distil_images(teacher(), SPEC, schedule, 0, lambda what, done, total: steps.append(done), checkpoint)
    assert steps[0] == 3  # two of the first batch are not done again
    assert torch.equal(resumed.pixels, whole.pixels)
    assert torch.equal(resumed.labels, whole.labels)
