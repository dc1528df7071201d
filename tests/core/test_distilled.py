"""Images optimised against batch-norm statistics."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_networks import captured

from gdfq_export.distilled import distil_batch, distil_images, jitter
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


def test_the_time_limit_ends_after_a_batch() -> None:
    images = distil_images(teacher(), SPEC, Distillation(images=64, batch=16, steps=1), 0, silent, limit=0.0)
    assert len(images.pixels) == 16
