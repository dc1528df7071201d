"""What an FX node of an exported program says: arguments by name, shape, operator, and place in the user's code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import fx

from gdfq_export.errors import Reason, UnsupportedModelError

TORCH_FOLDER = str(Path(torch.__file__).parent)


class Arguments:
    """The arguments of an FX node by schema name, with defaults filled in."""

    def __init__(self, node: fx.Node) -> None:
        schema = node.target._schema  # type: ignore[union-attr]
        self.node = node
        self.values = {argument.name: argument.default_value for argument in schema.arguments}
        self.values.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        self.values.update(node.kwargs)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the first tensor argument, without the batch."""
        return shape_of(self.node.all_input_nodes[0])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, without the batch."""
        return shape_of(self.node)


def value_of(node: fx.Node) -> Any:
    """The tensor (without data), number or tuple that a node gives; None for one that gives nothing."""
    return node.meta.get("val")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the (first) result, without the batch."""
    value = node.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(int(size) for size in value.shape[1:])


def operator_name(node: fx.Node) -> str:
    """The operator without overload, and without namespace where it is ATen's: `aten.add.Tensor` is `add`."""
    name = str(node.target).removeprefix("aten.")
    return name.rpartition(".")[0] or name


def module_path(node: fx.Node) -> str:
    """Path of the module that made this node; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def place_of(node: fx.Node) -> str:
    """Module path and source line of the user's code that made this node, or of PyTorch's where there is no other."""
    path = module_path(node)
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [line for line in lines if not line[0].startswith(TORCH_FOLDER)] or lines
    source = f"{lines[-1][0].rsplit('/', 1)[-1]}:{lines[-1][1]}" if lines else ""
    return f"{path or 'the model'} ({source})" if source else path or "the model"


def unsupported(node: fx.Node, what: str = "") -> UnsupportedModelError:
    """The error for an operator without a rule, or whose rule is not for `what`."""
    problem = f"is not supported with {what}" if what else "is not supported"
    advice = "replace it in the model, or open an issue with the model's code"
    reason = Reason(operator_name(node), place_of(node), problem, advice)
    return UnsupportedModelError(str(reason), [reason])
