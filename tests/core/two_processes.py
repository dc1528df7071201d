"""Run by test_distributed.py in each of its processes: gradients of one step, and the end of a short training."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from stages import images, network

from gdfq_export import synthesis
from gdfq_export.ablations import Ablations
from gdfq_export.distributed import joined, part_of, rank, shared, sum_over_all
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.lower import Quantized
from gdfq_export.methods import METHODS, Task
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.dfqf import Seeking, Turns, take_turns
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.settings import Schedule, Settings
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher, start_generator, update_generator

SCHEDULE = Schedule(batch=16, warmup_steps=3, steps=3, steps_per_epoch=2, calibration_images=16, student_lr=1e-2)
SCHEDULE = dataclasses.replace(SCHEDULE, ablations=Ablations(keep_better=False))
SETTINGS = Settings("gdfq", BitWidths(4, 4), SCHEDULE, "learned", "portable", seed=0)
HALF = (0.5, 0.5, 0.5)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    for module in (synthesis, importlib.import_module("gdfq_export.methods.dfqf")):
        module.autocast = lambda device: nullcontext()  # parts of a sum in bf16 do not add up to 1e-5
    prepared = prepare(LoadedModel("small", network("plain"), (3, 8, 8), HALF, HALF, None, None, "x", None), SETTINGS)
    with joined("cpu"):
        teacher = Teacher(prepared.captured, "cpu")
        state = start_generator(teacher, prepared.image, SCHEDULE, 0)
        update_generator(state, teacher, SCHEDULE)
        gradients = {name: p.grad for name, p in state.model.named_parameters()}

        local = part_of(torch.arange(4.0)).requires_grad_()
        (sum_over_all(local.sum()) ** 2 / 2).backward()

        task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, SETTINGS, silent)
        calibrated = quantize_to_nearest(task, [images(count=8)])
        student = FakeQuantProgram(calibrated, learned_steps=True)
        averaging = shared(student)  # kept until the gradients are there
        averaging(part_of(images(count=8))).square().mean().backward()

        trained = METHODS["gdfq"](task).quantized
        still = dataclasses.replace(SETTINGS, schedule=dataclasses.replace(SCHEDULE, student_lr=1e-30))
        start = METHODS["gdfq"](dataclasses.replace(task, settings=still)).quantized
        seeking = dataclasses.replace(SETTINGS, method="dfqf", ranges="mse")
        trained_dfqf = dfqf_student(task, teacher, SCHEDULE.student_lr, seeking)
        start_dfqf = dfqf_student(task, teacher, 1e-30, seeking)
        if rank() == 0:
            found = {
                "trained by dfqf": trained_dfqf,
                "start of dfqf": start_dfqf,
                "generator": gradients,
                "student": {name: p.grad for name, p in student.named_parameters()},
                "toy": {"x": local.grad},
                "trained": values(trained),
                "start": values(start),
            }
            torch.save(found, out)


def dfqf_student(task: Task, teacher: Teacher, rate: float, settings: Settings) -> dict[str, torch.Tensor]:
    """The student after its turns, kept or not."""
    schedule = dataclasses.replace(SCHEDULE, student_lr=rate)
    task = dataclasses.replace(task, settings=dataclasses.replace(settings, schedule=schedule))
    supply = Seeking(task, teacher)
    supply.warm_up(Stopwatch(None))
    turns = Turns(supply, quantize_to_nearest(task, supply.calibration()), rate)
    take_turns(task, turns, {})
    return values(turns.student.quantized())


def values(quantized: Quantized) -> dict[str, torch.Tensor]:
    """Weights, and the steps of the activations."""
    steps = {name: torch.tensor(affine.scale) for name, affine in quantized.affines.items()}
    return {**quantized.graph.parameters, **steps}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
