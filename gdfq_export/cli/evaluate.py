"""`gdfq-export evaluate`: accuracy on labelled images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from gdfq_export.cli.options import max_memory_bytes
from gdfq_export.errors import UsageError


def evaluate(
    model: Annotated[Path, typer.Argument(help="The ONNX file to evaluate.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            help="A folder with one folder of images for each class: by the names of --labels, by a number that all "
            "names start with (0012_n01443537), or in the order of their names where no class is missing.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="Names of the classes, a line each, in the order of the outputs; default: the file's own."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Mean of pixels in [0, 1], one value or one a channel; default: what the file says."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, likewise.")] = None,
    resize: Annotated[
        int | None, typer.Option(min=1, help="Shorter side before the centre crop; default: what the file says.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0: one a core.")] = 0,
    max_memory: Annotated[float, typer.Option(help="Refuse models that would need more memory, in GB.")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Measure top-1 and top-5 accuracy on a folder of labelled images."""
    means, stds = numbers("--mean", mean), numbers("--std", std)
    if stds and min(stds) <= 0:
        raise UsageError(f"--std must be positive, not {std!r}")
    limit = max_memory_bytes(max_memory)
    from rich.console import Console
    from rich.progress import Progress

    from gdfq_export.runtime_checks.class_folders import read_labels
    from gdfq_export.runtime_checks.evaluate import evaluate as measure

    names = None if labels is None else read_labels(labels)

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)
        accuracy = measure(
            model,
            data,
            means,
            stds,
            resize,
            threads,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            max_memory=limit,
            labels=names,
        )
    for note in accuracy.notes:
        typer.echo(f"warning: {note}", err=True)
    if as_json:
        print(json.dumps({"model": str(model), "data": str(data), **dataclasses.asdict(accuracy)}))
    elif accuracy.outputs == 1:
        print(f"right {accuracy.top1:.2f} % of {accuracy.images} images (one output: class 0 or 1)")
    else:
        decided = "" if accuracy.decisions is None else f"; {accuracy.decisions:.2f} % of the decisions are right"
        print(f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} % of {accuracy.images} images{decided}")


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """`0.485,0.456,0.406` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes numbers such as 0.5 or 0.485,0.456,0.406, not {text!r}") from None
