"""Standard output is for results alone: what users' code prints, at whatever level, goes to stderr.

A factory may print, but so may a C library, a child process, or something that runs when Python ends. So the process
gives file descriptor 1 to stderr for good, and keeps what was there under another number, which only `sys.stdout`
knows. Where users' code runs, `sys.stdout` is stderr too.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout

from gdfq_export.errors import OutputFileError


class Results(io.TextIOWrapper):
    """Standard output of the process, whose failure to take a result is an error of the output, not a bug of ours."""

    def write(self, text: str, /) -> int:
        with _failing_as_output():
            return super().write(text)

    def flush(self) -> None:
        with _failing_as_output():
            super().flush()


@contextmanager
def _failing_as_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # nobody reads on, which the caller takes for an end
        raise
    except OSError as error:
        drop_stdout()
        raise OutputFileError(f"cannot write to standard output: {error.strerror or error}") from error


def claim_stdout() -> None:
    """Makes `sys.stdout` the only way to the process's standard output; once, when the process starts."""
    printed = sys.stdout
    if printed is not sys.__stdout__ or printed is None:
        return
    printed.flush()
    try:
        results = os.fdopen(os.dup(1), "wb")
    except OSError:  # closed: nobody reads results
        return
    try:
        os.dup2(2, 1)
    except OSError:  # no stderr either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = Results(
        results,
        encoding=printed.encoding,
        errors=printed.errors,
        line_buffering=printed.line_buffering,
    )


def release_stdout() -> None:
    """Writes out the last results; what is printed from here on, like by `atexit`, goes to stderr."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
    finally:
        sys.stdout = sys.stderr


def drop_stdout() -> None:
    """Throws away what `sys.stdout` still holds, which Python would try to write again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout.flush()


def users_code() -> AbstractContextManager[object]:
    """While the code of users runs, `print` writes to stderr."""
    return redirect_stdout(sys.stderr)
