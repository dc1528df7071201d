"""Values that no trained network holds: numbers that are not finite, and negative variances."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def bad_values(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """`conv.weight holds values that are not finite`: the first tensor that no trained network has."""
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} holds values that are not finite"
        if name.rpartition(".")[2] == "running_var" and bool((tensor < 0).any()):
            return f"{name} holds negative values, and a variance has none"
    return None
