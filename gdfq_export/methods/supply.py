"""Where the student's batches come from: a generator that learns with it, one that is finished, or real images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gdfq_export.costs import LEAST_IMAGES
from gdfq_export.distributed import part_of, size, sum_over_all
from gdfq_export.methods.task import Task
from gdfq_export.real_images import ImageSource, read_batches, split
from gdfq_export.settings import Schedule
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import (
    GENERATOR_STAGE,
    HELD_BACK_SEED,
    GeneratorState,
    GeneratorStep,
    Teacher,
    generator_to_save,
    look,
    make_images,
    restore_generator,
    start_generator,
    train_generator,
    update_generator,
    warmup_steps,
)

WARMUP_SHARE = 0.25


class Supply(Protocol):
    """Gives images for ranges, one batch for each step of the student, and images that nothing is fitted to."""

    count: int  # of images for ranges, and of those that are held back

    def warm_up(self, stopwatch: Stopwatch) -> None:
        """What has to be learned before the first image is used."""

    def calibration(self) -> list[Tensor]:
        """Batches for ranges."""

    def next(self, step: int, decay: float) -> GeneratorStep:
        """The batch of a step; `decay` scales the learning rate of what learns on the way."""

    def held_back(self) -> Tensor:
        """Images that neither ranges nor training use."""

    def figures(self) -> dict[str, float]:
        """For the record."""

    def to_save(self) -> dict[str, Any]:
        """What the next batch depends on."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continues where `to_save` was called."""


class Generated:
    """A generator that is updated on each batch it gives, until it is separate or stopped (Tables 6 and 7)."""

    def __init__(self, task: Task, teacher: Teacher) -> None:
        self.task, self.teacher, self.schedule = task, teacher, task.settings.schedule
        self.state = start_generator(teacher, task.image, self.schedule, task.settings.seed)
        self.stopped = self.learns_first()
        self.recognised = 0  # images of this epoch that the teacher gives their label
        self.count = images_worth(task)

    def warm_up(self, stopwatch: Stopwatch, share: float = WARMUP_SHARE) -> None:
        """Trains the generator alone, for at most a share of the budget."""
        train_generator(
            self.state,
            self.teacher,
            self.schedule,
            self.task.progress,
            share=share,
            stopwatch=stopwatch,
            checkpoint=self.task.checkpoint,
            update=self.warm_up_step,
            planned=self.warm_up_steps(),
        )

    def learns_first(self) -> bool:
        """Whether the generator stays as it is once the student learns."""
        return not self.schedule.ablations.alternating

    def warm_up_steps(self) -> int:
        """How many steps the generator learns alone."""
        return warmup_steps(self.schedule)

    def warm_up_step(self, state: GeneratorState, teacher: Teacher, schedule: Schedule) -> GeneratorStep:
        """One step of the generator alone."""
        return update_generator(state, teacher, schedule)

    def calibration(self) -> list[Tensor]:
        """Generated from a seed of their own."""
        return self._make(self.task.settings.seed + 1)

    def next(self, step: int, decay: float) -> GeneratorStep:
        """Images from before the update that they cause."""
        schedule = self.schedule
        if self.stopped:
            return look(self.state, self.teacher, schedule.batch)
        self.state.optimizer.param_groups[0]["lr"] = schedule.generator_lr * decay
        seen = update_generator(self.state, self.teacher, schedule)
        threshold = schedule.ablations.stop_threshold
        if threshold is not None:
            self.recognised += int(sum_over_all(seen.meaning.recognised(seen.teacher_logits, seen.labels).sum()))
            if (step + 1) % schedule.steps_per_epoch == 0:
                self.stopped = 100 * self.recognised > threshold * schedule.batch * schedule.steps_per_epoch
                self.recognised = 0
        return seen

    def held_back(self) -> Tensor:
        """Generated from another seed."""
        return torch.cat(self._make(self.task.settings.seed + HELD_BACK_SEED)).cpu()

    def _make(self, seed: int) -> list[Tensor]:
        count, batch = self.count, self.schedule.batch
        return [x for x, _ in make_images(self.state.model, self.teacher, count, batch, seed)]

    def figures(self) -> dict[str, float]:
        """How long the generator learned."""
        return {"generator_steps": self.state.steps}

    def to_save(self) -> dict[str, Any]:
        """The generator, and whether it still learns."""
        return {
            "generator": generator_to_save(self.state),
            "stopped": self.stopped,
            "recognised": self.recognised,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continues where `to_save` was called."""
        restore_generator(self.state, saved["generator"])
        self.stopped, self.recognised = saved["stopped"], saved["recognised"]
        self.task.checkpoint.drop(GENERATOR_STAGE)


def images_worth(task: Task) -> int:
    """As many images for ranges, and as many held back, as there is time for in half of what is left of a budget."""
    costs, asked = task.costs, task.settings.schedule.calibration_images
    each = costs.state(1) - costs.state(0) + costs.ending(1) - costs.ending(0) + costs.score(2)
    if not each:
        return asked
    left = task.stopwatch.left() - costs.state(0) - costs.ending(0)
    return min(asked, max(int(left / 2 / each), LEAST_IMAGES))


class Real:
    """The user's images with their true labels: the upper bound "FT" of Table 1.

    Each epoch has a new order, which follows from the seed and the step alone.
    """

    def __init__(self, task: Task, teacher: Teacher, source: ImageSource) -> None:
        self.outputs = task.captured.num_outputs
        self.source = source.for_classes(teacher.meaning.classes(self.outputs))
        self.teacher, self.seed = teacher, task.settings.seed
        self.count = task.settings.schedule.calibration_images
        self.parts = split(self.source, self.count, self.seed)
        self.batch = min(task.settings.schedule.batch, len(self.parts.fitted) // size() * size())

    def warm_up(self, stopwatch: Stopwatch) -> None:
        """Nothing: there is no generator."""

    def calibration(self) -> list[Tensor]:
        """Some of the images for training."""
        return read_batches(self.source, self.parts.fitted[: self.count], self.batch)

    @torch.no_grad()
    def next(self, step: int, decay: float) -> GeneratorStep:
        """The next images of the epoch."""
        pool = self.parts.fitted
        epoch, position = divmod(step, len(pool) // self.batch)
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
        chosen = torch.tensor(order[position * self.batch : (position + 1) * self.batch])
        read = self.source.read([pool[index] for index in part_of(chosen).tolist()])
        images, classes = (value.to(self.teacher.device) for value in read)
        meaning = self.teacher.meaning
        return GeneratorStep(images, meaning.label_of(classes, self.outputs), self.teacher.program(images), meaning)

    def held_back(self) -> Tensor:
        """Those that are never trained on."""
        return self.source.read(self.parts.held_back)[0]

    def figures(self) -> dict[str, float]:
        """How many images were trained on."""
        return {"real_images": len(self.parts.fitted)}

    def to_save(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Nothing to do."""
