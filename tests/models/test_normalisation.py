"""From what the user says about the input to mean, standard deviation and range."""

from __future__ import annotations

import logging

import pytest

from gdfq_export.errors import UsageError
from gdfq_export.models.normalisation import normalisation

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Floats = tuple[float, ...]


def of(mean: Floats | None, std: Floats | None, values: tuple[float, float] | None = None, channels: int = 3) -> object:
    return normalisation(mean, std, values, channels, IMAGENET)


def test_without_a_word_the_default_stands() -> None:
    assert of(None, None) == IMAGENET


def test_one_value_stands_for_all_channels() -> None:
    assert of((0.5,), (0.25,)) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((127.5,), (127.5,)),
        ((104.0, 117.0, 123.0), (1.0,)),
        ((0.0,), (255.0,)),
    ],
)
def test_values_above_one_are_of_pixels_in_0_to_255(
    mean: Floats, std: Floats, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = of(mean, std)
    wanted = tuple(tuple(value / 255 for value in (v * 3 if len(v) == 1 else v)) for v in (mean, std))
    assert found == wanted
    assert len(caplog.records) == 1
    assert "0..255" in caplog.text


@pytest.mark.parametrize("mean", [(0.0,), (0.5,), (1.0,), (-0.5,)])
def test_a_std_of_one_is_of_pixels_in_0_to_1_where_the_mean_is(mean: Floats, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert of(mean, (1.0,)) == (mean * 3, (1.0,) * 3)
    assert not caplog.records


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), None, "--mean without --std"),
        (None, (0.5,), "--std without --mean"),
        ((0.1, 0.2), (0.5,), "--mean has 2 values .* 3 channels"),
        ((0.5,), (0.1, 0.2), "--std has 2 values .* 3 channels"),
        ((0.5,), (0.0,), "--std must be .* not 0"),
        ((0.5,), (-1.0,), "--std must be .* not -1"),
        ((0.5,), (1e-9,), "--std must be .* not 1e-09"),
        ((0.0,), (256.0,), "--std must be .* not 256"),
        ((-1e6,), (1.0,), r"--mean must be .* not -1e\+06"),
        ((256.0,), (1.0,), "--mean must be .* not 256"),
        ((float("nan"),), (1.0,), "--mean must be .* not nan"),
        ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375), "--mean .* 0..1 .* --std .* 0..255"),
        ((123.675, 116.28, 103.53), (0.229, 0.224, 0.225), "--mean .* 0..255 .* --std .* 0..1"),
    ],
)
def test_a_normalisation_that_cannot_be_is_one_sentence(mean: Floats | None, std: Floats | None, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        of(mean, std)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_that_the_default_is_not_for_are_told_which_options_to_give(channels: int) -> None:
    with pytest.raises(UsageError, match=r"--mean .*--std .*--input-range LOW,HIGH"):
        of(None, None, channels=channels)


def test_an_input_with_a_range_is_fed_as_it_is() -> None:
    assert of(None, None, (-2.0, 2.0), channels=4) == ((0.0,) * 4, (1.0,) * 4)
    assert of((0.0,), (1.0,), (-2.0, 2.0)) == ((0.0,) * 3, (1.0,) * 3)


def test_a_range_may_be_wider_than_that_of_normalised_pixels_and_not_narrower() -> None:
    assert of((0.5,), (0.5,), (-2.0, 2.0)) == ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UsageError, match=r"pixels reach -1..1 .* --input-range -0.5,2 would clip"):
        of((0.5,), (0.5,), (-0.5, 2.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((2.0, -2.0), "LOW,HIGH"),
        ((1.0, 1.0), "LOW,HIGH"),
        ((-float("inf"), 1.0), "LOW,HIGH"),
        ((0.0, 1e9), "1e.06"),
        ((0.0, 1e-6), "0.0001"),
        ((100.0, 101.0), "zero"),
        ((-101.0, -100.0), "zero"),
    ],
)
def test_a_range_that_cannot_be_is_one_sentence(values: tuple[float, float], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        of(None, None, values)
    assert "--input-range" in str(caught.value)
