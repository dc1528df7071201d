"""Empty images tell a wrong size from a fixed batch, and say where."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from network_parts import SHAPE, Net, head, pooled
from torch import Tensor, nn

from gdfq_export.capture import capture
from gdfq_export.errors import GdfqError, UnsupportedModelError, UsageError
from gdfq_export.trial import check_runs

HERE = Path(__file__).name


def message(function: Callable[[nn.Module, Tensor], Tensor], error: type[GdfqError]) -> str:
    with pytest.raises(error) as caught:
        check_runs(Net(function, conv=nn.Conv2d(3, 4, 3), fc=head(4)), SHAPE, "net", UsageError)
    assert type(caught.value) is error
    assert HERE in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_fixed_batch_is_named_with_its_place_and_no_size_is_blamed(batch: int) -> None:
    said = message(lambda m, x: m.fc(pooled(m.conv(x)).view(batch, 4)), UnsupportedModelError)
    assert f"works for one batch size only: it runs a batch of {batch} but not of " in said
    assert "--input-size" not in said


def test_a_result_of_another_batch_is_a_fixed_batch() -> None:
    model = Net(lambda m, x: m.fc(pooled(m.conv(x))).view(1, -1), conv=nn.Conv2d(3, 4, 3), fc=head(4))
    with pytest.raises(UnsupportedModelError, match=r"batch of 1 but not of 2 .*a tensor of shape \[1, 10\]"):
        check_runs(model, SHAPE, "net", UsageError)


def test_a_wrong_size_is_named_with_the_place_where_it_fails() -> None:
    said = message(lambda m, x: m.fc(m.conv(x).flatten(1)), UsageError)
    assert "cannot run an image of 3x8x8 (see --input-size)" in said


def test_an_error_that_is_about_no_shape_does_not_blame_the_size() -> None:
    for function in (lambda m, x: x.nothing(), lambda m, x: sys.exit("enough"), lambda m, x: m.fc(None)):
        assert "--input-size" not in message(function, UnsupportedModelError)
    assert "sys.exit('enough')" in message(lambda m, x: sys.exit("enough"), UnsupportedModelError)


def test_an_interruption_stays_one() -> None:
    def interrupt(m: nn.Module, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_runs(Net(interrupt), SHAPE, "net", UsageError)


def test_capturing_says_the_same_of_a_fixed_batch() -> None:
    model = Net(lambda m, x: m.fc(pooled(m.conv(x)).view(1, 4)), conv=nn.Conv2d(3, 4, 3), fc=head(4))
    with pytest.raises(UnsupportedModelError, match=rf"one batch size only.*at {HERE}:"):
        capture(model, SHAPE)


@pytest.mark.parametrize("size", [len, lambda x: int(x.shape[0])], ids=["len", "int"])
def test_a_batch_that_becomes_a_constant_is_named_with_its_place(size: Callable[[Tensor], int]) -> None:
    model = Net(lambda m, x: m.fc(pooled(m.conv(x)).view(size(x), 4)), conv=nn.Conv2d(3, 4, 3), fc=head(4))
    with pytest.raises(UnsupportedModelError, match=rf"one batch size only \(the code at the model \({HERE}:\d+\)"):
        capture(model, SHAPE)


def test_a_network_that_runs_passes() -> None:
    check_runs(Net(lambda m, x: torch.relu(x)), SHAPE, "net", UsageError)
