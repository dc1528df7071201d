"""One class by the largest output, or a decision by each."""

from __future__ import annotations

import math

import pytest
import torch
from network_parts import Net, conv_bn, head, pooled
from stages import captured, folded
from torch import nn
from torch.nn import functional as F

from gdfq_export.capture import capture
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph
from gdfq_export.meaning import ONE_CLASS, Meaning, meaning_of
from gdfq_export.passes import canonicalize

SIGN, EACH = Meaning("decisions"), Meaning("decisions", 0.5)


def ending(function: object, outputs: int = 4) -> Graph:
    """A network that ends in a function of its logits."""
    net = Net(lambda m, x: function(m.fc(pooled(F.relu(m.a(x))))), a=conv_bn(3, 8), fc=head(8, outputs))  # type: ignore[operator]
    return canonicalize(capture(net.eval().requires_grad_(False), (3, 8, 8)))


def test_the_end_of_the_network_says_what_its_outputs_mean() -> None:
    assert meaning_of(folded("plain")) == ONE_CLASS
    assert meaning_of(folded("one_logit")) == SIGN
    assert meaning_of(folded("sigmoid_end")) == EACH
    assert meaning_of(canonicalize(captured("softmax_end"))).name == "probabilities"
    assert meaning_of(ending(nn.LogSoftmax(1))).name == "log-probabilities"


@pytest.mark.parametrize(
    ("function", "outputs", "meaning"),
    [
        (torch.sigmoid, 1, EACH),
        (lambda x: torch.sigmoid(x).view(x.shape[0], -1)[:, :3], 4, EACH),
        (lambda x: torch.cat([torch.sigmoid(x[:, :2]), torch.sigmoid(x[:, 2:])], 1), 4, EACH),
        (lambda x: torch.cat([torch.sigmoid(x[:, :2]), x[:, 2:]], 1), 4, ONE_CLASS),
        (lambda x: torch.sigmoid(x) * x, 4, ONE_CLASS),
        (torch.tanh, 1, SIGN),
    ],
)
def test_sigmoids_count_however_they_are_moved_and_nothing_else_does(
    function: object, outputs: int, meaning: Meaning
) -> None:
    assert meaning_of(ending(function, outputs)) == meaning


def test_a_softmax_over_one_class_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"softmax .* over one class, which is always certain"):
        meaning_of(ending(nn.Softmax(1), 1))


def test_one_decision_tells_two_classes_and_each_of_several_can_be_a_no_or_a_yes() -> None:
    assert [meaning.classes(1) for meaning in (ONE_CLASS, SIGN)] == [1, 2]
    assert [meaning.classes(4) for meaning in (ONE_CLASS, EACH)] == [4, 4]
    assert [meaning.labels(4) for meaning in (ONE_CLASS, EACH)] == [4, 8]
    classes = torch.tensor([0, 1])
    assert SIGN.label_of(classes, 1).tolist() == ONE_CLASS.label_of(classes, 4).tolist() == [0, 1]
    assert EACH.label_of(classes, 4).tolist() == [1, 3]


def test_answers_are_the_same_by_class_or_by_decision() -> None:
    a, b = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[2.0, 1.0], [5.0, 4.0]])
    assert ONE_CLASS.same_answers(a, b) == (1, 2)
    assert SIGN.same_answers(a, b) == (3, 4)
    assert EACH.same_answers(torch.tensor([[0.4], [0.6]]), torch.tensor([[0.45], [0.5]])) == (1, 2)


def test_a_label_is_recognised_in_its_own_output() -> None:
    values = torch.tensor([[0.2, 0.9]] * 4)
    assert EACH.recognised(values, torch.tensor([0, 1, 2, 3])).tolist() == [True, False, False, True]
    assert ONE_CLASS.recognised(values[:2], torch.tensor([0, 1])).tolist() == [False, True]


def test_what_decides_nothing_is_the_mean_of_an_image_or_the_threshold() -> None:
    values = torch.tensor([[1.0, 3.0]])
    assert ONE_CLASS.centred(values).tolist() == [[-1.0, 1.0]]
    assert SIGN.centred(values).tolist() == [[1.0, 3.0]]
    assert EACH.centred(values).tolist() == [[0.5, 2.5]]


@pytest.mark.parametrize("meaning", [SIGN, EACH])
def test_a_no_and_a_yes_of_each_output_have_the_probabilities_of_its_sigmoid(meaning: Meaning) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    values = logits if meaning is SIGN else logits.sigmoid()
    found = meaning.log_probabilities(values).exp()
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.25, 0.75]]))
    cooler = meaning.log_probabilities(values, 2.0).exp()
    torch.testing.assert_close(cooler[:, 3], (logits[:, 1] / 2).sigmoid())


def test_probabilities_of_zero_and_one_still_have_a_finite_gradient_that_pulls_them_back() -> None:
    values = torch.tensor([[0.0, 1.0]], requires_grad=True)
    wrong = -EACH.log_probabilities(values)[0, [1, 2]].sum()  # a yes of the first, a no of the second
    wrong.backward()
    assert bool(torch.isfinite(wrong))
    assert values.grad is not None
    assert -600 < float(values.grad[0, 0]) < 0 < float(values.grad[0, 1]) < 600
