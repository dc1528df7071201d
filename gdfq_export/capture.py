"""model -> captured graph: `torch.export` with a dynamic batch, made functional, then translated.

`run_decompositions({})` turns in-place operations into their functional forms without taking convolution, linear
or pooling apart, so that the translation (`translate.py`) sees each of them once and nothing else has side effects.
"""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph
from gdfq_export.refusals import QUANTIZED_OPERATOR, already_quantized, check_module, check_program
from gdfq_export.translate import graph_from_program


def export_program(model: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    """`torch.export` of an eval-mode model with a dynamic batch dimension."""
    check_module(model)
    model.eval()
    example = torch.zeros(2, *input_shape)
    # By tensor, because what wraps a network (torch.compile, DataParallel) has no name for its argument.
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    shapes[example] = {0: Dim("batch", min=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.getLogger("torch").level
        logging.getLogger("torch").setLevel(logging.CRITICAL)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # pages about what failed
                return torch.export.export(model, (example,), dynamic_shapes=shapes)
        except Exception as error:
            raise _explained(error, input_shape) from error
        finally:
            logging.getLogger("torch").setLevel(level)


def capture(model: nn.Module | ExportedProgram, input_shape: Sequence[int]) -> Graph:
    """The graph of a classifier that takes one batch of images and returns one batch of logits."""
    program = model if isinstance(model, ExportedProgram) else export_program(model, input_shape)
    check_program(program)
    if isinstance(model, ExportedProgram):
        _check_input(program, input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return graph_from_program(program.run_decompositions({}))


def _check_input(program: ExportedProgram, input_shape: Sequence[int]) -> None:
    users = program.graph_signature.user_inputs
    if len(users) != 1:
        raise UnsupportedModelError(
            f"the program takes {len(users)} inputs, but a classifier takes one batch of images"
        )
    shape = next(n for n in program.graph.nodes if n.name == users[0]).meta["val"].shape
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


def _explained(error: Exception, input_shape: Sequence[int]) -> UnsupportedModelError:
    """One sentence for what `torch.export` says in pages."""
    text, name, place = str(error), type(error).__name__, _place(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), name)
    if name == "UnsupportedOperatorException" and QUANTIZED_OPERATOR.search(first):
        return already_quantized(first.removeprefix("aten.").split(".")[0], place)
    if "GuardOnDataDependent" in name or "data-dependent" in text.lower():
        return UnsupportedModelError(
            f"a shape or a branch at {place} depends on the values in tensors, which cannot be captured: "
            "rewrite that part with fixed shapes or torch.where"
        )
    if "Constraints violated" in text or "specialized" in text.lower():
        return UnsupportedModelError(
            "the model works for one batch size only (it computes with the batch size as a constant): "
            "use x.shape[0] or -1 in its reshapes"
        )
    return UnsupportedModelError(
        f"torch.export cannot capture the model for an input of {_by(input_shape)} ({name}: {first[:200]}): "
        "check --input-size"
    )


def _place(error: Exception) -> str:
    """The last line of the user's code that ran."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, "<string>") and not frame.filename.startswith(torch_folder)
    ]
    return f"the model ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else "the model"


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
