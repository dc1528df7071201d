"""Runs a network on empty images before anything else does: is the size wrong, or the batch fixed in its code?

The shapes that `torch.export` sees are symbols, so its messages do not tell the two apart. A batch of one image and one
of two do: a wrong size fails for both.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from gdfq_export.errors import GdfqError, UnsupportedModelError
from gdfq_export.precision import InFloat32
from gdfq_export.user_code import described

USUAL_BATCHES = (4, 8, 16, 32, 64, 128, 256)  # that a network whose code fixes the batch is likely to be written for

ABOUT_SHAPES = (RuntimeError, ValueError, AssertionError, IndexError)  # what a wrong size raises


def check_runs(model: nn.Module, input_shape: Sequence[int], name: str, wrong_size: type[GdfqError]) -> None:
    """Raises `wrong_size` where no image of this size can be run, and says where the code fixes the batch's size."""
    model.eval()
    errors = {count: _error(model, input_shape, count) for count in (1, 2)}
    failed = {count: error for count, error in errors.items() if error is not None}
    if not failed:
        return
    count, error = next(iter(failed.items()))
    runs = 3 - count if len(failed) == 1 else None
    if runs is None and isinstance(error, ABOUT_SHAPES):
        runs = next((usual for usual in USUAL_BATCHES if _runs_in_theory(model, input_shape, usual)), None)
    if runs is not None:
        raise UnsupportedModelError(
            f"{name} works for one batch size only: it runs a batch of {runs} but not of {count} ({described(error)}): "
            "use x.shape[0] or -1 there in place of the number"
        ) from error
    if isinstance(error, ABOUT_SHAPES) and not isinstance(error, NotImplementedError | RecursionError):
        raise wrong_size(
            f"{name} cannot run an image of {by(input_shape)} (see --input-size): {described(error)}"
        ) from error
    raise UnsupportedModelError(f"{name} cannot run an image of {by(input_shape)}: {described(error)}") from error


def by(shape: Sequence[int]) -> str:
    """`3x32x32`"""
    return "x".join(map(str, shape))


def _error(model: nn.Module, input_shape: Sequence[int], count: int) -> BaseException | None:
    """What `count` empty images raise in the user's code, or a result of another batch."""
    with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"), InFloat32():
        warnings.simplefilter("ignore")
        try:
            result = model(torch.zeros(count, *input_shape))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return error
    if isinstance(result, torch.Tensor) and result.ndim > 0 and result.shape[0] != count:
        return ValueError(f"it returns a tensor of shape {list(result.shape)}")
    return None


def _runs_in_theory(model: nn.Module, input_shape: Sequence[int], count: int) -> bool:
    """Whether shapes fit for a batch of `count`, computed without data, which costs no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return _error(model, input_shape, count) is None
