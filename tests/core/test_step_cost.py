"""What a step must not do: keep memory. Its speed is measured by benchmarks/step_time.py."""

from __future__ import annotations

import dataclasses
import gc
import importlib

import torch
from stages import network

from gdfq_export.methods import Task
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.supply import Generated
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.settings import Schedule, Settings
from gdfq_export.synthesis import Teacher

SCHEDULE = Schedule(batch=8, warmup_steps=1, steps=100, steps_per_epoch=5, calibration_images=8)
SETTINGS = Settings("gdfq", BitWidths(4, 4), SCHEDULE, "learned", "portable", seed=0)
HALF = (0.5, 0.5, 0.5)


def tensors_alive() -> tuple[int, int]:
    """How many tensors there are, and their elements."""
    gc.collect()
    found = [value for value in gc.get_objects() if isinstance(value, torch.Tensor)]
    return len(found), sum(value.numel() for value in found)


def test_a_step_leaves_no_tensor_behind() -> None:
    gdfq = importlib.import_module("gdfq_export.methods.gdfq")  # the package's `gdfq` is the function
    prepared = prepare(LoadedModel("small", network("plain"), (3, 8, 8), HALF, HALF, None, None, "x", None), SETTINGS)
    schedule = dataclasses.replace(SCHEDULE, ablations=dataclasses.replace(SCHEDULE.ablations, stop_threshold=99.0))
    task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, SETTINGS, silent)
    supply = Generated(task, Teacher(prepared.captured, "cpu"))
    training = gdfq.start_training(task, quantize_to_nearest(task, supply.calibration()), supply)
    counts = []
    for _ in range(3):
        for _ in range(4):
            gdfq.take_turn(training, schedule)
        counts.append(tensors_alive())
    assert counts[1] == counts[2]  # the first turns make the optimizers' states
