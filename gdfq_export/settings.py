"""What a run is asked to do, as values that travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gdfq_export.losses import Reading
from gdfq_export.plan import BitWidths

Ranges = Literal["ema", "mse"]
InputFormat = Literal["float-nchw", "uint8-nhwc"]


@dataclass(frozen=True)
class Schedule:
    """How long generator and student are trained, and how fast they move."""

    batch: int
    warmup_steps: int  # of the generator alone
    steps: int  # of generator and student in turn
    steps_per_epoch: int
    generator_lr: float = 1e-3
    student_lr: float = 1e-4
    decay_epochs: int = 100  # learning rates times 0.1 every so many epochs
    beta: float = 0.1  # weight of the batch-norm statistics, eq. 9
    gamma: float = 1.0  # weight of the distillation, eq. 10
    temperature: float = 1.0
    doublings: int | None = None  # of the generator; None derives them from the image size
    reading: Reading = "paper"
    calibration_images: int = 256
    budget_seconds: float | None = None


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run, beside the network."""

    method: str
    bits: BitWidths
    schedule: Schedule
    ranges: Ranges
    target: str
    seed: int
    device: str = "cpu"
    input_format: InputFormat = "float-nchw"
    allow_float: str | None = None  # regular expression: which operations may stay float
    without: tuple[str, ...] = ()  # passes for speed that are left out


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether images are of ImageNet's kind rather than CIFAR's."""
    return max(shape[1:]) > 64


def schedule_for(preset: str, shape: tuple[int, ...]) -> Schedule:
    """The presets; `paper` is exactly section 5.1, the others are shorter."""
    large = is_large(shape)
    if preset == "paper":
        return Schedule(
            batch=16 if large else 200,
            warmup_steps=(50 if large else 4) * 200,
            steps=400 * 200,
            steps_per_epoch=200,
            student_lr=1e-6 if large else 1e-4,
            doublings=2,
        )
    if preset == "standard":
        return Schedule(
            batch=16 if large else 128,
            warmup_steps=300 if large else 400,
            steps=400 if large else 1200,
            steps_per_epoch=200,
            student_lr=1e-5 if large else 1e-3,
            reading="code",
            beta=1.0,
        )
    return Schedule(
        batch=16 if large else 64,
        warmup_steps=60 if large else 100,
        steps=20 if large else 60,
        steps_per_epoch=200,
        student_lr=1e-5 if large else 1e-4,
        calibration_images=64 if large else 256,
        reading="code",
        beta=1.0,
    )
