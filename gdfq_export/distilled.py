"""Images distilled directly against the statistics that batch norm stored (ZeroQ, Cai et al. 2020, eq. 3).

    min over x   mean over layers of |mean_r(x) - mean|^2 + |var_r(x) - var|^2        x ~ N(0, 1) at first, Adam

Each step sees the images shifted by a few pixels and mirrored or not, so that no pixel is fitted alone.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from gdfq_export.generator import ImageSpec
from gdfq_export.losses import run_with_statistics, statistics_loss
from gdfq_export.progress import Progress
from gdfq_export.synthesis import Teacher, autocast

LEARNING_RATE = 0.25
BATCH = 64
SHIFT = 3  # pixels of a 32x32 image, in proportion for larger ones


def distil_images(
    teacher: Teacher,
    spec: ImageSpec,
    count: int,
    steps: int,
    seed: int,
    progress: Progress,
    *,
    what: str = "distilling images",
    seconds: float | None = None,
) -> list[Tensor]:
    """`count` images in batches of at most 64; with a limit in seconds each batch ends after its share."""
    randomness = torch.Generator().manual_seed(seed)
    sizes = [min(BATCH, count - first) for first in range(0, count, BATCH)]
    low, high = (torch.tensor(v, device=teacher.device).view(-1, 1, 1) for v in (spec.low, spec.high))
    batches = []
    for index, size in enumerate(sizes):
        images = torch.randn(size, *spec.shape, generator=randomness).to(teacher.device)
        images = torch.minimum(torch.maximum(images, low), high).requires_grad_(True)
        optimizer = torch.optim.Adam([images], lr=LEARNING_RATE)
        start = time.monotonic()
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad(set_to_none=True)
            with autocast(teacher.device):
                seen = _moved(images, randomness).contiguous(memory_format=torch.channels_last)
                _, found = run_with_statistics(teacher.program, seen, teacher.names)
            statistics_loss(found, teacher.statistics, "code").backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.minimum(torch.maximum(images, low), high))
            progress(what, index + (step + 1) / steps, len(sizes))
            if seconds is not None and time.monotonic() - start > seconds / len(sizes):
                progress(what, index + 1, len(sizes))
                break
        batches.append(images.detach())
    return batches


def _moved(images: Tensor, randomness: torch.Generator) -> Tensor:
    """The batch shifted around its edges by a few pixels, and mirrored every other time."""
    reach = max(1, SHIFT * images.shape[-1] // 32)
    down, right = torch.randint(-reach, reach + 1, (2,), generator=randomness).tolist()
    images = torch.roll(images, (down, right), (2, 3))
    return images.flip(3) if bool(torch.randint(0, 2, (1,), generator=randomness)) else images
