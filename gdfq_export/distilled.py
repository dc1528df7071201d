"""Images found by optimising their pixels against the frozen network (ZeroQ, Cai et al. 2020, with labels).

    x* = argmin  mean over layers (MSE(mean) + MSE(variance)) + CE(M(x), y),   x starts as N(0, 1) noise

The gradient reaches the pixels through a random shift and flip, so that no image fits one alignment of the network's
strides, and pixels stay what a real image can hold. The statistics are of a whole batch: a batch is one sample of the
training distribution, and a larger one fits it better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gdfq_export.errors import DivergedError
from gdfq_export.generator import ImageSpec
from gdfq_export.losses import run_with_statistics, statistics_loss
from gdfq_export.progress import Progress
from gdfq_export.settings import Distillation
from gdfq_export.synthesis import Teacher, autocast

STAGE = "optimising images"


@dataclass(frozen=True, eq=False)
class Images:
    """Synthetic images with the labels they were made for."""

    pixels: Tensor  # (N, C, H, W), normalised
    labels: Tensor  # (N,)


def distil_images(
    teacher: Teacher, spec: ImageSpec, schedule: Distillation, seed: int, progress: Progress, limit: float = math.inf
) -> Images:
    """Batch after batch, one at least, until there are enough or `limit` seconds have passed."""
    randomness = torch.Generator().manual_seed(seed)
    count = -(-schedule.images // schedule.batch)
    total, start = count * schedule.steps, time.monotonic()
    batches: list[Images] = []
    while not batches or (len(batches) < count and time.monotonic() - start < limit):
        done = len(batches) * schedule.steps
        size = min(schedule.batch, schedule.images - len(batches) * schedule.batch)
        batches.append(
            distil_batch(
                teacher, spec, schedule, size, randomness, lambda step, done=done: progress(STAGE, done + step, total)
            )
        )
    progress(STAGE, total, total)
    return Images(torch.cat([b.pixels for b in batches]), torch.cat([b.labels for b in batches]))


def distil_batch(
    teacher: Teacher,
    spec: ImageSpec,
    schedule: Distillation,
    size: int,
    randomness: torch.Generator,
    advance: Callable[[int], None] = lambda step: None,
) -> Images:
    """One batch of pixels, optimised together."""
    device = teacher.device
    low, high = (torch.tensor(bound, device=device).view(-1, 1, 1) for bound in (spec.low, spec.high))
    labels = torch.randint(0, teacher.graph.num_outputs, (size,), generator=randomness).to(device)
    noise = torch.randn(size, *spec.shape, generator=randomness).to(device)
    x = torch.minimum(torch.maximum(noise, low), high).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=schedule.lr)
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.lr * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        with autocast(device):
            logits, found = run_with_statistics(teacher.program, jitter(x, schedule.shift, randomness), teacher.names)
        loss = statistics_loss(found, teacher.statistics, "code") + schedule.label_weight * F.cross_entropy(
            logits.float(), labels
        )
        if not math.isfinite(float(loss.detach())):
            raise DivergedError(
                f"the loss of the optimised images became {float(loss.detach())} at step {step + 1}: the network's "
                "batch-norm statistics are damaged, or its normalisation is not the one it was trained with"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
        advance(step + 1)
    return Images(x.detach().cpu().contiguous(), labels.cpu())


def jitter(x: Tensor, shift: int, randomness: torch.Generator) -> Tensor:
    """The batch moved by up to `shift` pixels each way, around the edge, and mirrored half of the time."""
    down, right, mirror = torch.randint(0, 2 * shift + 1, (3,), generator=randomness).tolist()
    moved = torch.roll(x, (down - shift, right - shift), (2, 3))
    return moved.flip(3) if mirror % 2 else moved
