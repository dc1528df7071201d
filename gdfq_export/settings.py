"""What a run is asked to do, as values that travel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from gdfq_export.ablations import Ablations
from gdfq_export.names import InputFormat, Ranges, Reading
from gdfq_export.plan import BitWidths

CODE_TEMPERATURE = 20.0
FEW_STEPS = 500  # of tuning


@dataclass(frozen=True)
class Schedule:
    """How long generator and student are trained, and how fast they move."""

    batch: int
    warmup_steps: int  # of the generator alone
    steps: int  # of generator and student in turn
    steps_per_epoch: int
    generator_lr: float = 1e-3
    student_lr: float = 1e-4
    student_optimizer: Literal["sgd", "adam"] = "sgd"  # Nesterov's momentum, or Adam: further in few steps
    decay_epochs: int | None = 100  # learning rates times 0.1 every so many epochs; None: half a cosine down to 0
    beta: float = 0.1  # weight of the batch-norm statistics, eq. 9
    gamma: float = 1.0  # weight of the distillation, eq. 10
    temperature: float = 1.0
    doublings: int | None = None  # of the generator; None derives them from the image size
    statistics: Reading = "paper"  # how the statistics loss is reduced
    reading: Reading = "paper"  # how the distillation is
    calibration_images: int = 256
    budget_seconds: float | None = None
    ablations: Ablations = field(default_factory=Ablations)


@dataclass(frozen=True)
class Distillation:
    """How images are optimised directly, without a generator."""

    images: int
    batch: int
    steps: int
    lr: float = 0.3
    shift: int = 3  # pixels that the batch is moved by before each step
    label_weight: float = 0.1  # of the cross-entropy
    falloff: float = 1.5  # power of the frequency by which amplitudes fall
    contrast: float = 0.15  # deviation of a pixel at the start, as a share of its range
    views: int = 0  # enlarged crops of each image, for what is fitted to images


@dataclass(frozen=True)
class Reconstruction:
    """How blocks are reconstructed."""

    steps: int  # a block
    batch: int = 32
    rounding_lr: float = 0.1
    scale_lr: float = 0.035  # in steps, at the end of the range
    bias_lr: float = 0.003  # in units of the noise that it meets
    keep: float = 0.5  # probability that an activation is rounded
    warmup: float = 0.2  # share of the steps before rounding must decide
    decide: float = 0.008  # weight of the rounding regulariser, beside the distance in units of rounding to nearest


@dataclass(frozen=True)
class Tuning:
    """How the whole network is tuned after its weights were rounded, by second order or block by block."""

    steps: int
    batch: int = 32
    weight_lr: float = 0.015  # in codes
    hurried_lr: float = 0.03  # ... where there are few steps
    scale_lr: float = 0.001  # of a scale, relative
    bias_lr: float = 0.003  # in units of the noise that it meets
    shift: int = 2  # pixels that images are moved by
    release: float = 0.0  # share of the blocks' weight in the loss that is gone at the end
    leaves: float = 0.0  # images of `dead_leaves.py` for each optimised one

    def weight_rate(self, steps: int) -> float:
        """The rate of weights for so many steps, which a budget may have cut down."""
        return self.hurried_lr if steps < FEW_STEPS else self.weight_lr


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
    distillation: Distillation = Distillation(images=256, batch=256, steps=100)
    reconstruction: Reconstruction = Reconstruction(steps=300)
    tuning: Tuning = Tuning(steps=400)
    weighing: int = 0  # images on which each rounding is weighed alone, see `separate_errors.py`
    size_budget: int | None = None  # bytes of the file; the widths of weights follow
    bit_operations_budget: int | None = None
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
    short = Schedule(
        batch=16 if large else 64,
        warmup_steps=60 if large else 100,
        steps=20 if large else 60,
        steps_per_epoch=200,
        generator_lr=3e-3,
        student_lr=1e-5 if large else 1e-4,
        student_optimizer="adam",
        decay_epochs=None,
        calibration_images=64 if large else 256,
        statistics="code",
        beta=0.3,
    )
    if preset == "fast":
        return short
    return dataclasses.replace(
        short,
        batch=16 if large else 128,
        warmup_steps=300 if large else 400,
        steps=400 if large else 1200,
        calibration_images=256,
    )


def with_budget(schedule: Schedule, seconds: float) -> Schedule:
    """Time instead of steps: a warm-up of the paper's length at most, then as many turns as there is time for."""
    warmup, steps = max(schedule.warmup_steps, 800), max(schedule.steps, 10)  # ten show how long one takes
    return dataclasses.replace(schedule, warmup_steps=warmup, steps=steps, budget_seconds=seconds)


def with_reading(schedule: Schedule, reading: Reading) -> Schedule:
    """The losses exactly as the paper prints them, or exactly as its authors' code computes them."""
    temperature = CODE_TEMPERATURE if reading == "code" else 1.0
    return dataclasses.replace(
        schedule, statistics=reading, reading=reading, beta=0.1, gamma=1.0, temperature=temperature
    )


def distillation_for(preset: str, shape: tuple[int, ...]) -> Distillation:
    """How many images are optimised, and how far; an eighth of them is held back."""
    if is_large(shape):
        images, steps = {"fast": (48, 60), "standard": (64, 100), "paper": (256, 150)}[preset]
        return Distillation(images, min(images, 64), steps, shift=max(shape[1:]) // 10, views=2)
    images, steps = {"fast": (128, 60), "standard": (1024, 100), "paper": (2048, 150)}[preset]
    return Distillation(images, min(images, 256), steps)


def reconstruction_for(preset: str, shape: tuple[int, ...]) -> Reconstruction:
    """How long each block is trained."""
    steps = {"fast": 100, "standard": 300, "paper": 1000}[preset]
    return Reconstruction(steps, batch=16 if is_large(shape) else 32)


def tuning_for(preset: str, shape: tuple[int, ...], bits: BitWidths) -> Tuning:
    """How long the whole network is tuned: at 8 bits little is left to learn after a short time.

    With few steps weights and scales must move faster, but weights not where few images stand for many classes: what
    fits these images better then fits photographs worse. For the same reason only many images let go of the blocks'
    outputs, and images of ImageNet's kind are joined by as many of shapes and surfaces.
    """
    if is_large(shape):
        short = 120 if bits.narrow else 40
        steps, scale_lr = {"fast": (short, 0.003), "standard": (400, 0.001), "paper": (1500, 0.001)}[preset]
        batch, weight_lr = (32, 0.015) if preset == "paper" else (16, 0.003)
        rates = Tuning(steps, batch, weight_lr, hurried_lr=weight_lr, scale_lr=scale_lr)
        return dataclasses.replace(rates, shift=max(shape[1:]) // 16, leaves=1.0)
    steps = {"fast": 200, "standard": 1000, "paper": 6000}[preset]
    return Tuning(steps, release=0.0 if preset == "fast" else 1.0)


def weighing_for(preset: str, shape: tuple[int, ...]) -> int:
    """On how many images each rounding is weighed alone: networks for small images learn their ranges in training."""
    return {"fast": 8, "standard": 16, "paper": 32}[preset] if is_large(shape) else 0
