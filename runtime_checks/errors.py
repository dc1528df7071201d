"""What can be wrong with a file that is to be checked, each with its exit code.

    CheckError                    4   the file is missing, damaged or does not fit
    ├── MemoryLimitError          4   checking it would take more memory than allowed
    └── UnsupportedGraphError     3   a valid file, but not one that we can check

The package stands alone, so it has its own hierarchy: the command line reads `exit_code` only. A check that fails is
a result and never an exception.
"""

from __future__ import annotations


class CheckError(Exception):
    """Base of all errors of this package; the message says what, where and what to do next."""

    exit_code = 4


class MemoryLimitError(CheckError):
    """A model whose check would take more memory than the caller allows."""


class UnsupportedGraphError(CheckError):
    """A valid ONNX file that is not of the kind that we check: not quantized, custom operators, several inputs."""

    exit_code = 3
