from __future__ import annotations

import math

import pytest
import torch
from stages import captured, images, network
from torch.nn import functional as F

from gdfq_export.losses import (
    Statistics,
    distillation_loss,
    generator_cross_entropy,
    generator_loss,
    run_with_statistics,
    statistics_loss,
    stored_statistics,
    student_cross_entropy,
    student_loss,
)
from gdfq_export.meaning import Meaning
from gdfq_export.passes import canonicalize
from gdfq_export.program import FloatProgram

# Float tolerances of 1e-6: a handful of float32 operations on values near 1.


def log_odds(*probabilities: float) -> torch.Tensor:
    return torch.tensor([[math.log(p) for p in probabilities]])


@pytest.mark.parametrize("loss", [generator_cross_entropy, student_cross_entropy])
def test_cross_entropy_is_the_mean_of_minus_the_log_of_the_labels_probability(loss) -> None:
    """Eq. 4 for the teacher, eq. 7 for the student."""
    logits = torch.cat([log_odds(0.25, 0.75), log_odds(0.9, 0.1)])
    expected = -(math.log(0.75) + math.log(0.9)) / 2
    assert loss(logits, torch.tensor([1, 0])).item() == pytest.approx(expected, rel=1e-6)


def statistics(mean: list[float], variance: list[float]) -> Statistics:
    return Statistics(torch.tensor(mean), torch.tensor(variance))


BATCH = [statistics([1.0, 2.0], [1.0, 1.0]), statistics([0.0], [4.0])]
STORED = [statistics([0.0, 0.0], [1.0, 3.0]), statistics([3.0], [2.0])]


def test_the_papers_statistics_loss_sums_squares_over_channels_and_layers() -> None:
    """Eq. 5: (1 + 4) + 4 for the first layer, 9 + 4 for the second."""
    assert statistics_loss(BATCH, STORED).item() == 5 + 4 + 9 + 4


def test_the_codes_statistics_loss_averages_over_channels_and_layers() -> None:
    assert statistics_loss(BATCH, STORED, "code").item() == ((5 / 2 + 4 / 2) + (9 + 4)) / 2


def test_equal_statistics_cost_nothing() -> None:
    assert statistics_loss(STORED, STORED).item() == 0.0


def test_the_generators_loss_weighs_statistics_by_beta() -> None:
    """Eq. 9."""
    assert generator_loss(torch.tensor(2.0), torch.tensor(5.0), 0.5).item() == 4.5


def test_the_students_loss_weighs_distillation_by_gamma() -> None:
    """Eq. 10."""
    assert student_loss(torch.tensor(2.0), torch.tensor(5.0), 0.5).item() == 4.5


def test_distillation_is_the_divergence_of_the_student_from_the_teacher() -> None:
    """Eq. 8: sum of p log(p / q) with p the teacher's probabilities."""
    teacher, student = log_odds(0.5, 0.5), log_odds(0.25, 0.75)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_is_not_symmetric() -> None:
    a, b = log_odds(0.5, 0.5), log_odds(0.1, 0.9)
    assert distillation_loss(a, b).item() != pytest.approx(distillation_loss(b, a).item(), rel=0.01)


def test_distillation_averages_over_the_batch() -> None:
    teacher, student = log_odds(0.5, 0.5), log_odds(0.25, 0.75)
    twice = distillation_loss(torch.cat([student, teacher]), torch.cat([teacher, teacher])).item()
    assert twice == pytest.approx(distillation_loss(student, teacher).item() / 2, rel=1e-6)


def test_a_temperature_divides_logits_and_multiplies_the_loss_by_its_square() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    cooled = distillation_loss(student / 2, teacher / 2).item()
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(4 * cooled, rel=1e-6)


def test_the_codes_distillation_is_divided_by_the_number_of_classes() -> None:
    teacher, student = torch.randn(3, 7), torch.randn(3, 7)
    paper, code = distillation_loss(student, teacher, 20.0), distillation_loss(student, teacher, 20.0, "code")
    assert code.item() == pytest.approx(paper.item() / 7, rel=1e-6)


def test_equal_logits_have_no_distillation_loss() -> None:
    logits = torch.randn(4, 5)
    assert distillation_loss(logits, logits).item() == pytest.approx(0.0, abs=1e-6)


def test_stored_statistics_belong_to_the_tensor_that_batch_norm_reads() -> None:
    graph = canonicalize(captured("plain"))
    stored = stored_statistics(graph)
    assert list(stored) == ["a.0", "b.0"]
    assert torch.equal(stored["a.0"].mean, network("plain").a[1].running_mean)
    assert torch.equal(stored["a.0"].variance, network("plain").a[1].running_var)


def test_statistics_are_those_of_the_batch_and_its_pixels() -> None:
    x, model = images(count=4), network("plain")
    _, (found,) = run_with_statistics(FloatProgram(canonicalize(captured("plain"))), x, ["a.0"])
    values = model.a[0](x).transpose(0, 1).flatten(1)
    # 1e-5: float32 sums of 256 values in another order
    assert torch.allclose(found.mean, values.mean(1), atol=1e-5)
    assert torch.allclose(found.variance, values.var(1, correction=0), atol=1e-5)


def test_statistics_come_with_the_logits_of_the_same_pass() -> None:
    x = images(count=2)
    logits, _ = run_with_statistics(FloatProgram(canonicalize(captured("plain"))), x, ["a.0"])
    assert torch.equal(logits, network("plain")(x))


def test_statistics_of_features_without_space_are_those_of_the_batch() -> None:
    program = FloatProgram(canonicalize(captured("dropout_and_view")))
    _, (found,) = run_with_statistics(program, images(count=4), ["hidden"])
    assert found.mean.shape == (16,)


def test_gradients_reach_the_images_through_the_statistics() -> None:
    graph = canonicalize(captured("plain"))
    stored, x = stored_statistics(graph), images(count=2).requires_grad_()
    _, found = run_with_statistics(FloatProgram(graph), x, list(stored))
    statistics_loss(found, list(stored.values())).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_cross_entropy_of_decisions_is_that_of_the_output_that_the_label_asks_for() -> None:
    logits, decisions = torch.tensor([[0.3, -1.2], [2.0, 0.7]]), Meaning("decisions")
    labels = torch.tensor([1, 2])  # a yes of the first output, a no of the second
    expected = F.binary_cross_entropy_with_logits(torch.stack([logits[0, 0], logits[1, 1]]), torch.tensor([1.0, 0.0]))
    for loss in (generator_cross_entropy, student_cross_entropy):
        torch.testing.assert_close(loss(logits, labels, decisions), expected)
    one = generator_cross_entropy(logits[:, :1], torch.tensor([0, 1]), decisions)
    torch.testing.assert_close(one, F.binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([0.0, 1.0])))


def test_distillation_of_decisions_is_the_divergence_of_two_answers_summed_over_the_outputs() -> None:
    student, teacher, decisions = torch.tensor([[0.3, -1.2]]), torch.tensor([[1.0, 0.5]]), Meaning("decisions")
    p, q = teacher.sigmoid(), student.sigmoid()
    expected = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())
    found = distillation_loss(student, teacher, meaning=decisions).item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(student, teacher, 1.0, "code", decisions).item() == pytest.approx(expected / 4, rel=1e-5)
    assert distillation_loss(student[:, :1], teacher[:, :1]).item() == 0.0  # what one class says of one logit
