"""Keeps the memory of freed tensors for the next ones, where the C library can.

glibc asks the system for every tensor beyond 32 MB anew and hands it back when it is freed, and the system fills each
page with zeros before it is used. Activations of a batch are of that size, and most operations on them do little else
than pass over memory.
"""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
NEVER = -1
STEP = 1 << 28  # bytes that the heap grows by at least


def keep_freed_memory() -> bool:
    """Lets freed tensors stay in the process's heap from now on; whether this C library knows how."""
    library = _glibc()
    if library is None:
        return False
    done = [library.mallopt(*option) for option in ((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER), (TOP_PAD, STEP))]
    return all(result == 1 for result in done)


def hand_back_freed_memory() -> None:
    """Between two kinds of work: what the first has left in pieces is of little use to the second."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
