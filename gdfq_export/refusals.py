"""Networks that are refused before anything runs: quantized ones, those of several inputs, and those that are compiled.

A quantized network has lost what quantization starts from, float weights and batch norm. Each tool leaves other traces,
so they are looked for by name: of classes of modules and tensors, and of operators.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.fx_nodes import place_of

QUANTIZED_CLASS = re.compile(
    r"torch\.ao\.nn\.(intrinsic\.|sparse\.)?(quantized|qat)\.(?!.*FloatFunctional$)"  # which float networks have too
    r"|torch\.ao\.quantization\.(observer|fake_quantize)\."
    r"|(torchao|brevitas|nncf)\."
    r"|gdfq_export\.exact\."
)
QUANTIZED_OPERATOR = re.compile(r"quantize|fake_quant|obs_fq|_int_mm|int[48]pack")


def already_quantized(what: str, place: str) -> UnsupportedModelError:
    """The error for a network where `what`, a class or an operator, shows that it is quantized."""
    return UnsupportedModelError(
        f"the network is already quantized, or prepared for it ({what} at {place}): "
        "pass the float network that it was made from"
    )


def check_module(model: nn.Module) -> None:
    """Raises for a module that cannot be a float classifier of one batch of images."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError("the network is TorchScript: pass the torch.nn.Module that it was made from")
    for path, module in model.named_modules():
        for kind in type(module).__mro__:
            if QUANTIZED_CLASS.match(_full_name(kind)):
                raise already_quantized(_full_name(kind), path or "the model")
        if isinstance(module, fx.GraphModule):
            _check_nodes(module.graph.nodes)
    _check_tensors([*model.named_parameters(), *model.named_buffers()])
    if isinstance(model, fx.GraphModule) and "eval" in vars(model):  # torch.export overrides it, to raise an error
        raise UnsupportedModelError(
            "the network is the module of an exported program: save the program with torch.export.save, and pass the "
            ".pt2 file"
        )
    needed = [p for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed) > 1:
        raise UnsupportedModelError(
            "the model takes more than one input, but only classifiers of one batch of images are supported: "
            "wrap it in a module that fills in the others"
        )


def check_program(program: ExportedProgram) -> None:
    """Raises for a program that is already quantized."""
    _check_nodes(program.graph.nodes)
    _check_tensors(program.state_dict.items())


def _check_nodes(nodes: Iterable[fx.Node]) -> None:
    for node in nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            if QUANTIZED_CLASS.match(_full_name(kind)):
                raise already_quantized(_full_name(kind), path or "the model")
        if node.op in ("call_function", "call_method") and QUANTIZED_OPERATOR.search(str(node.target)):
            name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
            raise already_quantized(name, place_of(node))


def _check_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        if QUANTIZED_CLASS.match(_full_name(type(tensor))):
            raise already_quantized(_full_name(type(tensor)), name)
        if tensor.is_quantized:
            raise already_quantized(str(tensor.dtype), name)
        if tensor.is_meta:
            raise UnsupportedModelError(f"{name} has no values (it is on PyTorch's meta device): make it on the CPU")


def _full_name(kind: type | str) -> str:
    """Module and name of a class; programs that were read from a file hold only these."""
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
