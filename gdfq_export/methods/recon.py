"""Reconstruction: images optimised against the frozen network, then each block learns to return what it returned."""

from __future__ import annotations

import torch

from gdfq_export.distilled import distil_images
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.gdfq import divergence
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.reconstruct import reconstruct
from gdfq_export.synthesis import Teacher

HELD_BACK = 8  # one image of so many is fitted to by nothing


def recon(task: Task) -> Outcome:
    """Optimised images, ranges, then reconstruction; keeps the state that agrees better on held-back images."""
    settings = task.settings
    teacher = Teacher(task.captured, settings.device)
    made = distil_images(teacher, task.image, settings.distillation, settings.seed, task.progress)
    held_back, images = made.pixels[::HELD_BACK], made.pixels[torch.arange(len(made.pixels)) % HELD_BACK != 0]
    calibrated = quantize_to_nearest(task, torch.split(images, settings.reconstruction.batch))
    trained = reconstruct(calibrated, images, settings.reconstruction, settings.seed, task.progress)
    before = divergence(FakeQuantProgram(calibrated, learned_steps=False), teacher, held_back)
    after = divergence(FakeQuantProgram(trained, learned_steps=False), teacher, held_back)
    figures = {"images": len(made.pixels), "divergence_calibrated": before, "divergence_trained": after}
    return Outcome(trained if after < before else calibrated, held_back, figures)
