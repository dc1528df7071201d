"""Output files: written beside their place and moved there whole, or not at all."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gdfq_export.errors import OutputFileError

RANDOM_LETTERS = 8  # of the names that tempfile makes


@dataclass(frozen=True)
class Companions:
    """The files of a run; the last two are left out on request."""

    model: Path
    fakequant: Path
    fp32: Path


def companions_of(out: Path) -> Companions:
    """model.onnx -> model.fakequant.pt2 and model.fp32.onnx beside it."""
    stem = out.with_suffix("") if out.suffix == ".onnx" else out
    return Companions(out, stem.with_name(f"{stem.name}.fakequant.pt2"), stem.with_name(f"{stem.name}.fp32.onnx"))


def work_directory(out: Path) -> Path:
    """model.onnx -> model.work beside it."""
    return out.with_suffix(".work") if out.suffix == ".onnx" else out.with_name(f"{out.name}.work")


def check_output(path: Path, *, force: bool, option: str = "--out") -> None:
    """Refuses an output that cannot be written, before any work is done for it."""
    folder = path.parent if str(path.parent) else Path()
    if not folder.is_dir():
        raise OutputFileError(f"the folder {folder} of {option} does not exist: create it first")
    if path.is_dir():
        raise OutputFileError(f"{option} {path} is a folder: name a file in it")
    if path.exists() and not force:
        raise OutputFileError(f"{path} exists already: choose another {option}, or overwrite it with --force")
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputFileError(f"cannot write to the folder {folder} of {option} ({error.strerror})") from error


@contextmanager
def atomic_path(path: Path, option: str = "--out") -> Iterator[Path]:
    """A path to write to; the file appears as `path` when the block ends well, and leaves no trace otherwise."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent or ".")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputFileError(
            f"cannot write {path} ({error.strerror}): free some space or choose another {option}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what a process that was killed while it wrote `path` has left beside it."""
    for temporary in path.parent.glob(f".{glob.escape(path.stem)}.*{glob.escape(path.suffix)}"):
        if len(temporary.name) == len(f".{path.stem}.{path.suffix}") + RANDOM_LETTERS:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
