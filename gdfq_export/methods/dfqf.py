"""DFQF (Li et al. 2020): the generator seeks images on which the student is wrong, the student learns from the teacher.

    L(G) = IS + beta * BNS - ADV                              L(S) = KL(M(x) || S(x))
    IS   = mean H(M(x)) - H(mean M(x))                        each image sure, all classes alike: minus the log of
                                                              the inception score
    BNS  = distance from the statistics of batch norm
    ADV  = log(1 + KL(M(x) || S(x)))                          disagreement of teacher and student

warm up G without ADV;  quantize S;  then for t = 1 .. T:  update G by L(G),  update S by L(S) on the same images

Reading: only the paper's abstract is public with its losses named but not spelled out. The logarithm keeps the
disagreement from outgrowing the other two; G and S learn in turns, because images against a student that has moved on
are no longer hard.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gdfq_export.distributed import agreed, shared, size, sum_over_all
from gdfq_export.errors import DivergedError
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.losses import distillation_loss, run_with_statistics, statistics_loss
from gdfq_export.lower import Quantized
from gdfq_export.meaning import ONE_CLASS, Meaning
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.gdfq import TRAINING_STAGE, calibrated_from_saved, calibrated_to_save, refuse_diverged
from gdfq_export.methods.kept import least
from gdfq_export.methods.supply import Generated
from gdfq_export.methods.task import UNTRAINED, Outcome, Task
from gdfq_export.score import error_of, logit_error
from gdfq_export.settings import Schedule
from gdfq_export.synthesis import GENERATOR_STAGE, GeneratorState, GeneratorStep, Teacher, autocast, draw

WARMUP_SHARE = 0.4  # of a budget
STAGE = "training generator and student against each other"


def inception_loss(logits: Tensor, meaning: Meaning = ONE_CLASS) -> Tensor:
    """Minus the logarithm of the inception score: mean entropy less the entropy of the mean."""
    logs = meaning.log_probabilities(logits)
    each = -(logs.exp() * logs).sum(1).mean()
    mean = sum_over_all(logs.exp().mean(0)) / size()  # of the whole batch, as each process has a part of it
    whole: Tensor = torch.special.entr(mean).sum()
    return each - whole


def disagreement(student_logits: Tensor, teacher_logits: Tensor, meaning: Meaning = ONE_CLASS) -> Tensor:
    """log(1 + KL): what the generator raises and the student lowers."""
    return torch.log1p(sum_over_all(distillation_loss(student_logits, teacher_logits, meaning=meaning)) / size())


class Seeking(Generated):
    """A generator that learns by L(G), and seeks the mistakes of the student once there is one."""

    student: FakeQuantProgram | None = None

    def learns_first(self) -> bool:
        """Never: both learn in turns."""
        return False

    def warm_up_steps(self) -> int:
        """Those of the schedule: L(G) has no parts to leave out."""
        return self.schedule.warmup_steps

    def warm_up_step(self, state: GeneratorState, teacher: Teacher, schedule: Schedule) -> GeneratorStep:
        """L(G) without ADV."""
        return update_generator(state, teacher, None, schedule)

    def next(self, step: int, decay: float) -> GeneratorStep:
        """Images from before the update that they cause; rates stay as they are."""
        return update_generator(self.state, self.teacher, self.student, self.schedule)


class Turns:
    """Generator and student in training: everything that one step changes."""

    def __init__(self, supply: Seeking, calibrated: Quantized, rate: float) -> None:
        self.supply = supply
        self.student = FakeQuantProgram(calibrated, learned_steps=False).to(supply.teacher.device)
        self.forward = shared(self.student)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, nesterov=True)
        self.losses: list[float] = []
        self.seen: GeneratorStep | None = None  # the batch of the last turn
        supply.student = self.student

    def take(self) -> None:
        """One turn of each."""
        seen = self.supply.next(len(self.losses), 1.0)
        meaning = self.supply.teacher.meaning
        loss = update_student(self.forward, self.optimizer, seen.images, seen.teacher_logits, len(self.losses), meaning)
        self.losses.append(loss)
        self.seen = seen

    @torch.no_grad()
    def refuse_diverged(self) -> None:
        """Ends the training before a state is saved that is one step too far; changes nothing."""
        assert self.seen is not None
        loss = float(
            distillation_loss(self.student(self.seen.images), self.seen.teacher_logits, meaning=self.seen.meaning)
        )
        refuse_diverged(loss, len(self.losses), self.optimizer.param_groups[0]["lr"])

    def to_save(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        states = {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**states, "supply": self.supply.to_save(), "losses": list(self.losses)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Continues where `to_save` was called."""
        self.supply.restore(saved["supply"])
        self.student.load_state_dict(saved["student"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.losses = list(saved["losses"])


def dfqf(task: Task) -> Outcome:
    """Calibrates on the warmed-up generator's images, then trains in turns and keeps the better student."""
    settings, schedule, costs, stopwatch = task.settings, task.settings.schedule, task.costs, task.stopwatch
    teacher = Teacher(task.captured, settings.device)
    supply = Seeking(task, teacher)
    stopwatch.reserve(2 * costs.score(supply.count) + costs.ending(supply.count))
    saved = task.checkpoint.load(TRAINING_STAGE)
    if saved is None:
        with stopwatch.keeping(costs.state(supply.count)):
            supply.warm_up(stopwatch, WARMUP_SHARE)
        found = agreed(calibrated_to_save(task, quantize_to_nearest(task, supply.calibration())))
    else:
        found = saved["calibrated"]
    calibrated = calibrated_from_saved(task, found)
    turns = Turns(supply, calibrated, schedule.student_lr)
    if saved is not None:
        turns.restore(saved)
    take_turns(task, turns, found)
    held_back = supply.held_back()
    before = error_of(calibrated, teacher, held_back)
    after = logit_error(turns.student, teacher, held_back)
    figures = {
        "generator_steps": supply.state.steps,
        "student_steps": len(turns.losses),
        "error_calibrated": before,
        "error_trained": after,
    }
    kept = agreed(least({"calibrated": before, "trained": after}))
    state = turns.student.quantized() if kept.state == "trained" else calibrated
    traces = {"divergence of the student from the teacher": turns.losses}
    notes = () if turns.losses else (UNTRAINED,)
    return Outcome(state, held_back, figures, traces=traces, kept=kept, notes=notes)


def take_turns(task: Task, turns: Turns, calibrated: dict[str, Any]) -> None:
    """As many turns as the schedule has or as there is time for."""
    schedule, checkpoint, stopwatch = task.settings.schedule, task.checkpoint, task.stopwatch
    planned = schedule.steps if stopwatch.fits(task.costs.steps(2, schedule.batch)) else 0
    while len(turns.losses) < planned:
        turns.take()
        if stopwatch.is_over():
            planned = len(turns.losses)
        task.progress(STAGE, len(turns.losses), planned)
        if len(turns.losses) == planned or checkpoint.is_due():
            turns.refuse_diverged()
            checkpoint.save(TRAINING_STAGE, {**turns.to_save(), "calibrated": calibrated})
            checkpoint.drop(GENERATOR_STAGE)


def update_generator(
    state: GeneratorState, teacher: Teacher, student: FakeQuantProgram | None, schedule: Schedule
) -> GeneratorStep:
    """One step of L(G), without ADV where there is no student yet; the images and what the teacher says of them."""
    batch = draw(state, teacher, schedule.batch)
    with autocast(teacher.device):
        images = state.forward(batch.noise, batch.labels)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        logits, found = run_with_statistics(teacher.program, channels_last, teacher.names)
    logits = logits.float()
    statistics = statistics_loss(found, teacher.statistics, schedule.statistics)
    loss = inception_loss(logits, teacher.meaning) + schedule.beta * statistics
    if student is not None:
        loss = loss - disagreement(student(images.float()), logits, teacher.meaning)
    if not math.isfinite(float(loss.detach())):
        raise DivergedError(
            f"the generator's loss became {float(loss.detach())}: lower its learning rate "
            f"({schedule.generator_lr:g}) with --generator-lr"
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.steps += 1
    return GeneratorStep(images.detach().float(), batch.labels, logits.detach(), teacher.meaning)


def update_student(
    student: nn.Module, optimizer: torch.optim.SGD, images: Tensor, wanted: Tensor, step: int, meaning: Meaning
) -> float:
    """One step of L(S) on the images that the generator was just updated with."""
    loss = distillation_loss(student(images), wanted, meaning=meaning)
    value = float(loss.detach())
    refuse_diverged(value, step + 1, optimizer.param_groups[0]["lr"])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value
