"""The losses of DFQF, and what the generator and the student do with them."""

from __future__ import annotations

import math

import pytest
import torch
from stages import calibrated, captured

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.generator import ImageSpec
from gdfq_export.methods.dfqf import disagreement, inception_loss, update_generator, update_student
from gdfq_export.passes import canonicalize, fold_batch_norm
from gdfq_export.plan import BitWidths
from gdfq_export.settings import Schedule
from gdfq_export.synthesis import Teacher, start_generator

SPEC = ImageSpec((3, 8, 8), (-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
SCHEDULE = Schedule(batch=32, warmup_steps=0, steps=0, steps_per_epoch=1, generator_lr=2e-3, beta=0.0)


def test_sure_answers_that_cover_all_classes_have_the_best_inception_score() -> None:
    sure_and_varied = torch.eye(4) * 100
    assert float(inception_loss(sure_and_varied)) == pytest.approx(-math.log(4))


@pytest.mark.parametrize(
    "logits", [torch.zeros(4, 4), torch.tensor([[100.0, 0.0, 0.0, 0.0]] * 4)], ids=["unsure", "one class"]
)
def test_answers_that_are_unsure_or_all_the_same_score_nothing(logits: torch.Tensor) -> None:
    assert float(inception_loss(logits)) == pytest.approx(0.0, abs=1e-6)  # float32


def test_disagreement_is_zero_for_equal_answers_and_grows_with_the_divergence() -> None:
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(disagreement(teacher, teacher)) == 0.0
    near, far = disagreement(teacher * 0.9, teacher), disagreement(-teacher, teacher)
    assert 0 < float(near) < float(far)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(canonicalize(captured("plain")), "cpu")


def student_of(teacher: Teacher) -> FakeQuantProgram:
    return FakeQuantProgram(calibrated(fold_batch_norm(teacher.graph), BitWidths(2, 3)), learned_steps=False)


def test_the_generator_learns_to_make_the_student_wrong(teacher: Teacher) -> None:
    found = []
    for student in (None, student_of(teacher)):
        state = start_generator(teacher, SPEC, SCHEDULE, 0)
        for _ in range(30):
            seen = update_generator(state, teacher, student, SCHEDULE)
        with torch.no_grad():
            found.append(float(disagreement(student_of(teacher)(seen.images), seen.teacher_logits)))
    assert found[1] > found[0]


def test_the_student_learns_what_the_teacher_says_of_the_images(teacher: Teacher) -> None:
    student = student_of(teacher)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1e-2, momentum=0.9)
    seen = update_generator(start_generator(teacher, SPEC, SCHEDULE, 0), teacher, None, SCHEDULE)
    images, wanted = seen.images, seen.teacher_logits
    losses = [update_student(student, optimizer, images, wanted, step, teacher.meaning) for step in range(20)]
    assert losses[-1] < losses[0]
