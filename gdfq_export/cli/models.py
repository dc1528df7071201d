"""`gdfq-export models`: the names that `--model` takes, and the operators that a network of one's own may have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gdfq_export.models.table import ModelEntry

WEIGHTS = {"embedded": "embedded", "download": "download", "none": "--weights"}


def models(
    filter_text: Annotated[
        str | None, typer.Option("--filter", help="Only names that contain this text.", show_default=False)
    ] = None,
    operators: Annotated[
        bool, typer.Option("--operators", help="List the operators of PyTorch that a network may have instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """List the networks that `--model` knows by name, with input size, classes and where weights come from."""
    if operators:
        return _list_operators((filter_text or "").lower(), as_json)
    from gdfq_export.models.table import all_models

    wanted = (filter_text or "").lower()
    entries = [(name, entry) for name, entry in all_models().items() if wanted in name]
    if as_json:
        print(json.dumps({"models": [as_object(entry) for _, entry in entries]}))
        return
    _print_table([entry for _, entry in entries])
    typer.echo(f"{len(entries)} names; a network of your own is FILE.py:FACTORY or FILE.pt2", err=True)


def _list_operators(wanted: str, as_json: bool) -> None:
    """What `docs/operators.md` holds."""
    from gdfq_export.operators import supported

    found = [operator for operator in supported() if wanted in operator.name]
    if as_json:
        print(json.dumps({"operators": [operator.to_json() for operator in found]}))
        return
    print(f"{'operator':36} {'runs as':34} by")
    for operator in found:
        limit = f" (only {operator.limit})" if operator.limit else ""
        print(f"{operator.name:36} {', '.join(operator.runs):34} {'; '.join(operator.details)}{limit}".rstrip())
    typer.echo(f"{len(found)} operators; anything else is refused with its place in the model", err=True)


def as_object(entry: ModelEntry) -> dict[str, object]:
    """One network for the JSON list."""
    return {
        "name": entry.name,
        "architecture": entry.architecture,
        "input_size": list(entry.input_size),
        "num_classes": entry.num_classes,
        "mean": list(entry.mean),
        "std": list(entry.std),
        "resize": entry.resize,
        "weights": entry.weights,
    }


def _print_table(entries: list[ModelEntry]) -> None:
    """Plain columns: the list is long, and made for grep."""
    print(f"{'name':34} {'input':11} {'classes':>7}  {'weights':9} pytorchcv")
    for entry in entries:
        size = "x".join(map(str, entry.input_size))
        same = "" if entry.architecture == entry.name else entry.architecture
        print(f"{entry.name:34} {size:11} {entry.num_classes:>7}  {WEIGHTS[entry.weights]:9} {same}".rstrip())
