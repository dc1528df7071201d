"""How far a quantized network is from the float one, without data: what chooses between states.

    error = 1 - r^2,    r = <q, f> / (|q| |f|)   over all held-back images and classes, logits centred in each image

It is the share of the float logits that no scaling of the quantized ones explains. Neither a constant nor a factor
changes the class, so neither counts. Probabilities would be a worse measure: synthetic images are recognised with such
certainty that their probabilities hardly move while those of photographs already do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.lower import Quantized
from gdfq_export.synthesis import Teacher

BATCH = 32


@torch.no_grad()
def logit_error(student: FakeQuantProgram, teacher: Teacher, images: Tensor) -> float:
    """1 - r^2, from 0 to 1."""
    student = student.to(teacher.device)
    product = of_student = of_teacher = 0.0
    for batch in torch.split(images, BATCH):
        batch = batch.to(teacher.device)
        q, f = (_centred(network(batch)) for network in (student, teacher.program))
        product += float((q * f).sum())
        of_student += float(q.square().sum())
        of_teacher += float(f.square().sum())
    scale = of_student * of_teacher
    return 1.0 - max(product, 0.0) ** 2 / scale if scale > 0.0 else 1.0


def _centred(logits: Tensor) -> Tensor:
    return logits.double() - logits.double().mean(1, keepdim=True)


def error_of(quantized: Quantized, teacher: Teacher, images: Tensor) -> float:
    """`logit_error` of a state that is not being trained."""
    return logit_error(FakeQuantProgram(quantized, learned_steps=False), teacher, images)
