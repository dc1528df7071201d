"""Whole pickled modules, which are read with `--allow-pickle` alone: loading one runs code from the file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from gdfq_export.errors import InputFileError
from gdfq_export.user_code import described

MODULE_KEYS = ("model", "state_dict", "model_state_dict", "net", "network")  # of checkpoints that hold a module

logger = logging.getLogger(__name__)


def load_pickle(path: Path) -> object:
    """Whatever `torch.save` wrote, classes of the user's own included; these must be importable."""
    logger.warning("%s is loaded by running code from the file (--allow-pickle): do so only where you trust it", path)
    with _importable(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the code in the file raises
            raise InputFileError(f"{path} cannot be unpickled: {_advice(error)}") from error


def module_in(content: object) -> torch.nn.Module | None:
    """The module that a file holds, itself or under one of the usual keys of a checkpoint."""
    if isinstance(content, torch.nn.Module):
        return content
    entries = content if isinstance(content, Mapping) else {}
    return next((entries[key] for key in MODULE_KEYS if isinstance(entries.get(key), torch.nn.Module)), None)


def module_from_pickle(path: Path) -> torch.nn.Module:
    """The network in FILE.pt, as `torch.save(module, FILE.pt)` left it."""
    content = load_pickle(path)
    module = module_in(content)
    if module is None:
        raise InputFileError(f"{path} holds a {type(content).__name__} without a torch.nn.Module in it")
    return module


def _advice(error: BaseException) -> str:
    source = "pass the module's source as --model FILE.py:FACTORY, and its state_dict() as --weights"
    if isinstance(error, ModuleNotFoundError):
        return (
            f"it needs the Python module {error.name}, which cannot be imported here: run with PYTHONPATH set to the "
            f"folder that holds it, or {source}"
        )
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return f"its class was defined in the script that saved it ({error}): {source}"
    if isinstance(error, AttributeError | ImportError):
        return f"its class is not where it was ({error}): run with PYTHONPATH set to the code of that time, or {source}"
    return f"{described(error)}: {source}"


@contextmanager
def _importable(path: Path) -> Iterator[None]:
    """Classes are looked up beside the file and in the working directory, as in a script that stands there."""
    before = list(sys.path)
    sys.path[:0] = [str(Path.cwd()), str(path.resolve().parent)]
    try:
        yield
    finally:
        sys.path[:] = before
