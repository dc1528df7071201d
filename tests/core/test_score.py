"""The measure that chooses between states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stages import calibrated, captured, folded
from torch import Tensor, nn

from gdfq_export.meaning import ONE_CLASS, Meaning
from gdfq_export.passes import canonicalize
from gdfq_export.plan import BitWidths
from gdfq_export.score import LogitError, error_of, logit_error
from gdfq_export.synthesis import Teacher

IMAGES = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 3.0]])


class Answers(nn.Module):
    """Gives what it is told to give, row by row."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, x: Tensor) -> Tensor:
        return self.answers[: len(x)]


class Told:
    """A float network that answers with its images."""

    device = "cpu"
    meaning = ONE_CLASS

    @staticmethod
    def program(x: Tensor) -> Tensor:
        return x


def error(answers: Tensor) -> float:
    student: Any = Answers(answers)
    teacher: Any = Told()
    return logit_error(student, teacher, IMAGES)


def test_neither_a_factor_nor_a_constant_of_an_image_counts() -> None:
    assert error(IMAGES * 7.0 + torch.tensor([[5.0], [-2.0]])) == pytest.approx(0.0, abs=1e-12)


def test_the_share_that_is_not_explained_by_hand() -> None:
    # centred: (2, -1, -1), (-2, 1, 1) against (2, -1, -1), (-1, 2, -1): <q, f> = 6 + 3, |q|^2 = |f|^2 = 12
    assert error(torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])) == pytest.approx(1 - 81 / 144)


@pytest.mark.parametrize("answers", [-IMAGES, torch.zeros(2, 3), torch.ones(2, 3)])
def test_an_answer_that_says_nothing_or_the_opposite_has_the_largest_error(answers: Tensor) -> None:
    assert error(answers) == 1.0


@pytest.mark.parametrize("meaning", [Meaning("decisions"), Meaning("decisions", 0.5)])
def test_of_decisions_a_constant_counts_and_a_factor_of_the_distance_does_not(meaning: Meaning) -> None:
    def error_to(found: Tensor, wanted: Tensor) -> float:
        parts = LogitError(meaning)
        parts.add(found + meaning.threshold, wanted + meaning.threshold)
        return parts.value

    one = torch.tensor([[1.0], [-2.0], [0.5]])
    assert error_to(one * 3, one) == pytest.approx(0.0, abs=1e-12)
    assert error_to(-one, one) == error_to(torch.zeros(3, 1), one) == 1.0
    # (2, -1, 1.5) against (1, -2, 0.5): <q, f> = 4.75, |q|^2 = 7.25, |f|^2 = 5.25
    assert error_to(one + 1.0, one) == pytest.approx(1 - 4.75**2 / (7.25 * 5.25))
    several = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])
    assert error_to(several + 1.0, several) > 0.0


@pytest.mark.parametrize("name", ["one_logit", "sigmoid_end"])
def test_decisions_too_have_a_larger_error_with_fewer_bits(name: str) -> None:
    graph, teacher = folded(name), Teacher(canonicalize(captured(name)), "cpu")
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    errors = [error_of(calibrated(graph, BitWidths(bits, bits)), teacher, images) for bits in (8, 4, 2)]
    assert errors == sorted(errors)
    assert 0.0 < errors[0] < 0.01 < errors[-1]


def test_fewer_bits_have_a_larger_error() -> None:
    graph, teacher = folded("residual"), Teacher(canonicalize(captured("residual")), "cpu")
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    errors = [error_of(calibrated(graph, BitWidths(bits, bits)), teacher, images) for bits in (8, 6, 4, 2)]
    assert errors == sorted(errors)
    assert 0.0 < errors[0] < 0.01 < errors[-1]


def test_batches_add_up() -> None:
    answers = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    parts = LogitError(ONE_CLASS)
    for student, teacher in zip(answers, IMAGES, strict=True):
        parts.add(student[None], teacher[None])
    assert parts.value == pytest.approx(error(answers))
    assert LogitError(ONE_CLASS).value == 1.0
