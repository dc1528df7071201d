"""Images found by optimising their pixels against the frozen network (ZeroQ, Cai et al. 2020, with labels).

    x = clamp(c + k F^-1(z / f^p)),    z* = argmin  mean over layers (MSE(mean) + MSE(variance)) + w CE(M(x), y)

What is optimised is not the pixels but the waves z that the image is made of, each with an amplitude that falls with
its frequency f as in photographs, and with three colours of which the grey one is the strongest (Olah et al. 2017).
Pixels as variables fit the statistics by noise, which no photograph contains; waves come nearer to them in fewer
steps. The gradient goes through a random shift and flip, so that no image fits one alignment of the
network's strides, and pixels stay what a real image can hold. The statistics are of a whole batch: a batch is one
sample of the training distribution, and a larger one fits it better.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gdfq_export.checkpoint import Checkpoint
from gdfq_export.costs import LEAST_IMAGES
from gdfq_export.distributed import agreed
from gdfq_export.errors import DivergedError
from gdfq_export.generator import ImageSpec
from gdfq_export.losses import cross_entropy, run_with_statistics, statistics_loss
from gdfq_export.progress import Progress
from gdfq_export.settings import Distillation
from gdfq_export.steps import half_cosine, randomness_of
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher, autocast

STAGE = "optimising images"
IMAGES_STAGE = "images"
FEWEST, FEWEST_STEPS = 64, 40  # where there is time for them
TRIALS, TRIED, TRIAL_SHARE = 3, 16, 0.05  # of a step: how often, with how many images, within which part of the time
RGB = 3
COLOURS = (1.0, 0.3, 0.15)  # strength of grey, red against blue, and green against both


@dataclass(frozen=True, eq=False)
class Images:
    """Synthetic images with the labels they were made for."""

    pixels: Tensor  # (N, C, H, W), normalised
    labels: Tensor  # (N,)

    def joined(self, other: Images) -> Images:
        """These and the others."""
        return Images(torch.cat([self.pixels, other.pixels]), torch.cat([self.labels, other.labels]))


def distil_images(
    teacher: Teacher,
    spec: ImageSpec,
    schedule: Distillation,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
    stopwatch: Stopwatch | None = None,
) -> Images:
    """Batch after batch, each from a seed of its own, so that a run continues with the batch that it was killed in.

    When the time is over, a batch stays as far as it is, and none follows.
    """
    checkpoint, stopwatch = checkpoint or Checkpoint(), stopwatch or Stopwatch(None)
    count = -(-schedule.images // schedule.batch)
    total = count * schedule.steps
    saved = checkpoint.load(IMAGES_STAGE)
    made = Images(saved["pixels"], saved["labels"]) if saved else None
    for index in range(0 if made is None else -(-len(made.pixels) // schedule.batch), count):
        size = min(schedule.batch, schedule.images - index * schedule.batch)
        randomness = randomness_of(seed, index)

        def advance(step: int, before: int = index * schedule.steps) -> None:
            progress(STAGE, before + step, total)

        batch = distil_batch(teacher, spec, schedule, size, randomness, advance, stopwatch.is_over)
        made = batch if made is None else made.joined(batch)
        over = stopwatch.is_over()
        if checkpoint.is_due() or over or index == count - 1:
            checkpoint.save(IMAGES_STAGE, {"pixels": made.pixels, "labels": made.labels})
        if over:
            break
    assert made is not None
    progress(STAGE, total, total)
    return made


def fit_to_time(
    schedule: Distillation, seconds: float, seconds_per_image: float, most: int | None = None
) -> Distillation:
    """As many steps and images as there is time for: fewer images first, then fewer steps, then fewer of both.

    Down to `LEAST_IMAGES` that are not optimised at all; and at most as many as later work has time for.
    """
    affordable = seconds / max(seconds_per_image, 1e-9)  # images times steps
    limit = schedule.images if most is None else max(min(schedule.images, most), min(LEAST_IMAGES, schedule.images))
    fewest, fewest_steps = min(FEWEST, limit), min(FEWEST_STEPS, schedule.steps)
    if affordable < fewest * fewest_steps:
        fewest = min(max(int(affordable / max(fewest_steps, 1)), LEAST_IMAGES), fewest)
    steps = min(schedule.steps, int(affordable / fewest))
    images = min(limit, max(fewest, int(affordable / max(steps, 1)))) if steps else fewest
    return dataclasses.replace(schedule, images=images, batch=min(schedule.batch, images), steps=steps)


def time_a_step(teacher: Teacher, spec: ImageSpec, schedule: Distillation, stopwatch: Stopwatch | None = None) -> float:
    """Seconds that one image takes for one step; one image alone tells where a better trial would take too long."""
    trial, stopwatch = dataclasses.replace(schedule, steps=1), stopwatch or Stopwatch(None)

    def seconds(size: int) -> float:
        start = stopwatch.clock()
        distil_batch(teacher, spec, trial, size, torch.Generator().manual_seed(0))
        return (stopwatch.clock() - start) / size

    size = min(schedule.batch, TRIED)
    if stopwatch.limit < math.inf:
        single = agreed(min(seconds(1), seconds(1)))
        if TRIALS * size * single > TRIAL_SHARE * stopwatch.left():
            return single
    return agreed(min(seconds(size) for _ in range(TRIALS)))


def distil_batch(
    teacher: Teacher,
    spec: ImageSpec,
    schedule: Distillation,
    size: int,
    randomness: torch.Generator,
    advance: Callable[[int], None] = lambda step: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Images:
    """One batch of pixels, optimised together, as long as there is time."""
    device = teacher.device
    labels = torch.randint(0, teacher.labels, (size,), generator=randomness).to(device)
    waves = Waves(spec, schedule, device)
    z = torch.randn(size, *waves.shape, generator=randomness).to(device).requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=schedule.lr, betas=(0.9, 0.99))
    for step in range(schedule.steps):
        if is_over():
            break
        optimizer.param_groups[0]["lr"] = schedule.lr * half_cosine(step / schedule.steps)
        moved = jitter(waves.image(z), schedule.shift, randomness).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            logits, found = run_with_statistics(teacher.program, moved, teacher.names)
        loss = statistics_loss(found, teacher.statistics, "code") + schedule.label_weight * cross_entropy(
            logits.float(), labels, teacher.meaning
        )
        if not math.isfinite(float(loss.detach())):
            raise DivergedError(
                f"the loss of the optimised images became {float(loss.detach())} at step {step + 1}: the network's "
                "batch-norm statistics are damaged, or its normalisation is not the one it was trained with"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        advance(step + 1)
    return Images(waves.image(z.detach()).cpu().contiguous(), labels.cpu())


class _Clamp(torch.autograd.Function):
    """A clamp whose gradient reaches a value outside that wants to come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The bounds broadcast against x."""
        ctx.save_for_backward(x, low, high)
        return torch.minimum(torch.maximum(x, low), high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Nothing where a step against the gradient leads further out."""
        (gradient,), (x, low, high) = gradients, ctx.saved_tensors
        outward = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(outward, 0), None, None


class Waves:
    """Images as sums of waves: from normal numbers z to pixels."""

    def __init__(self, spec: ImageSpec, schedule: Distillation, device: str) -> None:
        channels, *self.size = spec.shape
        down, right = torch.fft.fftfreq(self.size[0]), torch.fft.rfftfreq(self.size[1])
        frequency = torch.sqrt(down[:, None].square() + right.square()).clamp(min=1 / max(self.size))
        self.shape = (channels, *frequency.shape, 2)  # real and imaginary parts
        colours = colour_axes(channels)
        amplitude = frequency.pow(-schedule.falloff)
        low, high = (torch.tensor(bound).view(-1, 1, 1) for bound in (spec.low, spec.high))
        # The variance of a pixel: a wave is 2 Re(z e^it), but in the columns that are their own mirror only Re(z e^it).
        columns = torch.full((frequency.shape[1],), 4.0)
        columns[0] = 1.0
        if self.size[1] % 2 == 0:
            columns[-1] = 1.0
        spread = float(torch.sqrt((amplitude.square() * columns).sum() / math.prod(self.size)))
        self.amplitude = (amplitude / spread).to(device)
        self.colours = (colours * schedule.contrast).to(device) * (high - low).to(device).view(-1, 1)
        self.low, self.high = low.to(device), high.to(device)

    def image(self, z: Tensor) -> Tensor:
        """(N, C, H, W // 2 + 1, 2) -> (N, C, H, W), inside the bounds of pixels."""
        spectrum = torch.view_as_complex(z) * self.amplitude
        planes = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        pixels = torch.einsum("oc,nchw->nohw", self.colours, planes) + (self.low + self.high) / 2
        return torch.as_tensor(_Clamp.apply(pixels, self.low, self.high))  # type: ignore[no-untyped-call]


def colour_axes(channels: int) -> Tensor:
    """(channels, axes): grey and two weaker opponent colours for RGB, each channel on its own otherwise."""
    if channels != RGB:
        return torch.eye(channels)
    grey, warm, green = (1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (-0.5, 1.0, -0.5)
    axes = [torch.tensor(axis) * strength for axis, strength in zip((grey, warm, green), COLOURS, strict=True)]
    return torch.stack(axes, dim=1)


def jitter(x: Tensor, shift: int, randomness: torch.Generator) -> Tensor:
    """The batch moved by up to `shift` pixels each way, around the edge, and mirrored half of the time."""
    down, right, mirror = torch.randint(0, 2 * shift + 1, (3,), generator=randomness).tolist()
    moved = torch.roll(x, (down - shift, right - shift), (2, 3))
    return moved.flip(3) if mirror % 2 else moved
