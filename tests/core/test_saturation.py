from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gdfq_export.saturation import breaking_channels, from_pairs, make_safe, pairs

shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Float weights, their scales and codes, and the largest activation code; large weights are frequent."""
    shape, seed = draw(shapes), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    scale = rng.uniform(0.005, 0.02, shape[0])
    codes = np.clip(np.rint(weight / scale.reshape(-1, *[1] * (len(shape) - 1))), -127, 127).astype(np.int64)
    return weight, scale, codes, draw(st.sampled_from([255, 255, 200, 129, 127, 15]))


def test_pairs_follow_kernel_height_then_width_then_channel() -> None:
    weight = np.arange(8).reshape(1, 2, 2, 2)  # channel, height, width
    assert pairs(weight).tolist() == [[[0, 4], [1, 5], [2, 6], [3, 7]]]


def test_an_odd_number_of_weights_ends_with_a_pair_with_zero() -> None:
    assert pairs(np.array([[5, 6, 7]])).tolist() == [[[5, 6], [7, 0]]]


@settings(max_examples=60)
@given(shapes, st.integers(0, 1000))
def test_from_pairs_is_the_inverse_of_pairs(shape: tuple[int, ...], seed: int) -> None:
    weight = np.random.default_rng(seed).integers(-127, 128, shape)
    assert np.array_equal(from_pairs(pairs(weight), shape), weight)


def test_a_pair_may_reach_the_ends_of_int16_and_no_further() -> None:
    safe = np.array([[64, 64], [-64, -64], [127, -127], [127, 1]])
    assert not breaking_channels(safe, 255).any()
    assert breaking_channels(np.array([[65, 64], [-65, -64], [1, 1]]), 255).tolist() == [True, True, False]


def test_narrow_activations_never_break() -> None:
    assert not breaking_channels(np.full((1, 2), 127), 127).any()
    assert breaking_channels(np.full((1, 2), 127), 130).all()


def test_four_bit_weights_never_break() -> None:
    assert not breaking_channels(np.full((1, 2), -7), 255).any()


def test_the_bound_says_when_int16_overflows() -> None:
    for amax in (255, 200, 131):
        sums = [amax * a + amax * b for a, b in ((127, 127), (100, 28), (-127, -2))]
        overflow = [not -32768 <= total <= 32767 for total in sums]
        assert breaking_channels(np.array([[127, 127], [100, 28], [-127, -2]]), amax).tolist() == overflow


def test_only_channels_that_break_are_changed() -> None:
    weight = np.array([[1.27, 1.27], [0.5, 0.5]])
    scale = np.array([0.01, 0.01])
    codes = np.rint(weight / scale[:, None]).astype(np.int64)
    safe, new_scale, broken = make_safe(weight, scale, codes, 255, 127)
    assert broken.tolist() == [True, False]
    assert safe[1].tolist() == [50, 50]
    assert new_scale[1] == 0.01
    assert not breaking_channels(safe, 255).any()


def test_a_repaired_channel_stays_near_its_weights() -> None:
    weight = np.array([[1.27, 1.27, -1.27, -1.27]])
    safe, scale, _ = make_safe(weight, np.array([0.01]), np.array([[127, 127, -127, -127]]), 255, 127)
    # half a step: a scale near twice as large holds these weights without clipping any
    assert np.abs(safe * scale[:, None] - weight).max() <= scale[0]


def test_the_excess_of_a_lonely_pair_is_taken_from_both_weights() -> None:
    small = np.tile([0.2, -0.2, 0.13, 0.31], 20_000)
    weight = np.concatenate([[0.66, 0.66], small])[None]
    scale = np.array([0.01])
    codes = np.rint(weight / 0.01).astype(np.int64)
    safe, new_scale, _ = make_safe(weight, scale, codes, 255, 127)
    assert new_scale.tolist() == [0.01]
    assert safe[0, :2].tolist() == [64, 64]
    assert np.array_equal(safe[0, 2:], codes[0, 2:])


@settings(max_examples=50)
@given(layers())
def test_no_breaking_pair_is_ever_left_and_whole_channels_stay_as_they_were(
    layer: tuple[np.ndarray, np.ndarray, np.ndarray, int],
) -> None:
    weight, scale, codes, amax = layer
    safe, new_scale, broken = make_safe(weight, scale, codes, amax, 127)
    assert not breaking_channels(safe, amax).any()
    assert np.abs(safe).max() <= 127
    assert (new_scale >= scale).all()
    assert np.array_equal(safe[~broken], codes[~broken])


def test_a_layer_without_a_breaking_pair_is_returned_as_it_was() -> None:
    weight, scale, codes = np.array([[0.5, 0.5]]), np.array([0.01]), np.array([[50, 50]])
    safe, new_scale, broken = make_safe(weight, scale, codes, 255, 127)
    assert np.array_equal(safe, codes)
    assert np.array_equal(new_scale, scale)
    assert not broken.any()
