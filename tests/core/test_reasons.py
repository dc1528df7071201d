"""A network that cannot be quantized hears everything at once: what it returns first, then each operator once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from network_parts import SHAPE, Net, conv_bn, head, pooled
from test_pipeline import SETTINGS, loaded
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.capture import capture
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.pipeline import prepare


def refused(model: nn.Module, **settings: object) -> UnsupportedModelError:
    """The error that planning must raise: one paragraph with exit code 3."""
    with pytest.raises(UnsupportedModelError) as caught:
        prepare(loaded(model.eval().requires_grad_(False)), dataclasses.replace(SETTINGS, **settings))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return caught.value


def up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 2, 2)


def unet(depth: int) -> nn.Module:
    """As many steps up as down, a group norm and a mask as large as the image."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.norm(m.stem(x)))
        x = F.max_pool2d(x, 2 ** min(depth, 3))
        for step in m.ups:
            x = F.relu(step(x)) if x.shape[-1] < 8 else F.relu(step(F.max_pool2d(x, 2)))
        return m.mask(x)

    ups = nn.ModuleList(up(4, 4) for _ in range(depth))
    return Net(forward, stem=nn.Conv2d(3, 4, 3, padding=1), norm=nn.GroupNorm(2, 4), ups=ups, mask=nn.Conv2d(4, 1, 1))


def test_a_segmentation_network_first_hears_what_it_returns() -> None:
    error = refused(unet(2))
    wanted = ["output", "group_norm", "conv_transpose2d", "conv_transpose2d"]
    assert [reason.operator for reason in error.reasons] == wanted
    text = str(error)
    assert text.index("[1, 8, 8]") < text.index("operator group_norm") < text.index("operator conv_transpose2d")
    assert "classifier" in text
    assert "3 reasons" in text


def test_each_operator_is_named_once_with_its_places() -> None:
    text = str(refused(unet(2)))
    assert text.count("conv_transpose2d") == 1
    assert "at ups.0 (test_reasons.py:" in text  # the user's line, not PyTorch's
    assert " and ups.1 (" in text


def test_more_than_three_places_are_counted() -> None:
    error = refused(unet(5))
    text = str(error)
    assert [place for place in range(5) if f"ups.{place} (" in text] == [0, 1, 2]
    assert "and 2 more places" in text
    assert sum(reason.operator == "conv_transpose2d" for reason in error.reasons) == 5


def test_one_reason_is_one_sentence_without_a_number() -> None:
    text = str(refused(Net(lambda m, x: m.fc(torch.logsumexp(m.a(x), (2, 3))), a=conv_bn(3, 4), fc=head(4))))
    assert text.startswith("operator logsumexp at the model (")
    assert "reasons" not in text


def test_what_a_rule_refuses_stands_beside_what_has_no_rule() -> None:
    model = Net(lambda m, x: m.fc(torch.logsumexp(m.a(x).mean(2), 2)), a=conv_bn(3, 4), fc=head(4))
    text = str(refused(model))
    assert "a mean over axes [2]" in text
    assert "logsumexp" in text


def test_what_has_no_integer_form_stands_beside_what_has_no_rule() -> None:
    model = Net(
        lambda m, x: m.fc(torch.logsumexp(m.norm(m.a(x)), (2, 3))),
        a=conv_bn(3, 4),
        norm=nn.InstanceNorm2d(4),
        fc=head(4),
    )
    text = str(refused(model))
    assert "instance_norm" in text
    assert "--allow-float instance_norm" in text
    assert "logsumexp" in text
    assert "instance_norm" not in str(refused(model, allow_float="instance_norm"))


def test_a_softmax_over_many_elements_stands_beside_the_others() -> None:
    model = Net(lambda m, x: m.fc(torch.logsumexp(torch.softmax(m.a(x).flatten(2), 2), 2)), a=conv_bn(3, 4), fc=head(4))
    text = str(refused(model))
    assert "over 64 elements" in text
    assert "logsumexp" in text


@pytest.mark.parametrize(
    "ending",
    [lambda x: F.normalize(x), lambda x: x / x.norm(dim=1, keepdim=True), lambda x: F.normalize(x, eps=1e-6) * 16],
)
def test_an_embedding_is_to_be_normalised_behind_the_network(ending: object) -> None:
    error = refused(Net(lambda m, x: ending(m.fc(pooled(F.relu(m.a(x))))), a=conv_bn(3, 4), fc=head(4)))  # type: ignore[operator]
    (reason,) = error.reasons  # the division is part of the norm
    assert reason.operator == "linalg_vector_norm"
    assert "normalise behind the network" in str(error)


def test_a_cosine_classifier_is_to_be_normalised_behind_the_network() -> None:
    fc = nn.Linear(4, 5, bias=False)
    model = Net(lambda m, x: F.linear(F.normalize(pooled(m.a(x))), F.normalize(m.fc.weight)), a=conv_bn(3, 4), fc=fc)
    assert "normalise behind the network" in str(refused(model))


def test_a_norm_that_a_layer_with_a_bias_reads_is_no_ending() -> None:
    model = Net(lambda m, x: m.fc(F.normalize(pooled(m.a(x)))), a=conv_bn(3, 4), fc=head(4))
    text = str(refused(model))
    assert "behind the network" not in text
    assert "linalg_vector_norm" in text


@pytest.mark.parametrize("ending", [torch.cumsum, torch.argmax, lambda x, axis: torch.topk(x, 2, axis)[0]])
def test_what_only_stands_behind_the_logits_is_to_be_cut_off(ending: object) -> None:
    model = Net(lambda m, x: ending(m.fc(pooled(m.a(x))), 1), a=conv_bn(3, 4), fc=head(4))  # type: ignore[operator]
    assert "cut the last layers off" in str(refused(model))


def test_an_operator_between_layers_is_not_to_be_cut_off() -> None:
    model = Net(lambda m, x: m.fc(torch.cumsum(pooled(m.a(x)), 1)), a=conv_bn(3, 4), fc=head(4))
    assert "cut" not in str(refused(model))


def test_what_follows_from_a_lost_batch_is_no_reason_of_its_own() -> None:
    model = Net(lambda m, x: m.fc(pooled(m.a(x) * (x.reshape(-1, 4) * 2).abs().sum())), a=conv_bn(3, 4), fc=head(4))
    reasons = refused(model).reasons
    assert sum("first axis is not the batch" in reason.problem for reason in reasons) == 1


def test_two_results_come_first() -> None:
    error = refused(Net(lambda m, x: (torch.logsumexp(m.a(x), (2, 3)), x), a=conv_bn(3, 4)))
    assert "returns 2 tensors" in error.reasons[0].problem
    assert error.reasons[1].operator == "logsumexp"


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (lambda m, x: m.a(x), "pooling"),  # features without a classifier
        (lambda m, x: F.interpolate(m.a(x), scale_factor=2), "only classifiers"),
        (lambda m, x: m.a(x).flatten(2), "cut the last layers off"),
        (lambda m, x: m.a(x).mean((2, 3), keepdim=True), "flatten"),
    ],
)
def test_the_advice_about_what_is_returned_follows_from_its_shape(function: object, advice: str) -> None:
    error = refused(Net(function, a=conv_bn(3, 4, stride=4)))  # type: ignore[arg-type]
    (reason,) = error.reasons
    assert reason.operator == "output"
    assert "returns a tensor of shape" in str(error)
    assert advice in reason.advice


def test_capturing_alone_takes_any_shape() -> None:
    assert capture(Net(lambda m, x: m.a(x), a=conv_bn(3, 4)), SHAPE).nodes
