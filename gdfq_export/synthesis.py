"""Trains the generator against the frozen teacher, and makes images with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gdfq_export.checkpoint import Checkpoint
from gdfq_export.distributed import part_of, shared
from gdfq_export.errors import DivergedError, UnsupportedModelError
from gdfq_export.generator import Batch, Generator, ImageSpec, sample
from gdfq_export.graph import Graph
from gdfq_export.losses import (
    generator_cross_entropy,
    generator_loss,
    run_with_statistics,
    statistics_loss,
    stored_statistics,
)
from gdfq_export.meaning import Meaning, meaning_of
from gdfq_export.program import FloatProgram
from gdfq_export.progress import Progress
from gdfq_export.settings import Schedule
from gdfq_export.stopwatch import Stopwatch

HELD_BACK_SEED = 1_000_003  # offset of the seed of images that nothing is fitted to
GENERATOR_STAGE = "generator"


def autocast(device: str) -> AbstractContextManager[object]:
    """bf16 where the hardware multiplies it, float32 elsewhere; used for generator and teacher only."""
    device = torch.device(device).type
    enabled = device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast(device, torch.bfloat16, enabled=enabled)


class Teacher:
    """The frozen float network with the statistics that its batch norms stored."""

    def __init__(self, graph: Graph, device: str) -> None:
        stored = stored_statistics(graph)
        if not stored:
            raise UnsupportedModelError(
                "the model has no batch norm, whose statistics data-free synthesis needs: pass a model from before "
                "batch norm was folded, or images of your own (--method calibrate --calibration-data DIR)"
            )
        self.graph, self.device, self.meaning = graph, device, meaning_of(graph)
        self.labels = self.meaning.labels(graph.num_outputs)  # that images can be made for
        self.program = FloatProgram(graph).to(device)
        self.names = list(stored)
        self.statistics = [
            type(s)(s.mean.to(device), s.variance.to(device)) for s in (stored[name] for name in self.names)
        ]


@dataclass(eq=False)
class GeneratorState:
    """A generator with its optimizer, the random numbers that feed it, and the steps it has made."""

    model: Generator
    forward: nn.Module  # the same, with gradients averaged over processes
    optimizer: torch.optim.Adam
    randomness: torch.Generator
    steps: int = 0


def start_generator(teacher: Teacher, spec: ImageSpec, schedule: Schedule, seed: int) -> GeneratorState:
    """A fresh generator; its weights depend on the seed alone."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Generator(spec, teacher.labels, schedule.doublings).to(teacher.device)
    torch.set_rng_state(state)
    optimizer = torch.optim.Adam(model.parameters(), lr=schedule.generator_lr, betas=(0.5, 0.999))
    return GeneratorState(model, shared(model), optimizer, torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class GeneratorStep:
    """A batch that the student learns from, with what the teacher says of it."""

    images: Tensor  # (N, C, H, W), made before the update
    labels: Tensor  # (N,)
    teacher_logits: Tensor  # (N, classes)
    meaning: Meaning  # of the logits


def draw(state: GeneratorState, teacher: Teacher, count: int) -> Batch:
    """This process's part of a batch of noise and labels, on the teacher's device."""
    batch = sample(count, teacher.labels, state.randomness)
    return Batch(part_of(batch.noise).to(teacher.device), part_of(batch.labels).to(teacher.device))


def update_generator(state: GeneratorState, teacher: Teacher, schedule: Schedule) -> GeneratorStep:
    """One step of L1(G) (eq. 9) on a fresh batch; a generator without a loss only makes images."""
    parts = schedule.ablations
    if not parts.trains_generator:
        return look(state, teacher, schedule.batch)
    batch = draw(state, teacher, schedule.batch)
    with autocast(teacher.device):
        images = state.forward(batch.noise, batch.labels)
        names = teacher.names if parts.generator_statistics else []
        logits, found = run_with_statistics(
            teacher.program, images.contiguous(memory_format=torch.channels_last), names
        )
    loss = generator_loss(
        generator_cross_entropy(logits.float(), batch.labels, teacher.meaning)
        if parts.generator_cross_entropy
        else None,
        statistics_loss(found, teacher.statistics, schedule.statistics) if parts.generator_statistics else None,
        schedule.beta,
    )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(
            f"the generator's loss became {value} at step {state.steps + 1}: lower its learning rate with "
            f"--generator-lr (it was {state.optimizer.param_groups[0]['lr']:g})"
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.steps += 1
    return GeneratorStep(images.detach(), batch.labels, logits.detach().float(), teacher.meaning)


@torch.no_grad()
def look(state: GeneratorState, teacher: Teacher, count: int) -> GeneratorStep:
    """A fresh batch of a generator that stays as it is, as the teacher sees it."""
    batch = draw(state, teacher, count)
    with autocast(teacher.device):
        images = state.model(batch.noise, batch.labels)
        logits = teacher.program(images.contiguous(memory_format=torch.channels_last))
    return GeneratorStep(images, batch.labels, logits.float(), teacher.meaning)


def generator_to_save(state: GeneratorState) -> dict[str, Any]:
    """Everything that the next step depends on."""
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "randomness": state.randomness.get_state(),
        "steps": state.steps,
    }


def restore_generator(state: GeneratorState, saved: Mapping[str, Any]) -> None:
    """Continues where `generator_to_save` was called."""
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.randomness.set_state(saved["randomness"])
    state.steps = saved["steps"]


def warmup_steps(schedule: Schedule) -> int:
    """Of GDFQ's generator alone: in separate training all of its steps come first."""
    parts = schedule.ablations
    if not parts.trains_generator:
        return 0
    return schedule.warmup_steps + (0 if parts.alternating else schedule.steps)


def train_generator(
    state: GeneratorState,
    teacher: Teacher,
    schedule: Schedule,
    progress: Progress,
    *,
    share: float = 0.4,
    stopwatch: Stopwatch | None = None,
    checkpoint: Checkpoint | None = None,
    update: Callable[[GeneratorState, Teacher, Schedule], GeneratorStep] | None = None,
    planned: int | None = None,
) -> int:
    """The warm-up of Algorithm 1; with a budget it ends after its `share`. Returns the steps done.

    `update` is one step of another loss than GDFQ's, and `planned` how many there are to be.
    """
    update = update or update_generator
    stopwatch = stopwatch or Stopwatch(schedule.budget_seconds)
    checkpoint = checkpoint or Checkpoint()
    planned = warmup_steps(schedule) if planned is None else planned
    if (saved := checkpoint.load(GENERATOR_STAGE)) is not None:
        restore_generator(state, saved["generator"])
        planned = saved["planned"]
    state.optimizer.param_groups[0]["lr"] = schedule.generator_lr
    while state.steps < planned:
        update(state, teacher, schedule)
        if stopwatch.is_over(share):
            planned = state.steps
        progress("training the generator", state.steps, planned)
        if state.steps == planned or checkpoint.is_due():
            checkpoint.save(GENERATOR_STAGE, {"generator": generator_to_save(state), "planned": planned})
    return state.steps


@torch.no_grad()
def make_images(
    model: Generator, teacher: Teacher, count: int, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels from a seed of their own."""
    randomness = torch.Generator().manual_seed(seed)
    for first in range(0, count, batch):
        drawn = sample(batch, teacher.labels, randomness)
        images = model(drawn.noise.to(teacher.device), drawn.labels.to(teacher.device))
        rest = min(batch, count - first)
        yield images[:rest].contiguous(), drawn.labels[:rest]
