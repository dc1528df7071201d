"""`gdfq-export inspect`: what a quantized file holds, and which of its operators ONNX Runtime runs on integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gdfq_export.cli.options import max_memory_bytes

if TYPE_CHECKING:
    from gdfq_export.runtime_checks.inspect import InspectResult


def inspect(
    model: Annotated[Path, typer.Argument(help="A quantized ONNX file, of any tool.", show_default=False)],
    assert_integer: Annotated[
        bool, typer.Option("--assert-integer", help="Exit with 1 if any operator runs in float.")
    ] = False,
    max_memory: Annotated[float, typer.Option(help="Refuse models that would need more memory, in GB.")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List a file's operators with their bits, scales and kernels, and say why any of them runs in float."""
    from gdfq_export.runtime_checks.inspect import inspect_model

    result = inspect_model(model, max_memory=max_memory_bytes(max_memory))
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        _print(result)
    if assert_integer and result.float_operators:
        raise typer.Exit(1)


def _print(result: InspectResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("operator", "op", "kernel", "w bits", "a bits", "scale", "zero")
    for node in result.nodes:
        cells = (node.weight_bits, node.activation_bits, node.scale, node.zero_point)
        texts = ["-" if cell is None else f"{cell:.6g}" for cell in cells]
        table.add_row(escape(node.name), node.op, node.kernel, *texts, style=None if node.integer else "yellow")
    console.print(table)
    integers = sum(node.integer for node in result.nodes)
    endings = f", and behind them {len(result.endings)} in float" if result.endings else ""
    console.print(
        f"{result.kind}, opset {result.opset}, {result.file_bytes:,} bytes: {integers} integer kernels and "
        f"{len(result.float_operators)} float operators{endings} (ONNX Runtime {result.runtime}, level all)",
        soft_wrap=True,
    )
    for what, operators in (("float", result.float_operators), ("ending", result.endings)):
        for operator in operators:
            place = f"{operator.op} '{operator.name}'"
            console.print(f"{what}: {escape(place)}: {escape(operator.reason)}", soft_wrap=True)
    for warning in result.warnings:
        console.print(f"warning: {escape(warning)}", soft_wrap=True)
