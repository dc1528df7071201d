"""Networks in half or double precision are computed in float32, the type that everything from here on is made of.

half conv -> half relu   becomes   float32 conv -> float32 relu

Parameters and buffers are widened, casts between float types are casts to float32, and so is what is made in another
type. Nothing else depends on the type, so the graph is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
CASTS = (Tensor.half, Tensor.bfloat16, Tensor.double)


class InFloat32(TorchFunctionMode):
    """While it is entered, Python code that asks for another float type gets float32; `replaced` says which."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: set[torch.dtype] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in CASTS:
            self.replaced.add(OTHER_FLOATS[CASTS.index(func)])
            func = Tensor.float
        return func(*map(self._float32, args), **{name: self._float32(value) for name, value in (kwargs or {}).items()})

    def _float32(self, value: Any) -> Any:
        if isinstance(value, torch.dtype) and value in OTHER_FLOATS:
            self.replaced.add(value)
            return torch.float32
        return value


def other_floats(tensors: Iterable[Tensor]) -> set[torch.dtype]:
    """The float types other than float32 among tensors."""
    return {tensor.dtype for tensor in tensors} & set(OTHER_FLOATS)


def widen(module: nn.Module) -> set[torch.dtype]:
    """Parameters and buffers in float32; returns the types that they had."""
    found = other_floats([*module.parameters(), *module.buffers()])
    if found:
        module.float()
    return found


def program_floats(program: ExportedProgram) -> set[torch.dtype]:
    """The float types other than float32 that a program computes in."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    return other_floats(value for value in values if isinstance(value, Tensor))


def casts_to_float32(program: ExportedProgram) -> set[torch.dtype]:
    """Makes every operator of a program that asks for another float type ask for float32; returns these types."""
    replaced: set[torch.dtype] = set()

    def float32(value: Any) -> Any:
        if isinstance(value, torch.dtype) and value in OTHER_FLOATS:
            replaced.add(value)
            return torch.float32
        return value

    for node in program.graph.nodes:
        if node.op == "call_function":
            node.args = tuple(map(float32, node.args))
            node.kwargs = {name: float32(value) for name, value in node.kwargs.items()}
    return replaced


def named(types: Iterable[torch.dtype]) -> str:
    """`torch.float16 and torch.float64`."""
    return " and ".join(sorted(map(str, types)))


def float32(tensor: Tensor) -> Tensor:
    """A float tensor in float32; others as they are."""
    return tensor.float() if tensor.dtype in OTHER_FLOATS else tensor
