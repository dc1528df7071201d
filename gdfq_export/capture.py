"""model -> captured graph: `torch.export` with a dynamic batch, made functional, then translated.

`run_decompositions({})` turns in-place operations into their functional forms without taking convolution, linear
or pooling apart, so that the translation (`translate.py`) sees each of them once and nothing else has side effects.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import OutputKind

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph
from gdfq_export.precision import InFloat32, casts_to_float32, named
from gdfq_export.refusals import QUANTIZED_OPERATOR, already_quantized, check_module, check_program
from gdfq_export.translate import Check, graph_from_program
from gdfq_export.trial import check_runs
from gdfq_export.user_code import described, first_line, place_of_error

RESULT = OutputKind.USER_OUTPUT

logger = logging.getLogger(__name__)


def export_program(model: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    """`torch.export` of an eval-mode model with a dynamic batch dimension."""
    check_module(model)
    model.eval()
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    try:
        return _exported(model, input_shape)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # users' code can raise anything, sys.exit() included
        raise _explained(error, model, input_shape) from error
    finally:
        logging.getLogger("torch").setLevel(level)


def _exported(model: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    example = torch.zeros(2, *input_shape)
    # By tensor, because what wraps a network (torch.compile, DataParallel) has no name for its argument.
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    shapes[example] = {0: Dim("batch", min=1)}
    with warnings.catch_warnings(), InFloat32():
        warnings.simplefilter("ignore")
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # pages about what failed
            return torch.export.export(model, (example,), dynamic_shapes=shapes)


def capture(model: nn.Module | ExportedProgram, input_shape: Sequence[int], check: Check = lambda graph: ()) -> Graph:
    """The graph of a classifier that takes one batch of images and returns one batch of logits.

    What `check` finds in it is refused together with the operators that cannot be captured.
    """
    program = model if isinstance(model, ExportedProgram) else export_program(model, input_shape)
    check_program(program)
    if isinstance(model, ExportedProgram):
        _check_input(program, input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = program.run_decompositions({})
    types = casts_to_float32(functional)
    if types and not isinstance(model, ExportedProgram):  # of autocast; a program's types are said where it is read
        logger.warning("parts of the model are in %s: they are computed in float32", named(types))
    _leave_results(functional)
    graph = graph_from_program(functional, check)
    _check_graph(graph)
    return graph


def _leave_results(program: ExportedProgram) -> None:
    """Takes off the outputs that stand for what is changed in place: images, and buffers that no result depends on.

    `x -= 0.1` in a forward is `return logits, x - 0.1` in the functional program.
    """
    output, signature = program.graph.output_node(), program.graph_signature
    values: Any = output.args[0]
    results = [value for value, spec in zip(values, signature.output_specs, strict=True) if spec.kind is RESULT]
    needed, waiting = set(), [value for value in results if isinstance(value, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    changed = set(signature.buffers_to_mutate.values())
    for node in needed:
        buffer = signature.inputs_to_buffers.get(node.name)
        if buffer in changed:
            raise UnsupportedModelError(
                f"the model changes its buffer {buffer} each time that it runs, and its result depends on it: a "
                "classifier must give the same image the same logits"
            )
    output.args = (tuple(results),)


def _check_graph(graph: Graph) -> None:
    """Raises for values that nothing can be computed with: none at all, not finite, or a variance below zero."""
    for node in graph.nodes:
        where = f"{node.op} at {node.place or 'the model'}"
        if 0 in node.shape:
            raise UnsupportedModelError(
                f"{where} gives an empty tensor, of shape {list(node.shape)} for each image: a classifier needs one or "
                "more of everything, classes included"
            )
        for role, key in node.parameters.items():
            values = graph.parameters[key]
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise UnsupportedModelError(f"{key}, the {role} of {where}, holds values that are not finite")
        variance = node.parameters.get("variance")
        if variance is not None and bool((graph.parameters[variance] + node.attributes["eps"] <= 0).any()):
            raise UnsupportedModelError(f"{variance}, the variance of {where}, holds values that are not positive")


def _check_input(program: ExportedProgram, input_shape: Sequence[int]) -> None:
    users = program.graph_signature.user_inputs
    if len(users) != 1:
        raise UnsupportedModelError(
            f"the program takes {len(users)} inputs, but a classifier takes one batch of images"
        )
    images = next(n for n in program.graph.nodes if n.name == users[0]).meta["val"]
    shape = images.shape
    if not images.is_floating_point():
        raise UnsupportedModelError(
            f"the program takes images in {images.dtype}: export the part behind its normalisation, which takes "
            "floats, and see --mean, --std and --input-format uint8-nhwc"
        )
    if isinstance(shape[0], int):
        raise UnsupportedModelError(
            f"the program was exported for a batch of exactly {shape[0]}: export it again with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    if tuple(shape[1:]) != tuple(input_shape):
        raise UnsupportedModelError(
            f"the program takes images of {_by(shape[1:])}, not {_by(input_shape)}: "
            "leave --input-size out or make it fit"
        )


def _explained(error: BaseException, model: nn.Module, input_shape: Sequence[int]) -> UnsupportedModelError:
    """One sentence for what `torch.export` says in pages."""
    text, name, place = str(error), type(error).__name__, _at(place_of_error(error))
    first = first_line(error)
    if name == "UnsupportedOperatorException" and QUANTIZED_OPERATOR.search(first):
        return already_quantized(first.removeprefix("aten.").split(".")[0], place)
    if "GuardOnDataDependent" in name or "data-dependent" in text.lower():
        return UnsupportedModelError(
            f"a shape or a branch at {place} depends on the values in tensors, which cannot be captured: "
            "rewrite that part with fixed shapes or torch.where"
        )
    check_runs(model, input_shape, "the model", UnsupportedModelError)
    if "Constraints violated" in text or "specialized" in text.lower():
        constant = _place_of_constant(model, input_shape)
        return UnsupportedModelError(
            f"the model works for one batch size only (the code at {_at(constant)} makes the batch size a "
            "constant, like int() and len() do): use x.shape[0] or -1 in its reshapes"
        )
    return UnsupportedModelError(
        f"the model runs, but torch.export cannot capture it at {place} ({described(error)}): rewrite that part"
    )


def _at(place: str) -> str:
    return f"the model ({place})" if place else "the model"


def _place_of_constant(model: nn.Module, input_shape: Sequence[int]) -> str:
    """Where the batch size became a constant: only a log of `torch.export` says so, while it runs."""
    found: list[str] = []

    class Reads(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            match = re.match(r"eval Eq\(\w+, \d+\).*\(([^()]+):(\d+) in ", record.getMessage())
            if match:
                found.append(f"{Path(match[1]).name}:{match[2]}")

    guards, reads = logging.getLogger("torch.fx.experimental.symbolic_shapes"), Reads()
    level, passes_on = guards.level, guards.propagate
    handlers = list(guards.handlers)
    guards.handlers, guards.propagate = [reads], False
    guards.setLevel(logging.INFO)
    try:
        _exported(model, input_shape)
    except Exception:  # the same error again
        return found[-1] if found else ""
    finally:
        guards.handlers, guards.propagate = handlers, passes_on
        guards.setLevel(level)
    return ""


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
