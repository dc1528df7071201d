"""DFQ from end to end on a small network whose channels differ a hundredfold."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache

import pytest
import torch
from torch import nn

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.methods.dfq import dfq, equalized_network
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.models.sources import LoadedModel
from gdfq_export.passes import equalize
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram, run_taps
from gdfq_export.progress import silent
from gdfq_export.score import logit_error
from gdfq_export.settings import Distillation, Schedule, Settings
from gdfq_export.synthesis import Teacher

SETTINGS = Settings(
    "dfq",
    BitWidths(4, 4),
    Schedule(batch=16, warmup_steps=1, steps=1, steps_per_epoch=1),
    "mse",
    "portable",
    seed=0,
    distillation=Distillation(images=48, batch=48, steps=5, shift=1),
)


def depthwise_network() -> nn.Module:
    """Depthwise layers with uneven channels and statistics that were measured on images."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 6)),
    )
    for child in module:
        if isinstance(child, nn.BatchNorm2d):
            child.weight.data = torch.logspace(-1.5, 0.5, child.num_features)[torch.randperm(child.num_features)]
            child.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.rand(64, 3, 16, 16) * 2 - 1)
    return module.eval().requires_grad_(False)


@cache
def task() -> Task:
    half = (0.5, 0.5, 0.5)
    loaded = LoadedModel("small", depthwise_network(), (3, 16, 16), half, half, 6, None, "random", None)
    prepared = prepare(loaded, SETTINGS)
    return Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, SETTINGS, silent)


@cache
def outcome() -> Outcome:
    return dfq(task())


def test_the_quantized_network_is_the_float_one_in_other_units() -> None:
    graph, _ = equalized_network(task())
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    # 1e-4 of logits near 1: weights are rounded to float32 once more, with factors of up to a hundred
    assert torch.allclose(FloatProgram(graph)(x), FloatProgram(task().folded)(x), atol=1e-4)


def test_channels_of_an_activation_come_to_have_more_even_ranges() -> None:
    graph, moments = equalized_network(task())
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    (name, *_) = (node.name for node in graph.of("relu"))

    def spread(of: object) -> float:
        peaks = run_taps(FloatProgram(of), x, [name])[name].amax((0, 2, 3))  # type: ignore[arg-type]
        return float(peaks.max() / peaks.clamp_min(1e-6).min())

    assert spread(graph) < 0.2 * spread(task().folded)
    assert moments.keys() >= {node.name for node in graph.of("conv")}


def test_the_correction_that_is_kept_has_the_least_divergence() -> None:
    found = {key: value for key, value in outcome().figures.items() if key.startswith("error_")}
    assert set(found) == {"error_plain", "error_analytic", "error_empirical"}
    kept = FakeQuantProgram(outcome().quantized, learned_steps=False)
    teacher = Teacher(task().captured, "cpu")
    assert logit_error(kept, teacher, outcome().held_back) == min(found.values())


def test_equalization_helps_a_depthwise_network_at_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchanged(graph: object, *_: object) -> object:
        done = equalize(task().folded, {})
        return dataclasses.replace(done, graph=graph, factors={})

    monkeypatch.setattr(sys.modules[equalized_network.__module__], "equalize", unchanged)
    without = dfq(task())
    assert min(outcome().figures.values()) < min(without.figures.values())


def test_held_back_images_are_not_those_of_the_empirical_correction() -> None:
    assert len(outcome().held_back) == SETTINGS.distillation.images // 2


def test_a_network_without_batch_norm_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    half = (0.5, 0.5, 0.5)
    prepared = prepare(LoadedModel("x", module.eval(), (3, 8, 8), half, half, 5, None, "random", None), SETTINGS)
    with pytest.raises(UnsupportedModelError, match="no batch norm"):
        dfq(Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, SETTINGS, silent))
