"""Every error that a user can cause, each with its exit code.

    GdfqError                     1
    ├── UsageError                2   the command line is wrong
    │   └── UnknownModelError     2   no model of that name
    ├── UnsupportedModelError     3   the network cannot be captured or quantized
    ├── InputFileError            4   a file is missing, damaged or does not fit
    │   └── WeightsError          4   weights that do not belong to the network
    ├── OutputFileError           4   the output exists already or cannot be written
    ├── DivergedError             1   training left the range of finite numbers
    └── LostProcessError          1   another process of the job has ended

A message says what, where, and what to do next, in one sentence. A failed check is a result, not an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GdfqError(Exception):
    """Base of all errors; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(GdfqError):
    """An option or argument that cannot be."""

    exit_code = 2


class UnknownModelError(UsageError):
    """A model name that is in no table."""


@dataclass(frozen=True)
class Reason:
    """One thing in a network that is in the way, as the parts of a sentence."""

    operator: str  # as PyTorch names it, or `output` for what the network returns
    place: str  # in the user's module
    problem: str
    advice: str

    def __str__(self) -> str:
        if self.operator == "output":
            return f"the model {self.problem}: {self.advice}"
        return f"operator {self.operator} at {self.place} {self.problem}: {self.advice}"


class UnsupportedModelError(GdfqError):
    """A network that we cannot capture, quantize or emit, and what is in the way where that can be listed."""

    exit_code = 3

    def __init__(self, message: str, reasons: Sequence[Reason] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


class InputFileError(GdfqError):
    """A file that is missing, damaged or does not fit."""

    exit_code = 4


class WeightsError(InputFileError):
    """Weights that cannot be had, read, or loaded into the network."""


class OutputFileError(GdfqError):
    """An output that exists already or cannot be written."""

    exit_code = 4


class DivergedError(GdfqError):
    """Training produced numbers that are not finite."""


class LostProcessError(GdfqError):
    """Another process of the job has ended; all that are left notice it, and one of them is enough to say so."""
