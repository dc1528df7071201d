"""How far a quantized network is from the float one, without data: what chooses between states.

    error = 1 - r^2,    r = <q, f> / (|q| |f|)   over all held-back images and classes, logits centred in each image

It is the share of the float logits that no scaling of the quantized ones explains. Neither a constant nor a factor
changes the class, so neither counts. Probabilities would be a worse measure: synthetic images are recognised with such
certainty that their probabilities hardly move while those of photographs already do.

Where each output is a decision (`meaning.py`), a constant does change it: there outputs are centred at the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.lower import Quantized
from gdfq_export.meaning import Meaning
from gdfq_export.synthesis import Teacher

BATCH = 32


class LogitError:
    """1 - r^2 over batches, from 0 to 1."""

    def __init__(self, meaning: Meaning) -> None:
        self.meaning = meaning
        self.product = self.of_student = self.of_teacher = 0.0

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """One batch of logits (N, C)."""
        q, f = self.meaning.centred(student.double()), self.meaning.centred(teacher.double())
        self.product += float((q * f).sum())
        self.of_student += float(q.square().sum())
        self.of_teacher += float(f.square().sum())

    @property
    def value(self) -> float:
        """Of all that was added; 1 where there is nothing to compare."""
        scale = self.of_student * self.of_teacher
        return max(1.0 - max(self.product, 0.0) ** 2 / scale, 0.0) if scale > 0.0 else 1.0


@torch.no_grad()
def logit_error(student: FakeQuantProgram, teacher: Teacher, images: Tensor) -> float:
    """1 - r^2 of a student that may be in training."""
    student, error = student.to(teacher.device), LogitError(teacher.meaning)
    for batch in torch.split(images, BATCH):
        batch = batch.to(teacher.device)
        error.add(student(batch), teacher.program(batch))
    return error.value


def error_of(quantized: Quantized, teacher: Teacher, images: Tensor) -> float:
    """`logit_error` of a state that is not being trained."""
    return logit_error(FakeQuantProgram(quantized, learned_steps=False), teacher, images)
