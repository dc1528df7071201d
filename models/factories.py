"""`FILE.py:FACTORY`: a network from the user's own source file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from gdfq_export.errors import InputFileError, UsageError
from gdfq_export.user_code import described

PRIVATE_NAME = "_gdfq_export_user_model"  # no file of the user's can be imported under this name by accident


def is_factory_spec(spec: str) -> bool:
    """Whether `spec` means a Python file, with or without the name of a factory."""
    return ".py:" in spec or spec.endswith(".py")


def module_from_factory(spec: str, seed: int) -> torch.nn.Module:
    """Imports FILE.py and calls FACTORY(); a module-level network is taken as it is."""
    file, _, name = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
    path = Path(file)
    if not path.is_file():
        raise InputFileError(f"model file {path} does not exist")
    with torch.random.fork_rng(devices=[]), _importable(path.resolve().parent), _torch_settings():
        torch.manual_seed(seed)
        source = _imported(path)
        if not name or not hasattr(source, name):
            raise UsageError(_no_factory_message(path, name, source))
        value = getattr(source, name)
        made = value if isinstance(value, torch.nn.Module) else _called(value, path, name)
    if not isinstance(made, torch.nn.Module):
        raise UsageError(f"{name}() of {path} returns a {type(made).__name__}, not a torch.nn.Module")
    return made


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(PRIVATE_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PRIVATE_NAME] = module  # dataclasses and type hints in the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() too, which would end the program without a word
        raise InputFileError(f"model file {path} cannot be imported: {described(error)}") from error
    return module


def _called(factory: object, path: Path, name: str) -> object:
    if not callable(factory):
        raise UsageError(f"{name} of {path} is a {type(factory).__name__}, not a function that returns a network")
    function: Callable[[], object] = factory
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputFileError(f"{name}() of {path}, called without arguments, failed: {described(error)}") from error


def _no_factory_message(path: Path, name: str, source: ModuleType) -> str:
    found = [
        key
        for key, value in vars(source).items()
        if not key.startswith("_")
        and (isinstance(value, torch.nn.Module) or (callable(value) and value.__module__ == PRIVATE_NAME))
    ]
    has = f"it has {', '.join(found)}" if found else "it defines no function or class"
    asked = f"{path} has no {name}" if name else f"name the function that makes the network, {path}:FACTORY"
    return f"{asked}: {has}"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the user's file import its neighbours, as `python FILE.py` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _torch_settings() -> Iterator[None]:
    """Takes back what the user's file sets for all of PyTorch, and what is made after it would be made in."""
    dtype, gradients, device = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
