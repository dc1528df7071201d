"""What a file says about its input and output."""

from __future__ import annotations

import pytest
from stages import network
from torch import nn

from gdfq_export.capture import capture
from gdfq_export.interface import input_facts, input_sentence, output_facts
from gdfq_export.meaning import meaning_of
from gdfq_export.models.sources import LoadedModel


def loaded(channels: int = 3, **changes: object) -> LoadedModel:
    half = (0.5,) * channels
    values = ("x", nn.Identity(), (channels, 4, 6), half, half, None, None, "factory", None)
    return LoadedModel(*values, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "order"), [(1, "grey"), (3, "RGB"), (2, None), (4, None)])
def test_pixels_have_an_order_of_channels_where_it_is_known(channels: int, order: str | None) -> None:
    assert input_facts(loaded(channels), "float-nchw", (-1.0, 1.0))["channel_order"] == order


def test_the_input_is_one_line() -> None:
    facts = input_facts(loaded(), "float-nchw", (-1.0, 1.0))
    wanted = "float 3x4x6 (NCHW), -1 to 1 (pixels in 0..1, mean 0.5, std 0.5); values beyond are clipped"
    assert input_sentence(facts) == wanted
    facts = input_facts(loaded(), "uint8-nhwc", (-1.0, 1.0))
    assert input_sentence(facts) == "bytes 4x6x3 (NHWC), 0 to 255, normalised inside to -1 to 1"


@pytest.mark.parametrize(
    ("ending", "meaning"),
    [
        (None, "logits"),
        (nn.Softmax(1), "probabilities"),
        (nn.LogSoftmax(1), "log-probabilities"),
        (nn.Sigmoid(), "decisions"),
        (nn.Linear(5, 1), "decisions"),
        (nn.Linear(5, 2), "logits"),
    ],
)
def test_the_ending_decides_what_the_output_means(ending: nn.Module | None, meaning: str) -> None:
    whole = network("plain") if ending is None else nn.Sequential(network("plain"), ending)
    found = meaning_of(capture(whole.eval(), (3, 8, 8)))
    assert output_facts(found, ["no", "yes"]) == {"meaning": meaning, "labels": ["no", "yes"]}
