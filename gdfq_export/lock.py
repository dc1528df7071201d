"""A lock on what a run writes, so that no two runs write the same; it ends with its process, however that ends.

    .model.onnx.lock       beside the output, and beside the work directory: the number of the process that holds it

The lock is the system's (`flock` on the open file), not the file: after a kill the file stays and holds nobody up.
Where a file system knows no such locks, or the system does not, runs are not kept apart.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gdfq_export.errors import OutputFileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def lock_path(path: Path) -> Path:
    """model.onnx -> .model.onnx.lock beside it, by whatever link it is reached."""
    path = path.resolve()
    return path.with_name(f".{path.name}.lock")


@contextmanager
def alone(paths: Iterable[Path]) -> Iterator[None]:
    """Holds the locks of all paths; refuses one that a living process holds."""
    held: list[tuple[int, Path]] = []
    os.register_at_fork(after_in_child=lambda: _close(held))  # a child that survives us must not hold them
    try:
        for path in paths:
            _take(path, held)
        yield
    finally:
        for _, file in held:
            with contextlib.suppress(OSError):
                file.unlink()
        _close(held)


def _take(path: Path, held: list[tuple[int, Path]]) -> None:
    """Adds the lock of one path, where its file system has locks."""
    file = lock_path(path)
    if fcntl is None or any(file == other for _, other in held):
        return
    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return  # a folder that is missing or cannot be written is for others to say
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            if error.errno not in TAKEN:
                file.unlink(missing_ok=True)
                return
            raise OutputFileError(
                f"another run{f' (process {owner})' if owner else ''} is writing {path}: wait until it has ended, "
                "or give this one another --out and --work-dir"
            ) from error
        if _is_still(file, handle):
            break
        os.close(handle)  # its owner removed it between our two calls
    held.append((handle, file))
    with contextlib.suppress(OSError):  # a full disk does not matter here
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


def _is_still(file: Path, handle: int) -> bool:
    """Whether the open file is the one that has the name."""
    try:
        return os.path.samestat(file.stat(), os.fstat(handle))
    except OSError:
        return False


def _close(held: list[tuple[int, Path]]) -> None:
    for handle, _ in held:
        os.close(handle)
    held.clear()
