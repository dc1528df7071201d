"""Builds a network of pytorchcv by name, with fresh weights that depend on the seed alone."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gdfq_export.errors import UsageError
from gdfq_export.models.table import ModelEntry


def build_architecture(
    entry: ModelEntry, input_size: tuple[int, int, int], num_classes: int, seed: int
) -> torch.nn.Module:
    """The network of `entry`; what differs from the table is passed on to pytorchcv."""
    changes: dict[str, object] = {}
    if num_classes != entry.num_classes:
        changes["num_classes"] = num_classes
    if input_size[0] != entry.input_size[0]:
        changes["in_channels"] = input_size[0]
    if input_size[1:] != entry.input_size[1:]:
        changes["in_size"] = input_size[1:]
    with torch.random.fork_rng(devices=[]), _numpy_int():
        torch.manual_seed(seed)
        try:
            # pytorchcv has no type hints: importlib keeps the rest of this file typed.
            module = importlib.import_module("pytorchcv.model_provider").get_model(entry.architecture, **changes)
        except (TypeError, ValueError, AssertionError) as error:
            if not changes:
                raise
            asked = ", ".join(f"{key} {value}" for key, value in changes.items())
            raise UsageError(
                f"{entry.name} cannot be built with {asked}: {str(error) or 'pytorchcv does not allow it'}"
            ) from error
    assert isinstance(module, torch.nn.Module)
    return module


@contextmanager
def _numpy_int() -> Iterator[None]:
    """Gives numpy its old alias `int` back: pytorchcv's RegNet and NTS-Net still use it."""
    import numpy as np

    missing = not hasattr(np, "int")
    if missing:
        np.int = int  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if missing:
            del np.int  # type: ignore[attr-defined]
