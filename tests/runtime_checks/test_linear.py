"""Integer accumulators against sums of Python integers, where float32 would not be exact as well."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdfq_export.runtime_checks.linear import convolve, exact_dtype, multiply, window_from_attributes


@settings(max_examples=30)
@given(st.data())
def test_a_convolution_is_the_exact_sum(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 3]))
    per_group, outputs = data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 2))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    attributes = {
        "group": groups,
        "strides": data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)),
        "dilations": data.draw(st.lists(st.integers(1, 2), min_size=2, max_size=2)),
        "pads": data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)),
    }
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = rng.integers(-255, 256, (2, groups * per_group, 7, 6)).astype(np.int16)
    weight = rng.integers(-128, 128, (outputs, per_group, *kernel)).astype(np.int16)
    bias = rng.integers(-(2**30), 2**30, outputs).astype(np.int32)
    found = convolve(x, weight, bias, attributes)
    window = window_from_attributes(attributes, kernel, x.shape[2:])
    assert found.shape[2:] == window.output_size(x.shape[2:])
    top, left, bottom, right = attributes["pads"]
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    for index in rng.permutation(found.size)[:20]:
        image, channel, row, column = np.unravel_index(index, found.shape)
        total = int(bias[channel])
        for i, j in np.ndindex(*kernel):
            y = row * attributes["strides"][0] + i * attributes["dilations"][0]
            z = column * attributes["strides"][1] + j * attributes["dilations"][1]
            first = channel // (outputs // groups) * per_group
            pixels = padded[image, first : first + per_group, y, z]
            total += int(pixels @ weight[channel, :, i, j].astype(np.int64))
        assert found[image, channel, row, column] == total


def test_sums_beyond_float32_are_still_exact() -> None:
    x, weight = np.full((1, 4000), 255, np.int16), np.full((4000, 1), 127, np.int16)
    weight[0, 0] = 126
    assert multiply(x, weight, None).item() == 255 * (3999 * 127 + 126)


@pytest.mark.parametrize(("bound", "dtype"), [(2**24 - 1, np.float32), (2**24, np.float64)])
def test_the_bound_chooses_the_type(bound: int, dtype: type) -> None:
    assert exact_dtype(bound) is dtype


def test_same_padding_puts_the_odd_pixel_at_the_end_or_the_beginning() -> None:
    upper = window_from_attributes({"auto_pad": b"SAME_UPPER", "strides": [2, 2]}, (3, 3), (6, 6))
    lower = window_from_attributes({"auto_pad": b"SAME_LOWER", "strides": [2, 2]}, (3, 3), (6, 6))
    assert (upper.pads_begin, upper.pads_end) == ((0, 0), (1, 1))
    assert (lower.pads_begin, lower.pads_end) == ((1, 1), (0, 0))
